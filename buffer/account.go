package buffer

import (
	"cmp"
	"errors"
	"math"
	"os"
	"slices"
)

// account closes what nobody knows of any more: numbers that are neither
// done nor held. Those above all that was stored were in memory, or were
// never given, when the last run ended; those below were stored and are gone.
func (q *Queue) account(l Lane, clean, anew bool, before int64) error {
	ln := &q.lanes[l]
	if n := len(ln.segs); n > 0 && ln.segs[n-1].bad { // what it held is found out by its repair
		for _, s := range ln.segs {
			if s.bad && s.sum.last == ln.segs[n-1].sum.last {
				s.sum.last, s.sum.t1 = max(s.sum.last, ln.given), max(s.sum.t1, before)
			}
		}
	}
	var here ranges
	top := uint64(0)
	for _, s := range ln.segs {
		if s.sum.last >= s.sum.first {
			here.add(s.sum.first, s.sum.last)
			top = max(top, s.sum.last)
		}
	}
	ln.given = max(ln.given, top)
	if n := len(ln.done.s); n > 0 {
		ln.given = max(ln.given, ln.done.s[n-1].b)
	}
	if !clean {
		ln.given = max(ln.given, ln.reserved)
	}
	was := ln.done
	if anew { // of what was done nobody knows any more which part was lost: all is told
		ln.done = ranges{}
		here = *here.without(&was)
	}
	if !anew || q.adrift != nil {
		known := was.clone()
		known.union(&here)
		if err := q.bringBack(l, &known, clean); err != nil {
			return err
		}
		here = *known.without(&was)
	}
	here.union(&ln.done)
	for _, h := range here.holes(1, ln.given) {
		loss := Loss{Lane: l, From: h.a, To: h.b, Batches: int64(h.b - h.a + 1), Readings: -1, T0: before, T1: before, Why: WhyCorrupt}
		if h.a > top || anew {
			loss.Why, loss.Batches = WhyRestart, -1
			if !clean {
				loss.T1 = q.time()
			}
		}
		ln.done.add(h.a, h.b)
		q.lose(loss)
	}
	ln.stored, ln.reserved = ln.given, ln.given
	return nil
}

// bringBack looks for records that are whole on disk although no transaction
// leads to them: their commit did not finish, or a disk that confirms too
// early lost its end. They wait in memory to be stored again. It looks into
// the segment before each hole and, after a crash, into the last one, which is
// then not gone on with: its pages are free for bbolt, and a commit that such a
// disk loses would take what stands there along. ErrKey when one of them wants
// another key: it must not be taken for missing.
func (q *Queue) bringBack(l Lane, here *ranges, clean bool) error {
	ln := &q.lanes[l]
	wanted := make(map[*segment]*ranges)
	want := func(h span) {
		for i := len(ln.segs) - 1; i >= 0; i-- {
			if s := ln.segs[i]; s.sum.last < h.a {
				if !s.bad {
					if wanted[s] == nil {
						wanted[s] = &ranges{}
					}
					wanted[s].add(h.a, h.b)
				}
				return
			}
		}
	}
	for _, h := range here.holes(1, ln.given) {
		want(h)
	}
	if !clean {
		want(span{ln.given + 1, math.MaxUint64 - 1})
	}
	var locked error
	for s, numbers := range wanted {
		f, err := os.Open(s.path)
		if err != nil {
			continue
		}
		scan(f, s.size, l, func(r found) {
			if !numbers.has(r.number) || here.has(r.number) {
				return
			}
			if q.memory+int64(r.length) > q.tune.memory/2 { // too much for memory: a repair saves it
				s.bad = true
				s.sum.last = max(s.sum.last, r.number)
				here.add(r.number, r.number)
				ln.given = max(ln.given, r.number)
				return
			}
			h := &held{seq: r.number, rec: make([]byte, r.length), count: r.count, from: r.t0, to: r.t1}
			if readSome(f, h.rec, r.at) < r.length {
				return
			}
			e, plain, err := q.unseal(h.rec)
			if errors.Is(err, ErrKey) {
				locked = err
			}
			if err != nil || e.number != r.number {
				return
			}
			if r.key != "" {
				h.rec = append(h.rec[:recordHead], plain...)
			}
			here.add(r.number, r.number)
			ln.given = max(ln.given, r.number)
			ln.mem = append(ln.mem, h)
			q.begun[l] = true
			q.memory += h.bytes()
		}, func(*ride) {})
		f.Close()
	}
	slices.SortFunc(ln.mem, func(a, b *held) int { return cmp.Compare(a.seq, b.seq) })
	q.salvaged += int64(len(ln.mem))
	return locked
}
