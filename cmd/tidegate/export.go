package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tidegate/internal/status"
)

type exportFlags struct{ to, since, until, lane string }

func (a *app) bufferExportCmd() *cobra.Command {
	var f exportFlags
	c := &cobra.Command{
		Use:   "export --to DIR|FILE",
		Short: "write what waits to a stick, with a manifest",
		Long: `Writes what waits in the buffer to DIR/GATEWAY_FIRST-LAST.jsonl.gz: one message
a line, as the uplink sends it in the shape records, tombstones included. Beside
it stands a manifest with the numbers, counts and the SHA-256.

Nothing is removed: the agent still sends its copy, and the cloud drops what it
has twice by its number. Works through the running agent without disturbing it,
and without it where it is stopped; then no agent can start until it is done.

The file is written under a temporary name, synced, read back from the disk and
compared; then it gets its name. An existing file is never overwritten.

TIME is 2026-11-20, 2026-11-20T06:10, 2026-11-20T06:10:00Z (all UTC unless they
say otherwise), or an age such as 36h. Whole batches are taken, and always those
from before the clock was set.

The export is readable by whoever holds the stick, also where the buffer itself
is encrypted (buffer.key_file).

Exit code 0 written, or nothing waits; 1 written, but parts of the buffer could
not be read; 73 the target is full, read-only or broken.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage{fmt.Errorf("write --to %s", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.bufferExport(cmd.Context(), f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.to, "to", "", "folder, or file whose name ends with .jsonl.gz")
	fl.StringVar(&f.since, "since", "", "only batches with readings at or after this `TIME`")
	fl.StringVar(&f.until, "until", "", "only batches with readings before this `TIME`")
	fl.StringVar(&f.lane, "lane", "", "only this `LANE`: data or event")
	return c
}

// parseTime returns a time as Unix ms; 0 for "".
func parseTime(flag, s string, now time.Time) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d).UnixMilli(), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UnixMilli(), nil
		}
	}
	return 0, usage{fmt.Errorf("--%s %q: expected a time such as 2026-11-20T06:10, or an age such as 36h", flag, s)}
}

func (f *exportFlags) query(now time.Time) (q status.ExportQuery, err error) {
	if q.Since, err = parseTime("since", f.since, now); err != nil {
		return q, err
	}
	if q.Until, err = parseTime("until", f.until, now); err != nil {
		return q, err
	}
	if q.Until != 0 && q.Until <= q.Since {
		return q, usage{errors.New("--until is not after --since")}
	}
	if q.Lane = f.lane; f.lane != "" && f.lane != "data" && f.lane != "event" {
		return q, usage{fmt.Errorf("--lane %q: expected data or event", f.lane)}
	}
	return q, nil
}

func (a *app) bufferExport(ctx context.Context, f exportFlags) error {
	q, err := f.query(time.Now())
	if err != nil {
		return err
	}
	to, err := newTarget(f.to)
	if err != nil {
		return err
	}
	e := newExportFile(to)
	defer e.abandon()
	e.m.Since, e.m.Until = q.Since, q.Until
	next := time.Now().Add(10 * time.Second)
	line := func(l status.ExportLine) error {
		if l.Kind == status.ExportHeadKind && q.Since == 0 && q.Until == 0 {
			e.expected = l.Head.Readings
		}
		if now := time.Now(); now.After(next) {
			next = now.Add(10 * time.Second)
			fmt.Fprintf(a.err, "%d of about %d readings, %s\n", e.m.Readings, e.expected, size(e.m.Bytes))
		}
		return e.add(l)
	}
	err = a.client().Export(ctx, q, line)
	if errors.Is(err, status.ErrNoAgent) {
		st, serr := a.stopped()
		if serr != nil {
			return serr
		}
		defer st.Close()
		err = st.Export(ctx, q, line)
	}
	if ctx.Err() != nil {
		return exit(exitInterrupted)
	}
	if err != nil {
		return err
	}
	return a.exportDone(e)
}

// exportDone gives the export its name and says so.
func (a *app) exportDone(e *exportFile) error {
	type result struct {
		Schema       string    `json:"schema"`
		File         string    `json:"file,omitempty"`
		Manifest     string    `json:"manifest,omitempty"`
		MayBePulled  bool      `json:"may_be_pulled"`
		Export       *manifest `json:"export,omitempty"`
		NothingWaits bool      `json:"nothing_waits,omitempty"`
	}
	const schema = "tidegate.buffer-export/1"
	damaged := func() error {
		if len(e.m.Unreadable) == 0 {
			return nil
		}
		for _, u := range e.m.Unreadable {
			fmt.Fprintf(a.err, "not readable: %s: %s\n", runs(u), u.Error)
		}
		return exit(exitFindings)
	}
	if e.lines == 0 {
		if a.json {
			printJSON(a.out, result{Schema: schema, MayBePulled: true, NothingWaits: len(e.m.Unreadable) == 0})
		} else {
			fmt.Fprintln(a.out, "nothing waits that was asked for; nothing was written")
		}
		return damaged()
	}
	file, beside, err := e.finish(time.Now().UnixMilli())
	if err != nil {
		return err
	}
	pulled := !onSystemDisk(e.to.dir)
	if a.json {
		printJSON(a.out, result{Schema: schema, File: file, Manifest: beside, MayBePulled: pulled, Export: &e.m})
		return damaged()
	}
	var numbers []string
	for _, l := range e.m.Lanes {
		if l.First > 0 {
			numbers = append(numbers, fmt.Sprintf("%s %d..%d", l.Lane, l.First, l.Last))
		}
	}
	table(a.out, [][]string{
		{"written", file + "  " + size(e.m.Bytes)},
		{"manifest", beside},
		{"holds", fmt.Sprintf("%s in %s, %s", count(e.m.Readings, "reading"), count(e.m.Batches, "batch"), count(e.m.Tombstones, "tombstone"))},
		{"numbers", strings.Join(numbers, ", ")},
		{"time", fmt.Sprintf("%s .. %s", at(e.m.T0), at(e.m.T1))},
		{"verified", "read back, sha256 " + e.m.SHA256[:16] + ".."},
	})
	if pulled {
		fmt.Fprintf(a.err, "Everything is on the disk: what is mounted for %s may be pulled now.\n", e.to.dir)
	} else {
		fmt.Fprintf(a.err, "note: %s is on this machine's own disk, not on a stick\n", e.to.dir)
	}
	fmt.Fprintln(a.err, "The agent keeps its copy and will still send it.")
	return damaged()
}

// runs writes a run of numbers: "data 5" or "data 5..9".
func runs(n status.Numbers) string {
	if n.From == n.To {
		return fmt.Sprintf("%s %d", n.Lane, n.From)
	}
	return fmt.Sprintf("%s %d..%d", n.Lane, n.From, n.To)
}

// onSystemDisk tells whether a folder is on the file system of /: the stick
// that was meant is then not mounted there.
func onSystemDisk(dir string) bool {
	var root, here syscall.Stat_t
	abs, err := filepath.Abs(dir)
	return err == nil && syscall.Stat("/", &root) == nil && syscall.Stat(abs, &here) == nil && root.Dev == here.Dev
}
