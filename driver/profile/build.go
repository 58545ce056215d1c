package profile

import (
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidegate/internal/telemetry"
)

// report is how a mistake is told: the path of the value, what is wrong,
// and what to write instead.
type report func(path, msg, hint string)

var (
	nameForm = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,63}$`)
	lineForm = regexp.MustCompile(`^[1-9][0-9]{1,6} [5-8][NEOMS](1|1\.5|2)$`)
)

// Custom makes a profile of points written in the configuration of a device
// that has none. frames is nil for Modbus devices. The issues are all
// mistakes found, with paths relative to the device; the profile is usable
// only if there are none.
func Custom(name string, points []Point, frames *Frames) (*Profile, []Issue) {
	p := &Profile{Name: name, Transport: "modbus", Points: points, Frames: frames}
	if frames != nil {
		p.Transport = "serial"
	}
	var issues []Issue
	p.build(func(path, msg, hint string) { issues = append(issues, Issue{path, msg, hint}) })
	return p, issues
}

// build checks everything that stands in the profile and prepares it for use.
func (p *Profile) build(r report) {
	if p.Transport == "" {
		p.Transport = "modbus"
	}
	if p.Line != "" && !lineForm.MatchString(p.Line) {
		r("line", fmt.Sprintf("%q is no line setting", p.Line), "write the baud rate and the format, such as 9600 8N1")
	}
	if p.Handshake == nil && p.Frames != nil && p.Frames.Kind == "mbus" {
		p.Handshake = &Handshake{Kind: "mbus"}
	}
	if p.Handshake != nil && p.Frames == nil && p.Transport == "serial" {
		p.Frames = p.Handshake.frames()
	}
	switch {
	case p.Transport == "serial" && p.Frames == nil:
		r("frames", "a serial device needs frames", "say how its bytes are cut: frames: {kind: line, end: CRLF, check: nmea}")
	case p.Transport == "modbus" && p.Frames != nil:
		r("frames", "frames belong to serial devices", "remove frames, or write transport: serial")
	case p.Frames != nil:
		p.raw = p.Frames.build(sub(r, "frames"))
	}
	switch {
	case p.Talk == nil:
	case p.Transport != "serial":
		r("talk", "talk is for serial devices", "remove talk, or write transport: serial")
	default:
		p.buildTalk(sub(r, "talk"))
	}
	if p.Contacts() && p.Every == 0 {
		p.Every = 50 * time.Millisecond
	}
	p.Wake.Validate(sub(r, "wake"))
	if p.Wake != nil && p.Transport == "serial" {
		r("wake", "wake is for Modbus devices", "put the bytes into talk")
	}
	for i := range p.Forbidden {
		p.Forbidden[i].check(sub(r, "forbidden["+strconv.Itoa(i)+"]"))
	}
	if len(p.Points) == 0 {
		r("points", "there are no points", "write at least one, such as voltage: {input: 0, type: f32, unit: V}")
	}
	p.codecs = make([]codec, len(p.Points))
	for i := range p.Points {
		p.buildPoint(i, sub(r, "points."+p.Points[i].Name))
	}
	p.checkAtomic(r)
	if p.Handshake != nil {
		p.Handshake.build(p, sub(r, "handshake"))
	}
	if p.Frames != nil {
		for i, name := range p.Frames.Once {
			if p.index(name) < 0 {
				r("frames.once["+strconv.Itoa(i)+"]", fmt.Sprintf("there is no point %q", name), "")
			}
		}
	}
	if len(p.Detect) == 1 {
		r("detect", "one read does not prove a device", "give two or more reads with a plausible range or value each")
	}
	for i := range p.Detect {
		p.Detect[i].check(p, sub(r, "detect["+strconv.Itoa(i)+"]"))
	}
	for i := range p.Examples {
		p.Examples[i].check(p, sub(r, "examples["+strconv.Itoa(i)+"]"))
	}
}

// sub returns a report for what stands under prefix.
func sub(r report, prefix string) report {
	return func(path, msg, hint string) {
		if path != "" {
			path = "." + path
		}
		r(prefix+path, msg, hint)
	}
}

func (f *Region) check(r report) {
	n := 0
	for t := Coils; t <= Input; t++ {
		if s := f.of(t); s != nil {
			n++
			if len(s) != 2 || s[0] < 0 || s[0] > s[1] || s[1] > 65535 {
				r(t.String(), "a region is a first and a last address", "write "+t.String()+": [100, 110]")
			}
		}
	}
	if n != 1 {
		r("", "a region names one table", "write holding: [100, 110]")
	}
}

func (d *Probe) check(p *Profile, r report) {
	d.single(p, r)
	if d.Is == "" && len(d.Range) == 0 {
		r("", "a read that accepts any value proves nothing", "give a range such as range: [80, 300], or is: 42")
	}
}

// buildPoint checks point i and fills its codec.
func (p *Profile) buildPoint(i int, r report) {
	pt, c := &p.Points[i], &p.codecs[i]
	if !nameForm.MatchString(pt.Name) {
		r("", fmt.Sprintf("%q is no name for a point", pt.Name), "use lower-case letters, digits, - and _, a letter first")
	}
	if pt.SunSpec != nil {
		p.checkSunSpec(pt, c, r)
		return
	}
	if !p.place(pt, c, r) {
		return
	}
	if pt.MBus != nil {
		p.buildMBus(pt, c, r)
		return
	}
	vt := pt.valueType()
	if written := textType(pt.Type) || pt.Type == "" && vt == "number"; (c.text != nil) != (written || vt == "string" && c.text != nil) {
		if c.text != nil {
			r("type", "a text field is a number or a string", "write type: number, hex, degmin or string, or leave it out")
		} else {
			r("type", "the type "+vt+" is for text fields", "write how the bytes are laid out, such as u16 or f32")
		}
		return
	}
	pt.checkMeaning(r)
	num, ok := pt.numbers(r)
	if !ok {
		return
	}
	c.num = num
	if !p.layout(pt, c, vt, r) {
		return
	}
	if pt.SF != "" {
		p.scaleFactor(pt, c, r)
	}
	pt.markers(c, vt, r)
	pt.words(c, r)
	pt.checkWrite(c, r)
	p.buildSources(pt, c, r)
	p.buildSpot(pt, c, r)
	if c.table != 0 {
		lo, hi := c.span()
		if limit := p.limit(c.table, Limits{}); hi-lo > limit {
			r("", fmt.Sprintf("needs %d registers in one request, the device takes %d", hi-lo, limit), "")
		}
		if hi > 65536 {
			r("", "reaches beyond address 65535", "")
		}
		if p.Forbids(c.table, lo, hi) {
			r("", "stands in a forbidden region", "")
		}
	}
}

// place finds where the point stands: exactly one place.
func (p *Profile) place(pt *Point, c *codec, r report) bool {
	n := 0
	if pt.Modem != "" {
		n++
	}
	for _, a := range []*int{pt.Coil, pt.Discrete, pt.Holding, pt.Input, pt.Register, pt.At} {
		if a != nil {
			n++
		}
	}
	if pt.Join != nil {
		n++
	}
	if pt.MBus != nil {
		n++
	}
	text := pt.inText()
	if text {
		n++
	}
	switch {
	case n == 0 && p.Transport == "serial":
		r("", "the point has no place", "write at: 4 for a binary frame, nmea: MWV with field: 3 for NMEA, or field: 2 for other text")
		return false
	case n == 0:
		r("", "the point has no place", "write one of input: 0, holding: 40, coil: 3, discrete: 2 or register: 40041")
		return false
	case n > 1:
		r("", "the point has more than one place", "keep one of coil, discrete, holding, input, register, at, field")
		return false
	}
	t, addr, modbus := pt.Place()
	switch {
	case pt.Register != nil && !modbus:
		r("register", fmt.Sprintf("%d is no register number of a manual", *pt.Register),
			"numbers are 1.. (coil), 10001.. (discrete), 30001.. (input), 40001.. (holding), or with six digits; for a wire address write holding: or input:")
		return false
	case modbus && p.Transport == "serial":
		r("", "a serial device has no registers", "write at:, field: or nmea:")
		return false
	case !modbus && p.Transport == "modbus":
		r("", "a Modbus device has no frames of its own", "write input:, holding:, coil:, discrete: or register:")
		return false
	case modbus:
		c.table, c.addr = t, addr
		return true
	}
	kind := "line"
	if p.Frames != nil {
		kind = p.Frames.Kind
	}
	columns := pt.At != nil && (textType(pt.Type) || pt.Type == "string" && kind == "line")
	switch {
	case kind == "line" && (pt.Join != nil || pt.At != nil && !columns):
		r("at", "a line of text has columns, not bytes", "write at: and length: with type: number, hex or string, or field:, key: or nmea:")
		return false
	case (kind == "mbus") != (pt.MBus != nil):
		r("mbus", "telegrams of the M-Bus have records, and nothing else has", "write mbus: {quantity: volume} with handshake: mbus, and no other place")
		return false
	case (kind == "modem-lines") != (pt.Modem != ""):
		r("modem", "only modem lines have names, and nothing else has", "write modem: cts, dsr, ri or dcd with frames: {kind: modem-lines}")
		return false
	case (kind == "obis") != (pt.OBIS != "") || kind == "obis" && !text:
		r("obis", "telegrams have OBIS codes, and nothing else has", "write obis: 1-0:1.8.1 with frames: {kind: obis}, and no other place")
		return false
	case text && kind != "line" && kind != "delimited" && kind != "obis":
		r("", "a binary frame has no text fields", "write at:, the offset of the field")
		return false
	case columns && pt.Length == 0:
		r("length", "a column has a width", "write length: 3, the characters it takes")
		return false
	}
	if pt.At != nil {
		c.addr = uint16(*pt.At)
	}
	if text || columns {
		c.text = []textSource{}
	}
	return true
}

// textType says whether a type is written in characters.
func textType(t string) bool { return t == "number" || t == "hex" || t == "hextext" || t == "degmin" }

// modemLines are the input lines of a serial port in the order of the bits of
// their frame.
var modemLines = []string{"cts", "dsr", "ri", "dcd"}

// layout fills loader, widths and action.
func (p *Profile) layout(pt *Point, c *codec, vt string, r report) bool {
	base := pt.Type
	if vt == "bit" && (base == "bit" || base == "") {
		base = "u16"
		if c.table == 0 {
			base = "u8"
		}
	}
	if c.table.Bits() {
		if vt != "bit" || pt.Bit != nil || pt.Bits != nil || pt.Order != "" {
			r("type", "coils and discrete inputs are single bits", "leave out type, order and bits")
			return false
		}
		c.bit1, c.count, c.act, c.invert = true, 1, actBool, pt.Invert
		return true
	}
	if base == "" {
		base = vt
	}
	if pt.Modem != "" {
		if pt.Bit != nil || pt.Order != "" || pt.Enum != nil || pt.Flags != nil || pt.Bits != nil || pt.Type != "" && pt.Type != "bit" {
			r("", "a modem line is on or off", "only invert goes with it")
			return false
		}
		c.load, c.width, c.count, c.act, c.keep, c.invert = load8, 1, 1, actBool, 1, pt.Invert
		c.shift = uint8(slices.Index(modemLines, pt.Modem))
		return true
	}
	if pt.Join != nil {
		return p.layoutJoin(pt, c, vt, r)
	}
	switch base {
	case "string":
		return p.layoutString(pt, c, r)
	case "hex":
		c.load, c.width, c.act = load8, 64, actUint
		return pt.layoutBits(c, vt, base, 64, r)
	case "hextext":
		c.act, c.hexed = actString, true
		return true
	case "degmin":
		c.act = actDegrees
		if pt.Enum != nil || pt.Suffix != nil {
			r("type", "degrees and minutes are a number", "")
		}
		return true
	case "number":
		c.act = actNumber
		if pt.Bit != nil || pt.Bits != nil || pt.Order != "" || len(pt.Flags) > 0 {
			r("", "a text field has no bits and no byte order", "")
			return false
		}
		if len(pt.Enum) > 0 {
			c.act, c.signed, c.width = actEnum, true, 64
		}
		return true
	}
	width, size := widthOf(base)
	if c.table != 0 {
		c.count = uint16((width + 15) / 16)
		if size = 2 * int(c.count); width == 8 {
			size = 1
			c.sub = 1
			if pt.Byte == "high" {
				c.sub = 0
			}
		}
	} else {
		c.count = uint16(size)
	}
	if pt.Byte != "" && (width != 8 || c.table == 0) {
		r("byte", "byte chooses the half of a register for u8 and s8", "remove it")
	}
	var ok bool
	if c.load, c.perm, ok = chooseLoad(size, pt.Order); !ok {
		r("order", fmt.Sprintf("%s has no order %s", base, pt.Order), "write ABCD or DCBA")
		return false
	}
	c.width, c.signed = uint8(width), base[0] == 's'
	switch {
	case base == "f32":
		c.act = actF32
	case base == "f64":
		c.act = actF64
	case base[0] == 'b':
		c.act = actBCD
	case width == 64 && !c.signed:
		c.act = actUint
	default:
		c.act = actInt
	}
	if (c.act == actF32 || c.act == actF64) && !c.num.rounded {
		c.num.dec = 0 // a float has the decimals it has
	}
	return pt.layoutBits(c, vt, base, width, r)
}

// layoutBits takes a part of the number, or gives it words.
func (pt *Point) layoutBits(c *codec, vt, base string, width int, r report) bool {
	integer := c.act == actInt || c.act == actUint
	switch {
	case vt == "bit":
		bit := 0
		if pt.Bit != nil {
			bit = *pt.Bit
		}
		if !integer || bit >= width {
			r("bit", fmt.Sprintf("there is no bit %d in %s", bit, base), "u16 has bits 0 to 15, u32 0 to 31, u64 0 to 63")
			return false
		}
		c.shift, c.width, c.act, c.invert, c.signed = uint8(bit), 1, actBool, pt.Invert, false
	case pt.Bits != nil:
		if !integer || len(pt.Bits) != 2 || pt.Bits[0] < 0 || pt.Bits[0] > pt.Bits[1] || pt.Bits[1] >= width {
			r("bits", "bits are a first and a last bit within the number", fmt.Sprintf("write bits: [0, %d] or less", width-1))
			return false
		}
		c.shift, c.width = uint8(pt.Bits[0]), uint8(pt.Bits[1]-pt.Bits[0]+1)
		c.signed = false
		if c.width < 64 {
			c.act = actInt
		}
	}
	if pt.Invert && vt != "bit" {
		r("invert", "only bits can be inverted", "")
	}
	if (len(pt.Enum) > 0 || len(pt.Flags) > 0) && (!integer || vt == "bit") {
		r("enum", "words need a whole number", "use an integer type")
		return false
	}
	switch {
	case len(pt.Enum) > 0:
		c.act = actEnum
	case len(pt.Flags) > 0:
		c.act = actFlags
	}
	c.keep = mask(uint(c.width))
	return true
}

func (p *Profile) layoutString(pt *Point, c *codec, r report) bool {
	c.act = actString
	if c.text != nil {
		return true
	}
	if pt.Length == 0 {
		r("length", "a string needs a length", "write length: 8, in registers for Modbus and in bytes for frames")
		return false
	}
	c.count = uint16(pt.Length)
	switch pt.Order {
	case "", "ABCD", "big":
		c.load = loadAB
	case "BADC", "little":
		if c.load = loadBA; c.table == 0 {
			r("order", "the bytes of a frame are in reading order", "remove order")
		}
	default:
		r("order", "a string is ABCD or, with the bytes of each register swapped, BADC", "")
		return false
	}
	return true
}

// widthOf returns bits and bytes of an integer, float or BCD type.
func widthOf(t string) (width, size int) {
	width, _ = strconv.Atoi(strings.TrimLeft(t, "usfbcd"))
	return width, width / 8
}

// numbers prepares scale, offset, decimals and range.
func (pt *Point) numbers(r report) (number, bool) {
	if pt.Scale.Given() && pt.Scale.num == 0 {
		r("scale", "a factor of 0 leaves nothing of the value", "")
		return number{}, false
	}
	var lo, hi *big.Rat
	if pt.Range != nil {
		if len(pt.Range) != 2 || pt.Range[0].rat(0).Cmp(pt.Range[1].rat(0)) >= 0 {
			r("range", "a range is a lowest and a highest value", "write range: [-20, 150]")
			return number{}, false
		}
		lo, hi = pt.Range[0].rat(0), pt.Range[1].rat(0)
	}
	return newNumber(pt.Scale.rat(1), pt.Offset.rat(0), pt.Decimals, lo, hi), true
}

// scaleFactor resolves sf and prepares one number for each factor.
func (p *Profile) scaleFactor(pt *Point, c *codec, r report) {
	if c.table == 0 || c.table.Bits() || c.act != actInt && c.act != actUint {
		r("sf", "scale-factor registers belong to whole numbers in registers", "remove sf")
		return
	}
	if n, err := strconv.Atoi(string(pt.SF)); err == nil {
		if n < 0 || n > 65535 {
			r("sf", "an address is 0 to 65535", "")
			return
		}
		c.sfAddr = uint16(n)
	} else {
		k := slices.IndexFunc(p.Points, func(o Point) bool { return o.Name == string(pt.SF) })
		if k < 0 {
			r("sf", fmt.Sprintf("there is no point %q", pt.SF), "name a point of this device, or write the wire address of the register")
			return
		}
		t, addr, _ := p.Points[k].Place()
		if t != c.table {
			r("sf", fmt.Sprintf("%s stands in another table", pt.SF), "value and scale factor must come in one answer")
			return
		}
		c.sfAddr = addr
	}
	c.sf = new([21]number)
	for k := range c.sf {
		scale := new(big.Rat).SetInt(pow10(max(k-10, 10-k)))
		if k < 10 {
			scale.Inv(scale)
		}
		n, _ := pt.numbers(func(string, string, string) {})
		var lo, hi *big.Rat
		if n.ranged {
			lo, hi = pt.Range[0].rat(0), pt.Range[1].rat(0)
		}
		c.sf[k] = newNumber(scale.Mul(scale, pt.Scale.rat(1)), pt.Offset.rat(0), pt.Decimals, lo, hi)
	}
}

// markers prepares na.
func (pt *Point) markers(c *codec, vt string, r report) {
	for i, m := range pt.NA {
		if c.text != nil || vt == "string" {
			c.naText = append(c.naText, strings.TrimSpace(string(m)))
			continue
		}
		if c.bit1 || vt == "bit" {
			r("na", "a bit has no room for a marker", "remove na")
			return
		}
		raw, err := m.bits(uint(c.width), c.act == actF32 || c.act == actF64)
		if err != nil {
			r("na["+strconv.Itoa(i)+"]", err.Error(), "write the raw content of the register, such as 0x7FFF")
			continue
		}
		c.na = append(c.na, raw)
	}
}

// words prepares enum and flags.
func (pt *Point) words(c *codec, r report) {
	if len(pt.Enum) > 0 && len(pt.Flags) > 0 {
		r("flags", "a point has enum or flags, not both", "")
	}
	if c.act == actEnum {
		c.words = make(map[uint64]telemetry.Value, len(pt.Enum))
		for _, n := range slices.Sorted(maps.Keys(pt.Enum)) {
			if c.width < 64 && (n >= 1<<c.width || n < -1<<(c.width-1)) {
				r("enum", fmt.Sprintf("%d does not fit %d bits", n, c.width), "")
				continue
			}
			c.words[uint64(n)&mask(uint(c.width))] = telemetry.TextValue(pt.Enum[n])
		}
	}
	for _, n := range slices.Sorted(maps.Keys(pt.Flags)) {
		if n < 0 || n >= int64(c.width) || strings.Contains(pt.Flags[n], ",") {
			r("flags", fmt.Sprintf("there is no bit %d to call %q", n, pt.Flags[n]), "flags are words without a comma by bit number, from 0")
			continue
		}
		c.flags = append(c.flags, flagWord{uint8(n), pt.Flags[n]})
	}
}

// checkMeaning finds what contradicts itself whatever the layout is.
func (pt *Point) checkMeaning(r report) {
	if pt.Bit != nil && pt.Bits != nil {
		r("bits", "a point has bit or bits, not both", "")
	}
	vt := pt.valueType()
	if pt.Length != 0 && vt != "string" && !textType(pt.Type) {
		r("length", "only strings and columns have a length", "remove it, or write type: string")
	}
	if vt == "bit" || vt == "string" || vt == "hextext" || len(pt.Enum) > 0 || len(pt.Flags) > 0 {
		for _, c := range []struct {
			key   string
			given bool
		}{{"scale", pt.Scale.Given()}, {"offset", pt.Offset.Given()}, {"sf", pt.SF != ""},
			{"decimals", pt.Decimals != nil}, {"range", pt.Range != nil}} {
			if c.given {
				r(c.key, c.key+" is for numbers only", "remove it")
			}
		}
	}
}
