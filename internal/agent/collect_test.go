package agent

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/buffer"
	"tidegate/internal/clock"
	"tidegate/internal/rule"
	"tidegate/internal/telemetry"
)

// fakeQueue keeps what it is given, decoded, with the time it was given at.
type fakeQueue struct {
	mu      sync.Mutex
	batches [2][]telemetry.Batch
	counts  [2]int
	ages    [2][]time.Duration
	most    int             // largest batch that it takes, 0: any
	synced  []time.Time     // calls of Sync
	waits   bool            // what was appended since is not durable
	first   time.Time       // when the oldest reading of that came
	commits []time.Duration // how old that was when it became durable
}

func (q *fakeQueue) Append(l buffer.Lane, b buffer.Batch) (uint64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.most > 0 && len(b.Bytes) > q.most {
		return 0, fmt.Errorf("%w: %d bytes", buffer.ErrTooLarge, len(b.Bytes))
	}
	var d telemetry.Batch
	if err := telemetry.DecodeBatch(b.Bytes, &d); err != nil {
		return 0, err
	}
	q.batches[l] = append(q.batches[l], d)
	q.counts[l] += b.Count
	q.ages[l] = append(q.ages[l], b.Age)
	if !q.waits || q.first.IsZero() {
		q.first = time.Now().Add(-b.Age)
	}
	q.waits = true
	return uint64(len(q.batches[l])), nil
}

func (q *fakeQueue) Sync(olderThan time.Duration) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.synced = append(q.synced, time.Now())
	if q.due(olderThan) {
		q.commits = append(q.commits, time.Since(q.first))
		q.first = time.Time{}
	}
	return nil
}

func (q *fakeQueue) Due(olderThan time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.due(olderThan)
}

func (q *fakeQueue) due(olderThan time.Duration) bool {
	return q.waits && !q.first.IsZero() && time.Since(q.first) >= olderThan
}

func (q *fakeQueue) Idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.waits
}

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
	c := newCollector(q, testCatalog(), nil, l, slog.New(slog.NewTextHandler(io.Discard, nil)))
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

// TestAge: what a power cut may cost counts from the first reading of a
// batch, not from when it was full, and an event has no age.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := collect(t, limits{maxAge: time.Minute, maxReadings: 6, maxBytes: 1e6, maxLoss: time.Hour}, func(c *collector) {
			for ms := range int64(6) {
				c.emit(pair(ms))
				time.Sleep(time.Second)
			}
			c.emit(&telemetry.Group{At: stamp(9), Readings: []telemetry.Reading{{Point: 2, Value: telemetry.BoolValue(true)}}})
		})
		data := q.ages[buffer.Data]
		if len(data) != 3 || data[0] != 2*time.Second || data[1] != 2*time.Second || data[2] != 0 || len(q.ages[buffer.Event]) != 1 || q.ages[buffer.Event][0] != 0 {
			t.Errorf("ages of data %v, of events %v", data, q.ages[buffer.Event])
		}
	})
}

// TestClockStep: stamps before and after a step of the wall clock never
// share a batch, since a batch has one offset to uptime.
func TestClockStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := collect(t, limits{maxAge: time.Minute, maxReadings: 100, maxBytes: 1e6}, func(c *collector) {
			c.emit(pair(0))
			for _, synced := range []bool{true, false} {
				g := pair(10)
				g.At.Wall += 3600_000
				g.At.Synced = synced
				c.emit(g)
			}
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

// TestRule: what a rule says is an event at once, with the reading that
// caused it and the rule's own points; the data lane knows nothing of it,
// and the newest state is there to be shown.
func TestRule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		points := testCatalog().Points
		set, issues := rule.Compile([]rule.Rule{
			{Name: "high", When: "m/v > 253", For: 2 * time.Second, Clear: "m/v < 250", Severity: "critical"},
			{Name: "draw", When: "m/a > 16"}}, points)
		if len(issues) > 0 {
			t.Fatal(issues)
		}
		catalog := telemetry.NewCatalog(append(points, set.Points()...))
		q, log := &fakeQueue{}, &strings.Builder{}
		c := newCollector(q, catalog, set, limits{maxAge: time.Minute, maxReadings: 1000, maxBytes: 1e6, maxLoss: 2 * time.Minute},
			slog.New(slog.NewTextHandler(log, nil)))
		done := make(chan struct{})
		go func() { c.run(); close(done) }()
		// events writes what the event lane got since the last call, as a cloud reads it.
		told := 0
		events := func() (out string) {
			synctest.Wait()
			q.mu.Lock()
			defer q.mu.Unlock()
			for _, b := range q.batches[buffer.Event][told:] {
				told++
				for _, g := range b.Groups {
					out += fmt.Sprintf("%d:", g.At.Mono)
					for _, r := range g.Readings {
						out += fmt.Sprintf(" %s/%s=%s", catalog.Points[r.Point].Device, catalog.Points[r.Point].Name, r.Value)
					}
					out += "; "
				}
			}
			return out
		}
		feed := func(ms, volts, amps int64) {
			c.emit(&telemetry.Group{At: stamp(ms), Readings: []telemetry.Reading{
				{Point: 0, Value: telemetry.IntValue(volts*10, 1)}, {Point: 1, Value: telemetry.IntValue(amps, 0)}}})
		}
		for i, s := range []struct {
			ms, volts, amps int64
			want            string
		}{
			{0, 230, 3, "0: m/v=230.0 m/a=3; 0: rules/high=cleared rules/high_severity=critical rules/high_value=230.0" +
				" rules/draw=cleared rules/draw_severity=warning rules/draw_value=3; "},
			{1000, 254, 3, ""},
			{2000, 254, 17, "2000: m/a=17; 2000: rules/draw=raised rules/draw_severity=warning rules/draw_value=17; "},
			{3000, 255, 17, "3000: m/v=255.0; 3000: rules/high=raised rules/high_severity=critical rules/high_value=255.0; "},
			{4000, 251, 17, ""},
			{5000, 249, 3, "5000: m/v=249.0 m/a=3; 5000: rules/high=cleared rules/high_severity=critical rules/high_value=249.0" +
				" rules/draw=cleared rules/draw_severity=warning rules/draw_value=3; "},
		} {
			feed(s.ms, s.volts, s.amps)
			if got := events(); got != s.want {
				t.Errorf("step %d: got %q, want %q", i, got, s.want)
			}
		}
		// An event is made durable within 50 ms, not with the next tick.
		time.Sleep(110 * time.Millisecond)
		feed(6000, 249, 17)
		at := time.Now()
		events()
		time.Sleep(eventSync)
		synctest.Wait()
		q.mu.Lock()
		if n := len(q.synced); n == 0 || q.synced[n-1] != at.Add(eventSync) {
			t.Errorf("synced at %v, the event was at %v", q.synced, at)
		}
		q.mu.Unlock()
		shown := map[string]string{}
		c.latest(func(i int, l *last) { shown[catalog.Points[i].Name] = l.Value.String() + " " + l.Quality.String() })
		if shown["draw"] != "raised good" || shown["draw_value"] != "17 good" || shown["high"] != "cleared good" {
			t.Errorf("%v", shown)
		}
		close(c.in)
		<-done
		if q.counts[buffer.Data] != 14 || q.counts[buffer.Event] != 8+4+4+8+4 {
			t.Errorf("%v readings", q.counts)
		}
		for _, b := range q.batches[buffer.Data] {
			for _, g := range b.Groups {
				if int(g.Readings[len(g.Readings)-1].Point) >= len(points) {
					t.Error("a rule's point is in the data lane")
				}
			}
		}
		if l := log.String(); strings.Count(l, "is raised") != 3 || strings.Count(l, "is cleared") != 2 ||
			!strings.Contains(l, `msg="rule high is raised" severity=critical value=255.0`) {
			t.Error(l)
		}
	})
}

// TestTooLarge: a batch that the queue cannot take as one goes in parts, and
// nothing of it is left out.
func TestTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &fakeQueue{most: 60}
		c := newCollector(q, testCatalog(), nil, limits{maxAge: time.Minute, maxReadings: 1000, maxBytes: 1e6}, slog.New(slog.DiscardHandler))
		done := make(chan struct{})
		go func() { c.run(); close(done) }()
		for i := range 20 {
			c.emit(&telemetry.Group{At: stamp(int64(i)), Readings: []telemetry.Reading{{Point: 0, Value: telemetry.TextValue(fmt.Sprint("text ", i))}}})
		}
		close(c.in)
		<-done
		if len(q.batches[buffer.Data]) < 2 || q.counts[buffer.Data] != 20 {
			t.Errorf("%d batches with %d readings", len(q.batches[buffer.Data]), q.counts[buffer.Data])
		}
	})
}

// TestBeats: what has time waits for the instants at which polls begin, whenever
// the first reading of a batch came; no batch gets older than it may, and one
// that is delivered at once costs the flusher a single look.
func TestBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &fakeQueue{}
		c := newCollector(q, testCatalog(), nil, limits{maxAge: time.Second, maxReadings: 1000, maxBytes: 1e6, maxLoss: 2 * time.Second}, slog.New(slog.DiscardHandler))
		done := make(chan struct{})
		go func() { c.run(); close(done) }()
		for i := range 50 {
			time.Sleep(time.Duration(i*37%250) * time.Millisecond)
			c.emit(pair(int64(i)))
			begun := time.Now()
			for n := 0; n <= i; time.Sleep(time.Millisecond) {
				q.mu.Lock()
				n = len(q.batches[buffer.Data])
				q.mu.Unlock()
			}
			if age := q.ages[buffer.Data][i]; age > time.Second || age < 750*time.Millisecond || begun.Add(age).UnixMilli()%250 != 0 {
				t.Errorf("a batch that began at %v was closed %v later", begun, age)
			}
			q.mu.Lock()
			q.waits = false
			q.mu.Unlock()
		}
		close(c.in)
		<-done
		looks := q.synced[1 : len(q.synced)-1] // without the start and the end
		for _, at := range looks {
			if at.UnixMilli()%250 != 0 {
				t.Errorf("the flusher looked at %v", at)
			}
		}
		if n := len(looks); n < 48 || n > 52 {
			t.Errorf("it looked %d times for 50 batches", n)
		}
	})
}

// TestCommitTakesOpenBatch: without a broker what is in the open batch becomes
// durable with the batches before it, so that commits are as far apart as
// max_loss allows. A young batch, of which there is not much, goes on. With 0
// each batch is complete before.
func TestCommitTakesOpenBatch(t *testing.T) {
	for _, c := range []struct {
		maxLoss, every time.Duration
		most           int // readings of a batch
		batches        int // in a minute, with the one of the end
		commits        int
	}{
		{2 * time.Second, time.Second, 1000, 60, 30}, {10 * time.Second, time.Second, 1000, 60, 6},
		{2 * time.Second, 100 * time.Millisecond, 1000, 64, 32}, {0, 100 * time.Millisecond, 1000, 60, 60},
		{2 * time.Second, 10 * time.Millisecond, 40, 300, 33},
	} {
		t.Run(fmt.Sprint(c.maxLoss, " ", c.every, " ", c.most), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var readings int
				l := limits{maxAge: time.Second, maxReadings: c.most, maxBytes: 1e6, maxLoss: c.maxLoss}
				q := collect(t, l, func(co *collector) {
					for until := time.Now().Add(time.Minute); time.Now().Before(until); readings += 2 {
						time.Sleep(3 * time.Millisecond)
						co.emit(pair(int64(readings)))
						time.Sleep(c.every - 3*time.Millisecond)
					}
				})
				if q.counts[buffer.Data] != readings {
					t.Errorf("%d readings of %d", q.counts[buffer.Data], readings)
				}
				if b, n := len(q.batches[buffer.Data]), len(q.commits); b < c.batches-3 || b > c.batches+3 || n < c.commits-2 || n > c.commits+2 {
					t.Errorf("%d batches in %d commits, want %d in %d", b, n, c.batches, c.commits)
				}
				for _, age := range q.commits {
					if c.maxLoss > 0 && age > c.maxLoss {
						t.Errorf("a reading was %v old when it became durable", age)
					}
				}
			})
		})
	}
}

// TestFlusherRests: while everything is delivered the flusher hardly ever
// looks; half a second after a batch, and from then on until it is durable ten
// times a second.
func TestFlusherRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &fakeQueue{}
		c := newCollector(q, testCatalog(), nil, limits{maxAge: time.Second, maxReadings: 1000, maxBytes: 1e6, maxLoss: 2 * time.Second}, slog.New(slog.DiscardHandler))
		done := make(chan struct{})
		go func() { c.run(); close(done) }()
		looks := func(d time.Duration) int {
			q.mu.Lock()
			q.synced = nil
			q.mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			q.mu.Lock()
			defer q.mu.Unlock()
			return len(q.synced)
		}
		time.Sleep(5*time.Second + 10*time.Millisecond)
		if n := looks(10 * time.Second); n != 8 {
			t.Errorf("at rest it looked %d times in 10 s", n)
		}
		time.Sleep(300 * time.Millisecond) // so that no look at rest is near the end of the batch
		c.emit(pair(0))
		looks(time.Second)
		if n := looks(restTick/2 + time.Millisecond); len(q.batches[buffer.Data]) != 1 || n == 0 {
			t.Errorf("no look within half a second after a batch: %v", q.synced)
		}
		if n := looks(2 * time.Second); n != 20 {
			t.Errorf("while a batch waits it looked %d times in 2 s", n)
		}
		q.mu.Lock()
		q.waits = false
		q.mu.Unlock()
		looks(time.Second)
		if n := looks(10 * time.Second); n != 8 {
			t.Errorf("at rest again it looked %d times in 10 s", n)
		}
		close(c.in)
		<-done
	})
}
