package telemetry

import (
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestValueText(t *testing.T) {
	for _, c := range []struct {
		v    Value
		want string
	}{
		{IntValue(2331, 1), "233.1"},
		{IntValue(-5, 1), "-0.5"},
		{IntValue(5, 3), "0.005"},
		{IntValue(0, 2), "0.00"},
		{IntValue(100, 2), "1.00"},
		{IntValue(math.MinInt64, 0), "-9223372036854775808"},
		{IntValue(math.MinInt64, 18), "-9.223372036854775808"},
		{UintValue(math.MaxUint64, 2), "184467440737095516.15"},
		{UintValue(7, 0), "7"},
		{Float32Value(231.68), "231.68"},
		{Float32Value(0.1), "0.1"},
		{Float64Value(1e20), "1e+20"},
		{Float64Value(math.NaN()), "null"},
		{BoolValue(true), "true"},
		{TextValue("a\"b\\\n\x01é\xff"), `"a\"b\\\n\u0001é` + "\uFFFD\""},
		{Value{}, "null"},
	} {
		if got := string(c.v.AppendJSON(nil)); got != c.want {
			t.Errorf("%#v: got %s, want %s", c.v, got, c.want)
		}
	}
}

// TestDecimals: mantissas of every length, with every number of decimals, are
// written as the digits say.
func TestDecimals(t *testing.T) {
	for _, near := range []uint64{0, 1, 5} {
		for p := uint64(1); ; p *= 10 {
			for _, m := range []uint64{p - near, p, p + near} {
				for dec := range uint8(MaxDecimals + 1) {
					digits := strconv.FormatUint(m, 10)
					digits = strings.Repeat("0", max(0, int(dec)+1-len(digits))) + digits
					want := digits
					if dec > 0 {
						want = digits[:len(digits)-int(dec)] + "." + digits[len(digits)-int(dec):]
					}
					if got := UintValue(m, dec).String(); got != want {
						t.Fatalf("%d with %d decimals: got %s, want %s", m, dec, got, want)
					}
				}
			}
			if p > math.MaxUint64/10 {
				break
			}
		}
	}
	if got := UintValue(math.MaxUint64, 0).String(); got != "18446744073709551615" {
		t.Error(got)
	}
}

// TestFloatText: numbers of few digits are written as strconv writes them, and
// so are their neighbours.
func TestFloatText(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	shorts := 0
	check := func(f float64, size int) {
		t.Helper()
		want := strconv.AppendFloat(nil, f, 'f', -1, size)
		if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e15) {
			want = strconv.AppendFloat(nil, f, 'e', -1, size)
		}
		if got := appendFloat(nil, f, size); string(got) != string(want) {
			t.Fatalf("%x of %d bits is written %s, want %s", f, size, got, want)
		}
		if _, _, ok := short(f, size); ok {
			shorts++
		}
	}
	around := func(f float64) {
		for _, f := range []float64{f, -f} {
			x := float32(f)
			for _, x := range []float32{x, math.Nextafter32(x, 0), math.Nextafter32(x, 2*x)} {
				check(float64(x), 32)
			}
			for _, f := range []float64{f, math.Nextafter(f, 0), math.Nextafter(f, 2*f)} {
				check(f, 64)
			}
		}
	}
	check(math.Copysign(0, -1), 32)
	check(math.Copysign(0, -1), 64)
	check(math.MaxFloat64, 64)
	check(math.SmallestNonzeroFloat64, 64)
	check(math.MaxFloat32, 32)
	for range 200_000 {
		m := float64(dice.Uint64() >> (10 + dice.IntN(54)))
		around(m / math.Pow10(dice.IntN(8)))
		around(m * math.Pow10(dice.IntN(4)))
		if f := math.Float32frombits(dice.Uint32()); f == f && !math.IsInf(float64(f), 0) {
			check(float64(f), 32)
		}
		if f := math.Float64frombits(dice.Uint64()); f == f && !math.IsInf(f, 0) {
			check(f, 64)
		}
	}
	if shorts < 100_000 {
		t.Errorf("only %d were of few digits", shorts)
	}
}

// BenchmarkFloatText writes what instruments send: 32 bits with two decimals,
// and with none that end.
func BenchmarkFloatText(b *testing.B) {
	for name, step := range map[string]float64{"decimal": 0.01, "binary": 1.0 / 3} {
		b.Run(name, func(b *testing.B) {
			var buf []byte
			for i := 0; b.Loop(); i++ {
				buf = Float32Value(float32(math.Round(float64(20000+i%4096)) * step)).AppendJSON(buf[:0])
			}
		})
	}
}
