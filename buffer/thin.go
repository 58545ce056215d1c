package buffer

import (
	"errors"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// flagThinned marks a record that stands for others before it.
const flagThinned = 2

const (
	// These bound what is given to Options.Thin at a time.
	thinRunBatches = 1024
	thinRunBytes   = 1 << 20
)

// thinOldest makes room in the oldest segment that was not thinned yet: runs
// of its batches become one batch each, with the last number of the run; the
// other numbers go into the ledger. It says whether a file became smaller.
// Thinned segments may take half of the buffer; after that the oldest of them
// goes, so that the newest data stay as they were measured.
//
// A number never stands for two contents: one that Next or Prev has shown,
// and that so may have left the gateway, carries no thinned batch.
//
// The fresh file is whole on disk before the Loss, and takes the place of the
// old one after it. A crash between leaves the old file, of which only those
// numbers are still held that the fresh one would have: raw, and told as
// thinned.
func (q *Queue) thinOldest() (bool, error) {
	if q.thin == nil {
		return false, nil
	}
	for {
		q.mu.Lock()
		var seg *segment
		joined := int64(0)
		for _, s := range q.lanes[Data].segs {
			if s.sum.thinned {
				joined += s.size
			}
			if seg == nil && s != q.tail[Data] && s != q.busy && !s.bad && !s.sum.thinned && s.sum.count > 0 {
				seg = s
			}
		}
		q.mu.Unlock()
		if seg == nil || joined > q.size/2 {
			return false, nil
		}
		smaller, err := q.thinSegment(seg)
		if isDamage(err) || errors.Is(err, ErrKey) {
			err = nil // it cannot be read now: the next one, or drop-oldest
		}
		if err != nil || smaller {
			return smaller, err
		}
		q.mu.Lock()
		seg.sum.thinned = true // not worth another try by this run
		q.mu.Unlock()
	}
}

// thinRecord is a record of the fresh file.
type thinRecord struct {
	number uint64
	count  int
	t0, t1 int64
	rec    []byte
}

func (q *Queue) thinSegment(seg *segment) (bool, error) {
	kept, loss, gone, err := q.thinBatches(seg)
	if err != nil || loss.From == 0 { // nothing becomes smaller
		return false, err
	}
	var room blocks
	for i := range kept {
		room.add(len(kept[i].rec))
	}
	size := 16*pageSize + room.bytes() // with what bbolt itself takes
	if free, err := q.room(Data, true); err != nil || size > free || size > seg.size*3/4 {
		return false, err
	}
	fresh := seg.path + suffixNew
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	sum, high, err := q.writeThinned(fresh, seg.size, seg.sum, kept)
	if err != nil {
		os.Remove(fresh)
		return false, err
	}
	q.tune.step()
	q.mu.Lock()
	ln := &q.lanes[Data]
	for i := range kept {
		if kept[i].rec[10]&flagThinned != 0 && (ln.shown.has(kept[i].number) || ln.done.has(kept[i].number)) {
			q.mu.Unlock() // it left while the fresh file was written
			return false, os.Remove(fresh)
		}
	}
	for _, s := range gone.s {
		for n := s.a; n <= s.b; n++ {
			if ln.find(n) != nil {
				q.finish(ln, n)
			}
		}
		ln.done.add(s.a, s.b)
	}
	for i := range kept { // what of it is still in memory is the old content
		if h := ln.find(kept[i].number); h != nil && kept[i].rec[10]&flagThinned != 0 {
			q.cached -= h.bytes()
			h.rec = nil
			ln.leave(h)
		}
	}
	ln.sweep()
	q.lose(loss)
	for i := range kept {
		if kept[i].rec[10]&flagThinned != 0 {
			q.thinned++
		}
	}
	q.mu.Unlock()
	if err := q.saveState(false); err != nil {
		os.Remove(fresh)
		return false, err
	}
	q.tune.step()
	q.cool(seg)
	_ = seg.close(true)
	if err := rename(fresh, seg.path); err != nil {
		return false, err
	}
	q.tune.step()
	q.mu.Lock()
	for i, s := range ln.segs {
		if s == seg {
			ln.segs[i] = &segment{lane: Data, path: seg.path, log: q.log, sum: sum, size: high}
		}
	}
	q.mu.Unlock()
	q.measure()
	return true, nil
}

// thinBatches reads what is still held of a segment and makes the records of
// the fresh file, the Loss for the others, and their numbers.
func (q *Queue) thinBatches(seg *segment) (kept []thinRecord, loss Loss, gone ranges, err error) {
	var numbers []uint64
	if _, _, err := inspect(seg.path, func(n uint64, _ int64) { numbers = append(numbers, n) }); err != nil {
		return nil, loss, gone, err
	}
	q.mu.Lock()
	done, shown := q.lanes[Data].done.clone(), q.lanes[Data].shown.clone()
	q.mu.Unlock()
	var run []Item
	var bytes [][]byte
	loss = Loss{Lane: Data, Why: WhyThinned}
	for i := 0; i < len(numbers) || len(run) > 0; {
		size := 0
		for k := range run {
			size += len(run[k].Bytes)
		}
		for i < len(numbers) && len(run) < thinRunBatches && size < thinRunBytes {
			n := numbers[i]
			if i++; done.has(n) {
				continue
			}
			it, err := seg.read(q, n)
			if err != nil {
				return nil, loss, gone, err
			}
			run = append(run, it)
			size += len(it.Bytes)
		}
		if len(run) == 0 {
			break
		}
		bytes = bytes[:0]
		for k := range run {
			bytes = append(bytes, run[k].Bytes)
		}
		b, count, from, to, n := q.thin(bytes)
		carrier := n - 1 // the last that has not been shown
		for carrier >= 0 && shown.has(run[carrier].Seq) {
			carrier--
		}
		if n <= 0 || n > len(run) || carrier < 0 {
			kept = append(kept, q.thinSealed(run[0].Seq, run[0].Batch, 0))
			run = run[1:]
			continue
		}
		kept = append(kept, q.thinSealed(run[carrier].Seq, Batch{Bytes: b, Count: count, From: from, To: to}, flagThinned))
		for k, it := range run[:n] {
			loss.Readings += int64(it.Count)
			if loss.From == 0 {
				loss.From, loss.T0, loss.T1 = it.Seq, it.From, it.To
			}
			loss.To = it.Seq
			loss.T0, loss.T1 = min(loss.T0, it.From), max(loss.T1, it.To)
			if k == carrier { // it comes, with less in it
				continue
			}
			loss.Batches++
			gone.add(it.Seq, it.Seq)
		}
		loss.Readings -= int64(count)
		run = run[n:]
	}
	return kept, loss, gone, nil
}

// thinSealed makes the record of a batch as it goes to disk.
func (q *Queue) thinSealed(number uint64, b Batch, flags byte) thinRecord {
	rec := make([]byte, recordHead+len(b.Bytes))
	copy(rec[recordHead:], b.Bytes)
	e := envelope{lane: Data, number: number, count: uint32(b.Count), t0: b.From, t1: b.To, flags: flags}
	return thinRecord{number: number, count: b.Count, t0: b.From, t1: b.To, rec: q.key.seal(e, q.epoch, rec)}
}

// writeThinned writes the fresh file.
func (q *Queue) writeThinned(path string, size int64, old summary, kept []thinRecord) (sum summary, high int64, err error) {
	sum = summary{epoch: q.epoch, lane: Data, no: old.no, key: q.key.id(), thinned: true}
	b, err := openBolt(path, size, stateStep, q.log)
	if err != nil {
		return sum, 0, err
	}
	defer b.close()
	q.mu.Lock()
	r := q.ride()
	q.mu.Unlock()
	for len(kept) > 0 {
		n := fitting(len(kept), q.tune.chunk, func(i int) int { return len(kept[i].rec) })
		for _, k := range kept[:n] {
			sum.add(k.number, k.count, k.t0, k.t1)
		}
		written, err := b.update(func(tx *bbolt.Tx) error {
			return putBatches(tx, n, func(i int) (uint64, []byte, error) { return kept[i].number, kept[i].rec, nil }, &sum, r)
		})
		q.wrote(written)
		if err != nil {
			return sum, 0, err
		}
		kept = kept[n:]
	}
	if err := b.view(func(tx *bbolt.Tx) error { high = tx.Size(); return nil }); err != nil {
		return sum, 0, err
	}
	if err := b.file.Truncate(high); err != nil {
		return sum, 0, err
	}
	if err := b.file.Sync(); err != nil {
		return sum, 0, err
	}
	return sum, high, syncDir(filepath.Dir(path))
}

// show notes that a number was shown to the sender. The caller holds mu.
func (q *Queue) show(ln *lane, n uint64) {
	if q.thin == nil || ln != &q.lanes[Data] || ln.shown.has(n) {
		return
	}
	ln.shown.add(n, n)
	if len(ln.shown.s) > 256 { // what is done needs no memory of it
		ln.shown = *ln.shown.without(&ln.done)
	}
}

// mayLeave is how many batches at either end of the backlog a sender may have
// had under way when the last run ended: more than any window.
const mayLeave = 128

// showBefore takes the batches that the last run may have sent, and of which
// no acknowledgement is known, as shown. Where several senders share the
// queue, one of them may have sent anything.
func (q *Queue) showBefore() {
	if q.thin == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	ln := &q.lanes[Data]
	if q.shared {
		ln.shown.add(1, ln.given)
		return
	}
	for i, n := 0, ln.done.next(1); i < mayLeave && n <= ln.given; i, n = i+1, ln.done.next(n+1) {
		ln.shown.add(n, n)
	}
	for i, n := 0, ln.done.prev(ln.given); i < mayLeave && n > 0; i, n = i+1, ln.done.prev(n-1) {
		ln.shown.add(n, n)
	}
}
