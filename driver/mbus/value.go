package mbus

import (
	"fmt"
	"math"
)

// Form says how the value of a record is held.
type Form uint8

// The forms of a value. None is the zero Form: there is no value.
const (
	None     Form = iota
	Integer       // Int
	Unsigned      // Uint, of 64 bits
	Real          // Float
	Text          // Str
	Moment        // Time
	Bytes         // Raw, least significant first
)

// Fault says why a record has no value.
type Fault uint8

// The faults of a record.
const (
	OK      Fault = iota
	NoValue       // the marker of the standard, or nothing is sent
	NotBCD        // digits that are none
	NotTime       // no date, or marked as not valid
	NotReal       // NaN or infinite
	Refused       // the meter says so: see Record.Error
)

// Value is what a record holds.
type Value struct {
	Form  Form
	Fault Fault // why Form is None
	Int   int64
	Uint  uint64
	Float float32
	Str   string
	Time  Time
	Raw   []byte
}

// Time is a point in time as a meter writes it, in its local time. What is
// not given is -1: types G has no time of day, type J no date.
type Time struct {
	Year, Month, Day     int
	Hour, Minute, Second int
	Summer               bool
}

// String returns the time as ISO 8601 writes it, without a zone.
func (t Time) String() string {
	s := ""
	if t.Day >= 0 {
		s = fmt.Sprintf("%04d-%02d-%02d", t.Year, t.Month, t.Day)
	}
	if t.Hour < 0 {
		return s
	}
	if s != "" {
		s += "T"
	}
	s += fmt.Sprintf("%02d:%02d", t.Hour, t.Minute)
	if t.Second >= 0 {
		s += fmt.Sprintf(":%02d", t.Second)
	}
	return s
}

// integer reads a signed number of 1 to 8 bytes, least significant first
// (type B). The lowest one means that there is none.
func integer(b []byte) Value {
	x := unsigned(b)
	free := 64 - 8*uint(len(b))
	n := int64(x<<free) >> free
	if n == math.MinInt64>>free {
		return Value{Fault: NoValue}
	}
	return Value{Form: Integer, Int: n}
}

func unsigned(b []byte) (x uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		x = x<<8 | uint64(b[i])
	}
	return x
}

// natural reads a number without a sign (type C and D).
func natural(b []byte) Value {
	x := unsigned(b)
	if x > math.MaxInt64 {
		return Value{Form: Unsigned, Uint: x}
	}
	return Value{Form: Integer, Int: int64(x)}
}

// bcd reads decimal digits, least significant byte first (type A). F in the
// highest digit is a minus.
func bcd(b []byte) Value {
	var n int64
	negative := false
	for i := len(b) - 1; i >= 0; i-- {
		hi, lo := b[i]>>4, b[i]&15
		if i == len(b)-1 && hi == 15 {
			negative, hi = true, 0
		}
		if hi > 9 || lo > 9 {
			return Value{Fault: NotBCD}
		}
		n = n*100 + int64(hi)*10 + int64(lo)
	}
	if negative {
		n = -n
	}
	return Value{Form: Integer, Int: n}
}

func real32(b []byte) Value {
	f := math.Float32frombits(uint32(unsigned(b)))
	if f-f != 0 {
		return Value{Fault: NotReal}
	}
	return Value{Form: Real, Float: f}
}

// text reads characters that are sent last first; Latin-1.
func text(b []byte) string {
	out := make([]rune, 0, len(b))
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == 0 && len(out) == 0 {
			continue
		}
		out = append(out, rune(b[i]))
	}
	for len(out) > 0 && (out[len(out)-1] == 0 || out[len(out)-1] == ' ') {
		out = out[:len(out)-1]
	}
	for i, r := range out {
		if r < ' ' || r >= 0x7F && r < 0xA0 {
			out[i] = '\uFFFD'
		}
	}
	return string(out)
}

// readMoment reads a point in time: type G (2 bytes), J (3), F (4) or I (6).
func readMoment(b []byte) Value {
	none := Value{Fault: NotTime}
	t := Time{Year: -1, Month: -1, Day: -1, Hour: -1, Minute: -1, Second: -1}
	date := func(lo, hi byte, century int) {
		t.Day, t.Month = int(lo&31), int(hi&15)
		t.Year = int(lo>>5) | int(hi>>4)<<3
		switch {
		case t.Year > 99: // 127 is every year
			t.Day = 0
		case century > 0:
			t.Year += 1900 + 100*century
		case t.Year <= 80:
			t.Year += 2000 // meters that know of no century
		default:
			t.Year += 1900
		}
	}
	switch len(b) {
	case 2:
		date(b[0], b[1], 0)
	case 3:
		t.Second, t.Minute, t.Hour = int(b[0]&63), int(b[1]&63), int(b[2]&31)
	case 4:
		if b[0]&0x80 != 0 {
			return none
		}
		t.Minute, t.Hour, t.Summer = int(b[0]&63), int(b[1]&31), b[1]&0x80 != 0
		date(b[2], b[3], int(b[1]>>5&3))
	case 6:
		if b[1]&0x80 != 0 {
			return none
		}
		t.Second, t.Minute, t.Hour, t.Summer = int(b[0]&63), int(b[1]&63), int(b[2]&31), b[0]&0x40 != 0
		date(b[3], b[4], 0)
	default:
		return none
	}
	if t.Day >= 0 && (t.Month < 1 || t.Month > 12 || t.Day < 1 || t.Day > daysIn(t.Year, t.Month)) ||
		t.Hour > 23 || t.Minute > 59 || t.Second > 59 {
		return none
	}
	return Value{Form: Moment, Time: t}
}

func daysIn(year, month int) int {
	switch {
	case month == 2 && (year%4 != 0 || year%100 == 0 && year%400 != 0):
		return 28
	case month == 2:
		return 29
	case month == 4 || month == 6 || month == 9 || month == 11:
		return 30
	}
	return 31
}
