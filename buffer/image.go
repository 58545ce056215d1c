package buffer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"os"
	"syscall"
)

// An image is a bbolt file read by our own hand, without mapping it.
//
// bbolt has no checksum on its data pages and trusts them: a flipped bit can
// make it panic, fault, run in a circle or reuse a living page. So a file is
// walked here first, with every offset checked and no page visited twice,
// and only a sound one is given to bbolt. It is also how a segment's summary
// is read at start for a few preads.
type image struct {
	f    *os.File
	size int64
	root uint64 // page of the root bucket
	free uint64 // page of the freelist; noFreelist: it was not written
	high uint64 // number of pages in use
	txid uint64
	seen map[uint64]bool // pages reached
}

// bucketRef is where a bucket begins: a page, or the bytes of an inline one.
type bucketRef struct {
	page   uint64
	inline []byte
}

const (
	boltMagic   = 0xED0CDAED
	pageHead    = 16
	elementSize = 16

	flagBranch = 0x01
	flagLeaf   = 0x02
	flagFree   = 0x10

	noFreelist = math.MaxUint64

	maxDepth = 16
)

// openImage opens a file and reads its meta pages. errDamaged when they are
// not both whole or the file is shorter than they say.
func openImage(path string) (*image, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	m := &image{f: f, seen: make(map[uint64]bool)}
	if err := m.metas(); err != nil {
		f.Close()
		return nil, err
	}
	return m, nil
}

func (m *image) close() { m.f.Close() }

func (m *image) metas() error {
	fi, err := m.f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", m.f.Name())
	}
	m.size = fi.Size()
	for i := int64(0); i < 2; i++ {
		p, err := metaPage(m.f, i)
		if err != nil {
			return err
		}
		ne := binary.NativeEndian
		if txid := ne.Uint64(p[48:]); i == 0 || txid > m.txid {
			m.root, m.free, m.high, m.txid = ne.Uint64(p[16:]), ne.Uint64(p[32:]), ne.Uint64(p[40:]), txid
		}
	}
	if m.high < 4 || m.high > uint64(m.size)/pageSize {
		return damaged("the file is shorter than its %d pages", m.high)
	}
	return nil
}

// metaPage reads one of the two meta pages and checks it.
func metaPage(f *os.File, i int64) (p [64]byte, err error) {
	if err := readFull(f, p[:], i*pageSize+pageHead); err != nil {
		return p, err
	}
	ne := binary.NativeEndian
	h := fnv.New64a()
	h.Write(p[:56])
	if ne.Uint32(p[:]) != boltMagic || ne.Uint32(p[4:]) != 2 || ne.Uint32(p[8:]) != pageSize || ne.Uint64(p[56:]) != h.Sum64() {
		return p, damaged("meta page %d", i)
	}
	return p, nil
}

// metasReadable tells whether both meta pages are there and one of them is
// whole. In a file that is being written the other may just be changing.
func metasReadable(f *os.File) error {
	if fi, err := f.Stat(); err != nil {
		return err
	} else if fi.Size() < 2*pageSize {
		return damaged("the file was cut to %d bytes", fi.Size())
	}
	_, err := metaPage(f, 0)
	if err != nil {
		_, err = metaPage(f, 1)
	}
	return err
}

// readFull fills b. A file that ends early or a sector that cannot be read is damage.
func readFull(f *os.File, b []byte, off int64) error {
	_, err := f.ReadAt(b, off)
	if err == io.EOF || errors.Is(err, syscall.EIO) {
		return damaged("read at %d: %v", off, err)
	}
	return err
}

// page reads a page with what overflows it, or only its first bytes, and
// marks it as reached.
func (m *image) page(id uint64, head bool) (b []byte, total uint64, err error) {
	if id < 2 || id >= m.high {
		return nil, 0, damaged("page %d is outside of %d", id, m.high)
	}
	var h [pageHead]byte
	if err := readFull(m.f, h[:], int64(id)*pageSize); err != nil {
		return nil, 0, err
	}
	ne := binary.NativeEndian
	over := uint64(ne.Uint32(h[12:]))
	if ne.Uint64(h[:]) != id || id+over >= m.high {
		return nil, 0, damaged("page %d says it is %d, %d more", id, ne.Uint64(h[:]), over)
	}
	for i := id; i <= id+over; i++ {
		if m.seen[i] {
			return nil, 0, damaged("page %d is used twice", i)
		}
		m.seen[i] = true
	}
	total = (over + 1) * pageSize
	n := total
	if head {
		n = 128
	}
	b = make([]byte, n)
	return b, total, readFull(m.f, b, int64(id)*pageSize)
}

// walk visits the keys of a bucket in order. value is that of a plain key;
// sub is set for a bucket instead.
func (m *image) walk(ref bucketRef, visit func(key, value []byte, sub *bucketRef) error) error {
	if ref.page == 0 {
		_, err := m.leaf(ref.inline, uint64(len(ref.inline)), nil, visit)
		return err
	}
	_, err := m.node(ref.page, 0, nil, visit)
	return err
}

// tail visits the keys of the last leaf of a bucket.
func (m *image) tail(id uint64, visit func(key, value []byte, sub *bucketRef) error) error {
	ne := binary.NativeEndian
	for range maxDepth {
		b, total, err := m.page(id, false)
		if err != nil {
			return err
		}
		if ne.Uint16(b[8:]) != flagBranch {
			_, err = m.leaf(b, total, nil, visit)
			return err
		}
		n := int(ne.Uint16(b[10:]))
		if n == 0 || pageHead+n*elementSize > len(b) {
			return damaged("branch page %d has %d elements", id, n)
		}
		id = ne.Uint64(b[pageHead+(n-1)*elementSize+8:])
	}
	return damaged("page %d is too deep", id)
}

func (m *image) node(id uint64, depth int, last []byte, visit func(key, value []byte, sub *bucketRef) error) ([]byte, error) {
	if depth > maxDepth {
		return nil, damaged("page %d is too deep", id)
	}
	b, total, err := m.page(id, false)
	if err != nil {
		return nil, err
	}
	ne := binary.NativeEndian
	switch ne.Uint16(b[8:]) {
	case flagLeaf:
		return m.leaf(b, total, last, visit)
	case flagBranch:
		n := int(ne.Uint16(b[10:]))
		if n == 0 || pageHead+n*elementSize > len(b) {
			return nil, damaged("branch page %d has %d elements", id, n)
		}
		for i := 0; i < n; i++ {
			at := pageHead + i*elementSize
			e := b[at:]
			pos, ks := uint64(at)+uint64(ne.Uint32(e)), uint64(ne.Uint32(e[4:]))
			if pos+ks > total {
				return nil, damaged("branch page %d, key %d", id, i)
			}
			key := b[pos : pos+ks]
			if last != nil && bytes.Compare(key, last) <= 0 {
				return nil, damaged("branch page %d is out of order", id)
			}
			first := true
			last, err = m.node(ne.Uint64(e[8:]), depth+1, last, func(k, v []byte, sub *bucketRef) error {
				if first && bytes.Compare(k, key) < 0 {
					return damaged("branch page %d does not lead to its keys", id)
				}
				first = false
				return visit(k, v, sub)
			})
			if err != nil {
				return nil, err
			}
		}
		return last, nil
	}
	return nil, damaged("page %d is of kind %#x", id, ne.Uint16(b[8:]))
}

// leaf visits the elements of a leaf page and returns its last key.
func (m *image) leaf(b []byte, total uint64, last []byte, visit func(key, value []byte, sub *bucketRef) error) ([]byte, error) {
	ne := binary.NativeEndian
	if len(b) < pageHead || ne.Uint16(b[8:]) != flagLeaf {
		return nil, damaged("no leaf page")
	}
	n := int(ne.Uint16(b[10:]))
	if pageHead+n*elementSize > len(b) {
		return nil, damaged("leaf page has %d elements", n)
	}
	for i := 0; i < n; i++ {
		at := pageHead + i*elementSize
		e := b[at:]
		flags, pos := ne.Uint32(e), uint64(at)+uint64(ne.Uint32(e[4:]))
		ks, vs := uint64(ne.Uint32(e[8:])), uint64(ne.Uint32(e[12:]))
		if pos+ks+vs > total || pos+ks+vs > uint64(len(b)) || flags > 1 {
			return nil, damaged("leaf element %d", i)
		}
		key, value := b[pos:pos+ks], b[pos+ks:pos+ks+vs]
		if last != nil && bytes.Compare(key, last) <= 0 {
			return nil, damaged("leaf page is out of order")
		}
		last = key
		var sub *bucketRef
		if flags == 1 {
			if vs < 16 {
				return nil, damaged("bucket of %d bytes", vs)
			}
			sub = &bucketRef{page: ne.Uint64(value)}
			if sub.page == 0 {
				sub.inline = value[16:]
			}
			value = nil
		}
		if err := visit(key, value, sub); err != nil {
			return nil, err
		}
	}
	return last, nil
}

// records checks that a bucket holds exactly one plain key within its pages
// and visits the heads of the records that are its value. Their bytes are not
// read.
func (m *image) records(ref bucketRef, key string, visit func(envelope) error) error {
	b, total := ref.inline, uint64(len(ref.inline))
	if ref.page != 0 {
		var err error
		if b, total, err = m.page(ref.page, true); err != nil {
			return err
		}
	}
	ne := binary.NativeEndian
	if len(b) < pageHead+elementSize || ne.Uint16(b[8:]) != flagLeaf || ne.Uint16(b[10:]) != 1 {
		return damaged("no page of a batch")
	}
	e := b[pageHead:]
	pos, ks, vs := pageHead+uint64(ne.Uint32(e[4:])), uint64(ne.Uint32(e[8:])), uint64(ne.Uint32(e[12:]))
	if ne.Uint32(e) != 0 || pos+ks+vs > total || pos+ks > uint64(len(b)) || string(b[pos:pos+ks]) != key {
		return damaged("no batch in its page")
	}
	for at, end := pos+ks, pos+ks+vs; at < end; {
		var head [recordHead]byte
		if end-at < recordHead {
			return damaged("%d bytes behind a batch", end-at)
		}
		if ref.page == 0 {
			copy(head[:], b[at:])
		} else if err := readFull(m.f, head[:], int64(ref.page*pageSize+at)); err != nil {
			return err
		}
		e, err := openHead(head[:])
		if err == nil && uint64(e.length) > end-at-recordHead {
			err = damaged("batch %d has %d bytes", e.number, e.length)
		}
		if err == nil {
			err = visit(e)
		}
		if err != nil {
			return err
		}
		at += recordHead + uint64(e.length)
	}
	return nil
}

// freelist checks that the free pages are none of those reached, so that
// bbolt cannot write over a living page.
func (m *image) freelist() error {
	if m.free == noFreelist {
		return nil
	}
	b, total, err := m.page(m.free, false)
	if err != nil {
		return err
	}
	ne := binary.NativeEndian
	n, at := uint64(ne.Uint16(b[10:])), uint64(pageHead)
	if ne.Uint16(b[8:]) != flagFree {
		return damaged("no freelist")
	}
	if n == 0xFFFF {
		n, at = ne.Uint64(b[at:]), at+8
	}
	if n > total/8 || at+8*n > total {
		return damaged("freelist of %d", n)
	}
	last := uint64(1)
	for i := uint64(0); i < n; i++ {
		id := ne.Uint64(b[at+8*i:])
		if id <= last || id >= m.high || m.seen[id] {
			return damaged("page %d is not free", id)
		}
		last = id
	}
	return nil
}
