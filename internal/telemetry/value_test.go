package telemetry

import (
	"math"
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
