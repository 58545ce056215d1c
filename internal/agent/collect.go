package agent

import (
	"errors"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/buffer"
	"tidegate/internal/clock"
	"tidegate/internal/rule"
	"tidegate/internal/telemetry"
)

// queue is what the collector needs of the buffer. Append takes a batch for
// good or says why not; Sync makes durable what waits longer than a time; Idle
// tells whether nothing waits for that.
type queue interface {
	Append(buffer.Lane, buffer.Batch) (uint64, error)
	Sync(olderThan time.Duration) error
	Due(olderThan time.Duration) bool
	Idle() bool
}

// limits say when a batch is full.
type limits struct {
	maxAge      time.Duration // of its first reading
	maxReadings int
	maxBytes    int64 // of the message it becomes, as estimated in shape records
	maxLoss     time.Duration
}

// slew is how far wall clock less uptime may wander within one batch, in
// ms: beyond it the clock was stepped, and a new batch begins.
const slew = 50

// last is the newest reading of a point.
type last struct {
	telemetry.Reading
	at clock.Stamp
}

// collector turns groups into batches. One goroutine runs it; it is the
// only writer of the queue. Groups reach it through a bounded channel: when
// it is full, lines wait and count their polls as late.
type collector struct {
	queue   queue
	catalog *telemetry.Catalog
	rules   *rule.Set
	limits  limits
	log     *slog.Logger
	in      chan *telemetry.Group
	cost    []uint16     // bytes that a point costs in a message
	pool    *sync.Pool   // of groups that may be filled again
	beat    atomic.Int64 // Unix ms of the last turn, for the watchdog
	events  atomic.Uint64

	mu   sync.Mutex
	last []last

	open    telemetry.Batch
	opened  time.Time
	until   time.Time // when it is closed at the latest
	count   int
	bytes   int
	groups  []*telemetry.Group // of the open batch, to be used again
	encoded []byte
	failed  atomic.Int64       // Unix ms of the last trouble with the queue, 0 when it is over
	urgent  chan struct{}      // holds a token while events wait for Sync
	kept    chan struct{}      // holds a token after a batch was appended
	commit  chan chan struct{} // the flusher will commit: the open batch joins unless it is young, then this is closed
}

// inbox is how many groups may wait for the collector.
const inbox = 1024

// eventSync is how soon after its Append an event is made durable; those
// that the broker confirms before cost no write.
const eventSync = 50 * time.Millisecond

func newCollector(q queue, c *telemetry.Catalog, rules *rule.Set, l limits, log *slog.Logger) *collector {
	co := &collector{queue: q, catalog: c, rules: rules, limits: l, log: log,
		in: make(chan *telemetry.Group, inbox), urgent: make(chan struct{}, 1), kept: make(chan struct{}, 1), commit: make(chan chan struct{}), last: make([]last, len(c.Points)),
		pool: &sync.Pool{New: func() any { return new(telemetry.Group) }}}
	for _, p := range c.Points {
		co.cost = append(co.cost, uint16(min(len(p.Name)+14, math.MaxUint16)))
	}
	for i := range co.last {
		co.last[i].Quality, co.last[i].Cause = telemetry.Init, telemetry.CauseNotYet
		co.last[i].Point = uint32(i)
	}
	co.beat.Store(time.Now().UnixMilli())
	return co
}

// emit takes a group from a line, for good, and waits while the collector is
// behind.
func (c *collector) emit(g *telemetry.Group) { c.in <- g }

// run collects until the channel is closed and everything in it is in the
// queue and durable.
func (c *collector) run() {
	stop := make(chan struct{})
	var flusher sync.WaitGroup
	flusher.Go(func() { c.flush(stop) })
	next := time.NewTimer(pulse)
	defer next.Stop()
	for {
		select {
		case g, ok := <-c.in:
			if !ok {
				c.close()
				close(stop)
				flusher.Wait()
				c.sync(0)
				return
			}
			begun := c.opened
			if c.add(g); c.opened != begun {
				next.Reset(c.wait())
			}
		case done := <-c.commit:
			if time.Since(c.opened) >= c.limits.maxAge/2 { // parts of young ones would only take more room
				c.close()
			}
			close(done)
		case <-next.C:
			c.beat.Store(time.Now().UnixMilli())
			if c.count > 0 && !time.Now().Before(c.until) {
				c.close()
			}
			next.Reset(c.wait())
		}
	}
}

// pulse is how often the collector turns at least.
const pulse = time.Second

// wait is how long the collector may wait for the next group.
func (c *collector) wait() time.Duration {
	if c.count == 0 {
		return clock.ToBeat(pulse/2, pulse)
	}
	return min(clock.ToBeat(pulse/2, pulse), max(time.Until(c.until), 0))
}

// flush makes durable what is due until stop is closed. It is a goroutine of
// its own, so that collecting, and with it polling, never waits for the disk.
// While the broker takes everything at once it hardly ever wakes.
func (c *collector) flush(stop <-chan struct{}) {
	next := time.NewTimer(flushTick)
	defer next.Stop()
	resting := false
	for {
		select {
		case <-stop:
			return
		case <-next.C:
		case <-c.urgent:
			select { // events that come together share a commit
			case <-stop:
				return
			case <-time.After(eventSync):
			}
		case <-c.kept:
			if resting {
				resting = false
				next.Reset(c.spell())
			}
			continue
		}
		if c.due() > c.limits.maxAge && c.queue.Due(c.due()) { // what is in the open batch needs no commit of its own
			done := make(chan struct{})
			select {
			case <-stop:
				return
			case c.commit <- done:
				<-done
			}
		}
		c.sync(c.due())
		if resting = c.queue.Idle(); resting {
			next.Reset(clock.ToBeat(restTick/2, restTick))
		} else {
			next.Reset(flushTick)
		}
	}
}

// The flusher looks for what is due at every flushTick while a batch is only
// in memory and had its spell, and else at every restTick.
const (
	flushTick = 100 * time.Millisecond
	restTick  = 1250 * time.Millisecond // so that a batch a second comes before it, and then is under way at no look
)

// spell is how long a batch has to be delivered before the flusher looks whether
// it is: a beat or two, where that leaves time for a commit.
func (c *collector) spell() time.Duration {
	most := min(c.due()-c.limits.maxAge, restTick/2)
	return clock.ToBeat(flushTick, max(most, flushTick))
}

// due is the age from which on data is made durable: the flusher may have
// just looked, and a commit takes its time. It counts from the first reading
// of a batch, which is closed by then.
func (c *collector) due() time.Duration {
	return max(c.limits.maxLoss-2*flushTick, time.Millisecond)
}

func (c *collector) sync(olderThan time.Duration) {
	c.tell("making readings durable", c.queue.Sync(olderThan))
}

// calm is how long the queue must work again before a trouble has ended: on
// a full disk what needs no room goes on working.
const calm = 30 * time.Second

// tell logs a trouble with the queue when it begins and when it ends.
func (c *collector) tell(doing string, err error) {
	now := time.Now().UnixMilli()
	if err != nil {
		if c.failed.Swap(now) == 0 {
			c.log.Error("buffer: "+doing+" failed; readings are kept in memory", "error", err)
		}
		return
	}
	if last := c.failed.Load(); last != 0 && now-last > calm.Milliseconds() && c.failed.CompareAndSwap(last, 0) {
		c.log.Info("buffer: writing works again")
	}
}

func (c *collector) add(g *telemetry.Group) {
	if len(g.Readings) == 0 {
		c.pool.Put(g)
		return
	}
	weight := c.weight(g)
	if c.count > 0 && !c.fits(g, weight) {
		c.close()
	}
	alarm := c.remember(g)
	if c.count == 0 {
		c.opened = time.Now()
		c.until = c.opened.Add(clock.ToBeat(c.limits.maxAge*3/4, c.limits.maxAge))
		c.open.Boot, c.open.Synced = g.At.Boot, g.At.Synced
	}
	c.open.Groups = append(c.open.Groups, *g)
	c.groups = append(c.groups, g)
	c.count += len(g.Readings)
	c.bytes += weight
	if alarm {
		c.event(g)
	}
	if events := c.rules.Apply(g); len(events) > 0 {
		c.ruled(g, events)
	}
	if c.count >= c.limits.maxReadings {
		c.close()
	}
}

// fits tells whether g, of that weight, may join the open batch.
func (c *collector) fits(g *telemetry.Group, weight int) bool {
	head := c.open.Groups[0].At
	drift := (g.At.Wall - g.At.Mono) - (head.Wall - head.Mono)
	return g.At.Boot == head.Boot && g.At.Synced == head.Synced && drift < slew && drift > -slew &&
		c.count+len(g.Readings) <= c.limits.maxReadings &&
		int64(c.bytes+weight) <= c.limits.maxBytes
}

// weight is about how many bytes of a message g becomes.
func (c *collector) weight(g *telemetry.Group) int {
	n := 60
	for i := range g.Readings {
		n += int(c.cost[g.Readings[i].Point])
	}
	return n
}

// remember keeps the newest readings and tells whether one of class alarm
// has changed since the one before.
func (c *collector) remember(g *telemetry.Group) (alarm bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range g.Readings {
		r := &g.Readings[i]
		l := &c.last[r.Point]
		if c.catalog.Points[r.Point].Class == telemetry.ClassAlarm && l.Value != r.Value && r.Value.Kind() != telemetry.None {
			alarm = true
		}
		l.Reading, l.at = *r, g.At
	}
	return alarm
}

// event puts the alarm points of a group into the event lane, at once.
func (c *collector) event(g *telemetry.Group) {
	one := telemetry.Group{At: g.At}
	for _, r := range g.Readings {
		if c.catalog.Points[r.Point].Class == telemetry.ClassAlarm {
			one.Readings = append(one.Readings, r)
		}
	}
	c.appendEvent(g.At, one)
}

// ruled puts what rules say of a group into the event lane, at once: the
// readings that caused it, then the points of the rules.
func (c *collector) ruled(g *telemetry.Group, events []rule.Event) {
	causes, states := telemetry.Group{At: g.At}, telemetry.Group{At: g.At}
	c.mu.Lock()
	for i := range events {
		e := &events[i]
		first := c.last[e.Points[0].Point].Quality == telemetry.Init
		switch {
		case e.Raised:
			c.log.Warn("rule "+e.Rule+" is raised", "severity", e.Severity, "value", e.Points[2].Value)
		case !first:
			c.log.Info("rule "+e.Rule+" is cleared", "severity", e.Severity, "value", e.Points[2].Value)
		}
		if !slices.ContainsFunc(causes.Readings, func(r telemetry.Reading) bool { return r.Point == e.Cause.Point }) {
			causes.Readings = append(causes.Readings, e.Cause)
		}
		states.Readings = append(states.Readings, e.Points[:]...)
		for _, r := range e.Points {
			c.last[r.Point] = last{r, g.At}
		}
	}
	c.mu.Unlock()
	c.appendEvent(g.At, causes, states)
}

// appendEvent puts groups of one instant into the event lane as one batch.
func (c *collector) appendEvent(at clock.Stamp, groups ...telemetry.Group) {
	count := 0
	for i := range groups {
		count += len(groups[i].Readings)
	}
	b := telemetry.Batch{Catalog: c.catalog.Hash(), Boot: at.Boot, Synced: at.Synced, Groups: groups}
	c.append(buffer.Event, &b, count)
	c.events.Add(1)
	token(c.urgent)
}

// token puts a token into a channel that does not hold one yet.
func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// close puts the open batch into the queue and begins anew.
func (c *collector) close() {
	if c.count == 0 {
		return
	}
	c.open.Catalog = c.catalog.Hash()
	c.append(buffer.Data, &c.open, c.count)
	for i, g := range c.groups {
		c.pool.Put(g)
		c.groups[i] = nil
		c.open.Groups[i] = telemetry.Group{}
	}
	c.groups, c.open.Groups, c.count, c.bytes = c.groups[:0], c.open.Groups[:0], 0, 0
}

func (c *collector) append(lane buffer.Lane, b *telemetry.Batch, count int) {
	var err error
	if c.encoded, err = telemetry.AppendBatch(c.encoded[:0], b); err != nil {
		// The groups came from our own lines: only a bug gets here.
		c.log.Error("a batch cannot be stored", "error", err)
		return
	}
	from, to := b.Groups[0].At.Wall, b.Groups[0].At.Wall
	for i := range b.Groups {
		from, to = min(from, b.Groups[i].At.Wall), max(to, b.Groups[i].At.Wall)
	}
	age := time.Duration(0)
	if lane == buffer.Data {
		age = time.Since(c.opened)
	}
	_, err = c.queue.Append(lane, buffer.Batch{Bytes: c.encoded, Count: count, From: from, To: to, Age: age})
	token(c.kept)
	if n := len(b.Groups); errors.Is(err, buffer.ErrTooLarge) && n > 1 {
		// Long texts, and a buffer with small segments: two batches then.
		for _, half := range [][]telemetry.Group{b.Groups[:n/2], b.Groups[n/2:]} {
			part, readings := *b, 0
			part.Groups = half
			for i := range half {
				readings += len(half[i].Readings)
			}
			c.append(lane, &part, readings)
		}
		return
	}
	c.tell("keeping a batch", err)
}

// latest calls f with the newest reading of every point, under the lock.
func (c *collector) latest(f func(point int, l *last)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.last {
		f(i, &c.last[i])
	}
}
