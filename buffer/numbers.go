package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The file "numbers" says up to where numbers may have been given. It is a
// ring of slots, each one blob in a page of its own, written one after the
// other and never in the place of the last ones.
//
// Cheap flash confirms a flush before what was flushed is safe, so the last
// confirmed flushes may be gone after a power cut, and with them the newest
// state: a start would then give numbers again that have left already. So
// numbers are reserved long before they are given, and a reservation counts
// only when settleFlushes more writes were flushed behind it.
const (
	numbersName   = "numbers"
	numberSlots   = 32
	settleFlushes = 16
)

// reservation is the content of a slot.
type reservation struct {
	gen      uint64 // counts on with that of the state
	epoch    uint32 // 0: there is none
	boot     uint32
	reserved [laneCount]uint64
}

// numbersFile is the ring, open for writing. It belongs to the disk lock.
type numbersFile struct {
	f    *os.File
	slot int               // that is written next
	next [laneCount]uint64 // the reservation under way, or in force when left is 0
	left int               // slots to be written until it counts
}

func (r *reservation) encode() []byte {
	b := binary.AppendUvarint(nil, r.gen)
	b = binary.AppendUvarint(b, uint64(r.epoch))
	b = binary.AppendUvarint(b, uint64(r.boot))
	for _, n := range r.reserved {
		b = binary.AppendUvarint(b, n)
	}
	return sealBlob(kindNumbers, b)
}

func decodeReservation(slot []byte) (reservation, error) {
	if len(slot) < blobHead {
		return reservation{}, damaged("a slot of %d bytes", len(slot))
	}
	n := int64(binary.BigEndian.Uint32(slot[12:])) + blobHead
	if n > int64(len(slot)) {
		return reservation{}, damaged("a reservation of %d bytes", n)
	}
	body, err := openBlob(kindNumbers, slot[:n])
	if err != nil {
		return reservation{}, err
	}
	c := cursor{b: body}
	r := reservation{gen: c.uint(), epoch: uint32(c.uint()), boot: uint32(c.uint())}
	for i := range r.reserved {
		r.reserved[i] = c.uint()
	}
	return r, c.err("the reservation")
}

// readNumbers joins all slots of the newest epoch: the highest numbers of any
// of them may have been given. slot is the one behind the newest. A file that
// is missing or has no readable slot is no error; its epoch is 0.
func readNumbers(dir string) (newest reservation, slot int, err error) {
	f, err := os.OpenFile(filepath.Join(dir, numbersName), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return newest, 0, nil
	}
	if err != nil {
		return newest, 0, err
	}
	defer f.Close()
	var all []reservation
	page := make([]byte, pageSize)
	for i := range numberSlots {
		n := readSome(f, page, int64(i)*pageSize)
		r, err := decodeReservation(page[:n])
		if errors.Is(err, ErrNewer) {
			return newest, 0, fmt.Errorf("%s: %w", numbersName, err)
		}
		if err != nil {
			continue
		}
		if r.gen > newest.gen {
			newest, slot = r, (i+1)%numberSlots
		}
		all = append(all, r)
	}
	for _, r := range all {
		if r.epoch != newest.epoch {
			continue
		}
		newest.boot = max(newest.boot, r.boot)
		for i := range r.reserved {
			newest.reserved[i] = max(newest.reserved[i], r.reserved[i])
		}
	}
	return newest, slot, nil
}

// state is that of a store both of whose state files are lost: the same
// epoch goes on if the numbers are known, else there is a new one.
func (r *reservation) state() (*state, error) {
	if r.epoch != 0 {
		return &state{gen: r.gen, epoch: r.epoch, boot: r.boot}, nil
	}
	epoch, err := newEpoch()
	return &state{epoch: epoch}, err
}

// catchUp takes over what the numbers file and the rides know beyond the
// state. When they saw a later one, the disk has lost the last commits of the
// state and with them, perhaps, of the ledger. Then unsure is what was done
// since: delivered, or lost and to be told again.
func (s *state) catchUp(given *reservation, rides []*ride) (unsure [laneCount]ranges) {
	if given.epoch == s.epoch {
		if given.gen > s.gen {
			s.clean = false
		}
		s.boot = max(s.boot, given.boot)
		if !s.clean {
			for i := range s.lanes {
				s.lanes[i].reserved = max(s.lanes[i].reserved, given.reserved[i])
			}
		}
	}
	for _, r := range rides {
		if r.gen <= s.gen {
			continue
		}
		s.clean = false
		for i := range r.lanes {
			unsure[i].union(r.lanes[i].done.without(&s.lanes[i].done))
		}
	}
	for _, r := range rides {
		s.join(r)
		s.gen = max(s.gen, r.gen)
	}
	s.gen = max(s.gen, given.gen)
	return unsure
}

// reserve makes sure that numbers can be given for a while. Where few are
// left it reserves the next block, and goes on with it in the next call when
// the disk is slow: until then the numbers of the block are given, but do not
// leave. The caller holds the disk lock.
func (q *Queue) reserve() error {
	n := &q.numbers
	q.mu.Lock()
	for i := range q.lanes {
		ln := &q.lanes[i]
		if n.left == 0 {
			n.next[i] = max(n.next[i], ln.reserved)
		}
		if ln.given+q.tune.block/8 > n.next[i] {
			n.next[i] = max(n.next[i], ln.given) + q.tune.block
			n.left = settleFlushes + 1
		}
	}
	q.mu.Unlock()
	if n.left == 0 {
		return nil
	}
	for end := time.Now().Add(q.tune.settle); n.left > 0 && time.Now().Before(end); n.left-- {
		if err := q.writeSlot(); err != nil {
			if n.f != nil {
				n.f.Close()
				n.f = nil
			}
			n.left = settleFlushes + 1
			return q.failed(err)
		}
	}
	if n.left > 0 {
		return nil
	}
	q.mu.Lock()
	for i := range q.lanes {
		q.lanes[i].reserved = max(q.lanes[i].reserved, n.next[i])
	}
	q.settling = false
	q.mu.Unlock()
	q.signal()
	return nil
}

// writeSlot writes the reservation under way into the next slot, durable as
// far as the disk says.
func (q *Queue) writeSlot() error {
	n := &q.numbers
	if n.f == nil {
		if err := q.openNumbers(); err != nil {
			return err
		}
	}
	q.mu.Lock()
	q.gen++
	r := reservation{gen: q.gen, epoch: q.epoch, boot: q.boot, reserved: n.next}
	q.mu.Unlock()
	page := make([]byte, pageSize)
	copy(page, r.encode())
	if _, err := n.f.WriteAt(page, int64(n.slot)*pageSize); err != nil {
		return err
	}
	if err := fdatasync(n.f); err != nil {
		return err
	}
	n.slot = (n.slot + 1) % numberSlots
	q.wrote(pageSize)
	q.tune.step()
	return nil
}

// openNumbers opens the ring, or makes one, all of it written once: a later
// write changes nothing but the slot.
func (q *Queue) openNumbers() error {
	path := filepath.Join(q.dir, numbersName)
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err == nil {
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() && fi.Size() == numberSlots*pageSize {
			q.numbers.f = f
			return nil
		}
		f.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := q.ensureRoom(Event, numberSlots*pageSize, true); err != nil && !errors.Is(err, errFull) {
		return err
	}
	fresh := path + suffixNew
	if f, err = os.OpenFile(fresh, os.O_RDWR|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600); err != nil {
		return err
	}
	if _, err = io.Copy(f, io.LimitReader(zeros{}, numberSlots*pageSize)); err == nil {
		if err = f.Sync(); err == nil {
			q.tune.step()
			err = rename(fresh, path)
		}
	}
	if err != nil {
		f.Close()
		os.Remove(fresh)
		return err
	}
	q.numbers.f, q.numbers.slot = f, 0
	q.wrote(numberSlots * pageSize)
	q.tune.step()
	return nil
}

// zeros is an endless file of them.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func fdatasync(f *os.File) error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EINTR) {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}
