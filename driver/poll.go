package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

// job is one block of one device: what is polled at one slot.
type job struct {
	dev     *device
	req     profile.Request
	ask     *ask
	due     time.Time
	failure error     // of the last poll, nil if it was good
	told    time.Time // when that failure was last emitted
	refused int       // how often in a row the device refused this address
	retry   time.Time // before it, a refused address is not asked again
	talk    dialogue  // of a device that is asked on a serial line; else nil
	resume  time.Time // when the round under way goes on; zero: no round is
}

const (
	// heartbeat is how often a lasting failure is said again.
	heartbeat = 60 * time.Second
	// retryFirst and retryHole are when a refused address is tried again:
	// once soon, because a device may refuse while it starts, then hourly.
	retryFirst = time.Minute
	retryHole  = time.Hour
)

// still returns why a job must fail without a word on the line, or nil.
func (l *Line) still(j *job, now time.Time) error {
	u := j.dev.unit
	switch {
	case l.wire.st == nil:
		if l.open.err != nil {
			return l.open.err
		}
		return ErrGone
	case j.refused > 0 && now.Before(j.retry):
		return Exception(2)
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
	late := now.Sub(j.due) > d.grid.lateAfter()
	var err error
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("a poll panicked", "device", d.name, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: the answer could not be decoded", ErrMismatch)
			l.count(func(p *public) { p.panics++ })
			j.failure, j.told = err, time.Now()
			l.wire.dirty = true
		}
		next, skipped := d.grid.after(j.due, time.Now())
		j.due = next
		l.account(d, err, late, skipped, time.Since(now))
	}()
	if err = l.still(j, now); err != nil {
		l.fail(j, err, now, emit)
		return
	}
	before := l.clk.Stamp()
	r, err2 := l.query(ctx, d.unit, j.ask, d.timeout, d.opt.Map.Gap)
	if err = err2; err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return
		}
		if errors.Is(err, Exception(2)) && l.refused(j, time.Now()) {
			err = nil // its points are asked apart at once
			return
		}
		l.fail(j, err, time.Now(), emit)
		return
	}
	l.group.At = midpoint(before, l.clk.Stamp())
	l.group.Readings = d.opt.Map.Decode(j.req, r.data, d.opt.Base, l.group.Readings[:0])
	j.failure, j.refused = nil, 0
	l.mu.Lock()
	d.stats.RTT = r.got.Sub(r.sent)
	l.mu.Unlock()
	emit(&l.group)
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
	l.group.At = l.clk.Stamp()
	l.group.Readings = l.group.Readings[:0]
	for _, i := range j.req.Points {
		l.group.Readings = append(l.group.Readings, telemetry.Reading{Point: j.dev.opt.Base + uint32(i), Quality: telemetry.Comm, Cause: cause})
	}
	emit(&l.group)
}

// refused deals with a device that refuses an address: a block of several
// points is halved, so that one bad address does not take the good ones with
// it; a single point is left alone for a while. It says whether the points
// are asked again at once.
func (l *Line) refused(j *job, now time.Time) bool {
	if len(j.req.Points) > 1 {
		if a, b, ok := l.halves(j); ok {
			i := slices.Index(l.jobs, j)
			l.jobs = slices.Insert(slices.Delete(l.jobs, i, i+1), i, a, b)
			return true
		}
	}
	j.refused++
	j.retry = now.Add(retryHole)
	if j.refused == 1 {
		j.retry = now.Add(retryFirst)
		var names []string
		for _, i := range j.req.Points {
			names = append(names, j.dev.opt.Map.Points[i].Name)
		}
		l.log.Warn("the device refuses an address", "device", j.dev.name, "points", strings.Join(names, " "),
			"table", j.req.Table.String(), "address", j.req.Address, "register", profile.ManualNumber(j.req.Table, j.req.Address))
	}
	return false
}

// halves makes two jobs of one, parted between two points.
func (l *Line) halves(j *job) (a, b *job, ok bool) {
	places := make(map[int]profile.Request, len(j.req.Points))
	for _, i := range j.req.Points {
		r, err := j.dev.opt.Map.PointRequest(i)
		if err != nil || r.Table != j.req.Table {
			return nil, nil, false
		}
		places[i] = r
	}
	sorted := slices.Clone(j.req.Points)
	slices.SortStableFunc(sorted, func(a, b int) int { return cmp.Compare(places[a].Address, places[b].Address) })
	mid := len(sorted) / 2
	var parts [2]*job
	for k, points := range [2][]int{sorted[:mid], sorted[mid:]} {
		lo, hi := 1<<16, 0
		for _, i := range points {
			r := places[i]
			lo, hi = min(lo, int(r.Address)), max(hi, int(r.Address)+int(r.Count))
		}
		req := profile.Request{Table: j.req.Table, Address: uint16(lo), Count: uint16(hi - lo), Points: points}
		ask, err := newAsk(packager(l.at.kind, j.ask.unit), l.at.kind, j.ask.unit, req.Table, req.Address, req.Count)
		if err != nil {
			return nil, nil, false
		}
		parts[k] = &job{dev: j.dev, req: req, ask: ask, due: j.due, failure: j.failure, told: j.told}
	}
	return parts[0], parts[1], true
}

// midpoint returns the instant between two stamps.
func midpoint(a, b clock.Stamp) clock.Stamp {
	b.Wall = a.Wall + (b.Wall-a.Wall)/2
	b.Mono = a.Mono + (b.Mono-a.Mono)/2
	b.Synced = a.Synced && b.Synced
	return b
}

// query asks a unit for a block and keeps account of what it owes. The line
// is opened if needed. The caller owns the line and has waited until the
// unit's quarantine is ready.
func (l *Line) query(ctx context.Context, u *unit, a *ask, timeout, gap time.Duration) (result, error) {
	if err := l.ensureOpen(ctx); err != nil {
		return result{}, err
	}
	if l.at.kind != kindTCP && u.q.barred(a) {
		if count, ok := u.q.barrier(a); ok {
			probe, err := newAsk(packager(l.at.kind, u.id), l.at.kind, u.id, profile.Table(a.fc), a.addr, count)
			if err != nil {
				return result{}, err
			}
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
	if err != nil && errors.Is(err, ErrGone) && !l.at.serial && used > 0 && r.bytes == 0 && l.wire.kind == kindTCP {
		// Many devices close an idle connection: that is no failed poll.
		if l.ensureOpen(ctx) == nil {
			return l.once(u, a, timeout, gap)
		}
	}
	return r, err
}

// once does one exchange and draws the conclusions for unit and connection.
func (l *Line) once(u *unit, a *ask, timeout, gap time.Duration) (result, error) {
	r, err := l.wire.do(a, timeout, gap)
	now := time.Now()
	u.asked++
	u.bytes += uint64(r.bytes)
	var x Exception
	refused := errors.As(err, &x)
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

// spoke notes that a unit is there. When the whole line was silent before,
// the others are tried again at once.
func (l *Line) spoke(u *unit, now time.Time) {
	if u.br.open() && l.alone(u) {
		for _, o := range l.units {
			o.br.next, o.br.backoff = now, min(o.br.backoff, backoffMin/2)
		}
		l.absent = now
	}
	u.br.spoke()
}

// silent notes that a unit did not answer, which took the line's time. All
// absent units together get a twentieth of it.
func (l *Line) silent(u *unit, now time.Time, cost time.Duration) {
	alone := l.alone(u)
	u.br.failed(now, alone, rand.Float64())
	if u.br.open() && !alone {
		l.absent = now.Add(19 * cost)
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
	u.q.heardLate(f.pdu.FunctionCode, int(f.pdu.Data[0]), now)
}
