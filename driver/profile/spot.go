package profile

import (
	"strconv"
	"strings"

	"tidegate/internal/telemetry"
)

// spot is what a point of a binary frame may have beyond its offset.
type spot struct {
	join     []joined
	where    []byteCondition
	valid    []byteCondition
	validBit int // -1 = none
	fraction int
	of       part
}

// joined is a piece of a number that is spread over several bytes.
type joined struct {
	at    int
	shift uint8
	keep  uint64
	width uint8
}

// part is the part of a frame with records that a point stands in.
type part uint8

const (
	ofRecord part = iota
	ofBlock
	ofFrame
)

// byteCondition is a byte of a frame, or a bit of it, and the contents it may have.
type byteCondition struct {
	at    int
	tests []byteTest
}

type byteTest struct{ mask, want byte }

// buildSpot prepares what a point of a binary frame has beyond its offset.
func (p *Profile) buildSpot(pt *Point, c *codec, r report) {
	s := &spot{validBit: -1, fraction: pt.Fraction, of: map[string]part{"block": ofBlock, "frame": ofFrame}[pt.Of]}
	if c.spot != nil {
		s.join = c.spot.join
	}
	if pt.ValidBit != nil {
		s.validBit = *pt.ValidBit
	}
	if pt.ValidBit != nil && (c.act == actString || s.validBit >= 64) || pt.Fraction > 0 && (c.act != actInt || pt.Fraction >= int(c.width)) {
		r("valid_bit", "valid_bit and fraction are for whole numbers of bytes", "use a type such as u16 or u24")
	}
	if pt.Of != "" && (p.Frames == nil || p.Frames.Records == nil) {
		r("of", "the frames have no records", "remove of, or write frames.records")
	}
	if len(pt.Suffix) > 0 && c.text == nil {
		r("suffix", "suffix is for text", "remove it")
	}
	if c.table != 0 || c.text != nil && !p.bytewise() {
		c.spot = s
		if c.table != 0 && s.validBit < 0 && s.fraction == 0 {
			c.spot = nil
		}
		return
	}
	s.where = byteConditions(pt.Where, "where", r)
	s.valid = byteConditions(pt.Valid, "valid", r)
	c.spot = s
}

// bytewise says whether where and valid speak of bytes; else of text fields.
func (p *Profile) bytewise() bool {
	return p.Frames != nil && p.Frames.Kind != "line" && (p.Frames.Kind != "delimited" || p.Frames.Records != nil)
}

func byteConditions(m map[int64][]string, key string, r report) (out []byteCondition) {
	for _, c := range conditions(m) {
		b := byteCondition{at: c.field}
		for _, w := range c.words {
			t, ok := parseByteTest(w)
			if !ok || c.field < 0 {
				r(key, strconv.Quote(w)+" is no byte and no bit", "write 0x81, or bit4=1")
			}
			b.tests = append(b.tests, t)
		}
		out = append(out, b)
	}
	return out
}

// parseByteTest reads 0x81, 17, 'R' or bit4=1.
func parseByteTest(w string) (byteTest, bool) {
	if bit, value, ok := strings.Cut(w, "="); ok {
		n, err := strconv.ParseUint(strings.TrimPrefix(bit, "bit"), 10, 3)
		v, err2 := strconv.ParseUint(value, 10, 1)
		return byteTest{1 << n, byte(v) << n}, err == nil && err2 == nil && strings.HasPrefix(bit, "bit")
	}
	if len(w) == 3 && w[0] == '\'' && w[2] == '\'' {
		return byteTest{0xff, w[1]}, true
	}
	n, err := strconv.ParseUint(w, 0, 8)
	return byteTest{0xff, byte(n)}, err == nil
}

func (c *byteCondition) holds(b []byte) bool {
	if c.at >= len(b) {
		return false
	}
	for _, t := range c.tests {
		if b[c.at]&t.mask == t.want {
			return true
		}
	}
	return false
}

func allHold(list []byteCondition, b []byte) bool {
	for i := range list {
		if !list[i].holds(b) {
			return false
		}
	}
	return true
}

// layoutJoin prepares a number that is spread over several bytes.
func (p *Profile) layoutJoin(pt *Point, c *codec, vt string, r report) bool {
	s, width := &spot{}, 0
	for i, b := range pt.Join {
		lo, hi := 0, 7
		if len(b.Bits) == 2 {
			lo, hi = b.Bits[0], b.Bits[1]
		}
		if len(b.Bits) != 0 && len(b.Bits) != 2 || lo < 0 || lo > hi || hi > 7 {
			r("join["+strconv.Itoa(i)+"]", "bits are a first and a last bit of the byte", "write {at: 3, bits: [0, 6]}")
			return false
		}
		n := hi - lo + 1
		s.join = append(s.join, joined{b.At, uint8(lo), mask(uint(n)), uint8(n)})
		width += n
		c.addr = uint16(max(int(c.addr), b.At))
	}
	if width == 0 || width > 64 || pt.Type != "" && pt.Type[0] != 's' && pt.Type[0] != 'u' && pt.Type != "bit" || pt.Type == "string" || pt.Order != "" {
		r("join", "joined bits are a whole number of 1 to 64 bits", "leave out type and order; type: s16 makes it signed")
		return false
	}
	c.spot, c.width, c.count, c.act, c.load = s, uint8(width), 1, actInt, load8
	c.signed = pt.Type != "" && pt.Type[0] == 's' && pt.Type != "string"
	if width == 64 && !c.signed {
		c.act = actUint
	}
	return pt.layoutBits(c, vt, "joined bits", width, r)
}

// decodeBytes appends the reading of a point of a binary frame, if the frame
// speaks of it. b ends where the data end.
func (c *codec) decodeBytes(b []byte, point uint32, dst []telemetry.Reading) []telemetry.Reading {
	s := c.spot
	if int(c.addr)+int(c.count) > len(b) || !allHold(s.where, b) {
		return dst
	}
	out := telemetry.Reading{Point: point}
	switch {
	case !allHold(s.valid, b):
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
	case s.join != nil:
		var raw uint64
		for _, j := range s.join {
			raw = raw<<j.width | uint64(b[j.at])>>j.shift&j.keep
		}
		c.value(raw, &c.num, &out)
	default:
		c.decode(b[c.addr:int(c.addr)+int(c.count)], &c.num, &out)
	}
	return append(dst, out)
}

// awayFromZero reads a number whose low bits are a fraction that counts away
// from zero: the bits above are the signed whole part.
func awayFromZero(raw uint64, width uint8, fraction int) int64 {
	free := 64 - uint(width)
	whole := int64(raw<<free) >> free >> fraction
	part := int64(raw & mask(uint(fraction)))
	if whole < 0 {
		part = -part
	}
	return whole<<fraction + part
}
