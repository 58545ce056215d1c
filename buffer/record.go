package buffer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A record is one batch as it stands in a segment: the envelope and then the
// bytes, in one piece, so that a scan of the raw file finds it without bbolt.
//
//	 0  8  magic 89 54 47 42 0d 0a 1a 0a
//	 8  1  version, 1
//	 9  1  lane, 0 data, 1 event
//	10  1  flags: 1 encrypted (see key.go); 2 thinned (see thin.go)
//	11  1  0
//	12  4  count of readings
//	16  8  number
//	24  8  t0, Unix ms
//	32  8  t1, Unix ms
//	40  4  length of the bytes
//	44  4  CRC32C of 0..43 and the bytes
//	48     the bytes
//
// A blob is anything else that is kept: the state, a ride, a summary, a catalog, a reservation.
//
//	 0  8  magic 89 54 47 53 0d 0a 1a 0a
//	 8  1  version, 1
//	 9  1  kind
//	10  2  0
//	12  4  length of the body
//	16  4  CRC32C of 0..15 and the body
//	20     the body
//
// All numbers of fixed width are big endian.
const (
	recordMagic = "\x89TGB\r\n\x1a\n"
	blobMagic   = "\x89TGS\r\n\x1a\n"
	magicPrefix = "\x89TG"

	recordVersion = 1
	blobVersion   = 1
	recordHead    = 48
	blobHead      = 20
)

// The kinds of blobs.
const (
	kindState   = 1
	kindRide    = 2
	kindSummary = 3
	kindCatalog = 4
	kindNumbers = 5
)

// errDamaged means that what lies on disk cannot be what was written.
var errDamaged = errors.New("damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamaged, fmt.Sprintf(format, args...))
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// envelope is the head of a record, decoded.
type envelope struct {
	lane   Lane
	number uint64
	count  uint32
	t0, t1 int64
	length int64
	flags  byte
}

// seal fills in the head of a record whose bytes already stand behind it.
func (e *envelope) seal(rec []byte) {
	copy(rec, recordMagic)
	rec[8], rec[9], rec[10], rec[11] = recordVersion, byte(e.lane), e.flags, 0
	be := binary.BigEndian
	be.PutUint32(rec[12:], e.count)
	be.PutUint64(rec[16:], e.number)
	be.PutUint64(rec[24:], uint64(e.t0))
	be.PutUint64(rec[32:], uint64(e.t1))
	be.PutUint32(rec[40:], uint32(len(rec)-recordHead))
	be.PutUint32(rec[44:], recordSum(rec))
}

func recordSum(rec []byte) uint32 {
	t := castagnoli()
	return crc32.Update(crc32.Checksum(rec[:44], t), t, rec[recordHead:])
}

// openHead decodes the head of a record. It checks nothing but the magic.
func openHead(head []byte) (envelope, error) {
	if len(head) < recordHead || string(head[:8]) != recordMagic {
		return envelope{}, damaged("no record")
	}
	be := binary.BigEndian
	return envelope{lane: Lane(head[9]), count: be.Uint32(head[12:]), number: be.Uint64(head[16:]),
		t0: int64(be.Uint64(head[24:])), t1: int64(be.Uint64(head[32:])), length: int64(be.Uint32(head[40:])), flags: head[10]}, nil
}

// checkRecord checks a whole record, of whatever version, and decodes its head.
func checkRecord(rec []byte) (envelope, error) {
	e, err := openHead(rec)
	if err != nil {
		return e, err
	}
	if e.length != int64(len(rec)-recordHead) || recordSum(rec) != binary.BigEndian.Uint32(rec[44:]) {
		return e, damaged("record %d has a wrong checksum", e.number)
	}
	if e.lane >= laneCount || e.number == 0 {
		return e, damaged("record %d of %s cannot be", e.number, e.lane)
	}
	return e, nil
}

// openRecord checks a whole record that is to be read now.
func openRecord(rec []byte) (envelope, error) {
	e, err := checkRecord(rec)
	if err == nil && (rec[8] != recordVersion || rec[10]&^(flagEncrypted|flagThinned) != 0) {
		err = fmt.Errorf("%w: record of version %d, flags %#x", ErrNewer, rec[8], rec[10])
	}
	return e, err
}

// sealBlob wraps a body.
func sealBlob(kind byte, body []byte) []byte {
	b := make([]byte, blobHead, blobHead+len(body))
	copy(b, blobMagic)
	b[8], b[9] = blobVersion, kind
	binary.BigEndian.PutUint32(b[12:], uint32(len(body)))
	b = append(b, body...)
	binary.BigEndian.PutUint32(b[16:], blobSum(b))
	return b
}

func blobSum(b []byte) uint32 {
	t := castagnoli()
	return crc32.Update(crc32.Checksum(b[:16], t), t, b[blobHead:])
}

// openBlob checks a blob of a kind and returns its body.
func openBlob(kind byte, b []byte) ([]byte, error) {
	if len(b) < blobHead || string(b[:8]) != blobMagic ||
		int64(binary.BigEndian.Uint32(b[12:])) != int64(len(b)-blobHead) || blobSum(b) != binary.BigEndian.Uint32(b[16:]) {
		return nil, damaged("blob of kind %d has a wrong checksum", kind)
	}
	if b[8] > blobVersion {
		return nil, fmt.Errorf("%w: format %d", ErrNewer, b[8])
	}
	if b[9] != kind {
		return nil, damaged("blob of kind %d where %d belongs", b[9], kind)
	}
	return b[blobHead:], nil
}

// cursor reads a body. Its first failure sticks.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.b, c.bad = nil, true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) int() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.b, c.bad = nil, true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) text() string {
	n := c.uint()
	if n > uint64(len(c.b)) {
		c.b, c.bad = nil, true
		return ""
	}
	s := string(c.b[:n])
	c.b = c.b[n:]
	return s
}

// length reads the length of a list; an element takes at least one byte.
func (c *cursor) length() int {
	n := c.uint()
	if n > uint64(len(c.b)) {
		c.b, c.bad = nil, true
		return 0
	}
	return int(n)
}

func (c *cursor) err(what string) error {
	if c.bad {
		return damaged("%s is cut short", what)
	}
	return nil
}
