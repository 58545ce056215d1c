package uplink

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"tidegate/internal/clock"
)

// purpose is what an attempt beside the connection is for.
type purpose int

const (
	forHome   purpose = iota // is the first broker back?
	forFiles                 // do new certificate files work?
	forGlance                // which certificate does the broker show now?
)

// errBetter ends a good connection for a better one: the scout came back.
var errBetter = errors.New("a better connection is ready")

// scout looks, beside a working connection, for a reason to leave it: renewed
// certificate files with which the broker takes us, or the first broker when
// it can be reached again. It tries on a connection of its own, so a failure
// costs nothing. It belongs to the goroutine of the session.
type scout struct {
	u       *Uplink
	files   loaded    // of the connection at work
	seen    string    // the files as the last look found them
	judged  string    // the files that were tried last
	retry   time.Time // when to try those again
	look    time.Time // next look at the files
	home    time.Time // next attempt to reach the first broker; zero: we are there
	glance  time.Time // next look at the broker's certificate, if that is about to end
	out     bool      // an attempt is under way
	purpose purpose   // of it
	back    chan *Error
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

func newScout(u *Uplink, l carrier) *scout {
	now := time.Now()
	b, files := l.peer()
	c := &scout{u: u, files: files, seen: files.stamp, judged: files.stamp, back: make(chan *Error, 1), cancel: func() {}}
	if b.secure {
		c.look = now.Add(clock.ToBeat(u.tune.look/2, u.tune.look))
		c.glance = now.Add(jitter(u.tune.glance))
	}
	if u.at.Load() > 0 {
		c.home = now.Add(jitter(u.tune.home))
	}
	return c
}

// jitter is the time within a half, so that many gateways spread.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(max(d, 1)) }

// wake is when the scout has something to do, zero for never.
func (c *scout) wake() time.Time {
	switch {
	case c.out || c.look.IsZero():
		return c.home
	case c.home.IsZero() || c.look.Before(c.home):
		return c.look
	}
	return c.home
}

// turn does what is due.
func (c *scout) turn(ctx context.Context) {
	now := time.Now()
	if !c.look.IsZero() && !now.Before(c.look) {
		c.look = now.Add(clock.ToBeat(c.u.tune.look/2, c.u.tune.look))
		c.watch(ctx, now)
	}
	if !c.home.IsZero() && !now.Before(c.home) {
		c.home = now.Add(jitter(c.u.tune.home))
		c.send(ctx, c.u.brokers[0], forHome)
	}
	if !c.glance.IsZero() && !now.Before(c.glance) {
		c.glance = now.Add(jitter(c.u.tune.glance))
		if c.u.ending() {
			c.send(ctx, c.u.broker(), forGlance)
		}
	}
}

// watch tries files that have changed and then stayed the same for one look.
func (c *scout) watch(ctx context.Context, now time.Time) {
	stamp := c.u.id.stamp()
	settled := stamp == c.seen
	c.seen = stamp
	if !settled || c.out || stamp == c.judged && (c.retry.IsZero() || now.Before(c.retry)) {
		return
	}
	c.judged, c.retry = stamp, time.Time{}
	files, err := c.u.loadFiles()
	switch {
	case err != nil || files.warn != nil:
		c.retry = now.Add(c.u.tune.home)
	case files.sum != c.files.sum:
		c.send(ctx, c.u.broker(), forFiles)
	}
}

// send tries a connection in the background, once at a time.
func (c *scout) send(ctx context.Context, b broker, p purpose) {
	if c.out {
		return
	}
	c.out, c.purpose = true, p
	ctx, c.cancel = context.WithCancel(ctx)
	c.wg.Go(func() { c.back <- c.u.trial(ctx, b) })
}

// returned judges an attempt. true: leave the connection for the better one.
func (c *scout) returned(err *Error) bool {
	c.out = false
	c.cancel()
	u := c.u
	switch {
	case c.purpose == forGlance:
		return false // what it has seen is noted
	case err == nil && c.purpose == forFiles:
		u.log.Info("new certificate files: the broker takes them, the connection is made anew")
	case err == nil:
		u.at.Store(0)
		u.log.Info("the first broker can be reached again", "broker", u.broker().String())
	case c.purpose == forFiles && err.Code == "tls-revoked":
		u.log.Error("the broker's certificate is revoked: the connection is given up", "error", err.Error())
		return true
	case c.purpose == forFiles:
		c.retry = time.Now().Add(u.tune.home)
		u.log.Warn("new certificate files do not work; the connection goes on with the old ones", "code", err.Code, "error", err.Error())
		u.count(func(s *Stats) { s.CertWarning = err.Error() })
	}
	return err == nil
}

// end waits for an attempt that is under way.
func (c *scout) end() {
	c.cancel()
	c.wg.Wait()
}

// trial opens a connection up to the point where CONNECT would be sent, and
// closes it: a CONNECT with our client id would end the session at work.
func (u *Uplink) trial(ctx context.Context, b broker) *Error {
	began := time.Now()
	if b.posts() {
		return u.trialPost(ctx, b)
	}
	w, err := u.reach(ctx, b)
	if err != nil {
		return err
	}
	defer w.Close()
	if !b.secure || b.websocket() {
		return nil
	}
	// In TLS 1.3 the broker judges our certificate after the handshake; a
	// broker that is content waits for our CONNECT.
	w.raw.SetReadDeadline(time.Now().Add(max(u.tune.verdict, 2*time.Since(began))))
	if _, err := w.Conn.Read(make([]byte, 1)); !isTimeout(err) {
		if err == nil {
			err = errMalformed
		}
		return explain(atConnect, err, u.situation(b))
	}
	return nil
}

// trialPost says to a receiver that the gateway is online, which it is.
func (u *Uplink) trialPost(ctx context.Context, b broker) *Error {
	files, err := u.loadFiles()
	if err != nil {
		return explain(atFiles, err, u.situation(b))
	}
	p, problem := u.openPosts(ctx, b, files)
	if problem == nil {
		p.end(true)
	}
	return problem
}
