package profile

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"

	"tidegate/internal/telemetry"
)

// PointRequest returns the read of point i alone, with its scale-factor
// register where it has one. It fails for points of serial frames.
func (p *Profile) PointRequest(i int) (Request, error) {
	c := &p.codecs[i]
	if c.table == 0 {
		return Request{}, fmt.Errorf("point %s stands in a serial frame: it cannot be asked for", p.Points[i].Name)
	}
	lo, hi := c.span()
	return Request{Table: c.table, Address: uint16(lo), Count: uint16(hi - lo), Points: []int{i}}, nil
}

// span returns the addresses [lo, hi) that must be read together.
func (c *codec) span() (lo, hi int) {
	lo, hi = int(c.addr), int(c.addr)+int(c.count)
	if c.sf != nil {
		lo, hi = min(lo, int(c.sfAddr)), max(hi, int(c.sfAddr)+1)
	}
	return lo, hi
}

// Encode returns the bytes that decode to v: the registers of point i in
// wire order, one byte 0 or 1 for a coil or input, or the field of a binary
// frame. Bits that belong to no part of the point are 0. power is what the
// scale-factor register holds, -10 to 10, of a point that has one.
//
// It fails for a value that the point cannot hold, and for points of text
// lines.
func (p *Profile) Encode(i int, v telemetry.Value, power int) ([]byte, error) {
	c, name := &p.codecs[i], p.Points[i].Name
	if c.text != nil {
		return nil, fmt.Errorf("point %s is text: it has no bytes of its own", name)
	}
	if p.Points[i].SunSpec != nil {
		return nil, fmt.Errorf("point %s stands in a model: where that is shows the device", name)
	}
	if c.mbus != nil {
		return nil, fmt.Errorf("point %s is a record of a telegram: it has no place of its own", name)
	}
	if c.bit1 {
		if v.Bool() != c.invert {
			return []byte{1}, nil
		}
		return []byte{0}, nil
	}
	n := int(c.count)
	if c.table != 0 {
		n *= 2
	}
	b := make([]byte, n)
	if c.act == actString {
		return c.encodeString(b, v, name)
	}
	raw, err := c.raw(v, power)
	if err != nil {
		return nil, fmt.Errorf("point %s: %w", name, err)
	}
	c.write(b[c.sub:], raw<<c.shift)
	return b, nil
}

func (c *codec) encodeString(b []byte, v telemetry.Value, name string) ([]byte, error) {
	if len(v.Text()) > len(b) {
		return nil, fmt.Errorf("point %s: %q is longer than %d bytes", name, v.Text(), len(b))
	}
	copy(b, v.Text())
	if c.load == loadBA {
		for i := 0; i+1 < len(b); i += 2 {
			b[i], b[i+1] = b[i+1], b[i]
		}
	}
	return b, nil
}

var errNoFit = errors.New("the value does not fit the type")

// raw returns the raw number that decodes to v; with a scale-factor register,
// for this power of ten.
func (c *codec) raw(v telemetry.Value, power int) (uint64, error) {
	if c.sf != nil {
		return c.rawOf(v, &c.sf[10+power])
	}
	return c.rawOf(v, &c.num)
}

func (c *codec) rawOf(v telemetry.Value, num *number) (uint64, error) {
	switch c.act {
	case actBool:
		if v.Bool() != c.invert {
			return 1, nil
		}
		return 0, nil
	case actEnum:
		for raw, w := range c.words {
			if w == v {
				return raw, nil
			}
		}
		return 0, fmt.Errorf("%q is none of its words", v.Text())
	case actFlags:
		return c.flagBits(v.Text())
	}
	x, ok := valueRat(v)
	if !ok {
		return 0, fmt.Errorf("%s is not a number", v)
	}
	x.Sub(x, num.offset).Quo(x, num.scale)
	switch c.act {
	case actF32:
		f, _ := x.Float32()
		if math.IsInf(float64(f), 0) {
			return 0, errNoFit
		}
		return uint64(math.Float32bits(f)), nil
	case actF64:
		f, _ := x.Float64()
		if math.IsInf(f, 0) {
			return 0, errNoFit
		}
		return math.Float64bits(f), nil
	}
	n := roundRat(x)
	lo, hi := new(big.Int), new(big.Int).SetUint64(mask(uint(c.width)))
	switch {
	case c.act == actBCD:
		hi.Sub(pow10(int(c.width)/4), big.NewInt(1))
	case c.signed:
		hi.Rsh(hi, 1)
		lo.Sub(lo, hi).Sub(lo, big.NewInt(1))
	}
	if n.Cmp(lo) < 0 || n.Cmp(hi) > 0 {
		return 0, errNoFit
	}
	switch {
	case c.act == actBCD:
		return toBCD(n.Uint64()), nil
	case n.Sign() < 0:
		return uint64(n.Int64()) & mask(uint(c.width)), nil
	}
	return n.Uint64(), nil
}

func (c *codec) flagBits(text string) (raw uint64, err error) {
	for _, w := range strings.Split(text, ",") {
		if w == "" {
			continue
		}
		if i := slices.IndexFunc(c.flags, func(f flagWord) bool { return f.word == w }); i >= 0 {
			raw |= 1 << c.flags[i].bit
			continue
		}
		var bit uint
		if _, err := fmt.Sscanf(w, "bit%d", &bit); err != nil || bit >= uint(c.width) {
			return 0, fmt.Errorf("%q is none of its flags", w)
		}
		raw |= 1 << bit
	}
	return raw, nil
}
