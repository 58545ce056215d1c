package profile

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"tidegate/internal/telemetry"
)

// codec is a point prepared for speed: every choice that the YAML leaves
// open is made once, when the profile is loaded.
type codec struct {
	load   load
	act    action
	width  uint8 // significant bits of the raw number
	sub    uint8 // byte within the register (u8), else 0
	shift  uint8 // bits and bit: the lowest bit taken
	signed bool
	invert bool
	hexed  bool   // text written as hexadecimal digits of its characters
	bit1   bool   // one bit of a table of bits
	keep   uint64 // mask of the significant bits
	table  Table
	addr   uint16 // wire address, or offset in a frame
	count  uint16 // registers, bits, or bytes in a frame
	sfAddr uint16
	na     []uint64
	num    number
	sf     *[21]number // for scale factors -10..10; nil = none
	perm   [8]uint8
	naText []string
	words  map[uint64]telemetry.Value // enum
	flags  []flagWord
	last   atomic.Pointer[lastText]
	mbus   *mbusSource  // of a point in M-Bus telegrams; else nil
	text   []textSource // sources of a text point
	spot   *spot        // what a point of a binary frame has beyond its offset; nil = nothing
}

// lastText remembers the last text made of a raw content, so that a state
// that does not change costs no memory.
type lastText struct {
	raw   uint64
	bytes string
	value telemetry.Value
}

type flagWord struct {
	bit  uint8
	word string
}

// load says how bytes become a raw number.
type load uint8

const (
	load8 load = iota
	loadAB
	loadBA
	loadABCD
	loadCDAB
	loadBADC
	loadDCBA
	load64
	load64CDAB // words reversed
	load64BADC // bytes reversed in each word
	load64DCBA // all reversed
	loadPerm   // 24 and 48 bits
)

// action says what a raw number becomes.
type action uint8

const (
	actBool action = iota
	actInt
	actUint // 64 bits unsigned
	actF32
	actF64
	actBCD
	actEnum
	actFlags
	actString
	actNumber  // a number written as text
	actDegrees // degrees and minutes written as one number
)

// chooseLoad returns the loader of size bytes in an order, and for odd
// sizes the byte positions from the most significant one on.
func chooseLoad(size int, order string) (load, [8]uint8, bool) {
	row := map[string]int{"": 0, "big": 0, "ABCD": 0, "CDAB": 1, "BADC": 2, "DCBA": 3, "little": 3}
	k, ok := row[order]
	if !ok || size%2 == 1 && (k == 1 || k == 2) {
		return 0, [8]uint8{}, false
	}
	var perm [8]uint8
	for i := range size {
		perm[i] = uint8([...]int{i, size - 2 - i&^1 + i&1, i ^ 1, size - 1 - i}[k])
	}
	switch size {
	case 1:
		return load8, perm, true
	case 2:
		// Two bytes have no words to reverse.
		return [...]load{loadAB, loadAB, loadBA, loadBA}[k], perm, true
	case 4:
		return [...]load{loadABCD, loadCDAB, loadBADC, loadDCBA}[k], perm, true
	case 8:
		return [...]load{load64, load64CDAB, load64BADC, load64DCBA}[k], perm, true
	}
	return loadPerm, perm, true
}

// size returns how many bytes the loader reads.
func (c *codec) size() int {
	switch c.load {
	case load8:
		return 1
	case loadAB, loadBA:
		return 2
	case loadABCD, loadCDAB, loadBADC, loadDCBA:
		return 4
	case load64, load64CDAB, load64BADC, load64DCBA:
		return 8
	}
	if c.table != 0 {
		return 2 * int(c.count)
	}
	return int(c.count)
}

// read returns the raw number; b has at least size bytes.
func (c *codec) read(b []byte) uint64 {
	be := binary.BigEndian
	switch c.load {
	case load8:
		return uint64(b[0])
	case loadAB:
		return uint64(be.Uint16(b))
	case loadBA:
		return uint64(binary.LittleEndian.Uint16(b))
	case loadABCD:
		return uint64(be.Uint32(b))
	case loadCDAB:
		return uint64(bits.RotateLeft32(be.Uint32(b), 16))
	case loadBADC:
		return uint64(bits.RotateLeft32(binary.LittleEndian.Uint32(b), 16))
	case loadDCBA:
		return uint64(binary.LittleEndian.Uint32(b))
	case load64:
		return be.Uint64(b)
	case load64CDAB:
		return swapBytes(binary.LittleEndian.Uint64(b))
	case load64BADC:
		return swapBytes(be.Uint64(b))
	case load64DCBA:
		return binary.LittleEndian.Uint64(b)
	}
	var x uint64
	for _, k := range c.perm[:c.size()] {
		x = x<<8 | uint64(b[k])
	}
	return x
}

// write is the inverse of read.
func (c *codec) write(b []byte, x uint64) {
	n := c.size()
	for i := n - 1; i >= 0; i-- {
		b[c.perm[i]] = byte(x)
		x >>= 8
	}
}

// swapBytes reverses the bytes within each of the four words.
func swapBytes(x uint64) uint64 {
	return x>>8&0x00ff00ff00ff00ff | x&0x00ff00ff00ff00ff<<8
}

// bcd reads packed decimal digits; ok is false where a digit is above 9.
func bcd(x uint64) (n uint64, ok bool) {
	for shift := 60; shift >= 0; shift -= 4 {
		d := x >> uint(shift) & 15
		if d > 9 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

func toBCD(n uint64) (x uint64) {
	for shift := uint(0); shift < 64 && n > 0; shift += 4 {
		x |= n % 10 << shift
		n /= 10
	}
	return x
}
