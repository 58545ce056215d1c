package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tidegate/internal/agent"
	"tidegate/internal/status"
)

func (a *app) bufferCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "buffer",
		Short: "what waits for the uplink: stat, peek, export, verify, erase",
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	stat := &cobra.Command{
		Use:   "stat",
		Short: "how much waits, since when, and what was lost",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.bufferStat(cmd.Context()) },
	}
	var last int
	var device string
	peek := &cobra.Command{
		Use:   "peek",
		Short: "the newest batches that wait, with their readings",
		Long:  "Shows the newest batches that wait in the buffer; nothing is removed.",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.bufferPeek(cmd.Context(), last, device) },
	}
	peek.Flags().IntVar(&last, "last", 20, "how many batches, 1 to 10000")
	peek.Flags().StringVar(&device, "device", "", "only readings of this `DEVICE`")
	c.AddCommand(stat, peek, a.bufferExportCmd(), a.bufferVerifyCmd(), a.eraseCmd())
	return c
}

// stopped opens the buffer of the configuration where no agent runs.
func (a *app) stopped() (*agent.Stopped, error) {
	cfg, _, err := a.load()
	if err != nil {
		return nil, err
	}
	return agent.OpenStopped(cfg)
}

func (a *app) bufferStat(ctx context.Context) error {
	s, err := a.client().Status(ctx)
	b := s.Buffer
	if errors.Is(err, status.ErrNoAgent) {
		st, err := a.stopped()
		if err != nil {
			return err
		}
		defer st.Close()
		b = st.Buffer()
	} else if err != nil {
		return err
	}
	if a.json {
		printJSON(a.out, struct {
			Schema string `json:"schema"`
			status.Buffer
		}{"tidegate.buffer-stat/1", b})
		return nil
	}
	table(a.out, [][]string{
		{"waiting", fmt.Sprintf("%s in %s, %d of them events", count(b.Records, "reading"), count(b.Batches, "batch"), b.Events)},
		{"oldest", age(b.OldestMS)},
		{"disk", fmt.Sprintf("%s of %s", size(b.Bytes), size(b.LimitBytes))},
		{"memory", size(b.MemoryBytes)},
		{"numbers", fmt.Sprintf("data %d, event %d given", b.Seq, b.EventSeq)},
		{"lost", fmt.Sprintf("%d readings ever, %d tombstones waiting to be delivered", b.LostTotal, b.Tombstones)},
		{"damaged", fmt.Sprintf("%d files in quarantine", b.Quarantined)},
	})
	if b.Error != "" {
		fmt.Fprintln(a.out, "trouble  "+b.Error)
	}
	return nil
}

func (a *app) bufferPeek(ctx context.Context, last int, device string) error {
	if last < 1 || last > 10000 {
		return usage{fmt.Errorf("--last %d: 1 to 10000", last)}
	}
	batches, err := a.client().Peek(ctx, last, device)
	if errors.Is(err, status.ErrNoAgent) {
		st, err := a.stopped()
		if err != nil {
			return err
		}
		defer st.Close()
		if batches, err = st.Peek(last, device); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	for _, b := range batches {
		if a.json {
			printJSON(a.out, struct {
				Schema string `json:"schema"`
				status.Batch
			}{"tidegate.buffer-peek/1", b})
			continue
		}
		fmt.Fprintf(a.out, "%s %d  %d readings  %d bytes  %s .. %s\n", b.Lane, b.Seq, b.Count, b.Bytes, at(b.From), at(b.To))
		rows := [][]string{}
		for _, v := range b.Values {
			rows = append(rows, []string{"", at(v.At), v.Device + "/" + v.Point, withUnit(v), quality(v)})
		}
		table(a.out, rows)
	}
	if len(batches) == 0 && !a.json {
		fmt.Fprintln(a.out, "nothing waits")
	}
	return nil
}
