package profile

import (
	"fmt"
	"maps"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"tidegate/internal/telemetry"
)

// textSource is one place in text lines where a point stands.
type textSource struct {
	nmea  string // sentence type, or a whole address such as PGRME; "" = any line
	field int    // -1 = found otherwise
	xdr   *XDR
	obis  *telegramSource
	key   string
	group string
	at    int // columns [at, at+width); width 0 = none
	width int
	where []condition
	valid []condition
	by    int // field with the unit, if units is not nil
	units map[string]*number
	num   *number
	ends  []textEnd // what may stand behind the digits; empty = nothing
}

// textEnd is what may stand behind the digits of a field.
type textEnd struct {
	text string
	num  *number
}

// condition is a field and the contents it may have.
type condition struct {
	field int
	words []string
}

// maxFields is the most fields of a line; what stands behind is not looked at.
const maxFields = 128

// buildSources checks the text places of the point and its alternatives.
func (p *Profile) buildSources(pt *Point, c *codec, r report) {
	if c.text == nil {
		for _, k := range []struct {
			key   string
			given bool
		}{{"where", pt.Where != nil && c.table != 0}, {"valid", pt.Valid != nil && c.table != 0}, {"by", pt.By != nil}, {"or", pt.Or != nil}} {
			if k.given {
				r(k.key, k.key+" is for text lines", "remove it")
			}
		}
		return
	}
	main := Source{NMEA: pt.NMEA, Field: pt.Field, XDR: pt.XDR, Key: pt.Key, Group: pt.Group, OBIS: pt.OBIS, Device: pt.Device, Where: pt.Where,
		Valid: pt.Valid, By: pt.By, Scale: pt.Scale, Offset: pt.Offset}
	if pt.At != nil {
		if p.bytewise() {
			main.Where, main.Valid = nil, nil // they speak of bytes
		}
		s := main.build(pt, func(string, string, string) {})
		s.at, s.width, s.field = *pt.At, pt.Length, -1
		c.text = append(c.text, s)
	} else {
		c.text = append(c.text, main.build(pt, r))
	}
	for i := range pt.Or {
		c.text = append(c.text, pt.Or[i].build(pt, sub(r, "or["+strconv.Itoa(i)+"]")))
	}
	for i := range c.text {
		p.checkGroup(c.text[i].group, r)
	}
}

// checkGroup finds groups that no pattern has.
func (p *Profile) checkGroup(name string, r report) {
	if name == "" || p.Frames == nil {
		return
	}
	for _, re := range p.raw.patterns {
		if re.SubexpIndex(name) > 0 {
			return
		}
	}
	r("group", fmt.Sprintf("no pattern of the frames has a group %q", name), "write patterns: ['T=(?P<temperature>[-0-9.]+)']")
}

func (s *Source) build(pt *Point, r report) textSource {
	out := textSource{nmea: s.NMEA, xdr: s.XDR, where: conditions(s.Where), valid: conditions(s.Valid)}
	switch {
	case s.OBIS != "":
		s.buildTelegram(pt, &out, r)
		out.units = pt.telegramUnits(s)
	case (s.Key != "" || s.Group != "") && (s.Field != nil || s.XDR != nil || s.Key != "" && s.Group != ""):
		r("", "a value is found by field, key, group or xdr, one of them", "")
	case s.Key != "" || s.Group != "":
		out.key, out.group, out.field = s.Key, s.Group, -1
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
	scaledBy := func(f Decimal, path string) *number {
		if !f.Given() || f.num == 0 {
			r(path, "a factor is a number other than 0", "")
			return &num
		}
		return pt.scaledBy(s, f.rat(1))
	}
	for _, end := range slices.Sorted(maps.Keys(pt.Suffix)) {
		text := end
		if end == "none" {
			text = ""
		}
		out.ends = append(out.ends, textEnd{text, scaledBy(pt.Suffix[end], "suffix."+end)})
	}
	if s.By == nil {
		return out
	}
	out.by, out.units = s.By.Field, map[string]*number{}
	for _, unit := range slices.Sorted(maps.Keys(s.By.Factors)) {
		out.units[unit] = scaledBy(s.By.Factors[unit], "by.factors."+unit)
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
