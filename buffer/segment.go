package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// A segment is one bbolt file with batches of one lane. It is only ever
// appended to; its commits carry the summary and a ride in the bucket "meta".
const (
	bucketMeta  = "meta"  // behind all numbers
	bucketBatch = "batch" // of the blocks, in segments of before v1.3
	keySummary  = "s"
	keyRide     = "r"
	keyRecord   = "b"

	suffixNew      = ".new"
	suffixSalvaged = ".salvaged"
	suffixSegment  = ".db"
)

// summary says what a segment holds. Every number of first..last that is
// not in the segment was done when the summary was written.
type summary struct {
	epoch    uint32
	lane     Lane
	no       uint64 // of the file
	first    uint64 // 0: nothing
	last     uint64
	count    int64 // batches
	readings int64
	t0, t1   int64
	key      string // name of the key of its batches, "" for none
	thinned  bool   // nothing in it is to be thinned any more
}

func (s *summary) encode() []byte {
	b := binary.AppendUvarint(nil, uint64(s.epoch))
	b = binary.AppendUvarint(b, uint64(s.lane))
	for _, v := range []uint64{s.no, s.first, s.last, uint64(s.count), uint64(s.readings)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.AppendVarint(b, s.t0)
	b = binary.AppendVarint(b, s.t1)
	if s.key != "" || s.thinned {
		b = append(binary.AppendUvarint(b, uint64(len(s.key))), s.key...)
	}
	if s.thinned {
		b = append(b, 1)
	}
	return sealBlob(kindSummary, b)
}

func decodeSummary(blob []byte) (summary, error) {
	body, err := openBlob(kindSummary, blob)
	if err != nil {
		return summary{}, err
	}
	c := cursor{b: body}
	s := summary{epoch: uint32(c.uint()), lane: Lane(c.uint()), no: c.uint(), first: c.uint(), last: c.uint(),
		count: int64(c.uint()), readings: int64(c.uint()), t0: c.int(), t1: c.int()}
	if len(c.b) > 0 {
		s.key = c.text()
	}
	if len(c.b) > 0 {
		s.thinned = c.uint() == 1
	}
	return s, c.err("the summary")
}

// add counts a batch in.
func (s *summary) add(number uint64, count int, t0, t1 int64) {
	if s.count == 0 {
		s.first, s.t0, s.t1 = number, t0, t1
	}
	s.first, s.last = min(s.first, number), max(s.last, number)
	s.count++
	s.readings += int64(count)
	s.t0, s.t1 = min(s.t0, t0), max(s.t1, t1)
}

// segment is a segment file that is known. sum, bad and size belong to
// Queue.mu; writing to the file belongs to the disk lock.
type segment struct {
	lane Lane
	path string
	log  *slog.Logger

	sum  summary
	size int64 // of the file
	bad  bool  // damaged; sum is then the numbers that it may hold

	use     sync.RWMutex // held for reading during a read, for writing to open or close
	file    *boltFile
	checked bool
	gone    bool
}

var (
	// errGone means that a segment was unlinked while it was looked for.
	errGone = errors.New("the segment is gone")
	// errAbsent means that a sound segment does not hold a number.
	errAbsent = errors.New("the batch is not in the segment")
	// errRoll means that a segment has no room for a commit.
	errRoll = errors.New("the segment is full")
)

func segmentName(l Lane, no uint64) string { return fmt.Sprintf("%s-%08d%s", l, no, suffixSegment) }

// parseName splits the name of a segment file.
func parseName(name string) (l Lane, no uint64, ok bool) {
	base, found := strings.CutSuffix(name, suffixSegment)
	if !found {
		return 0, 0, false
	}
	for l = range Lane(laneCount) {
		if digits, found := strings.CutPrefix(base, l.String()+"-"); found {
			no, err := strconv.ParseUint(digits, 10, 64)
			return l, no, err == nil && len(digits) >= 8
		}
	}
	return 0, 0, false
}

// glance reads the summary and the ride of a segment with a few small reads.
// A segment into which nothing was ever committed has count 0.
func glance(path string) (sum summary, r *ride, size int64, err error) {
	m, err := openImage(path)
	if err != nil {
		return sum, nil, 0, err
	}
	defer m.close()
	sum, r, err = m.heads(nil)
	return sum, r, m.size, err
}

// heads reads summary and ride. With block it walks the whole segment, and
// block is called for each key among the blocks.
func (m *image) heads(block func(key, _ []byte, sub *bucketRef) error) (sum summary, r *ride, err error) {
	if m.high == 4 { // as bbolt makes it: no transaction yet
		return summary{}, &ride{}, nil
	}
	found := false
	visit := func(key, _ []byte, sub *bucketRef) error {
		switch {
		case sub == nil:
			return damaged("key %q", key)
		case string(key) == bucketMeta:
		case block == nil:
			return nil
		case string(key) == bucketBatch:
			return m.walk(*sub, block)
		default:
			return block(key, nil, sub)
		}
		return m.walk(*sub, func(k, v []byte, _ *bucketRef) (err error) {
			switch string(k) {
			case keySummary:
				found = true
				sum, err = decodeSummary(v)
			case keyRide:
				r, err = decodeRide(v)
			}
			return err
		})
	}
	if block != nil {
		err = m.walk(bucketRef{page: m.root}, visit)
	} else {
		err = m.tail(m.root, visit)
	}
	if err == nil && (!found || r == nil) {
		err = damaged("no summary")
	}
	return sum, r, err
}

// inspect walks a whole segment and compares it with its summary, so that
// bbolt meets nothing it would stumble over. each is called for every batch.
func inspect(path string, each func(number uint64, count int64)) (sum summary, high int64, err error) {
	m, err := openImage(path)
	if err != nil {
		return sum, 0, err
	}
	defer m.close()
	var n int64
	var first, last uint64
	sum, _, err = m.heads(func(key, _ []byte, sub *bucketRef) error {
		if sub == nil || len(key) != 8 {
			return damaged("key %x among the batches", key)
		}
		next := binary.BigEndian.Uint64(key)
		return m.records(*sub, keyRecord, func(e envelope) error {
			if e.number <= last || next != 0 && e.number != next {
				return damaged("batch %d behind %d under the key %x", e.number, last, key)
			}
			if last, next = e.number, 0; n == 0 {
				first = last
			}
			n++
			if each != nil {
				each(last, int64(e.count))
			}
			return nil
		})
	})
	if err == nil && m.high > 4 {
		err = m.freelist()
	}
	if err == nil && (n != sum.count || n > 0 && (first != sum.first || last != sum.last)) {
		err = damaged("%d batches %d..%d where the summary says %d, %d..%d", n, first, last, sum.count, sum.first, sum.last)
	}
	return sum, int64(m.high) * pageSize, err
}

// read returns a batch. errDamaged when it is not what was written, errGone
// when the segment was unlinked.
func (s *segment) read(q *Queue, number uint64) (Item, error) {
	for {
		s.use.RLock()
		if s.gone || s.file != nil {
			break
		}
		s.use.RUnlock()
		if err := q.openForReading(s); err != nil {
			return Item{}, err
		}
	}
	defer s.use.RUnlock()
	if s.gone {
		return Item{}, errGone
	}
	var it Item
	err := s.file.view(func(tx *bbolt.Tx) error {
		var key [8]byte
		binary.BigEndian.PutUint64(key[:], number)
		b := blocksOf(tx)
		c := b.Cursor()
		k, _ := c.Seek(key[:])
		if !bytes.Equal(k, key[:]) { // it stands behind the first of a block, if at all
			if k == nil {
				k, _ = c.Last()
			} else {
				k, _ = c.Prev()
			}
		}
		if b = b.Bucket(k); b == nil {
			return errAbsent
		}
		on, err := recordOf(b.Get([]byte(keyRecord)), number)
		if err != nil {
			return err
		}
		rec := bytes.Clone(on) // the copy is what is checked: the mapped page may change
		e, plain, err := q.unseal(rec)
		if err != nil {
			return err
		}
		if e.number != number || e.lane != s.lane {
			return damaged("batch %d of %s where %d belongs", e.number, e.lane, number)
		}
		it = Item{Lane: e.lane, Seq: number, Batch: Batch{Bytes: plain, Count: int(e.count), From: e.t0, To: e.t1}}
		return nil
	})
	return it, err
}

// blocksOf returns the bucket in which the blocks are: the root, so that a
// commit writes a page less than with one of their own.
func blocksOf(tx *bbolt.Tx) *bbolt.Bucket {
	if b := tx.Bucket([]byte(bucketBatch)); b != nil {
		return b
	}
	return tx.Cursor().Bucket()
}

// recordOf finds the record of a number in a block.
func recordOf(block []byte, number uint64) ([]byte, error) {
	for len(block) > 0 {
		e, err := openHead(block)
		if err != nil || e.length > int64(len(block)-recordHead) {
			return nil, damaged("no record where batch %d may be", number)
		}
		n := recordHead + int(e.length)
		if e.number >= number {
			if e.number > number {
				break
			}
			return block[:n], nil
		}
		block = block[n:]
	}
	return nil, errAbsent
}

// close gives the file back. After drop no read finds it any more.
func (s *segment) close(drop bool) error {
	s.use.Lock()
	defer s.use.Unlock()
	s.gone = s.gone || drop
	if s.file == nil {
		return nil
	}
	err := s.file.close()
	s.file, s.checked = nil, false
	return err
}

// append commits batches with summary and ride in one transaction. rollOver
// is true when they do not fit, or when the segment has higher numbers; nothing
// has been written then.
func (s *segment) append(group []*held, sum summary, r *ride) (rollOver bool, written int64, err error) {
	if s.sum.count > 0 && group[0].seq <= s.sum.last {
		return true, 0, errRoll
	}
	written, err = s.file.update(func(tx *bbolt.Tx) error {
		if tx.Size()+segmentNeed(group)-4*pageSize > s.size {
			rollOver = true
			return errRoll
		}
		return putBatches(tx, len(group), func(i int) (uint64, []byte, error) {
			return group[i].seq, group[i].out, nil
		}, &sum, r)
	})
	if errors.Is(err, bolterrors.ErrMaxSizeReached) {
		rollOver = true
	}
	return rollOver, written, err
}

// putBatches puts n records, and the summary and the ride that go with them.
// The summary may still change while the records are fetched. Their numbers
// ascend, and are higher than those that are there.
func putBatches(tx *bbolt.Tx, n int, record func(i int) (number uint64, rec []byte, err error), sum *summary, r *ride) error {
	meta, err := tx.CreateBucketIfNotExists([]byte(bucketMeta))
	if err != nil {
		return err
	}
	b := blocksOf(tx)
	b.FillPercent = 0.95
	var first uint64
	var open []byte
	for i := range n {
		number, rec, err := record(i)
		if err == nil && len(open) > 0 && len(open)+len(rec) > blockSize {
			err, open = putBlock(b, first, open), nil
		}
		if err != nil {
			return err
		}
		if len(open) == 0 {
			first, open = number, rec[:len(rec):len(rec)]
		} else {
			open = append(open, rec...)
		}
	}
	if err := putBlock(b, first, open); err != nil {
		return err
	}
	if err := meta.Put([]byte(keySummary), sum.encode()); err != nil {
		return err
	}
	return meta.Put([]byte(keyRide), r.encode())
}

// fitting is how many of n records fit into a commit of so many bytes, at
// least one.
func fitting(n int, most int64, size func(i int) int) int {
	var room blocks
	for i := range n {
		if room.add(size(i)); room.bytes() > most && i > 0 {
			return i
		}
	}
	return n
}

// leastSegment is the smallest segment that is made on a disk with little room.
const leastSegment = 128 << 10

// segmentNeed is the room that a commit of batches may take, with the first
// pages of an empty file.
func segmentNeed(group []*held) int64 {
	var room blocks
	for _, h := range group {
		room.add(len(h.out))
	}
	return 20*pageSize + room.bytes()
}

// blockSize is up to where the records of one commit share a block: small
// ones do not take a page each.
const blockSize = 64 << 10

// putBlock puts records, one behind the other, into a bucket of their own
// under the first number: bbolt does not split a leaf below five keys and
// would write large neighbours again and again.
func putBlock(b *bbolt.Bucket, first uint64, records []byte) error {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], first)
	sub, err := b.CreateBucket(key[:])
	if err != nil {
		return err
	}
	return sub.Put([]byte(keyRecord), records)
}

// blocks adds up what records take that are put in one commit.
type blocks struct {
	full int64 // of the blocks that are closed
	open int   // bytes in the one that is not
}

func (b *blocks) add(rec int) {
	if b.open > 0 && b.open+rec > blockSize {
		b.full, b.open = b.bytes(), 0
	}
	b.open += rec
}

func (b *blocks) bytes() int64 {
	switch {
	case b.open == 0:
		return b.full
	case b.open < 900: // it stands within the page of its neighbours
		return b.full + int64(b.open) + 128
	}
	return b.full + (int64(b.open)+pageHead+elementSize+1+pageSize-1)/pageSize*pageSize + 128
}

// makeSegment creates an empty segment file with all its blocks.
func makeSegment(path string, size int64, log *slog.Logger) (*boltFile, error) {
	fresh := path + suffixNew
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	b, err := openBolt(fresh, size, pageSize, log)
	if err != nil {
		os.Remove(fresh)
		return nil, err
	}
	b.appended(size)
	err = preallocate(b.file, size)
	if err == nil {
		err = b.file.Sync()
	}
	if err == nil {
		err = rename(fresh, path)
	}
	if err != nil {
		b.close()
		os.Remove(fresh)
		return nil, err
	}
	return b, nil
}

// snapshots is how many commits a segment keeps apart from later ones: as many
// as settleFlushes may take, and no more than fit in a quarter of it. A commit
// replaces six pages at most.
func snapshots(size int64) int {
	return int(min(settleFlushes/2, size/4/(6*pageSize)))
}

// unlink removes a segment file for good.
func (s *segment) unlink() error {
	_ = s.close(true)
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(s.path))
}
