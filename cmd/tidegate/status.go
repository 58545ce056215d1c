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

func (a *app) statusCmd() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "how the running agent is: devices, buffer, uplink, clock",
		Long: "Prints how the running agent is, health first. Healthy means: each device\n" +
			"delivered within its deadline, the uplink takes what is sent, nothing was lost\n" +
			"since the start. Exit code 0 healthy, 1 degraded, 69 agent not running.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.healthy(cmd.Context(), wait)
			if err != nil {
				return err
			}
			if a.json {
				printJSON(a.out, s)
			} else {
				writeStatus(a.out, s)
			}
			if s.Health != status.OK {
				return exit(exitFindings)
			}
			return nil
		},
	}
	c.Flags().DurationVar(&wait, "wait-healthy", 0, "wait up to this `TIME` for the agent to be healthy, for example 2m")
	return c
}

// healthy asks for the snapshot, again and again up to wait until it is ok.
func (a *app) healthy(ctx context.Context, wait time.Duration) (status.Snapshot, error) {
	client := a.client()
	end := time.Now().Add(wait)
	for {
		s, err := client.Status(ctx)
		if (err == nil && s.Health == status.OK) || time.Now().After(end) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, exit(exitInterrupted)
		case <-time.After(min(500*time.Millisecond, time.Until(end)+time.Millisecond)):
		}
	}
}

func writeStatus(w io.Writer, s status.Snapshot) {
	head := "OK"
	if s.Health != status.OK {
		head = "DEGRADED"
		if len(s.Reasons) > 0 {
			head += "  " + s.Reasons[0].Text
			if n := len(s.Reasons) - 1; n > 0 {
				head += fmt.Sprintf(" (and %d more)", n)
			}
		}
	}
	who := s.Gateway.ID + "  tidegate " + s.Gateway.Version
	if len(head)+2+len(who) <= 80 {
		fmt.Fprintf(w, "%s%s%s\n", head, strings.Repeat(" ", max(2, 79-len(head)-len(who))), who)
	} else {
		fmt.Fprintf(w, "%s\n%s%s\n", status.Wrap(head, 80, "          "), strings.Repeat(" ", max(0, 79-len(who))), who)
	}

	if len(s.Uplinks) == 0 {
		writeUplink(w, "uplink", s.Uplink, s.At)
	}
	for _, u := range s.Uplinks {
		writeUplink(w, u.Name, u.Uplink, s.At)
		if text := backlogOf(u); text != "" {
			row(w, "", "", text)
		}
	}
	b := s.Buffer
	text := fmt.Sprintf("%d readings waiting, oldest %s, %s of %s, %d lost ever",
		b.Records, age(b.OldestMS), size(b.Bytes), size(b.LimitBytes), b.LostTotal)
	row(w, "buffer", word(b.Error == ""), text)
	if b.Error != "" {
		row(w, "", "", b.Error)
	}
	if b.Tombstones > 0 {
		row(w, "", "", count(int64(b.Tombstones), "tombstone")+" waiting to be delivered")
	}
	for _, bus := range s.Buses {
		writeBus(w, bus, s.At)
	}
	sync := "synchronised"
	if !s.Clock.Synced {
		sync = "not synchronised; readings are marked and corrected once it is"
	}
	row(w, "clock", word(s.Clock.Synced), sync)
	text = fmt.Sprintf("%s loaded %s ago", s.Config.Hash, age(s.At-s.Config.LoadedAt))
	if s.Config.Refused != "" {
		text += "; the changed file was refused: run `tidegate check`"
	} else if s.Config.DiskNewer {
		text += "; the file has changed since: run `tidegate check`"
	}
	row(w, "config", word(s.Config.Refused == ""), text)
}

func writeUplink(w io.Writer, name string, u status.Uplink, now int64) {
	row(w, name, word(u.State == "connected" && u.Held == ""), uplinkLine(u, now))
	if u.Error != "" {
		row(w, "", "", u.Error)
	}
}

// backlogOf says what one of several uplinks has yet to deliver.
func backlogOf(u status.NamedUplink) string {
	var parts []string
	if !u.Required {
		parts = append(parts, "not required")
	}
	if u.Batches > 0 {
		parts = append(parts, count(u.Batches, "batch")+" to be delivered")
	}
	if u.Tombstones > 0 {
		parts = append(parts, count(int64(u.Tombstones), "tombstone"))
	}
	return strings.Join(parts, ", ")
}

func uplinkLine(u status.Uplink, now int64) string {
	switch u.State {
	case "off":
		return "no uplink is configured"
	case "connected":
		t := fmt.Sprintf("%s, last PUBACK %s ago, %d in flight", u.URL, age(u.LastAckMS), u.Inflight)
		if u.LastAckMS < 0 {
			t = fmt.Sprintf("%s, no PUBACK yet, %d in flight", u.URL, u.Inflight)
		}
		if u.CertDays >= 0 {
			t += fmt.Sprintf(", cert %d d", u.CertDays)
		}
		if u.Held != "" {
			t += "; batches wait: " + u.Held
		}
		return t
	}
	t := fmt.Sprintf("%s, %s since %s", u.URL, u.State, age(now-u.Since))
	if u.ErrorCode != "" {
		t += "  [" + u.ErrorCode + "]"
	}
	return t
}

func writeBus(w io.Writer, bus status.Bus, now int64) {
	ok, bad := 0, 0
	for _, d := range bus.Devices {
		if d.State == status.OK {
			ok++
		} else {
			bad++
		}
	}
	text := fmt.Sprintf("%d ok", ok)
	if bad > 0 {
		text += fmt.Sprintf(", %d not", bad)
	}
	text += fmt.Sprintf(", %.1f %% errors, load %.0f %%", 100*bus.ErrRate, 100*bus.Load)
	if bus.Lease != nil {
		text += fmt.Sprintf(", lent to %s, back within %s", bus.Lease.By, age(bus.Lease.Until-now))
	} else if bus.State != "open" {
		text += ", " + bus.State
	}
	row(w, bus.Name, word(bad == 0 && bus.State == "open"), text)
	if bus.Error != "" {
		row(w, "", "", fmt.Sprintf("%s  [%s]", bus.Error, bus.Code))
	}
	for _, d := range bus.Devices {
		writeRefused(w, d)
		if n := d.Late + d.Skipped; n > 0 && 100*n > d.Polls && (d.State == status.OK || d.LastError == nil) {
			why := "the bus is too busy"
			if bad > 0 {
				why = "the bus has waited for silent devices"
			}
			fmt.Fprintln(w, status.Wrap(fmt.Sprintf("  %-15s of %d polls %d late, %d skipped: %s", d.Name, d.Polls, d.Late, d.Skipped, why), 80, column))
		}
		if d.State == status.OK {
			continue
		}
		text := fmt.Sprintf("%s %s (limit %s)", d.State, age(d.AgeMS), age(d.LimitMS))
		if d.AgeMS < 0 {
			text = d.State + ", no value since start"
		}
		if e := d.LastError; e != nil {
			text += fmt.Sprintf("  %s x%d  [%s]", strings.TrimPrefix(e.Text, d.Name+": "), e.Count, e.Code)
		}
		fmt.Fprintln(w, status.Wrap(fmt.Sprintf("  %-15s %s", d.Name, text), 80, column))
	}
}

// writeRefused names the points that a device does not let itself be asked for.
func writeRefused(w io.Writer, d status.Device) {
	const most = 6
	for i, r := range d.Refused {
		if i == most {
			fmt.Fprintf(w, "  %-15s and %d more\n", d.Name, len(d.Refused)-most)
			break
		}
		fmt.Fprintln(w, status.Wrap(fmt.Sprintf("  %-15s %s: %s  [%s]", d.Name, r.Point, r.Place, r.Cause), 80, column))
	}
}

// column is where the text of a line of status begins.
const column = "                  "

func row(w io.Writer, name, state, text string) {
	fmt.Fprintln(w, status.Wrap(fmt.Sprintf("%-9s %-7s %s", name, state, text), 80, column))
}

func word(ok bool) string {
	if ok {
		return status.OK
	}
	return status.Warn
}
