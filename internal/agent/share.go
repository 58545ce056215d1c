package agent

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"tidegate/buffer"
	"tidegate/uplink"
)

// lanes are those of the buffer.
var lanes = [...]buffer.Lane{buffer.Data, buffer.Event}

const (
	// optionalGrace is how long a batch that all required uplinks have waits
	// for one that is not required and connected, as far as max_loss allows.
	optionalGrace = time.Second
	// divided is how long something must be held that one uplink has and
	// another lacks before the cursors are written down.
	divided = 30 * time.Second
	// whyPassed is the reason of a tombstone for what an uplink that is not
	// required has missed.
	whyPassed = "expired"
)

// share hands one queue to several uplinks, each with a cursor of its own.
//
// A number leaves the queue when every required uplink has it. Whoever lacks
// it then has missed it, and is told so by a tombstone of its own. A loss
// leaves the ledger when every required uplink has told it; who has not told
// it has missed its numbers, too. So each number that is not held any more is
// for each uplink delivered, told, or missed and still to be told.
type share struct {
	queue *buffer.Queue
	src   *source
	log   *slog.Logger
	file  string
	grace time.Duration
	every time.Duration // between two writes of the cursors

	disk sync.Mutex // held by who writes the file; taken before mu
	fail bool       // the last write failed; guarded by disk

	mu      sync.Mutex
	members []*member
	begun   bool               // what was done before this run is accounted for
	due     []dueNumber        // required uplinks have these, others are waited for
	dirty   time.Time          // since when something may be worth writing down
	news    bool               // a tombstone was told: that is
	mark    [len(lanes)]uint64 // numbers given at dirty
}

// dueNumber is passed at a time.
type dueNumber struct {
	lane buffer.Lane
	seq  uint64
	at   time.Time
}

// member is the Source of one of several uplinks.
type member struct {
	*source
	share    *share
	name     string
	required bool
	online   func() bool // whether it is worth waiting for
	trusted  bool        // it was required in the run before this, so it has all that is done
	cursors  [len(lanes)]cursor
	telling  []uplink.Loss // its own tombstones; they stay as they are until they are told
	wake     chan struct{}
}

// cursor is what an uplink has of a lane.
type cursor struct {
	has    buffer.Numbers // what it needs no more: delivered or told
	missed buffer.Numbers // passed and not told; none of has
}

// newShare returns the share of uplinks that begin where file left them.
func newShare(q *buffer.Queue, src *source, file string, maxLoss time.Duration, log *slog.Logger) *share {
	s := &share{queue: q, src: src, log: log, file: file, grace: optionalGrace, every: max(divided, maxLoss)}
	if maxLoss > 0 { // the collector may have used up half of it
		s.grace = min(s.grace, maxLoss/4)
	}
	return s
}

// add makes the Source of one more uplink.
func (s *share) add(name string, required bool) *member {
	m := &member{source: s.src, share: s, name: name, required: required, online: func() bool { return false }, wake: make(chan struct{}, 1)}
	s.members = append(s.members, m)
	return m
}

// open reads the file and writes it at once: what a run before this one left
// there counts for this run only, so that no run in between, with other
// uplinks, can be forgotten.
func (s *share) open() {
	s.load()
	s.mu.Lock()
	s.begin()
	s.mu.Unlock()
	s.save()
}

// begin accounts for all that was done before this run: a trusted uplink has
// it, the others have missed it as far as nothing says otherwise. What the
// ledger of the queue names is told by that. The caller holds mu.
func (s *share) begin() {
	losses := s.queue.Losses()
	if s.begun || len(losses) != s.queue.Stats().Losses {
		return // some cannot be told yet, and nothing leaves before
	}
	s.begun, s.news = true, true
	s.touch()
	for _, l := range lanes {
		var done buffer.Numbers
		s.eachDone(l, 1, s.queue.Given(l), done.Add)
		for _, x := range losses {
			if x.Lane == l {
				done.Remove(x.From, x.To)
			}
		}
		for _, m := range s.members {
			c := &m.cursors[l]
			for _, r := range done.Spans() {
				if m.trusted {
					c.has.Add(r[0], r[1])
					continue
				}
				for _, h := range c.has.Holes(r[0], r[1]) {
					c.missed.Add(h[0], h[1])
				}
			}
			for _, r := range c.missed.Spans() {
				if m.trusted {
					c.has.Remove(r[0], r[1])
				}
			}
		}
	}
	s.release()
}

// release lets go of what is held although all required uplinks have it: the
// run before this ended before the queue had written that down. The caller
// holds mu.
func (s *share) release() {
	i := slices.IndexFunc(s.members, func(m *member) bool { return m.required })
	for _, l := range lanes {
		for _, r := range s.members[i].cursors[l].has.Spans() {
			for n := r[0]; n <= r[1]; n++ {
				if a, b := s.queue.Done(l, n); a == n {
					n = b
					continue
				}
				s.settle(l, n)
			}
		}
	}
}

// eachDone calls f with the runs of from..to that are not held any more.
func (s *share) eachDone(l buffer.Lane, from, to uint64, f func(a, b uint64)) {
	for from <= to {
		a, b := s.queue.Done(l, from)
		if a == 0 || a > to {
			return
		}
		f(a, min(b, to))
		from = b + 1
	}
}

// run hands on what the queue signals, and passes what has waited long
// enough, until ctx ends.
func (s *share) run(ctx context.Context) {
	tick := time.NewTicker(flushTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.queue.Changed():
			for _, m := range s.members {
				m.signal()
			}
		case now := <-tick.C:
			s.turn(now)
		}
	}
}

// turn does what is due at now.
func (s *share) turn(now time.Time) {
	s.mu.Lock()
	for len(s.due) > 0 && !s.due[0].at.After(now) {
		d := s.due[0]
		s.due = s.due[1:]
		s.pass(d.lane, d.seq)
	}
	write := !s.dirty.IsZero() && now.Sub(s.dirty) >= s.every
	if write {
		s.dirty = time.Time{}
		write = s.news || s.parted()
	}
	s.mu.Unlock()
	if write {
		s.save()
	}
}

// close passes what waits and writes the cursors down. The uplinks have ended.
func (s *share) close() {
	s.mu.Lock()
	for _, d := range s.due {
		s.pass(d.lane, d.seq)
	}
	s.due = nil
	s.mu.Unlock()
	s.save()
}

// touch notes that there may be something to write down. The caller holds mu.
func (s *share) touch() {
	if s.dirty.IsZero() {
		s.dirty = time.Now()
		for _, l := range lanes {
			s.mark[l] = s.queue.Given(l)
		}
	}
}

// parted tells whether anything is held that one uplink has and another
// lacked already at dirty. The caller holds mu.
func (s *share) parted() bool {
	for _, l := range lanes {
		for _, m := range s.members {
			done := uint64(0)
			s.eachDone(l, 1, s.mark[l], func(a, b uint64) { done += m.cursors[l].has.Count(a, b) })
			if m.cursors[l].has.Count(1, s.mark[l]) > done {
				return true
			}
		}
	}
	return false
}

// settle lets go of a number if nobody needs it any more. The caller holds mu.
func (s *share) settle(l buffer.Lane, seq uint64) {
	wait := false
	for _, m := range s.members {
		switch {
		case m.cursors[l].has.Has(seq):
		case m.required:
			s.touch()
			return
		case m.online():
			wait = true
		}
	}
	if wait {
		s.due = append(s.due, dueNumber{l, seq, time.Now().Add(s.grace)})
		return
	}
	s.pass(l, seq)
}

// pass lets go of a number: who lacks it has missed it. The caller holds mu.
func (s *share) pass(l buffer.Lane, seq uint64) {
	if a, _ := s.queue.Done(l, seq); a == seq {
		return
	}
	s.miss(l, seq, seq)
	s.queue.Ack(l, seq)
}

func (s *share) miss(l buffer.Lane, from, to uint64) {
	for _, m := range s.members {
		c := &m.cursors[l]
		for _, h := range c.has.Holes(from, to) {
			c.missed.Add(h[0], h[1])
			m.signal()
		}
	}
}

// retire takes a loss out of the ledger once every required uplink has told
// it, or has what it names; true: it is gone. The caller holds mu.
func (s *share) retire(x uplink.Loss) (bool, error) {
	for _, m := range s.members {
		if m.required && !m.told(x) {
			return false, nil
		}
	}
	s.eachDone(laneOf(x.Lane), x.From, x.To, func(a, b uint64) { s.miss(laneOf(x.Lane), a, b) })
	return true, s.src.AckLoss(x)
}

// told tells whether a loss of the queue names nothing that m lacks.
func (m *member) told(x uplink.Loss) bool {
	all := true
	m.share.eachDone(laneOf(x.Lane), x.From, x.To, func(a, b uint64) {
		all = all && m.cursors[laneOf(x.Lane)].has.Count(a, b) == b-a+1
	})
	return all
}

func (m *member) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take notes that m needs the numbers from..to no more.
func (m *member) take(l buffer.Lane, from, to uint64) {
	m.cursors[l].has.Add(from, to)
	m.cursors[l].missed.Remove(from, to)
}

// lacks returns the lowest number >= from that is held and that m lacks, or
// a higher one than was ever given.
func (m *member) lacks(l buffer.Lane, from uint64) uint64 {
	for {
		n := m.cursors[l].has.Next(from)
		a, b := m.share.queue.Done(l, n)
		if a == 0 || a > n {
			return n
		}
		from = b + 1
	}
}

func (m *member) Changed() <-chan struct{} { return m.wake }

func (m *member) Next(lane string, from uint64) (uplink.Item, bool, error) {
	l := laneOf(lane)
	for {
		m.share.mu.Lock()
		from = m.lacks(l, from)
		m.share.mu.Unlock()
		it, ok, err := m.source.Next(lane, from)
		if err != nil || !ok || !m.has(l, it.Seq) {
			return it, ok, err
		}
		from = it.Seq + 1
	}
}

func (m *member) Prev(lane string, upto uint64) (uplink.Item, bool, error) {
	l := laneOf(lane)
	for {
		m.share.mu.Lock()
		upto = m.cursors[l].has.Prev(upto)
		m.share.mu.Unlock()
		it, ok, err := m.source.Prev(lane, upto)
		if err != nil || !ok || !m.has(l, it.Seq) {
			return it, ok, err
		}
		upto = it.Seq - 1
	}
}

func (m *member) has(l buffer.Lane, seq uint64) bool {
	m.share.mu.Lock()
	defer m.share.mu.Unlock()
	return m.cursors[l].has.Has(seq)
}

func (m *member) Ack(lane string, seqs ...uint64) {
	l, s := laneOf(lane), m.share
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seq := range seqs {
		if seq > 0 && seq <= s.queue.Given(l) {
			m.take(l, seq, seq)
			s.settle(l, seq)
		}
	}
}

// Lowest is the lowest number that m lacks and that is held or to be told.
func (m *member) Lowest(lane string) uint64 {
	l, s := laneOf(lane), m.share
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return m.cursors[l].has.Next(1)
	}
	lo := m.lacks(l, 1) // before the ledger: what is lost in between is named there
	if r := m.cursors[l].missed.Spans(); len(r) > 0 {
		lo = min(lo, r[0][0])
	}
	for _, x := range m.telling {
		if x.Lane == lane {
			lo = min(lo, x.From)
		}
	}
	for _, x := range s.src.Losses() {
		if x.Lane == lane && x.From < lo && !m.told(x) {
			lo = x.From
		}
	}
	return lo
}

// Losses returns what the queue has lost and m has not told, and what m has
// missed: of that one tombstone for all between two numbers that m has yet to
// get, and no further one before those are told.
func (m *member) Losses() []uplink.Loss {
	s := m.share
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
	var out []uplink.Loss
	for _, x := range s.src.Losses() {
		if gone, err := s.retire(x); (!gone || err != nil) && !m.told(x) {
			out = append(out, x)
		}
	}
	if !slices.ContainsFunc(m.telling, func(x uplink.Loss) bool { return x.Why == whyPassed }) {
		for _, l := range lanes {
			m.tell(l)
		}
	}
	return append(out, m.telling...)
}

// tell turns what m has missed of a lane into tombstones.
func (m *member) tell(l buffer.Lane) {
	c := &m.cursors[l]
	first := len(m.telling)
	for _, r := range c.missed.Spans() {
		n := int64(r[1] - r[0] + 1)
		if k := len(m.telling); k > first && len(c.has.Holes(m.telling[k-1].To+1, r[0]-1)) == 0 {
			m.telling[k-1].To, m.telling[k-1].Batches = r[1], m.telling[k-1].Batches+n
			continue
		}
		m.telling = append(m.telling, uplink.Loss{Lane: l.String(), From: r[0], To: r[1], Batches: n, Readings: -1, Why: whyPassed})
	}
	c.missed = buffer.Numbers{}
}

func (m *member) AckLoss(x uplink.Loss) error {
	s := m.share
	s.mu.Lock()
	defer s.mu.Unlock()
	l := laneOf(x.Lane)
	s.eachDone(l, x.From, x.To, func(a, b uint64) { m.take(l, a, b) }) // what is still held comes yet
	if i := slices.Index(m.telling, x); i >= 0 {
		m.telling = slices.Delete(m.telling, i, i+1)
		s.news = true
		s.touch()
		return nil
	}
	_, err := s.retire(x)
	return err
}

// SetAside gives up a batch for m alone: its tombstone is on disk when
// SetAside returns without error, and the others still send the batch.
func (m *member) SetAside(lane string, seq uint64, why string) error {
	l, s := laneOf(lane), m.share
	x := uplink.Loss{Lane: lane, From: seq, To: seq, Batches: 1, Readings: -1, Why: why}
	if it, ok, err := s.queue.Look(l, seq); err == nil && ok && it.Seq == seq {
		x.Readings, x.T0, x.T1 = int64(it.Count), it.From, it.To
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, _ := s.queue.Done(l, seq); a == seq || m.cursors[l].has.Has(seq) || seq == 0 || seq > s.queue.Given(l) {
		return nil
	}
	before := m.telling
	m.telling = aside(before, x)
	m.cursors[l].has.Add(seq, seq)
	if err := s.write(s.encode()); err != nil {
		m.telling = before
		m.cursors[l].has.Remove(seq, seq)
		return err
	}
	s.settle(l, seq)
	m.signal()
	return nil
}

// manyAside is how many tombstones of single batches stay apart.
const manyAside = 256

// aside returns the list with one more tombstone; one of neighbours, or of
// many, is joined with the last.
func aside(list []uplink.Loss, x uplink.Loss) []uplink.Loss {
	list = slices.Clone(list)
	if n := len(list); n > 0 {
		if y := &list[n-1]; y.Lane == x.Lane && y.Why == x.Why && (y.To+1 == x.From || n >= manyAside) {
			y.From, y.To, y.Batches = min(y.From, x.From), max(y.To, x.To), y.Batches+1
			y.T0, y.T1 = min(y.T0, x.T0), max(y.T1, x.T1)
			if y.Readings += x.Readings; x.Readings < 0 || y.Readings < x.Readings {
				y.Readings = -1
			}
			return list
		}
	}
	return append(list, x)
}

// waits tells how many batches m has yet to get, and how many tombstones.
func (m *member) waits() (batches int64, tombstones int) {
	s := m.share
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range lanes {
		c, given := &m.cursors[l], s.queue.Given(l)
		lack := given - c.has.Count(1, given)
		s.eachDone(l, 1, given, func(a, b uint64) { lack -= b - a + 1 - c.has.Count(a, b) })
		batches += int64(lack)
		tombstones += len(c.missed.Spans())
	}
	for _, x := range s.src.Losses() {
		if !m.told(x) {
			tombstones++
		}
	}
	return batches, tombstones + len(m.telling)
}
