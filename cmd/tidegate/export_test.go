package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/internal/account"
	"tidegate/internal/status"
)

// run runs a verb in the world and returns what it printed and its code.
func (w *world) run(args ...string) (out, errText string, code int) {
	w.t.Helper()
	cmd := exec.Command(w.bin, append(args, "--config", filepath.Join(w.dir, "tidegate.yaml"))...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var x *exec.ExitError
	if err != nil && !errors.As(err, &x) {
		w.t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// must is run for a verb that ends with a certain code.
func (w *world) must(code int, args ...string) string {
	w.t.Helper()
	out, errText, got := w.run(args...)
	if got != code {
		w.t.Fatalf("%s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, errText)
	}
	return out + errText
}

type exported struct {
	Schema, File, Manifest string
	MayBePulled            bool `json:"may_be_pulled"`
	Export                 manifest
}

func (w *world) export(args ...string) exported {
	w.t.Helper()
	var e exported
	out, errText, code := w.run(append([]string{"buffer", "export", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &e); err != nil || code != 0 || e.Schema != "tidegate.buffer-export/1" {
		w.t.Fatalf("export %v: exit code %d, %v\n%s%s", args, code, err, out, errText)
	}
	return e
}

// TestExport: an outage; what waits is written to a folder beside the running
// agent and, when it is stopped, without it; what is written is proven, and
// delivery goes on as if nothing had been.
func TestExport(t *testing.T) {
	t.Parallel()
	w := newWorld(t, buildBinary(t))
	w.config("2s", "")
	w.broker.Cut()
	cmd, log := w.start()
	w.polled(100)
	stick := t.TempDir()

	// beside the running agent
	for end := time.Now().Add(2 * time.Minute); !strings.HasSuffix(w.must(0, "buffer", "verify"), "ok\n"); {
		if time.Now().After(end) {
			t.Fatal("verify is never ok")
		}
	}
	for end := time.Now().Add(2 * time.Minute); strings.Contains(w.must(0, "buffer", "stat"), " 0 batches"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing waits")
		}
	}
	live := w.export("--to", stick)
	m := live.Export
	if m.Schema != "tidegate.export/1" || m.Gateway != "world" || m.Batches == 0 || m.Readings < 30 || m.T0 == 0 || m.T1 < m.T0 ||
		len(m.Lanes) != 1 || m.Lanes[0].First != 1 || m.Lanes[0].Last != uint64(m.Batches) {
		t.Errorf("manifest %+v", m)
	}
	if want := filepath.Join(stick, "world_1-"+itoa(m.Lanes[0].Last)+".jsonl.gz"); live.File != want {
		t.Errorf("file %s, want %s", live.File, want)
	}
	if out := w.must(0, "verify", live.File); !strings.Contains(out, "\ncomplete\n") {
		t.Errorf("verify of the export:\n%s", out)
	}
	if out := w.must(0, "buffer", "verify", live.File); !strings.HasPrefix(out, "ok ") {
		t.Errorf("buffer verify of the export:\n%s", out)
	}

	// and stopped
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	before := files(t, filepath.Join(w.dir, "buffer"))
	if out := w.must(0, "buffer", "verify"); !strings.HasSuffix(out, "ok\n") || strings.HasPrefix(out, "0 readings") {
		t.Errorf("buffer verify, stopped:\n%s", out)
	}
	all := w.export("--to", stick)
	if all.Export.Batches < m.Batches || all.Export.Epoch != m.Epoch || all.File == live.File {
		t.Errorf("stopped: %+v after %+v", all.Export, m)
	}
	if out := w.must(0, "verify", all.File, live.File); !strings.Contains(out, "\ncomplete\n") {
		t.Errorf("both exports:\n%s", out)
	}
	again := w.export("--to", stick)
	if again.File == all.File || again.Export.Batches != all.Export.Batches {
		t.Errorf("a second export %s overwrites %s", again.File, all.File)
	}
	if after := files(t, filepath.Join(w.dir, "buffer")); after != before {
		t.Errorf("the export changed the buffer:\n%s\nbefore:\n%s", after, before)
	}
	w.partly(stick, &all.Export)
	w.damaged(all.File)
	w.tight(t, m.Batches)

	// what waited is still delivered, and the cloud drops what the stick brings
	if err := w.broker.Restore(); err != nil {
		t.Fatal(err)
	}
	cmd, log = w.start()
	w.polled(w.counts() + 5)
	during := t.TempDir()
	for range 5 { // while the backlog drains
		w.must(0, "buffer", "export", "--to", during)
	}
	report := w.settle(cmd, log)
	if report.Verdict != account.Complete {
		t.Errorf("after the export:\n%s", report.Text())
	}
	f, err := os.Open(again.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.book.AddLines(f, func(n int, err error) { t.Errorf("line %d: %v", n, err) }); err != nil {
		t.Fatal(err)
	}
	if r := w.book.Report(); r.Conflicts > 0 || r.Received != report.Received || r.Repeats != report.Repeats+again.Export.Batches {
		t.Errorf("the stick after the uplink: %d received, %d repeats, %d conflicts; before %d and %d\n%s",
			r.Received, r.Repeats, r.Conflicts, report.Received, report.Repeats, r.Text())
	}
	if left, _ := filepath.Glob(filepath.Join(stick, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func itoa(n uint64) string { b, _ := json.Marshal(n); return string(b) }

// files names the files of a folder with their size and time.
func files(t *testing.T, dir string) string {
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, d := range list {
		if fi, err := d.Info(); err == nil && d.Name() != "lock" {
			out += d.Name() + " " + itoa(uint64(fi.Size())) + " " + fi.ModTime().Format(time.RFC3339Nano) + "\n"
		}
	}
	return out
}

// partly exports a part by time and by lane.
func (w *world) partly(stick string, all *manifest) {
	middle := time.UnixMilli((all.T0 + all.T1) / 2).UTC().Format("2006-01-02T15:04:05.000Z")
	first, second := w.export("--to", stick, "--until", middle), w.export("--to", stick, "--since", middle)
	a, b := first.Export, second.Export
	if a.Batches == 0 || b.Batches == 0 || a.Batches+b.Batches < all.Batches || a.Batches+b.Batches > all.Batches+2 || b.Lanes[0].Last != all.Lanes[0].Last {
		w.t.Errorf("%d and %d batches of %d", a.Batches, b.Batches, all.Batches)
	}
	if out := w.must(0, "verify", second.File); !strings.Contains(out, "\ncomplete\n") {
		w.t.Errorf("an export that begins in the middle:\n%s", out)
	}
	w.must(0, "buffer", "verify", first.File, second.File)
	if out := w.must(0, "buffer", "export", "--to", stick, "--lane", "event"); !strings.Contains(out, "nothing was written") {
		w.t.Errorf("no events:\n%s", out)
	}
	for _, bad := range [][]string{{}, {"--to", stick, "--lane", "x"}, {"--to", stick, "--since", "soon"},
		{"--to", stick, "--since", "1h", "--until", "2h"}} {
		w.must(exitUsage, append([]string{"buffer", "export"}, bad...)...)
	}
	w.must(exitNoInput, "buffer", "export", "--to", filepath.Join(stick, "not", "there"))
	name := filepath.Join(stick, "mine.jsonl.gz")
	w.must(0, "buffer", "export", "--to", name)
	w.must(0, "buffer", "verify", name)
	w.must(exitCannotCreate, "buffer", "export", "--to", name)
}

// damaged: a flipped byte anywhere, a file cut short, and a manifest of
// another file are all found.
func (w *world) damaged(file string) {
	whole, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	manifest, err := os.ReadFile(manifestOf(file))
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	copied := filepath.Join(dir, filepath.Base(file))
	try := func(what string, data []byte) {
		os.WriteFile(copied, data, 0o600)
		if out := w.must(exitFindings, "buffer", "verify", copied); !strings.HasPrefix(out, "FAIL ") || !strings.Contains(out, "sha256") {
			w.t.Errorf("%s:\n%s", what, out)
		}
	}
	os.WriteFile(manifestOf(copied), manifest, 0o600)
	for _, at := range []int{3, len(whole) / 2, len(whole) - 3} {
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x10
		try("flipped byte", flipped)
	}
	flipped := bytes.Clone(whole)
	flipped[len(whole)/2] ^= 0x10
	os.WriteFile(copied, flipped, 0o600)
	w.must(exitData, "verify", copied)
	try("cut short", whole[:len(whole)/2])
	os.Remove(manifestOf(copied))
	os.WriteFile(copied, whole, 0o600)
	if out := w.must(exitFindings, "buffer", "verify", copied); !strings.Contains(out, "no manifest") {
		w.t.Errorf("without manifest:\n%s", out)
	}
}

// tight: a stick that is full, one that becomes full while it is written to,
// and one that can only be read.
func (w *world) tight(t *testing.T, batches int64) {
	t.Run("stick", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("NOT RUN: a small file system needs root")
		}
		dir := t.TempDir()
		if err := syscall.Mount("tidegate", dir, "tmpfs", 0, "size=64k"); err != nil {
			t.Skipf("NOT RUN: no tmpfs may be mounted here: %v", err)
		}
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
		empty := func(but ...string) {
			t.Helper()
			list, _ := os.ReadDir(dir)
			for _, d := range list {
				if len(but) == 0 || d.Name() != but[0] {
					t.Errorf("left on the stick: %s", d.Name())
				}
			}
		}
		os.WriteFile(filepath.Join(dir, "film"), make([]byte, 60<<10), 0o600)
		if out := w.must(exitCannotCreate, "buffer", "export", "--to", dir); !strings.Contains(out, "[target-full]") || !strings.Contains(out, "no room") {
			t.Errorf("full:\n%s", out)
		}
		empty("film")

		// It seems to have room, and then has none.
		os.Remove(filepath.Join(dir, "film"))
		e := newExportFile(target{dir: dir, free: func(string) (int64, error) { return 1 << 40, nil }})
		err := overfill(e)
		e.abandon()
		if f := failure(err); f.Exit != exitCannotCreate || f.Code != "target-full" {
			t.Errorf("full on the way: %v", err)
		}
		empty()

		// Every step of the end may fail, too: the manifest has no room.
		e = newExportFile(target{dir: dir, free: func(string) (int64, error) { return 1 << 40, nil }})
		e.add(status.ExportLine{Kind: status.ExportBatchKind, Lane: "data", From: 1, To: 1, Readings: 1, Message: []byte(`{"v":1}`)})
		os.WriteFile(filepath.Join(dir, "film"), make([]byte, 60<<10), 0o600)
		_, _, err = e.finish(1)
		e.abandon()
		if f := failure(err); f.Exit != exitCannotCreate {
			t.Errorf("no room for the manifest: %v", err)
		}
		empty("film")
		os.Remove(filepath.Join(dir, "film"))

		if out := w.must(0, "buffer", "export", "--to", dir); !strings.Contains(out, "may be pulled now") {
			t.Errorf("a stick with room:\n%s", out)
		}
		if err := syscall.Mount("tidegate", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "size=64k"); err != nil {
			t.Fatal(err)
		}
		if out := w.must(exitCannotCreate, "buffer", "export", "--to", dir); !strings.Contains(out, "[target-read-only]") {
			t.Errorf("read-only:\n%s", out)
		}
	})
}

// TestExportLarge: more than is packed in memory is extrapolated before the
// target is touched, and written if it fits.
func TestExportLarge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		expected, free int64
		fits           bool
	}{{0, 1 << 40, true}, {100_000, 12 << 20, false}, {100_000, 1 << 40, true}} {
		e := newExportFile(target{dir: dir, free: func(string) (int64, error) { return c.free, nil }})
		e.expected = c.expected
		e.add(status.ExportLine{Kind: status.ExportHeadKind, Head: &status.ExportHead{Gateway: "a/b", Epoch: "e"}})
		err := overfill(e)
		if c.fits && err != nil || !c.fits && (err == nil || failure(err).Code != "target-full") {
			t.Errorf("%+v: %v", c, err)
		}
		e.abandon()
		if list, _ := os.ReadDir(dir); !c.fits && len(list) != 2 {
			t.Errorf("%+v: %v", c, list)
		}
	}
	sum, n, err := sumFile(filepath.Join(dir, "a_b_1-1.jsonl.gz"))
	direct, m, err2 := sumOnDisk(filepath.Join(dir, "a_b_1-1.jsonl.gz"))
	if err != nil || err2 != nil || n != m || sum != direct || n < 8_000_000 {
		t.Errorf("%d and %d bytes, %v, %v", n, m, err, err2)
	}
}

// TestExportReadBack: a target that gives back something else than what was
// written to it.
func TestExportReadBack(t *testing.T) {
	dir := t.TempDir()
	e := newExportFile(target{dir: dir, free: freeBytes})
	e.add(status.ExportLine{Kind: status.ExportBatchKind, Lane: "data", From: 1, To: 1, Message: []byte("{}")})
	e.sum.Write([]byte{0}) // as if another byte had been written
	_, _, err := e.finish(1)
	e.abandon()
	if f := failure(err); f.Code != "target-damaged" || f.Exit != exitCannotCreate {
		t.Errorf("%v", err)
	}
	if list, _ := os.ReadDir(dir); len(list) > 0 {
		t.Errorf("left behind: %v", list)
	}
}

// overfill writes what does not pack well until the target fails.
func overfill(e *exportFile) error {
	seed := uint64(1)
	noise := make([]byte, 4096)
	for range 2000 {
		for i := range noise {
			seed = seed*6364136223846793005 + 1442695040888963407
			noise[i] = byte(seed >> 56)
		}
		if err := e.add(status.ExportLine{Kind: status.ExportBatchKind, Lane: "data", From: 1, To: 1, Readings: 1, Message: noise}); err != nil {
			return err
		}
	}
	_, _, err := e.finish(1)
	return err
}
