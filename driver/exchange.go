package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidegate/driver/profile"
)

// Reply is what a unit answered to a technician.
type Reply struct {
	Data []byte        // register bytes, big endian as on the wire, or packed bits, LSB first
	RTT  time.Duration // from the request to the last byte of the answer
	Raw  []byte        // every byte that came, garbage and strays included
}

// Exchange reads count registers or bits of a unit, between two polls while
// Run runs and by itself otherwise; then it opens the line if needed and
// leaves it open. It waits its turn and, after a timeout, until late answers
// can no longer be mixed up: give ctx a deadline of some seconds. The
// exchange itself takes at most the timeout of the line or of the device
// with that unit. Technicians get at most a quarter of a running line's time.
//
// Errors are *Error with facts and a hint, also for a refusal by the device
// (code address or exception); Reply.Raw is filled all the same.
func (l *Line) Exchange(ctx context.Context, id uint8, t profile.Table, addr, count uint16) (Reply, error) {
	fail := func(err error) (Reply, error) {
		return Reply{}, &Error{Line: l.name, Op: "read", Code: "request", Err: err}
	}
	a, err := newAsk(packager(l.at.kind, id), l.at.kind, id, t, addr, count)
	if err != nil {
		return fail(err)
	}
	var reply Reply
	err = l.asTechnician(ctx, func() error {
		reply, err = l.request(ctx, "read", id, a)
		return err
	})
	return reply, err
}

// asTechnician calls f when no other technician is asking.
func (l *Line) asTechnician(ctx context.Context, f func() error) error {
	if err := l.lent("wait"); err != nil {
		return err
	}
	select {
	case l.asking <- struct{}{}:
	case <-ctx.Done():
		return &Error{Line: l.name, Op: "wait", Code: "request", Err: fmt.Errorf("another technician is asking: %w", ctx.Err())}
	}
	defer func() { <-l.asking }()
	return f()
}

// request makes one exchange between two polls. The caller is the only
// technician.
func (l *Line) request(ctx context.Context, op string, id uint8, a *ask) (Reply, error) {
	fail := func(err error) (Reply, error) {
		return Reply{}, &Error{Line: l.name, Op: op, Code: "request", Err: err}
	}
	if l.at.kind == kindListen {
		return fail(fmt.Errorf("%w: the devices of this line talk by themselves", ErrRequest))
	}
	if l.at.kind != kindTCP && (id == 0 || id > 247 && !l.has(int(id))) {
		return fail(fmt.Errorf("%w: unit %d is outside 1..247", ErrRequest, id))
	}
	for {
		if !l.take(ctx) {
			return fail(fmt.Errorf("the line is at work: %w", ctx.Err()))
		}
		if l.isClosed() {
			<-l.own
			return Reply{}, &Error{Line: l.name, Op: op, Code: "closed", Err: ErrClosed}
		}
		now := time.Now()
		ready := l.unit(id).q.ready(a)
		if !ready.After(now) && !l.techFree.After(now) {
			reply, err := l.exchange(ctx, op, id, a)
			<-l.own
			return reply, err
		}
		wait := l.techFree.Sub(now)
		switch {
		case !ready.After(now):
		case l.wire.st != nil:
			l.hear(ready)
		default:
			wait = max(wait, ready.Sub(now))
		}
		<-l.own
		pause(ctx, wait)
		if ctx.Err() != nil {
			return fail(fmt.Errorf("unit %d still owes an answer and must not be asked yet: %w", id, ctx.Err()))
		}
	}
}

// exchange asks at once. The caller owns the line.
func (l *Line) exchange(ctx context.Context, op string, id uint8, a *ask) (Reply, error) {
	began := time.Now()
	u := l.unit(id)
	timeout, gap := l.timeout, time.Duration(0)
	var d *device
	for _, x := range l.devices {
		if x.unit == u {
			d, timeout, gap = x, x.timeout, x.gap
			break
		}
	}
	l.wire.trace = make([]byte, 0, 64)
	r, err := l.query(ctx, u, a, timeout, gap)
	reply := Reply{Data: slices.Clone(r.data), Raw: l.wire.trace}
	l.wire.trace = nil
	if err == nil {
		reply.RTT = r.got.Sub(r.sent)
	}
	l.mu.Lock()
	if l.running {
		l.techFree = time.Now().Add(3 * time.Since(began))
	}
	l.public.busy += time.Since(began)
	l.mu.Unlock()
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			return reply, err
		}
		e = l.diagnose(d, u, a, err)
		e.Op = op
		return reply, e
	}
	return reply, nil
}

// has says whether a device of the configuration has this unit address.
func (l *Line) has(unit int) bool {
	for _, d := range l.devices {
		if d.opt.unit() == unit {
			return true
		}
	}
	return false
}
