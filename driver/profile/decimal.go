package profile

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// Decimal is an exact number as a profile writes it: 0.1, -40, 1e-3 or a
// fraction such as 1/256. The zero Decimal is "not given".
type Decimal struct {
	num, den int64 // den > 0 once given
	text     string
}

var numberForm = regexp.MustCompile(`^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?$`)

// ParseDecimal reads a number or a fraction of two numbers. The reduced
// numerator and denominator must fit 63 bits each.
func ParseDecimal(s string) (Decimal, error) {
	over, under, fraction := strings.Cut(strings.TrimSpace(s), "/")
	r, err := parseRat(over)
	if err != nil {
		return Decimal{}, err
	}
	if fraction {
		d, err := parseRat(under)
		if err != nil {
			return Decimal{}, err
		}
		if d.Sign() == 0 {
			return Decimal{}, errors.New("a fraction cannot have 0 below the line")
		}
		r.Quo(r, d)
	}
	if !r.Num().IsInt64() || !r.Denom().IsInt64() {
		return Decimal{}, fmt.Errorf("%q has more digits than can be kept exactly", s)
	}
	return Decimal{num: r.Num().Int64(), den: r.Denom().Int64(), text: strings.TrimSpace(s)}, nil
}

func parseRat(s string) (*big.Rat, error) {
	s = strings.TrimSpace(s)
	if len(s) > 40 || !numberForm.MatchString(s) {
		return nil, fmt.Errorf("%q is not a number", s)
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return nil, fmt.Errorf("%q is not a number", s)
	}
	return r, nil
}

// Given says whether the number was written at all.
func (d Decimal) Given() bool { return d.den != 0 }

// Float returns the nearest float64; 0 if not given.
func (d Decimal) Float() float64 {
	if !d.Given() {
		return 0
	}
	f, _ := d.rat(0).Float64()
	return f
}

// String returns the number as it was written.
func (d Decimal) String() string { return d.text }

// UnmarshalText reads what ParseDecimal reads.
func (d *Decimal) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDecimal(string(b))
	return err
}

// MarshalText writes the number as it was read.
func (d Decimal) MarshalText() ([]byte, error) { return []byte(d.text), nil }

// rat returns the number, or def where it was not given.
func (d Decimal) rat(def int64) *big.Rat {
	if !d.Given() {
		return new(big.Rat).SetInt64(def)
	}
	return big.NewRat(d.num, d.den)
}

// decimalsOf returns how many decimals r needs to be written exactly; ok is
// false where no number of decimals up to 18 will do (1/3).
func decimalsOf(r *big.Rat) (int, bool) {
	ten, x := big.NewInt(10), new(big.Int)
	pow := big.NewInt(1)
	for d := 0; d <= 18; d++ {
		if x.Mod(pow, r.Denom()).Sign() == 0 {
			return d, true
		}
		pow.Mul(pow, ten)
	}
	return 0, false
}

// Ref names a register: another point of the profile, or a wire address in
// the same table.
type Ref string

// UnmarshalText takes the scalar as it is written.
func (r *Ref) UnmarshalText(b []byte) error {
	*r = Ref(strings.TrimSpace(string(b)))
	return nil
}

// MarshalText writes the reference as it was read.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r), nil }

// Marker is the raw content of a field that stands for "no value": a number
// as written in the manual (0x7FFF, -1, -999.9) or a text. For f32 and f64
// a marker in hexadecimal is compared with the bits, any other with the
// number.
type Marker string

// UnmarshalText takes the scalar as it is written.
func (m *Marker) UnmarshalText(b []byte) error {
	*m = Marker(b)
	return nil
}

// MarshalText writes the marker as it was read.
func (m Marker) MarshalText() ([]byte, error) { return []byte(m), nil }

// bits returns the marker as the raw bits of a number of the given width.
func (m Marker) bits(width uint, float bool) (uint64, error) {
	s := strings.ReplaceAll(strings.TrimSpace(string(m)), "_", "")
	lower := strings.ToLower(s)
	isHex := strings.HasPrefix(lower, "0x")
	if float && !isHex {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is not a number", s)
		}
		if width == 32 {
			return uint64(math.Float32bits(float32(f))), nil
		}
		return math.Float64bits(f), nil
	}
	if n, err := strconv.ParseInt(s, 0, 64); err == nil && (n >= 0 || n >= -1<<(width-1)) {
		if n > 0 && width < 64 && n >= 1<<width {
			return 0, fmt.Errorf("%s does not fit %d bits", s, width)
		}
		return uint64(n) & mask(width), nil
	}
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil || n&^mask(width) != 0 {
		return 0, fmt.Errorf("%s is not a number of %d bits", s, width)
	}
	return n, nil
}

func mask(width uint) uint64 {
	if width >= 64 {
		return math.MaxUint64
	}
	return 1<<width - 1
}

// Hex is a string of bytes written as hexadecimal digits, with or without
// blanks between the bytes.
type Hex []byte

// UnmarshalText reads the digits.
func (h *Hex) UnmarshalText(b []byte) error {
	s := strings.Join(strings.Fields(string(b)), "")
	out, err := hex.DecodeString(s)
	if err != nil {
		return fmt.Errorf("%q is not a row of hexadecimal bytes such as 42 4D", string(b))
	}
	*h = out
	return nil
}

// MarshalText writes the bytes in lower case with blanks between them.
func (h Hex) MarshalText() ([]byte, error) { return []byte(fmt.Sprintf("% x", []byte(h))), nil }
