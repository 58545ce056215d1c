package profile

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"tidegate/internal/telemetry"
)

// Why a value is not written.
var (
	ErrReadOnly = errors.New("the point cannot be written")
	ErrLimits   = errors.New("the value is outside what may be written")
	ErrValue    = errors.New("the point cannot hold this value")
)

// Patch is what a write changes: registers in wire order, or one coil.
type Patch struct {
	Table    Table // Coils or Holding
	Address  uint16
	Count    uint16
	Data     []byte // two bytes a register; 0 or 1 for a coil
	Mask     []byte // the bits of Data that belong to the point; nil: all
	Function int    // the function code the profile asks for; 0: whichever fits
}

// Patch returns the write that gives point i the value v. old is the answer
// to PointRequest(i), from which a scale-factor register is taken; it may be
// nil for points that have none.
//
// The value must be allowed by the point's write and range, and the registers
// must hold it as it is: nothing is rounded but floats. The errors wrap
// ErrReadOnly, ErrLimits or ErrValue.
func (p *Profile) Patch(i int, v telemetry.Value, old []byte) (Patch, error) {
	pt, c := &p.Points[i], &p.codecs[i]
	w := pt.Write
	if w == nil || c.table != Coils && c.table != Holding {
		return Patch{}, fmt.Errorf("%w: %s has no write: in its profile", ErrReadOnly, pt.Name)
	}
	if err := pt.allows(v); err != nil {
		return Patch{}, err
	}
	out := Patch{Table: c.table, Address: c.addr, Count: c.count, Function: w.Function}
	if c.bit1 {
		if v.Kind() != telemetry.Bool {
			return out, fmt.Errorf("%w: %s is true or false", ErrValue, pt.Name)
		}
		out.Data = []byte{0}
		if v.Bool() != c.invert {
			out.Data[0] = 1
		}
		return out, nil
	}
	num := &c.num
	if c.sf != nil {
		k, err := p.factor(i, old)
		if err != nil {
			return out, err
		}
		num = &c.sf[k+10]
	}
	data := make([]byte, 2*int(c.count))
	if c.act == actString {
		if v.Kind() != telemetry.Text {
			return out, fmt.Errorf("%w: %s is a text", ErrValue, pt.Name)
		}
		b, err := c.encodeString(data, v, pt.Name)
		if err != nil {
			return out, fmt.Errorf("%w: %w", ErrValue, err)
		}
		out.Data = b
		return out, nil
	}
	raw, err := c.rawOf(v, num)
	if err != nil {
		return out, fmt.Errorf("%w: %s: %w", ErrValue, pt.Name, err)
	}
	c.write(data[c.sub:], raw<<c.shift)
	out.Data = data
	part := make([]byte, len(data))
	c.write(part[c.sub:], c.keep<<c.shift)
	if bytes.Count(part, []byte{0xFF}) < len(part) {
		out.Mask = part
	}
	var back telemetry.Reading
	c.value(raw<<c.shift, num, &back)
	switch {
	case back.Quality == telemetry.Range:
		return out, fmt.Errorf("%w: %s is outside the range %s..%s of %s", ErrLimits, v, pt.Range[0], pt.Range[1], pt.Name)
	case back.Quality != telemetry.Good:
		return out, fmt.Errorf("%w: %s means \"no value\" in %s", ErrValue, v, pt.Name)
	case !matches(v, back.Value, pt):
		return out, fmt.Errorf("%w: %s would hold %s", ErrValue, pt.Name, back.Value)
	}
	return out, nil
}

// factor returns the power of ten in the point's scale-factor register.
func (p *Profile) factor(i int, old []byte) (int, error) {
	r, err := p.PointRequest(i)
	if err != nil {
		return 0, err
	}
	at := 2 * (int(p.codecs[i].sfAddr) - int(r.Address))
	if len(old) < at+2 {
		return 0, fmt.Errorf("%w: its scale factor is not known", ErrValue)
	}
	k := int(int16(uint16(old[at])<<8 | uint16(old[at+1])))
	if k < -10 || k > 10 {
		return 0, fmt.Errorf("%w: the device has no scale factor for it (%d)", ErrValue, k)
	}
	return k, nil
}

// allows checks a value against the limits of the point's write.
func (pt *Point) allows(v telemetry.Value) error {
	w := pt.Write
	if !w.Min.Given() && !w.Max.Given() && !w.Step.Given() {
		return nil
	}
	x, ok := valueRat(v)
	switch {
	case v.Kind() == telemetry.Text && len(pt.Enum) > 0:
		return nil
	case !ok || v.Kind() == telemetry.Bool:
		return fmt.Errorf("%w: %s is not a number", ErrValue, v)
	case w.Min.Given() && x.Cmp(w.Min.rat(0)) < 0, w.Max.Given() && x.Cmp(w.Max.rat(0)) > 0:
		return fmt.Errorf("%w: %s; allowed is %s", ErrLimits, v, w)
	case w.Step.Given():
		steps := new(big.Rat).Sub(x, w.Min.rat(0))
		if !steps.Quo(steps, w.Step.rat(1)).IsInt() {
			return fmt.Errorf("%w: %s is between two steps; allowed is %s", ErrLimits, v, w)
		}
	}
	return nil
}

// String says what may be written, such as "30..80 in steps of 5"; "" if
// anything may.
func (w *Write) String() string {
	s := ""
	switch {
	case w.Min.Given() && w.Max.Given():
		s = w.Min.String() + ".." + w.Max.String()
	case w.Min.Given():
		s = "from " + w.Min.String()
	case w.Max.Given():
		s = "up to " + w.Max.String()
	}
	if w.Step.Given() {
		s = strings.TrimSpace(s + " in steps of " + w.Step.String())
	}
	return s
}

// ReadsAs says whether the reading that came back is the value that was
// written: equal, for floats to six digits or half a step.
func (p *Profile) ReadsAs(i int, written telemetry.Value, back telemetry.Reading) bool {
	return back.Quality == telemetry.Good && matches(written, back.Value, &p.Points[i])
}

func matches(a, b telemetry.Value, pt *Point) bool {
	if a == b {
		return true
	}
	x, ok1 := valueRat(a)
	y, ok2 := valueRat(b)
	if !ok1 || !ok2 || (a.Kind() == telemetry.Bool) != (b.Kind() == telemetry.Bool) {
		return false
	}
	if t := pt.valueType(); t != "f32" && t != "f64" {
		return x.Cmp(y) == 0
	}
	d := new(big.Rat).Sub(x, y)
	d.Abs(d)
	most := new(big.Rat).Abs(x)
	most.Mul(most, big.NewRat(1, 1_000_000))
	if w := pt.Write; w != nil && w.Step.Given() {
		if half := new(big.Rat).Mul(w.Step.rat(1), big.NewRat(1, 2)); half.Cmp(most) > 0 {
			return d.Cmp(half) < 0
		}
	}
	return d.Cmp(most) <= 0
}

// ParseValue reads a value for point i as a person writes it: true, false,
// on, off, 1 or 0 for a bit; a word or its number for an enum; words with
// commas for flags; a number; or a text. The error wraps ErrValue.
func (p *Profile) ParseValue(i int, s string) (telemetry.Value, error) {
	pt, c := &p.Points[i], &p.codecs[i]
	switch {
	case c.bit1 || c.act == actBool:
		switch strings.ToLower(s) {
		case "true", "on", "1":
			return telemetry.BoolValue(true), nil
		case "false", "off", "0":
			return telemetry.BoolValue(false), nil
		}
		return telemetry.Value{}, fmt.Errorf("%w: %q is neither on nor off", ErrValue, s)
	case c.act == actString:
		return telemetry.TextValue(s), nil
	case c.act == actFlags:
		if _, err := c.flagBits(s); err != nil {
			return telemetry.Value{}, fmt.Errorf("%w: %w", ErrValue, err)
		}
		return telemetry.TextValue(s), nil
	case c.act == actEnum:
		words := make([]string, 0, len(pt.Enum))
		for n, w := range pt.Enum {
			if s == w || s == strconv.FormatInt(n, 10) {
				return telemetry.TextValue(w), nil
			}
			words = append(words, w)
		}
		return telemetry.Value{}, fmt.Errorf("%w: %q is none of its %d words", ErrValue, s, len(words))
	}
	x, err := parseRat(s)
	if err != nil {
		return telemetry.Value{}, fmt.Errorf("%w: %w", ErrValue, err)
	}
	if dec, ok := decimalsOf(x); ok {
		m := new(big.Rat).Mul(x, new(big.Rat).SetInt(pow10(dec))).Num()
		switch {
		case m.IsInt64():
			return telemetry.IntValue(m.Int64(), uint8(dec)), nil
		case m.IsUint64():
			return telemetry.UintValue(m.Uint64(), uint8(dec)), nil
		}
	}
	f, _ := x.Float64()
	return telemetry.Float64Value(f), nil
}

func (pt *Point) checkWrite(c *codec, r report) {
	w := pt.Write
	if w == nil {
		return
	}
	if c.table != Coils && c.table != Holding {
		r("write", "only coils and holding registers can be written", "remove write")
		return
	}
	if w.Min.Given() && w.Max.Given() && w.Min.rat(0).Cmp(w.Max.rat(0)) > 0 {
		r("write.min", "min is above max", "")
	}
	if w.Step.Given() && w.Step.num <= 0 {
		r("write.step", "a step is more than 0", "")
	}
	switch f := w.Function; {
	case f == 0, c.table == Coils && (f == 5 || f == 15), c.table == Holding && (f == 16 || f == 23):
	case c.table == Holding && (f == 6 || f == 22) && c.count == 1:
	case c.table == Holding && (f == 6 || f == 22):
		r("write.function", fmt.Sprintf("function %d writes one register, this point has %d", f, c.count), "write 16")
	default:
		r("write.function", fmt.Sprintf("function %d does not write a %s", f, c.table), "write 5 or 15 for a coil, 6, 16, 22 or 23 for registers")
	}
	if (w.Min.Given() || w.Max.Given() || w.Step.Given()) && (c.bit1 || c.act == actBool || c.act == actString) {
		r("write", "min, max and step are for numbers", "write write: {}")
	}
}

// Validate reports what cannot be; a nil Wake is right.
func (w *Wake) Validate(r func(path, msg, hint string)) {
	if w == nil {
		return
	}
	if len(w.Bytes) > 32 {
		r("bytes", fmt.Sprintf("%d bytes are no waking", len(w.Bytes)), "write at most 32")
	}
	if w.Pause < time.Millisecond || w.Pause > time.Second {
		r("pause", fmt.Sprintf("%v is outside 1ms..1s", w.Pause), "")
	}
	if w.Idle < 0 || w.Idle > time.Hour {
		r("idle", fmt.Sprintf("%v is outside 0s..1h", w.Idle), "")
	}
}
