package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tidegate/internal/account"
	"tidegate/internal/status"
)

func (a *app) bufferVerifyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [FILE...]",
		Short: "read everything that waits, or check exported files",
		Long: `Without FILE: reads and decodes every batch that waits, through the running
agent or, where it is stopped, without it. Damaged batches are named, and so are
numbers between those that wait which no tombstone explains; the buffer has them
as delivered.

FILE is an export (GATEWAY_FIRST-LAST.jsonl.gz). It is compared with the
manifest beside it (SHA-256, size, numbers and counts), and every message is
read.

What the cloud has received is proven by: tidegate verify

Exit code 0 all is well, 1 damage was found.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return a.verifyExports(args)
			}
			return a.verifyBuffer(cmd.Context())
		},
	}
}

func (a *app) verifyBuffer(ctx context.Context) error {
	c, err := a.client().CheckBuffer(ctx)
	if errors.Is(err, status.ErrNoAgent) {
		st, serr := a.stopped()
		if serr != nil {
			return serr
		}
		defer st.Close()
		c, err = st.CheckBuffer(ctx)
	}
	if ctx.Err() != nil {
		return exit(exitInterrupted)
	}
	if err != nil {
		return err
	}
	if a.json {
		printJSON(a.out, struct {
			Schema string `json:"schema"`
			OK     bool   `json:"ok"`
			status.BufferCheck
		}{"tidegate.buffer-verify/1", c.Damaged == 0, c})
	} else {
		a.printCheck(&c)
	}
	if c.Damaged > 0 {
		return exit(exitFindings)
	}
	return nil
}

func (a *app) printCheck(c *status.BufferCheck) {
	fmt.Fprintf(a.out, "%s in %s read and decoded; %s of %s on disk\n", count(c.Readings, "reading"),
		count(c.Batches, "batch"), size(c.Buffer.Bytes), size(c.Buffer.LimitBytes))
	for _, l := range c.Lanes {
		if l.First > 0 {
			fmt.Fprintf(a.out, "%-5s %d..%d, %s in gaps\n", l.Lane, l.First, l.Last, count(l.GapCount, "number"))
		}
		for _, g := range l.Gaps {
			fmt.Fprintf(a.out, "  gap        %s: in no tombstone; delivered, or told before\n", runs(g))
		}
	}
	for _, t := range c.Tombstones {
		fmt.Fprintf(a.out, "  tombstone  %s (%s)\n", runs(t.Numbers), t.Why)
	}
	for _, u := range c.Unreadable {
		fmt.Fprintf(a.out, "  DAMAGED    %s: %s\n", runs(u), u.Error)
	}
	if c.Buffer.Quarantined > 0 {
		fmt.Fprintf(a.out, "%d damaged files are kept in quarantine\n", c.Buffer.Quarantined)
	}
	if c.Damaged > 0 {
		fmt.Fprintf(a.out, "%s damaged\n", count(c.Damaged, "number"))
		return
	}
	fmt.Fprintln(a.out, "ok")
}

// exportCheck is what checking one exported file has shown.
type exportCheck struct {
	Schema   string           `json:"schema"`
	File     string           `json:"file"`
	OK       bool             `json:"ok"`
	Findings []string         `json:"findings"`
	Batches  int64            `json:"batches"`
	Readings int64            `json:"readings"`
	Gaps     []status.Numbers `json:"gaps"` // not in the file and in no tombstone; the first of them
}

func (a *app) verifyExports(files []string) error {
	bad := false
	for _, file := range files {
		c, err := checkExport(file)
		if err != nil {
			return err
		}
		bad = bad || !c.OK
		if a.json {
			printJSON(a.out, c)
			continue
		}
		word := "ok"
		if !c.OK {
			word = "FAIL"
		}
		fmt.Fprintf(a.out, "%-4s %s: %s in %s\n", word, file, count(c.Readings, "reading"), count(c.Batches, "batch"))
		for _, f := range c.Findings {
			fmt.Fprintln(a.out, "     "+f)
		}
		for _, g := range c.Gaps {
			fmt.Fprintf(a.out, "     gap: %s: delivered before, or left out of the export\n", runs(g))
		}
	}
	if bad {
		return exit(exitFindings)
	}
	return nil
}

// checkExport compares a file with the manifest beside it. The error is one
// of a file that is not there; everything else is a finding.
func checkExport(file string) (exportCheck, error) {
	c := exportCheck{Schema: "tidegate.buffer-verify-file/1", File: file, Findings: []string{}, Gaps: []status.Numbers{}}
	find := func(format string, args ...any) { c.Findings = append(c.Findings, fmt.Sprintf(format, args...)) }
	in, err := os.Open(file)
	if err != nil {
		return c, err
	}
	defer in.Close()

	book := account.New()
	book.Midway()
	shown := 0
	err = book.AddLines(in, func(line int, err error) {
		if shown++; shown <= 5 {
			find("line %d: %v", line, err)
		}
	})
	if err != nil {
		find("%s", strings.TrimPrefix(err.Error(), "account: "))
	}
	r := book.Report()
	c.Batches, c.Readings = r.Received, r.Sums.Readings
	if r.Conflicts > 0 || r.Repeats > 0 {
		find("%d numbers stand in it twice", r.Conflicts+r.Repeats)
	}
	for _, l := range r.Lanes {
		for _, g := range append(l.LostAt, l.LateAt...) {
			c.Gaps = append(c.Gaps, status.Numbers{Lane: l.Lane, From: g.From, To: g.To})
		}
	}

	m, err := readManifest(manifestOf(file))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		find("no manifest beside it: %s", manifestOf(file))
	case err != nil:
		find("manifest: %v", err)
	default:
		sum, n, err := sumFile(file)
		if err != nil {
			return c, err
		}
		compare(m, &r, sum, n, find)
	}
	c.OK = len(c.Findings) == 0
	return c, nil
}

func readManifest(path string) (*manifest, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, err
	}
	if m.Schema != manifestSchema {
		return nil, fmt.Errorf("schema %.40q, expected %s", m.Schema, manifestSchema)
	}
	return m, nil
}

// compare holds a manifest against what was found in the file.
func compare(m *manifest, r *account.Report, sum string, n int64, find func(string, ...any)) {
	if n != m.Bytes {
		find("%d bytes, the manifest says %d", n, m.Bytes)
	}
	if sum != m.SHA256 {
		find("sha256 is %.16s.., the manifest says %.16s..", sum, m.SHA256)
	}
	if r.Received != m.Batches || r.Sums.Readings != m.Readings {
		find("%d batches and %d readings, the manifest says %d and %d", r.Received, r.Sums.Readings, m.Batches, m.Readings)
	}
	here := map[string]account.Lane{}
	for _, l := range r.Lanes {
		here[l.Lane] = l
		if l.Gateway != m.Gateway || l.Epoch != m.Epoch {
			find("messages of gateway %s, epoch %s; the manifest says %s, %s", l.Gateway, l.Epoch, m.Gateway, m.Epoch)
		}
	}
	for _, want := range m.Lanes {
		got := here[want.Lane]
		if got.Received != want.Batches || got.Sums.Readings != want.Readings ||
			want.First > 0 && (got.First != want.First || got.Last < want.Last) {
			find("%s: numbers %d..%d with %d batches and %d readings, the manifest says %d..%d with %d and %d", want.Lane,
				got.First, got.Last, got.Received, got.Sums.Readings, want.First, want.Last, want.Batches, want.Readings)
		}
	}
	for _, u := range m.Unreadable {
		find("could not be read when it was exported: %s: %s", runs(u), u.Error)
	}
}
