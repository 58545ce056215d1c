package buffer

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"
)

// Sync commits what is due. When a data batch has waited for olderThan, all
// data that waits is committed in one transaction; events are committed
// whatever their age; 0 commits everything. It also does what else the disk
// needs, at most every 30 s: acknowledgements and forgotten losses, and it
// reserves numbers, unlinks delivered segments and repairs a damaged one.
// When nothing is due, it does not touch the disk.
//
// An error says that the disk failed. Nothing is lost by it: the batches
// stay in memory, and the next Sync tries again.
func (q *Queue) Sync(olderThan time.Duration) error {
	q.disk.Lock()
	defer q.disk.Unlock()
	return q.sync(olderThan, false)
}

// Idle tells whether nothing waits for Sync but what has time: every batch is
// delivered or on disk, and so is what was lost; no error of the disk is
// to be tried again. False after an Append, until Ack or Sync.
func (q *Queue) Idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.memory == 0 && !q.lossDirty && !q.settling && q.adrift == nil && q.lastError == nil
}

// Due tells whether Sync would commit data of that age.
func (q *Queue) Due(olderThan time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, h := range q.lanes[Data].mem {
		if !h.gone && h.place == waiting {
			return time.Since(h.born) >= olderThan
		}
	}
	return false
}

func (q *Queue) sync(olderThan time.Duration, closing bool) error {
	if err := q.ready(); err != nil {
		return err
	}
	if err := q.resting(); err != nil && !closing {
		return err
	}
	if q.adrift != nil {
		if err := q.ashore(); err != nil {
			return q.failed(fmt.Errorf("nothing can be written, readings are only in memory: %w", err))
		}
	}
	if q.lossWaits() { // before any ride says that those numbers are done
		if err := q.saveState(false); err != nil {
			return err
		}
	}
	if err := q.reserve(); err != nil {
		return err
	}
	for _, l := range [...]Lane{Event, Data} {
		upto := q.Given(l) // those that come meanwhile wait for the next Sync
		for {
			group := q.take(l, olderThan, upto)
			if len(group) == 0 {
				break
			}
			if err := q.store(l, group); err != nil {
				return err
			}
		}
	}
	if q.stateDue() {
		if err := q.saveState(false); err != nil {
			return err
		}
	}
	if err := q.unlinkDelivered(closing); err != nil {
		return q.failed(err)
	}
	if seg := q.damagedOne(); seg != nil && !closing {
		if err := q.repair(seg); err != nil {
			return q.failed(err)
		}
	}
	q.mu.Lock()
	q.lastError = nil
	q.mu.Unlock()
	return nil
}

// ready tells whether the queue is open for writing.
func (q *Queue) ready() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.refuse()
}

// refuse is why nothing may be written, nil if something may. The caller holds mu.
func (q *Queue) refuse() error {
	switch {
	case q.closed:
		return ErrClosed
	case q.readOnly:
		return ErrReadOnly
	}
	return nil
}

// resting returns the last error of the disk while it is too early to try again.
func (q *Queue) resting() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lastError != nil && time.Since(q.lastErrorAt) < q.tune.retry {
		return q.lastError
	}
	return nil
}

// failed remembers an error of the disk and returns it.
func (q *Queue) failed(err error) error {
	if err == nil || errors.Is(err, ErrClosed) {
		return err
	}
	q.mu.Lock()
	q.lastError, q.lastErrorAt = fmt.Errorf("buffer: %w", err), time.Now()
	err = q.lastError
	q.mu.Unlock()
	return err
}

func (q *Queue) wrote(n int64) {
	q.mu.Lock()
	q.written += n
	if n > 0 {
		q.commits++
	}
	q.mu.Unlock()
}

func (q *Queue) lossWaits() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lossDirty
}

// stateDue tells whether the state has to be written for its own sake.
func (q *Queue) stateDue() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	old := func(t time.Time) bool { return !t.IsZero() && time.Since(t) >= q.tune.riding }
	return q.lossDirty || old(q.ackDirty) || old(q.ledgerDirty)
}

// take picks the batches for one commit and marks them as under way.
func (q *Queue) take(l Lane, olderThan time.Duration, upto uint64) []*held {
	q.mu.Lock()
	defer q.mu.Unlock()
	ln := &q.lanes[l]
	ln.sweep()
	var group []*held
	most := min(q.tune.chunk, q.segSize[l]/2)
	var room blocks
	for _, h := range ln.mem {
		if h.seq > upto {
			break
		}
		if h.gone || h.place != waiting {
			continue
		}
		if len(group) == 0 {
			if l == Data && olderThan > 0 && time.Since(h.born) < olderThan {
				return nil
			}
		}
		if room.add(len(h.rec)); room.bytes() > most && len(group) > 0 {
			break
		}
		group = append(group, h)
	}
	for _, h := range group {
		h.place = storing
	}
	return group
}

// store commits a group. After a commit that failed, its outcome is unknown
// and the kernel may believe pages clean that never reached the disk. So the
// segment is closed for good and the whole group goes into a fresh one.
func (q *Queue) store(l Lane, group []*held) error {
	for _, h := range group {
		e := envelope{lane: l, number: h.seq, count: uint32(h.count), t0: h.from, t1: h.to}
		h.out = q.key.seal(e, q.epoch, h.rec)
	}
	err := errRoll
	for try := 0; try < 3 && err != nil; try++ {
		var seg *segment
		if seg, err = q.writable(l, group); err != nil {
			break
		}
		for n := len(group); seg.sum.count == 0 && n > 1 && segmentNeed(group) > seg.size; n = len(group) {
			q.putBack(l, group[n/2:]) // the segment was made on a disk with little room
			group = group[:n/2]
		}
		sum, r, undo := q.prepare(l, seg, group)
		rollOver, n, failure := seg.append(group, sum, r)
		q.wrote(n)
		q.tune.step()
		if err = failure; err == nil {
			q.settle(l, seg, sum, group)
			return nil
		}
		undo()
		q.tail[l] = nil
		if rollOver {
			err = errRoll
			_ = seg.close(false)
		} else {
			_ = q.failed(err)
			q.retire(l, seg)
		}
	}
	q.putBack(l, group)
	return q.failed(err)
}

// prepare makes what goes along with a commit: the new summary and the ride.
// undo is for when the commit fails.
func (q *Queue) prepare(l Lane, seg *segment, group []*held) (summary, *ride, func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sum := seg.sum
	for _, h := range group {
		sum.add(h.seq, h.count, h.from, h.to)
	}
	r := q.ride()
	acks := q.ackDirty
	if !q.lossDirty {
		q.ackDirty = zeroTime
	}
	return sum, r, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.ackDirty.IsZero() {
			q.ackDirty = acks
		}
	}
}

// ride is what goes along with a commit. While a Loss waits for the ledger,
// what is done does not ride: its numbers would be passed over in silence by
// a start that has the ride and not the ledger. The caller holds mu.
func (q *Queue) ride() *ride {
	r := &ride{last: q.time(), gen: q.saved}
	for i := range q.lanes {
		ln := &q.lanes[i]
		r.lanes[i] = laneState{given: ln.given, reserved: max(ln.given, ln.reserved)}
		if !q.lossDirty {
			r.lanes[i].done = ln.done.clone()
		}
	}
	return r
}

// settle notes that a group is durable.
func (q *Queue) settle(l Lane, seg *segment, sum summary, group []*held) {
	q.mu.Lock()
	defer q.mu.Unlock()
	ln := &q.lanes[l]
	seg.sum = sum
	q.tailWrittenAt = time.Now()
	for _, h := range group {
		q.memory -= h.bytes()
		h.place, h.out = stored, nil
		ln.stored = max(ln.stored, h.seq)
		if h.gone { // acknowledged during the commit
			h.rec = nil
			q.touchAcks()
		} else {
			q.cached += h.bytes()
		}
	}
	for i := range q.lanes { // what is on disk need not stay in memory
		ln := &q.lanes[i]
		for _, h := range ln.mem {
			if q.cached <= q.tune.cache {
				break
			}
			if h.place == stored && !h.gone {
				q.cached -= h.bytes()
				h.rec = nil
				ln.leave(h)
			}
		}
		ln.sweep()
	}
}

// putBack lets a group wait again after its commit failed.
func (q *Queue) putBack(l Lane, group []*held) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, h := range group {
		h.place, h.out = waiting, nil
		if h.gone {
			q.memory -= h.bytes()
			h.rec = nil
		}
	}
	q.lanes[l].sweep()
	q.makeRoom()
}

// retire closes a segment on which a commit failed. It serves what was
// committed before; one that holds nothing is removed.
func (q *Queue) retire(l Lane, seg *segment) {
	_ = seg.close(false)
	q.mu.Lock()
	empty := seg.sum.count == 0
	if empty {
		q.forget(l, seg)
	}
	q.mu.Unlock()
	if empty {
		_ = seg.unlink()
	}
}

// forget takes a segment out of its lane. The caller holds mu.
func (q *Queue) forget(l Lane, seg *segment) {
	ln := &q.lanes[l]
	for i, s := range ln.segs {
		if s == seg {
			ln.segs = append(ln.segs[:i:i], ln.segs[i+1:]...)
			return
		}
	}
}

// writable returns the last segment of a lane, open for writing. A new one is
// smaller where the disk has no room for a whole one.
func (q *Queue) writable(l Lane, group []*held) (*segment, error) {
	if q.tail[l] != nil {
		return q.tail[l], nil
	}
	q.mu.Lock()
	var last *segment
	no := uint64(1)
	if n := len(q.lanes[l].segs); n > 0 {
		last = q.lanes[l].segs[n-1]
		no = last.sum.no + 1
	}
	bad := last != nil && (last.bad || last.size > q.segSize[l] || last.sum.key != q.key.id())
	q.mu.Unlock()
	if !q.begun[l] {
		q.begun[l] = true
		if last != nil && !bad && q.openForWriting(last) == nil {
			q.tail[l] = last
			return last, nil
		}
	}
	if err := q.ensureRoom(l, q.segSize[l], false); err != nil {
		return nil, err
	}
	seg := &segment{lane: l, path: filepath.Join(q.dir, segmentName(l, no)), log: q.log, size: q.segSize[l], checked: true}
	seg.sum = summary{epoch: q.epoch, lane: l, no: no, key: q.key.id()}
	b, err := makeSegment(seg.path, seg.size, q.log)
	for _, recycle := range []bool{false, true} {
		if !errors.Is(err, syscall.ENOSPC) || recycle && !q.mayRecycle(l) {
			break
		}
		if recycle {
			if _, err := q.dropOldest(l); err != nil {
				return nil, err
			}
		}
		if fits := q.fits(l); fits >= segmentNeed(group[:1]) {
			seg.size = fits
			b, err = makeSegment(seg.path, fits, q.log)
		}
	}
	if err != nil {
		return nil, err
	}
	seg.file = b
	q.mu.Lock()
	q.written += 4 * pageSize // as bbolt makes it
	q.lanes[l].segs = append(q.lanes[l].segs, seg)
	q.mu.Unlock()
	q.tail[l] = seg
	q.measure()
	q.tune.step()
	return seg, nil
}

// fits is the size of a segment that a disk with little room has room for: at
// most half of it for data, so that an event finds some. 0 when there is none.
func (q *Queue) fits(l Lane) int64 {
	var st syscall.Statfs_t
	if err := syscall.Statfs(q.dir, &st); err != nil {
		return 0
	}
	free := int64(st.Bavail) * int64(st.Bsize)
	if l == Data {
		free /= 2
	}
	size := q.segSize[l]
	for size > free && size >= 2*leastSegment {
		size /= 2
	}
	if size > free {
		return 0
	}
	return size / pageSize * pageSize
}

// mayRecycle: files that are not ours have filled the disk. What we hold is
// kept as long as memory bridges it; after that the oldest makes way.
func (q *Queue) mayRecycle(l Lane) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.memory > q.tune.memory/2 && len(q.lanes[l].segs) > 0
}

// unlinkDelivered removes the segments of which nothing is held any more.
// The state is written before: without it a start would miss their numbers.
func (q *Queue) unlinkDelivered(closing bool) error {
	q.mu.Lock()
	var gone []*segment
	for i := range q.lanes {
		ln := &q.lanes[i]
		for _, s := range ln.segs {
			if s == q.tail[i] {
				idle := q.maxLoss > 0 && time.Since(q.tailWrittenAt) >= q.tune.idle
				if !idle && !closing {
					continue
				}
			}
			if s.sum.count > 0 && !s.bad && ln.done.covers(s.sum.first, s.sum.last) {
				gone = append(gone, s)
			}
		}
	}
	q.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	if err := q.saveState(false); err != nil {
		return err
	}
	for _, s := range gone {
		if err := q.remove(s); err != nil {
			return err
		}
	}
	return nil
}

// remove unlinks a segment and forgets it.
func (q *Queue) remove(s *segment) error {
	l := s.sum.lane
	if q.tail[l] == s {
		q.tail[l] = nil
	}
	q.cool(s)
	if err := s.unlink(); err != nil {
		return err
	}
	q.tune.step()
	q.mu.Lock()
	q.forget(l, s)
	q.mu.Unlock()
	q.measure()
	return nil
}

func (q *Queue) measure() {
	n, err := usage(q.dir)
	if err != nil {
		return
	}
	q.mu.Lock()
	q.onDisk = n
	q.mu.Unlock()
}

// Close commits everything, writes the exact next numbers, and gives the
// directory back. After an error of the disk what could not be stored is
// gone, and the next start will say so. The queue cannot be used afterwards.
func (q *Queue) Close() error {
	q.disk.Lock()
	defer q.disk.Unlock()
	err := q.ready()
	if errors.Is(err, ErrClosed) {
		return nil
	}
	if err == nil {
		err = q.sync(0, true)
	}
	if err == nil {
		err = q.saveState(true)
	}
	if q.readOnly {
		err = nil
	}
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.abandon()
	return err
}

// Stats returns the state of the queue at this moment.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Stats{Memory: q.memory, Disk: q.onDisk, Limit: q.size, LostBatches: q.lostB, LostReadings: q.lostR, Losses: len(q.ledger),
		Written: q.written, Commits: q.commits, Quarantined: q.quarantined, Salvaged: q.salvaged, Thinned: q.thinned}
	if q.lastError != nil {
		s.LastError, s.LastErrorAt = q.lastError.Error(), q.lastErrorAt
	}
	for i := range q.lanes {
		ln := &q.lanes[i]
		s.Segments += len(ln.segs)
		s.Waiting[i] = int64(ln.given - ln.done.n)
		oldest := int64(0)
		for _, seg := range ln.segs {
			left := int64(seg.sum.last - seg.sum.first + 1 - ln.done.count(seg.sum.first, seg.sum.last))
			if seg.sum.count == 0 || left == 0 {
				continue
			}
			if oldest == 0 {
				oldest = seg.sum.t0
			}
			s.Readings[i] += seg.sum.readings * min(left, seg.sum.count) / seg.sum.count
		}
		lowest := ln.done.next(1)
		for _, h := range ln.mem {
			if h.gone {
				continue
			}
			if h.place != stored {
				s.Readings[i] += int64(h.count)
			}
			if h.seq == lowest {
				oldest = h.from
			}
		}
		if oldest != 0 && (s.Oldest == 0 || oldest < s.Oldest) {
			s.Oldest = oldest
		}
	}
	return s
}
