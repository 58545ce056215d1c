package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type fake struct{}

func (fake) Snapshot() Snapshot { return Snapshot{Schema: Schema, Health: OK} }
func (fake) Values(names []string) ([]Value, error) {
	if len(names) == 1 && names[0] == "nobody" {
		return nil, &Failure{Code: "no-such-name", What: `there is no "nobody"`, Exit: 64}
	}
	return []Value{{Device: "m", Point: "v", Value: json.RawMessage("231.4")}}, nil
}
func (fake) Read(_ context.Context, r ReadRequest) (ReadReply, error) {
	return ReadReply{Bus: r.Bus, Count: r.Count}, nil
}
func (fake) Write(_ context.Context, who string, r WriteRequest) (WriteReply, error) {
	if !strings.HasPrefix(who, fmt.Sprintf("uid %d", os.Getuid())) {
		return WriteReply{}, &Failure{What: "who is " + who}
	}
	return WriteReply{Device: "m", Point: "v", New: json.RawMessage(r.Value), Sent: !r.DryRun}, nil
}
func (fake) Peek(_ context.Context, n int, _ string) ([]Batch, error) { return make([]Batch, n), nil }
func (fake) Export(_ context.Context, q ExportQuery, line func(ExportLine) error) error {
	switch q.Lane {
	case "nobody":
		return &Failure{Code: "usage", What: "there is no lane", Exit: 64}
	case "event":
		line(ExportLine{Kind: ExportBatchKind, Lane: q.Lane, From: 1, Message: []byte(`{"v":1}`)})
		return errors.New("the disk has gone")
	}
	for i := range uint64(3) {
		if err := line(ExportLine{Kind: ExportBatchKind, Lane: "data", From: i + 1, T0: q.Since, T1: q.Until,
			Message: []byte(`{"text":"a\tb` + strings.Repeat("x", 100_000) + `"}`)}); err != nil {
			return err
		}
	}
	return nil
}

// Scan of the bus "endless" ends with its client; scanEnded tells.
func (fake) Scan(ctx context.Context, q ScanRequest, tell func(ScanEvent)) error {
	switch q.Bus {
	case "nobody":
		return &Failure{Code: "no-such-name", What: "there is no bus", Exit: 64}
	case "silent":
		tell(ScanEvent{Result: &Scan{Asked: 5}})
		return &Failure{Code: "bus-silent", What: "nobody answers"}
	case "endless":
		tell(ScanEvent{Text: "asking"})
		<-ctx.Done()
		scanEnded <- struct{}{}
		return ctx.Err()
	}
	tell(ScanEvent{Done: 1, Of: 2})
	tell(ScanEvent{Result: &Scan{Units: []ScanUnit{{ID: q.IDs[0]}}}})
	return nil
}

var scanEnded = make(chan struct{}, 1)

func (fake) CheckBuffer(context.Context) (BufferCheck, error) { return BufferCheck{Batches: 7}, nil }
func (fake) Capture(ctx context.Context, bus string, line func([]byte) error) error {
	if bus != "meters" {
		return &Failure{Code: "no-such-name", What: "there is no " + bus}
	}
	for n := 0; ctx.Err() == nil; n++ {
		if err := line(fmt.Appendf(nil, "{\"n\":%d}\n", n)); err != nil {
			return err
		}
	}
	return nil
}
func (fake) TestUplink(context.Context, string) ([]Step, error) {
	return []Step{{Name: "dns", State: OK}}, nil
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	c := Dial(path)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.Status(ctx); !errors.Is(err, ErrNoAgent) {
		t.Errorf("no socket: %v", err)
	}
	// A socket that a dead agent left behind is taken over.
	os.MkdirAll(filepath.Dir(path), 0o755)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := c.Status(ctx); !errors.Is(err, ErrNoAgent) {
		t.Errorf("dead socket: %v", err)
	}

	done := make(chan error, 1)
	go func() { done <- Serve(ctx, path, fake{}) }()
	var s Snapshot
	for range 200 {
		if s, err = c.Status(ctx); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil || s.Health != OK {
		t.Fatalf("status %+v, %v", s, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("socket mode %v, %v", fi.Mode(), err)
	}
	if v, err := c.Values(ctx, nil); err != nil || string(v[0].Value) != "231.4" {
		t.Errorf("values %+v, %v", v, err)
	}
	var f *Failure
	if _, err := c.Values(ctx, []string{"nobody"}); !errors.As(err, &f) || f.Exit != 64 {
		t.Errorf("unknown name: %v", err)
	}
	if w, err := c.Write(ctx, WriteRequest{Point: "m/v", Value: "7"}); err != nil || !w.Sent || string(w.New) != "7" {
		t.Errorf("write: %+v, %v", w, err)
	}
	if r, err := c.Read(ctx, ReadRequest{Bus: "b", Count: 2}); err != nil || r.Bus != "b" || r.Count != 2 {
		t.Errorf("read %+v, %v", r, err)
	}
	if b, err := c.Peek(ctx, 3, ""); err != nil || len(b) != 3 {
		t.Errorf("peek %v, %v", b, err)
	}
	if _, err := c.Peek(ctx, 0, ""); !errors.As(err, &f) {
		t.Errorf("peek 0: %v", err)
	}
	var events []ScanEvent
	if err := c.Scan(ctx, ScanRequest{Bus: "b", IDs: []int{9}}, func(e ScanEvent) { events = append(events, e) }); err != nil ||
		len(events) != 2 || events[0].Of != 2 || events[1].Result.Units[0].ID != 9 {
		t.Errorf("scan %+v, %v", events, err)
	}
	if err := c.Scan(ctx, ScanRequest{Bus: "nobody"}, func(ScanEvent) {}); !errors.As(err, &f) || f.Exit != 64 {
		t.Errorf("scan of no bus: %v", err)
	}
	asked := 0
	if err := c.Scan(ctx, ScanRequest{Bus: "silent"}, func(e ScanEvent) {
		if e.Result != nil {
			asked = e.Result.Asked
		}
	}); !errors.As(err, &f) || f.Code != "bus-silent" || asked != 5 {
		t.Errorf("scan of a silent bus: %d asked, %v", asked, err)
	}
	gone, leave := context.WithCancel(ctx)
	if err := c.Scan(gone, ScanRequest{Bus: "endless"}, func(ScanEvent) { leave() }); !errors.Is(err, context.Canceled) {
		t.Errorf("scan whose client left: %v", err)
	}
	select {
	case <-scanEnded:
	case <-time.After(5 * time.Second):
		t.Error("the scan goes on though its client has left")
	}
	n := uint64(0)
	if err := c.Export(ctx, ExportQuery{Since: -5, Until: 7}, func(l ExportLine) error {
		if n++; l.From != n || l.T0 != -5 || l.T1 != 7 || len(l.Message) != 100_015 || l.Message[len(l.Message)-1] != '}' {
			t.Errorf("line %d: %+v of %d bytes", n, l.From, len(l.Message))
		}
		return nil
	}); err != nil || n != 3 {
		t.Errorf("export: %d lines, %v", n, err)
	}
	if err := c.Export(ctx, ExportQuery{Lane: "nobody"}, nil); !errors.As(err, &f) || f.Exit != 64 {
		t.Errorf("export of no lane: %v", err)
	}
	if err := c.Export(ctx, ExportQuery{Lane: "event"}, func(ExportLine) error { return nil }); err == nil || err.Error() != "the disk has gone" {
		t.Errorf("an export that broke off: %v", err)
	}
	if err := c.Export(ctx, ExportQuery{}, func(ExportLine) error { return os.ErrClosed }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("an export that the reader ended: %v", err)
	}
	if v, err := c.CheckBuffer(ctx); err != nil || v.Batches != 7 {
		t.Errorf("check %+v, %v", v, err)
	}
	enough := errors.New("enough")
	lines := 0
	if err := c.Capture(ctx, "meters", func(b []byte) error {
		if string(b) != fmt.Sprintf("{\"n\":%d}\n", lines) {
			t.Errorf("line %d of the capture: %s", lines, b)
		}
		if lines++; lines == 1000 {
			return enough
		}
		return nil
	}); !errors.Is(err, enough) {
		t.Error(err)
	}
	if err := c.Capture(ctx, "zebra", func([]byte) error { return nil }); err == nil || !strings.Contains(err.Error(), "zebra") {
		t.Error(err)
	}
	if st, err := c.TestUplink(ctx, "cloud"); err != nil || len(st) != 1 {
		t.Errorf("test %v, %v", st, err)
	}
	if err := Serve(ctx, path, fake{}); err == nil {
		t.Error("a second agent took the socket of a living one")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there")
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"short\n", "short\n"},
		{"exactly twenty chars", "exactly twenty chars"},
		{"one word more than twenty", "one word more than\n   twenty"},
		{"many words that need more than two lines", "many words that need\n   more than two\n   lines"},
		{"a-word-that-is-longer-than-a-line stays", "a-word-that-is-longer-than-a-line\n   stays"},
		{"   a-word-that-is-longer-than-a-line", "   a-word-that-is-longer-than-a-line"},
		{"trailing blanks go   \nin each line  ", "trailing blanks go\nin each line"},
	} {
		if got := Wrap(c.in, 20, "   "); got != c.want {
			t.Errorf("%q:\n got %q\nwant %q", c.in, got, c.want)
		}
	}
	f := &Failure{Code: "a-code", What: strings.Repeat("failed ", 30), Seen: strings.Repeat("seen ", 40), Try: strings.Repeat("x", 200)}
	for line := range strings.Lines(f.Text()) {
		if len(line) > 81 && !strings.Contains(line, "xxx") {
			t.Errorf("more than 80 columns: %q", line)
		}
	}
}

func TestFailureText(t *testing.T) {
	f := &Failure{Code: "port-missing", What: "serial port /dev/ttyUSB0 is not there", Where: "bus-a",
		Seen: "ports here: a,\nb", Try: "tidegate check"}
	want := "error: serial port /dev/ttyUSB0 is not there" + strings.Repeat(" ", 20) + "[port-missing]\n" +
		"  where:  bus-a\n  seen:   ports here: a,\n          b\n  try:    tidegate check\n"
	if got := f.Text(); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if got := f.Error(); got != "serial port /dev/ttyUSB0 is not there [port-missing]" {
		t.Errorf("got %q", got)
	}
}
