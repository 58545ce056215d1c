package telemetry

import (
	"math"
	"math/bits"
	"slices"
	"strconv"
)

// Kind says how a Value is held.
type Kind uint8

// The kinds of a value. None is the zero Value: there is no value.
const (
	None    Kind = iota
	Bool         // true or false
	Int          // signed mantissa with decimals: 2331 with 1 decimal is 233.1
	Uint         // unsigned mantissa with decimals, for what does not fit Int
	Float32      // IEEE 754 single, printed with the shortest digits that give it back
	Float64      // IEEE 754 double, likewise
	Text         // UTF-8
)

// MaxDecimals is the largest number of decimals an Int or Uint may have.
const MaxDecimals = 18

// Value is one measured value. Numbers that a device delivers as scaled
// integers stay integers: 2331 with one decimal prints as 233.1, never as
// 233.10000000000002. The zero Value holds nothing.
type Value struct {
	num  uint64
	text string
	kind Kind
	dec  uint8
}

// BoolValue returns a Bool.
func BoolValue(b bool) Value {
	v := Value{kind: Bool}
	if b {
		v.num = 1
	}
	return v
}

// IntValue returns mantissa x 10^-decimals, exactly. Decimals above
// MaxDecimals are taken as MaxDecimals.
func IntValue(mantissa int64, decimals uint8) Value {
	return Value{kind: Int, num: uint64(mantissa), dec: min(decimals, MaxDecimals)}
}

// UintValue returns mantissa x 10^-decimals, exactly, as an Int where the
// mantissa fits one, so that equal numbers are equal values.
func UintValue(mantissa uint64, decimals uint8) Value {
	if mantissa <= math.MaxInt64 {
		return IntValue(int64(mantissa), decimals)
	}
	return Value{kind: Uint, num: mantissa, dec: min(decimals, MaxDecimals)}
}

// Float32Value returns a Float32. NaN and infinities are no values: callers
// give a quality instead.
func Float32Value(f float32) Value {
	return Value{kind: Float32, num: uint64(math.Float32bits(f))}
}

// Float64Value returns a Float64.
func Float64Value(f float64) Value {
	return Value{kind: Float64, num: math.Float64bits(f)}
}

// TextValue returns a Text.
func TextValue(s string) Value { return Value{kind: Text, text: s} }

// Kind returns how the value is held; None if there is no value.
func (v Value) Kind() Kind { return v.kind }

// Decimals returns the decimals of an Int or Uint, else 0.
func (v Value) Decimals() int { return int(v.dec) }

// Bool returns the truth of a Bool; of a number whether it is not zero.
func (v Value) Bool() bool {
	if v.kind == Bool || v.kind == Int || v.kind == Uint {
		return v.num != 0
	}
	return v.Float() != 0
}

// Mantissa returns the mantissa of an Int, 1 or 0 of a Bool, else 0.
func (v Value) Mantissa() int64 {
	if v.kind == Int || v.kind == Bool {
		return int64(v.num)
	}
	return 0
}

// Unsigned returns the mantissa of a Uint, else 0.
func (v Value) Unsigned() uint64 {
	if v.kind == Uint {
		return v.num
	}
	return 0
}

// Float returns the value as a float64, NaN for texts and None.
func (v Value) Float() float64 {
	switch v.kind {
	case Bool:
		return float64(v.num)
	case Int:
		return float64(int64(v.num)) / math.Pow10(int(v.dec))
	case Uint:
		return float64(v.num) / math.Pow10(int(v.dec))
	case Float32:
		return float64(math.Float32frombits(uint32(v.num)))
	case Float64:
		return math.Float64frombits(v.num)
	}
	return math.NaN()
}

// Text returns the text of a Text, else "".
func (v Value) Text() string { return v.text }

// String returns the value as AppendText writes it.
func (v Value) String() string { return string(v.AppendText(nil)) }

// AppendText appends the value as people read it: texts as they are,
// numbers with exactly their decimals, floats with the shortest digits that
// give the same float back, None as "-".
func (v Value) AppendText(dst []byte) []byte {
	switch v.kind {
	case None:
		return append(dst, '-')
	case Text:
		return append(dst, v.text...)
	}
	return v.AppendJSON(dst)
}

// AppendJSON appends the value as JSON (RFC 8259): a bool, a number or a
// string; None is null. NaN and infinities, which JSON cannot write, are
// null too.
func (v Value) AppendJSON(dst []byte) []byte {
	switch v.kind {
	case Bool:
		return strconv.AppendBool(dst, v.num != 0)
	case Int:
		return appendInt(dst, int64(v.num), int(v.dec))
	case Uint:
		return appendDecimal(dst, v.num, int(v.dec))
	case Float32:
		return appendFloat(dst, float64(math.Float32frombits(uint32(v.num))), 32)
	case Float64:
		return appendFloat(dst, math.Float64frombits(v.num), 64)
	case Text:
		return AppendQuoted(dst, v.text)
	}
	return append(dst, "null"...)
}

func appendInt(dst []byte, m int64, dec int) []byte {
	if m < 0 {
		return appendDecimal(append(dst, '-'), uint64(-m), dec)
	}
	return appendDecimal(dst, uint64(m), dec)
}

// powers are those of ten.
var powers = [...]uint64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19}

// pairs are the numbers 00 to 99.
const pairs = "00010203040506070809" + "10111213141516171819" + "20212223242526272829" + "30313233343536373839" + "40414243444546474849" +
	"50515253545556575859" + "60616263646566676869" + "70717273747576777879" + "80818283848586878889" + "90919293949596979899"

// appendDecimal writes m x 10^-dec with exactly dec decimals.
func appendDecimal(dst []byte, m uint64, dec int) []byte {
	n := digits(m, dec)
	i := len(dst) + n
	dst = slices.Grow(dst, n)[:i]
	putDecimal(dst, i, m, dec)
	return dst
}

// appendInts writes each of the mantissas as appendInt does, and a comma behind
// it. There is room for all before the first, and what does not change is copied.
func appendInts(dst []byte, nums []uint64, dec int) []byte {
	const most = len("-.,") + len(powers) // bytes of one
	at := len(dst)
	dst = slices.Grow(dst, len(nums)*most)[:at+len(nums)*most]
	from := at // where the last one begins
	for k, n := range nums {
		if k > 0 && n == nums[k-1] {
			next := at
			at += copy(dst[at:], dst[from:at])
			from = next
			continue
		}
		from = at
		if int64(n) < 0 {
			dst[at] = '-'
			at++
			n = -n
		}
		at += digits(n, dec)
		putDecimal(dst, at, n, dec)
		dst[at] = ','
		at++
	}
	return dst[:at]
}

// digits returns how many bytes m x 10^-dec takes.
func digits(m uint64, dec int) int {
	n := bits.Len64(m) * 1233 >> 12 // log10 of it, at most one too low
	if m >= powers[n] {
		n++
	}
	if dec > 0 {
		return max(n, dec+1) + 1 // the point
	}
	return max(n, 1)
}

// putDecimal writes m x 10^-dec up to dst[i].
func putDecimal(dst []byte, i int, m uint64, dec int) {
	if dec > 0 {
		for ; dec >= 2; dec -= 2 {
			p := m % 100 * 2
			m /= 100
			i -= 2
			dst[i], dst[i+1] = pairs[p], pairs[p+1]
		}
		if dec == 1 {
			i--
			dst[i] = byte('0' + m%10)
			m /= 10
		}
		i--
		dst[i] = '.'
	}
	for m >= 100 {
		p := m % 100 * 2
		m /= 100
		i -= 2
		dst[i], dst[i+1] = pairs[p], pairs[p+1]
	}
	if m >= 10 {
		i -= 2
		dst[i], dst[i+1] = pairs[m*2], pairs[m*2+1]
	} else {
		dst[i-1] = byte('0' + m)
	}
}

func appendFloat(dst []byte, f float64, size int) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(dst, "null"...)
	}
	if m, dec, ok := short(f, size); ok {
		return appendInt(dst, m, dec)
	}
	format := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e15) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, size)
}

// short returns the decimal number that a float is, if that has few digits:
// what most instruments send. No two numbers of up to 6 digits are the same
// float of 32 bits, nor two of up to 15 the same of 64 (FLT_DIG and DBL_DIG of
// C), so with the fewest decimals it is the shortest that gives the float back.
func short(f float64, size int) (m int64, dec int, ok bool) {
	most := 1e6
	if size == 64 {
		most = 1e15
	}
	if f == 0 && math.Signbit(f) {
		return 0, 0, false
	}
	for dec = range 5 {
		scale := float64(powers[dec])
		x := math.RoundToEven(f * scale)
		if !(math.Abs(x) < most) {
			break
		}
		if is := x / scale; is == f || size == 32 && float32(is) == float32(f) {
			return int64(x), dec, true
		}
	}
	return 0, 0, false
}

const hexDigits = "0123456789abcdef"

// AppendQuoted appends s as a JSON string; bytes that are not UTF-8 become
// U+FFFD.
func AppendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r == '\n':
			dst = append(dst, '\\', 'n')
		case r == '\r':
			dst = append(dst, '\\', 'r')
		case r == '\t':
			dst = append(dst, '\\', 't')
		case r < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&15])
		default:
			dst = append(dst, string(r)...)
		}
	}
	return append(dst, '"')
}
