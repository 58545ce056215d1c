package driver

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// talker is a device that talks by itself: its frames are cut from the
// bytes as they come.
type talker struct {
	scan    *profile.Scanner
	every   time.Duration
	heard   time.Time // last good frame, at first when the line was made
	gone    bool      // told that the line is gone
	quality telemetry.Quality
	cause   telemetry.Cause
	told    time.Time // when a failure was last emitted
	bad     uint64    // damaged frames already accounted for
	frame   []telemetry.Reading
	started time.Time // when init was sent last
	kept    time.Time // when init or keep was sent last; zero on a fresh line
	thinned time.Time // when a frame was told last
	at      []profile.Moment
}

func newTalker(d *device, now time.Time) *talker {
	return &talker{scan: d.opt.Map.NewScanner(), every: d.opt.every(), heard: now, quality: telemetry.Good}
}

// deadline is how long the device may be silent before its points are stale.
func (t *talker) deadline() time.Duration { return max(5*t.every, 30*time.Second) }

// stuck is how long a frame may pause: what is there after a longer silence
// is no frame, or not the beginning of one.
const stuck = 2 * time.Second

// listenSlice is how long one read waits: a stop is obeyed within it.
const listenSlice = 250 * time.Millisecond

// listen takes what the line says for one slice of time. The time of a group
// is the end of its frame. The caller owns the line.
func (l *Line) listen(ctx context.Context, emit func(*telemetry.Group)) time.Time {
	now := time.Now()
	l.look(now)
	if l.wire.st == nil && !now.Before(l.open.next) {
		l.ensureOpen(ctx)
		now = time.Now()
	}
	until := now.Add(listenSlice)
	if at := l.prompt(ctx, now); at.Before(until) {
		until = at
	}
	if j, at := l.pick(now); j != nil && !at.After(now) {
		l.serve(ctx, j, now, emit)
		now = time.Now()
		until = now // what has come meanwhile is taken all the same
	} else if j != nil && at.Before(until) {
		until = at
	}
	if l.wire.st == nil {
		for _, d := range l.devices {
			if d.talker != nil {
				l.failTalker(d, telemetry.Comm, telemetry.CauseGone, l.open.err, now, emit)
			}
		}
		return now.Add(max(min(time.Until(l.open.next), until.Sub(now)), time.Millisecond))
	}
	n, err := l.wire.st.ReadSome(l.wire.buf[:], until)
	now = time.Now()
	switch {
	case n > 0:
		if l.open.good++; l.open.good == 1 {
			l.proven(now)
		}
		l.overhear(l.wire.buf[:n], now, emit)
	case !errors.Is(err, ErrTimeout):
		l.hangUp(err)
	case now.Sub(l.wire.last) > stuck:
		for _, d := range l.devices {
			if d.talker != nil && d.talker.scan.Begun() {
				l.feed(d, nil, now, emit)
			}
		}
	}
	quiet := true
	for _, d := range l.devices {
		if d.talker == nil {
			quiet = quiet && d.unit.br.open()
			continue
		}
		l.overdue(d, now, emit)
		quiet = quiet && now.Sub(d.talker.heard) > 2*d.talker.deadline()
	}
	if quiet && !l.at.serial && now.Sub(l.open.seen) > 30*time.Second && l.wire.st != nil {
		// A peer that died without a word: only a new connection tells.
		l.hangUp(fmt.Errorf("%w: not a byte for a long time", ErrGone))
	}
	l.publish(now)
	return now
}

// overhear gives what came to all devices that talk by themselves.
func (l *Line) overhear(b []byte, now time.Time, emit func(*telemetry.Group)) {
	l.wire.last = now
	l.wire.count.BytesIn += uint64(len(b))
	for _, d := range l.devices {
		if d.talker != nil {
			l.feed(d, b, now, emit)
		}
	}
}

// feed gives bytes to a device's scanner and emits what it makes of them. No
// bytes mean that the line has been silent for long.
func (l *Line) feed(d *device, b []byte, now time.Time, emit func(*telemetry.Group)) {
	t := d.talker
	var panicked error
	func() {
		defer func() {
			if r := recover(); r != nil {
				l.log.Error("a frame panicked", "device", d.name, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
				l.count(func(p *public) { p.panics++ })
				t.scan = d.opt.Map.NewScanner()
				panicked = fmt.Errorf("%w: the frame could not be decoded", ErrMismatch)
			}
		}()
		take := func(raw []byte) {
			if d.foreign(raw) {
				l.wire.count.Stray++
				return
			}
			t.frame, t.at = d.opt.Map.DecodeTimed(raw, d.opt.Base, t.frame[:0], t.at)
			l.wire.count.Answers++
			t.heard, t.quality, t.told = now, telemetry.Good, time.Time{}
			l.account(d, nil, false, 0, 0)
			if thin := d.opt.Map.Frames.Thin; thin > 0 {
				if now.Sub(t.thinned) < thin {
					return
				}
				t.thinned = now
			}
			l.tell(d, t.frame, t.at, emit)
		}
		if t.scan.Feed(b, take); b == nil {
			t.scan.Flush(take)
		}
	}()
	if panicked != nil {
		l.account(d, panicked, false, 0, 0)
	}
	if bad := t.scan.Bad(); bad < t.bad {
		t.bad = bad
	} else if bad > t.bad {
		l.wire.count.CRC += bad - t.bad
		t.bad = bad
	}
}

// overdue says so when a device has been silent for too long, or has not
// spoken at all yet.
func (l *Line) overdue(d *device, now time.Time, emit func(*telemetry.Group)) {
	t := d.talker
	if now.Sub(t.heard) >= t.deadline() {
		cause := telemetry.CauseTimeout
		err := ErrTimeout
		if t.bad > 0 {
			cause, err = telemetry.CauseCRC, ErrCRC
		}
		l.failTalker(d, telemetry.Stale, cause, err, now, emit)
		return
	}
	l.mu.Lock()
	fresh := d.stats.Good == 0
	l.mu.Unlock()
	if fresh {
		l.failTalker(d, telemetry.Init, telemetry.CauseNotYet, nil, now, emit)
	}
}

// failTalker emits all points of a device without values: at a change, then
// at the heartbeat.
func (l *Line) failTalker(d *device, q telemetry.Quality, c telemetry.Cause, err error, now time.Time, emit func(*telemetry.Group)) {
	t := d.talker
	if t.quality == q && t.cause == c && now.Sub(t.told) < heartbeat {
		return
	}
	t.quality, t.cause, t.told = q, c, now
	clear(d.measured) // the next value is told, new or not
	d.lacks = nil
	g := l.group(l.clk.Stamp(), len(d.opt.Map.Points))
	for i := range d.opt.Map.Points {
		g.Readings = append(g.Readings, telemetry.Reading{Point: d.opt.Base + uint32(i), Quality: q, Cause: c})
	}
	if err != nil {
		l.account(d, err, false, 0, 0)
	}
	emit(g)
}
