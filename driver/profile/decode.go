package profile

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"tidegate/internal/telemetry"
)

// Request is one Modbus read: a stretch of one table and the points that
// stand in it.
type Request struct {
	Table   Table
	Address uint16
	Count   uint16 // registers or bits
	Points  []int  // indexes into Profile.Points
}

// Size returns how many data bytes the right answer has.
func (r Request) Size() int {
	if r.Table.Bits() {
		return (int(r.Count) + 7) / 8
	}
	return 2 * int(r.Count)
}

// Decode appends one reading for each point of r and returns dst. data are
// the bytes of the answer: registers big endian as they came, or packed
// bits, least significant first. base is the catalog number of the
// profile's first point.
//
// Nothing is taken from an answer of the wrong size: then every point gets
// Comm with CauseShort, or CauseMismatch if there is too much. Decode
// allocates only for texts that have changed, and if dst is too small.
func (p *Profile) Decode(r Request, data []byte, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	if cause := r.fits(data); cause != telemetry.CauseNone {
		for _, i := range r.Points {
			dst = append(dst, telemetry.Reading{Point: base + uint32(i), Quality: telemetry.Comm, Cause: cause})
		}
		return dst
	}
	for _, i := range r.Points {
		dst = append(dst, telemetry.Reading{Point: base + uint32(i)})
		out := &dst[len(dst)-1]
		c := &p.codecs[i]
		off := int(c.addr) - int(r.Address)
		if c.table != r.Table || off < 0 || off+int(c.count) > int(r.Count) {
			out.Quality, out.Cause = telemetry.Comm, telemetry.CauseShort
			continue
		}
		if c.bit1 {
			set := data[off>>3]>>(off&7)&1 != 0
			out.Value = telemetry.BoolValue(set != c.invert)
			continue
		}
		num := &c.num
		if c.sf != nil {
			at := int(c.sfAddr) - int(r.Address)
			if at < 0 || at >= int(r.Count) {
				out.Quality, out.Cause = telemetry.Comm, telemetry.CauseShort
				continue
			}
			factor := int(int16(uint16(data[2*at])<<8 | uint16(data[2*at+1])))
			if factor < -10 || factor > 10 {
				out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
				continue
			}
			num = &c.sf[factor+10]
		}
		c.decode(data[2*off:2*(off+int(c.count))], num, out)
	}
	return dst
}

// fits says whether data is the answer to r.
func (r Request) fits(data []byte) telemetry.Cause {
	switch n := r.Size(); {
	case len(data) < n:
		return telemetry.CauseShort
	case len(data) > n:
		return telemetry.CauseMismatch
	}
	return telemetry.CauseNone
}

// decode sets value, quality and cause of out from the bytes of the point.
func (c *codec) decode(b []byte, num *number, out *telemetry.Reading) {
	if c.act == actString {
		c.decodeText(b, out)
		return
	}
	c.value(c.read(b[c.sub:]), num, out)
}

// value is decode for a raw number that is read already.
func (c *codec) value(raw uint64, num *number, out *telemetry.Reading) {
	if c.spot != nil && c.spot.validBit >= 0 && raw>>c.spot.validBit&1 == 0 {
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
		return
	}
	raw = raw >> c.shift & c.keep
	for _, m := range c.na {
		if raw == m {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
			return
		}
	}
	ok := true
	switch c.act {
	case actInt:
		n := int64(raw)
		switch {
		case c.spot != nil && c.spot.fraction > 0:
			n = awayFromZero(raw, c.width, c.spot.fraction)
		case c.signed:
			free := 64 - c.width
			n = int64(raw<<free) >> free
		}
		out.Value, ok = num.int64(n)
	case actF32:
		f := float64(math.Float32frombits(uint32(raw)))
		if f-f != 0 { // NaN or infinite
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseNaN
			return
		}
		out.Value, ok = num.float64(f, true)
	case actF64:
		f := math.Float64frombits(raw)
		if f-f != 0 {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseNaN
			return
		}
		out.Value, ok = num.float64(f, false)
	case actBool:
		out.Value = telemetry.BoolValue((raw != 0) != c.invert)
	case actUint:
		out.Value, ok = num.uint64(raw)
	case actBCD:
		n, digits := bcd(raw)
		if !digits {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
			return
		}
		out.Value, ok = num.uint64(n)
	case actEnum:
		out.Value, ok = c.word(raw)
	case actFlags:
		out.Value = c.flagText(raw)
	}
	if !ok {
		if out.Value.Kind() == telemetry.None {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseNaN
			return
		}
		out.Quality = telemetry.Range
	}
}

// word returns the word of a raw number; one without a word keeps its
// digits and is out of range.
func (c *codec) word(raw uint64) (telemetry.Value, bool) {
	if v, ok := c.words[raw]; ok {
		return v, true
	}
	n := int64(raw)
	if c.signed {
		free := 64 - c.width
		n = int64(raw<<free) >> free
	}
	return telemetry.TextValue(strconv.FormatInt(n, 10)), false
}

// flagText returns the words of the bits that are set, joined by commas;
// bits without a word are called bitN. No bit set is the empty text.
func (c *codec) flagText(raw uint64) telemetry.Value {
	if l := c.last.Load(); l != nil && l.raw == raw {
		return l.value
	}
	var words []string
	rest := raw
	for _, f := range c.flags {
		if raw>>f.bit&1 != 0 {
			words = append(words, f.word)
			rest &^= 1 << f.bit
		}
	}
	for bit := 0; rest>>bit != 0; bit++ {
		if rest>>bit&1 != 0 {
			words = append(words, "bit"+strconv.Itoa(bit))
		}
	}
	v := telemetry.TextValue(strings.Join(words, ","))
	c.last.Store(&lastText{raw: raw, value: v})
	return v
}

// decodeText takes a string of bytes: NULs and blanks at the end do not
// belong to it, bytes that are not UTF-8 become U+FFFD, and a string of
// nothing else is no value.
func (c *codec) decodeText(b []byte, out *telemetry.Reading) {
	var swapped [500]byte
	if c.load == loadBA && len(b) <= len(swapped) {
		s := swapped[:len(b)]
		for i := range b {
			s[i] = b[i^1]
		}
		b = s
	}
	if l := c.last.Load(); l != nil && l.bytes == string(b) {
		out.Value = l.value
		return
	}
	s := string(b)
	text := s
	if i := strings.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	text = strings.TrimRight(text, " ")
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	if text == "" || c.isNA(text) {
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
		return
	}
	out.Value = telemetry.TextValue(text)
	c.last.Store(&lastText{bytes: s, value: out.Value})
}

func (c *codec) isNA(text string) bool {
	for _, m := range c.naText {
		if m == text {
			return true
		}
	}
	return false
}
