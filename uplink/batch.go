package uplink

import (
	"errors"
	"time"

	"tidegate/uplink/payload"
)

// next sends the next batch or tombstone. false: there is none, or not now.
func (s *session) next() (bool, error) {
	limit := s.limit()
	limit -= limit / 5 // of the backlog
	loss, item, history, ok, err := s.order.pick(s.flying < limit && s.window.room(time.Now(), s.bytes, true))
	if err != nil {
		s.u.log.Warn("the buffer cannot be read", "error", err)
		s.retryAt = time.Now().Add(s.u.tune.retry)
		return false, nil
	}
	if !ok {
		return false, nil
	}
	if loss != nil {
		s.order.told[*loss] = true
		return true, s.tombstone(loss)
	}
	return true, s.batchOut(item, history)
}

func (s *session) envelope(lane string, seq uint64) *payload.Envelope {
	e := &s.u.env
	return &payload.Envelope{Gateway: e.Gateway, Epoch: e.Epoch, Lane: lane, Seq: seq,
		Lo: lowest(s.src, lane), Boot: e.Boot, Sent: time.Now().UnixMilli()}
}

func (s *session) tombstone(l *Loss) error {
	var err error
	if s.said, err = s.u.speaker.loss(s.said[:0], s, l); err != nil {
		s.u.log.Error("a loss cannot be told", "error", err)
		return nil
	}
	if len(s.said) == 0 {
		return s.src.AckLoss(*l)
	}
	return s.post(flight{loss: l, counts: true})
}

// post sends what the speaker said; the acknowledgement of the last message
// is that of the flight.
func (s *session) post(f flight) error {
	for i := range s.said {
		f.size += len(s.said[i].body)
	}
	last := len(s.said) - 1
	if last == 0 {
		return s.send(s.said[0], f)
	}
	for i, m := range s.said {
		out := outgoing{message: m}
		if i == last {
			out.flight = f
		}
		s.queue = append(s.queue, out)
	}
	return nil
}

// batchOut encodes and sends one batch. A batch that cannot be read is set
// aside: the tombstone says so, and the lane goes on.
func (s *session) batchOut(item Item, history bool) error {
	u, k := s.u, key{item.Lane, item.Seq}
	if err := s.batch.Decode(item.Bytes); err != nil {
		u.log.Error("batch is damaged", "lane", k.lane, "seq", k.seq, "error", err)
		u.setAside(s.src, k, "corrupt")
		return nil
	}
	c := u.env.Catalog
	if s.batch.Catalog != c.Hash() {
		var err error
		if c, err = s.src.Catalog(s.batch.Catalog); err != nil || c == nil {
			s.unreadable(k, s.batch.Catalog, err)
			return nil
		}
		if !s.metaSent[s.batch.Catalog] {
			// The order resumes with this very batch after the description.
			s.order.putBack(item, history)
			return s.describe(c, false)
		}
	}
	delete(u.unread, k)
	var err error
	if s.said, err = u.speaker.batch(s.said[:0], s, item, c, history); err != nil {
		u.log.Error("batch cannot be written", "lane", k.lane, "seq", k.seq, "error", err)
		u.setAside(s.src, k, "corrupt")
		return nil
	}
	size := 0
	for i := range s.said {
		size += len(s.said[i].body)
	}
	item.Bytes = nil
	if size == 0 {
		s.src.Ack(item.Lane, item.Seq)
		return nil
	}
	s.order.flying[k] = true
	s.order.sent(size, history && item.Lane == laneData)
	if u.unacked[k] {
		u.count(func(st *Stats) { st.Repeats++ })
	}
	return s.post(flight{item: item, counts: true})
}

// unreadable postpones a batch whose catalog cannot be had: it may be a
// passing error of the disk. After three attempts the batch is set aside.
func (s *session) unreadable(k key, hash string, err error) {
	if err == nil {
		err = errors.New("not known")
	}
	s.u.unread[k]++
	s.u.log.Warn("the catalog of a batch cannot be read", "lane", k.lane, "seq", k.seq, "catalog", hash, "error", err)
	if s.u.unread[k] < 3 {
		s.retryAt = time.Now().Add(s.u.tune.retry)
		return
	}
	delete(s.u.unread, k)
	s.u.setAside(s.src, k, "corrupt")
}
