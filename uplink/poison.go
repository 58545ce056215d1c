package uplink

import "time"

// poisonStrikes is how often in a row the broker must close the connection
// on a batch before it is set aside.
const poisonStrikes = 10

// suspicion is held against the batch on which the broker closed the
// connection. From the second time on everything goes one by one, so that
// the blame is certain, and the suspect goes only after another batch got
// through: a broker that closes on every batch (an access rule, a full
// disk) condemns none.
type suspicion struct {
	batch   key
	strikes int  // closed connections in a row, with this batch the oldest one
	proven  bool // another batch got through since the first strike
	passed  bool // another batch got through on this connection
}

// careful tells whether everything goes one by one.
func (p *suspicion) careful() bool { return p.strikes >= 2 }

// avoid tells whether a batch must wait until another one got through.
func (p *suspicion) avoid(k key) bool { return p.careful() && k == p.batch && !p.passed }

// cleared takes note of an acknowledged batch. true: the suspect, which had
// to wait for that, may go now.
func (p *suspicion) cleared(k key) bool {
	if p.strikes == 0 {
		return false
	}
	if k == p.batch {
		*p = suspicion{}
		return false
	}
	freed := p.careful() && !p.passed
	p.proven, p.passed = true, true
	return freed
}

// strike counts a connection that the broker closed. true: the batch is
// poison.
func (p *suspicion) strike(k key, alone bool) bool {
	p.passed = false
	if k != p.batch {
		*p = suspicion{batch: k, strikes: 1}
		return false
	}
	if p.careful() && !alone {
		return false
	}
	p.strikes++
	return p.strikes >= poisonStrikes && p.proven
}

// budget bounds the bytes in flight to what the link moves in about two
// seconds: more would only wait in queues on the way, and live data behind
// it.
type budget struct {
	bytes int
	floor time.Duration // the shortest round trip seen
	since time.Time     // start of the measurement
	moved int           // bytes acknowledged since
}

const (
	budgetStart = 256 << 10
	budgetLeast = 32 << 10
	budgetMost  = 16 << 20
	budgetDelay = 2 * time.Second
)

func (b *budget) reset() { *b = budget{bytes: budgetStart} }

func (b *budget) most() int { return b.bytes }

// acked measures the link: bytes acknowledged per second over stretches of
// at least half a second.
func (b *budget) acked(n int, rtt time.Duration, at time.Time) {
	if b.floor == 0 || rtt < b.floor {
		b.floor = rtt
	}
	if b.since.IsZero() {
		b.since = at
		return
	}
	b.moved += n
	took := at.Sub(b.since)
	if took < 500*time.Millisecond {
		return
	}
	perSecond := float64(b.moved) / took.Seconds()
	b.since, b.moved = at, 0
	if rtt < budgetDelay/2 {
		// Not the link but what there was to send sets the pace.
		b.bytes = min(budgetMost, max(b.bytes, int(perSecond*(budgetDelay+b.floor).Seconds())))
		return
	}
	b.bytes = min(budgetMost, max(budgetLeast, int(perSecond*(budgetDelay+b.floor).Seconds())))
}
