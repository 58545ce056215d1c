package uplink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidegate/internal/telemetry"
)

// session is the life of one connection. One goroutine does everything:
// it hands a message over only when there is room for it, so a slow link never
// keeps it from taking acknowledgements.
type session struct {
	u     *Uplink
	src   Source
	link  carrier
	began time.Time
	order order
	scout *scout

	flights  []flight // in the order of sending; acknowledged from the front
	flying   int      // batches and tombstones in flight
	bytes    int      // of them
	window   window
	progress time.Time  // last acknowledgement
	queue    []outgoing // what is said next, one after the other
	said     []message  // scratch of the speaker
	spare    [][]byte   // buffers to use again

	metaSent   map[string]bool // catalogs described on this connection
	nextStatus time.Time
	nextMeta   time.Time
	retryAt    time.Time // after an error of the source
	batch      telemetry.Tables
}

// outgoing is a message that waits until there is room for it, and what its
// acknowledgement means.
type outgoing struct {
	message
	flight flight
}

// flight is a message that waits for its PUBACK.
type flight struct {
	ticket ticket
	at     time.Time
	buf    []byte // to use again; nil: its message was not lent
	item   Item   // of a batch, without its bytes
	loss   *Loss  // of a tombstone
	size   int    // bytes of all its messages
	under  int    // bytes in flight when it was sent, with its own
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
	b, _ := l.peer()
	s := &session{u: u, src: src, link: l, began: time.Now(), metaSent: map[string]bool{}}
	s.order = newOrder(u, src)
	s.scout = newScout(u, l)
	s.window = newWindow()
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
			return explain(atSession, l.why(err), u.situation(b))
		}
	}
	u.poison.passed = false
	u.count(func(st *Stats) { st.Sessions++ })
	u.setState(StateOnline, nil)
	if l, ok := l.(*link); ok {
		u.setCurrent(l)
	}
	u.log.Info("uplink connected", "uplink", b.String())
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
		return &Error{Code: "client-id-taken", Msg: b.String() + " throws us out again and again",
			Seen:   "the broker closes the connection within a minute while nothing is under way",
			Likely: "another gateway or tool uses the client id " + u.clientID(),
			Try:    "look for a second device with this id; give each its own gateway.id", Err: cause}
	}
	return explain(atSession, cause, u.situation(b))
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
		if !s.u.until.IsZero() && time.Now().After(s.u.until) {
			return &departure{} // with new credentials
		}
		s.scout.turn(ctx)
		timer.Reset(time.Until(s.wake()))
		select {
		case <-ctx.Done():
			return nil
		case <-s.link.gone():
			return s.link.why(nil)
		case <-s.head():
		case <-s.link.changed():
		case m := <-s.link.incoming():
			if err := s.u.speaker.heard(s, m); err != nil {
				return err
			}
		case a := <-s.u.answers():
			if err := s.answer(a); err != nil {
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

// head is closed when the oldest message is done; nil while none is under way.
func (s *session) head() <-chan struct{} {
	if len(s.flights) == 0 {
		return nil
	}
	return s.flights[0].ticket.done()
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
	earlier(s.u.until)
	earlier(s.scout.wake())
	if h := s.link.held(); time.Now().Before(h) {
		earlier(h)
	}
	if s.link.busy() {
		return at
	}
	if now := time.Now(); now.Before(s.u.paced) {
		earlier(s.u.paced)
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
	return s.flying < s.limit() && s.window.room(time.Now(), s.bytes, false) && len(s.u.awaiting) < maxAwaiting
}

// deadline is when the oldest message must have been acknowledged: the time
// limit runs from the last progress, so a slow link that moves is no stall.
func (s *session) deadline() time.Time {
	if len(s.flights) == 0 {
		return time.Time{}
	}
	from, limit := s.flights[0].ticket.written(), s.u.tune.ack
	if from.IsZero() {
		// Each piece of a write has its own limit; this is the last resort.
		from, limit = s.flights[0].at, 10*limit
	}
	for _, t := range []time.Time{s.progress, s.link.held()} {
		if t.After(from) {
			from = t
		}
	}
	return from.Add(limit)
}

// acknowledge takes everything that is proven from the front.
func (s *session) acknowledge() error {
	for len(s.flights) > 0 {
		f := &s.flights[0]
		select {
		case <-f.ticket.done():
		default:
			if time.Now().After(s.deadline()) {
				return errStalled
			}
			return nil
		}
		if _, err := f.ticket.outcome(); err != nil {
			return s.link.why(err)
		}
		s.delivered(f)
		s.flights[0] = flight{}
		s.flights = s.flights[1:]
	}
	return nil
}

// delivered passes a proven acknowledgement on.
func (s *session) delivered(f *flight) {
	u := s.u
	acked, _ := f.ticket.outcome()
	f.ticket.drop()
	if f.buf != nil {
		s.spare = append(s.spare, f.buf[:0])
	}
	s.progress = acked
	rtt := acked.Sub(f.at)
	readings := 0
	switch {
	case f.loss != nil && u.opts.Receipts && f.loss.From > 0:
		u.awaitingLoss[*f.loss] = acked
	case f.loss != nil:
		if err := s.src.AckLoss(*f.loss); err != nil {
			// It stays told on this connection and is told again on the next.
			u.log.Warn("a told loss cannot be removed", "error", err)
		} else {
			delete(s.order.told, *f.loss)
		}
	case f.item.Seq != 0:
		k := key{f.item.Lane, f.item.Seq}
		if u.opts.Receipts {
			u.awaiting[k] = acked
		} else {
			s.src.Ack(f.item.Lane, f.item.Seq)
		}
		delete(s.order.flying, k)
		delete(u.unacked, k)
		if u.poison.cleared(k) {
			s.order.again() // the suspect may go now
		}
		readings = f.item.Count
	}
	if f.counts {
		s.flying--
		s.bytes -= f.size
		s.window.acked(f.size, f.under, rtt, acked)
	}
	u.count(func(st *Stats) {
		st.LastAck, st.RTT, st.InFlight, st.Awaiting = acked, rtt, s.flying, len(u.awaiting)
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
	alone := s.flying == 1
	var oldest key
	for i := range s.flights {
		f := &s.flights[i]
		if proven(f.ticket) {
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
	blames := peerClosed(cause) || refuses(cause)
	if cause == nil || !blames || oldest.seq != 0 || time.Since(s.began) >= s.u.tune.stable {
		s.u.thrown = 0
	} else {
		s.u.thrown++
	}
	if cause == nil || !blames || oldest.seq == 0 {
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

// limit is the most messages in flight: one while a batch is under suspicion, so
// that the blame is certain.
func (s *session) limit() int {
	if s.u.poison.careful() {
		return 1
	}
	return s.u.opts.Inflight
}

// free tells whether a message may be handed over now: there is room for it,
// and the last message is long enough ago for publish_rate.
func (s *session) free() bool { return !s.link.busy() && !time.Now().Before(s.u.paced) }

// pace notes that a message goes now.
func (u *Uplink) pace(now time.Time) {
	if r := u.opts.PublishRate; r > 0 {
		u.paced = now.Add(time.Second / time.Duration(r))
	}
}

// fill hands messages over as long as there is room for them.
func (s *session) fill(ctx context.Context) error {
	for ctx.Err() == nil {
		if !s.free() {
			return nil
		}
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
		s.overdue(now)
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
	now := time.Now()
	s.u.pace(now)
	m.retained = m.retained && s.u.retains()
	if m.late != nil {
		m.body = m.late(m.body)
	}
	if m.quick {
		return s.link.quick(m)
	}
	if f.at = now; m.lent {
		f.buf = m.body
	}
	var err error
	if f.ticket, err = s.link.post(m, s.name(&f)); err != nil {
		return err
	}
	if f.counts {
		s.flying++
		s.bytes += f.size
		f.under = s.bytes
		s.u.count(func(st *Stats) { st.Published++; st.InFlight = s.flying })
	}
	s.flights = append(s.flights, f)
	return nil
}

// name is the number of a batch in words, and the range of a tombstone; ""
// for what has no number.
func (s *session) name(f *flight) string {
	switch {
	case f.loss != nil:
		return fmt.Sprintf("%s/%s/%d-%d", s.u.env.Epoch, f.loss.Lane, f.loss.From, f.loss.To)
	case f.item.Seq != 0:
		return fmt.Sprintf("%s/%s/%d", s.u.env.Epoch, f.item.Lane, f.item.Seq)
	}
	return ""
}

// buffer returns an empty buffer, one that was used before if there is one. The
// message that gets it says that it is lent.
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
		if len(s.flights) == 0 && len(s.queue) == 0 && !s.link.busy() {
			if told {
				return nil
			}
			told = true
			if err := s.say(s.u.speaker.goodbye(s)); err != nil || len(s.queue) == 0 {
				return err
			}
		}
		for len(s.queue) > 0 && s.free() {
			out := s.queue[0]
			s.queue = s.queue[1:]
			if err := s.send(out.message, out.flight); err != nil {
				return err
			}
		}
		var paced <-chan time.Time
		if len(s.queue) > 0 && !s.link.busy() {
			paced = time.After(time.Until(s.u.paced))
		}
		select {
		case <-grace.C:
			return errStalled
		case <-paced:
		case <-s.link.gone():
			return s.link.why(nil)
		case <-s.head():
		case <-s.link.changed():
		}
	}
}
