// Package profile holds what an instrument can say, as data.
//
// A profile is one YAML file with the whole register map (or the whole
// serial frame) of one device model and the proof that it is right: bytes
// recorded on the wire with the values they mean. [Load] opens the built-in
// library and the folders of a site, [Library.Get] gives one profile ready
// for use, and [Custom] makes the same thing of points written in the
// configuration. From then on a profile is read-only and safe for
// concurrent use: [Profile.Plan] says what to ask, [Profile.Decode] and
// [Profile.DecodeFrame] turn answers into readings, [Profile.Encode] is
// their inverse for simulators, [Profile.Test] runs the examples.
//
// No value is ever guessed: a short block, a marker, a NaN, an empty field
// or a frame whose check fails gives a quality with a cause, or nothing.
package profile

import (
	"strconv"
	"time"

	"tidegate/internal/telemetry"
)

// Profile is one device model. The exported fields are the YAML file; they
// must not be changed once the profile has been given out.
type Profile struct {
	Name      string   `yaml:"name" required:"true" doc:"Name of the profile; the file is called NAME.yaml."`
	Title     string   `yaml:"title" doc:"The device in one line, for lists."`
	Vendor    string   `yaml:"vendor" doc:"Maker of the device."`
	Models    []string `yaml:"models" doc:"Model names as printed on the devices."`
	Domain    string   `yaml:"domain" enum:"energy,water,transport,environment,health,security,other" doc:"Field of use."`
	Status    string   `yaml:"status" required:"true" enum:"captured,second-hand,community" doc:"captured: proven by bytes of a real device; second-hand: taken from other software or manuals; community: reported by users, unproven."`
	Sources   []string `yaml:"sources" doc:"Where the facts come from."`
	Notes     string   `yaml:"notes" doc:"Quirks that the person at the cabinet must know."`
	Extends   string   `yaml:"extends" doc:"Name of the profile this one starts from."`
	Omit      []string `yaml:"omit" doc:"Points of the extended profile that this device does not have."`
	Transport string   `yaml:"transport" enum:"modbus,serial" doc:"modbus (any framing) or serial (the device talks by itself)."`
	Line      string   `yaml:"line" doc:"Factory setting of the serial line, such as 9600 8N1."`
	Unit      int      `yaml:"unit" min:"0" max:"255" doc:"Factory unit address."`

	Every   time.Duration `yaml:"every" doc:"Suggested period of polling."`
	Timeout time.Duration `yaml:"timeout" doc:"How long this device may take to answer."`
	Gap     time.Duration `yaml:"gap" doc:"Silence this device wants before a request."`

	Wake *Wake `yaml:"wake" doc:"What wakes the device before a request."`

	MaxRead   int        `yaml:"max_read" min:"0" max:"125" doc:"Most registers in one request; 0 = 125."`
	MaxBits   int        `yaml:"max_bits" min:"0" max:"2000" doc:"Most coils or inputs in one request; 0 = 2000."`
	MaxGap    *int       `yaml:"max_gap" min:"0" max:"124" doc:"Most unused registers to read across; 0 = never read what no point uses."`
	Atomic    [][]string `yaml:"atomic" doc:"Groups of points that are read in one request, because they belong together: [[energy_high, energy_low]]."`
	Forbidden []Region   `yaml:"forbidden" doc:"Addresses that must not be touched, not even when reading across them."`

	Handshake *Handshake `yaml:"handshake" doc:"Manner of speaking that is written in code; its name alone will do."`
	Frames    *Frames    `yaml:"frames" doc:"How the bytes of a serial device are cut into frames."`
	Talk      *Talk      `yaml:"talk" doc:"What is sent to a serial device, and when."`
	Points    []Point    `yaml:"points,keyed" doc:"What the device says, by name."`
	Detect    []Probe    `yaml:"detect" doc:"Reads that tell this device from others: two or more, each with a plausible range or value."`
	Examples  []Example  `yaml:"examples" doc:"Recorded bytes and what they mean."`

	codecs []codec
	raw    rawFrames
}

// Wake is what a device wants on the line before it listens to a request.
type Wake struct {
	Bytes Hex           `yaml:"bytes" doc:"Bytes that wake it, such as 00; none: only the pause."`
	Pause time.Duration `yaml:"pause" doc:"Pause between them and the request (1ms to 1s)."`
	Idle  time.Duration `yaml:"idle" doc:"How long it may have been left alone without falling asleep again; 0: it is woken before each request."`
}

// Region is a stretch of addresses of one table, both ends included.
type Region struct {
	Coil     []int `yaml:"coil" doc:"First and last coil, wire addresses from 0."`
	Discrete []int `yaml:"discrete" doc:"First and last discrete input."`
	Holding  []int `yaml:"holding" doc:"First and last holding register."`
	Input    []int `yaml:"input" doc:"First and last input register."`
}

// Point is one value of the device: where it stands, how it is written
// there, and what it means. Exactly one place is given: coil, discrete,
// holding, input or register for Modbus; at for binary frames; field, nmea
// or xdr for text.
type Point struct {
	Name  string `yaml:"-"`
	Title string `yaml:"title" doc:"The point in words."`

	Coil     *int `yaml:"coil" min:"0" max:"65535" doc:"Wire address of a coil, from 0."`
	Discrete *int `yaml:"discrete" min:"0" max:"65535" doc:"Wire address of a discrete input, from 0."`
	Holding  *int `yaml:"holding" min:"0" max:"65535" doc:"Wire address of a holding register, from 0."`
	Input    *int `yaml:"input" min:"0" max:"65535" doc:"Wire address of an input register, from 0."`
	Register *int `yaml:"register" min:"1" max:"465536" doc:"Number of the manual, from 1: 40021, 400021, 30001, 10001 or 1 for a coil."`

	Modem   string    `yaml:"modem" enum:"cts,dsr,ri,dcd" doc:"Input line of the serial port."`
	SunSpec []SunSpec `yaml:"sunspec" doc:"Where the point stands in the models of SunSpec, with handshake: sunspec."`

	At     *int               `yaml:"at" min:"0" max:"4095" doc:"Offset of the field in a binary frame, from 0."`
	Field  *int               `yaml:"field" min:"0" max:"255" doc:"Field of a text line split by commas; 0 stands before the first comma."`
	NMEA   string             `yaml:"nmea" doc:"Sentence type without the talker, such as MWV."`
	XDR    *XDR               `yaml:"xdr" doc:"Transducer of an XDR sentence, chosen by its name."`
	OBIS   string             `yaml:"obis" doc:"Telegram: the code of the value, such as 1-0:1.8.1; n stands for any channel: 0-n:24.2.1."`
	Device []int              `yaml:"device" doc:"Telegram: types of the device on the channel n: 3 gas, 4 heat, 6 and 7 water. With several, the newest value counts. M-Bus: types of the meter that has this point."`
	MBus   *MBus              `yaml:"mbus" doc:"M-Bus: which record of the telegram it is."`
	Key    string             `yaml:"key" doc:"Text of pairs such as SPO2=098: the key before the value."`
	Group  string             `yaml:"group" doc:"Named group of the patterns of the frames."`
	Join   []Bits             `yaml:"join" doc:"Binary frame: bits of several bytes make the number, the most significant first."`
	Of     string             `yaml:"of" enum:"record,block,frame" doc:"Frame with records: where the point stands; record if not given."`
	Where  map[int64][]string `yaml:"where" doc:"Fields that a line must hold for this point to be in it: {2: R}. In binary frames offsets and bytes: {3: 0x81}, or bits: {0: bit4=1}."`
	Valid  map[int64][]string `yaml:"valid" doc:"Status fields: with any other content the device says that it has no value. In binary frames as where."`
	By     *UnitField         `yaml:"by" doc:"A field that names the unit of the value, and the factor for each unit."`
	Or     []Source           `yaml:"or" doc:"Other sentences that carry the same point."`

	Type   string `yaml:"type" enum:"u8,s8,u16,s16,u24,s24,u32,s32,u64,s64,f32,f64,bcd16,bcd24,bcd32,bcd48,bcd64,string,bit,number,hex,hextext,degmin" doc:"How the value is written; u16 for registers, bit for coils and inputs, number for text fields if not given. hex: hexadecimal digits; hextext: text written as hexadecimal digits of its characters; degmin: degrees and minutes in one number, as NMEA has them."`
	Order  string `yaml:"order" enum:"ABCD,CDAB,BADC,DCBA,big,little" doc:"Order of the bytes as sent. CDAB: words reversed; BADC: bytes reversed in each word; DCBA = little: both."`
	Byte   string `yaml:"byte" enum:"low,high" doc:"Which half of a register a u8 or s8 takes; low if not given."`
	Length int    `yaml:"length" min:"0" max:"250" doc:"Length of a string: registers in Modbus, bytes in a frame."`
	Bit    *int   `yaml:"bit" min:"0" max:"63" doc:"One bit of the number, 0 = least significant."`
	Bits   []int  `yaml:"bits" doc:"First and last bit of a part of the number, 0 = least significant."`
	Invert bool   `yaml:"invert" doc:"For bits: true when the bit is 0 (normally closed contacts)."`

	ValidBit *int               `yaml:"valid_bit" min:"0" max:"63" doc:"A bit of the number that is set if there is a value."`
	Fraction int                `yaml:"fraction" min:"0" max:"32" doc:"So many low bits are a fraction that counts away from zero, also below it; the bits above are the signed whole part."`
	Suffix   map[string]Decimal `yaml:"suffix" doc:"What may stand behind the digits of a text field, and the factor for each: {D: 1, '%': 1, none: 1}, where none is nothing at all. With any other there is no value."`

	Scale    Decimal          `yaml:"scale" doc:"Factor, exact: 0.1, 1e-3 or 1/256."`
	Offset   Decimal          `yaml:"offset" doc:"Added after the factor."`
	SF       Ref              `yaml:"sf" doc:"Scale-factor register (power of ten, s16): a point of this profile or a wire address in the same table."`
	Decimals *int             `yaml:"decimals" min:"0" max:"18" doc:"Round to this many decimals, half away from zero."`
	Unit     string           `yaml:"unit" doc:"SenML or UCUM symbol, such as V, Cel, kWh, %RH."`
	Kind     string           `yaml:"kind" enum:"gauge,counter,state,event,text" doc:"gauge if not given; state for bits, enums and flags; text for strings."`
	Class    string           `yaml:"class" enum:"data,alarm" doc:"alarm: every change is an event and travels at once."`
	Range    []Decimal        `yaml:"range" doc:"Lowest and highest plausible value; outside the value is kept with quality range."`
	NA       []Marker         `yaml:"na" doc:"Raw contents that mean that there is no value: 0x7FFF, -1, or a text."`
	Enum     map[int64]string `yaml:"enum" doc:"Words for the raw numbers."`
	Flags    map[int64]string `yaml:"flags" doc:"Words for the bits that are set, by bit number."`
	Write    *Write           `yaml:"write" doc:"What may be written to a coil or holding register."`
}

// Bits are neighbouring bits of one byte of a frame.
type Bits struct {
	At   int   `yaml:"at" min:"0" max:"4095" doc:"Offset of the byte."`
	Bits []int `yaml:"bits" doc:"First and last bit, 0 = least significant; all eight if not given."`
}

// XDR chooses one transducer of an NMEA XDR sentence.
type XDR struct {
	Name string `yaml:"name" required:"true" doc:"Fourth field of the group of four."`
	Type string `yaml:"type" doc:"First field of the group, such as C for temperature."`
	Unit string `yaml:"unit" doc:"Third field that the scale belongs to; with another unit there is no value."`
}

// UnitField scales a text field by the unit that another field names.
type UnitField struct {
	Field   int                `yaml:"field" min:"0" max:"255" doc:"Field that names the unit."`
	Factors map[string]Decimal `yaml:"factors" required:"true" doc:"Factor for each content of that field; any other content means no value."`
}

// Source is another place where a text point stands. Each source speaks for
// itself: one that comes empty says that there is no value.
type Source struct {
	NMEA   string             `yaml:"nmea" doc:"Sentence type without the talker."`
	Field  *int               `yaml:"field" min:"0" max:"255" doc:"Field with the value."`
	XDR    *XDR               `yaml:"xdr" doc:"Transducer of an XDR sentence."`
	OBIS   string             `yaml:"obis" doc:"Code in a telegram."`
	Device []int              `yaml:"device" doc:"Types of the device on the channel."`
	Key    string             `yaml:"key" doc:"Key before the value."`
	Group  string             `yaml:"group" doc:"Named group of the patterns."`
	Where  map[int64][]string `yaml:"where" doc:"Fields that the line must hold."`
	Valid  map[int64][]string `yaml:"valid" doc:"Status fields."`
	By     *UnitField         `yaml:"by" doc:"Field that names the unit."`
	Scale  Decimal            `yaml:"scale" doc:"Factor of this source; the point's own is not used."`
	Offset Decimal            `yaml:"offset" doc:"Added after the factor."`
}

// Write says what may be written to a point. It is checked when the profile
// is loaded; values that break it are never sent.
type Write struct {
	Min  Decimal `yaml:"min" doc:"Lowest value that may be written."`
	Max  Decimal `yaml:"max" doc:"Highest value that may be written."`
	Step Decimal `yaml:"step" doc:"Values must be a multiple of this above min."`
	// Every is the least time between two writes that the cloud asks for;
	// somebody at the gateway is not held to it. 0 is 1 s.
	Every time.Duration `yaml:"every" doc:"Least time between two writes by commands from the cloud; 1s if not given."`
	// Function is the Modbus function code that writes it: 5 or 15 for a
	// coil, 6, 16, 22 or 23 for registers. 0 takes 5 for a coil, 6 for one
	// register, 16 for several, and 22 for a part of a register.
	Function int `yaml:"function" min:"5" max:"23" doc:"Function code that writes it, where the device wants another than the usual one: 5 or 15 for a coil; 6, 16, 22 or 23 for registers."`
}

// Probe is one read that helps to recognise a device: a place, a type, and
// the range or the value it must have.
type Probe struct {
	Point `yaml:",inline"`
	Is    Marker `yaml:"is" doc:"The value must be exactly this number or text."`
}

// Issue is one mistake in points written in the configuration. Path is
// relative to the device: "points.supply.scale" or "frames.kind".
type Issue struct{ Path, Msg, Hint string }

// Table is one of the four address spaces of Modbus. Its number is the
// function code that reads it.
type Table uint8

// The tables.
const (
	Coils    Table = 1 // bits that can be written
	Discrete Table = 2 // bits, read only
	Holding  Table = 3 // registers that can be written
	Input    Table = 4 // registers, read only
)

// String returns coil, discrete, holding or input, the words of the YAML files.
func (t Table) String() string {
	switch t {
	case Coils:
		return "coil"
	case Discrete:
		return "discrete"
	case Holding:
		return "holding"
	case Input:
		return "input"
	}
	return "table-" + strconv.Itoa(int(t))
}

// Bits says whether the table holds single bits.
func (t Table) Bits() bool { return t == Coils || t == Discrete }

// TelemetryPoints returns the points as the catalog of a gateway knows
// them, in the order of Points.
func (p *Profile) TelemetryPoints(device string) []telemetry.Point {
	out := make([]telemetry.Point, len(p.Points))
	for i := range p.Points {
		pt, c := &p.Points[i], &p.codecs[i]
		out[i] = telemetry.Point{Device: device, Name: pt.Name, Unit: pt.Unit,
			Kind: pt.kind(), Decimals: int(c.num.dec)}
		if pt.Class == "alarm" {
			out[i].Class = telemetry.ClassAlarm
		}
	}
	return out
}

// Place returns the table and wire address of a Modbus point; ok is false
// for points of serial frames.
func (pt *Point) Place() (t Table, addr uint16, ok bool) {
	for _, c := range [...]struct {
		t Table
		a *int
	}{{Coils, pt.Coil}, {Discrete, pt.Discrete}, {Holding, pt.Holding}, {Input, pt.Input}} {
		if c.a != nil {
			return c.t, uint16(*c.a), true
		}
	}
	if pt.Register != nil {
		return manualPlace(*pt.Register)
	}
	return 0, 0, false
}

// inText says whether the point is found by the structure of a text.
func (pt *Point) inText() bool {
	return pt.Field != nil || pt.NMEA != "" || pt.XDR != nil || pt.Key != "" || pt.Group != "" || pt.OBIS != ""
}

// kind returns the kind with its default.
func (pt *Point) kind() string {
	switch t := pt.valueType(); {
	case pt.Kind != "":
		return pt.Kind
	case len(pt.Enum) > 0 || len(pt.Flags) > 0 || t == "bit":
		return "state"
	case t == "string" || t == "hextext":
		return "text"
	}
	return "gauge"
}

// valueType returns the type with its default.
func (pt *Point) valueType() string {
	t, _, modbus := pt.Place()
	switch {
	case pt.Type == "bit" || pt.Bit != nil || pt.Modem != "" || pt.Type == "" && modbus && t.Bits():
		return "bit"
	case pt.Type != "":
		return pt.Type
	case pt.inText(), pt.MBus != nil && len(pt.Bits) == 0:
		return "number"
	}
	return "u16"
}

// ManualNumber returns the number a manual prints for a wire address: 30001
// for input 0, 40001 for holding 0, 10001 for discrete 0, 1 for coil 0, and
// the form with six digits from address 9999 on.
func ManualNumber(t Table, addr uint16) int {
	base := [...]int{Coils: 0, Discrete: 1, Holding: 4, Input: 3}
	if int(t) >= len(base) || t == 0 {
		return 0
	}
	if addr >= 9999 {
		return base[t]*100000 + int(addr) + 1
	}
	return base[t]*10000 + int(addr) + 1
}

// manualPlace is the inverse of ManualNumber. Numbers that no manual uses
// (20000, 50001, 10000) are not ok.
func manualPlace(n int) (Table, uint16, bool) {
	tables := map[int]Table{0: Coils, 1: Discrete, 3: Input, 4: Holding}
	digits := 10000
	if n >= 100000 {
		digits = 100000
	}
	t, ok := tables[n/digits]
	addr := n%digits - 1
	if !ok || addr < 0 || addr > 65535 {
		return 0, 0, false
	}
	return t, uint16(addr), true
}
