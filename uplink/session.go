package uplink

import (
	"context"
	"errors"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"tidegate/internal/telemetry"
)

// session is the life of one connection. One goroutine does everything:
// it hands a message to the client only when the client has nothing left to
// write, so a slow link never keeps it from taking acknowledgements.
type session struct {
	u     *Uplink
	src   Source
	link  *link
	began time.Time
	order order
	scout *scout

	flights  []flight // in the order of sending; acknowledged from the front
	window   int      // batches and tombstones in flight
	bytes    int      // of them
	budget   budget
	progress time.Time  // last acknowledgement
	queue    []outgoing // what is said next, one after the other
	said     []message  // scratch of the speaker
	last     uint16     // number of the message handed over last
	quick    uint64     // messages of quality 0 handed over
	spare    [][]byte   // buffers to use again

	metaSent   map[string]bool // catalogs described on this connection
	nextStatus time.Time
	nextMeta   time.Time
	retryAt    time.Time // after an error of the source
	batch      telemetry.Batch
}

// outgoing is a message that waits until the client is free, and what its
// acknowledgement means.
type outgoing struct {
	message
	flight flight
}

// flight is a message that waits for its PUBACK.
type flight struct {
	token *mqtt.PublishToken
	at    time.Time
	buf   []byte
	item  Item  // of a batch, without its bytes
	loss  *Loss // of a tombstone
	// counts tells batches and tombstones from status and metadata.
	counts bool
}

// session opens a connection and works on it until it is lost or ctx ends.
func (u *Uplink) session(ctx context.Context, src Source) *Error {
	u.setState(StateConnecting, nil)
	l, err := u.open(ctx)
	if err != nil {
		u.thrown = 0
		return err
	}
	s := &session{u: u, src: src, link: l, began: time.Now(), metaSent: map[string]bool{}}
	s.order = newOrder(u, src)
	s.scout = newScout(u, l)
	s.budget.reset()
	s.progress = s.began
	for _, f := range u.speaker.filters() {
		switch err := l.subscribe(f, u.clientID(), u.tune.connect).(type) {
		case nil:
		case *Error:
			u.log.Warn("what the cloud says is not heard", "code", err.Code, "error", err.Error())
			u.count(func(st *Stats) { st.Deaf = err })
		default:
			l.end(false)
			u.thrown = 0
			return explain(atSession, s.whyLost(err), u.situation(l.wire.broker))
		}
	}
	u.poison.passed = false
	u.count(func(st *Stats) { st.Sessions++ })
	u.setState(StateOnline, nil)
	u.setCurrent(l)
	u.log.Info("uplink connected", "uplink", l.wire.broker.String())
	cause := s.run(ctx)
	u.setCurrent(nil)
	s.scout.end()
	better := cause == errBetter
	var away *departure
	if cause == nil || better || errors.As(cause, &away) { // ctx ended, or it is time to go
		cause = s.leave()
		l.end(cause == nil)
	} else {
		l.end(false)
	}
	s.settle(cause)
	if away != nil {
		return away.why
	}
	if cause == nil || better {
		return nil
	}
	if u.thrown >= 3 {
		return &Error{Code: "client-id-taken", Msg: l.wire.broker.String() + " throws us out again and again",
			Seen:   "the broker closes the connection within a minute while nothing is under way",
			Likely: "another gateway or tool uses the client id " + u.clientID(),
			Try:    "look for a second device with this id; give each its own gateway.id", Err: cause}
	}
	return explain(atSession, cause, u.situation(l.wire.broker))
}

func (u *Uplink) setCurrent(l *link) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.current = l
}

// run sends and takes acknowledgements until the connection is lost, which
// is an error, ctx ends, which is nil, or there is a better one: errBetter.
func (s *session) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := s.acknowledge(); err != nil {
			return err
		}
		if err := s.fill(ctx); err != nil {
			return err
		}
		s.scout.turn(ctx)
		timer.Reset(time.Until(s.wake()))
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.link.lost:
			return s.whyLost(err)
		case <-s.link.wire.dead:
			return s.link.wire.cause()
		case <-s.head():
		case <-s.link.wire.notify:
		case m := <-s.link.in:
			if err := s.u.speaker.heard(s, m); err != nil {
				return err
			}
		case err := <-s.scout.back:
			if s.scout.returned(err) {
				return errBetter
			}
		case <-s.src.Changed():
		case <-timer.C:
		}
	}
}

// whyLost prefers the error of the connection to what the client says.
func (s *session) whyLost(err error) error {
	if cause := s.link.wire.cause(); cause != nil {
		return cause
	}
	if err == nil || err.Error() == "connection lost before Publish completed" {
		select { // the client says why in a moment
		case err = <-s.link.lost:
		case <-time.After(time.Second):
		}
	}
	if err != nil && err.Error() == "pingresp not received, disconnecting" {
		return errPing
	}
	return err
}

// head is closed when the oldest message is done; nil while none is under way.
func (s *session) head() <-chan struct{} {
	if len(s.flights) == 0 {
		return nil
	}
	return s.flights[0].token.Done()
}

// wake is the next moment at which something is due by the clock.
func (s *session) wake() time.Time {
	at := time.Now().Add(time.Hour)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	earlier(s.deadline())
	earlier(s.scout.wake())
	if s.busy() {
		return at
	}
	earlier(s.nextStatus)
	earlier(s.nextMeta)
	if s.room() {
		earlier(s.retryAt)
		earlier(s.order.due())
	}
	return at
}

// room tells whether one more batch or tombstone may be in flight.
func (s *session) room() bool {
	return s.window < s.limit() && (s.window == 0 || s.bytes < s.budget.most())
}

// deadline is when the oldest message must have been acknowledged: the time
// limit runs from the last progress, so a slow link that moves is no stall.
func (s *session) deadline() time.Time {
	if len(s.flights) == 0 {
		return time.Time{}
	}
	p := s.link.wire.proofOf(s.flights[0].token.MessageID())
	if p.written.IsZero() {
		// Each piece of a write has its own limit; this is the last resort.
		return s.flights[0].at.Add(10 * s.u.tune.ack)
	}
	from := p.written
	if s.progress.After(from) {
		from = s.progress
	}
	return from.Add(s.u.tune.ack)
}

// acknowledge takes everything that is proven from the front.
func (s *session) acknowledge() error {
	for len(s.flights) > 0 {
		f := &s.flights[0]
		select {
		case <-f.token.Done():
		default:
			if time.Now().After(s.deadline()) {
				return errStalled
			}
			return nil
		}
		if err := f.token.Error(); err != nil {
			return s.whyLost(err)
		}
		if !s.link.proven(f.token) {
			return errProof
		}
		s.delivered(f)
		s.flights[0] = flight{}
		s.flights = s.flights[1:]
	}
	return nil
}

// delivered passes a proven acknowledgement on.
func (s *session) delivered(f *flight) {
	u, id := s.u, f.token.MessageID()
	p := s.link.wire.proofOf(id)
	s.link.wire.forget(id)
	if s.last == id {
		s.last = 0
	}
	s.spare = append(s.spare, f.buf[:0])
	s.progress = p.acked
	rtt := p.acked.Sub(f.at)
	readings := 0
	switch {
	case f.loss != nil:
		if err := s.src.AckLoss(*f.loss); err != nil {
			// It stays told on this connection and is told again on the next.
			u.log.Warn("a told loss cannot be removed", "error", err)
		} else {
			delete(s.order.told, *f.loss)
		}
	case f.item.Seq != 0:
		k := key{f.item.Lane, f.item.Seq}
		s.src.Ack(f.item.Lane, f.item.Seq)
		delete(s.order.flying, k)
		delete(u.unacked, k)
		if u.poison.cleared(k) {
			s.order.again() // the suspect may go now
		}
		readings = f.item.Count
	}
	if f.counts {
		s.window--
		s.bytes -= len(f.buf)
		s.budget.acked(len(f.buf), rtt, p.acked)
	}
	u.count(func(st *Stats) {
		st.LastAck, st.RTT, st.InFlight = p.acked, rtt, s.window
		if f.counts {
			st.Acked++
			st.Readings += uint64(readings)
		}
	})
}

// settle keeps what is known at the end of a connection: what is proven
// though not at the front is acknowledged, the rest will be sent again, and
// a connection that the broker closed is held against the oldest batch.
func (s *session) settle(cause error) {
	alone := s.window == 1
	var oldest key
	for i := range s.flights {
		f := &s.flights[i]
		if s.link.proven(f.token) {
			s.delivered(f)
			continue
		}
		if f.item.Seq == 0 {
			continue
		}
		k := key{f.item.Lane, f.item.Seq}
		s.u.unacked[k] = true
		if oldest.seq == 0 {
			oldest = k
		}
	}
	for i := range s.queue { // a part of it may have been sent
		if f := &s.queue[i].flight; f.item.Seq != 0 {
			s.u.unacked[key{f.item.Lane, f.item.Seq}] = true
		}
	}
	s.flights, s.queue = nil, nil
	if cause == nil || !peerClosed(cause) || oldest.seq != 0 || time.Since(s.began) >= s.u.tune.stable {
		s.u.thrown = 0
	} else {
		s.u.thrown++
	}
	if cause == nil || !peerClosed(cause) || oldest.seq == 0 {
		return
	}
	if s.u.poison.strike(oldest, alone) {
		s.u.setAside(s.src, oldest, "poison")
		s.u.poison = suspicion{}
	}
}

// setAside gives a batch up and says so.
func (u *Uplink) setAside(src Source, k key, why string) {
	u.log.Error("batch set aside", "lane", k.lane, "seq", k.seq, "why", why)
	if err := src.SetAside(k.lane, k.seq, why); err != nil {
		u.log.Error("batch cannot be set aside", "lane", k.lane, "seq", k.seq, "error", err)
		return
	}
	delete(u.unacked, k)
	u.count(func(st *Stats) { st.SetAside++ })
}

// limit is the window: one message while a batch is under suspicion, so
// that the blame is certain.
func (s *session) limit() int {
	if s.u.poison.careful() {
		return 1
	}
	return s.u.opts.Inflight
}

// busy tells whether the client still writes the message handed over last.
func (s *session) busy() bool {
	return s.last != 0 && s.link.wire.proofOf(s.last).written.IsZero() || s.link.wire.quickly() < s.quick
}

// fill hands messages over as long as there is room and the client is free.
func (s *session) fill(ctx context.Context) error {
	for ctx.Err() == nil {
		if s.busy() {
			return nil
		}
		s.last = 0
		if len(s.queue) > 0 {
			out := s.queue[0]
			if s.queue = s.queue[1:]; len(s.queue) == 0 {
				s.queue = nil
			}
			if err := s.send(out.message, out.flight); err != nil {
				return err
			}
			continue
		}
		if due, err := s.announce(); err != nil {
			return err
		} else if due {
			continue
		}
		if !s.room() || !s.u.speaker.ready() {
			return nil
		}
		if !s.retryAt.IsZero() {
			if time.Now().Before(s.retryAt) {
				return nil
			}
			s.retryAt = time.Time{}
			s.order.again()
		}
		sent, err := s.next()
		if err != nil || !sent {
			return err
		}
	}
	return nil
}

// announce says status and metadata when they are due.
func (s *session) announce() (bool, error) {
	now := time.Now()
	switch {
	case !now.Before(s.nextStatus):
		s.nextStatus = now.Add(s.u.tune.status)
		return true, s.say(s.u.speaker.status(s))
	case !now.Before(s.nextMeta):
		s.nextMeta = now.Add(s.u.tune.meta)
		return true, s.describe(s.u.env.Catalog, true)
	}
	return false, nil
}

// say queues messages that stand for no batch.
func (s *session) say(out []message, err error) error {
	for _, m := range out {
		s.queue = append(s.queue, outgoing{message: m})
	}
	return err
}

// describe says what the points of a catalog are.
func (s *session) describe(c *telemetry.Catalog, present bool) error {
	s.metaSent[c.Hash()] = true
	return s.say(s.u.speaker.describe(s, c, present))
}

// send hands a message over and puts it at the end of the flights.
func (s *session) send(m message, f flight) error {
	if m.late != nil {
		m.body = m.late(m.body)
	}
	if m.quick {
		s.quick++
		return s.whyNot(s.link.publishQuick(m.topic, m.retained, m.body))
	}
	f.at, f.buf = time.Now(), m.body
	token, err := s.link.publish(m.topic, m.retained, m.body)
	if err != nil {
		return s.whyLost(err)
	}
	f.token = token
	s.last = token.MessageID()
	s.flights = append(s.flights, f)
	if !f.counts {
		return nil
	}
	s.window++
	s.bytes += len(m.body)
	s.u.count(func(st *Stats) { st.Published++; st.InFlight = s.window })
	return nil
}

// whyNot is whyLost for what may have gone well.
func (s *session) whyNot(err error) error {
	if err == nil {
		return nil
	}
	return s.whyLost(err)
}

// buffer returns an empty buffer, one that was used before if there is one.
func (s *session) buffer() []byte {
	if n := len(s.spare); n > 0 {
		b := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return b
	}
	return nil
}

// leave ends the work on a good connection: nothing new is taken, what is
// under way may be acknowledged, then the status says offline.
func (s *session) leave() error {
	grace := time.NewTimer(s.u.tune.grace)
	defer grace.Stop()
	told := false
	for {
		if err := s.acknowledge(); err != nil {
			return err
		}
		if len(s.flights) == 0 && len(s.queue) == 0 && !s.busy() {
			if told {
				return nil
			}
			told = true
			if err := s.say(s.u.speaker.goodbye(s)); err != nil || len(s.queue) == 0 {
				return err
			}
		}
		for len(s.queue) > 0 && !s.busy() {
			out := s.queue[0]
			s.queue, s.last = s.queue[1:], 0
			if err := s.send(out.message, out.flight); err != nil {
				return err
			}
		}
		select {
		case <-grace.C:
			return errStalled
		case err := <-s.link.lost:
			return s.whyLost(err)
		case <-s.link.wire.dead:
			return s.link.wire.cause()
		case <-s.head():
		case <-s.link.wire.notify:
		}
	}
}
