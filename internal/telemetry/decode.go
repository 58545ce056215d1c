package telemetry

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"tidegate/internal/clock"
)

// maxCells bounds what DecodeBatch makes of a stretch: a damaged count must
// not eat the memory of a small gateway.
const maxCells = 1 << 20

// ErrBatch is wrapped by every error of DecodeBatch.
var ErrBatch = errors.New("telemetry: not a batch")

// DecodeBatch reads the stored form into b, whose memory it uses again.
// Groups come in time order. Bytes that are no batch give an error that
// wraps ErrBatch, never a panic, and leave b without groups.
func DecodeBatch(src []byte, b *Batch) error {
	b.stored, b.Groups, b.arena, b.keys = nil, b.Groups[:0], b.arena[:0], b.keys[:0]
	d := decoder{src: src}
	if v := d.byte(); v != batchVersion {
		return fmt.Errorf("%w: version %d, this program reads %d", ErrBatch, v, batchVersion)
	}
	b.Catalog = hex.EncodeToString(d.bytes(hashLen))
	b.Synced = d.byte()&flagSynced != 0
	b.Boot = uint32(d.uvarint())
	t0 := d.varint()
	offset := d.varint()
	previous := int64(0)
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		previous = d.stretch(b, t0, previous)
	}
	if d.err == nil && len(d.src) > 0 {
		d.err = fmt.Errorf("%w: %d bytes left over", ErrBatch, len(d.src))
	}
	if d.err != nil {
		return d.err
	}
	slices.SortStableFunc(b.keys, func(x, y rowKey) int {
		switch {
		case x.t < y.t:
			return -1
		case x.t > y.t:
			return 1
		}
		return 0
	})
	for _, k := range b.keys {
		b.Groups = append(b.Groups, Group{
			At:       clock.Stamp{Wall: k.t, Mono: k.t - offset, Boot: b.Boot, Synced: b.Synced},
			Readings: b.arena[k.first : k.first+k.cols : k.first+k.cols],
		})
	}
	b.stored = src
	return nil
}

type decoder struct {
	src []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrBatch, what)
	}
	d.src = nil
}

func (d *decoder) byte() byte {
	if len(d.src) == 0 {
		d.fail("too short")
		return 0
	}
	v := d.src[0]
	d.src = d.src[1:]
	return v
}

func (d *decoder) bytes(n int) []byte {
	if n < 0 || n > len(d.src) {
		d.fail("too short")
		return nil
	}
	v := d.src[:n]
	d.src = d.src[n:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.src)
	if n <= 0 {
		d.fail("bad varint")
		return 0
	}
	d.src = d.src[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.src)
	if n <= 0 {
		d.fail("bad varint")
		return 0
	}
	d.src = d.src[n:]
	return v
}

// stretch reads one table into the arena and returns its first point number.
func (d *decoder) stretch(b *Batch, t0, previous int64) int64 {
	ncols := d.uvarint()
	first := previous + d.varint()
	if ncols == 0 || ncols > maxCells || first < 0 || first > math.MaxUint32 {
		d.fail("bad stretch")
		return 0
	}
	cols := int(ncols)
	points := make([]uint32, 0, min(cols, len(d.src)+1))
	listed := d.byte()
	if listed == 0 && first+int64(cols)-1 > math.MaxUint32 || listed == 1 && cols > len(d.src)+1 || listed > 1 {
		d.fail("bad point list")
		return 0
	}
	p := first
	for i := 0; i < cols; i++ {
		if i > 0 && listed == 0 {
			p++
		} else if i > 0 {
			p += d.varint()
		}
		if p < 0 || p > math.MaxUint32 {
			d.fail("bad point number")
			return 0
		}
		points = append(points, uint32(p))
	}
	nrows := d.uvarint()
	if nrows == 0 || nrows > uint64(len(d.src)) || nrows > maxCells/ncols ||
		len(b.arena)+int(nrows)*cols > maxCells {
		d.fail("bad row count")
		return 0
	}
	rows := int(nrows)
	base := len(b.arena)
	b.arena = slices.Grow(b.arena, rows*cols)[:base+rows*cols]
	cells := b.arena[base:]
	t, step := t0, int64(0)
	for i := 0; i < rows; i++ {
		v := d.varint()
		if i >= 2 {
			v += step
		}
		if i > 0 {
			step = v
		}
		t += v
		b.keys = append(b.keys, rowKey{t, base + i*cols, cols})
		for c, p := range points {
			cells[i*cols+c] = Reading{Point: p}
		}
	}
	d.marks(cells)
	for c := 0; c < cols && d.err == nil; {
		n := d.uvarint()
		form := d.byte()
		if n == 0 || n > uint64(cols-c) || form >= forms {
			d.fail("bad column")
			return 0
		}
		var dec byte
		if form == formInt || form == formUint {
			if dec = d.byte(); dec > MaxDecimals {
				d.fail("bad decimals")
				return 0
			}
		}
		for ; n > 0; n-- {
			d.column(cells, c, cols, form, dec)
			c++
		}
	}
	return first
}

// noValue marks, while a stretch is read, a cell that has no value to read.
const noValue = 0xFF

func (d *decoder) marks(cells []Reading) {
	at := 0
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		gap, length := d.uvarint(), d.uvarint()
		q := d.byte()
		cause := d.uvarint()
		if gap > uint64(len(cells)-at) || length == 0 || length > uint64(len(cells)-at)-gap || cause > math.MaxUint16 {
			d.fail("bad mark")
			return
		}
		at += int(gap)
		for i := at; i < at+int(length); i++ {
			cells[i].Quality, cells[i].Cause = Quality(q&0x7F), Cause(cause)
			if q&0x80 != 0 {
				cells[i].Value.dec = noValue
			}
		}
		at += int(length)
	}
}

func (d *decoder) column(cells []Reading, c, cols int, form, dec byte) {
	var last uint64
	var text string
	var acc, n byte
	for ; c < len(cells) && d.err == nil; c += cols {
		v := &cells[c].Value
		if v.dec == noValue {
			v.dec = 0
			continue
		}
		switch form {
		case formNone:
			d.fail("value in an empty column")
		case formInt:
			last += uint64(d.varint())
			*v = Value{num: last, kind: Int, dec: dec}
		case formUint:
			last ^= d.uvarint()
			*v = Value{num: last, kind: Uint, dec: dec}
		case formF32, formF32R:
			x := d.uvarint()
			if x > math.MaxUint32 {
				d.fail("bad float32")
			}
			if form == formF32R {
				x = uint64(bits.ReverseBytes32(uint32(x)))
			}
			last ^= x
			*v = Value{num: last, kind: Float32}
		case formF64, formF64R:
			x := d.uvarint()
			if form == formF64R {
				x = bits.ReverseBytes64(x)
			}
			last ^= x
			*v = Value{num: last, kind: Float64}
		case formBool:
			if n == 0 {
				acc = d.byte()
			}
			*v = Value{num: uint64(acc >> n & 1), kind: Bool}
			n = (n + 1) % 8
		case formText:
			if l := d.uvarint(); l > uint64(len(d.src))+1 {
				d.fail("bad text")
			} else if l > 0 {
				text = string(d.bytes(int(l - 1)))
			}
			*v = Value{text: text, kind: Text}
		case formMixed:
			v.kind, v.dec = Kind(d.byte()), d.byte()
			if v.kind == None || v.kind > Text || v.dec > MaxDecimals {
				d.fail("bad value")
			} else if v.kind == Text {
				if l := d.uvarint(); l > uint64(len(d.src)) {
					d.fail("bad text")
				} else {
					v.text = string(d.bytes(int(l)))
				}
			} else {
				v.num = d.uvarint()
			}
		}
	}
}
