package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"go.etcd.io/bbolt"
)

func isDamage(err error) bool { return errors.Is(err, errDamaged) }

// found is a record in a damaged file.
type found struct {
	number uint64
	at     int64
	length int // of the whole record
	count  int
	t0, t1 int64
	key    string // that it wants, "" for none
}

// scan looks through a raw file for records of a lane and for rides, without
// bbolt. A record counts when its checksum holds; of a number that stands
// there twice, one is taken. Memory is a window and the longest record.
func scan(f io.ReaderAt, size int64, l Lane, record func(found), seen func(*ride)) {
	const window = 256 << 10
	buf := make([]byte, window+8)
	var rec []byte
	for at := int64(0); at < size; {
		n := readSome(f, buf[:min(int64(len(buf)), size-at)], at)
		next := at + int64(window)
		for i := 0; i < window; {
			j := bytes.Index(buf[i:n], []byte(magicPrefix))
			if j < 0 || i+j >= window {
				break
			}
			i += j
			if n-i < 8 {
				break
			}
			length := 0
			switch string(buf[i : i+8]) {
			case recordMagic:
				if r, ok := recordAt(f, size, at+int64(i), &rec); ok {
					length = r.length
					if Lane(rec[9]) == l {
						record(r)
					}
				}
			case blobMagic:
				if b, ok := blobAt(f, size, at+int64(i), &rec); ok {
					length = len(b)
					if r, err := decodeRide(b); err == nil {
						seen(r)
					}
				}
			}
			i += max(length, 1)
			if i >= window {
				next = at + int64(i)
			}
		}
		at = next
	}
}

// readSome fills b as far as the file can be read: sectors that cannot be
// read stay zero.
func readSome(f io.ReaderAt, b []byte, at int64) int {
	if n, err := f.ReadAt(b, at); err == nil || err == io.EOF {
		return n
	}
	clear(b)
	for i := 0; i < len(b); i += pageSize {
		part := b[i:min(i+pageSize, len(b))]
		if _, err := f.ReadAt(part, at+int64(i)); err != nil {
			clear(part)
		}
	}
	return len(b)
}

func recordAt(f io.ReaderAt, size, at int64, rec *[]byte) (found, bool) {
	var head [recordHead]byte
	if at+recordHead > size || readSome(f, head[:], at) < recordHead {
		return found{}, false
	}
	e, err := openHead(head[:])
	if err != nil || e.length > size-at-recordHead {
		return found{}, false
	}
	n := recordHead + int(e.length)
	*rec = slices.Grow((*rec)[:0], n)[:n]
	if readSome(f, *rec, at) < n {
		return found{}, false
	}
	if e, err = checkRecord(*rec); err != nil {
		return found{}, false
	}
	return found{number: e.number, at: at, length: n, count: int(e.count), t0: e.t0, t1: e.t1, key: keyName(*rec)}, true
}

func blobAt(f io.ReaderAt, size, at int64, rec *[]byte) ([]byte, bool) {
	var head [blobHead]byte
	if at+blobHead > size || readSome(f, head[:], at) < blobHead {
		return nil, false
	}
	n := int64(binary.BigEndian.Uint32(head[12:])) + blobHead
	if n > size-at {
		return nil, false
	}
	*rec = slices.Grow((*rec)[:0], int(n))[:n]
	if int64(readSome(f, *rec, at)) < n || blobSum(*rec) != binary.BigEndian.Uint32((*rec)[16:]) {
		return nil, false
	}
	return *rec, true
}

// repair takes the place of a damaged segment: every record whose checksum
// holds goes into a fresh file of the same name, what is missing into the
// ledger, the damaged file into quarantine. Each step is durable before the
// next, and one that a crash interrupts is begun again. The caller holds the
// disk lock.
func (q *Queue) repair(seg *segment) error {
	q.mu.Lock()
	seg.bad = true
	l := seg.lane
	q.mu.Unlock()
	if q.tail[l] == seg {
		q.tail[l] = nil
	}
	q.cool(seg)
	_ = seg.close(false)
	q.busy = seg
	defer func() { q.busy = nil }()

	f, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	var all []found
	scan(f, fi.Size(), l, func(r found) {
		if q.authentic(f, r) {
			all = append(all, r)
		}
	}, func(*ride) {})
	return q.rebuild(seg, f, all)
}

// rebuild writes the fresh file and puts it in the place of the damaged one.
func (q *Queue) rebuild(seg *segment, f io.ReaderAt, all []found) error {
	q.mu.Lock()
	l := seg.lane
	done := q.lanes[l].done.clone()
	q.mu.Unlock()

	sort.SliceStable(all, func(i, k int) bool { return all[i].number < all[k].number })
	all = slices.CompactFunc(all, func(a, b found) bool { return a.number == b.number })
	all = slices.DeleteFunc(all, func(r found) bool { return done.has(r.number) })

	fresh := seg.path + suffixSalvaged
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	sum := summary{epoch: q.epoch, lane: l, no: seg.sum.no}
	var high int64
	if len(all) > 0 {
		var err error
		if err = q.ensureRoom(l, salvageSize(all), true); err != nil {
			return err
		}
		if sum, high, err = q.writeSalvaged(fresh, sum, f, all); err != nil {
			os.Remove(fresh)
			return err
		}
	}
	q.tune.step()
	q.mu.Lock()
	q.tombstones(seg, all)
	q.mu.Unlock()
	if err := q.saveState(false); err != nil {
		return err
	}
	if err := q.quarantine(seg.path); err != nil {
		return err
	}
	q.tune.step()
	if len(all) > 0 {
		if err := rename(fresh, seg.path); err != nil {
			return err
		}
		q.tune.step()
	}
	_ = seg.close(true)
	q.opener.mu.Lock()
	delete(q.opener.kills, filepath.Base(seg.path)) // it is another file now
	q.opener.mu.Unlock()
	q.mu.Lock()
	ln := &q.lanes[l]
	for i, s := range ln.segs {
		if s != seg {
			continue
		}
		if len(all) > 0 {
			ln.segs[i] = &segment{lane: l, path: seg.path, log: q.log, sum: sum, size: high}
		} else {
			ln.segs = append(ln.segs[:i:i], ln.segs[i+1:]...)
		}
		break
	}
	q.salvaged += int64(len(all))
	q.mu.Unlock()
	q.measure()
	return nil
}

// tombstones puts the numbers that a damaged segment no longer has into the
// ledger. What is still in memory is stored again instead. The caller holds mu.
func (q *Queue) tombstones(seg *segment, all []found) {
	ln := &q.lanes[seg.lane]
	here := ranges{}
	for _, r := range all {
		here.add(r.number, r.number)
	}
	for _, h := range ln.mem {
		if h.gone {
			continue
		}
		if h.place == stored && seg.sum.first <= h.seq && h.seq <= seg.sum.last && !here.has(h.seq) {
			h.place = waiting
			q.cached -= h.bytes()
			q.memory += h.bytes()
		}
		here.add(h.seq, h.seq)
	}
	if seg.sum.first == 0 {
		return
	}
	// What lies between two of its records was its own; the rest of what it may
	// have held can also be in a neighbour.
	others := ln.others(seg)
	if n := len(all); n > 0 {
		low, high := all[0].number, all[n-1].number
		for _, s := range others.s {
			if s.a < low {
				here.add(s.a, min(s.b, low-1))
			}
			if s.b > high {
				here.add(max(s.a, high+1), s.b)
			}
		}
	} else {
		here.union(others)
	}
	for _, hole := range ln.done.holes(seg.sum.first, seg.sum.last) {
		for _, lost := range here.holes(hole.a, hole.b) {
			ln.done.add(lost.a, lost.b)
			q.lose(Loss{Lane: seg.lane, From: lost.a, To: lost.b, Batches: int64(lost.b - lost.a + 1), Readings: -1,
				T0: seg.sum.t0, T1: seg.sum.t1, Why: WhyCorrupt})
		}
	}
}

// salvageSize is what the fresh file takes at most.
func salvageSize(all []found) int64 {
	var room blocks
	for _, r := range all {
		room.add(r.length)
	}
	n := 64*pageSize + room.bytes()
	return n + n/16
}

// writeSalvaged writes a segment with the records found, byte for byte.
func (q *Queue) writeSalvaged(path string, sum summary, f io.ReaderAt, all []found) (summary, int64, error) {
	b, err := openBolt(path, salvageSize(all), stateStep, q.log)
	if err != nil {
		return sum, 0, err
	}
	defer b.close()
	q.mu.Lock()
	r := q.ride()
	q.mu.Unlock()
	for len(all) > 0 {
		n := fitting(len(all), q.tune.chunk, func(i int) int { return all[i].length })
		written, err := b.update(func(tx *bbolt.Tx) error {
			return putBatches(tx, n, func(i int) (uint64, []byte, error) {
				x := all[i]
				rec := make([]byte, x.length)
				readSome(f, rec, x.at)
				if e, err := checkRecord(rec); err != nil || e.number != x.number {
					return 0, nil, fmt.Errorf("batch %d could not be read a second time", x.number)
				}
				sum.add(x.number, x.count, x.t0, x.t1)
				sum.key = max(sum.key, x.key)
				return x.number, rec, nil
			}, &sum, r)
		})
		q.wrote(written)
		if err != nil {
			return sum, 0, err
		}
		all = all[n:]
	}
	var high int64
	if err := b.view(func(tx *bbolt.Tx) error { high = tx.Size(); return nil }); err != nil {
		return sum, 0, err
	}
	if err := b.file.Truncate(high); err != nil {
		return sum, 0, err
	}
	return sum, high, b.file.Sync()
}

// readFailed is what a read does that met a damaged segment: it repairs it
// there and then. nil means look again; errDamaged that it cannot be done now.
func (q *Queue) readFailed(seg *segment, bad bool, err error) error {
	if !bad && errors.Is(err, errGone) {
		return nil
	}
	if !bad && !isDamage(err) {
		return q.failed(err)
	}
	q.disk.Lock()
	defer q.disk.Unlock()
	if err := q.ready(); err != nil {
		return err
	}
	q.mu.Lock()
	known := slices.Contains(q.lanes[seg.lane].segs, seg)
	seg.bad = true
	q.mu.Unlock()
	if !known { // another read has done it
		return nil
	}
	if q.adrift != nil {
		return fmt.Errorf("%w: %w", errDamaged, q.adrift)
	}
	if err := q.resting(); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err := q.repair(seg); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, q.failed(err))
	}
	return nil
}

// damagedOne returns a segment that waits for its repair.
func (q *Queue) damagedOne() *segment {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.lanes {
		for _, s := range q.lanes[i].segs {
			if s.bad {
				return s
			}
		}
	}
	return nil
}

// closeHole is for a number that is neither done nor in any segment, which is
// so when what said that it was delivered is damaged. It is told, and not
// passed over in silence, together with its neighbours of the same kind.
func (q *Queue) closeHole(l Lane, n uint64) error {
	q.disk.Lock()
	defer q.disk.Unlock()
	q.mu.Lock()
	ln := &q.lanes[l]
	if ln.done.has(n) || ln.find(n) != nil {
		q.mu.Unlock()
		return nil
	}
	low, high := uint64(1), ln.given
	var around []*segment
	for _, s := range ln.segs {
		switch {
		case s.sum.first == 0:
		case s.sum.last < n:
			low = max(low, s.sum.last+1)
		case s.sum.first > n:
			high = min(high, s.sum.first-1)
		default:
			low, high = max(low, s.sum.first), min(high, s.sum.last)
			around = append(around, s)
		}
	}
	q.mu.Unlock()
	var here ranges
	for _, s := range around {
		if _, _, err := inspect(s.path, func(number uint64, _ int64) { here.add(number, number) }); err != nil {
			low, high = n, n
		}
	}
	q.mu.Lock()
	if here.has(n) && !ln.done.has(n) { // our own walk finds it and bbolt does not: a repair brings it out
		for _, s := range around {
			s.bad = true
		}
		q.mu.Unlock()
		return nil
	}
	for _, h := range ln.mem {
		if !h.gone {
			here.add(h.seq, h.seq)
		}
	}
	here.union(&ln.done)
	for _, h := range here.holes(low, high) {
		ln.done.add(h.a, h.b)
		q.lose(Loss{Lane: l, From: h.a, To: h.b, Batches: -1, Readings: -1, T0: q.last, T1: q.last, Why: WhyCorrupt})
	}
	q.mu.Unlock()
	return q.saveState(false)
}
