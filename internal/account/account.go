// Package account is the cloud's side of the promise that nothing goes
// missing silently: fed with the messages of gateways, in any order and with
// repeats, it says which numbers came, which are late, which are gone with a
// tombstone, and which are gone without one, which must not be.
//
// The algorithm is written down for everyone in docs/verify.md.
package account

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strings"
)

// The bounds of a Book. What goes past them is refused with ErrFull, never
// forgotten in silence: refused numbers stay missing in the report.
const (
	maxMessage = 32 << 20 // bytes of one message after decompression
	maxLanes   = 100_000  // gateways x epochs x lanes
	maxRanges  = 1 << 20  // pieces of numbers over all lanes
	maxDigests = 1 << 19  // numbers whose readings are remembered to find conflicts
	maxTombs   = 1 << 16  // tombstones remembered to count each once
)

// Errors of Add.
var (
	ErrShape = errors.New("account: not a batch, a tombstone or a status of any known shape")
	ErrFull  = errors.New("account: more gateways or gaps than can be kept")
)

// Book keeps the account of any number of gateways. It is not safe for
// concurrent use. Memory grows with the number of gaps, not of messages.
type Book struct {
	lanes  map[laneKey]*lane
	ranges int
	midway bool
	seed   maphash.Seed

	digests map[digestKey]digest
	recent  []digestKey // ring: the order in which digests were added
	oldest  int
	keep    int // how many digests
	tombs   map[tombKey]struct{}

	messages, ignored, unreadable int64
}

type laneKey struct{ gateway, epoch, lane string }

// lane is the account of one lane of one epoch of one gateway.
type lane struct {
	received set
	dropped  map[string]*drop // by why
	lo       uint64           // highest lo seen
	high     uint64           // highest number known to have been given
	firstLo  uint64           // lo and number of the first message: midway
	firstSeq uint64
	boot     uint32

	batches, repeats, conflicts, readings int64
	first, last                           int64 // Unix ms of readings; 0: none
	conflicting                           []uint64
}

type drop struct {
	numbers           set
	batches, readings int64
	unknown           bool // a tombstone did not know its counts
	t0, t1            int64
}

type digestKey struct {
	l *lane
	n uint64
}

type tombKey struct {
	l *lane
	d dropped
}

// New returns an empty book that expects every lane to begin with number 1:
// the messages must have been recorded from the gateway's first one on.
func New() *Book {
	return &Book{lanes: map[laneKey]*lane{}, seed: maphash.MakeSeed(), keep: maxDigests,
		digests: map[digestKey]digest{}, tombs: map[tombKey]struct{}{}}
}

// Midway tells the book, before the first Add, that the messages begin in
// the middle of the gateways' lives. Each lane's account then begins with
// the lowest number received, and up to 100 numbers beside the first
// message, which were on their way before, are not held against it.
func (b *Book) Midway() { b.midway = true }

// Add takes one message. Messages that say nothing about numbers, such as
// metadata and answers to commands, are counted and left. An error means
// that the message could not be read or kept; it is counted, too, and the
// book stays usable.
func (b *Book) Add(topic string, payload []byte) error {
	b.messages++
	err := b.add(topic, payload)
	if err != nil {
		b.unreadable++
	}
	return err
}

func (b *Book) add(topic string, payload []byte) error {
	if len(payload) == 0 {
		b.ignored++ // an empty retained message deletes the one before
		return nil
	}
	if bytes.HasPrefix(payload, []byte{0x1f, 0x8b}) || strings.HasSuffix(topic, "/gz") {
		z, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return fmt.Errorf("account: gzip of topic %q: %w", topic, err)
		}
		payload, err = io.ReadAll(io.LimitReader(z, maxMessage+1))
		if err != nil {
			return fmt.Errorf("account: gzip of topic %q: %w", topic, err)
		}
	}
	if len(payload) > maxMessage {
		return fmt.Errorf("account: message of more than %d bytes", maxMessage)
	}
	m, err := parse(payload)
	switch {
	case err != nil:
		return err
	case m.body == status:
		return b.addStatus(topic, m)
	case m.body == tombstone:
		return b.addTombstone(m)
	case m.body == batch:
		return b.addBatch(m)
	}
	b.ignored++
	return nil
}

func (b *Book) lane(gateway, epoch, name string) (*lane, error) {
	k := laneKey{gateway, epoch, name}
	l := b.lanes[k]
	if l == nil {
		if len(b.lanes) >= maxLanes {
			return nil, ErrFull
		}
		// The names may be slices of a large message.
		k = laneKey{strings.Clone(gateway), strings.Clone(epoch), strings.Clone(name)}
		l = &lane{dropped: map[string]*drop{}}
		b.lanes[k] = l
	}
	return l, nil
}

// see notes what any message of a lane says of its numbers.
func (l *lane) see(lo, high uint64, boot uint32) {
	if l.firstSeq == 0 && high > 0 {
		l.firstLo, l.firstSeq = lo, high
	}
	l.lo, l.high, l.boot = max(l.lo, lo), max(l.high, high), max(l.boot, boot)
}

func (b *Book) addBatch(m *message) error {
	d, err := digestOf(b.seed, m)
	if err != nil {
		return err
	}
	l, err := b.lane(m.Gateway, m.Epoch, m.Lane)
	if err != nil {
		return err
	}
	if l.received.has(m.Seq) {
		l.see(m.Lo, m.Seq, m.Boot)
		if old, ok := b.digests[digestKey{l, m.Seq}]; ok && !old.same(d) {
			l.conflicts++
			if len(l.conflicting) < maxShown {
				l.conflicting = append(l.conflicting, m.Seq)
			}
			return nil
		}
		l.repeats++
		return nil
	}
	l.see(m.Lo, m.Seq, m.Boot) // first: a number that cannot be kept stays missing
	if err := b.grow(&l.received, m.Seq, m.Seq); err != nil {
		return err
	}
	b.remember(digestKey{l, m.Seq}, d)
	l.batches++
	l.readings += d.readings
	if d.first != 0 && (l.first == 0 || d.first < l.first) {
		l.first = d.first
	}
	l.last = max(l.last, d.last)
	return nil
}

func (b *Book) addTombstone(m *message) error {
	t := *m.Dropped
	if t.From > t.To || t.From == 0 && t.To != 0 || t.To > maxNumber || t.Why == "" || len(t.Why) > 40 {
		return fmt.Errorf("account: tombstone from %d to %d, why %.40q: not a range of numbers with a reason", t.From, t.To, t.Why)
	}
	l, err := b.lane(m.Gateway, m.Epoch, m.Lane)
	if err != nil {
		return err
	}
	d := l.dropped[t.Why]
	if d == nil {
		if len(l.dropped) >= maxShown {
			return ErrFull // there are five words, not a language
		}
		d = &drop{}
		l.dropped[strings.Clone(t.Why)] = d
	}
	if t.From > 0 {
		if err := b.grow(&d.numbers, t.From, t.To); err != nil {
			return err
		}
	}
	l.see(m.Lo, t.To, m.Boot)
	k := tombKey{l, t}
	if _, again := b.tombs[k]; again {
		return nil
	}
	if len(b.tombs) < maxTombs {
		k.d.Why = strings.Clone(t.Why)
		b.tombs[k] = struct{}{}
	}
	if t.Batches < 0 || t.Readings < 0 {
		d.unknown = true
	}
	d.batches += max(t.Batches, 0)
	d.readings += max(t.Readings, 0)
	if t.T0 != 0 && (d.t0 == 0 || t.T0 < d.t0) {
		d.t0 = t.T0
	}
	d.t1 = max(d.t1, t.T1)
	return nil
}

func (b *Book) addStatus(topic string, m *message) error {
	gateway := m.Gateway
	if gateway == "" {
		// .../<gateway>/status
		levels := strings.Split(topic, "/")
		if len(levels) < 2 {
			return fmt.Errorf("account: status without gw on topic %q", topic)
		}
		gateway = levels[len(levels)-2]
	}
	for name, seq := range m.SeqOf {
		if seq > maxNumber {
			return fmt.Errorf("account: status with number %d", seq)
		}
		l, err := b.lane(gateway, m.Epoch, name)
		if err != nil {
			return err
		}
		l.see(min(m.LoOf[name], maxNumber), seq, m.Boot)
	}
	return nil
}

// grow adds numbers to a set of the book, within its bound.
func (b *Book) grow(s *set, from, to uint64) error {
	if b.ranges >= maxRanges && !s.touches(from, to) {
		return ErrFull
	}
	before := len(*s)
	s.add(from, to)
	b.ranges += len(*s) - before
	return nil
}

// remember keeps a digest and forgets the one that came first when there are
// too many.
func (b *Book) remember(k digestKey, d digest) {
	if len(b.recent) < b.keep {
		b.recent = append(b.recent, k)
	} else {
		delete(b.digests, b.recent[b.oldest])
		b.recent[b.oldest] = k
		b.oldest = (b.oldest + 1) % b.keep
	}
	b.digests[k] = d
}
