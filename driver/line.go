package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

// Line is one serial port or network endpoint with its devices. Its methods
// are safe for concurrent use.
type Line struct {
	name    string
	at      endpoint
	mode    lineMode
	opt     Options
	clk     *clock.Clock
	log     *slog.Logger
	timeout time.Duration
	limits  profile.Limits // of its blocks
	dial    func(context.Context) (stream, error)

	own    chan struct{} // holds a token while somebody owns the line
	asking chan struct{} // holds a token while a technician waits or asks
	done   chan struct{} // closed by Close
	alarm  *time.Timer   // Run waits for nothing else: stir sets it off
	news   atomic.Bool   // stir was called since Run woke

	// Of the owner alone.
	wire     wire
	units    map[byte]*unit
	jobs     []*job
	talkers  bool // a device talks by itself
	open     connection
	absent   time.Time // before it no absent unit is probed
	techFree time.Time // before it no technician is served while Run runs
	groups   *sync.Pool
	taps     []*tap    // who listens to the bytes
	warned   string    // code of the trouble that was logged last; "" when all is well
	trouble  time.Time // when that trouble began

	mu      sync.Mutex // guards what Stats reads
	devices []*device
	public  public
	running bool
	closed  bool
	leased  *lease // nil: it is not lent
}

// connection is what is known about opening the line.
type connection struct {
	next   time.Time // of the next attempt, while there is no stream
	wait   time.Duration
	err    error     // of the last attempt, or why the stream was closed
	good   int       // answers since the stream was opened
	missed int       // timeouts in a row on this connection
	empty  int       // connections in a row that were closed by the other side without an answer
	seen   time.Time // last look whether the port is still there
	gone   bool      // it was open or tried, and is not open
}

// unit is what is known about one address on the line.
type unit struct {
	id    byte
	q     quarantine
	br    breaker
	heard time.Time // last right answer
	asked uint64    // requests since it was last heard
	bytes uint64    // bytes that came to these requests
	bad   uint64    // damaged answers among them

	wake    *profile.Wake // what wakes it, or nil
	touched time.Time     // last request to it

	searching bool // it is found out which registers it is silent to
}

// device is one instrument of the configuration.
type device struct {
	name    string
	opt     *Device
	unit    *unit
	timeout time.Duration
	gap     time.Duration // silence it wants before a request
	grid    grid
	talker  *talker // of a device that talks by itself, else nil
	memory  *profile.Memory
	// of points whose values have a time of the device
	measured map[uint32]*measured
	// of a device whose telegrams are whole, how often in a row each point was
	// missing; see unsent. Nil: nothing has been told yet
	lacks []uint8

	slot   time.Time // of the round under way
	served time.Time // when its last block was, or the slot
	behind bool      // that round is late

	known learned // what it does not let itself be read across

	found  atomic.Pointer[profile.Profile] // a SunSpec device: its points where they stand; nil until then
	walked time.Time                       // when that was found

	// guarded by Line.mu
	stats  DeviceStats
	warned bool // its failing was logged
}

// Open makes a line of its options. It touches no port: errors are mistakes
// of the configuration alone. Run or the first Exchange opens the port.
func Open(o Options, env Env) (*Line, error) {
	var problems []error
	o.Validate(func(path, msg, hint string) {
		if hint != "" {
			msg += "; " + hint
		}
		problems = append(problems, fmt.Errorf("%s: %s", path, msg))
	})
	if len(problems) > 0 {
		return nil, fmt.Errorf("bus %s: %w", o.Name, errors.Join(problems...))
	}
	at, err := parseConnect(o.Connect)
	if err != nil {
		return nil, fmt.Errorf("bus %s: %w", o.Name, err)
	}
	l := &Line{name: o.Name, at: at, opt: o, clk: env.Clock, log: env.Logger, timeout: o.Timeout, groups: env.Groups,
		own: make(chan struct{}, 1), asking: make(chan struct{}, 1), done: make(chan struct{}), alarm: time.NewTimer(0), units: map[byte]*unit{}}
	if l.clk == nil {
		if l.clk, err = clock.Open(""); err != nil {
			return nil, err
		}
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.log = l.log.With("bus", o.Name)
	if l.groups == nil {
		l.groups = &sync.Pool{New: func() any { return new(telemetry.Group) }}
	}
	if l.timeout == 0 {
		l.timeout = defaultTimeout(at)
	}
	if l.mode, err = o.mode(); err != nil {
		return nil, fmt.Errorf("bus %s: %w", o.Name, err)
	}
	l.limits = o.Limits()
	l.wire = wire{kind: at.kind, pk: packager(at.kind, 1), gap: o.Gap, stray: l.heardStray}
	switch {
	case at.serial:
		l.wire.char, l.wire.gap = l.mode.char(), max(o.Gap, l.mode.silence())
	case at.kind == kindRTU:
		l.wire.gap = max(o.Gap, 1750*time.Microsecond)
	}
	l.dial = l.connect
	l.public.state = "idle"
	now := time.Now()
	for i := range l.opt.Devices {
		if err := l.addDevice(&l.opt.Devices[i], now); err != nil {
			return nil, fmt.Errorf("bus %s: device %s: %w", o.Name, l.opt.Devices[i].Name, err)
		}
	}
	return l, nil
}

func (l *Line) addDevice(o *Device, now time.Time) error {
	if o.Map == nil {
		return errors.New("it has no map of points")
	}
	d := &device{name: o.Name, opt: o, timeout: o.timeout(l.timeout), gap: max(o.Map.Gap, o.Gap), grid: newGrid(l.name, o.Name, len(l.opt.Devices), o.every())}
	d.stats = DeviceStats{Name: o.Name, Unit: o.unit(), State: "init", Every: o.every()}
	d.memory = o.Map.NewMemory()
	l.devices = append(l.devices, d)
	if l.at.kind == kindListen {
		return l.addSerial(d, now)
	}
	d.unit = l.unit(byte(o.unit()))
	d.unit.wake = o.wake()
	if o.Map.SunSpec() {
		j, err := l.search(d, now)
		if err == nil {
			l.jobs = append(l.jobs, j)
		}
		return err
	}
	for _, r := range o.Map.Plan(l.limits) {
		a, err := newAsk(packager(l.at.kind, d.unit.id), l.at.kind, d.unit.id, r.Table, r.Address, r.Count)
		if err != nil {
			return err
		}
		l.jobs = append(l.jobs, &job{dev: d, req: r, ask: a, due: now})
	}
	return nil
}

// unit returns what is known of an address.
func (l *Line) unit(id byte) *unit {
	u := l.units[id]
	if u == nil {
		u = &unit{id: id}
		l.units[id] = u
	}
	return u
}

// Run owns the line until ctx ends: it opens the port, opens it again when
// it was gone, polls or listens, and gives each group of readings to emit.
// A group is emit's from then on; it may put it back into Env.Groups. While emit
// blocks, the line waits, and polls are late or skipped and counted as such.
// Run finishes the exchange under way, closes the port and returns nil, also
// when Close was called; it returns an error only if the line was closed
// before or runs already.
func (l *Line) Run(ctx context.Context, emit func(*telemetry.Group)) error {
	l.mu.Lock()
	if l.running || l.closed {
		l.mu.Unlock()
		return &Error{Line: l.name, Op: "run", Code: "closed", What: "the line is closed or runs already", Err: ErrClosed}
	}
	l.running = true
	l.mu.Unlock()
	defer func() {
		l.takeBack()
		l.farewell()
		l.hangUp(nil)
		<-l.own
		l.mu.Lock()
		l.running = false
		l.mu.Unlock()
	}()
	defer context.AfterFunc(ctx, l.stir)()
	l.alarm.Reset(0)
	for first := true; ; {
		<-l.alarm.C
		l.news.Store(false)
		for {
			if ctx.Err() != nil || !l.take(ctx) {
				return nil
			}
			if l.isClosed() {
				<-l.own
				return nil
			}
			if first {
				l.begin(time.Now())
				first = false
			}
			var next time.Time
			if l.talkers {
				next = l.listen(ctx, emit)
			} else {
				next = l.turn(ctx, emit)
			}
			<-l.own
			if wait := time.Until(next); wait > 0 {
				l.alarm.Reset(wait)
				break
			}
		}
		if l.news.Load() { // it may have come before the alarm was set anew
			l.alarm.Reset(0)
		}
	}
}

// stir makes Run look again at once: the line is to end, or something is due
// that was not.
func (l *Line) stir() {
	l.news.Store(true)
	l.alarm.Reset(0)
}

// take waits until the caller owns the line, or ctx ends.
func (l *Line) take(ctx context.Context) bool {
	select {
	case l.own <- struct{}{}:
		return true
	default:
	}
	select {
	case l.own <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// group returns a group to fill, with room for n readings.
func (l *Line) group(at clock.Stamp, n int) *telemetry.Group {
	g := l.groups.Get().(*telemetry.Group)
	g.At, g.Readings = at, slices.Grow(g.Readings[:0], n)
	return g
}

// begin makes everything due at once: the first values come at the start, and
// the grid of the timetable from then on.
func (l *Line) begin(now time.Time) {
	for _, j := range l.jobs {
		j.due = now
	}
	for _, d := range l.devices {
		if d.talker != nil {
			d.talker.heard = now
		}
	}
}

// lookEvery is how often an idle line looks whether its port is still there,
// and how often it tries a port that is missing.
const lookEvery = 2 * time.Second

// turn does one thing that is due, if there is one, and returns when to come
// again. The caller owns the line.
func (l *Line) turn(ctx context.Context, emit func(*telemetry.Group)) time.Time {
	now := time.Now()
	l.look(now)
	if l.wire.st == nil && !now.Before(l.open.next) {
		l.ensureOpen(ctx)
		now = time.Now()
	}
	j, at := l.pick(now)
	if j != nil && !at.After(now) {
		l.serve(ctx, j, now, emit)
		now = time.Now()
		if j, at = l.pick(now); j != nil && !at.After(now) {
			return now
		}
	}
	next := now.Add(time.Hour)
	if j != nil {
		next = at
	}
	if l.wire.st == nil && l.open.next.Before(next) {
		next = l.open.next
	} else if l.at.serial && l.wire.st != nil && next.Sub(now) > lookEvery {
		next = now.Add(lookEvery)
	}
	if l.owed() {
		l.hear(next)
		return time.Now()
	}
	return next
}

// owed says whether a late answer may come.
func (l *Line) owed() bool {
	if l.at.kind == kindTCP || l.wire.st == nil {
		return false
	}
	for _, u := range l.units {
		if len(u.q.debts) > 0 && !u.br.open() {
			return true
		}
	}
	return false
}

// hearSlice is how long the line is listened to at a time while nobody has
// anything to ask.
const hearSlice = 50 * time.Millisecond

// hear listens for late answers. The caller owns the line.
func (l *Line) hear(until time.Time) {
	if most := time.Now().Add(hearSlice); most.Before(until) {
		until = most
	}
	if err := l.wire.hear(until); err != nil {
		l.hangUp(err)
	}
	l.publish(time.Now())
}

// look closes a port that has vanished while nobody used it.
func (l *Line) look(now time.Time) {
	if l.wire.st == nil || !l.at.serial || now.Sub(l.open.seen) < lookEvery {
		return
	}
	l.open.seen = now
	if err := l.wire.st.Alive(); err != nil {
		l.hangUp(err)
	}
}

// ensureOpen opens the line if it is not. The error is why it cannot.
func (l *Line) ensureOpen(ctx context.Context) error {
	if l.wire.st != nil {
		return nil
	}
	if l.isClosed() {
		return ErrClosed
	}
	st, err := l.dial(ctx)
	now := time.Now()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var e *Error
		if errors.As(err, &e) {
			e.Line = l.name
		}
		l.open.next = now.Add(l.reopenWait())
		l.setState("gone", err)
		l.open.err, l.open.gone = err, true
		return err
	}
	if l.opt.AfterConnect > 0 {
		pause(ctx, l.opt.AfterConnect)
		now = time.Now()
	}
	l.wire.attach(l.tapped(st), now)
	tellTaps(l.taps, "open", now, nil)
	l.open.good, l.open.missed, l.open.seen = 0, 0, now
	l.restart()
	l.setState("open", nil)
	if l.open.gone {
		// Whoever was given up while the line was away is asked at once.
		l.open.gone = false
		for _, u := range l.units {
			u.br.next = now
		}
		for _, j := range l.jobs {
			if errors.Is(j.failure, ErrGone) {
				j.due = now
			}
		}
		for _, d := range l.devices {
			l.relocate(d, now, reopenedAfter)
		}
	}
	return nil
}

// connect opens the port, or the connection.
func (l *Line) connect(ctx context.Context) (stream, error) {
	if l.at.serial {
		st, err := openPort(l.at.addr, l.mode, l.opt.RS485)
		if port, ok := st.(*portStream); ok && err == nil {
			if err = port.outputs(l.opt.DTR, l.opt.RTS); err != nil {
				port.Close()
				return nil, err
			}
		}
		return st, err
	}
	timeout := min(max(l.timeout, 3*time.Second), 10*time.Second)
	if l.at.secure {
		return dialTLS(ctx, l.at.addr, l.opt.TLS, timeout)
	}
	return dialTCP(ctx, l.at.addr, timeout)
}

// reopenWait returns how long to wait before the next attempt: a port is
// looked for twice in the time allowed, a host is tried at growing intervals
// up to 4 s, all with jitter.
func (l *Line) reopenWait() time.Duration {
	if l.at.serial {
		return time.Duration(float64(lookEvery) * (0.4 + 0.2*rand.Float64()))
	}
	l.open.wait = min(max(2*l.open.wait, 250*time.Millisecond), 4*time.Second)
	return time.Duration(float64(l.open.wait) * (0.75 + 0.5*rand.Float64()))
}

// hangUp closes the stream; the descriptor is free when it returns. A
// connection that has served before is opened again at once, any other after
// a pause. err nil means that nothing is wrong.
func (l *Line) hangUp(err error) {
	if l.wire.st == nil {
		return
	}
	l.wire.st.Close()
	l.wire.st = nil
	now := time.Now()
	tellTaps(l.taps, "gone", now, nil)
	if err == nil {
		l.open.next = now
		l.setState("idle", nil)
		return
	}
	e := &Error{Line: l.name, Op: "read", Code: "conn-closed", What: "the connection to " + l.at.addr + " broke", Err: err}
	if l.at.serial {
		e.Code, e.What = "adapter-gone", "serial port "+l.at.addr+" has vanished"
		e.Likely = "the adapter was pulled, or it lost its power"
	}
	if errors.Is(err, ErrUntrusted) {
		e.Code, e.What, e.Likely = "tls-refused", l.at.addr+" does not accept our certificate", untrusted
	}
	l.open.err, l.open.gone = e, true
	switch {
	case l.open.good > 0 && l.at.serial:
		l.open.next = now.Add(100 * time.Millisecond) // the node goes a moment after the adapter
	case l.open.good > 0:
		// It worked, and the next poll connects again at once: many devices
		// close a connection that is idle.
		l.open.next, l.open.wait, l.open.empty = now, 0, 0
		l.setState("idle", nil)
		return
	default:
		if l.open.empty++; l.open.empty >= 3 && !l.at.serial && !errors.Is(err, ErrTimeout) {
			e.Code = "tcp-one-client"
			e.Seen = fmt.Sprintf("%d connections in a row were accepted and closed without an answer", l.open.empty)
			e.Likely = "the device serves one master only, and another one is connected"
		}
		l.open.next = now.Add(l.reopenWait())
	}
	l.setState("gone", e)
}

// Close ends the use of the line: the port is closed, and Run, if it runs,
// returns. It waits for the exchange under way.
func (l *Line) Close() error {
	l.mu.Lock()
	if !l.closed {
		close(l.done)
	}
	l.closed = true
	l.mu.Unlock()
	l.stir()
	l.takeBack()
	defer func() { <-l.own }()
	l.farewell()
	l.hangUp(nil)
	return nil
}

func (l *Line) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// pause sleeps until d has passed or ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
