package driver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Stats is what a line can tell about itself. Counters start with the line.
type Stats struct {
	Name    string
	Connect string
	State   string    // idle (not opened yet, stopped, or closed by the peer between two polls), open, gone
	Since   time.Time // of that state
	Err     error     // why it is gone, an *Error; else nil
	Opened  uint64    // how often the line was opened
	Load    float64   // share of the time the line is at work, over the last 10 to 20 s
	Panics  uint64    // polls that panicked
	Lease   *Lease    // to whom the line is lent; nil: to nobody

	Requests, Answers, Timeouts uint64
	CRC, Stray, Echoes, Garbage uint64 // damaged answers, frames not ours, our own requests, bytes in no frame
	BytesIn, BytesOut           uint64
	Devices                     []DeviceStats
}

// DeviceStats is what a line can tell about one device. A poll is one block
// at one slot of the timetable; of a device that talks, one frame.
type DeviceStats struct {
	Name     string
	Unit     int
	Every    time.Duration
	State    string    // init, ok, failing, absent, gone, stale
	LastGood time.Time // zero: never
	LastErr  error     // of the failure that lasts, or the last one; nil: never
	Cause    string    // its cause as readings carry it
	ErrSince time.Time // of the first failure of the row, zero while all is well
	Row      int       // failures in a row
	RTT      time.Duration
	Polls    uint64 // slots that were served
	Good     uint64 // with an answer
	Failed   uint64 // without
	Late     uint64 // begun more than a tenth of the period (at least 20 ms) too late, blocks of the device itself before it not counted
	Skipped  uint64 // slots that passed before there was time for them
	Holes    []Hole // points that it refuses or is silent to; not to be changed
}

// public is what Stats reads of the line, guarded by Line.mu.
type public struct {
	state  string
	since  time.Time
	err    error
	opened uint64
	panics uint64
	count  counters

	busy   time.Duration // since window
	window time.Time
	before time.Duration // busy in the window before
	length time.Duration // of that; 0: there was none yet
}

// loadWindow is how long a window of the load is, at least.
const loadWindow = 10 * time.Second

// Stats returns a copy of the line's counters and states.
func (l *Line) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, now := &l.public, time.Now()
	p.roll(now)
	s := Stats{Name: l.name, Connect: l.opt.Connect, State: p.state, Since: p.since, Err: p.err, Opened: p.opened,
		Load: p.load(now), Panics: p.panics, Requests: p.count.Requests, Answers: p.count.Answers, Timeouts: p.count.Timeouts,
		CRC: p.count.CRC, Stray: p.count.Stray, Echoes: p.count.Echoes, Garbage: p.count.Garbage,
		BytesIn: p.count.BytesIn, BytesOut: p.count.BytesOut}
	if l.leased != nil {
		lent := l.leased.Lease
		s.Lease = &lent
	}
	s.Devices = make([]DeviceStats, 0, len(l.devices))
	for _, d := range l.devices {
		s.Devices = append(s.Devices, d.stats)
	}
	return s
}

// roll closes a window of the load.
func (p *public) roll(now time.Time) {
	if p.window.IsZero() {
		p.window = now
	}
	if past := now.Sub(p.window); past >= loadWindow {
		p.before, p.length = p.busy, past
		p.busy, p.window = 0, now
	}
}

// load is taken over the last window and what there is of the present one.
func (p *public) load(now time.Time) float64 {
	past := p.length + now.Sub(p.window)
	if past <= 0 {
		return 0
	}
	return min(float64(p.before+p.busy)/float64(past), 1)
}

// count changes the public figures.
func (l *Line) count(f func(*public)) {
	l.mu.Lock()
	f(&l.public)
	l.mu.Unlock()
}

// publish copies the owner's counters to where Stats may read them.
func (l *Line) publish(now time.Time) {
	l.mu.Lock()
	l.public.count = l.wire.count
	l.public.roll(now)
	l.mu.Unlock()
}

// setState notes a change of the line: open, gone, idle. It logs when the
// line is first open and when it is gone for a new reason; "back" is said by
// proven, because a peer may accept a connection and mean nothing by it.
func (l *Line) setState(state string, err error) {
	now := time.Now()
	l.mu.Lock()
	first := false
	if state == "open" {
		l.public.opened++
		first = l.public.opened == 1
	}
	if state == "gone" && l.trouble.IsZero() {
		l.trouble = now
	}
	l.public.err = err
	if state != l.public.state {
		l.public.state, l.public.since = state, now
	}
	l.mu.Unlock()
	switch {
	case state == "gone" && code(err) != l.warned:
		l.warned = code(err)
		l.log.Warn(err.Error(), withSeen(l.warned, seen(err))...)
	case first && l.warned == "":
		l.log.Info("the line is open", "connect", l.opt.Connect)
	}
	if state == "open" && l.at.serial {
		l.proven(now)
	}
}

// proven notes that the line works, and says so if it had been gone.
func (l *Line) proven(now time.Time) {
	if l.warned != "" {
		l.warned = ""
		l.log.Info("the line is back", "after", now.Sub(l.trouble).Round(time.Millisecond))
	}
	l.trouble = time.Time{}
}

func code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func seen(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Seen
	}
	return ""
}

// account notes what came of a poll of a device and logs changes: a device
// fails once two polls in a row have failed.
func (l *Line) account(d *device, err error, late bool, skipped int, took time.Duration) {
	now := time.Now()
	var failing, recovered, changed bool
	var since time.Time
	var polls int
	l.mu.Lock()
	s := &d.stats
	l.public.busy += took
	s.Polls++
	s.Skipped += uint64(skipped)
	if late {
		s.Late++
	}
	if err == nil {
		recovered, since, polls = d.warned, s.ErrSince, s.Row
		s.Good++
		s.State, s.LastGood, s.Row, s.ErrSince, s.Cause = "ok", now, 0, time.Time{}, ""
		d.warned = false
	} else {
		if s.Row++; s.Row == 1 {
			s.ErrSince = now
		}
		s.Failed++
		cause := causeOf(err).String()
		changed = cause != s.Cause
		s.Cause = cause
		switch {
		case errors.Is(err, ErrGone), errors.Is(err, ErrClosed):
			s.State, s.LastErr, changed = "gone", err, false
		case errors.Is(err, ErrAbsent):
			s.State, changed = "absent", false // LastErr stays what it was, with its facts
		case d.talker != nil:
			s.State = "stale"
		case s.Row > 1:
			s.State = "failing"
		}
		if !d.warned && (s.State == "failing" || s.State == "stale") {
			failing, d.warned = true, true
		}
	}
	l.mu.Unlock()
	if failing || changed {
		e := l.diagnose(d, d.unit, nil, err)
		l.count(func(*public) { d.stats.LastErr = e })
		if failing {
			l.log.Warn(e.Error(), withSeen(e.Code, e.Seen)...)
		}
	}
	if recovered {
		l.log.Info("the device answers again", "device", d.name, "after", now.Sub(since).Round(time.Millisecond), "failed", polls)
	}
}

// diagnose turns a failure into what a person can act on. Facts only: what
// is likely follows from bytes seen and from the neighbours. The caller owns
// the line; d is nil for a unit of no device, u for a device that talks.
func (l *Line) diagnose(d *device, u *unit, a *ask, err error) *Error {
	e := &Error{Line: l.name, Op: "read", Err: err}
	if d != nil {
		e.Device = d.name
	} else if u != nil {
		e.Device = fmt.Sprintf("unit %d", u.id)
	}
	var x Exception
	switch {
	case errors.As(err, &x):
		e.Code, e.What = "exception", fmt.Sprintf("the device says %q", exceptionName(x))
		if x == 2 {
			e.Code = "address"
			e.Likely = "the manual counts from 1: what it calls 1, 30001 or 40001 is address 0 on the wire"
		}
		if a != nil {
			e.Seen = fmt.Sprintf("function %d, address %d, count %d", a.fc, a.addr, a.count)
			if x == 2 && a.fc >= 1 && a.fc <= 4 && a.addr > 0 {
				table := [...]string{"coil", "discrete", "holding", "input"}[a.fc-1]
				e.Try = fmt.Sprintf("tidegate read %s --unit %d %s:%d+%d --as all", l.name, a.unit, table, a.addr-1, a.count)
			}
		}
		return e
	case u == nil:
		e.Code, e.What = "device-silent", "no frame for a long time"
		if errors.Is(err, ErrCRC) {
			e.Code, e.What = "line-settings", "bytes come, but no readable frame"
		}
		e.Seen = fmt.Sprintf("%d bytes, %d damaged frames, line %s", l.wire.count.BytesIn, l.wire.count.CRC, l.settings())
		return e
	case errors.Is(err, ErrNoLines):
		e.Code, e.What = "no-modem-lines", l.at.addr+" has no modem lines"
		e.Likely = "a pseudo terminal, or an adapter that brings out RX and TX alone"
		e.Try = "use a port with CTS, DSR, RI and DCD"
		return e
	case errors.Is(err, ErrUntrusted):
		e.Code, e.What, e.Likely = "tls-refused", ErrUntrusted.Error(), untrusted
		return e
	case errors.Is(err, ErrGone):
		e.Code = "conn-closed"
		return e
	}
	facts := number(u.asked, "request") + ", " + number(u.bytes, "byte") + " back"
	others := l.neighbours(u)
	switch {
	case errors.Is(err, ErrEcho):
		e.Code, e.What = "echo", "only our own bytes come back"
		e.Seen = fmt.Sprintf("%s, %d echoes", facts, l.wire.count.Echoes)
		e.Likely = "the adapter hears itself, and the device is silent"
		e.Try = "check unit, power and wires of the device; an echo alone does no harm"
	case u.bytes == 0 && others != "":
		e.Code, e.What = "unit-silent", "no answer"
		e.Seen = facts + "; " + others + " on the same bus"
		e.Likely = "1 the device has another unit id   2 it has no power   3 its branch is open\n(wiring of the bus and line settings are fine: others answer)"
		e.Try = l.scanFor(d)
	case u.bytes == 0 && !l.at.serial && l.at.kind == kindTCP:
		e.Code, e.What = "unit-silent", "no answer"
		e.Seen = facts + "; the connection stands"
		e.Likely = "1 another unit id   2 a device behind the gateway has no power   3 the timeout is too short"
		e.Try = l.scanFor(d) + " --ids 1-247"
	case u.bytes == 0:
		e.Code, e.What = "bus-silent", "nothing comes back on this bus"
		e.Seen = facts + "; no other unit answers here; line " + l.settings()
		e.Likely = "1 no power at the devices   2 wires open or exchanged   3 the adapter does not switch to sending\n4 another address, or another setting of the line"
		e.Try = l.scanFor(d)
	case errors.Is(err, ErrMismatch):
		e.Code, e.What = "mismatch", "answers came, but none to this request"
		e.Seen = fmt.Sprintf("%s, %d frames of others", facts, l.wire.count.Stray)
		e.Likely = "another master on the bus, or a device that answers wrongly"
	case errors.Is(err, ErrShort):
		e.Code, e.What = "short", "the answer broke off"
		e.Seen = facts
	case errors.Is(err, ErrCRC) && others == "" && u.heard.IsZero():
		e.Code, e.What = "line-settings", "answer is not readable"
		e.Seen = fmt.Sprintf("%s, 0 valid checksums; line %s", facts, l.settings())
		e.Likely = "the device talks at another speed or parity"
		if e.Try = l.scanFor(d); l.at.kind != kindListen {
			e.Try += fmt.Sprintf(" --ids %d", u.id)
		}
	case errors.Is(err, ErrCRC):
		e.Code, e.What = "damaged", "damaged answers"
		e.Seen = fmt.Sprintf("%s, %d damaged", facts, u.bad)
		e.Likely = "noise on the line, a missing terminator, or two devices with this unit id"
	default:
		e.Code, e.What, e.Seen = "unit-silent", "no answer in time", facts
	}
	return e
}

// scanFor is the command that looks for a device on this line; "" if a scan
// cannot find devices of its kind.
func (l *Line) scanFor(d *device) string {
	switch {
	case l.at.kind != kindListen:
		return "tidegate scan " + l.name
	case d != nil && d.opt.Map.MBus():
		return "tidegate scan " + l.name + " --mbus"
	}
	return ""
}

// number writes a count with its noun.
func number[N uint64 | int](n N, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// settings returns the line settings as people write them.
func (l *Line) settings() string {
	if !l.at.serial {
		return l.at.addr
	}
	return fmt.Sprintf("%d %d%c%d", l.mode.mode.BaudRate, l.mode.mode.DataBits, "NOEMS"[l.mode.mode.Parity], 1+int(l.mode.mode.StopBits)/2)
}

// neighbours names the other units that answered lately; of serial devices,
// which have addresses of many kinds, the devices.
func (l *Line) neighbours(u *unit) string {
	var ids []int
	var last time.Time
	for _, o := range l.units {
		if o != u && !o.heard.IsZero() && time.Since(o.heard) < 10*time.Minute {
			ids = append(ids, int(o.id))
			if o.heard.After(last) {
				last = o.heard
			}
		}
	}
	if len(ids) == 0 {
		return ""
	}
	slices.Sort(ids)
	if l.at.kind == kindListen {
		var names []string
		for _, d := range l.devices {
			if d.unit != nil && slices.Contains(ids, int(d.unit.id)) && len(names) < 4 {
				names = append(names, d.name)
			}
		}
		return fmt.Sprintf("%s answered %v ago", strings.Join(names, ", "), time.Since(last).Round(time.Millisecond))
	}
	word := "units"
	if len(ids) == 1 {
		word = "unit"
	}
	return fmt.Sprintf("%s %s answered %v ago", word, list(ids), time.Since(last).Round(time.Millisecond))
}

func list(ids []int) string {
	s := ""
	for i, id := range ids {
		switch {
		case i == 8:
			return s + " and others"
		case i > 0:
			s += ", "
		}
		s += fmt.Sprint(id)
	}
	return s
}

func exceptionName(x Exception) string {
	if int(x) < len(exceptionNames) && exceptionNames[x] != "" {
		return exceptionNames[x]
	}
	return x.Error()
}

// withSeen is what a log line says beside the message.
func withSeen(code, seen string) []any {
	if seen == "" {
		return []any{"code", code}
	}
	return []any{"code", code, "seen", seen}
}
