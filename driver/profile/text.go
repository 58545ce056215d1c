package profile

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"tidegate/internal/telemetry"
)

// textSource is one place in text lines where a point stands.
type textSource struct {
	nmea  string // sentence type, or a whole address such as PGRME; "" = any line
	field int
	xdr   *XDR
	where []condition
	valid []condition
	by    int // field with the unit, if units is not nil
	units map[string]*number
	num   *number
}

// condition is a field and the contents it may have.
type condition struct {
	field int
	words []string
}

// maxFields is the most fields of a line; what stands behind is not looked at.
const maxFields = 128

// buildSources checks the text places of the point and its alternatives.
func (pt *Point) buildSources(c *codec, r report) {
	if c.text == nil {
		for _, k := range []struct {
			key   string
			given bool
		}{{"where", pt.Where != nil}, {"valid", pt.Valid != nil}, {"by", pt.By != nil}, {"or", pt.Or != nil}} {
			if k.given {
				r(k.key, k.key+" is for text lines", "remove it")
			}
		}
		return
	}
	main := Source{pt.NMEA, pt.Field, pt.XDR, pt.Where, pt.Valid, pt.By, pt.Scale, pt.Offset}
	c.text = append(c.text, main.build(pt, r))
	for i := range pt.Or {
		c.text = append(c.text, pt.Or[i].build(pt, sub(r, "or["+strconv.Itoa(i)+"]")))
	}
}

func (s *Source) build(pt *Point, r report) textSource {
	out := textSource{nmea: s.NMEA, xdr: s.XDR, where: conditions(s.Where), valid: conditions(s.Valid)}
	switch {
	case s.XDR != nil && (s.Field != nil || s.NMEA != "" && s.NMEA != "XDR"):
		r("xdr", "xdr finds its own sentence and field", "remove nmea and field")
	case s.XDR != nil:
		out.nmea = "XDR"
	case s.Field == nil:
		r("field", "the number of the field is missing", "field 0 stands before the first comma; field 1 is the first value of an NMEA sentence")
	default:
		out.field = *s.Field
	}
	if s.NMEA != strings.ToUpper(s.NMEA) || len(s.NMEA) == 1 {
		r("nmea", fmt.Sprintf("%q is no sentence type", s.NMEA), "write it in capital letters without the talker, such as MWV")
	}
	scaled := *pt
	scaled.Scale, scaled.Offset = s.Scale, s.Offset
	num, _ := scaled.numbers(func(string, string, string) {})
	out.num = &num
	if s.By == nil {
		return out
	}
	out.by, out.units = s.By.Field, map[string]*number{}
	for _, unit := range slices.Sorted(maps.Keys(s.By.Factors)) {
		f := s.By.Factors[unit]
		if !f.Given() || f.num == 0 {
			r("by.factors."+unit, "a factor is a number other than 0", "")
			continue
		}
		x := f.rat(1)
		x.Mul(x, s.Scale.rat(1))
		n := num
		n = newNumber(x, s.Offset.rat(0), pt.Decimals, pt.rangeEnd(0), pt.rangeEnd(1))
		out.units[unit] = &n
	}
	return out
}

// rangeEnd returns one end of the plausible range, nil if there is none.
func (pt *Point) rangeEnd(i int) *big.Rat {
	if len(pt.Range) != 2 {
		return nil
	}
	return pt.Range[i].rat(0)
}

func conditions(m map[int64][]string) (out []condition) {
	for _, f := range slices.Sorted(maps.Keys(m)) {
		out = append(out, condition{int(f), m[f]})
	}
	return out
}

// DecodeFrame appends a reading for each point that a frame speaks of and
// returns dst. A frame that is damaged speaks of nothing: length and check
// are tested again here. raw is a frame as the scanner yields it.
func (p *Profile) DecodeFrame(raw []byte, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	switch {
	case p.Frames == nil:
		return dst
	case p.raw.line:
		if !p.raw.lineHolds(raw) {
			return dst
		}
		return p.decodeLine(p.raw.body(raw), base, dst)
	}
	if v, n := p.raw.look(raw); v != whole || n != len(raw) {
		return dst
	}
	end := p.raw.dataEnd(len(raw))
	for i := range p.codecs {
		c := &p.codecs[i]
		if int(c.addr)+int(c.count) > end {
			continue
		}
		out := telemetry.Reading{Point: base + uint32(i)}
		c.decode(raw[c.addr:int(c.addr)+int(c.count)], &c.num, &out)
		dst = append(dst, out)
	}
	return dst
}

func (p *Profile) decodeLine(body []byte, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	var all [maxFields][]byte
	n := 0
	for more := true; more && n < maxFields; n++ {
		all[n], body, more = bytes.Cut(body, []byte{','})
		all[n] = bytes.TrimSpace(all[n])
	}
	fields := all[:n]
	for i := range p.codecs {
		c := &p.codecs[i]
		for k := range c.text {
			out := telemetry.Reading{Point: base + uint32(i)}
			if !c.text[k].decode(c, fields, &out) {
				continue
			}
			dst = append(dst, out)
			break
		}
	}
	return dst
}

// decode fills out and says whether the line speaks of this source.
func (s *textSource) decode(c *codec, fields [][]byte, out *telemetry.Reading) bool {
	if s.nmea != "" && !isSentence(fields[0], s.nmea) {
		return false
	}
	for i := range s.where {
		if !s.where[i].holds(fields) {
			return false
		}
	}
	at, unitFits := s.field, true
	if s.xdr != nil {
		if at, unitFits = s.xdr.find(fields); at < 0 {
			return false
		}
	}
	if at >= len(fields) {
		return false
	}
	for i := range s.valid {
		if !s.valid[i].holds(fields) {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
			return true
		}
	}
	text := fields[at]
	if len(text) == 0 || c.isNA(string(text)) {
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
		return true
	}
	num := s.num
	if s.units != nil {
		var unit []byte
		if s.by < len(fields) {
			unit = fields[s.by]
		}
		if num = s.units[string(unit)]; num == nil {
			unitFits = false
		}
	}
	if !unitFits {
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
		return true
	}
	c.decodeField(text, num, out)
	return true
}

// decodeField turns the text of one field into a value.
func (c *codec) decodeField(text []byte, num *number, out *telemetry.Reading) {
	if c.act == actString {
		if !utf8.Valid(text) {
			text = bytes.ToValidUTF8(text, []byte("\uFFFD"))
		}
		out.Value = telemetry.TextValue(string(text))
		return
	}
	ok, good := true, true
	if c.act == actEnum {
		n, err := strconv.ParseInt(string(text), 10, 64)
		if good = err == nil; good {
			out.Value, ok = c.word(uint64(n))
		}
	} else {
		out.Value, ok, good = num.text(text)
	}
	switch {
	case !good:
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
	case !ok:
		out.Quality = telemetry.Range
	}
}

// text returns the value of a number written in digits, whether it is
// plausible, and whether it is a number at all.
func (n *number) text(b []byte) (v telemetry.Value, ok, good bool) {
	mantissa, dec, exact := parseDigits(b)
	if exact && n.plain && !n.rounded {
		v = telemetry.IntValue(mantissa, uint8(dec))
		f := v.Float()
		return v, f >= n.flo && f <= n.fhi, true
	}
	if !exact && !numberForm.Match(b) || len(b) > 40 {
		return v, false, false
	}
	x, good := new(big.Rat).SetString(string(b))
	if !good {
		return v, false, false
	}
	x.Mul(x, n.scale).Add(x, n.offset)
	out := *n
	if d := dec + int(n.dec); exact && !n.rounded && !n.float && d <= telemetry.MaxDecimals {
		out.dec = uint8(d) // as many decimals as were sent, and those of the factor
	} else if !n.rounded {
		out.float = true
	}
	v, ok = out.ratio(x)
	if f := v.Float(); math.IsInf(f, 0) {
		return telemetry.Value{}, false, false
	}
	return v, ok, true
}

// parseDigits reads [+-]digits[.digits] of at most 18 digits.
func parseDigits(b []byte) (mantissa int64, dec int, ok bool) {
	neg := false
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		neg, b = b[0] == '-', b[1:]
	}
	digits, point := 0, false
	for _, x := range b {
		switch {
		case x == '.' && !point:
			point = true
		case x >= '0' && x <= '9' && digits < 18:
			mantissa = mantissa*10 + int64(x-'0')
			digits++
			if point {
				dec++
			}
		default:
			return 0, 0, false
		}
	}
	if neg {
		mantissa = -mantissa
	}
	return mantissa, dec, digits > 0
}

// isSentence compares the address of a sentence (WIMWV) with a type (MWV)
// or a whole address (PGRME).
func isSentence(address []byte, kind string) bool {
	if len(address) == 5 && address[0] != 'P' && string(address[2:]) == kind {
		return true
	}
	return string(address) == kind
}

func (c *condition) holds(fields [][]byte) bool {
	if c.field < 0 || c.field >= len(fields) {
		return false
	}
	for _, w := range c.words {
		if string(fields[c.field]) == w {
			return true
		}
	}
	return false
}

// find returns the field with the value of the transducer, -1 if the
// sentence does not have it or is not made of groups of four.
func (x *XDR) find(fields [][]byte) (at int, unitFits bool) {
	if len(fields) < 5 || len(fields)%4 != 1 {
		return -1, false
	}
	for i := 1; i+3 < len(fields); i += 4 {
		if string(fields[i+3]) == x.Name && (x.Type == "" || string(fields[i]) == x.Type) {
			return i + 1, x.Unit == "" || string(fields[i+2]) == x.Unit
		}
	}
	return -1, false
}

// EncodeFrame builds a binary frame from one value for each point, None for
// those that stay 0. It fails for text lines, and where the size of a frame
// is not fixed.
func (p *Profile) EncodeFrame(values []telemetry.Value) ([]byte, error) {
	f := &p.raw
	if p.Frames == nil || f.line || f.size == 0 {
		return nil, fmt.Errorf("profile %s has no binary frames of a fixed size", p.Name)
	}
	b := make([]byte, f.size)
	for i, v := range values {
		if i >= len(p.codecs) || v.Kind() == telemetry.None {
			continue
		}
		c := &p.codecs[i]
		raw, err := p.Encode(i, v)
		if err != nil {
			return nil, err
		}
		if int(c.addr)+len(raw) > len(b) {
			return nil, fmt.Errorf("point %s stands behind the end of the frame", p.Points[i].Name)
		}
		for k, x := range raw {
			b[int(c.addr)+k] |= x
		}
	}
	copy(b, f.sync)
	copy(b[len(b)-len(f.tail):], f.tail)
	if c := f.count; c != nil {
		l := uint16(f.size - c.Adds)
		switch {
		case c.bytes() == 1:
			b[c.At] = byte(l)
		case c.Order == "little":
			b[c.At], b[c.At+1] = byte(l), byte(l>>8)
		default:
			b[c.At], b[c.At+1] = byte(l>>8), byte(l)
		}
	}
	sum, at, ok := f.sum(b)
	switch {
	case !ok:
		return nil, fmt.Errorf("profile %s: the check does not fit into the frame", p.Name)
	case f.checkSize == 1:
		b[at] = byte(sum)
	case f.checkSize == 2:
		b[at], b[at+1] = byte(sum>>8), byte(sum)
	}
	return b, nil
}
