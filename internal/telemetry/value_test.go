package telemetry

import (
	"math"
	"strconv"
	"strings"
	"testing"
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
