package mbus

import (
	"fmt"
	"strconv"
)

// Function says what kind of value a record holds.
type Function uint8

// The functions.
const (
	Instantaneous Function = iota
	Maximum
	Minimum
	DuringError
)

var functionNames = [...]string{"instantaneous", "maximum", "minimum", "error"}

// String returns instantaneous, maximum, minimum or error.
func (f Function) String() string { return functionNames[f&3] }

// Telegram is what a meter says in one frame.
type Telegram struct {
	Header  bool   // the eight bytes of the secondary address are there: ID to Device
	Short   bool   // access number and status are there
	ID      string // identification number: eight digits, which should be decimal
	Maker   string // three letters
	Version byte
	Device  byte // type of the device: 4 heat (outlet), 7 water, 3 gas, ...
	Fixed   bool // the old fixed structure: Device is one of its sixteen media
	Access  byte
	Status  byte
	Sign    uint16 // signature, or how the telegram is encrypted
	Records []Record
	Own     []byte // what the maker has added in a form of its own
	More    bool   // more telegrams follow
}

// Record is one value of a telegram.
type Record struct {
	Function   Function
	Storage    uint64 // 0 is the current value
	Tariff     uint32
	Subunit    uint32
	VIF        []byte   // VIF and VIFEs as they came; a plain text is left out
	Quantity   string   // energy, volume, ...; "" for codes that the standard reserves
	Qualifiers []string // what the VIFEs make of it: l1, per_hour, backward, ...
	Label      string   // VIF in plain text
	Unit       string   // SenML or UCUM symbol; "" = none
	Exp        int      // the value in Unit is the number x 10^Exp
	Error      byte     // with the fault Refused: the error code of the meter
	Value      Value
}

// statusNames are the application errors of CI 70.
var statusNames = [...]string{"unspecified", "unimplemented CI field", "the answer would be too long", "too many records",
	"premature end of record", "more than 10 DIFEs", "more than 10 VIFEs", "", "busy with another readout", "too many readouts"}

// ApplicationError is an error that a meter reports in place of data. It
// wraps ErrApplication.
type ApplicationError struct{ Code int } // -1: none was given

// Error returns what the standard calls the code.
func (e *ApplicationError) Error() string {
	s := "the meter reports an error"
	if e.Code >= 0 && e.Code < len(statusNames) && statusNames[e.Code] != "" {
		return s + ": " + statusNames[e.Code]
	} else if e.Code >= 0 {
		return s + " with the code " + strconv.Itoa(e.Code)
	}
	return s
}

// Unwrap returns ErrApplication.
func (e *ApplicationError) Unwrap() error { return ErrApplication }

// Parse decodes the data of a meter's answer. A telegram is whole or it is
// not there at all: with an error there are no records.
func Parse(f Frame) (*Telegram, error) {
	if !f.Long {
		return nil, fmt.Errorf("%w: it carries no data", ErrFrame)
	}
	if f.FromMaster() {
		return nil, fmt.Errorf("%w: a master sent it", ErrFrame)
	}
	t, b := &Telegram{}, f.Data
	big := f.CI&4 != 0 && f.CI <= 0x77 // mode 2: most significant byte first
	switch f.CI {
	case 0x70:
		e := &ApplicationError{Code: -1}
		if len(b) > 0 {
			e.Code = int(b[0])
		}
		return nil, e
	case 0x73, 0x77:
		if err := t.fixed(b, big); err != nil {
			return nil, err
		}
		return t, nil
	case 0x72, 0x76:
		if len(b) < 12 {
			return nil, fmt.Errorf("%w: its header has %d bytes of 12", ErrPremature, len(b))
		}
		t.Header, t.Short = true, true
		t.ID = digits(order(b[:4], big))
		m := order(b[4:6], big)
		t.Maker = makerName(uint16(unsigned(m)))
		t.Version, t.Device, t.Access, t.Status = b[6], b[7], b[8], b[9]
		t.Sign = uint16(unsigned(order(b[10:12], big)))
		b = b[12:]
	case 0x7A:
		if len(b) < 4 {
			return nil, fmt.Errorf("%w: its header has %d bytes of 4", ErrPremature, len(b))
		}
		t.Short, t.Access, t.Status, t.Sign = true, b[0], b[1], uint16(b[2])|uint16(b[3])<<8
		b = b[4:]
	case 0x78:
	default:
		return nil, fmt.Errorf("%w: CI %02X", ErrCI, f.CI)
	}
	if mode := t.Sign >> 8 & 31; (mode == 5 || mode == 7) && t.Sign>>4&15 != 0 && !(len(b) > 1 && b[0] == filler && b[1] == filler) {
		return nil, ErrEncrypted
	}
	if err := t.records(b, big); err != nil {
		return nil, err
	}
	return t, nil
}

// digits writes packed digits, least significant byte first.
func digits(b []byte) string { return fmt.Sprintf("%0*X", 2*len(b), unsigned(b)) }

// order returns bytes least significant first.
func order(b []byte, big bool) []byte {
	if !big {
		return b
	}
	out := make([]byte, len(b))
	for i, x := range b {
		out[len(b)-1-i] = x
	}
	return out
}

// makerName returns the three letters of a manufacturer code.
func makerName(x uint16) string {
	return string([]byte{byte(x>>10&31) + 64, byte(x>>5&31) + 64, byte(x&31) + 64})
}

// MakerCode is the inverse of Telegram.Maker; ok is false for what is no
// three capital letters.
func MakerCode(name string) (code uint16, ok bool) {
	if len(name) != 3 {
		return 0, false
	}
	for i := range 3 {
		if name[i] < 'A' || name[i] > 'Z' {
			return 0, false
		}
		code = code<<5 | uint16(name[i]-64)
	}
	return code, true
}

// Address returns the secondary address: sixteen hexadecimal digits as they
// are sent, identification number, maker, version and device type.
func (t *Telegram) Address() string {
	var m uint16
	for i := range len(t.Maker) {
		m = m<<5 | uint16(t.Maker[i]-64)
	}
	return fmt.Sprintf("%s%02X%02X%02X%02X", t.ID, byte(m), byte(m>>8), t.Version, t.Device)
}

// Data fields of a DIF that are not values, and special DIFs.
const (
	noData    = 0x0
	selection = 0x8
	variable  = 0xD
	special   = 0xF

	ownLast = 0x0F // maker's data to the end
	ownMore = 0x1F // likewise, and more telegrams follow
	filler  = 0x2F
	global  = 0x7F // only in requests: readout of everything
)

// mostExtensions is how many DIFEs or VIFEs a record may have.
const mostExtensions = 10

// records decodes the variable structure.
func (t *Telegram) records(b []byte, big bool) error {
	for at := 0; at < len(b); {
		switch dif := b[at]; dif {
		case filler:
			at++
			continue
		case ownLast, ownMore:
			t.More, t.Own = dif == ownMore, b[at+1:]
			return nil
		default:
			if dif&15 == special {
				return fmt.Errorf("%w: DIF %02X at byte %d", ErrReserved, dif, at)
			}
		}
		var r Record
		n, err := r.decode(b[at:], big)
		if err != nil {
			return fmt.Errorf("%w: record %d at byte %d", err, len(t.Records), at)
		}
		t.Records = append(t.Records, r)
		at += n
	}
	return nil
}

// decode reads a record at the start of b and returns its size.
func (r *Record) decode(b []byte, big bool) (int, error) {
	dif := b[0]
	r.Function, r.Storage = Function(dif>>4&3), uint64(dif>>6&1)
	at := 1
	for more, n := dif&0x80 != 0, 0; more; n++ {
		switch {
		case at >= len(b):
			return 0, ErrPremature
		case n >= mostExtensions:
			return 0, fmt.Errorf("%w: DIFEs", ErrTooLong)
		}
		x := b[at]
		r.Storage |= uint64(x&15) << (4*n + 1)
		r.Tariff |= uint32(x>>4&3) << (2 * n)
		r.Subunit |= uint32(x>>6&1) << n
		more = x&0x80 != 0
		at++
	}
	if at >= len(b) {
		return 0, ErrPremature
	}
	field := dif & 15
	c, n, err := r.vib(b[at:], big)
	if err != nil {
		return 0, err
	}
	at += n
	size := [16]int{1: 1, 2: 2, 3: 3, 4: 4, 5: 4, 6: 6, 7: 8, 9: 1, 10: 2, 11: 3, 12: 4, 14: 6}[field]
	if field != variable {
		if at+size > len(b) {
			return 0, ErrPremature
		}
		r.take(order(b[at:at+size], big), field, c)
		return at + size, r.refuse()
	}
	if at >= len(b) {
		return 0, ErrPremature
	}
	n, err = r.variable(b[at:], big, c)
	if err != nil {
		return 0, err
	}
	return at + n, r.refuse()
}

// refuse takes the value away that the meter itself says is none.
func (r *Record) refuse() error {
	if r.Error != 0 {
		r.Value = Value{Fault: Refused}
	}
	return nil
}

// vib reads VIF and VIFEs. c is the row of the table, or one that says
// nothing.
func (r *Record) vib(b []byte, big bool) (c code, at int, err error) {
	vif := b[0]
	more := vif&0x80 != 0
	r.VIF, at = append(r.VIF, vif), 1
	x, table := vif&0x7F, primary
	switch x {
	case 0x7C: // plain text, with its length
		if len(b) < 2 || 2+int(b[1]) > len(b) {
			return c, 0, ErrPremature
		}
		n := int(b[1])
		r.Label, r.Quantity, at = text(order(b[2:2+n], big)), "text", 2+n
		table = nil
	case 0x7B, 0x7D:
		switch {
		case !more: // no table follows, so it says nothing
			return c, 1, nil
		case len(b) < 2:
			return c, 0, ErrPremature
		}
		if table = tableFD; x == 0x7B {
			table = tableFB
		}
		r.VIF, at = append(r.VIF, b[1]), 2
		x, more = b[1]&0x7F, b[1]&0x80 != 0
	}
	if row := find(table, x); row != nil {
		c = *row
		r.Quantity, r.Unit, r.Exp = c.quantity, c.unit, int(c.exp)
		switch c.how {
		case tens:
			r.Exp += int(x - c.lo)
		case clock:
			r.Unit, r.Exp = clocks[min(int(c.exp)+int(x-c.lo), 3)], 0
		}
	}
	maker, second := x == 0x7F && len(r.VIF) == 1, false
	for n := 0; more; n++ {
		switch {
		case at >= len(b):
			return c, 0, ErrPremature
		case n >= mostExtensions:
			return c, 0, fmt.Errorf("%w: VIFEs", ErrTooLong)
		}
		e := b[at] & 0x7F
		more = b[at]&0x80 != 0
		r.VIF = append(r.VIF, b[at])
		at++
		if e == 0x7C && !second && !maker && more {
			second = true
			continue
		}
		r.extend(&c, e, maker, second)
		maker, second = maker || e == 0x7F && !second, false
	}
	return c, at, nil
}

// extend applies one VIFE.
func (r *Record) extend(c *code, e byte, maker, second bool) {
	switch unit, duration := isDuration(e); {
	case maker: // what it means is the maker's business
		r.Qualifiers = append(r.Qualifiers, fmt.Sprintf("maker_%02x", e))
	case second:
		if e == 0x11 {
			c.how = whole // the data is of type C
		}
		if e != 0x11 && e != 0x12 {
			r.Qualifiers = append(r.Qualifiers, qualifier(e, true))
		}
	case e == 0x00:
	case e < 0x10 || e >= 0x15 && e < 0x1D:
		r.Error = e
	case e >= 0x70 && e <= 0x77:
		r.Exp += int(e&7) - 6
	case e == 0x7D:
		r.Exp += 3
	case isMoment(e):
		c.how, r.Unit, r.Exp = moment, "", 0
		r.Qualifiers = append(r.Qualifiers, qualifier(e, false))
	case duration:
		c.how, r.Unit, r.Exp = plain, unit, 0
		r.Qualifiers = append(r.Qualifiers, qualifier(e, false))
	case e&^8 == 0x41: // how often a limit was exceeded
		c.how, r.Unit, r.Exp = whole, "", 0
		fallthrough
	default:
		r.Qualifiers = append(r.Qualifiers, qualifier(e, false))
	}
}

// take decodes the value of a data field of fixed size.
func (r *Record) take(b []byte, field byte, c code) {
	switch {
	case field == noData || field == selection:
		r.Value = Value{Fault: NoValue}
	case field == 5:
		r.Value = real32(b)
	case field >= 9:
		r.Value = bcd(b)
	case c.how == moment:
		r.Value = readMoment(b)
	case c.how == whole:
		r.Value = natural(b)
	default:
		r.Value = integer(b)
	}
}

// variable decodes a value with its length (LVAR) and returns its size.
func (r *Record) variable(b []byte, big bool, c code) (int, error) {
	l := int(b[0])
	size := 0
	switch {
	case l <= 0xBF:
		size = l
	case l <= 0xC9:
		size = l - 0xC0
	case l >= 0xD0 && l <= 0xD9:
		size = l - 0xD0
	case l >= 0xE0 && l <= 0xEF:
		size = l - 0xE0
	case l >= 0xF0 && l <= 0xF4:
		size = 4 * (l - 0xEC)
	case l == 0xF5 || l == 0xF6:
		size = 48 + 16*(l-0xF5)
	default:
		return 0, fmt.Errorf("%w: LVAR %02X", ErrLength, l)
	}
	if 1+size > len(b) {
		return 0, ErrPremature
	}
	data := order(b[1:1+size], big)
	switch {
	case size == 0:
		r.Value = Value{Fault: NoValue}
	case l <= 0xBF:
		r.Value = Value{Form: Text, Str: text(data)}
	case l <= 0xD9:
		r.Value = bcd(data)
		if l >= 0xD0 {
			r.Value.Int = -r.Value.Int
		}
	case size > 8:
		r.Value = Value{Form: Bytes, Raw: data}
	case c.how == moment:
		r.Value = readMoment(data)
	case c.how == whole:
		r.Value = natural(data)
	default:
		r.Value = integer(data)
	}
	return 1 + size, nil
}
