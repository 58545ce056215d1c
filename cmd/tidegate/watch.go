package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/internal/status"
)

// watchLine is one line of `watch --json`: a reading that is new.
type watchLine struct {
	Schema string `json:"schema"`
	status.Value
}

func (a *app) watchCmd() *cobra.Command {
	var interval time.Duration
	var only string
	var count int
	c := &cobra.Command{
		Use:   "watch [NAME...]",
		Short: "a live table of readings",
		Long: "Shows the newest reading of each point of the running agent: value, age,\n" +
			"quality. NAME is a device or a device/point. On a terminal the table is drawn\n" +
			"anew at each interval; elsewhere one line is printed for each reading that has\n" +
			"changed; with --json each new reading is one object on a line.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval < 100*time.Millisecond {
				return usage{fmt.Errorf("--interval %v is too short; at least 100ms", interval)}
			}
			keep := func(v status.Value) bool { return true }
			switch only {
			case "":
			case "stale":
				keep = func(v status.Value) bool { return v.Quality == "stale" || v.Quality == "comm" }
			case "bad":
				keep = func(v status.Value) bool { return v.Quality != "good" }
			default:
				return usage{fmt.Errorf("--only %q: stale or bad", only)}
			}
			return a.watch(cmd.Context(), args, interval, count, keep)
		},
	}
	c.Flags().DurationVar(&interval, "interval", time.Second, "`TIME` between two looks")
	c.Flags().StringVar(&only, "only", "", "only `stale` or bad points")
	c.Flags().IntVar(&count, "count", 0, "stop after this many looks (0: until Ctrl-C)")
	return c
}

func (a *app) watch(ctx context.Context, names []string, interval time.Duration, count int, keep func(status.Value) bool) error {
	client := a.client()
	draw := a.terminal() && !a.json
	seen := map[string]status.Value{}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		values, err := client.Values(ctx, names)
		if err != nil {
			return err
		}
		shown := values[:0]
		for _, v := range values {
			if keep(v) {
				shown = append(shown, v)
			}
		}
		switch {
		case draw:
			s, err := client.Status(ctx)
			if err != nil {
				return err
			}
			io.WriteString(a.out, "\x1b[H\x1b[2J")
			state := s.Uplink.State
			for i, u := range s.Uplinks {
				if i == 0 {
					state = ""
				}
				state += " " + u.Name + " " + u.State
			}
			fmt.Fprintf(a.out, "%s  %s  uplink %s  buffered %d  disk %.0f %%\n", s.Gateway.ID,
				time.UnixMilli(s.At).UTC().Format("15:04:05Z"), strings.TrimSpace(state), s.Buffer.Records,
				100*float64(s.Buffer.Bytes)/float64(max(s.Buffer.LimitBytes, 1)))
			a.watchTable(shown, s)
		default:
			for _, v := range shown {
				key := v.Device + "/" + v.Point
				old, known := seen[key]
				seen[key] = v
				if a.json {
					if !known || old.At != v.At {
						printJSON(a.out, watchLine{"tidegate.watch/1", v})
					}
				} else if !known || string(old.Value) != string(v.Value) || old.Quality != v.Quality || old.Cause != v.Cause {
					fmt.Fprintf(a.out, "%s  %-26s %-15s %s\n", at(v.At), key, withUnit(v), quality(v))
				}
			}
		}
		if n == count {
			return nil
		}
		select {
		case <-ctx.Done():
			return exit(exitInterrupted)
		case <-tick.C:
		}
	}
}

func (a *app) watchTable(values []status.Value, s status.Snapshot) {
	devices := map[string]status.Device{}
	for _, b := range s.Buses {
		for _, d := range b.Devices {
			devices[d.Name] = d
		}
	}
	rows := [][]string{{"DEVICE", "POINT", "VALUE", "AGE", "QUALITY", "REPLY", "LAST ERROR"}}
	for _, v := range values {
		d := devices[v.Device]
		reply, trouble := "-", ""
		if d.RTTMS > 0 {
			reply = fmt.Sprintf("%.0f ms", d.RTTMS)
		}
		if e := d.LastError; e != nil {
			trouble = fmt.Sprintf("%s x%d (%s)", strings.TrimPrefix(e.Text, d.Name+": "), e.Count, e.Code)
			reply = "-"
		}
		rows = append(rows, []string{v.Device, v.Point, withUnit(v), age(v.AgeMS), quality(v), reply, trouble})
	}
	table(a.out, rows)
}

// withUnit is a value with its unit.
func withUnit(v status.Value) string {
	text := string(v.Value)
	if text == "null" || text == "" {
		return "-"
	}
	if v.Unit != "" {
		text += " " + v.Unit
	}
	return text
}

func quality(v status.Value) string {
	if v.Cause != "" {
		return v.Quality + " (" + v.Cause + ")"
	}
	return v.Quality
}

// at is an instant in UTC, "-" for never.
func at(ms int64) string {
	if ms == 0 {
		return "-                   "
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05Z")
}
