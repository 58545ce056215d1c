package history

import (
	"fmt"
	"math"
	"strings"
	"time"

	"tidegate/buffer"
)

const lanes = 2

// OpenLimit is how long a start may take. On slow flash a flush takes 10 ms,
// so it may not take more than flushLimit of them either.
const (
	OpenLimit  = 10 * time.Second
	flushLimit = 1000
)

// Life is what one buffer promised from its first start on. Feed Line every
// line of a writer, call Down when the writer is gone.
type Life struct {
	// Honest: what was flushed stays. If it is false, the promises of the
	// last flushes may be broken, but only those, and not silently.
	Honest bool
	// MaxLoss is that of the buffer.
	MaxLoss time.Duration
	// Flushes returns how many flushes the disk has confirmed since it was
	// switched on, and Lag is how many of the last it may have lied about.
	// They are used when the disk is not honest.
	Flushes func() int
	Lag     int
	// Exact: what was durable before those flushes must be there.
	Exact bool
	// Spared are the batches that the same cuts leave when the journal of ext4 stays
	// as it was before those flushes: one that is gone nevertheless was on the disk,
	// and ext4 itself has lost the way to it.
	Spared map[Batch]bool
	// Forgot: the head of that journal has moved in one of the cuts. Otherwise only
	// a damaged file system is a reason to lose what is Spared.
	Forgot bool
	// Spoilt: the rig has damaged a file, though no batch in it.
	Spoilt bool
	// Broken: the file system itself was damaged by the last cut, so whole
	// files may be gone.
	Broken bool

	// Log is told of what is worth a look; may be nil.
	Log func(format string, args ...any)

	Counts Counts

	lanes      [lanes]lane
	epoch      string
	boot       int
	ready      bool
	isOpen     bool // this run has opened it
	clean      bool
	anew       bool // the store was made anew by this start or by one that was cut
	wasClean   bool // the run before ended with Close
	ending     bool // Close was called
	wasEnding  bool // likewise in the run before
	held       [lanes]map[uint64]Batch
	ledger     []buffer.Loss
	violations []string
}

// Counts are what was seen, for the report.
type Counts struct {
	Starts      int // with everything found checked
	Given       int // batches that Append took
	Durable     int // batches that were durable
	Checked     int // batches found at a start and compared
	Acked       int // batches the receiver has acknowledged
	Repeats     int // acknowledged batches found again
	Lost        int // durable batches that are gone
	Beyond      int // of those, durable before the last flushes that the disk lied about
	Forgotten   int // of those, lost by ext4 itself
	Dropped     int // batches dropped because the buffer was full, and told
	Restart     int // batches in memory that a cut took, and told
	Salvaged    int // batches that the buffer itself says it has saved
	Quarantined int // starts after which files lay in quarantine
	Epochs      int // times that the store had to be made anew
	Errors      int // error lines of writers
	Slowest     time.Duration
	Flushes     int // most that a start took until everything was read
	Notes       map[string]int
}

type lane struct {
	batches map[uint64]*promise
	seen    map[uint64]uint64 // by the receiver: number to sum
	past    map[Batch]bool    // all that was ever given; kept when the disk is not honest
	told    spans             // in any loss that was ever in the ledger or told
	full    spans             // in one that says there was no room
	aside   spans             // set aside, or about to be
	intent  *Batch
	top     uint64   // highest number that was given
	passed  uint64   // highest number that the receiver has seen or that was durable
	stored  uint64   // everything up to here is durable
	found   []uint64 // at start, though never promised: a commit that was cut short. It is durable with the next sync
}

// promise is what was said of one number. A number that never left and never
// was durable may be given again; then both contents may turn up.
type promise struct {
	ways   []Batch
	stored bool
	flush  int  // how many flushes were confirmed when it became durable, or before
	risky  bool // it was among the last that the disk lied about
	acked  bool
}

// before is the flush of what was durable when the disk was switched on: no
// flush since then was one that it depends on.
const before = math.MinInt / 2

// Violations returns what was broken so far.
func (f *Life) Violations() []string { return f.violations }

func (f *Life) violate(format string, args ...any) {
	f.violations = append(f.violations, fmt.Sprintf(format, args...))
}

func (f *Life) note(format string, args ...any) {
	if f.Log != nil {
		f.Log(format, args...)
	}
}

// Up says that a writer is about to be started.
func (f *Life) Up() {
	f.ledger, f.anew = nil, f.anew && !f.ready
	f.wasClean, f.clean, f.ready, f.isOpen = f.clean, false, false, false
	f.wasEnding, f.ending = f.ending, false
	for i := range f.held {
		f.held[i] = make(map[uint64]Batch)
	}
	for i := range f.lanes {
		if f.lanes[i].batches == nil {
			f.lanes[i].batches = make(map[uint64]*promise)
			f.lanes[i].seen = make(map[uint64]uint64)
			f.lanes[i].past = make(map[Batch]bool)
		}
	}
	if f.Counts.Notes == nil {
		f.Counts.Notes = make(map[string]int)
	}
}

// Ready tells whether the writer has told all that it found at start.
func (f *Life) Ready() bool { return f.ready }

// Clean tells whether the writer has closed the buffer.
func (f *Life) Clean() bool { return f.clean }

// Down says that the writer is gone and that the disk had confirmed so many
// flushes by then.
func (f *Life) Down(flushes int) {
	for i := range f.lanes {
		for _, p := range f.lanes[i].batches {
			p.risky = p.risky || p.stored && p.flush > flushes-f.Lag
			p.flush = before
		}
	}
}

// Line takes one line of a writer.
func (f *Life) Line(line string) {
	if line == "" {
		return
	}
	var err error
	switch line[0] {
	case KindOpened:
		err = f.opened(line)
	case KindHeld:
		var b Batch
		if b, err = parseBatch(line); err == nil {
			f.found(b)
		}
	case KindLedger:
		var l buffer.Loss
		if l, err = parseLoss(line); err == nil {
			f.ledger = append(f.ledger, l)
		}
	case KindReady:
		err = f.check(line)
	case KindIntent:
		var b Batch
		if b, err = parseBatch(line); err == nil {
			f.lanes[b.Lane].intent = &b
		}
	case KindGiven:
		var kind string
		var l buffer.Lane
		var seq uint64
		var durable int
		if _, err = fmt.Sscan(line, &kind, &l, &seq, &durable); err == nil {
			f.given(l, seq, durable == 1)
		}
	case KindStored:
		var kind string
		var l buffer.Lane
		var seq uint64
		if _, err = fmt.Sscan(line, &kind, &l, &seq); err == nil {
			f.storedUpTo(l, seq)
		}
	case KindSent, KindAcked:
		var kind string
		var l buffer.Lane
		var seq, sum uint64
		if _, err = fmt.Sscanf(line, "%s %d %d %x", &kind, &l, &seq, &sum); err == nil {
			f.sent(l, seq, sum, line[0] == KindAcked)
		}
	case KindAside:
		var kind string
		var l buffer.Lane
		var seq uint64
		if _, err = fmt.Sscan(line, &kind, &l, &seq); err == nil {
			f.lanes[l].aside.add(seq, seq)
		}
	case KindTold:
		var l buffer.Loss
		if l, err = parseLoss(line); err == nil {
			f.told(l)
		}
	case KindEnding:
		f.ending = true
	case KindClosed:
		f.clean = true
	case KindError:
		f.Counts.Errors++
	case KindNote:
		f.Counts.Notes[strings.TrimSpace(line[1:])]++
	default:
		err = fmt.Errorf("unknown kind")
	}
	if err != nil {
		f.violate("the writer said %q: %v", line, err)
	}
}

func (f *Life) opened(line string) error {
	var kind, epoch, stopped string
	var boot int
	var ms int64
	if _, err := fmt.Sscan(line, &kind, &epoch, &boot, &ms, &stopped); err != nil {
		return err
	}
	if f.isOpen { // it could not read everything, has closed it and opens it once more
		f.ledger = nil
		for i := range f.held {
			f.held[i] = make(map[uint64]Batch)
		}
	}
	took := time.Duration(ms) * time.Millisecond
	f.Counts.Slowest = max(f.Counts.Slowest, took)
	if took > OpenLimit {
		f.violate("the start took %v", took)
	}
	if f.epoch != "" && epoch != f.epoch {
		f.Counts.Epochs++
		f.anew = true
		if f.Honest || !f.Broken {
			f.violate("epoch %s became %s", f.epoch, epoch)
		}
		for i := range f.lanes { // numbers compare within one epoch
			ln := &f.lanes[i]
			ln.seen, ln.told, ln.full, ln.aside = make(map[uint64]uint64), spans{}, spans{}, spans{}
			ln.top, ln.passed, ln.stored = 0, 0, 0
			for _, p := range ln.batches {
				p.acked = false
			}
		}
	} else if f.Honest && boot <= f.boot {
		f.violate("start %d after start %d", boot, f.boot)
	}
	if how := map[bool]string{true: "clean", false: "power"}[f.wasClean]; f.Honest && f.epoch != "" && stopped != how && f.wasClean == f.wasEnding && !f.isOpen {
		f.violate("the last run is said to have ended %q and not %q", stopped, how)
	}
	f.epoch, f.boot, f.isOpen = epoch, boot, true
	return nil
}

// found takes a batch that was there at start.
func (f *Life) found(b Batch) {
	if _, twice := f.held[b.Lane][b.Seq]; twice {
		f.violate("%s %d was found twice", b.Lane, b.Seq)
	}
	f.held[b.Lane][b.Seq] = b
	f.known(b.Lane, b.Seq, b.Sum, &b, "was found with")
	f.Counts.Checked++
}

// known checks the content of a number against all that was said of it.
func (f *Life) known(l buffer.Lane, seq, sum uint64, whole *Batch, how string) {
	ln := &f.lanes[l]
	if old, ok := ln.seen[seq]; ok && old != sum {
		f.violate("%s %d %s other bytes than the receiver has of that number", l, seq, how)
		return
	}
	p := ln.batches[seq]
	if p != nil {
		for i := range p.ways {
			w := &p.ways[i]
			if w.Sum != sum || p.stored && i < len(p.ways)-1 {
				continue
			}
			if whole != nil && (w.Count != whole.Count || w.From != whole.From || w.To != whole.To) {
				f.violate("%s %d %s count %d, times %d..%d, and not %d, %d..%d", l, seq, how, whole.Count, whole.From, whole.To, w.Count, w.From, w.To)
			}
			return
		}
	}
	if ln.intent != nil && ln.intent.Sum == sum && (p == nil || !p.stored) { // Append had not returned yet
		b := *ln.intent
		b.Seq = seq
		if p == nil {
			p = &promise{}
			ln.batches[seq] = p
		}
		p.ways = append(p.ways, b)
		if !f.Honest {
			ln.past[b] = true
		}
		return
	}
	if whole != nil && ln.past[*whole] { // the disk went back in time
		f.Counts.Notes["came-back"]++
		ln.batches[seq] = &promise{ways: []Batch{*whole}}
		return
	}
	f.violate("%s %d %s bytes that were never appended as this number", l, seq, how)
}

func (f *Life) given(l buffer.Lane, seq uint64, durable bool) {
	ln := &f.lanes[l]
	if ln.intent == nil {
		f.violate("%s %d was given for nothing", l, seq)
		return
	}
	b := *ln.intent
	b.Seq, ln.intent = seq, nil
	f.Counts.Given++
	if !f.Honest {
		ln.past[b] = true
	}
	least := max(ln.passed, ln.top)
	p := ln.batches[seq]
	fresh := p != nil && len(p.ways) > 0 && p.ways[len(p.ways)-1].Sum == b.Sum // the receiver was faster than Append
	if seq <= least && !fresh {
		f.violate("%s %d was given after %d", l, seq, least)
	}
	if sum, ok := ln.seen[seq]; ok && sum != b.Sum {
		f.violate("%s %d was given to other bytes than the receiver has of that number", l, seq)
	}
	if !fresh {
		if p == nil || p.stored {
			p = &promise{}
			ln.batches[seq] = p
		}
		p.ways = append(p.ways, b)
	}
	ln.top = max(ln.top, seq)
	if durable {
		f.store(ln, seq)
	}
}

func (f *Life) store(ln *lane, seq uint64) {
	p := ln.batches[seq]
	if p == nil || p.stored {
		return
	}
	p.stored = true
	p.ways = p.ways[len(p.ways)-1:]
	if f.Flushes != nil {
		p.flush = f.Flushes()
	}
	ln.passed = max(ln.passed, seq)
	f.Counts.Durable++
}

func (f *Life) storedUpTo(l buffer.Lane, seq uint64) {
	ln := &f.lanes[l]
	for n := ln.stored + 1; n <= seq; n++ {
		f.store(ln, n)
	}
	ln.stored = max(ln.stored, seq)
	left := ln.found[:0]
	for _, n := range ln.found {
		if n <= seq {
			f.store(ln, n)
		} else {
			left = append(left, n)
		}
	}
	ln.found = left
}

func (f *Life) sent(l buffer.Lane, seq, sum uint64, acked bool) {
	ln := &f.lanes[l]
	f.known(l, seq, sum, nil, "was sent with")
	ln.seen[seq] = sum
	ln.passed = max(ln.passed, seq)
	ln.top = max(ln.top, seq)
	if p := ln.batches[seq]; p != nil && acked && !p.acked {
		p.acked = true
		f.Counts.Acked++
	}
}

func (f *Life) told(l buffer.Loss) {
	ln := &f.lanes[l.Lane]
	ln.told.add(l.From, l.To)
	switch l.Why {
	case buffer.WhyFull:
		ln.full.add(l.From, l.To)
	case buffer.WhyPoison:
		ln.aside.add(l.From, l.To)
	}
}

// Count counts what the rig itself has seen.
func (f *Life) Count(what string) {
	if f.Counts.Notes == nil {
		f.Counts.Notes = make(map[string]int)
	}
	f.Counts.Notes[what]++
}

// Violate notes a broken promise that the rig itself has seen.
func (f *Life) Violate(format string, args ...any) { f.violate(format, args...) }

// Add adds up the counts of several lives.
func (c *Counts) Add(o *Counts) {
	c.Starts += o.Starts
	c.Given += o.Given
	c.Durable += o.Durable
	c.Checked += o.Checked
	c.Acked += o.Acked
	c.Repeats += o.Repeats
	c.Lost += o.Lost
	c.Beyond += o.Beyond
	c.Forgotten += o.Forgotten
	c.Dropped += o.Dropped
	c.Restart += o.Restart
	c.Salvaged += o.Salvaged
	c.Quarantined += o.Quarantined
	c.Epochs += o.Epochs
	c.Errors += o.Errors
	c.Slowest = max(c.Slowest, o.Slowest)
	c.Flushes = max(c.Flushes, o.Flushes)
	for k, n := range o.Notes {
		c.Notes[k] += n
	}
}
