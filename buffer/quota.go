package buffer

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// small is for the lock and the marker: one block each.
const small = 2 * pageSize

// errFull means that there is nothing left that may be dropped.
var errFull = errors.New("no room left in the buffer")

// ensureRoom drops until a file of need bytes fits under the cap. What is
// counted is every file in the directory; what is set aside is the room that
// the state files may still take, one of them being written anew included, one segment
// for a salvage, and a share for events. The caller holds the disk lock.
func (q *Queue) ensureRoom(l Lane, need int64, salvage bool) error {
	for {
		free, err := q.room(l, salvage)
		if err != nil {
			return err
		}
		if need <= free {
			return nil
		}
		dropped, err := q.dropSomething(l)
		if err != nil {
			return err
		}
		if !dropped {
			return fmt.Errorf("%w: %d bytes wanted, %d free of %d", errFull, need, max(free, 0), q.size)
		}
	}
}

// room is how many bytes a new file of a lane may take.
func (q *Queue) room(l Lane, salvage bool) (int64, error) {
	used, err := usage(q.dir)
	if err != nil {
		return 0, err
	}
	free := q.size - used - 3*q.stateCap - small
	for i := range q.states {
		if fi, err := os.Stat(q.states[i].path); err == nil {
			free += min(fileBytes(fi), q.stateCap)
		}
	}
	if !salvage {
		free -= q.segSize[Data]
	}
	if l == Data {
		q.mu.Lock()
		events := int64(0)
		for _, s := range q.lanes[Event].segs {
			events += s.size
		}
		q.mu.Unlock()
		free -= max(0, 2*q.segSize[Event]-events)
	}
	return free, nil
}

// dropSomething makes room by one file: delivered segments, then quarantined
// files but the newest, then the oldest data, thinned first if that is the
// policy, then the last quarantined file, and for an event the oldest events.
func (q *Queue) dropSomething(l Lane) (bool, error) {
	before := q.segments()
	if err := q.unlinkDelivered(false); err != nil {
		return false, err
	}
	if q.segments() < before {
		return true, nil
	}
	if dropped, err := q.trimQuarantine(1, q.size); dropped || err != nil {
		return dropped, err
	}
	if thinned, err := q.thinOldest(); thinned || err != nil {
		return thinned, err
	}
	if dropped, err := q.dropOldest(Data); dropped || err != nil {
		return dropped, err
	}
	if dropped, err := q.trimQuarantine(0, 0); dropped || err != nil {
		return dropped, err
	}
	if l == Event {
		return q.dropOldest(Event)
	}
	return false, nil
}

func (q *Queue) segments() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for i := range q.lanes {
		n += len(q.lanes[i].segs)
	}
	return n
}

// dropOldest gives up the oldest segment of a lane that is not being
// written. Its Loss is durable before the file goes.
func (q *Queue) dropOldest(l Lane) (bool, error) {
	q.mu.Lock()
	ln := &q.lanes[l]
	var seg *segment
	for _, s := range ln.segs {
		if s != q.tail[l] && s != q.busy {
			seg = s
			break
		}
	}
	if seg == nil {
		q.mu.Unlock()
		return false, nil
	}
	sum, bad := seg.sum, seg.bad
	q.mu.Unlock()

	// How many readings each number has is read from the file; numbers alone
	// are known without it.
	counts := make(map[uint64]int64)
	if !bad && sum.count > 0 {
		if _, _, err := inspect(seg.path, func(n uint64, c int64) { counts[n] = c }); isDamage(err) {
			bad = true
		} else if err != nil { // such as no descriptors: it can be read later
			return false, err
		}
	}
	q.mu.Lock()
	if sum.first > 0 {
		elsewhere := ln.others(seg)
		for _, hole := range ln.done.holes(sum.first, sum.last) {
			for _, h := range elsewhere.holes(hole.a, hole.b) {
				loss := Loss{Lane: l, From: h.a, To: h.b, Batches: int64(h.b - h.a + 1), Readings: -1, T0: sum.t0, T1: sum.t1, Why: WhyFull}
				if !bad {
					loss.Readings = 0
				}
				for n := h.a; n <= h.b; n++ {
					if !bad {
						loss.Readings += counts[n]
					}
					if ln.find(n) != nil { // what of it is still in memory goes as well
						q.finish(ln, n)
					}
				}
				ln.done.add(h.a, h.b)
				q.lose(loss)
			}
		}
		ln.sweep()
	}
	q.mu.Unlock()
	if err := q.saveState(false); err != nil {
		return false, err
	}
	return true, q.remove(seg)
}

// others are the numbers that other segments of the lane may hold as well: a
// commit that failed was done again elsewhere. The caller holds mu.
func (ln *lane) others(not *segment) *ranges {
	var r ranges
	for _, s := range ln.segs {
		if s != not && s.sum.first > 0 {
			r.add(s.sum.first, s.sum.last)
		}
	}
	return &r
}

const quarantineDir = "quarantine"

// quarantine moves a damaged file aside. Damaged files are kept, at most two
// and at most an eighth of the cap, for who wants to look into them.
func (q *Queue) quarantine(path string) error {
	dir := filepath.Join(q.dir, quarantineDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	to := filepath.Join(dir, fmt.Sprintf("%s.%d", filepath.Base(path), q.stamp()))
	if err := rename(path, to); err != nil {
		return err
	}
	_, err := q.trimQuarantine(2, max(q.size/8, q.segSize[Data]))
	return err
}

// stamp is a number that grows, for the names of quarantined files.
func (q *Queue) stamp() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = q.time() + 1
	return q.last
}

// trimQuarantine removes the oldest files beyond a number and beyond a sum of bytes.
func (q *Queue) trimQuarantine(keep int, bytes int64) (dropped bool, err error) {
	dir := filepath.Join(q.dir, quarantineDir)
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	type file struct {
		name, age string
		size      int64
	}
	var files []*file // sorted as pointers: one sort of the library serves all
	for _, d := range list {
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			files = append(files, &file{d.Name(), d.Name()[strings.LastIndexByte(d.Name(), '.')+1:], fileBytes(fi)})
		}
	}
	slices.SortFunc(files, func(a, b *file) int { // the newest first
		return -cmp.Or(cmp.Compare(len(a.age), len(b.age)), cmp.Compare(a.age, b.age))
	})
	left := len(files)
	for i, f := range files {
		if bytes -= f.size; i < keep && (bytes >= 0 || i == 0) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.name)); err != nil {
			return dropped, err
		}
		dropped = true
		left--
	}
	q.mu.Lock()
	q.quarantined = left
	q.mu.Unlock()
	return dropped, nil
}
