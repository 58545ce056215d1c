package uplink

import (
	"encoding/json"
	"time"
)

// Desk is where the cloud's commands go. It judges them, carries them out
// and keeps the record.
type Desk interface {
	// Take takes a message from the command topic. It may wait a moment for
	// its turn, never for a device.
	Take(body []byte, retained bool)
	// Answers gives what is to be said, in the order in which it became known.
	Answers() <-chan Answer
}

// Answer is the answer to a command, and what the session itself must do for it.
type Answer struct {
	Body []byte
	Meta bool   // say the metadata again
	Lane string // send the batches From..To of this lane again, as far as they are held
	From uint64 // 0: none
	To   uint64
	Rate *int64 // new limit of the backlog, bytes per second, 0 for none
}

// answers is the Desk's channel; nil without one.
func (u *Uplink) answers() <-chan Answer {
	if u.env.Desk == nil {
		return nil
	}
	return u.env.Desk.Answers()
}

// answer does what an answer asks of the session, and says it.
func (s *session) answer(a Answer) error {
	if a.Rate != nil {
		s.u.rate = *a.Rate
		s.order.waiting = false
	}
	if a.From > 0 {
		for k := range s.u.awaiting {
			if k.lane == a.Lane && a.From <= k.seq && k.seq <= a.To {
				delete(s.u.awaiting, k)
			}
		}
		s.order.again()
	}
	if a.Meta {
		s.nextMeta = time.Now()
	}
	if _, edge := s.u.speaker.(*sparkplug); edge {
		return nil // a host sees the point itself, and the record
	}
	return s.say([]message{{topic: s.u.topicOf("ack"), body: a.Body}}, nil)
}

// receipt is what a consumer publishes when it has stored what it received.
type receipt struct {
	Epoch   string      `json:"ep"`
	Lane    string      `json:"lane"`
	Through uint64      `json:"through"` // every number up to this one came, or is in a tombstone that came
	Also    [][2]uint64 `json:"also"`    // spans above it, both ends included
}

func (r *receipt) covers(a, b uint64) bool {
	if b <= r.Through {
		return true
	}
	for _, s := range r.Also {
		if s[0] <= max(a, r.Through+1) && b <= s[1] {
			return true
		}
	}
	return false
}

// maxAwaiting is how many batches may wait for their receipt; then nothing
// more is sent until some come, or are given up and sent again.
const maxAwaiting = 10_000

// received acknowledges what the cloud's own receipt covers, of what this run
// has sent: a number that never left is not deleted on anybody's word.
func (s *session) received(body []byte) {
	u := s.u
	var r receipt
	if err := json.Unmarshal(body, &r); err != nil || r.Lane != laneData && r.Lane != laneEvent {
		u.log.Warn("a receipt cannot be read", "error", err)
		return
	}
	if r.Epoch != u.env.Epoch {
		u.log.Warn("a receipt is for another store", "ep", r.Epoch)
		return
	}
	n := 0
	for k := range u.awaiting {
		if k.lane == r.Lane && r.covers(k.seq, k.seq) {
			s.src.Ack(k.lane, k.seq)
			delete(u.awaiting, k)
			n++
		}
	}
	for k := range u.unacked {
		if k.lane == r.Lane && r.covers(k.seq, k.seq) {
			s.src.Ack(k.lane, k.seq)
			delete(u.unacked, k)
		}
	}
	for l := range u.awaitingLoss {
		if l.Lane == r.Lane && r.covers(l.From, l.To) {
			if err := s.src.AckLoss(l); err != nil {
				u.log.Warn("a told loss cannot be removed", "error", err)
				continue
			}
			delete(u.awaitingLoss, l)
		}
	}
	u.count(func(st *Stats) { st.Received += uint64(n); st.Awaiting = len(u.awaiting) })
}

// overdue gives up waiting for receipts that do not come: the batches are
// sent again.
func (s *session) overdue(now time.Time) {
	u := s.u
	some := false
	for k, t := range u.awaiting {
		if now.Sub(t) > u.tune.receipt {
			delete(u.awaiting, k)
			some = true
		}
	}
	for l, t := range u.awaitingLoss {
		if now.Sub(t) > u.tune.receipt {
			delete(u.awaitingLoss, l)
			delete(s.order.told, l)
			some = true
		}
	}
	if some {
		u.log.Warn("receipts have not come; what they would cover is sent again")
		s.order.again()
	}
}
