package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/internal/agent"
	"tidegate/internal/status"
)

// uplinkTest is what `uplink test --json` prints.
type uplinkTest struct {
	Schema string        `json:"schema"`
	Via    string        `json:"via"` // agent or direct
	OK     bool          `json:"ok"`
	Steps  []status.Step `json:"steps"`
	MS     float64       `json:"ms"`
}

func (a *app) uplinkCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "uplink",
		Short: "test the way to the broker, make and place certificates",
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var timeout time.Duration
	which := c.PersistentFlags().String("uplink", "", "`NAME` of the uplink, where there are several")
	test := &cobra.Command{
		Use:   "test",
		Short: "step by step to the broker and back: DNS, TCP, TLS, login, publish, echo",
		Long: "Goes to the broker step by step and tells the time of each; the first failure\n" +
			"comes with cause and advice. While the agent is connected, the MQTT steps go\n" +
			"through its session, because a second login under the same client id would end\n" +
			"the first. Of several uplinks each is tried, one after the other, or the one of\n" +
			"--uplink; brokers of fallback likewise, without login while the agent is\n" +
			"connected to another one. Exit code 0 when every step is ok or warns, else 1.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.testUplink(cmd.Context(), *which, timeout)
		},
	}
	test.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "give up after this `TIME`, for all brokers together")
	c.AddCommand(test, a.csrCmd(which), a.certCmd(which))
	return c
}

func (a *app) testUplink(ctx context.Context, name string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	t := uplinkTest{Schema: "tidegate.uplink-test/1", Via: "agent", OK: true}
	var err error
	if t.Steps, err = a.client().TestUplink(ctx, name); errors.Is(err, status.ErrNoAgent) {
		t.Via = "direct"
		cfg, _, err := a.load()
		if err != nil {
			return err
		}
		if t.Steps, err = agent.TestUplink(ctx, cfg, name, agent.Options{Version: version, Built: built()}); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	t.MS = float64(time.Since(start).Microseconds()) / 1000
	for _, s := range t.Steps {
		t.OK = t.OK && (s.State == status.OK || s.State == status.Warn)
	}
	if a.json {
		printJSON(a.out, t)
	} else {
		n, head := 0, " "
		for _, s := range t.Steps {
			if n++; s.Uplink+" "+s.Broker != head {
				n, head = 1, s.Uplink+" "+s.Broker
				fmt.Fprintln(a.out, strings.TrimSpace(head))
			}
			line := fmt.Sprintf("%2d %-12s %-7s %s", n, s.Name, s.State, s.Text)
			if s.MS > 0 {
				line = fmt.Sprintf("%-70s %4.0f ms", line, s.MS)
			}
			fmt.Fprintln(a.out, line)
			if s.Failure != nil {
				fmt.Fprint(a.out, s.Failure.Text())
			}
		}
		if t.OK {
			fmt.Fprintf(a.out, "uplink works. %.2f s\n", t.MS/1000)
		}
	}
	if !t.OK {
		return exit(exitFindings)
	}
	return nil
}
