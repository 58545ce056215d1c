package profile

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"

	"tidegate/driver/mbus"
	"tidegate/internal/telemetry"
)

// MBus finds a record in the telegrams of an M-Bus meter by what it is, not
// by where it stands; or a field of their header. One of quantity, vif, label
// and header is given.
type MBus struct {
	Quantity string   `yaml:"quantity" doc:"What the record holds: energy, volume, power, volume_flow, flow_temperature, voltage, time_point, error_flags, ..."`
	VIF      Hex      `yaml:"vif" doc:"The same as bytes of the wire, VIF and VIFEs: FF 22. For what makers have defined themselves."`
	Label    string   `yaml:"label" doc:"The same for a record whose unit is a plain text, such as %RH."`
	Header   string   `yaml:"header" enum:"id,manufacturer,version,device,access,status" doc:"A field of the header: identification number, maker (three letters), version, type of device, access number, status."`
	With     []string `yaml:"with" doc:"What the extensions say (VIFE): l1, l2, l3, forward, backward, per_hour, upper_limit, future, ...; a record with others than these is another one."`
	Function string   `yaml:"function" enum:"instantaneous,maximum,minimum,error" doc:"Kind of value; instantaneous if not given."`
	Storage  int      `yaml:"storage" min:"0" doc:"Storage number; 0 is the current value."`
	Tariff   int      `yaml:"tariff" min:"0" doc:"Tariff; 0 is the sum of all."`
	Subunit  int      `yaml:"subunit" min:"0" doc:"Part of the device, such as a pulse input."`
	Nth      int      `yaml:"nth" min:"0" max:"99" doc:"Of several records that do not differ, which: 1 is the first, which also counts if not given."`
}

// mbusFunctions are the words of Function, by their number on the wire.
var mbusFunctions = []string{"instantaneous", "maximum", "minimum", "error"}

// mbusSource is MBus prepared for use.
type mbusSource struct {
	MBus
	function mbus.Function
	devices  []int
	pt       *Point
	mu       sync.Mutex
	numbers  map[string]*number // by unit and power of ten; nil: they do not fit the point
}

// fahrenheit is the one unit that a factor alone does not turn into another.
const fahrenheit = "[degF]"

// buildMBus prepares a point of an M-Bus telegram.
func (p *Profile) buildMBus(pt *Point, c *codec, r report) {
	m := pt.MBus
	n := 0
	for _, given := range []bool{m.Quantity != "", m.VIF != nil, m.Label != "", m.Header != ""} {
		if given {
			n++
		}
	}
	switch {
	case n != 1:
		r("mbus", "a record is found by one of quantity, vif, label and header", "write mbus: {quantity: energy}")
		return
	case m.Quantity != "" && !mbus.Known(m.Quantity):
		r("mbus.quantity", fmt.Sprintf("%q is no quantity of the M-Bus", m.Quantity), "known are "+strings.Join(mbus.Quantities(), ", "))
		return
	case m.Header != "" && (m.With != nil || m.Function != "" || m.Storage+m.Tariff+m.Subunit+m.Nth != 0):
		r("mbus.header", "a header has no functions, storages, tariffs and subunits", "keep header alone")
		return
	case m.VIF != nil && m.With != nil:
		r("mbus.with", "vif holds the extensions, too", "write all bytes in vif")
		return
	}
	for i, w := range m.With {
		if !mbus.KnownQualifier(w) {
			r("mbus.with["+strconv.Itoa(i)+"]", fmt.Sprintf("%q is no extension of the M-Bus", w), "l1, l2, l3, forward, backward, per_hour, upper_limit, ..., or vife_58 for one without a word")
		}
	}
	for _, k := range []struct {
		key   string
		given bool
	}{{"type", pt.Type != "" && pt.Type != "number" && pt.Type != "string" && pt.Type != "bit"}, {"order", pt.Order != ""}, {"byte", pt.Byte != ""},
		{"length", pt.Length != 0}, {"sf", pt.SF != ""}, {"where", pt.Where != nil}, {"valid", pt.Valid != nil}, {"by", pt.By != nil},
		{"or", pt.Or != nil}, {"suffix", pt.Suffix != nil}, {"valid_bit", pt.ValidBit != nil}, {"fraction", pt.Fraction != 0}, {"write", pt.Write != nil}} {
		if k.given {
			r(k.key, "a record of the M-Bus says itself how it is written", "remove "+k.key+"; type may be number, string or bit")
			return
		}
	}
	pt.checkMeaning(r)
	num, ok := pt.numbers(r)
	if !ok {
		return
	}
	c.num, c.load, c.width = num, load8, 64
	switch vt := pt.valueType(); {
	case vt == "string":
		c.act = actString
	default:
		c.act = actUint
		if !pt.layoutBits(c, vt, "number", 64, r) {
			return
		}
	}
	if c.act == actUint {
		c.act = actNumber
	}
	for _, na := range pt.NA {
		c.naText = append(c.naText, strings.TrimSpace(string(na)))
	}
	pt.words(c, r)
	c.mbus = &mbusSource{MBus: *m, function: mbus.Function(max(slices.Index(mbusFunctions, m.Function), 0)), devices: pt.Device,
		pt: pt, numbers: map[string]*number{}}
}

// decodeMBus appends the readings of all points that a telegram speaks of.
func (p *Profile) decodeMBus(raw []byte, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	f, n, err := mbus.ParseFrame(raw)
	if err != nil || n != len(raw) || !f.Response() {
		return dst
	}
	t, err := mbus.Parse(f)
	if err != nil {
		return dst
	}
	return p.DecodeTelegram(t, base, dst)
}

// DecodeTelegram is DecodeFrame for a telegram of an M-Bus meter.
func (p *Profile) DecodeTelegram(t *mbus.Telegram, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	for i := range p.codecs {
		c := &p.codecs[i]
		r := telemetry.Reading{Point: base + uint32(i)}
		if c.mbus != nil && c.decodeTelegramOf(t, &r) {
			dst = append(dst, r)
		}
	}
	return dst
}

// decodeTelegramOf fills out and says whether the telegram speaks of the point.
func (c *codec) decodeTelegramOf(t *mbus.Telegram, out *telemetry.Reading) bool {
	s := c.mbus
	if len(s.devices) > 0 && !slices.Contains(s.devices, int(t.Device)) {
		return false
	}
	if s.Header != "" {
		return c.decodeHeader(t, out)
	}
	if r := s.find(t, s.function); r != nil {
		c.decodeRecord(r, out)
		return true
	}
	if s.function == mbus.Instantaneous && s.find(t, mbus.DuringError) != nil {
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker // a value of an error, in the place of the value
		return true
	}
	return false
}

// find returns the record that is meant, of some function; nil if it is not there.
func (s *mbusSource) find(t *mbus.Telegram, f mbus.Function) *mbus.Record {
	nth := max(s.Nth, 1)
	for i := range t.Records {
		if r := &t.Records[i]; r.Function == f && s.fits(r) {
			if nth--; nth == 0 {
				return r
			}
		}
	}
	return nil
}

// fits says whether a record is the one that is meant, whatever its function.
func (s *mbusSource) fits(r *mbus.Record) bool {
	if r.Storage != uint64(s.Storage) || r.Tariff != uint32(s.Tariff) || r.Subunit != uint32(s.Subunit) {
		return false
	}
	switch {
	case s.VIF != nil:
		return slices.Equal(r.VIF, []byte(s.VIF))
	case s.Label != "":
		if r.Label != s.Label {
			return false
		}
	case r.Quantity != s.Quantity:
		return false
	}
	if len(r.Qualifiers) != len(s.With) {
		return false
	}
	for _, w := range s.With {
		if !slices.Contains(r.Qualifiers, w) {
			return false
		}
	}
	return true
}

func (c *codec) decodeHeader(t *mbus.Telegram, out *telemetry.Reading) bool {
	number := func(n byte) bool {
		c.mbusNumber(mbus.Value{Form: mbus.Integer, Int: int64(n)}, "", 0, out)
		return true
	}
	switch c.mbus.Header {
	case "id", "manufacturer":
		text := t.ID
		if c.mbus.Header == "manufacturer" {
			text = t.Maker
		}
		if text == "" {
			return false
		}
		c.mbusText(text, out)
		return true
	case "version":
		return t.Header && number(t.Version)
	case "device":
		return (t.Header || t.Fixed) && number(t.Device)
	case "access":
		return t.Short && number(t.Access)
	}
	return t.Short && number(t.Status)
}

// decodeRecord takes the value of a record.
func (c *codec) decodeRecord(r *mbus.Record, out *telemetry.Reading) {
	switch r.Value.Form {
	case mbus.None:
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
		switch r.Value.Fault {
		case mbus.NotBCD, mbus.NotTime:
			out.Cause = telemetry.CauseBadText
		case mbus.NotReal:
			out.Cause = telemetry.CauseNaN
		}
	case mbus.Text:
		c.mbusText(r.Value.Str, out)
	case mbus.Moment:
		c.mbusText(r.Value.Time.String(), out)
	case mbus.Bytes:
		var b strings.Builder
		for i := len(r.Value.Raw) - 1; i >= 0; i-- {
			fmt.Fprintf(&b, "%02x", r.Value.Raw[i])
		}
		c.mbusText(b.String(), out)
	default:
		c.mbusNumber(r.Value, r.Unit, r.Exp, out)
	}
}

// mbusText takes a text; one that should be a number is read as one.
func (c *codec) mbusText(text string, out *telemetry.Reading) {
	switch {
	case text == "" || c.isNA(text):
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
	case c.act == actString:
		out.Value = telemetry.TextValue(text)
	default:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
			return
		}
		c.mbusNumber(mbus.Value{Form: mbus.Integer, Int: n}, "", 0, out)
	}
}

// mbusNumber takes a number that is v x 10^exp in a unit.
func (c *codec) mbusNumber(v mbus.Value, unit string, exp int, out *telemetry.Reading) {
	switch {
	case c.act == actString:
		text := strconv.FormatInt(v.Int, 10)
		if v.Form == mbus.Unsigned {
			text = strconv.FormatUint(v.Uint, 10)
		}
		if v.Form == mbus.Real || exp != 0 {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
			return
		}
		c.mbusText(text, out)
		return
	case v.Form == mbus.Integer && c.isNA(strconv.FormatInt(v.Int, 10)):
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseMarker
		return
	case c.act != actNumber: // words and bits of the raw number
		if v.Form == mbus.Real {
			out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText
			return
		}
		raw := uint64(v.Int)
		if v.Form == mbus.Unsigned {
			raw = v.Uint
		}
		c.value(raw, &c.num, out)
		return
	}
	num := c.mbus.number(unit, exp)
	if num == nil {
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseBadText // a unit that is not the point's
		return
	}
	ok := true
	switch v.Form {
	case mbus.Real:
		out.Value, ok = num.float64(float64(v.Float), true)
	case mbus.Unsigned:
		out.Value, ok = num.uint64(v.Uint)
	default:
		out.Value, ok = num.int64(v.Int)
	}
	switch {
	case out.Value.Kind() == telemetry.None:
		out.Quality, out.Cause = telemetry.Fault, telemetry.CauseNaN
	case !ok:
		out.Quality = telemetry.Range
	}
}

// number returns how a number with a unit becomes a value of the point; nil
// if the point has nothing to do with such a unit.
func (s *mbusSource) number(unit string, exp int) *number {
	key := unit + " " + strconv.Itoa(exp)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.numbers[key]; ok {
		return n
	}
	var out *number
	factor, offset := big.NewRat(1, 1), s.pt.Offset.rat(0)
	fits := unit == s.pt.Unit || unit == ""
	if unit == fahrenheit && s.pt.Unit == "Cel" {
		factor, fits = big.NewRat(5, 9), true
		if s.Quantity != "temperature_difference" {
			offset = new(big.Rat).Add(offset, new(big.Rat).Mul(big.NewRat(-160, 9), s.pt.Scale.rat(1)))
		}
	} else if f, ok := unitFactor(unit, s.pt.Unit); ok && !fits {
		factor, fits = f, true
	}
	if fits {
		power := new(big.Rat).SetInt(pow10(max(exp, -exp)))
		if exp < 0 {
			power.Inv(power)
		}
		scale := new(big.Rat).Mul(factor, power)
		n := newNumber(scale.Mul(scale, s.pt.Scale.rat(1)), offset, s.pt.Decimals, s.pt.rangeEnd(0), s.pt.rangeEnd(1))
		out = &n
	}
	s.numbers[key] = out
	return out
}

// Media returns the types of devices that the recordings of the profile come
// from.
func (p *Profile) Media() (out []byte) {
	for _, raw := range p.Recordings() {
		if f, _, err := mbus.ParseFrame(raw); err == nil {
			if t, err := mbus.Parse(f); err == nil && !slices.Contains(out, t.Device) {
				out = append(out, t.Device)
			}
		}
	}
	return out
}

// EncodeTelegram returns the records of a meter that sends these values, one
// for each point, None for what it does not send: in the order of the profile,
// those that differ by nothing by their nth. Texts of a header are no records.
// It fails for a value that no record of 32 bits can hold.
func (p *Profile) EncodeTelegram(values []telemetry.Value) (records [][]byte, err error) {
	order := make([]int, 0, len(values))
	for i := range p.codecs {
		if s := p.codecs[i].mbus; s != nil && s.Header == "" && i < len(values) && values[i].Kind() != telemetry.None {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return p.codecs[a].mbus.Nth - p.codecs[b].mbus.Nth })
	for _, i := range order {
		r, ok := p.codecs[i].encodeRecord(values[i])
		if !ok {
			return nil, fmt.Errorf("point %s: no record holds %s", p.Points[i].Name, values[i])
		}
		records = append(records, r.Append(nil))
	}
	return records, nil
}

// encodeRecord chooses the coarsest code that holds a value exactly, or else
// the finest that holds it at all.
func (c *codec) encodeRecord(v telemetry.Value) (r mbus.Record, ok bool) {
	s := c.mbus
	codes := mbus.Codes(s.Quantity, s.With)
	if s.Label != "" {
		codes = []mbus.Record{{Label: s.Label, Unit: s.pt.Unit}}
	} else if s.VIF != nil {
		code, _ := mbus.Code(s.VIF)
		codes = []mbus.Record{code}
	}
	exact := false
	for _, code := range codes {
		code.Function, code.Storage, code.Tariff, code.Subunit = s.function, uint64(s.Storage), uint32(s.Tariff), uint32(s.Subunit)
		whole := false
		switch x, isNumber := valueRat(v); {
		case c.act == actString && isNumber: // a point in time
			code.Value = mbus.Value{Form: mbus.Integer, Int: x.Num().Int64()}
		case c.act == actString:
			code.Value = mbus.Value{Form: mbus.Text, Str: v.Text()}
		case c.act != actNumber:
			raw, err := c.rawOf(v, &c.num)
			if err != nil {
				continue
			}
			code.Value = mbus.Value{Form: mbus.Integer, Int: int64(raw)}
		default:
			num := s.number(code.Unit, code.Exp)
			if num == nil || !isNumber {
				continue
			}
			x.Sub(x, num.offset).Quo(x, num.scale)
			n := roundRat(x)
			if whole = x.IsInt(); !n.IsInt64() || n.Int64() != int64(int32(n.Int64())) || int32(n.Int64()) == math.MinInt32 {
				continue
			}
			code.Value = mbus.Value{Form: mbus.Integer, Int: n.Int64()}
		}
		if !ok || c.act == actString || whole && code.Unit == r.Unit && (!exact || code.Exp > r.Exp) {
			r, ok, exact = code, true, whole
		}
	}
	return r, ok
}

// lookMBus judges an M-Bus frame at the start of b.
func lookMBus(b []byte) (verdict, int) {
	_, n, err := mbus.ParseFrame(b)
	switch {
	case errors.Is(err, mbus.ErrShort):
		return wait, 0
	case err != nil:
		return bad, 0
	}
	return whole, n
}

// String returns the place for lists: volume, energy tariff 1, power maximum.
func (m *MBus) String() string {
	s := m.Quantity + m.Label
	if m.VIF != nil {
		s = "VIF " + strings.ToUpper(fmt.Sprintf("% x", []byte(m.VIF)))
	}
	if m.Header != "" {
		s = "header " + m.Header
	}
	for _, w := range append(slices.Clone(m.With), m.Function) {
		if w != "" {
			s += " " + w
		}
	}
	for _, n := range [...]struct {
		word string
		n    int
	}{{"storage", m.Storage}, {"tariff", m.Tariff}, {"subunit", m.Subunit}, {"number", m.Nth}} {
		if n.n != 0 {
			s += fmt.Sprintf(" %s %d", n.word, n.n)
		}
	}
	return s
}
