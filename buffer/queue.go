package buffer

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sort"
	"sync"
	"time"
)

// Queue is an open buffer. All methods are safe for concurrent use. Append,
// Ack and what only looks never wait for the disk, except Append with
// MaxLoss 0; Next and Prev touch it only for what is not in memory.
type Queue struct {
	dir     string
	size    int64 // cap of all files
	maxLoss time.Duration
	segSize [laneCount]int64
	log     *slog.Logger
	tune    tuning
	lock    *os.File

	readOnly bool // opened by OpenReadOnly

	adrift     error             // why nothing can be written since Open; written under disk and mu
	foundEpoch uint32            // what stood in the directory at start
	foundGen   uint64            // likewise
	foundNames []string          // of segments
	metas      map[string][]byte // catalogs that were saved adrift

	key     *diskKey // nil: batches are written as they are
	keyFile string   // where it comes from
	keyErr  error    // why there is none; only when opened for reading

	thin func([][]byte) ([]byte, int, int64, int64, int) // nil: what is full is dropped

	shared bool // there are several senders

	stateCap int64 // most that one state file may grow to
	changed  chan struct{}

	// disk is held by whoever writes: one commit, repair or removal at a
	// time. It is taken before mu, never while mu is held.
	disk    sync.Mutex
	states  [len(stateNames)]stateFile
	numbers numbersFile
	tail    [laneCount]*segment // open for writing; nil: the next commit makes one
	begun   [laneCount]bool     // the last segment of the run before was looked at, or must stay as it is
	opener  opener
	busy    *segment // under repair: it must not be dropped to make room

	// mu guards all below and is never held during I/O.
	mu     sync.Mutex
	closed bool
	gen    uint64
	saved  uint64 // gen of the state that is on disk
	epoch  uint32
	boot   uint32
	how    string // how the last run ended
	last   int64  // latest time known to have passed, Unix ms
	lanes  [laneCount]lane
	ledger []entry

	ackDirty    time.Time // since when something on disk is delivered and that is not on disk
	ledgerDirty time.Time // since when an acknowledged Loss is still on disk
	lossDirty   bool      // a Loss is not on disk yet
	settling    bool      // the first reservation of this run does not count yet: nothing leaves

	memory int64 // bytes of batches that are not stored
	cached int64 // bytes of batches that are stored and still in memory

	thinned       int64
	lostB, lostR  int64
	written       int64
	commits       int64
	salvaged      int64 // batches
	quarantined   int
	onDisk        int64 // bytes of all files when last added up
	lastError     error
	lastErrorAt   time.Time
	tailWrittenAt time.Time
}

// tuning holds what only tests change.
type tuning struct {
	memory  int64         // most bytes that wait in memory for the disk
	cache   int64         // stored bytes kept in memory for the sender
	riding  time.Duration // how long acknowledgements wait for a commit to ride in
	idle    time.Duration // after how long a delivered last segment is unlinked
	retry   time.Duration // how long a failed disk is left alone
	opening time.Duration // how long Open may spend on repairs
	settle  time.Duration // how long one call may spend on a reservation
	chunk   int64         // most bytes in one commit
	block   uint64        // numbers reserved at a time
	step    func()        // called between any two changes on disk: a crash could come here
}

func defaultTuning() tuning {
	return tuning{memory: 8 << 20, cache: 1 << 20, riding: 30 * time.Second, idle: 30 * time.Second,
		retry: time.Second, opening: 4 * time.Second, settle: 2 * time.Second, chunk: 2 << 20, block: block, step: func() {}}
}

const (
	block      = 1 << 15 // numbers reserved at a time; when an eighth is left, the next Sync reserves the next
	maxRepairs = 64      // of damaged segments within one call of Next; more is no damage but a broken machine

	stateStart = 64 << 10 // blocks a state file is made with
	stateStep  = 32 << 10 // by how much it grows
)

var zeroTime time.Time

// lane is one sequence of numbers.
type lane struct {
	laneState
	// stored is the number up to which everything is durable or done.
	stored uint64
	mem    []*held    // by number; those that are gone are cleared away in time
	segs   []*segment // by age
	blanks int        // how many of mem are gone
	shown  ranges     // numbers that Next or Prev has returned: they may have left; only with a policy that thins
}

// held is a batch in memory.
type held struct {
	seq      uint64
	rec      []byte // room for the envelope, then the bytes
	out      []byte // what goes to disk, during the commit under way
	count    int
	from, to int64
	born     time.Time // its first reading
	place    place
	gone     bool // done; only its place in mem is left
}

type place uint8

const (
	waiting place = iota
	storing       // in the commit under way
	stored
)

func (h *held) bytes() int64 { return int64(len(h.rec) - recordHead) }

func (h *held) item(l Lane) Item {
	return Item{Lane: l, Seq: h.seq, Batch: Batch{Bytes: h.rec[recordHead:len(h.rec):len(h.rec)], Count: h.count, From: h.from, To: h.to}}
}

// find returns the batch of a number if it is in memory.
func (ln *lane) find(seq uint64) *held {
	i := sort.Search(len(ln.mem), func(i int) bool { return ln.mem[i].seq >= seq })
	if i < len(ln.mem) && ln.mem[i].seq == seq && !ln.mem[i].gone {
		return ln.mem[i]
	}
	return nil
}

// segment returns the newest segment before index upto that may hold a
// number, and its index; -1 when there is none.
func (ln *lane) segment(seq uint64, upto int) (*segment, int) {
	for i := min(upto, len(ln.segs)) - 1; i >= 0; i-- {
		if s := ln.segs[i]; s.sum.first <= seq && seq <= s.sum.last {
			return s, i
		}
	}
	return nil, -1
}

// leave marks a batch in memory as gone.
func (ln *lane) leave(h *held) {
	h.gone = true
	ln.blanks++
}

// sweep clears away those that are gone, at the front at once, else when
// they are the most.
func (ln *lane) sweep() {
	for len(ln.mem) > 0 && ln.mem[0].gone {
		ln.mem[0] = nil
		ln.mem = ln.mem[1:]
		ln.blanks--
	}
	if ln.blanks > 64 && ln.blanks > len(ln.mem)/2 {
		ln.mem = slices.DeleteFunc(ln.mem, func(h *held) bool { return h.gone })
		ln.blanks = 0
	}
	if len(ln.mem) == 0 {
		ln.mem = nil
	}
}

// time returns the present in Unix ms, never less than what is known to have passed.
func (q *Queue) time() int64 {
	q.last = max(q.last, time.Now().UnixMilli())
	return q.last
}

// limit is the highest number of a lane that may leave the gateway. Beyond
// what is reserved, a crash would let the number be given a second time; with
// MaxLoss 0 nothing leaves before it is on disk, unless there is none.
func (q *Queue) limit(ln *lane) uint64 {
	switch {
	case q.adrift != nil: // the epoch ends with this run
		return ln.given
	case q.settling:
		return 0
	case q.maxLoss > 0:
		return ln.reserved
	}
	return min(ln.reserved, ln.stored)
}

func (q *Queue) signal() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// Changed returns a channel that gets a token after Append, after a Loss and
// after Open. It has room for one: several changes may come as one token.
func (q *Queue) Changed() <-chan struct{} { return q.changed }

// Append gives a batch its number and keeps a copy of its bytes.
//
// With MaxLoss above 0 it never waits for the disk: a data batch becomes
// durable with the first Sync that finds it due, an event with the next Sync
// whatever its age, so the caller follows an event with Sync within 50 ms.
// With MaxLoss 0 the batch is durable when Append returns without error.
//
// An error that matches ErrNotDurable comes with the number: the batch is in
// memory, is tried again, and must not be appended a second time.
func (q *Queue) Append(l Lane, b Batch) (uint64, error) {
	if l >= laneCount {
		return 0, fmt.Errorf("buffer: there is no %s", l)
	}
	if int64(len(b.Bytes)) > q.segSize[l]/2 {
		return 0, fmt.Errorf("%w: %d bytes of at most %d", ErrTooLarge, len(b.Bytes), q.segSize[l]/2)
	}
	h := &held{rec: make([]byte, recordHead+len(b.Bytes)), count: b.Count, from: b.From, to: b.To, born: time.Now().Add(-b.Age)}
	copy(h.rec[recordHead:], b.Bytes)

	q.mu.Lock()
	if err := q.refuse(); err != nil {
		q.mu.Unlock()
		return 0, err
	}
	ln := &q.lanes[l]
	ln.given++
	h.seq = ln.given
	ln.mem = append(ln.mem, h)
	q.memory += h.bytes()
	q.makeRoom()
	q.mu.Unlock()

	if q.maxLoss > 0 {
		q.signal()
		return h.seq, nil
	}
	err := q.storeNow(ln, h.seq)
	q.signal()
	return h.seq, err
}

// storeNow makes a batch durable, together with all others that wait.
func (q *Queue) storeNow(ln *lane, seq uint64) error {
	q.disk.Lock()
	defer q.disk.Unlock()
	if q.isStored(ln, seq) { // by the commit we waited for
		return nil
	}
	err := q.sync(0, false)
	if q.isStored(ln, seq) {
		return nil
	}
	if err == nil { // it had to make room in memory, and a Loss says so
		return ErrNotDurable
	}
	return fmt.Errorf("%w: %w", ErrNotDurable, err)
}

func (q *Queue) isStored(ln *lane, seq uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return ln.stored >= seq
}

// makeRoom keeps the memory tail bounded while the disk is slow or broken:
// the oldest data goes, events last, and a Loss says so.
func (q *Queue) makeRoom() {
	for l := Data; l < laneCount && q.memory > q.tune.memory; l++ {
		ln := &q.lanes[l]
		for _, h := range ln.mem {
			if q.memory <= q.tune.memory {
				break
			}
			if h.gone || h.place != waiting || h.seq == ln.given {
				continue
			}
			q.memory -= h.bytes()
			ln.leave(h)
			h.rec = nil
			ln.done.add(h.seq, h.seq)
			q.lose(Loss{Lane: l, From: h.seq, To: h.seq, Batches: 1, Readings: int64(h.count), T0: h.from, T1: h.to, Why: WhyFull})
		}
		ln.sweep()
	}
}

// Next returns the undelivered batch with the lowest number >= from. It
// removes nothing. ok is false when there is none, or when the number may
// not leave yet because a crash could give it again. An error concerns the
// disk; the batch is still held. It is for who sends: what it has returned may
// have left the gateway.
func (q *Queue) Next(l Lane, from uint64) (Item, bool, error) { return q.look(l, from, true, true) }

// Prev returns the undelivered batch with the highest number <= upto, as Next does.
func (q *Queue) Prev(l Lane, upto uint64) (Item, bool, error) { return q.look(l, upto, false, true) }

// Look is Next for who only looks and sends nothing.
func (q *Queue) Look(l Lane, from uint64) (Item, bool, error) { return q.look(l, from, true, false) }

// LookBack is Prev for who only looks and sends nothing.
func (q *Queue) LookBack(l Lane, upto uint64) (Item, bool, error) {
	return q.look(l, upto, false, false)
}

func (q *Queue) look(l Lane, at uint64, up, leaves bool) (Item, bool, error) {
	if l >= laneCount {
		return Item{}, false, fmt.Errorf("buffer: there is no %s", l)
	}
	const all = math.MaxInt
	absent, below := uint64(0), all // the number was not in this segment: look in older ones
	repairs := 0
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return Item{}, false, ErrClosed
		}
		ln := &q.lanes[l]
		n, most := uint64(0), min(ln.given, q.limit(ln))
		if up {
			n = ln.done.next(at)
		} else {
			n = ln.done.prev(min(at, most))
		}
		if n == 0 || n > most {
			q.mu.Unlock()
			return Item{}, false, nil
		}
		if h := ln.find(n); h != nil {
			it := h.item(l)
			if leaves {
				q.show(ln, n)
			}
			q.mu.Unlock()
			return it, true, nil
		}
		if n != absent {
			absent, below = n, all
		}
		seg, index := ln.segment(n, below)
		var bad bool
		var sum summary
		if seg != nil {
			bad, sum = seg.bad, seg.sum
			if leaves {
				q.show(ln, n)
			}
		}
		q.mu.Unlock()

		if seg == nil {
			if err := q.closeHole(l, n); err != nil {
				return Item{}, false, err
			}
			below = all
			continue
		}
		var err error
		if !bad {
			var it Item
			if it, err = seg.read(q, n); err == nil {
				return it, true, nil
			}
			if errors.Is(err, errAbsent) {
				below = index
				continue
			}
		}
		below = all
		if repairs++; repairs > maxRepairs {
			return Item{}, false, q.failed(fmt.Errorf("%s is damaged again after its repair: %w", seg.path, err))
		}
		if err = q.readFailed(seg, bad, err); err != nil {
			if !isDamage(err) {
				return Item{}, false, err
			}
			// It cannot be repaired now, such as on a full disk: go past it.
			if up {
				at = max(sum.last, n) + 1
			} else {
				at = min(sum.first, n) - 1
			}
		}
	}
}

// Ack says that batches were delivered, in any order. Numbers that were
// acknowledged before, or never given, change nothing.
func (q *Queue) Ack(l Lane, seqs ...uint64) {
	if l >= laneCount {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	ln := &q.lanes[l]
	for _, seq := range seqs {
		if seq > 0 && seq <= ln.given && !ln.done.has(seq) {
			q.finish(ln, seq)
		}
	}
	ln.sweep()
}

// finish marks a number as done and lets go of its memory.
func (q *Queue) finish(ln *lane, seq uint64) {
	ln.done.add(seq, seq)
	h := ln.find(seq)
	if h == nil || h.place == stored {
		q.touchAcks()
	}
	if h == nil {
		return
	}
	ln.leave(h)
	switch h.place {
	case waiting:
		q.memory -= h.bytes()
		h.rec = nil
	case stored:
		q.cached -= h.bytes()
		h.rec = nil
	}
}

func (q *Queue) touchAcks() {
	if q.ackDirty.IsZero() {
		q.ackDirty = time.Now()
	}
}

// Given returns the last number given in a lane; 0 before the first.
func (q *Queue) Given(l Lane) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lanes[l].given
}

// Lowest returns the lowest number that is still held, or the next number to
// be given when nothing is held.
func (q *Queue) Lowest(l Lane) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lanes[l].done.next(1)
}

// Done returns the first run of numbers >= from that are not held any more:
// delivered, lost or never given. first is 0 when there is none.
func (q *Queue) Done(l Lane, from uint64) (first, last uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	d := &q.lanes[l].done
	i := d.at(from)
	if i == len(d.s) {
		return 0, 0
	}
	return max(from, d.s[i].a), d.s[i].b
}

// Epoch names the store, 8 hex digits: numbers compare within one epoch. It
// changes only when the buffer is made, or made anew after both state files
// were lost.
func (q *Queue) Epoch() string { return fmt.Sprintf("%08x", q.epoch) }

// Boot counts the starts of this store, from 1.
func (q *Queue) Boot() uint32 { return q.boot }

// Stopped tells how the last run ended: "first" when there was none, "clean"
// after Close, else "power".
func (q *Queue) Stopped() string { return q.how }
