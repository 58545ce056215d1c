package profile

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/big"
	"strconv"
	"unicode"
	"unicode/utf8"

	"tidegate/internal/telemetry"
)

// DecodeFrame appends a reading for each point that a frame speaks of and
// returns dst. A frame that is damaged speaks of nothing: length and check
// are tested again here. raw is a frame as the scanner yields it. Of a frame
// with records, the readings of all come one after the other.
func (p *Profile) DecodeFrame(raw []byte, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	switch {
	case p.Frames == nil:
		return dst
	case p.raw.mbus:
		return p.decodeMBus(raw, base, dst)
	case p.raw.obis:
		dst, _ = p.DecodeTimed(raw, base, dst, nil)
		return dst
	case p.raw.line:
		if !p.raw.lineHolds(raw) {
			return dst
		}
		return p.decodeBody(nil, p.raw.body(raw), base, dst)
	}
	if v, n := p.raw.look(raw); v != whole || n != len(raw) {
		return dst
	}
	frame := p.raw.unescape(raw)
	end := p.raw.dataEnd(len(frame))
	if p.raw.check.After && p.raw.check.At == nil {
		end = len(frame) - p.raw.check.size() - len(p.raw.tail)
	}
	return p.decodeBody(frame[:end], frame[min(len(p.raw.sync), end):end], base, dst)
}

// decodeBody takes a frame apart that is sound. frame is nil for lines; body
// is the text.
func (p *Profile) decodeBody(frame, body []byte, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	columns := frame
	if frame == nil {
		columns = body
	}
	if p.raw.records != nil {
		return p.decodeRecords(columns, base, dst)
	}
	t := textLine{f: &p.raw, body: body, columns: columns}
	for i := range p.codecs {
		dst = p.decodePoint(i, frame, &t, base, dst)
	}
	return dst
}

// decodePoint appends the reading of point i. frame is nil for lines.
func (p *Profile) decodePoint(i int, frame []byte, t *textLine, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	c := &p.codecs[i]
	point := base + uint32(i)
	if c.text == nil {
		return c.decodeBytes(frame, point, dst)
	}
	if c.spot != nil && !allHold(c.spot.where, frame) {
		return dst
	}
	for k := range c.text {
		out := telemetry.Reading{Point: point}
		if !c.text[k].decode(c, t, &out) {
			continue
		}
		if c.spot != nil && !allHold(c.spot.valid, frame) {
			out = telemetry.Reading{Point: point, Quality: telemetry.Fault, Cause: telemetry.CauseMarker}
		}
		return append(dst, out)
	}
	return dst
}

// textLine is the text of one frame, taken apart when it is asked for.
type textLine struct {
	f       *rawFrames
	body    []byte
	columns []byte // what columns count from
	all     [maxFields][]byte
	n       int
	split   bool
	groups  []int // of the pattern that fits
	pattern int   // -1 = none fits
	matched bool
}

// fields returns the fields of the line, at least one.
func (t *textLine) fields() [][]byte {
	if t.split {
		return t.all[:t.n]
	}
	t.split = true
	rest, more := t.body, true
	if t.f.split == 0 {
		rest = bytes.TrimSpace(rest)
	}
	for more && t.n < maxFields {
		if t.f.split == 0 {
			i := bytes.IndexAny(rest, " \t")
			if more = i >= 0; more {
				t.all[t.n], rest = rest[:i], bytes.TrimLeft(rest[i:], " \t")
			} else {
				t.all[t.n] = rest
			}
			t.n++
			continue
		}
		t.all[t.n], rest, more = bytes.Cut(rest, []byte{t.f.split})
		t.all[t.n] = bytes.TrimSpace(t.all[t.n])
		t.n++
	}
	return t.all[:t.n]
}

// value returns what stands behind a key; nil if the key is not there.
func (t *textLine) value(key string) []byte {
	for _, f := range t.fields() {
		if k, v, ok := bytes.Cut(f, []byte{t.f.pairs}); ok && string(bytes.TrimSpace(k)) == key {
			return bytes.TrimSpace(v)
		}
	}
	return nil
}

// group returns what a named group of the patterns holds; nil if no pattern
// fits, or the group is not in it.
func (t *textLine) group(name string) []byte {
	if !t.matched {
		t.matched, t.pattern = true, -1
		for i, re := range t.f.patterns {
			if t.groups = re.FindSubmatchIndex(t.body); t.groups != nil {
				t.pattern = i
				break
			}
		}
	}
	if t.pattern < 0 {
		return nil
	}
	k := t.f.patterns[t.pattern].SubexpIndex(name)
	if k < 0 || t.groups[2*k] < 0 {
		return nil
	}
	if text := bytes.TrimSpace(t.body[t.groups[2*k]:t.groups[2*k+1]]); text != nil {
		return text
	}
	return []byte{} // the group is there, and empty
}

// find returns the text of a source, whether the frame speaks of it, and
// whether its unit is the one the point is scaled for.
func (s *textSource) find(t *textLine) (text []byte, spoken, unitFits bool) {
	switch {
	case s.width > 0:
		if s.at+s.width > len(t.columns) {
			return nil, false, true
		}
		return bytes.TrimSpace(t.columns[s.at : s.at+s.width]), true, true
	case s.group != "":
		text = t.group(s.group)
		return text, text != nil, true
	case s.key != "":
		text = t.value(s.key)
		return text, text != nil, true
	}
	fields := t.fields()
	at, unitFits := s.field, true
	if s.xdr != nil {
		at, unitFits = s.xdr.find(fields)
	}
	if at < 0 || at >= len(fields) {
		return nil, false, true
	}
	return fields[at], true, unitFits
}

// decode fills out and says whether the line speaks of this source.
func (s *textSource) decode(c *codec, t *textLine, out *telemetry.Reading) bool {
	if s.nmea != "" && !isSentence(t.fields()[0], s.nmea) {
		return false
	}
	for i := range s.where {
		if !s.where[i].holds(t.fields()) {
			return false
		}
	}
	text, spoken, unitFits := s.find(t)
	if !spoken {
		return false
	}
	for i := range s.valid {
		if !s.valid[i].holds(t.fields()) {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
			return true
		}
	}
	if len(text) == 0 || c.isNA(string(text)) || c.act != actString && blank(text) {
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
		return true
	}
	num := s.num
	if s.units != nil {
		var unit []byte
		if fields := t.fields(); s.by < len(fields) {
			unit = fields[s.by]
		}
		if num = s.units[string(unit)]; num == nil {
			unitFits = false
		}
	}
	if len(s.ends) > 0 && unitFits {
		text, num, unitFits = s.end(text)
	}
	if !unitFits {
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
		return true
	}
	c.decodeField(text, num, out)
	return true
}

// end takes off what stands behind the digits; the longest one counts.
func (s *textSource) end(text []byte) ([]byte, *number, bool) {
	var best *textEnd
	for i := range s.ends {
		if e := &s.ends[i]; bytes.HasSuffix(text, []byte(e.text)) && (best == nil || len(e.text) > len(best.text)) {
			best = e
		}
	}
	if best == nil {
		return text, nil, false
	}
	return bytes.TrimSpace(text[:len(text)-len(best.text)]), best.num, true
}

// blank says whether a field is filled with nothing but signs: devices write
// dashes or stars where they have no value.
func blank(text []byte) bool {
	for _, x := range text {
		if x >= '0' && x <= '9' || x >= 'A' && x <= 'Z' || x >= 'a' && x <= 'z' || x >= 0x80 {
			return false
		}
	}
	return true
}

// decodeField turns the text of one field into a value.
func (c *codec) decodeField(text []byte, num *number, out *telemetry.Reading) {
	ok, good := true, true
	switch {
	case c.act == actString && c.hexed:
		b, err := hex.DecodeString(string(text))
		b = bytes.Trim(b, "\x00 ")
		switch {
		case err != nil || !utf8.Valid(b) || bytes.ContainsFunc(b, unicode.IsControl):
			good = false
		case len(b) == 0:
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
		default:
			out.Value = telemetry.TextValue(string(b))
		}
	case c.act == actString:
		if !utf8.Valid(text) {
			text = bytes.ToValidUTF8(text, []byte("\uFFFD"))
		}
		out.Value = telemetry.TextValue(string(text))
		return
	case c.keep != 0: // hexadecimal digits
		raw, err := strconv.ParseUint(string(text), 16, 64)
		if good = err == nil; good {
			c.value(raw, num, out)
			return
		}
	case c.act == actEnum:
		n, err := strconv.ParseInt(string(text), 10, 64)
		if good = err == nil; good {
			out.Value, ok = c.word(uint64(n))
		}
	case c.act == actDegrees:
		out.Value, ok, good = num.degrees(text)
	default:
		out.Value, ok, good = num.text(text)
	}
	switch {
	case !good:
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
	case !ok:
		out.Quality = telemetry.Range
	}
}

// degrees returns the value of degrees and minutes written as one number,
// 4426.1130 for 44 degrees and 26.1130 minutes: exact, then rounded to the
// decimals of the point, else to 7 (a centimetre).
func (n *number) degrees(b []byte) (v telemetry.Value, ok, good bool) {
	mantissa, dec, exact := parseDigits(b)
	if !exact || mantissa < 0 || b[0] == '+' || b[0] == '-' {
		return v, false, false
	}
	unit := int64(1)
	for range dec {
		unit *= 10
	}
	deg, min := mantissa/(100*unit), mantissa%(100*unit)
	if min >= 60*unit || deg > 360 {
		return v, false, false
	}
	x := big.NewRat(min, 60*unit)
	x.Add(x, new(big.Rat).SetInt64(deg))
	x.Mul(x, n.scale).Add(x, n.offset)
	out := *n
	if out.float = false; !n.rounded {
		out.dec = 7
	}
	v, ok = out.ratio(x)
	return v, ok, true
}

// EncodeFrame builds a binary frame from one value for each point, None for
// those that stay 0. It fails for text lines, and where the size of a frame
// is not fixed.
func (p *Profile) EncodeFrame(values []telemetry.Value) ([]byte, error) {
	f := &p.raw
	if p.Frames == nil || f.line || f.size == 0 || f.part > 0 || f.records != nil {
		return nil, fmt.Errorf("profile %s has no binary frames of a fixed size", p.Name)
	}
	b := make([]byte, f.size)
	for i, v := range values {
		if i >= len(p.codecs) || v.Kind() == telemetry.None {
			continue
		}
		c := &p.codecs[i]
		raw, err := p.Encode(i, v, 0)
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
	if f.count != nil {
		f.count.put(b, f.size-f.count.Adds)
	}
	for _, x := range f.set {
		b[x.At] |= 1 << x.Bit
	}
	if f.lead >= 0 {
		b[0] |= 1 << f.lead
	}
	if f.head != nil && !f.head.put(b, len(f.tail), 0) || !f.check.put(b, len(f.tail), f.covered()) {
		return nil, fmt.Errorf("profile %s: the check does not fit into the frame", p.Name)
	}
	return b, nil
}
