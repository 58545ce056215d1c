package history

import (
	"fmt"
	"slices"

	"tidegate/buffer"
)

// check compares what was found at a start with all that was promised.
func (f *Life) check(line string) error {
	var kind string
	var given [lanes]uint64
	var used, limit int64
	var quarantined, salvaged int
	if _, err := fmt.Sscan(line, &kind, &given[0], &given[1], &used, &limit, &quarantined, &salvaged); err != nil {
		return err
	}
	if used > limit {
		f.violate("the files take %d bytes of at most %d", used, limit)
	}
	f.Counts.Salvaged += salvaged
	if quarantined > 0 {
		f.Counts.Quarantined++
		if f.Honest && !f.Spoilt {
			f.violate("a crash looks like damage: %d files in quarantine", quarantined)
		}
	}
	if f.Flushes != nil {
		n := f.Flushes()
		if f.Counts.Flushes = max(f.Counts.Flushes, n); n > flushLimit {
			f.violate("opening and reading it took %d flushes", n)
		}
	}
	f.checkLedger()
	for l := range buffer.Lane(lanes) {
		f.checkLane(l, given[l])
	}
	f.Counts.Starts++
	f.ready = true
	return nil
}

func (f *Life) checkLedger() {
	for _, l := range f.ledger {
		// The disk may forget that a segment was dropped and its blocks used again.
		f.Exact = f.Exact && l.Why != buffer.WhyFull
		if gap, fresh := f.lanes[l.Lane].told.hole(l.From, l.To); fresh && f.wasClean && l.Why != buffer.WhyFull {
			f.violate("%d..%d are told as lost after a clean stop: %+v", gap.a, gap.b, l)
		}
		f.told(l)
		if !f.Honest || len(f.ledger) >= 1000 { // beyond that neighbours are joined
			continue
		}
		switch l.Why {
		case buffer.WhyCorrupt:
			if f.Spoilt {
				break
			}
			f.violate("a crash looks like damage: %+v", l)
		case buffer.WhyFull:
			f.checkCounts(l)
		}
		for n, b := range f.held[l.Lane] {
			if l.From <= n && n <= l.To {
				f.violate("%s %d is held and in the ledger: %+v", b.Lane, n, l)
				break
			}
		}
	}
}

// checkCounts: a loss for want of room says exactly how much it is.
func (f *Life) checkCounts(l buffer.Loss) {
	readings := int64(0)
	for n := l.From; n <= l.To; n++ {
		p := f.lanes[l.Lane].batches[n]
		if p == nil {
			return // it was told at an earlier start
		}
		readings += int64(p.ways[len(p.ways)-1].Count)
	}
	if l.Batches != int64(l.To-l.From+1) || l.Readings != readings {
		f.violate("the loss %+v has %d batches, %d readings", l, l.To-l.From+1, readings)
	}
}

func (f *Life) checkLane(l buffer.Lane, given uint64) {
	ln := &f.lanes[l]
	held := f.held[l]
	if last := max(ln.passed, ln.top); given < last { // on a lying disk, too: it must not be given again
		f.violate("%s: the last number is %d after %d", l, given, last)
	}

	// Every number is held, or the receiver has it, or a loss names it.
	accounted := spans{s: slices.Clone(ln.told.s)}
	for n := range held {
		accounted.add(n, n)
	}
	for n, p := range ln.batches {
		if p.acked {
			accounted.add(n, n)
		}
	}
	for n := range ln.seen {
		accounted.add(n, n)
	}
	if gap, missing := accounted.hole(1, given); missing {
		f.violate("%s %d..%d are missing silently (last given %d)", l, gap.a, gap.b, given)
	}

	lowest := ^uint64(0)
	for n := range held {
		lowest = min(lowest, n)
	}
	for n, p := range ln.batches {
		if _, here := held[n]; here {
			if p.acked {
				f.Counts.Repeats++
			}
			continue
		}
		switch {
		case p.acked:
		case ln.aside.has(n):
		case ln.full.has(n):
			f.Counts.Dropped++
			if f.Honest && !f.Spoilt && p.stored && n > lowest { // one that is being repaired is not dropped
				f.violate("%s %d was dropped before %d, which is older", l, n, lowest)
			}
		case !p.stored:
			f.Counts.Restart++
		default:
			f.lose(l, n, given, p)
		}
	}
	f.settle(ln, given, held)
}

// lose takes a durable batch that is gone.
func (f *Life) lose(l buffer.Lane, n, given uint64, p *promise) {
	f.Counts.Lost++
	if f.Honest {
		f.violate("%s %d was durable and is gone (told: %v)", l, n, f.lanes[l].told.has(n))
		return
	}
	if !p.risky {
		f.Counts.Beyond++
		f.note("%s %d is gone (told: %v) though it was older than the last flushes", l, n, f.lanes[l].told.has(n))
		was := p.ways[0]
		was.Lane, was.Seq = l, n
		if f.Spared[was] && (f.Forgot || f.Broken) {
			f.Counts.Forgotten++
		} else if f.Exact {
			f.violate("%s %d was durable before the last %d flushes and is gone", l, n, f.Lag)
		}
	}
	switch {
	case f.anew: // the receiver sees that the store is another one
		f.Counts.Notes["lost-with-the-store"]++
	case !f.lanes[l].told.has(n):
		f.violate("%s %d was durable and is gone, and no loss names it: the last number is now %d", l, n, given)
	}
}

// settle makes what was found the promise for the next start.
func (f *Life) settle(ln *lane, given uint64, held map[uint64]Batch) {
	old := ln.batches
	ln.batches = make(map[uint64]*promise, len(held))
	ln.found = ln.found[:0]
	for n, b := range held {
		p := &promise{ways: []Batch{b}, flush: before}
		if was := old[n]; was != nil {
			// What the disk lied about is durable when it is stored once more.
			p.acked, p.stored = was.acked, was.stored && !was.risky
		}
		if !p.stored {
			ln.found = append(ln.found, n)
		}
		ln.batches[n] = p
		ln.passed = max(ln.passed, n)
	}
	ln.intent = nil
	ln.top, ln.stored = given, given
}
