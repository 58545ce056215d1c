package driver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// job is one block of one device: what is polled at one slot.
type job struct {
	dev     *device
	req     profile.Request
	ask     *ask
	due     time.Time
	slot    time.Time // due, if that is of the timetable
	failure error     // of the last poll, nil if it was good
	told    time.Time // when that failure was last emitted
	talk    dialogue  // of a device that is asked on a serial line; else nil
	resume  time.Time // when the round under way goes on; zero: no round is

	good   bool      // it was answered at least once
	fork   *fork     // it is part of a search for what a device refuses
	hole   *hole     // its points are not there
	search bool      // it finds the models of a SunSpec device
	mute   int       // how often it was met with silence, while never answered
	muted  time.Time // the first time
	probes int       // canaries sent
}

// heartbeat is how often a lasting failure is said again.
const heartbeat = 60 * time.Second

// still returns why a job must fail without a word on the line, or nil.
func (l *Line) still(j *job, now time.Time) error {
	u := j.dev.unit
	switch {
	case l.wire.st == nil:
		if l.open.err != nil {
			return l.open.err
		}
		return ErrGone
	case u.br.open() && (now.Before(u.br.next) || now.Before(l.absent)):
		return ErrAbsent
	}
	return nil
}

// pick returns the job to serve next and when: of those that may go now the
// one whose period ends first, else the one that may go first.
func (l *Line) pick(now time.Time) (best *job, at time.Time) {
	var bestEnd, soon time.Time
	var soonest *job
	for _, j := range l.jobs {
		t := j.due
		if !j.resume.IsZero() {
			t = j.resume
		}
		if best != nil && t.After(now) {
			continue
		}
		if l.at.kind != kindTCP && len(j.dev.unit.q.debts) > 0 || j.dev.unit.q.grace.After(t) {
			if r := j.dev.unit.q.ready(j.ask); r.After(t) && l.still(j, now) == nil {
				t = r
			}
		}
		if t.After(now) {
			if soonest == nil || t.Before(soon) {
				soonest, soon = j, t
			}
			continue
		}
		if end := j.due.Add(time.Duration(j.dev.grid.every)); best == nil || end.Before(bestEnd) {
			best, bestEnd = j, end
		}
	}
	if best != nil {
		return best, now
	}
	return soonest, soon
}

// serve polls one job and moves it to its next slot. A panic in it is
// counted and logged and costs this poll only.
func (l *Line) serve(ctx context.Context, j *job, now time.Time, emit func(*telemetry.Group)) {
	if j.talk != nil {
		l.converse(ctx, j, now, emit)
		return
	}
	d := j.dev
	if j.hole != nil && now.Before(j.hole.retry) {
		l.fail(j, j.hole.err, now, emit)
		j.rest(now)
		return
	}
	late := j.hole == nil && j.late(now)
	again, counted := false, true // asked once more at once; as a poll
	var err error
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("a poll panicked", "device", d.name, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: the answer could not be decoded", ErrMismatch)
			l.count(func(p *public) { p.panics++ })
			j.failure, j.told = err, time.Now()
			l.wire.dirty = true
		}
		now2 := time.Now()
		next, skipped := d.grid.after(j.due, now2)
		switch {
		case again:
		case j.hole != nil:
			j.rest(now2)
		default:
			j.due, j.slot = next, next
		}
		d.served = now2
		if again || !counted {
			l.count(func(p *public) { p.busy += now2.Sub(now) })
		} else {
			l.account(d, err, late, skipped, now2.Sub(now))
		}
		if again {
			return
		}
		l.learn(j, err, now2)
	}()
	if err = l.still(j, now); err != nil {
		l.fail(j, err, now, emit)
		return
	}
	if j.search {
		again, err = l.locate(ctx, j, now, emit)
		return
	}
	if a := j.canary(l); a != nil {
		again, err = l.probe(ctx, j, a, now, emit)
		return
	}
	r, err2 := l.query(ctx, d.unit, j.ask, d.timeout, d.gap)
	if err = err2; err != nil {
		now = time.Now()
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return
		}
		if errors.Is(err, Exception(2)) && l.relocate(d, now, refusedAfter) {
			again = true // it is another device, or has other models by now
			return
		}
		silent, yes := j.suspect(err, r, now)
		if again = yes && l.part(j, silent, err, now); again {
			return // its halves are asked
		}
		if j.hole != nil {
			if counted = j.hole.tries == 1; !yes { // it was asked again, and something else went wrong
				j.hole.retry = now.Add(retryFirst)
			}
		}
		l.fail(j, err, now, emit)
		return
	}
	g := l.group(l.clk.Stamp().Before(r.got.Sub(r.sent)/2), len(j.req.Points)) // the middle of request and answer
	g.Readings = d.model().Decode(j.req, r.data, d.opt.Base, g.Readings)
	j.failure, j.good = nil, true
	l.mu.Lock()
	d.stats.RTT = r.got.Sub(r.sent)
	l.mu.Unlock()
	counted = j.hole == nil
	emit(g)
}

// probe asks an absent unit for a part of a block it never answered. If it is
// there, the whole block is asked at once, and parted if it stays without an
// answer.
func (l *Line) probe(ctx context.Context, j *job, a *ask, now time.Time, emit func(*telemetry.Group)) (again bool, err error) {
	var x Exception
	_, err = l.query(ctx, j.dev.unit, a, j.dev.timeout, j.dev.gap)
	switch {
	case err == nil, errors.As(err, &x) && x != 10 && x != 11:
		j.mute, j.muted = max(j.mute, 1), now
		return true, nil
	case ctx.Err() == nil || !errors.Is(err, ctx.Err()):
		l.fail(j, err, time.Now(), emit)
	}
	return false, err
}

// fail emits the points of a job with the cause and without values: when the
// cause is new, and from then on at the heartbeat.
func (l *Line) fail(j *job, err error, now time.Time, emit func(*telemetry.Group)) {
	cause := causeOf(err)
	if j.failure != nil && causeOf(j.failure) == cause && now.Sub(j.told) < heartbeat {
		j.failure = err
		return
	}
	j.failure, j.told = err, now
	clear(j.dev.measured)
	j.dev.lacks = nil
	g := l.group(l.clk.Stamp(), len(j.req.Points))
	for _, i := range j.req.Points {
		g.Readings = append(g.Readings, telemetry.Reading{Point: j.dev.opt.Base + uint32(i), Quality: telemetry.Comm, Cause: cause})
	}
	emit(g)
}

// query asks a unit for a block and keeps account of what it owes. The line
// is opened if needed. The caller owns the line and has waited until the
// unit's quarantine is ready.
func (l *Line) query(ctx context.Context, u *unit, a *ask, timeout, gap time.Duration) (*result, error) {
	if err := l.ensureOpen(ctx); err != nil {
		return l.wire.fresh(), err
	}
	if l.at.kind != kindTCP && a.reads() && u.q.barred(a) {
		if probe := l.barrier(u, a); probe != nil {
			r, err := l.once(u, probe, timeout, gap)
			var x Exception
			if err != nil && !errors.As(err, &x) {
				if !r.sent.IsZero() {
					u.q.unheard(r.sent, timeout)
				}
				return r, err
			}
		}
	}
	used := l.open.good
	r, err := l.once(u, a, timeout, gap)
	if err != nil && errors.Is(err, ErrGone) && a.reads() && !l.at.serial && used > 0 && r.bytes == 0 && l.wire.kind == kindTCP {
		// Many devices close an idle connection: that is no failed poll.
		if l.ensureOpen(ctx) == nil {
			return l.once(u, a, timeout, gap)
		}
	}
	return r, err
}

// barrier returns a request of a shape that the unit owes no answer of: a
// part of a, or what is polled of the unit anyway, or the registers behind,
// where the device does not forbid them. It is nil if there is none.
func (l *Line) barrier(u *unit, a *ask) *ask {
	of := func(count uint16) *ask {
		b, err := newAsk(packager(l.at.kind, u.id), l.at.kind, u.id, profile.Table(a.fc), a.addr, count)
		if err != nil {
			return nil
		}
		return b
	}
	if count, ok := u.q.barrier(a); ok {
		return of(count)
	}
	var dev *device
	for _, j := range l.jobs {
		if j.dev.unit != u || j.talk != nil {
			continue
		}
		dev = j.dev
		if j.good && j.hole == nil && !u.q.owes(j.ask.fc, j.ask.body) {
			return j.ask
		}
	}
	for n := uint16(1); n <= 4; n++ {
		count := a.count + n
		if profile.Table(a.fc).Bits() {
			count = a.count + 8*n
		}
		lo, hi := int(a.addr), int(a.addr)+int(count)
		if hi > 1<<16 || count > 100 || dev != nil && dev.model().Forbids(profile.Table(a.fc), lo, hi) {
			break
		}
		if !u.q.owes(a.fc, shape(a.fc, count)) {
			return of(count)
		}
	}
	return nil
}

// once does one exchange and draws the conclusions for unit and connection.
func (l *Line) once(u *unit, a *ask, timeout, gap time.Duration) (*result, error) {
	r, err := l.wire.fresh(), error(nil)
	if u.wake != nil && l.at.kind != kindTCP && time.Since(u.touched) >= u.wake.Idle {
		if err = l.wire.wake(u.wake.Bytes, gap); gap < u.wake.Pause {
			gap = u.wake.Pause
		}
	}
	if err == nil {
		r, err = l.wire.do(a, timeout, gap)
	}
	now := time.Now()
	u.touched = now
	u.asked++
	u.bytes += uint64(r.bytes)
	x, refused := exceptionOf(err)
	switch {
	case err == nil, refused && x != 10 && x != 11:
		u.q.answered(a, now)
		l.spoke(u, now)
		u.heard, u.asked, u.bytes, u.bad = now, 0, 0, 0
		l.open.missed, l.open.wait = 0, 0
		if l.open.good++; l.open.good == 1 {
			l.proven(now)
		}
	case refused: // a gateway says that the unit is not there
		u.q.answered(a, now)
		l.silent(u, now, now.Sub(r.sent))
		l.open.good++
		l.open.missed = 0
	case r.answered: // damaged on the way
		u.bad++
		l.spoke(u, now)
		l.open.missed = 0
	case r.sent.IsZero(): // never asked
	default:
		if l.at.kind != kindTCP {
			u.q.missed(a, r.sent, timeout, now)
		}
		l.silent(u, now, now.Sub(r.sent))
		l.open.missed++
	}
	switch {
	case err == nil, refused:
	case errors.Is(err, ErrGone):
		l.hangUp(err)
	case r.torn || l.at.kind == kindTCP && errors.Is(err, ErrShort):
		// What is missing would be taken from the next answer.
		l.hangUp(fmt.Errorf("%w: %w", ErrGone, err))
	case !l.at.serial && l.open.missed >= 2:
		l.hangUp(fmt.Errorf("%w: %w twice in a row", ErrGone, err))
	}
	l.publish(now)
	return r, err
}

// spoke notes that a unit is there. When it was taken for absent, the other
// absent units are tried again at once, one after the other as long as they
// answer: often a whole branch comes back, or the whole cabinet starts.
func (l *Line) spoke(u *unit, now time.Time) {
	if u.br.open() {
		alone := l.alone(u)
		for _, o := range l.units {
			o.br.next = now
			if alone {
				o.br.backoff = min(o.br.backoff, backoffMin/2)
			}
		}
		l.absent = now
	}
	u.br.spoke()
}

// silent notes that a unit did not answer, which took the line's time. All
// absent units together get a fortieth of it.
func (l *Line) silent(u *unit, now time.Time, cost time.Duration) {
	alone := l.alone(u)
	wait := patience
	switch {
	case u.searching:
		wait = searchPatience
	case u.heard.IsZero() && !alone:
		wait = patience - 1 // never heard, while others are
	}
	u.br.failed(now, alone, wait, rand.Float64())
	if u.br.open() && !alone {
		l.absent = now.Add((absentShare - 1) * cost)
	}
}

// alone says whether no unit but u answers on this line.
func (l *Line) alone(u *unit) bool {
	for _, o := range l.units {
		if o != u && !o.br.open() && !o.heard.IsZero() {
			return false
		}
	}
	return true
}

// heardStray is told of frames that nobody waited for: a late answer pays a debt.
func (l *Line) heardStray(f frame, now time.Time) {
	u := l.units[f.unit]
	if u == nil || len(f.pdu.Data) == 0 {
		return
	}
	u.q.heardLate(f.pdu.FunctionCode, f.shape(), now)
}
