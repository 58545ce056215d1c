package buffer

import (
	"bytes"
	"cmp"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/bbolt"
)

// The state is kept twice, in state.db and state-2.db, and a commit of the
// state is one to each. It counts only when both succeeded, so whichever
// file survives knows everything that was relied upon. Only when both are
// gone does a store get a new epoch.
var stateNames = [...]string{"state.db", "state-2.db"}

const (
	bucketState   = "state"
	bucketCatalog = "catalog"
	keyState      = "s"
	keepCatalogs  = 16
)

// laneState is what must never be forgotten about the numbers of a lane. All
// of it only grows, so several copies are joined by taking the most.
type laneState struct {
	given    uint64 // last number given
	reserved uint64 // numbers up to here may have been given
	done     ranges // delivered, or in a Loss
}

// entry is a Loss in the ledger.
type entry struct {
	Loss
	gen   uint64 // of the state when it was made or last changed
	seen  bool   // handed out by Losses: it must not change any more
	saved bool   // in the state files
}

// state is the content of the state files.
type state struct {
	gen    uint64 // counts the commits
	epoch  uint32
	boot   uint32
	clean  bool  // the last run ended with Close
	last   int64 // latest time known to have passed, Unix ms
	lostB  int64
	lostR  int64
	lanes  [laneCount]laneState
	ledger []entry
}

func appendLanes(b []byte, lanes *[laneCount]laneState) []byte {
	for i := range lanes {
		l := &lanes[i]
		b = binary.AppendUvarint(b, l.given)
		b = binary.AppendUvarint(b, l.reserved)
		b = binary.AppendUvarint(b, uint64(len(l.done.s)))
		end := uint64(0)
		for _, s := range l.done.s {
			b = binary.AppendUvarint(b, s.a-end)
			b = binary.AppendUvarint(b, s.b-s.a)
			end = s.b
		}
	}
	return b
}

func (c *cursor) lanes(lanes *[laneCount]laneState) {
	for i := range lanes {
		l := &lanes[i]
		l.given, l.reserved = c.uint(), c.uint()
		end := uint64(0)
		for n := c.length(); n > 0; n-- {
			a := end + c.uint()
			end = a + c.uint()
			l.done.add(a, end)
		}
	}
}

func (s *state) encode() []byte {
	var b []byte
	b = binary.AppendUvarint(b, s.gen)
	b = binary.AppendUvarint(b, uint64(s.epoch))
	b = binary.AppendUvarint(b, uint64(s.boot))
	clean := uint64(0)
	if s.clean {
		clean = 1
	}
	b = binary.AppendUvarint(b, clean)
	b = binary.AppendVarint(b, s.last)
	b = binary.AppendVarint(b, s.lostB)
	b = binary.AppendVarint(b, s.lostR)
	b = appendLanes(b, &s.lanes)
	b = binary.AppendUvarint(b, uint64(len(s.ledger)))
	for i := range s.ledger {
		l := &s.ledger[i].Loss
		b = binary.AppendUvarint(b, uint64(l.Lane))
		b = binary.AppendUvarint(b, l.From)
		b = binary.AppendUvarint(b, l.To-l.From)
		b = binary.AppendVarint(b, l.Batches)
		b = binary.AppendVarint(b, l.Readings)
		b = binary.AppendVarint(b, l.T0)
		b = binary.AppendVarint(b, l.T1)
		b = binary.AppendUvarint(b, uint64(len(l.Why)))
		b = append(b, l.Why...)
	}
	return sealBlob(kindState, b)
}

func decodeState(blob []byte) (*state, error) {
	body, err := openBlob(kindState, blob)
	if err != nil {
		return nil, err
	}
	c := cursor{b: body}
	s := &state{gen: c.uint(), epoch: uint32(c.uint()), boot: uint32(c.uint()), clean: c.uint() == 1,
		last: c.int(), lostB: c.int(), lostR: c.int()}
	c.lanes(&s.lanes)
	for n := c.length(); n > 0; n-- {
		l := Loss{Lane: Lane(c.uint()), From: c.uint()}
		l.To = l.From + c.uint()
		l.Batches, l.Readings, l.T0, l.T1, l.Why = c.int(), c.int(), c.int(), c.int(), c.text()
		s.ledger = append(s.ledger, entry{Loss: l, saved: true})
	}
	return s, c.err("the state")
}

// ride is the part of the state that goes along with every commit of a
// segment, so that acknowledgements cost no commit of their own.
type ride struct {
	last  int64
	lanes [laneCount]laneState
	gen   uint64 // of the state that was on disk; 0 in files of the first versions
}

func (r *ride) encode() []byte {
	return sealBlob(kindRide, binary.AppendUvarint(appendLanes(binary.AppendVarint(nil, r.last), &r.lanes), r.gen))
}

func decodeRide(blob []byte) (*ride, error) {
	body, err := openBlob(kindRide, blob)
	if err != nil {
		return nil, err
	}
	c := cursor{b: body}
	r := &ride{last: c.int()}
	c.lanes(&r.lanes)
	if len(c.b) > 0 {
		r.gen = c.uint()
	}
	return r, c.err("the ride")
}

// join takes over what a ride knows beyond the state.
func (s *state) join(r *ride) {
	s.last = max(s.last, r.last)
	for i := range s.lanes {
		a, b := &s.lanes[i], &r.lanes[i]
		a.given, a.reserved = max(a.given, b.given), max(a.reserved, b.reserved)
		a.done.union(&b.done)
	}
}

// readState reads a state file without opening it in bbolt. It walks the
// whole file, so one that it accepts is sound.
func readState(path string) (*state, error) {
	m, err := openImage(path)
	if err != nil {
		return nil, err
	}
	defer m.close()
	var s *state
	err = m.walk(bucketRef{page: m.root}, func(key, _ []byte, sub *bucketRef) error {
		if sub == nil {
			return damaged("key %q", key)
		}
		return m.walk(*sub, func(k, v []byte, deep *bucketRef) (err error) {
			if deep != nil {
				return damaged("bucket %q", k)
			}
			switch string(key) {
			case bucketState:
				s, err = decodeState(v)
			case bucketCatalog:
				_, err = openBlob(kindCatalog, v)
			}
			return err
		})
	})
	if err == nil {
		err = m.freelist()
	}
	if err == nil && s == nil {
		err = damaged("no state")
	}
	return s, err
}

// loadStates reads both state files. missing is how many are not there;
// wrong names those that are damaged, with the reason.
func loadStates(dir string) (s *state, missing int, wrong map[string]error, err error) {
	wrong = make(map[string]error)
	for _, name := range stateNames {
		one, err := readState(filepath.Join(dir, name))
		switch {
		case errors.Is(err, os.ErrNotExist):
			missing++
		case errors.Is(err, errDamaged):
			wrong[name] = err
		case err != nil:
			return nil, 0, nil, fmt.Errorf("%s: %w", name, err)
		case s == nil:
			s = one
		default:
			old := one
			if one.gen > s.gen {
				s, old = one, s
			}
			s.join(&ride{last: old.last, lanes: old.lanes})
		}
	}
	return s, missing, wrong, nil
}

// stateFile is one of the two.
type stateFile struct {
	path string
	b    *boltFile // nil: it must be made anew
}

// saveState writes the state with a transaction to each file. It counts
// only when both succeed. The caller holds the disk lock.
func (q *Queue) saveState(clean bool) error {
	if err := q.ready(); err != nil || q.adrift != nil {
		return err
	}
	q.mu.Lock()
	q.gen++
	s := state{gen: q.gen, epoch: q.epoch, boot: q.boot, clean: clean, last: q.time(), lostB: q.lostB, lostR: q.lostR}
	for i := range q.lanes {
		ln := &q.lanes[i]
		s.lanes[i] = laneState{given: ln.given, reserved: max(ln.given, ln.reserved, q.numbers.next[i]), done: ln.done.clone()}
		if clean {
			s.lanes[i].reserved = ln.given
		}
	}
	s.ledger = q.ledger
	blob := s.encode()
	q.ackDirty, q.ledgerDirty = zeroTime, zeroTime
	q.lossDirty = false
	q.mu.Unlock()

	for i := range q.states {
		if err := q.writeState(i, func(b *bbolt.Bucket, _ *bbolt.Bucket) error { return b.Put([]byte(keyState), blob) }); err != nil {
			q.mu.Lock()
			q.lossDirty = true
			q.mu.Unlock()
			return q.failed(err)
		}
	}

	q.mu.Lock()
	q.saved = s.gen
	for i := range q.ledger { // some may have been added meanwhile
		q.ledger[i].saved = q.ledger[i].saved || q.ledger[i].gen < s.gen
	}
	q.mu.Unlock()
	q.measure()
	return nil
}

// writeState runs fn in one of the state files. A file on which a commit
// failed is not used any more: a new one takes its place.
func (q *Queue) writeState(i int, fn func(state, catalog *bbolt.Bucket) error) error {
	f := &q.states[i]
	change := func(tx *bbolt.Tx) error {
		s, err := tx.CreateBucketIfNotExists([]byte(bucketState))
		if err != nil {
			return err
		}
		c, err := tx.CreateBucketIfNotExists([]byte(bucketCatalog))
		if err != nil {
			return err
		}
		return fn(s, c)
	}
	defer q.tune.step()
	if f.b != nil {
		n, err := f.b.update(change)
		q.wrote(n)
		if err == nil {
			return nil
		}
		f.b.close()
		f.b = nil
	}
	return q.remakeState(i, change)
}

// remakeState puts a new file in the place of a state file: the catalogs of
// the other one, and then what change writes.
func (q *Queue) remakeState(i int, change func(*bbolt.Tx) error) error {
	f, other := &q.states[i], &q.states[1-i]
	fresh := f.path + suffixNew
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b, err := openBolt(fresh, q.stateCap, stateStep, q.log)
	if err != nil {
		return err
	}
	err = preallocate(b.file, stateStart)
	if err == nil {
		var n int64
		n, err = b.update(func(tx *bbolt.Tx) error {
			if other.b != nil {
				c, err := tx.CreateBucketIfNotExists([]byte(bucketCatalog))
				if err != nil {
					return err
				}
				err = other.b.view(func(from *bbolt.Tx) error {
					return from.Bucket([]byte(bucketCatalog)).ForEach(func(k, v []byte) error {
						return c.Put(bytes.Clone(k), bytes.Clone(v))
					})
				})
				if err != nil {
					return err
				}
			}
			return change(tx)
		})
		q.wrote(n)
	}
	if err == nil {
		err = b.file.Sync()
	}
	q.tune.step()
	if err == nil {
		err = rename(fresh, f.path)
	}
	if err != nil {
		b.close()
		os.Remove(fresh)
		return err
	}
	f.b = b
	return nil
}

// SaveMeta keeps a value under a key, durable when it returns: a catalog
// that batches refer to. The newest 16 are kept. A value that is already
// there is not written again.
func (q *Queue) SaveMeta(key string, val []byte) error {
	q.disk.Lock()
	defer q.disk.Unlock()
	if key == "" {
		return errors.New("buffer: a catalog needs a key")
	}
	if err := q.ready(); err != nil {
		return err
	}
	if q.adrift != nil {
		if q.metas == nil {
			q.metas = make(map[string][]byte)
		}
		q.metas[key] = bytes.Clone(val)
		return nil
	}
	return q.saveMeta(key, val)
}

func (q *Queue) saveMeta(key string, val []byte) error {
	if old, ok, err := q.catalog(key); err == nil && ok && bytes.Equal(old, val) {
		return nil
	}
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.DefaultCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(val); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if int64(packed.Len()) > q.stateCap/4 {
		return fmt.Errorf("%w: a catalog of %d bytes", ErrTooLarge, packed.Len())
	}
	q.mu.Lock()
	q.gen++
	order := q.gen
	q.mu.Unlock()
	body := append(binary.AppendUvarint(nil, order), packed.Bytes()...)
	blob := sealBlob(kindCatalog, body)
	for i := range q.states {
		err := q.writeState(i, func(_, c *bbolt.Bucket) error {
			if err := c.Put([]byte(key), blob); err != nil {
				return err
			}
			return dropCatalogs(c, q.stateCap/2)
		})
		if err != nil {
			return q.failed(err)
		}
	}
	return nil
}

// dropCatalogs removes the oldest beyond the newest 16 and beyond a number of bytes.
func dropCatalogs(c *bbolt.Bucket, room int64) error {
	type old struct {
		key   []byte
		order uint64
		size  int64
	}
	var all []*old
	err := c.ForEach(func(k, v []byte) error {
		o := &old{key: bytes.Clone(k), size: int64(len(v))}
		if body, err := openBlob(kindCatalog, v); err == nil {
			o.order = (&cursor{b: body}).uint()
		}
		all = append(all, o)
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b *old) int { return cmp.Compare(b.order, a.order) })
	for i, o := range all {
		if room -= o.size; i > 0 && (i >= keepCatalogs || room < 0) {
			if err := c.Delete(o.key); err != nil {
				return err
			}
		}
	}
	return nil
}

// Meta returns the value kept under a key, and whether there is one.
func (q *Queue) Meta(key string) ([]byte, bool, error) {
	q.disk.Lock()
	defer q.disk.Unlock()
	if err := q.ready(); err != nil && !errors.Is(err, ErrReadOnly) {
		return nil, false, err
	}
	return q.catalog(key)
}

func (q *Queue) catalog(key string) (val []byte, ok bool, err error) {
	if val, ok := q.metas[key]; ok {
		return val, true, nil
	}
	for i := range q.states {
		if q.states[i].b == nil {
			continue
		}
		err = q.states[i].b.view(func(tx *bbolt.Tx) error {
			c := tx.Bucket([]byte(bucketCatalog))
			if c == nil {
				return nil
			}
			v := c.Get([]byte(key))
			if v == nil {
				return nil
			}
			body, err := openBlob(kindCatalog, v)
			if err != nil {
				return err
			}
			cur := cursor{b: body}
			cur.uint()
			val, err = io.ReadAll(flate.NewReader(bytes.NewReader(cur.b)))
			ok = err == nil
			return err
		})
		if err == nil && ok {
			return val, true, nil
		}
	}
	return nil, false, err
}
