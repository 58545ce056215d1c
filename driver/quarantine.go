package driver

import "time"

// A late answer of Modbus RTU looks exactly like the answer to the next
// request of the same unit, function and byte count: only time and order
// part them. The quarantine of a unit keeps account of the answers it owes.
//
// After a timeout:
//
//  1. The unit is asked nothing for its grace time, one more timeout.
//  2. No request of the same shape (function and byte count) goes out for
//     lateFactor timeouts, or twice the longest delay this unit ever showed,
//     counted from the request that was not answered. Requests of other
//     shapes go on: their answers cannot be mixed up.
//  3. If the late answer is seen in that time, it is thrown away and the
//     debt is paid: the hold ends at once.
//  4. If it never came, and the unit has answered nothing since, the next
//     request of that shape is preceded by one of another shape, the barrier.
//     A device answers in order: once it has answered anything later, nothing
//     older can come. A device that leaves
//     barriers of several shapes unanswered, each for the whole hold, gets
//     the plain request again.
//
// Answers that do not fit are read past at any time, so a late answer costs
// one poll and never a wrong value. Modbus TCP numbers its requests and
// needs none of this.
type quarantine struct {
	debts []debt
	grace time.Time     // nothing is asked before
	worst time.Duration // longest delay of a late answer; forgotten slowly
	deaf  int           // barriers in a row that were not answered
}

// debt is a request of one shape that has not been answered.
type debt struct {
	fc    byte
	body  int
	n     int       // how many answers are owed
	sent  time.Time // the last of these requests
	until time.Time // a late answer may come until then
	later bool      // the unit has answered a later request of another shape
}

// lateFactor is how many timeouts an answer may be late. A device that is
// later than that is told apart by order alone, by the barrier.
const lateFactor = 6

// barriers is how many barriers a device may leave unanswered before the
// plain request goes out: some devices are silent on shapes they do not know.
const barriers = 3

// lateSlack covers the scheduling of a busy machine on both sides.
const lateSlack = 100 * time.Millisecond

// maxHold bounds what an extremely late answer can do to a unit's rate.
const maxHold = time.Minute

// missed notes that a request got no answer within its timeout.
func (q *quarantine) missed(a *ask, sent time.Time, timeout time.Duration, now time.Time) {
	q.grace = now.Add(timeout)
	hold := min(max(lateFactor*timeout+lateSlack, 2*q.worst), maxHold)
	for i := range q.debts {
		if d := &q.debts[i]; d.fc == a.fc && d.body == a.body {
			d.n++
			d.sent, d.until, d.later = sent, sent.Add(hold), false
			return
		}
	}
	q.debts = append(q.debts, debt{a.fc, a.body, 1, sent, sent.Add(hold), false})
}

// heardLate takes a frame of the unit that came without being asked for. It
// says whether it paid a debt.
func (q *quarantine) heardLate(fc byte, body int, now time.Time) bool {
	for i := range q.debts {
		d := &q.debts[i]
		if refused := fc&0x80 != 0; d.fc != fc&0x7f || !refused && d.body != body {
			continue
		}
		q.worst = max(q.worst-q.worst/4, min(now.Sub(d.sent), maxHold/2))
		if d.n--; d.n > 0 {
			return true
		}
		q.debts = append(q.debts[:i], q.debts[i+1:]...)
		if len(q.debts) == 0 {
			q.grace = now // the device is through with the past
		}
		return true
	}
	return false
}

// unheard notes that a barrier was not answered. Whatever is owed is given
// its whole time once more, counted from the barrier.
func (q *quarantine) unheard(sent time.Time, timeout time.Duration) {
	q.deaf++
	hold := min(max(lateFactor*timeout+lateSlack, 2*q.worst), maxHold)
	for i := range q.debts {
		q.debts[i].until = sent.Add(hold)
	}
}

// ready returns when a request may go out; a time in the past means at once.
func (q *quarantine) ready(a *ask) time.Time {
	t := q.grace
	for i := range q.debts {
		if d := &q.debts[i]; d.fc == a.fc && d.body == a.body && d.until.After(t) {
			t = d.until
		}
	}
	return t
}

// barred says whether a request needs a barrier before it.
func (q *quarantine) barred(a *ask) bool {
	if q.deaf >= barriers {
		return false
	}
	for i := range q.debts {
		if d := &q.debts[i]; d.fc == a.fc && d.body == a.body && !d.later {
			return true
		}
	}
	return false
}

func (q *quarantine) owes(fc byte, body int) bool {
	for i := range q.debts {
		if d := &q.debts[i]; d.fc == fc && d.body == body {
			return true
		}
	}
	return false
}

// barrier returns the count for a request of a shape that nothing owed has:
// the same function and address as a, and fewer items, so that it touches
// nothing else. ok is false if there is none.
func (q *quarantine) barrier(a *ask) (count uint16, ok bool) {
	step := uint16(1)
	if a.fc <= 2 {
		step = 8 // bits count by the byte
	}
	for c := uint16(1); c < a.count; c += step {
		if b := shape(a.fc, c); b != a.body && !q.owes(a.fc, b) {
			return c, true
		}
	}
	return 0, false
}

// shape returns the byte count of an answer.
func shape(fc byte, count uint16) int {
	if fc <= 2 {
		return (int(count) + 7) / 8
	}
	return 2 * int(count)
}

// answered notes an answer to a request of shape a: whatever was owed and
// could only be told apart by order is settled.
func (q *quarantine) answered(a *ask, now time.Time) {
	q.deaf = 0
	if len(q.debts) == 0 {
		return
	}
	kept := q.debts[:0]
	for _, d := range q.debts {
		if d.until.After(now) && (d.fc != a.fc || d.body != a.body) {
			d.later = true
			kept = append(kept, d)
		}
	}
	q.debts = kept
}

// breaker keeps a unit that does not answer from eating the time of the
// others: after some silent requests it is only probed, at growing intervals.
type breaker struct {
	silent  int           // requests in a row without any answer
	backoff time.Duration // present interval; 0 while the unit is there
	next    time.Time     // of the next probe
}

const (
	// patience is how often in a row a unit may be silent before it is taken
	// for absent; searchPatience while it is found out which registers it is
	// silent to.
	patience       = 3
	searchPatience = 12
	// absentShare: all absent units of a line together get at most the
	// absentShare-th part of its time, while other units answer.
	absentShare = 40
	backoffMin  = 5 * time.Second
	backoffMax  = 10 * time.Minute
	// backoffAlone is the longest interval while no unit of the line answers:
	// there is nobody to protect.
	backoffAlone = 10 * time.Second
)

// open says whether the unit is taken for absent.
func (b *breaker) open() bool { return b.backoff > 0 }

// failed notes a request without answer. jitter is 0..1.
func (b *breaker) failed(now time.Time, alone bool, patience int, jitter float64) {
	b.silent++
	if b.silent < patience {
		return
	}
	b.backoff = min(max(2*b.backoff, backoffMin), backoffMax)
	wait := b.backoff
	if alone {
		wait = min(wait, backoffAlone)
	}
	b.next = now.Add(time.Duration(float64(wait) * (0.9 + 0.2*jitter)))
}

// spoke notes that the unit is there.
func (b *breaker) spoke() { *b = breaker{} }
