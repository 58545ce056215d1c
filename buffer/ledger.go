package buffer

import (
	"fmt"
	"time"
)

// maxLedger bounds the ledger; beyond it neighbours are joined, the oldest first.
const maxLedger = 1024

// lose puts a Loss into the ledger. Its numbers are marked as done by the
// caller, in the same critical section. The caller holds mu.
func (q *Queue) lose(l Loss) {
	l.T1 = max(l.T0, l.T1)
	q.lossDirty = true
	if l.Why != WhyThinned {
		q.lostB += max(l.Batches, 0)
		q.lostR += max(l.Readings, 0)
	}
	q.signal()
	for i := len(q.ledger) - 1; i >= 0; i-- {
		e := &q.ledger[i]
		if e.Lane != l.Lane {
			continue
		}
		if !e.seen && e.Why == l.Why && e.To+1 == l.From {
			e.Loss = join(e.Loss, l)
			e.gen, e.saved = q.gen, false
			return
		}
		break
	}
	q.ledger = append(q.ledger, entry{Loss: l, gen: q.gen})
	if len(q.ledger) > maxLedger {
		q.coarsen()
	}
}

// coarsen joins the first two neighbours of a lane. What was delivered
// between them stands: a Loss speaks only of what the receiver lacks.
func (q *Queue) coarsen() {
	for i := range q.ledger {
		for j := i + 1; j < len(q.ledger); j++ {
			a, b := &q.ledger[i], q.ledger[j]
			if a.Lane != b.Lane || a.Why != b.Why || (a.seen || b.seen) && len(q.ledger) <= 2*maxLedger {
				continue
			}
			*a = entry{Loss: join(a.Loss, b.Loss), gen: q.gen}
			q.ledger = append(q.ledger[:j], q.ledger[j+1:]...)
			return
		}
	}
}

func join(a, b Loss) Loss {
	a.From, a.To = min(a.From, b.From), max(a.To, b.To)
	a.T0, a.T1 = min(a.T0, b.T0), max(a.T1, b.T1)
	a.Batches, a.Readings = sum(a.Batches, b.Batches), sum(a.Readings, b.Readings)
	return a
}

// sum adds two counts of which -1 is unknown.
func sum(a, b int64) int64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

// Losses returns the ledger in the order in which the losses happened: what
// has to be told and was not acknowledged yet.
func (q *Queue) Losses() []Loss {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []Loss
	for i := range q.ledger {
		e := &q.ledger[i]
		if e.saved || e.To <= q.limit(&q.lanes[e.Lane]) {
			e.seen = true
			out = append(out, e.Loss)
		}
	}
	return out
}

// AckLoss forgets a Loss that was delivered. One that is not in the ledger
// is no error. It goes from the disk with the next commit of the state, at
// the latest by Sync 30 s later: after a crash it may be told again.
func (q *Queue) AckLoss(l Loss) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	for i := range q.ledger {
		if q.ledger[i].Loss == l {
			q.ledger = append(q.ledger[:i], q.ledger[i+1:]...)
			if q.ledgerDirty.IsZero() {
				q.ledgerDirty = time.Now()
			}
			break
		}
	}
	return nil
}

// SetAside gives up a batch that cannot be delivered: a Loss with the reason
// takes its place, durable when SetAside returns without error, and the lane
// goes on. why is WhyPoison unless the caller knows better.
func (q *Queue) SetAside(l Lane, seq uint64, why string) error {
	if l >= laneCount {
		return fmt.Errorf("buffer: there is no %s", l)
	}
	if why == "" {
		why = WhyPoison
	}
	loss := Loss{Lane: l, From: seq, To: seq, Batches: 1, Readings: -1, Why: why}
	if it, ok, err := q.Look(l, seq); err == nil && ok && it.Seq == seq {
		loss.Readings, loss.T0, loss.T1 = int64(it.Count), it.From, it.To
	}
	q.disk.Lock()
	defer q.disk.Unlock()
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	ln := &q.lanes[l]
	if seq == 0 || seq > ln.given || ln.done.has(seq) {
		q.mu.Unlock()
		return nil
	}
	q.finish(ln, seq)
	ln.sweep()
	q.lose(loss)
	q.mu.Unlock()
	return q.saveState(false)
}
