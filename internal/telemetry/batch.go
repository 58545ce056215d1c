package telemetry

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// The stored form of a batch, version 2. All integers are varints as in
// encoding/binary; "zigzag" marks the signed ones. Version 1 is the same
// without the forms from 10 on and without further devices.
//
//	version   byte       2
//	catalog   4 bytes    what Catalog.Hash says, as bytes
//	flags     byte       bit 0: the clock was synchronised
//	boot      uvarint    kernel boot of all stamps
//	t0        zigzag     wall time of the first group, Unix ms
//	offset    zigzag     wall - uptime of all stamps, ms
//	stretches uvarint    count, then each
//
// A stretch is a table: one column a point, one row a group. Groups with the
// same points in the same order share a stretch, in time order. Devices of one
// kind that were read a few times only share one, too: first the rows of the
// first device, then those of the next, whose points have other numbers at the
// same distances.
//
//	columns   uvarint
//	first     zigzag     number of the first point, less that of the stretch before
//	list      byte       bit 0: a zigzag difference for each further column follows, else
//	                     the numbers are consecutive; bit 1: further devices follow, their
//	                     count (uvarint), then a zigzag each: the number of its first point
//	                     less that of the device before
//	rows      uvarint    of each device
//	times     zigzag     a row each: the first less t0, the second less the first, then
//	                     the change of the difference
//	marks     uvarint    count of runs of cells that are not Good, then each:
//	                     gap (uvarint cells since the run before, by rows), length (uvarint),
//	                     quality (byte, bit 7: the cells hold no value), cause (uvarint)
//	columns   runs of columns of one form until all are told:
//	                     count (uvarint), form (byte), for formInt and formUint decimals (byte),
//	                     then the cells of each column that hold a value
//
// The forms, each column by itself, "previous" starting at 0 or empty:
//
//	0 none    nothing
//	1 int     zigzag of the difference to the previous mantissa
//	2 uint    uvarint of the XOR with the previous mantissa
//	3 f32     uvarint of the XOR with the previous bits
//	4 f32r    the same with the four bytes of the XOR reversed
//	5 f64     uvarint of the XOR with the previous bits
//	6 f64r    the same with the eight bytes reversed
//	7 bool    bits, least significant first, filled up to a byte
//	8 text    0: as the previous; else uvarint length + 1, bytes
//	9 mixed   kind (byte), decimals (byte), then uvarint bits, or for texts uvarint length, bytes
//
// and the packed ones of Int, Uint, Float32 and Float64:
//
//	10 - 13   head (byte: bits 0 to 5 k, bit 6 decimals follow, bit 7 a step follows),
//	          decimals (byte, else those of the packed column before, at first 0; 255: a
//	          float's number is its bits), step (zigzag, else 0), first number (zigzag), then
//	          for each further cell x = zigzag of the difference to the previous number less
//	          step: x >> k ones, a zero, the low k bits of x; where x >> k is 16 or more, 16
//	          ones, n - 1 in six bits, the low n bits of x. Bits go into bytes from the least
//	          significant on, low bits first; the last byte is filled up
const (
	batchVersion = 2
	firstVersion = 1
)

const (
	formNone byte = iota
	formInt
	formUint
	formF32
	formF32R
	formF64
	formF64R
	formBool
	formText
	formMixed
	formPackedInt
	formPackedUint
	formPackedF32
	formPackedF64
	forms
)

const flagSynced = 1

// bits of the list
const (
	listed  = 1
	further = 2
)

// Batch is a number of groups that share a catalog, a boot, and the offset
// between wall clock and uptime (within a few milliseconds of slewing).
type Batch struct {
	Catalog string // Catalog.Hash of the points' catalog
	Boot    uint32
	Synced  bool
	Groups  []Group

	tables Tables // what DecodeBatch read
	arena  []Reading
	// scratch of AppendBatch
	stretches []stretch
	newest    map[uint32]int // by first point: the last stretch that begins with it
	plans     []plan
	nums      []uint64
	exact     []uint64
}

// stretch is a table under construction.
type stretch struct {
	rows    []int // indexes of groups, those of each device together
	devices int   // with as many rows each
	before  int   // the stretch before it that begins with the same point, -1: none
}

// joinBack is how many kinds of devices may take turns and still share tables.
const joinBack = 8

// plan is how a column is written.
type plan struct {
	form, dec byte
	packing
}

// AppendBatch appends the stored form of b to dst. The stamps of all groups
// must agree in Boot and Synced with the batch; their uptimes are kept as
// wall time less one common offset, that of the first group. An empty batch
// or a batch whose catalog is no hash is an error.
func AppendBatch(dst []byte, b *Batch) ([]byte, error) {
	if len(b.Groups) == 0 {
		return dst, errors.New("telemetry: a batch needs at least one group")
	}
	hash, err := hex.DecodeString(b.Catalog)
	if err != nil || len(hash) != hashLen {
		return dst, fmt.Errorf("telemetry: catalog %q is no hash of %d hex digits", b.Catalog, 2*hashLen)
	}
	at := b.Groups[0].At
	dst = append(dst, batchVersion)
	dst = append(dst, hash...)
	var flags byte
	if b.Synced {
		flags |= flagSynced
	}
	dst = append(dst, flags)
	dst = appendUint(dst, uint64(b.Boot))
	dst = appendZigzag(dst, at.Wall)
	dst = appendZigzag(dst, at.Wall-at.Mono)

	stretches := join(b.groupRows(), b.Groups)
	dst = appendUint(dst, uint64(len(stretches)))
	previous := int64(0)
	for _, s := range stretches {
		dst, previous = b.appendStretch(dst, s, at.Wall, previous)
	}
	return dst, nil
}

// appendUint and appendZigzag write what stands once in a table or a row. They
// are not inlined: a dozen such loops are 2 kB of the binary.
//
//go:noinline
func appendUint(dst []byte, u uint64) []byte { return binary.AppendUvarint(dst, u) }

//go:noinline
func appendZigzag(dst []byte, n int64) []byte { return binary.AppendVarint(dst, n) }

// groupRows collects groups with the same points into stretches, in order
// of first appearance. They are valid until the next call.
func (b *Batch) groupRows() []stretch {
	if b.newest == nil {
		b.newest = make(map[uint32]int)
	}
	clear(b.newest)
	out := b.stretches[:0]
next:
	for i := range b.Groups {
		rs := b.Groups[i].Readings
		if len(rs) == 0 {
			continue
		}
		before, known := b.newest[rs[0].Point]
		if !known {
			before = -1
		}
		for k := before; k >= 0; k = out[k].before {
			if samePoints(b.Groups[out[k].rows[0]].Readings, rs) {
				out[k].rows = append(out[k].rows, i)
				continue next
			}
		}
		n := len(out)
		out = slices.Grow(out, 1)[:n+1] // with the rows that it had, to be filled again
		out[n] = stretch{append(out[n].rows[:0], i), 1, before}
		b.newest[rs[0].Point] = n
	}
	b.stretches = out
	return out
}

func samePoints(a, b []Reading) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Point != b[i].Point {
			return false
		}
	}
	return true
}

// join brings devices of one kind into one table, whose columns are long enough
// for the packed forms then.
func join(stretches []stretch, groups []Group) []stretch {
	out := stretches[:0]
next:
	for i := range stretches {
		s := &stretches[i]
		if n := len(s.rows); n < packFrom {
			for k := len(out) - 1; k >= max(len(out)-joinBack, 0); k-- {
				if x := &out[k]; len(x.rows) == n*x.devices && sameShape(groups[x.rows[0]].Readings, groups[s.rows[0]].Readings) {
					x.rows = append(x.rows, s.rows...)
					x.devices++
					continue next
				}
			}
		}
		n := len(out)
		out = out[:n+1]
		out[n], *s = *s, out[n] // both keep the memory of their rows
	}
	return out
}

// sameShape tells whether the points of both have numbers at the same distances,
// and values of the same kinds.
func sameShape(a, b []Reading) bool {
	if len(a) != len(b) {
		return false
	}
	apart := int64(b[0].Point) - int64(a[0].Point)
	for i := range a {
		x, y := &a[i].Value, &b[i].Value
		if int64(b[i].Point)-int64(a[i].Point) != apart || x.kind != y.kind && x.kind != None && y.kind != None || x.dec != y.dec && x.kind == y.kind {
			return false
		}
	}
	return true
}

func (b *Batch) appendStretch(dst []byte, s stretch, t0, previous int64) ([]byte, int64) {
	groups, rows := b.Groups, s.rows
	each := len(rows) / s.devices
	head := groups[rows[0]].Readings
	first := int64(head[0].Point)
	dst = appendUint(dst, uint64(len(head)))
	dst = appendZigzag(dst, first-previous)
	consecutive := true
	for i := range head {
		consecutive = consecutive && int64(head[i].Point) == first+int64(i)
	}
	list := byte(0)
	if !consecutive {
		list |= listed
	}
	if s.devices > 1 {
		list |= further
	}
	dst = append(dst, list)
	for i := 1; i < len(head) && !consecutive; i++ {
		dst = appendZigzag(dst, int64(head[i].Point)-int64(head[i-1].Point))
	}
	if s.devices > 1 {
		dst = appendUint(dst, uint64(s.devices-1))
		for last, i := first, each; i < len(rows); i += each {
			p := int64(groups[rows[i]].Readings[0].Point)
			dst = appendZigzag(dst, p-last)
			last = p
		}
	}
	dst = appendUint(dst, uint64(each))
	last, step := t0, int64(0)
	for i, r := range rows {
		d := groups[r].At.Wall - last
		if i < 2 {
			dst = appendZigzag(dst, d)
		} else {
			dst = appendZigzag(dst, d-step)
		}
		if i > 0 {
			step = d
		}
		last = groups[r].At.Wall
	}
	dst = appendMarks(dst, groups, rows)
	b.plans = b.plans[:0]
	var p plan
	packedDec := byte(0) // of the packed column before
	for c := range head {
		p = b.plan(rows, c, p, packedDec)
		b.plans = append(b.plans, p)
		if p.form >= formPackedInt {
			packedDec = p.dec
		}
	}
	packedDec = 0
	for c := 0; c < len(head); {
		p := b.plans[c]
		n := 1
		for c+n < len(head) && b.plans[c+n].shares(p) {
			n++
		}
		dst = appendUint(dst, uint64(n))
		dst = append(dst, p.form)
		if p.form == formInt || p.form == formUint {
			dst = append(dst, p.dec)
		}
		for ; n > 0; n-- {
			p := &b.plans[c]
			if p.form < formPackedInt {
				dst = appendColumn(dst, groups, rows, c, p.form)
			} else {
				b.gather(rows, c)
				nums := b.nums
				if kind := p.form - formPackedInt + byte(Int); kind >= byte(Float32) && p.dec != packBits {
					mantissas(nums, nums, p.dec, Kind(kind))
				}
				dst = appendPacked(dst, nums, p.packing, p.dec, packedDec)
				packedDec = p.dec
			}
			c++
		}
	}
	return dst, first
}

// shares tells whether columns of both plans can stand in one run.
func (p plan) shares(o plan) bool {
	return p.form == o.form && (p.dec == o.dec || p.form >= formPackedInt)
}

type mark struct {
	quality byte
	cause   Cause
}

func markOf(r *Reading) (mark, bool) {
	m := mark{byte(r.Quality) & 0x7F, r.Cause}
	if r.Value.kind == None {
		m.quality |= 0x80
	}
	return m, m != mark{}
}

func appendMarks(dst []byte, groups []Group, rows []int) []byte {
	at := len(dst)
	runs, cell, end := uint64(0), 0, 0
	var m mark
	start := -1
	flush := func() {
		if start < 0 {
			return
		}
		dst = appendUint(dst, uint64(start-end))
		dst = appendUint(dst, uint64(cell-start))
		dst = append(dst, m.quality)
		dst = appendUint(dst, uint64(m.cause))
		runs, end, start = runs+1, cell, -1
	}
	for _, r := range rows {
		rs := groups[r].Readings
		for i := range rs {
			k, marked := markOf(&rs[i])
			if start >= 0 && (!marked || k != m) {
				flush()
			}
			if marked && start < 0 {
				start, m = cell, k
			}
			cell++
		}
	}
	flush()
	if runs < 0x80 {
		return slices.Insert(dst, at, byte(runs))
	}
	return slices.Insert(dst, at, appendUint(nil, runs)...)
}

// gather brings the values of a column into b.nums. same is false if they are
// of several kinds or decimals, or texts.
func (b *Batch) gather(rows []int, c int) (kind Kind, dec byte, same bool) {
	nums := b.nums[:0]
	for _, r := range rows {
		v := &b.Groups[r].Readings[c].Value
		switch {
		case v.kind == None:
			continue
		case kind == None:
			kind, dec = v.kind, v.dec
		case v.kind != kind || v.dec != dec:
			return kind, 0, false
		}
		nums = append(nums, v.num)
	}
	b.nums = nums
	return kind, dec, true
}

// plan chooses how a column is written: by the kind that all its values
// share, and for numbers by what is shorter, the cost of a new run of columns
// included. before is the plan of the column before, packedDec the decimals
// of the last packed one.
func (b *Batch) plan(rows []int, c int, before plan, packedDec byte) plan {
	kind, dec, same := b.gather(rows, c)
	switch {
	case !same:
		return plan{form: formMixed}
	case kind == None:
		return plan{form: formNone}
	case kind == Bool:
		return plan{form: formBool}
	case kind == Text:
		return plan{form: formText}
	}
	nums := b.nums
	best, size := varints(nums, kind, dec)
	if len(nums) < packFrom {
		return best
	}
	if !best.shares(before) {
		size += newRun
	}
	try := func(nums []uint64, dec byte) {
		p := plan{form: formPackedInt + byte(kind-Int), dec: dec}
		n := 0
		p.packing, n = pack(nums)
		if dec != packedDec {
			n += 8
		}
		if !p.shares(before) {
			n += newRun
		}
		if n < size {
			best, size = p, n
		}
	}
	if kind == Int || kind == Uint {
		try(nums, dec)
		return best
	}
	if dec, ok := decimals(nums, kind); ok {
		b.exact = append(b.exact[:0], nums...)
		mantissas(b.exact, nums, dec, kind)
		try(b.exact, dec)
	}
	if best.form < formPackedInt { // decimal numbers are shorter than the bits of their floats
		try(nums, packBits)
	}
	return best
}

// varints chooses how numbers are written as varints, and tells how many bits
// that takes.
func varints(nums []uint64, kind Kind, dec byte) (p plan, size int) {
	plain, reversed, last := 0, 0, uint64(0)
	for _, x := range nums {
		if kind == Int {
			plain += lenUvarint(zigzag(x - last))
		} else {
			plain += lenUvarint(x ^ last)
		}
		switch kind {
		case Float32:
			reversed += lenUvarint(uint64(bits.ReverseBytes32(uint32(x ^ last))))
		case Float64:
			reversed += lenUvarint(bits.ReverseBytes64(x ^ last))
		}
		last = x
	}
	switch kind {
	case Int:
		p = plan{form: formInt, dec: dec}
	case Uint:
		p = plan{form: formUint, dec: dec}
	case Float32:
		p = plan{form: formF32}
	case Float64:
		p = plan{form: formF64}
	}
	if kind >= Float32 && reversed < plain {
		p.form++
		plain = reversed
	}
	return p, 8 * plain
}

func appendColumn(dst []byte, groups []Group, rows []int, c int, form byte) []byte {
	var last uint64
	var text string
	var acc, n byte
	for _, r := range rows {
		v := &groups[r].Readings[c].Value
		if v.kind == None {
			continue
		}
		switch form {
		case formInt:
			dst = binary.AppendVarint(dst, int64(v.num-last))
		case formUint, formF32, formF64:
			dst = binary.AppendUvarint(dst, v.num^last)
		case formF32R:
			dst = binary.AppendUvarint(dst, uint64(bits.ReverseBytes32(uint32(v.num^last))))
		case formF64R:
			dst = binary.AppendUvarint(dst, bits.ReverseBytes64(v.num^last))
		case formBool:
			acc |= byte(v.num&1) << n
			if n++; n == 8 {
				dst, acc, n = append(dst, acc), 0, 0
			}
		case formText:
			if v.text == text && text != "" {
				dst = append(dst, 0)
			} else {
				dst = binary.AppendUvarint(dst, uint64(len(v.text))+1)
				dst = append(dst, v.text...)
			}
			text = v.text
		case formMixed:
			dst = append(dst, byte(v.kind), v.dec)
			if v.kind == Text {
				dst = binary.AppendUvarint(dst, uint64(len(v.text)))
				dst = append(dst, v.text...)
			} else {
				dst = binary.AppendUvarint(dst, v.num)
			}
		}
		last = v.num
	}
	if n > 0 {
		dst = append(dst, acc)
	}
	return dst
}
