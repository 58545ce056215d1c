package profile

import (
	"math"
	"math/big"

	"tidegate/internal/telemetry"
)

// number turns raw numbers into values: value = raw x scale + offset,
// exactly, as a mantissa with decimals. For every raw within ±max this is
//
//	mantissa = (raw x mul + add) / div, rounded half away from zero
//
// in 64 bits without overflow; beyond that the same is done with big
// numbers. Where no decimal is exact (scale 1/3 without `decimals`), it has as
// many as tell a tenth of the step from one raw number to the next: no more is
// known. Only where those are more than a value can have is it a float.
type number struct {
	mul, add, div int64
	max           int64 // largest |raw| for the fast path; -1 = never
	lo, hi        int64 // plausible range as mantissas
	flo, fhi      float64
	fscale, foff  float64
	pow           float64 // 10^dec
	scale, offset *big.Rat
	dec           uint8
	plain         bool // scale 1, offset 0
	rounded       bool // decimals were configured: floats become mantissas
	float         bool // no exact decimal exists
	ranged        bool
}

// newNumber prepares scale and offset. decimals may be nil. lo and hi are
// given together or not at all.
func newNumber(scale, offset *big.Rat, decimals *int, lo, hi *big.Rat) number {
	n := number{scale: scale, offset: offset, max: -1, div: 1,
		lo: math.MinInt64, hi: math.MaxInt64, flo: math.Inf(-1), fhi: math.Inf(1)}
	n.fscale, _ = scale.Float64()
	n.foff, _ = offset.Float64()
	n.plain = scale.Cmp(big.NewRat(1, 1)) == 0 && offset.Sign() == 0
	switch {
	case decimals != nil:
		n.rounded, n.dec = true, uint8(*decimals)
	default:
		ds, ok1 := decimalsOf(scale)
		do, ok2 := decimalsOf(offset)
		if !ok1 {
			ds, ok1 = stepDecimals(scale)
		}
		if !ok2 {
			do, ok2 = ds+1, ds < telemetry.MaxDecimals
		}
		if n.float = !ok1 || !ok2; !n.float {
			n.dec = uint8(max(ds, do))
		}
	}
	n.pow = math.Pow10(int(n.dec))
	if lo != nil && hi != nil {
		n.ranged = true
		n.flo, _ = lo.Float64()
		n.fhi, _ = hi.Float64()
		n.lo, n.hi = n.mantissaBound(lo, true), n.mantissaBound(hi, false)
	}
	if n.float {
		return n
	}
	// Bring scale x 10^dec and offset x 10^dec to one denominator.
	pow := new(big.Rat).SetInt(pow10(int(n.dec)))
	a := new(big.Rat).Mul(scale, pow)
	c := new(big.Rat).Mul(offset, pow)
	div := new(big.Int).Mul(a.Denom(), new(big.Int).Quo(c.Denom(), new(big.Int).GCD(nil, nil, a.Denom(), c.Denom())))
	l := new(big.Rat).SetInt(div)
	mul, add := a.Mul(a, l).Num(), c.Mul(c, l).Num()
	limit := big.NewInt(math.MaxInt64 / 4)
	if div.CmpAbs(limit) < 0 && mul.CmpAbs(limit) < 0 && add.CmpAbs(limit) < 0 && mul.Sign() != 0 {
		n.mul, n.add, n.div = mul.Int64(), add.Int64(), div.Int64()
		n.max = (math.MaxInt64 - abs(n.add) - n.div) / abs(n.mul)
	}
	return n
}

// stepDecimals returns the fewest decimals whose last place is no more than
// a tenth of the step from one raw number to the next.
func stepDecimals(scale *big.Rat) (int, bool) {
	step := new(big.Rat).Abs(scale)
	step.Quo(step, big.NewRat(10, 1))
	for d := range telemetry.MaxDecimals + 1 {
		if place := new(big.Rat).SetFrac(big.NewInt(1), pow10(d)); place.Cmp(step) <= 0 {
			return d, true
		}
	}
	return 0, false
}

// mantissaBound returns the smallest mantissa not below r (lower) or the
// largest not above it.
func (n *number) mantissaBound(r *big.Rat, lower bool) int64 {
	x := new(big.Rat).Mul(r, new(big.Rat).SetInt(pow10(int(n.dec))))
	q, m := new(big.Int).DivMod(x.Num(), x.Denom(), new(big.Int)) // Euclid: floor
	if lower && m.Sign() != 0 {
		q.Add(q, big.NewInt(1))
	}
	switch {
	case q.IsInt64():
		return q.Int64()
	case q.Sign() < 0:
		return math.MinInt64
	}
	return math.MaxInt64
}

// int64 returns the value of a signed raw number and whether it is plausible.
func (n *number) int64(raw int64) (telemetry.Value, bool) {
	if raw > n.max || raw < -n.max {
		return n.big(new(big.Int).SetInt64(raw))
	}
	m := raw*n.mul + n.add
	if n.div != 1 {
		m = roundDiv(m, n.div)
	}
	return telemetry.IntValue(m, n.dec), m >= n.lo && m <= n.hi
}

// uint64 is int64 for raw numbers that may need all 64 bits.
func (n *number) uint64(raw uint64) (telemetry.Value, bool) {
	if raw <= math.MaxInt64 {
		return n.int64(int64(raw))
	}
	return n.big(new(big.Int).SetUint64(raw))
}

// big is the exact way for numbers that do not fit the fast one.
func (n *number) big(raw *big.Int) (telemetry.Value, bool) {
	x := new(big.Rat).SetInt(raw)
	return n.ratio(x.Mul(x, n.scale).Add(x, n.offset))
}

// ratio returns the scaled value x itself: as a mantissa if one fits, else
// as a float.
func (n *number) ratio(x *big.Rat) (telemetry.Value, bool) {
	f, _ := x.Float64()
	ok := f >= n.flo && f <= n.fhi
	if n.float {
		return telemetry.Float64Value(f), ok
	}
	m := roundRat(new(big.Rat).Mul(x, new(big.Rat).SetInt(pow10(int(n.dec)))))
	switch {
	case m.IsInt64():
		return telemetry.IntValue(m.Int64(), n.dec), ok
	case m.IsUint64():
		return telemetry.UintValue(m.Uint64(), n.dec), ok
	}
	return telemetry.Float64Value(f), ok
}

// float64 returns the value of a float raw number; single says that it came
// as a float32. f is neither NaN nor infinite; a result that is infinite
// gives the zero Value.
func (n *number) float64(f float64, single bool) (telemetry.Value, bool) {
	x := f
	if !n.plain {
		x = f*n.fscale + n.foff
	}
	if x == 0 {
		x = 0 // no negative zero
	}
	ok := x >= n.flo && x <= n.fhi
	if n.rounded {
		if m, fits := roundFloat(x, n.pow); fits {
			return telemetry.IntValue(m, n.dec), ok
		}
	}
	if single && math.Abs(x) <= math.MaxFloat32 {
		return telemetry.Float32Value(float32(x)), ok
	}
	if math.IsInf(x, 0) {
		return telemetry.Value{}, false
	}
	return telemetry.Float64Value(x), ok
}

// roundFloat returns x x pow rounded half away from zero. The product is
// corrected where its own rounding made a tie that is none.
func roundFloat(x, pow float64) (int64, bool) {
	p := x * pow
	if math.Abs(p) >= 1<<62 {
		return 0, false
	}
	whole, frac := math.Modf(p)
	if math.Abs(frac) < 0.5 {
		return int64(whole), true
	}
	m := int64(whole)
	if math.Abs(frac) == 0.5 {
		if e := math.FMA(x, pow, -p); p > 0 && e < 0 || p < 0 && e > 0 {
			return m, true
		}
	}
	if p < 0 {
		return m - 1, true
	}
	return m + 1, true
}

// roundDiv returns a / b rounded half away from zero; b > 0.
func roundDiv(a, b int64) int64 {
	q, r := a/b, a%b
	if r < 0 {
		if -r >= b-(-r) {
			return q - 1
		}
		return q
	}
	if r >= b-r {
		return q + 1
	}
	return q
}

// roundRat returns x rounded half away from zero.
func roundRat(x *big.Rat) *big.Int {
	num := new(big.Int).Abs(x.Num())
	q, r := new(big.Int).QuoRem(num, x.Denom(), new(big.Int))
	if r.Lsh(r, 1).Cmp(x.Denom()) >= 0 {
		q.Add(q, big.NewInt(1))
	}
	if x.Sign() < 0 {
		q.Neg(q)
	}
	return q
}

func pow10(n int) *big.Int {
	return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil)
}

func abs(n int64) int64 {
	if n < 0 {
		return -n
	}
	return n
}

// valueRat returns a numeric value exactly; ok is false for texts, None and
// floats that are no numbers.
func valueRat(v telemetry.Value) (*big.Rat, bool) {
	switch v.Kind() {
	case telemetry.Bool, telemetry.Int, telemetry.Uint:
		if v.Kind() == telemetry.Bool {
			return new(big.Rat).SetInt64(v.Mantissa()), true
		}
		return new(big.Rat).SetString(v.String())
	case telemetry.Float32, telemetry.Float64:
		r := new(big.Rat).SetFloat64(v.Float())
		return r, r != nil
	}
	return nil, false
}
