package driver

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Lease says to whom a line is lent: nobody else, polls included, uses it
// until then.
type Lease struct {
	By           string // what it is lent for, such as scan
	Since, Until time.Time
}

// lease is a Lease and the way to end it.
type lease struct {
	Lease
	end context.CancelCauseFunc
}

var (
	errLeaseOver = errors.New("the time of the lease is over")
	errReclaimed = fmt.Errorf("%w: its owner wants it back", ErrClosed)
)

// lend waits for the exchange under way and gives the whole line away. The
// lease ends when back is called, which must be done once ctx has ended: that
// is when the caller's own context ends, after most, when Run is stopped, or
// when the line is closed. The polls that fall into it are skipped and
// counted as such.
func (l *Line) lend(ctx context.Context, by string, most time.Duration) (_ context.Context, back func(), err error) {
	fail := func(err error) (context.Context, func(), error) {
		return nil, nil, &Error{Line: l.name, Op: by, Code: "bus-leased", Err: err}
	}
	if e := l.lent(by); e != nil {
		return nil, nil, e
	}
	select {
	case l.asking <- struct{}{}:
	case <-ctx.Done():
		return fail(ctx.Err())
	}
	defer func() { <-l.asking }()
	if !l.take(ctx) {
		return fail(ctx.Err())
	}
	now := time.Now()
	ctx, end := context.WithCancelCause(ctx)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.own
		end(nil)
		return nil, nil, &Error{Line: l.name, Op: by, Code: "closed", Err: ErrClosed}
	}
	l.leased = &lease{Lease{by, now, now.Add(most)}, end}
	l.mu.Unlock()
	over := time.AfterFunc(most, func() { end(errLeaseOver) })
	return ctx, func() {
		over.Stop()
		end(nil)
		l.mu.Lock()
		l.leased = nil
		l.mu.Unlock()
		now := time.Now()
		l.open.next = now
		for _, d := range l.devices {
			if d.talker != nil {
				d.talker.heard = now // nobody listened
			}
		}
		<-l.own
	}, nil
}

// takeBack owns the line, whoever has it on lease: he gives it back after the
// exchange under way.
func (l *Line) takeBack() {
	for {
		l.mu.Lock()
		if l.leased != nil {
			l.leased.end(errReclaimed)
		}
		l.mu.Unlock()
		select {
		case l.own <- struct{}{}:
			return
		case <-time.After(50 * time.Millisecond): // a lease may have begun meanwhile
		}
	}
}

// lent returns an error that tells how long the line is lent; nil if it is not.
func (l *Line) lent(op string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leased == nil {
		return nil
	}
	left := time.Until(l.leased.Until).Round(time.Second)
	return &Error{Line: l.name, Op: op, Code: "bus-leased", What: fmt.Sprintf("the line is lent to %s for at most another %v", l.leased.By, max(left, 0)),
		Try: "wait until it is back, or end the " + l.leased.By, Err: ErrBusy}
}

// Scan is the function Scan for the port of this line, whether Run runs or
// not: the line is lent to it, for at most most, and polls go on when it
// returns. The settings and units of the line's own devices are tried first.
func (l *Line) Scan(ctx context.Context, most time.Duration, o ScanOptions, say func(ScanStep)) (*ScanResult, error) {
	for _, d := range l.devices {
		if id := d.opt.unit(); d.talker == nil && id > 0 {
			o.Likely = append(o.Likely, id)
		}
	}
	if len(o.Lines) == 0 && l.at.serial {
		o.Lines = append([]string{l.settings()}, o.settings()...)
	}
	fail := func(err error) (*ScanResult, error) {
		return &ScanResult{Connect: l.opt.Connect}, &Error{Line: l.name, Op: "scan", Code: "request", Err: fmt.Errorf("%w: %w", ErrRequest, err)}
	}
	o.TLS, o.RS485 = l.opt.TLS, l.opt.RS485
	s, err := newScan(l.at, l.opt.Connect, o, say)
	if err != nil {
		return fail(err)
	}
	ctx, back, err := l.lend(ctx, "scan", most)
	if err != nil {
		return &s.res, err
	}
	defer back()
	s.most = most
	l.farewell()
	l.hangUp(nil)
	err = s.run(ctx)
	now := time.Now()
	for _, q := range s.owed { // nobody may take a late answer for his own
		if u := l.units[q.ask.unit]; u != nil && now.Sub(q.sent) < lateFactor*l.timeout {
			u.q.missed(q.ask, q.sent, l.timeout, now)
		}
	}
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errReclaimed) {
		err = &Error{Line: l.name, Op: "scan", Code: "closed", What: "the agent stops", Err: errReclaimed}
	}
	return &s.res, err
}
