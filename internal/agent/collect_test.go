package agent

import (
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/buffer"
	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

// fakeQueue keeps what it is given, decoded, with the time it was given at.
type fakeQueue struct {
	mu      sync.Mutex
	batches [2][]telemetry.Batch
	counts  [2]int
	fail    bool
}

func (q *fakeQueue) Append(l buffer.Lane, b buffer.Batch) (uint64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var d telemetry.Batch
	if err := telemetry.DecodeBatch(b.Bytes, &d); err != nil {
		return 0, err
	}
	q.batches[l] = append(q.batches[l], d)
	q.counts[l] += b.Count
	if q.fail {
		return 0, errors.New("disk")
	}
	return uint64(len(q.batches[l])), nil
}

func (q *fakeQueue) Sync(time.Duration) error { return nil }

func testCatalog() *telemetry.Catalog {
	return telemetry.NewCatalog([]telemetry.Point{{Device: "m", Name: "v"}, {Device: "m", Name: "a"},
		{Device: "door", Name: "contact", Class: telemetry.ClassAlarm}})
}

func stamp(ms int64) clock.Stamp {
	return clock.Stamp{Wall: 1e12 + ms, Mono: ms, Boot: 1, Synced: true}
}

func collect(t *testing.T, l limits, feed func(c *collector)) *fakeQueue {
	t.Helper()
	q := &fakeQueue{}
	c := newCollector(q, testCatalog(), l, slog.New(slog.NewTextHandler(io.Discard, nil)))
	done := make(chan struct{})
	go func() { c.run(); close(done) }()
	feed(c)
	close(c.in)
	<-done
	return q
}

func pair(ms int64) *telemetry.Group {
	return &telemetry.Group{At: stamp(ms), Readings: []telemetry.Reading{
		{Point: 0, Value: telemetry.IntValue(ms, 1)}, {Point: 1, Value: telemetry.IntValue(ms, 2)}}}
}

// TestBatches: a batch closes by count, by bytes, by age and at a step of
// the clock, and every reading arrives once.
func TestBatches(t *testing.T) {
	for _, c := range []struct {
		name    string
		limits  limits
		groups  []int64
		pause   time.Duration
		batches int
	}{
		{"count", limits{maxAge: time.Minute, maxReadings: 4, maxBytes: 1e6}, []int64{0, 1, 2, 3, 4}, 0, 3},
		{"bytes", limits{maxAge: time.Minute, maxReadings: 1e6, maxBytes: 200}, []int64{0, 1, 2, 3}, 0, 2},
		{"age", limits{maxAge: time.Second, maxReadings: 1e6, maxBytes: 1e6}, []int64{0, 1, 2}, 1500 * time.Millisecond, 3},
		{"one", limits{maxAge: time.Minute, maxReadings: 1e6, maxBytes: 1e6}, []int64{0, 1, 2}, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := collect(t, c.limits, func(co *collector) {
					for _, ms := range c.groups {
						co.emit(pair(ms))
						time.Sleep(c.pause)
					}
				})
				if len(q.batches[buffer.Data]) != c.batches || q.counts[buffer.Data] != 2*len(c.groups) {
					t.Errorf("%d batches with %d readings, want %d with %d", len(q.batches[buffer.Data]),
						q.counts[buffer.Data], c.batches, 2*len(c.groups))
				}
			})
		})
	}
}

// TestClockStep: stamps before and after a step of the wall clock never
// share a batch, since a batch has one offset to uptime.
func TestClockStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := collect(t, limits{maxAge: time.Minute, maxReadings: 100, maxBytes: 1e6}, func(c *collector) {
			c.emit(pair(0))
			g := pair(10)
			g.At.Wall += 3600_000
			c.emit(g)
			g.At.Synced = false
			c.emit(g)
		})
		if n := len(q.batches[buffer.Data]); n != 3 {
			t.Fatalf("%d batches, want 3", n)
		}
		if g := q.batches[buffer.Data][1].Groups[0]; g.At.Mono != 10 || g.At.Wall != 1e12+3600_010 {
			t.Errorf("stamp after the step: %+v", g.At)
		}
	})
}

// TestAlarm: a change of a point of class alarm is an event at once, beside
// its place in the data; the same value again is none.
func TestAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := collect(t, limits{maxAge: time.Minute, maxReadings: 100, maxBytes: 1e6}, func(c *collector) {
			for i, open := range []bool{false, true, true, false} {
				c.emit(&telemetry.Group{At: stamp(int64(i)), Readings: []telemetry.Reading{{Point: 2, Value: telemetry.BoolValue(open)}}})
			}
			c.emit(&telemetry.Group{At: stamp(9), Readings: []telemetry.Reading{{Point: 2, Quality: telemetry.Comm, Cause: telemetry.CauseTimeout}}})
		})
		if n := len(q.batches[buffer.Event]); n != 3 {
			t.Errorf("%d events, want 3", n)
		}
		if q.counts[buffer.Data] != 5 {
			t.Errorf("%d readings in the data lane, want 5", q.counts[buffer.Data])
		}
	})
}
