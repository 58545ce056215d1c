package profile

import (
	"math/big"
	"strings"
)

// unitFamilies are the units that meters write behind their values, each with
// its factor to the first of its family. Symbols are those of IEC 62056-21
// and the P1 specifications, and the SenML or UCUM symbols of points.
var unitFamilies = [][]struct{ symbol, factor string }{
	{{"Wh", "1"}, {"kWh", "1000"}, {"MWh", "1000000"}, {"GWh", "1000000000"}, {"J", "1/3600"}, {"kJ", "1000/3600"}, {"MJ", "1000000/3600"}, {"GJ", "1000000000/3600"}, {"cal", "41868/36000000"}},
	{{"varh", "1"}, {"kvarh", "1000"}, {"Mvarh", "1000000"}},
	{{"VAh", "1"}, {"kVAh", "1000"}, {"MVAh", "1000000"}},
	{{"W", "1"}, {"kW", "1000"}, {"MW", "1000000"}, {"J/h", "1/3600"}},
	{{"var", "1"}, {"kvar", "1000"}, {"Mvar", "1000000"}},
	{{"VA", "1"}, {"kVA", "1000"}, {"MVA", "1000000"}},
	{{"V", "1"}, {"kV", "1000"}, {"mV", "1/1000"}},
	{{"A", "1"}, {"kA", "1000"}, {"mA", "1/1000"}},
	{{"Hz", "1"}},
	{{"m3", "1"}, {"l", "1/1000"}, {"L", "1/1000"}, {"dm3", "1/1000"}, {"[cft_i]", "0.028316846592"}, {"[gal_us]", "0.003785411784"}},
	{{"m3/h", "1"}, {"l/h", "1/1000"}, {"l/min", "60/1000"}, {"m3/min", "60"}, {"m3/s", "3600"}, {"[gal_us]/min", "0.22712470704"}, {"[gal_us]/h", "0.003785411784"}},
	{{"s", "1"}, {"min", "60"}, {"h", "3600"}, {"d", "86400"}},
	{{"Cel", "1"}, {"C", "1"}, {"degC", "1"}},
	{{"bar", "1"}, {"mbar", "1/1000"}, {"Pa", "1/100000"}, {"hPa", "1/1000"}, {"kPa", "1/100"}},
	{{"/", "1"}, {"1", "1"}, {"", "1"}},
	{{"%", "1"}},
	{{"%RH", "1"}},
	{{"kg", "1"}, {"t", "1000"}},
	{{"kg/h", "1"}, {"t/h", "1000"}},
	{{"mo", "1"}, {"a", "12"}},
	{{"deg", "1"}},
}

// unitFactor returns by what a value in the unit from is multiplied to be
// one in the unit to.
func unitFactor(from, to string) (*big.Rat, bool) {
	for _, f := range unitFamilies {
		a, b := "", ""
		for _, u := range f {
			if u.symbol == to {
				b = u.factor
			}
			if u.symbol == from {
				a = u.factor
			}
		}
		if a != "" && b != "" {
			x, _ := new(big.Rat).SetString(a)
			y, _ := new(big.Rat).SetString(b)
			return x.Quo(x, y), true
		}
	}
	return nil, false
}

// sameUnit compares without regard to capitals, but for the m of milli and
// the M of mega.
func sameUnit(symbol, s string) bool {
	if len(symbol) > 1 && strings.ContainsAny(symbol[:1], "mM") && (s == "" || s[0] != symbol[0]) {
		return false
	}
	return strings.EqualFold(symbol, s)
}
