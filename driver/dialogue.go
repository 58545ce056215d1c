package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// dialogue is how a device on a serial line is asked. The line calls it at
// the slots of its timetable; it never touches the line but through the call.
type dialogue interface {
	// poll holds one round: it sends, reads what comes, and gives the
	// readings of each frame to c.emit. Every wait goes through c and ends at
	// a deadline. again > 0 ends the call, not the round: poll is called
	// again after that time, and the line serves others meanwhile (a device
	// that warms up). The error is one of ErrTimeout (not a byte came),
	// ErrShort, ErrCRC, ErrMismatch, ErrGone or an Exception, and what was
	// emitted before it stays.
	poll(c *call) (again time.Duration, err error)
	// reset forgets how far the device had been brought: the line was opened
	// anew, or a round has failed.
	reset()
}

// newDialogue chooses how a device is asked; nil if it talks by itself.
func newDialogue(d *device) (dialogue, error) {
	m := d.opt.Map
	switch {
	case m.Contacts():
		return newContacts(d), nil
	case m.MBus():
		return newMeterBus(d)
	case m.Handshake.Asks():
		return newReadout(d), nil
	case m.Polled():
		return newAskThenRead(d)
	}
	return nil, nil
}

// addSerial takes a device of a serial line into the timetable, or among
// those that are listened to.
func (l *Line) addSerial(d *device, now time.Time) error {
	talk, err := newDialogue(d)
	if err != nil {
		return err
	}
	if talk == nil {
		d.talker = newTalker(d, now)
		l.talkers = true
		return nil
	}
	if len(l.devices) > 255 {
		return errors.New("a line takes 255 devices")
	}
	d.unit = l.unit(byte(len(l.devices))) // of its own, whatever address it has
	j := &job{dev: d, due: now, talk: talk}
	for i := range d.opt.Map.Points {
		j.req.Points = append(j.req.Points, i)
	}
	l.jobs = append(l.jobs, j)
	return nil
}

// restart forgets what stood on the line before it was opened.
func (l *Line) restart() {
	for _, d := range l.devices {
		if d.talker != nil {
			d.talker.scan.Reset()
			d.talker.kept = time.Time{}
		}
	}
	for _, j := range l.jobs {
		if j.talk != nil {
			j.talk.reset()
			j.resume = time.Time{}
		}
	}
}

// converse lets a dialogue hold its round and draws the conclusions, as
// serve does for a Modbus block.
func (l *Line) converse(ctx context.Context, j *job, now time.Time, emit func(*telemetry.Group)) {
	d, u := j.dev, j.dev.unit
	late := j.resume.IsZero() && j.late(now)
	c := &call{ctx: ctx, line: l, dev: d, out: emit}
	again, err := time.Duration(0), l.still(j, now)
	if err == nil {
		again, err = l.round(j, c)
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return
		}
		l.heardFrom(u, c, err)
	}
	now2 := time.Now()
	if err == nil && again > 0 {
		j.resume = now2.Add(again)
		l.count(func(p *public) { p.busy += now2.Sub(now) })
		return
	}
	j.resume = time.Time{}
	if err != nil {
		j.talk.reset()
		l.fail(j, err, now2, emit)
	} else {
		j.failure = nil
		l.mu.Lock()
		d.stats.RTT = c.rtt
		l.mu.Unlock()
	}
	next, skipped := d.grid.after(j.due, now2)
	j.due, j.slot = next, next
	l.account(d, err, late, skipped, now2.Sub(now))
}

// round calls the dialogue. A panic in it is counted and logged and costs
// this round only.
func (l *Line) round(j *job, c *call) (again time.Duration, err error) {
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("a poll panicked", "device", j.dev.name, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			l.count(func(p *public) { p.panics++ })
			l.wire.dirty = true
			if c.changed {
				c.setMode(l.mode)
			}
			again, err = 0, fmt.Errorf("%w: the answer could not be decoded", ErrMismatch)
		}
	}()
	if err := l.ensureOpen(c.ctx); err != nil {
		return 0, err
	}
	again, err = j.talk.poll(c)
	if c.changed {
		c.setMode(l.mode)
	}
	if errors.Is(err, ErrGone) {
		l.hangUp(err)
	}
	return again, err
}

// Readout holds one round with a device that is asked in a dialogue of its
// own, such as a meter on an M-Bus, and gives the groups that come to emit:
// also those of other devices, which talk meanwhile. Like Exchange it waits
// its turn and opens the line if needed; a meter that begins at 300 baud may
// take minutes. rtt is how long the device took to begin an answer.
//
// Errors are *Error with facts and a hint; what came before one was emitted.
// It is an error (ErrRequest) to ask a device that talks by itself.
func (l *Line) Readout(ctx context.Context, name string, emit func(*telemetry.Group)) (rtt time.Duration, err error) {
	err = l.asTechnician(ctx, func() error {
		fail := func(err error) error {
			return &Error{Line: l.name, Device: name, Op: "read", Code: "request", Err: err}
		}
		if !l.take(ctx) {
			return fail(fmt.Errorf("the line is at work: %w", ctx.Err()))
		}
		defer func() { <-l.own }()
		if l.isClosed() {
			return &Error{Line: l.name, Device: name, Op: "read", Code: "closed", Err: ErrClosed}
		}
		i := slices.IndexFunc(l.jobs, func(j *job) bool { return j.talk != nil && j.dev.name == name })
		if i < 0 {
			return fail(fmt.Errorf("%w: %s is not asked, it talks by itself", ErrRequest, name))
		}
		j := l.jobs[i]
		c := &call{ctx: ctx, line: l, dev: j.dev, out: emit}
		again, err := l.round(j, c)
		for err == nil && again > 0 {
			if err = c.pause(again); err == nil {
				again, err = l.round(j, c)
			}
		}
		l.heardFrom(j.dev.unit, c, err)
		rtt = c.rtt
		if err == nil {
			return nil
		}
		j.talk.reset()
		if ctx.Err() != nil {
			return fail(err)
		}
		if errors.As(err, new(*Error)) {
			return err
		}
		return l.diagnose(j.dev, j.dev.unit, nil, err)
	})
	return rtt, err
}

// heardFrom notes whether a unit is there, after a round.
func (l *Line) heardFrom(u *unit, c *call, err error) {
	now := time.Now()
	u.asked += uint64(c.asked)
	u.bytes += uint64(c.bytes)
	switch {
	case err == nil && c.bytes > 0:
		l.spoke(u, now)
		u.heard, u.asked, u.bytes, u.bad = now, 0, 0, 0
		l.open.missed, l.open.wait = 0, 0
		if l.open.good++; l.open.good == 1 {
			l.proven(now)
		}
	case err == nil, c.asked == 0, errors.Is(err, ErrGone):
	case c.bytes > 0 && !errors.Is(err, ErrEcho) && !errors.Is(err, ErrTimeout): // damaged, or not what was wanted
		u.bad++
		l.spoke(u, now)
		l.open.missed = 0
		l.wire.dirty = true
	default:
		l.silent(u, now, now.Sub(c.began))
		l.wire.count.Timeouts++
		l.wire.dirty = true
		if l.open.missed++; !l.at.serial && l.open.missed >= 2 {
			l.hangUp(fmt.Errorf("%w: %w twice in a row", ErrGone, err))
		}
	}
	l.publish(now)
}

// call is one round with a device as its dialogue sees it.
type call struct {
	ctx     context.Context
	line    *Line
	dev     *device
	out     func(*telemetry.Group)
	began   time.Time // when the first request of the round went out
	sent    time.Time // when the last one did
	rtt     time.Duration
	asked   int // requests
	bytes   int // received since the first request
	changed bool
	scratch []telemetry.Reading
	at      []profile.Moment
}

// timeout is how long the device may take to begin its answer.
func (c *call) timeout() time.Duration { return c.dev.timeout }

// char is the time of one character on the line; 0 on networks.
func (c *call) char() time.Duration { return c.line.wire.char }

// write waits until the line is quiet and sends p. What is heard meanwhile
// belongs to no request: it is given to the devices that talk by themselves.
func (c *call) write(p []byte) error {
	w := &c.line.wire
	if err := c.quiet(); err != nil {
		return err
	}
	now := time.Now()
	if c.began.IsZero() {
		c.began = now
	}
	c.sent = now
	if err := w.st.WriteAll(p, now.Add(c.dev.timeout+w.char*time.Duration(len(p)))); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err) // half a request: the line is of no use
	}
	w.last = time.Now()
	w.count.Requests++
	w.count.BytesOut += uint64(len(p))
	c.asked++
	return nil
}

// quiet waits for the silence that the device wants before a request, and
// for a longer one after a disturbance: a late answer must not be taken for
// the next.
func (c *call) quiet() error {
	w := &c.line.wire
	gap := max(w.gap, c.dev.gap)
	if w.dirty {
		gap = max(gap, silent, w.char*7/2)
		w.last = time.Now()
	}
	give := time.Now().Add(gap + babble)
	if c.line.talkers {
		give = time.Now().Add(3 * gap) // they do not fall silent for us
	}
	for {
		now := time.Now()
		until := w.last.Add(gap)
		if now.After(give) {
			until = now // a device that never is silent: it talks by itself
		}
		n, err := w.st.ReadSome(w.buf[:], until)
		switch {
		case n > 0:
			c.line.overhear(w.buf[:n], time.Now(), c.out)
			if now.After(give) {
				w.dirty = false
				return c.ctx.Err()
			}
		case !errors.Is(err, ErrTimeout):
			return err
		case !until.After(time.Now()):
			w.dirty = false
			return c.ctx.Err()
		}
	}
}

// read waits for bytes until the deadline. They are valid until the next
// call of read or write. The error is ErrTimeout or wraps ErrGone.
func (c *call) read(until time.Time) ([]byte, error) {
	w := &c.line.wire
	n, err := w.st.ReadSome(w.buf[:], until)
	if err != nil {
		return nil, err
	}
	if c.bytes == 0 || c.rtt == 0 {
		c.rtt = time.Since(c.sent)
	}
	c.bytes += n
	c.line.overhear(w.buf[:n], time.Now(), c.out)
	return w.buf[:n], nil
}

// pause waits while nothing is to be said; short waits only: a longer one
// is what poll returns as again.
func (c *call) pause(d time.Duration) error {
	pause(c.ctx, d)
	return c.ctx.Err()
}

// emit gives the readings of one frame away, stamped with now: the end of
// the frame. decode appends them to dst.
func (c *call) emit(decode func(base uint32, dst []telemetry.Reading) []telemetry.Reading) {
	l := c.line
	c.scratch = decode(c.dev.opt.Base, c.scratch[:0])
	l.wire.count.Answers++
	l.tell(c.dev, c.scratch, nil, c.out)
}

// emitFrame is emit for a frame of the device's profile. Readings that the
// device has a time for come with that time.
func (c *call) emitFrame(raw []byte) {
	l := c.line
	c.scratch, c.at = c.dev.opt.Map.DecodeTimed(raw, c.dev.opt.Base, c.scratch[:0], c.at)
	l.wire.count.Answers++
	l.tell(c.dev, c.scratch, c.at, c.out)
}

// tell emits the readings of one frame, which ends now: a group for each
// record that was not told before. A good frame may speak of nothing we want.
func (l *Line) tell(d *device, all []telemetry.Reading, moments []profile.Moment, emit func(*telemetry.Group)) {
	at := l.clk.Stamp()
	lacks := d.unsent(all)
	profile.Groups(append(l.timed(d, all, moments, at, emit), lacks...), func(g []telemetry.Reading) {
		if !d.memory.New(g, d.opt.Base) {
			return
		}
		out := l.group(at, len(g))
		out.Readings = append(out.Readings, g...)
		emit(out)
	})
}

// unsent returns what is to be told of the points that a whole telegram does
// not hold: at once of those that have never come, and at the second telegram
// without it of one that has; once, until it comes or the device was away.
func (d *device) unsent(all []telemetry.Reading) (out []telemetry.Reading) {
	if !d.opt.Map.Whole() {
		return nil
	}
	if d.lacks == nil {
		d.lacks = bytes.Repeat([]byte{1}, len(d.opt.Map.Points))
	}
	for i := range d.lacks {
		d.lacks[i]++
	}
	for _, r := range all {
		d.lacks[r.Point-d.opt.Base] = 0
	}
	for i, n := range d.lacks {
		if n == 2 {
			out = append(out, telemetry.Reading{Point: d.opt.Base + uint32(i), Quality: telemetry.Fault, Cause: telemetry.CauseMarker})
		}
		d.lacks[i] = min(n, 3)
	}
	return out
}

// modeStream is a stream whose speed and format can be changed.
type modeStream interface{ SetMode(m lineMode) error }

// setMode changes speed and format of the line for the rest of the round.
// On networks it does nothing: the other side has to know.
func (c *call) setMode(m lineMode) error {
	st, ok := c.line.wire.st.(modeStream)
	if !ok {
		return nil
	}
	if err := st.SetMode(m); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	c.changed = m != c.line.mode
	c.line.wire.char = m.char()
	return nil
}
