package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/internal/account"
	"tidegate/internal/clock"
	"tidegate/internal/status"
	"tidegate/internal/telemetry"
)

const walkT0 = 1_764_000_000_000

// batchOf is an encoded batch of two readings, n seconds after walkT0.
func batchOf(t *testing.T, c *telemetry.Catalog, n int) buffer.Batch {
	t.Helper()
	at := clock.Stamp{Wall: walkT0 + int64(n)*1000, Mono: 1, Boot: 1, Synced: true}
	b, err := telemetry.AppendBatch(nil, &telemetry.Batch{Catalog: c.Hash(), Boot: 1, Synced: true, Groups: []telemetry.Group{
		{At: at, Readings: []telemetry.Reading{{Point: 0, Value: telemetry.IntValue(int64(n), 0)}, {Point: 1, Quality: telemetry.Comm}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return buffer.Batch{Bytes: b, Count: 2, From: at.Wall, To: at.Wall}
}

// walked is a queue of 20 data batches, of which some are delivered, set
// aside or no batch at all, and two events.
func walked(t *testing.T) (*buffer.Queue, *walker) {
	t.Helper()
	c := testCatalog()
	q, err := buffer.Open(buffer.Options{Dir: t.TempDir(), Size: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	for n := 1; n <= 20; n++ {
		b := batchOf(t, c, n)
		if n == 15 {
			b.Bytes = []byte("no batch")
		}
		if _, err := q.Append(buffer.Data, b); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 2 {
		if _, err := q.Append(buffer.Event, batchOf(t, c, 30+n)); err != nil {
			t.Fatal(err)
		}
	}
	q.Ack(buffer.Data, 1, 2, 7, 8)
	if err := q.SetAside(buffer.Data, 10, "poison"); err != nil {
		t.Fatal(err)
	}
	resolve := func(s clock.Stamp) (time.Time, bool) { return time.UnixMilli(s.Wall).UTC(), s.Synced }
	return q, &walker{queue: q, src: newSource(q, c), gateway: "gw", resolve: resolve}
}

// gather exports and returns the lines in short form, and the account of
// their messages.
func gather(t *testing.T, w *walker, query status.ExportQuery, each func()) ([]string, account.Report) {
	t.Helper()
	var got []string
	book := account.New()
	book.Midway()
	err := w.export(t.Context(), query, func(l status.ExportLine) error {
		got = append(got, fmt.Sprint(l.Kind, " ", l.Lane, " ", l.From))
		if l.Message != nil {
			if err := book.Add("", l.Message); err != nil {
				t.Errorf("%s: %v", l.Message, err)
			}
		}
		if each != nil {
			each()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, book.Report()
}

func TestWalk(t *testing.T) {
	q, w := walked(t)
	got, r := gather(t, w, status.ExportQuery{}, nil)
	want := []string{"head  0", "batch event 1", "batch event 2"}
	for _, n := range []int{3, 4, 5, 6, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20} {
		kind := "batch"
		if n == 15 {
			kind = "unreadable"
		}
		want = append(want, fmt.Sprint(kind, " data ", n))
	}
	want = append(want, "loss data 10")
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if d := r.Lanes[0]; d.Received != 14 || d.First != 3 || d.Last != 20 || d.Dropped != 1 || d.Lost != 0 || d.Late != 3 || d.Readings != 28 ||
		!slices.Equal(d.LateAt, []account.Range{{From: 7, To: 8}, {From: 15, To: 15}}) {
		t.Errorf("account %+v", d)
	}
	if s := q.Stats(); s.Waiting[buffer.Data] != 15 || s.Losses != 1 {
		t.Errorf("the walk changed what waits: %+v", s)
	}

	c, err := w.check(t.Context())
	if err != nil || c.Batches != 16 || c.Readings != 32 || c.Damaged != 1 || len(c.Unreadable) != 1 || c.Unreadable[0].From != 15 ||
		len(c.Tombstones) != 1 || c.Tombstones[0].Why != "poison" {
		t.Errorf("check %+v, %v", c, err)
	}
	defer func() { // only the tombstone is left: lo must not pass it before it is told
		for n := uint64(3); n <= 20; n++ {
			q.Ack(buffer.Data, n)
		}
		if _, r := gather(t, w, status.ExportQuery{Lane: "data"}, nil); len(r.Lanes) != 1 || r.Lanes[0].Lo != 10 {
			t.Errorf("the tombstone alone: %+v", r.Lanes)
		}
	}()
	if l := c.Lanes[0]; l.First != 3 || l.Last != 20 || l.GapCount != 2 || len(l.Gaps) != 1 || l.Gaps[0].From != 7 || l.Gaps[0].To != 8 {
		t.Errorf("lane %+v", l)
	}
}

func TestWalkInPart(t *testing.T) {
	_, w := walked(t)
	got, _ := gather(t, w, status.ExportQuery{Lane: "data", Since: walkT0 + 4000, Until: walkT0 + 6000}, nil)
	if want := []string{"head  0", "batch data 4", "batch data 5", "unreadable data 15", "loss data 10"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	var f *status.Failure
	if err := w.export(t.Context(), status.ExportQuery{Lane: "x"}, nil); !errors.As(err, &f) || f.Exit != 64 {
		t.Errorf("no lane: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.export(ctx, status.ExportQuery{}, func(status.ExportLine) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestWalkWhileDelivering: everything is delivered while the export goes on,
// its tombstone, too, and more comes. The export ends, and says nothing wrong.
func TestWalkWhileDelivering(t *testing.T) {
	q, w := walked(t)
	n := uint64(0)
	_, r := gather(t, w, status.ExportQuery{Lane: "data"}, func() {
		n++
		q.Ack(buffer.Data, n*2)
		if _, err := q.Append(buffer.Data, batchOf(t, testCatalog(), int(20+n))); err != nil {
			t.Fatal(err)
		}
		if n == 3 {
			for _, l := range q.Losses() {
				if err := q.AckLoss(l); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	if d := r.Lanes[0]; d.Last > 20 || d.Lost > 0 || d.Dropped != 1 {
		t.Errorf("account %+v", d)
	}
}

// TestWalkStoppedAndDamaged: a flipped byte in a file of a stopped buffer is
// found, and nothing is changed.
func TestWalkStoppedAndDamaged(t *testing.T) {
	dir := t.TempDir()
	o := buffer.Options{Dir: dir, Size: 16 << 20}
	q, err := buffer.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 50 {
		if _, err := q.Append(buffer.Data, batchOf(t, testCatalog(), n+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	check := func() (status.BufferCheck, []string) {
		t.Helper()
		q, err := buffer.OpenReadOnly(o)
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		w := &walker{queue: q, src: newSource(q, testCatalog()), gateway: "gw", resolve: func(s clock.Stamp) (time.Time, bool) { return time.UnixMilli(s.Wall), true }}
		c, err := w.check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lines, _ := gather(t, w, status.ExportQuery{}, nil)
		return c, lines
	}
	if c, lines := check(); c.Damaged != 0 || c.Batches != 50 || len(lines) != 51 {
		t.Fatalf("before: %+v", c)
	}
	segments, _ := filepath.Glob(filepath.Join(dir, "data-*"))
	if len(segments) != 1 {
		t.Fatalf("segments %v", segments)
	}
	raw, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	item := batchOf(t, testCatalog(), 25).Bytes
	copies := 0 // of older commits
	for at := strings.Index(string(raw), string(item)); at >= 0; at = strings.Index(string(raw), string(item)) {
		raw[at+len(item)/2] ^= 1
		copies++
	}
	if copies == 0 {
		t.Fatal("batch 25 is not in the file as it was given")
	}
	if err := os.WriteFile(segments[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	c, lines := check()
	if c.Damaged == 0 || len(c.Unreadable) == 0 || !slices.Contains(lines, "unreadable data 25") {
		t.Errorf("a flipped byte is not found: %+v\n%q", c, lines)
	}
	if c.Batches != 49 {
		t.Errorf("%d batches besides the damaged one, want 49: %+v", c.Batches, c)
	}
	if after, err := os.ReadFile(segments[0]); err != nil || string(after) != string(raw) {
		t.Errorf("the file has changed: %v", err)
	}
}

func TestMergeAndOutside(t *testing.T) {
	l := func(from, to uint64) buffer.Loss { return buffer.Loss{From: from, To: to, Why: "full"} }
	if got := merge([]buffer.Loss{l(1, 3), l(5, 6), l(0, 0)}, []buffer.Loss{l(4, 9)}); !slices.Equal(got, []buffer.Loss{l(4, 9), l(1, 3), l(0, 0)}) {
		t.Errorf("merge %v", got)
	}
	for _, c := range []struct {
		losses []buffer.Loss
		want   string
	}{
		{nil, "[3-9]"}, {[]buffer.Loss{l(1, 20)}, "[]"}, {[]buffer.Loss{l(5, 6)}, "[3-4 7-9]"},
		{[]buffer.Loss{l(8, 30), l(1, 3)}, "[4-7]"}, {[]buffer.Loss{l(6, 9), l(3, 5)}, "[]"}, {[]buffer.Loss{l(0, 0)}, "[3-9]"},
	} {
		got := []string{}
		for _, n := range outside(3, 9, buffer.Data, c.losses) {
			got = append(got, fmt.Sprintf("%d-%d", n.From, n.To))
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%v: %v, want %s", c.losses, got, c.want)
		}
	}
}
