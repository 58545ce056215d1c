package telemetry

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// maxCells bounds what is made of a batch: a damaged count must not eat the
// memory of a small gateway.
const maxCells = 1 << 20

// ErrBatch is wrapped by every error of Tables.Decode and DecodeBatch.
var ErrBatch = errors.New("telemetry: not a batch")

// DecodeBatch reads the stored form into b, whose memory it uses again.
// Groups come in time order. Bytes that are no batch give an error that
// wraps ErrBatch, never a panic, and leave b without groups.
func DecodeBatch(src []byte, b *Batch) error {
	b.Groups = b.Groups[:0]
	t := &b.tables
	if err := t.Decode(src); err != nil {
		return err
	}
	b.Catalog, b.Boot, b.Synced = t.Catalog, t.Boot, t.Synced
	b.arena = slices.Grow(b.arena[:0], t.Readings())
	for i := range t.Len() {
		n := len(b.arena)
		b.arena = t.appendGroup(b.arena, i)
		b.Groups = append(b.Groups, Group{At: t.At(i), Readings: b.arena[n:len(b.arena):len(b.arena)]})
	}
	return nil
}

// Decode reads the stored form. Bytes that are no batch give an error that
// wraps ErrBatch, never a panic, and leave t without readings. The texts of
// the batch are copied; else t only points at src, for Stored.
func (t *Tables) Decode(src []byte) error {
	t.empty()
	d := decoder{src: src, t: t}
	if v := d.byte(); v < firstVersion || v > batchVersion {
		return fmt.Errorf("%w: version %d, this program reads %d to %d", ErrBatch, v, firstVersion, batchVersion)
	}
	var hash [2 * hashLen]byte
	hex.Encode(hash[:], d.bytes(hashLen))
	if t.Catalog != string(hash[:]) {
		t.Catalog = string(hash[:])
	}
	t.Synced = d.byte()&flagSynced != 0
	t.Boot = uint32(d.uvarint())
	t0 := d.varint()
	t.offset = d.varint()
	previous := int64(0)
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		previous = d.stretch(t0, previous)
	}
	if d.err == nil && len(src) > d.at {
		d.fail(fmt.Sprintf("%d bytes left over", len(src)-d.at))
	}
	if d.err == nil && d.mixed {
		t.sort()
	}
	if d.err == nil {
		d.err = t.arrange()
	}
	if d.err != nil {
		t.empty()
		return d.err
	}
	t.stored = src
	return nil
}

// decoder reads src from at on into t. After the first error it reads zeros.
type decoder struct {
	src []byte
	at  int
	t   *Tables
	err error

	begins int64 // the first time of the last table
	mixed  bool  // not all tables, or not all rows of a table, are in order of time
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrBatch, what)
	}
	d.src, d.at = nil, 0
}

func (d *decoder) left() int { return len(d.src) - d.at }

func (d *decoder) byte() byte {
	if d.left() == 0 {
		d.fail("too short")
		return 0
	}
	d.at++
	return d.src[d.at-1]
}

func (d *decoder) bytes(n int) []byte {
	if n < 0 || n > d.left() {
		d.fail("too short")
		return nil
	}
	d.at += n
	return d.src[d.at-n : d.at]
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.src[d.at:])
	if n <= 0 {
		d.fail("bad varint")
		return 0
	}
	d.at += n
	return v
}

// uvarints fills out. Most differences have one byte or two.
func (d *decoder) uvarints(out []uint64) {
	src, at := d.src, d.at
	for i := range out {
		if at+1 < len(src) {
			a, b := src[at], src[at+1]
			if a < 0x80 {
				out[i] = uint64(a)
				at++
				continue
			}
			if b < 0x80 {
				out[i] = uint64(a&0x7F) | uint64(b)<<7
				at += 2
				continue
			}
		}
		d.at = at
		out[i] = d.uvarint()
		src, at = d.src, d.at
	}
	d.at = at
}

func (d *decoder) varint() int64 { return unzigzag(d.uvarint()) }

func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// stretch reads one table, or those of devices that share one, and returns its
// first point number.
func (d *decoder) stretch(t0, previous int64) int64 {
	ncols := d.uvarint()
	first := previous + d.varint()
	if ncols == 0 || ncols > maxCells || first < 0 || first > math.MaxUint32 {
		d.fail("bad stretch")
		return 0
	}
	cols := int(ncols)
	list := d.byte()
	if list&listed == 0 && first+int64(cols)-1 > math.MaxUint32 || list&listed != 0 && cols > d.left()+1 || list > listed|further {
		d.fail("bad point list")
		return 0
	}
	t := d.t
	h := head{col: len(t.points), cols: cols, row: len(t.times), cell: len(t.nums), mark: -1}
	if h.col+cols > maxCells {
		d.fail("bad stretch")
		return 0
	}
	p := first
	for i := 0; i < cols; i++ {
		if i > 0 && list&listed == 0 {
			p++
		} else if i > 0 {
			p += d.varint()
		}
		if p < 0 || p > math.MaxUint32 {
			d.fail("bad point number")
			return 0
		}
		t.points = append(t.points, uint32(p))
		t.highest = max(t.highest, uint32(p))
	}
	devices := 1
	if list&further != 0 {
		devices = d.devices(h)
	}
	nrows := d.uvarint()
	if nrows == 0 || nrows > uint64(d.left()) || nrows > uint64(maxCells/(cols*devices)) ||
		h.cell+int(nrows)*devices*cols > maxCells {
		d.fail("bad row count")
		return 0
	}
	h.rows = int(nrows) * devices
	time, step := t0, int64(0)
	for i := range h.rows {
		v := d.varint()
		if i >= 2 {
			v += step
		}
		if i > 0 {
			step = v
		}
		before := time
		time += v
		if i%int(nrows) == 0 {
			d.mixed = d.mixed || len(t.heads)+i > 0 && time < d.begins
			d.begins = time
		} else if time < before { // also where it runs over
			d.mixed = true
		}
		t.times = append(t.times, time)
	}
	d.marks(&h)
	t.nums = slices.Grow(t.nums, h.rows*cols)[:h.cell+h.rows*cols]
	packedDec := byte(0)
	for c := 0; c < cols && d.err == nil; {
		n := d.uvarint()
		form := d.byte()
		if n == 0 || n > uint64(cols-c) || form >= forms {
			d.fail("bad column")
			return 0
		}
		x := column{kind: formKinds[form]}
		if form >= formPackedInt {
			for range n {
				packedDec = d.packed(&h, c, x.kind, packedDec)
				if x.dec = 0; x.kind == Int || x.kind == Uint {
					x.dec = packedDec
				}
				t.columns = append(t.columns, x)
				c++
			}
			continue
		}
		if x.kind == Int || x.kind == Uint {
			if x.dec = d.byte(); x.dec > MaxDecimals {
				d.fail("bad decimals")
				return 0
			}
		}
		for range n {
			t.columns = append(t.columns, x)
		}
		d.cells(&h, c*h.rows, int(n)*h.rows, form)
		c += int(n)
	}
	if devices == 1 {
		t.heads = append(t.heads, h)
	} else if d.err == nil {
		t.part(h, devices)
	}
	return first
}

// devices reads the numbers of the points of further devices, and tells how many
// devices share the table.
func (d *decoder) devices(h head) int {
	n, t := d.uvarint(), d.t
	if n > uint64(d.left()) || n >= uint64((maxCells-h.col)/h.cols) {
		d.fail("bad device count")
		return 1
	}
	for range n {
		apart := d.varint()
		for _, p := range t.points[len(t.points)-h.cols:] {
			p := int64(p) + apart
			if p < 0 || p > math.MaxUint32 {
				d.fail("bad point number")
				return 1
			}
			t.points = append(t.points, uint32(p))
			t.highest = max(t.highest, uint32(p))
		}
	}
	return int(n) + 1
}

// formKinds says how the cells of a form are held.
var formKinds = [forms]Kind{formInt: Int, formUint: Uint, formF32: Float32, formF32R: Float32, formF64: Float64, formF64R: Float64,
	formBool: Bool, formText: kept, formMixed: kept,
	formPackedInt: Int, formPackedUint: Uint, formPackedF32: Float32, formPackedF64: Float64}

// marks reads the marks of a table. They come by rows and are kept by columns.
func (d *decoder) marks(h *head) {
	n := d.uvarint()
	if n == 0 || d.err != nil {
		return
	}
	t, cells := d.t, h.rows*h.cols
	h.mark = len(t.marks)
	t.marks = append(t.marks, make([]mark, cells)...)
	marks := t.marks[h.mark:]
	at := 0
	for ; n > 0 && d.err == nil; n-- {
		gap, length := d.uvarint(), d.uvarint()
		q := d.byte()
		cause := d.uvarint()
		if gap > uint64(cells-at) || length == 0 || length > uint64(cells-at)-gap || cause > math.MaxUint16 {
			d.fail("bad mark")
			return
		}
		at += int(gap)
		for end := at + int(length); at < end; at++ {
			marks[at%h.cols*h.rows+at/h.cols] = mark{q, Cause(cause)}
		}
	}
}

// cells reads n cells of columns of one form, from the cell at on.
func (d *decoder) cells(h *head, at, n int, form byte) {
	t := d.t
	out := t.nums[h.cell+at:][:n]
	var marks []mark
	if h.mark >= 0 {
		marks = t.marks[h.mark+at:][:n]
	}
	switch form {
	case formNone, formBool, formText, formMixed:
		for len(out) > 0 && d.err == nil {
			d.odd(out[:h.rows], marks[:min(len(marks), h.rows)], form)
			out, marks = out[h.rows:], marks[min(len(marks), h.rows):]
		}
		return
	}
	if marks == nil {
		d.uvarints(out)
	} else {
		for i := range out {
			out[i] = 0 // no difference, so that what has no value changes nothing
			if !marks[i].empty() {
				out[i] = d.uvarint()
			}
		}
	}
	for ; len(out) > 0; out = out[h.rows:] {
		last := uint64(0)
		switch column := out[:h.rows]; form {
		case formInt:
			for i, x := range column {
				last += uint64(unzigzag(x))
				column[i] = last
			}
		case formUint, formF64:
			for i, x := range column {
				last ^= x
				column[i] = last
			}
		case formF64R:
			for i, x := range column {
				last ^= bits.ReverseBytes64(x)
				column[i] = last
			}
		case formF32, formF32R:
			for i, x := range column {
				if x > math.MaxUint32 {
					d.fail("bad float32")
				}
				if form == formF32R {
					x = uint64(bits.ReverseBytes32(uint32(x)))
				}
				last ^= x
				column[i] = last
			}
		}
	}
}

// odd reads one column whose cells are no varints each.
func (d *decoder) odd(out []uint64, marks []mark, form byte) {
	t := d.t
	text := -1 // the value before
	var acc, n byte
	for i := range out {
		if len(marks) > 0 && marks[i].empty() {
			continue
		}
		switch form {
		case formNone:
			d.fail("value in an empty column")
		case formBool:
			if n == 0 {
				acc = d.byte()
			}
			out[i] = uint64(acc >> n & 1)
			n = (n + 1) % 8
		case formText:
			l := d.uvarint()
			if l > uint64(d.left())+1 {
				d.fail("bad text")
			} else if l > 0 || text < 0 {
				text = len(t.values)
				t.values = append(t.values, TextValue(string(d.bytes(int(max(l, 1)-1)))))
			}
			out[i] = uint64(text)
		case formMixed:
			v := Value{kind: Kind(d.byte()), dec: d.byte()}
			if v.kind == None || v.kind > Text || v.dec > MaxDecimals {
				d.fail("bad value")
			} else if v.kind == Text {
				if l := d.uvarint(); l > uint64(d.left()) {
					d.fail("bad text")
				} else {
					v.text = string(d.bytes(int(l)))
				}
			} else {
				v.num = d.uvarint()
			}
			out[i] = uint64(len(t.values))
			t.values = append(t.values, v)
		}
		if d.err != nil {
			return
		}
	}
}
