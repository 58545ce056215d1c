package profile

import (
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidegate/driver/obis"
	"tidegate/internal/telemetry"
)

// Moment is when a device measured a reading, by its own clock. The zero
// Moment is the end of the frame.
type Moment struct {
	Mark    int64         // the device's time, which changes with each new value; 0 = it gives none
	Age     time.Duration // how long before the end of the frame; 0 where that is not known
	Renewed time.Duration // a value whose mark has not changed for so long is stale; 0 = never
}

// renewed is how long a meter behind another one may give no new value: all
// give one a day or more often.
const renewed = 26 * time.Hour

// oldest is the greatest age that is believed. Two clocks that are further
// apart do not speak of the same time.
const oldest = 400 * 24 * time.Hour

// source finds a point in a telegram.
type telegramSource struct {
	code   obis.Code
	device []int // types of the device on the channel; empty = any
}

// buildTelegram prepares the place of a point in telegrams.
func (s *Source) buildTelegram(pt *Point, out *textSource, r report) {
	if s.Field != nil || s.NMEA != "" || s.XDR != nil || s.Key != "" || s.Group != "" {
		r("obis", "a value is found by its OBIS code or by a field", "keep one of the two")
		return
	}
	code, err := obis.ParsePattern(s.OBIS)
	if err != nil {
		r("obis", err.Error(), "n stands for any channel: 0-n:24.2.1")
		return
	}
	if len(s.Device) > 0 && code.B != obis.Any {
		r("device", "device finds the channel, and the code names one", "write n for the channel: obis: 0-n:24.2.1")
	}
	if s.Where != nil || s.Valid != nil || s.By != nil {
		r("", "where, valid and by are for fields", "remove them")
	}
	out.field, out.obis = -1, &telegramSource{code: code, device: s.Device}
}

// telegramNumber returns how a value with a unit becomes a value of the
// point; nil if the point has nothing to do with such a unit. The point's
// suffix stands in the place of the known units; none in it is no unit.
func (c *codec) telegramNumber(s *textSource, unit string) *number {
	if len(s.ends) > 0 {
		for i := range s.ends {
			if s.ends[i].text == unit {
				return s.ends[i].num
			}
		}
		return nil
	}
	if num, ok := s.units[unit]; ok {
		return num
	}
	for symbol, num := range s.units {
		if sameUnit(symbol, unit) {
			return num // of one unit in capital and small letters
		}
	}
	return nil
}

// telegramUnits prepares the factors of all units that fit the point's.
func (pt *Point) telegramUnits(s *Source) map[string]*number {
	out := map[string]*number{}
	for _, f := range unitFamilies {
		for _, u := range f {
			if factor, ok := unitFactor(u.symbol, pt.Unit); ok {
				out[u.symbol] = pt.scaledBy(s, factor)
			}
		}
	}
	out[pt.Unit] = pt.scaledBy(s, big.NewRat(1, 1))
	return out
}

// scaledBy returns the number of a source with one more factor.
func (pt *Point) scaledBy(s *Source, factor *big.Rat) *number {
	x := new(big.Rat).Mul(factor, s.Scale.rat(1))
	n := newNumber(x, s.Offset.rat(0), pt.Decimals, pt.rangeEnd(0), pt.rangeEnd(1))
	return &n
}

// DecodeTimed is DecodeFrame for devices that say when they measured: at[i]
// belongs to the reading i of those that were appended. at is empty where
// the device says nothing of that.
func (p *Profile) DecodeTimed(raw []byte, base uint32, dst []telemetry.Reading, at []Moment) ([]telemetry.Reading, []Moment) {
	if p.Frames == nil || !p.raw.obis {
		return p.DecodeFrame(raw, base, dst), at[:0]
	}
	at = at[:0]
	t, err := obis.Parse(raw)
	if err != nil || !t.Checked && p.raw.check.bytes() > 0 {
		return dst, at
	}
	now := obis.Time{}
	for i := range t.Objects {
		if telegramTime.Fits(t.Objects[i].Code) {
			now, _ = obis.ParseTime(t.Objects[i].Groups[0])
		}
	}
	for i := range p.codecs {
		r := telemetry.Reading{Point: base + uint32(i)}
		if m, ok := p.codecs[i].decodeTelegram(t, now, &r); ok {
			dst, at = append(dst, r), append(at, m)
		}
	}
	return dst, at
}

// telegramTime is the time of a P1 telegram.
var telegramTime = obis.Code{A: 0, B: 0, C: 1, D: 0, E: 0, F: obis.None}

// decodeTelegram fills out and says whether the telegram speaks of the
// point. Of several places the one with a value counts, and among those the
// one with the newest time: a meter that was replaced stays on its channel.
func (c *codec) decodeTelegram(t *obis.Telegram, now obis.Time, out *telemetry.Reading) (best Moment, spoken bool) {
	for k := range c.text {
		s := &c.text[k]
		for i := range t.Objects {
			o := &t.Objects[i]
			if s.obis == nil || !o.Known || !s.obis.code.Fits(o.Code) || !s.obis.onChannel(t, o.Code.B) {
				continue
			}
			r, m := telemetry.Reading{Point: out.Point}, Moment{}
			c.decodeObject(s, o, now, &r, &m)
			better := !spoken
			if spoken {
				had, has := out.Value.Kind() != telemetry.None, r.Value.Kind() != telemetry.None
				better = has && !had || has == had && m.Mark > best.Mark
			}
			if better {
				*out, best, spoken = r, m, true
			}
		}
	}
	return best, spoken
}

// onChannel says whether a device of the right type is on a channel.
func (s *telegramSource) onChannel(t *obis.Telegram, channel int16) bool {
	if len(s.device) == 0 {
		return true
	}
	for i := range t.Objects {
		if c := t.Objects[i].Code; c.B == channel && c.C == 24 && c.D == 1 && c.E == 0 {
			n, err := strconv.Atoi(t.Objects[i].Groups[0])
			return err == nil && slices.Contains(s.device, n)
		}
	}
	return false
}

// decodeObject takes the value of one data set.
func (c *codec) decodeObject(s *textSource, o *obis.Object, now obis.Time, out *telemetry.Reading, m *Moment) {
	if stamp := o.Stamp(); stamp != "" {
		at, ok := obis.ParseTime(stamp)
		switch {
		case ok:
			m.Mark = at.Local.Unix()
			if at.Zoned && now.Zoned {
				m.Mark = at.UTC.Unix()
				if age := now.UTC.Sub(at.UTC); age > 0 && age < oldest {
					m.Age = age
				}
			}
			if len(s.obis.device) > 0 {
				m.Renewed = renewed
			}
		case obis.Never(stamp):
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
			return
		}
	}
	value, unit, ok := o.Value()
	switch {
	case !ok:
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
	case value == "" || c.isNA(value) || c.act != actString && blank([]byte(value)):
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
	case c.act == actString:
		c.decodeField([]byte(value), nil, out)
	default:
		num := c.telegramNumber(s, unit)
		if num == nil {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
			return
		}
		c.decodeField([]byte(value), num, out)
	}
}

// TelegramLines returns the data sets of a telegram with these values, one
// for each point, None for what is not sent. Devices behind the meter come on
// channels from 1 on and have measured now.
func (p *Profile) TelegramLines(values []telemetry.Value, now time.Time) (lines []string) {
	stamp := now.Format("060102150405") + "W"
	if p.Handshake != nil && p.Handshake.Kind == "dsmr" {
		lines = append(lines, "0-0:1.0.0("+stamp+")")
	}
	channel := int16(0)
	for i, v := range values {
		c, pt := &p.codecs[i], &p.Points[i]
		if v.Kind() == telemetry.None || len(c.text) == 0 || c.text[0].obis == nil {
			continue
		}
		s := &c.text[0]
		code, set := s.obis.code, ""
		if code.B == obis.Any {
			channel++
			code.B = channel
			if len(s.obis.device) > 0 {
				lines = append(lines, fmt.Sprintf("0-%d:24.1.0(%03d)", channel, s.obis.device[0]))
				set = "(" + stamp + ")"
			}
		}
		num, unit := &c.num, pt.Unit
		if n, ok := s.units[unit]; ok {
			num = n
		}
		if len(s.ends) > 0 {
			num, unit = s.ends[0].num, s.ends[0].text
		}
		text := v.Text()
		x, isNumber := valueRat(v)
		switch {
		case c.hexed:
			text = hex.EncodeToString([]byte(text))
		case c.act == actString:
		case isNumber && c.act == actNumber:
			text = x.Sub(x, num.offset).Quo(x, num.scale).FloatString(3)
			if unit != "" && unit != "/" && unit != "1" {
				text += "*" + unit
			}
		default:
			raw, err := c.rawOf(v, &c.num)
			if err != nil {
				continue
			}
			text = strconv.FormatUint(raw, 10)
		}
		lines = append(lines, codeText(code)+set+"("+text+")")
	}
	return lines
}

// codeText writes a code as meters do: C.1.0 and not 96.1.0.
func codeText(c obis.Code) string {
	s := c.String()
	for n, letter := range map[string]string{"96": "C", "97": "F"} {
		if rest, ok := strings.CutPrefix(s, n+"."); ok && c.A == obis.None {
			s = letter + "." + rest
			if rest == n {
				s = letter + "." + letter
			}
		}
	}
	return s
}
