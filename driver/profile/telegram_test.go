package profile

import (
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/internal/telemetry"
)

// TestRecordedTelegrams makes a point for every value of the recorded P1
// telegrams and compares it, in the unit of the meter and in the next larger
// or smaller one.
func TestRecordedTelegrams(t *testing.T) {
	var vectors []struct {
		ID, File string
		Objects  []struct {
			OBIS   string
			Groups []string
			Value  *float64
			Unit   string
		}
	}
	readJSON(t, "dsmr/expected.json", &vectors)
	values := 0
	for _, v := range vectors {
		raw, err := os.ReadFile(filepath.Join("..", "..", "testdata", "device", v.File))
		if err != nil {
			t.Fatal(err)
		}
		raw = raw[:strings.IndexByte(string(raw), '!')+1+strings.IndexByte(string(raw[strings.IndexByte(string(raw), '!'):]), '\n')]
		var points []Point
		var want []string
		for i, o := range v.Objects {
			if o.Value == nil {
				continue
			}
			number := strings.Split(o.Groups[len(o.Groups)-1], "*")[0]
			exact, _ := new(big.Rat).SetString(number)
			for unit, factor := range map[string]*big.Rat{o.Unit: big.NewRat(1, 1), other[o.Unit]: big.NewRat(1, 1000), bigger[o.Unit]: big.NewRat(1000, 1)} {
				if unit == "" && o.Unit != "" {
					continue
				}
				points = append(points, Point{Name: fmt.Sprintf("p%d_%d", i, len(points)), OBIS: strings.TrimSuffix(o.OBIS, "*255"), Unit: unit})
				want = append(want, new(big.Rat).Mul(exact, factor).FloatString(12))
			}
		}
		p := custom(t, &Frames{Kind: "obis"}, points...)
		got := p.DecodeFrame(raw, 0, nil)
		if len(got) != len(points) {
			t.Errorf("%s: %d readings of %d", v.ID, len(got), len(points))
		}
		for _, r := range got {
			x, ok := new(big.Rat).SetString(r.Value.String())
			if !ok || r.Quality != telemetry.Good || x.FloatString(12) != want[r.Point] {
				t.Errorf("%s: %s is %s, want %s", v.ID, points[r.Point].OBIS, ReadingText(r), want[r.Point])
			}
			values++
		}
	}
	t.Logf("%d values", values)
	if values < 300 {
		t.Errorf("only %d values were compared", values)
	}
}

// other is a unit a thousand times larger, bigger the one a thousand times smaller.
var other = map[string]string{"Wh": "kWh", "kWh": "MWh", "W": "kW", "kW": "MW", "V": "kV", "A": "kA", "varh": "kvarh", "var": "kvar"}
var bigger = map[string]string{"kWh": "Wh", "MWh": "kWh", "kW": "W", "V": "mV", "A": "mA", "m3": "l"}

const p1 = `
name: p1
status: community
transport: serial
handshake: dsmr
points:
  energy: {obis: "1-0:1.8.1", unit: kWh}
  gas: {obis: "0-n:24.2.1", device: [3], unit: m3, or: [{obis: "0-n:24.2.3", device: [3]}]}
  water: {obis: "0-n:24.2.1", device: [7], unit: m3}
  peak: {obis: "1-0:1.6.0", unit: W}
  text: {obis: "0-0:96.13.0", type: hextext}
  bare: {obis: "1-0:1.8.2", unit: kWh, suffix: {none: 1}}
`

func parseProfile(t testing.TB, src string) *Profile {
	t.Helper()
	p, problems := Parse(nil, "test.yaml", []byte(src))
	for _, x := range problems {
		if !x.Warning {
			t.Fatalf("%d: %s: %s (%s)", x.Line, x.Path, x.Msg, x.Hint)
		}
	}
	return p
}

// TestTelegramValues: what is a value, what is none and why, and when it was
// measured.
func TestTelegramValues(t *testing.T) {
	p := parseProfile(t, p1)
	const now = "0-0:1.0.0(200512135409S)"
	for name, c := range map[string]struct{ in, want string }{
		"good":                      {"1-0:1.8.1(000000.034*kWh)", "energy=0.034"},
		"another unit":              {"1-0:1.8.1(000034*Wh)", "energy=0.034"},
		"joules":                    {"1-0:1.8.1(3.6*MJ)", "energy=1"},
		"capital letters":           {"1-0:1.8.1(1*KWH)", "energy=1"},
		"no unit":                   {"1-0:1.8.1(1)", "energy=fault/bad-text"},
		"the unit of another":       {"1-0:1.8.1(1*m3)", "energy=fault/bad-text"},
		"milli is no mega":          {"1-0:1.8.1(1*mWh)", "energy=fault/bad-text"},
		"no number":                 {"1-0:1.8.1(1x*kWh)", "energy=fault/bad-text"},
		"dashes":                    {"1-0:1.8.1(------*kWh)", "energy=fault/marker"},
		"empty":                     {"1-0:1.8.1()", "energy=fault/marker"},
		"a list":                    {"1-0:1.8.1(1*kWh)(2*kWh)(3*kWh)", "energy=fault/bad-text"},
		"a past month":              {"1-0:1.8.1*04(1*kWh)", ""},
		"without the unit":          {"1-0:1.8.2(12.5)", "bare=12.5"},
		"with a unit":               {"1-0:1.8.2(12.5*kWh)", "bare=fault/bad-text"},
		"text":                      {"0-0:96.13.0(48616C6C6F)", "text=Hallo"},
		"an empty text":             {"0-0:96.13.0()", "text=fault/marker"},
		"a text of zero bytes":      {"0-0:96.13.0(0000)", "text=fault/marker"},
		"half a character":          {"0-0:96.13.0(486)", "text=fault/bad-text"},
		"controls":                  {"0-0:96.13.0(480A48)", "text=fault/bad-text"},
		"gas":                       {"0-1:24.1.0(003)\n0-1:24.2.1(200512134500S)(00112.384*m3)", "gas=112.384 age 549s mark"},
		"gas in summer and winter":  {"0-1:24.1.0(003)\n0-1:24.2.1(200512124500W)(00112.384*m3)", "gas=112.384 age 549s mark"},
		"gas without a time":        {"0-1:24.1.0(003)\n0-1:24.2.1(00112.384*m3)", "gas=112.384"},
		"gas from tomorrow":         {"0-1:24.1.0(003)\n0-1:24.2.1(200513134500S)(00112.384*m3)", "gas=112.384 mark"},
		"gas from long ago":         {"0-1:24.1.0(003)\n0-1:24.2.1(100513134500S)(00112.384*m3)", "gas=112.384 mark"},
		"gas, no zone":              {"0-1:24.1.0(3)\n0-1:24.2.1(200512134500)(00112.384*m3)", "gas=112.384 mark"},
		"Belgium":                   {"0-1:24.1.0(003)\n0-1:24.2.3(200512134500S)(00112.384*m3)", "gas=112.384 age 549s mark"},
		"never a value":             {"0-1:24.1.0(003)\n0-1:24.2.1(700101010000W)(00000000)", "gas=fault/marker"},
		"the second one has":        {"0-1:24.1.0(003)\n0-1:24.2.1(700101010000W)(00000000)\n0-2:24.1.0(003)\n0-2:24.2.1(200512134500S)(1*m3)", "gas=1 age 549s mark"},
		"the newer one":             {"0-1:24.1.0(003)\n0-1:24.2.1(200512135000S)(2*m3)\n0-2:24.1.0(003)\n0-2:24.2.1(200512134500S)(1*m3)", "gas=2 age 249s mark"},
		"the newer one comes later": {"0-1:24.1.0(003)\n0-1:24.2.1(200512134500S)(1*m3)\n0-2:24.1.0(003)\n0-2:24.2.1(200512135000S)(2*m3)", "gas=2 age 249s mark"},
		"water":                     {"0-1:24.1.0(003)\n0-1:24.2.1(200512134500S)(1*m3)\n0-2:24.1.0(007)\n0-2:24.2.1(200512134500S)(2*m3)", "gas=1 age 549s mark water=2 age 549s mark"},
		"liters of water":           {"0-2:24.1.0(007)\n0-2:24.2.1(200512134500S)(2500*l)", "water=2.500 age 549s mark"},
		"no type":                   {"0-1:24.2.1(200512134500S)(1*m3)", ""},
		"a type that is none":       {"0-1:24.1.0(gas)\n0-1:24.2.1(200512134500S)(1*m3)", ""},
		"a peak":                    {"1-0:1.6.0(200509134558S)(02.589*kW)", "peak=2589 age 259691s mark"},
	} {
		raw := []byte("/FLU5\\2\r\n\r\n" + strings.ReplaceAll(now+"\n"+c.in+"\n!\n", "\n", "\r\n"))
		all, at := p.DecodeTimed(raw, 0, nil, nil)
		var got []string
		for i, r := range all {
			s := p.Points[r.Point].Name + "=" + strings.TrimSuffix(ReadingText(r), ".000")
			if x, ok := new(big.Rat).SetString(r.Value.String()); ok && x.IsInt() {
				s = p.Points[r.Point].Name + "=" + x.Num().String()
			}
			if at[i].Age < 0 {
				t.Errorf("%s: a value of the future: %v", name, at[i].Age)
			}
			if at[i].Age > 0 {
				s += fmt.Sprintf(" age %ds", at[i].Age/time.Second)
			}
			if at[i].Mark != 0 {
				s += " mark"
			}
			if (at[i].Renewed > 0) != (at[i].Mark != 0 && r.Point != 3) {
				t.Errorf("%s: renewed after %v", name, at[i].Renewed)
			}
			got = append(got, s)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", name, strings.Join(got, " "), c.want)
		}
	}
}

// TestHandshakeProblems: what a handshake does not go with.
func TestHandshakeProblems(t *testing.T) {
	const points = "points: {x: {obis: 1.8.0, unit: kWh}}\n"
	for src, want := range map[string]string{
		"transport: serial\nhandshake: dsmr\n" + points:                                                "",
		"transport: serial\nhandshake: {kind: iec62056-21, mode: push, max_baud: 0}\n" + points:        "",
		"transport: serial\nhandshake: p1\n" + points:                                                  "no handshake",
		"transport: serial\nhandshake: {kind: iec62056-21, max_baud: 1000}\n" + points:                 "no speed",
		"transport: serial\nhandshake: {kind: iec62056-21, wake: 1m}\n" + points:                       "outside",
		"transport: serial\nhandshake: {kind: dsmr, wake: 1s}\n" + points:                              "for iec62056-21",
		"transport: serial\nhandshake: dsmr\nframes: {kind: line}\npoints: {x: {field: 1}}\n":          "its own frames",
		"transport: serial\nhandshake: dsmr\ntalk: {ask: [{text: A}]}\n" + points:                      "says what is sent",
		"handshake: dsmr\npoints: {x: {input: 1}}\n":                                                   "serial devices",
		"transport: serial\nframes: {kind: obis, max: 5}\n" + points:                                   "its own form",
		"transport: serial\nframes: {kind: obis}\npoints: {x: {field: 1}}\n":                           "OBIS codes",
		"transport: serial\nframes: {kind: obis}\npoints: {x: {at: 1}}\n":                              "OBIS codes",
		"transport: serial\nframes: {kind: line}\n" + points:                                           "OBIS codes",
		"transport: serial\nframes: {kind: obis}\npoints: {x: {obis: a.b}}\n":                          "no OBIS code",
		"transport: serial\nframes: {kind: obis}\npoints: {x: {obis: 1.8.0, device: [3]}}\n":           "finds the channel",
		"transport: serial\nframes: {kind: obis}\npoints: {x: {obis: 1.8.0, where: {1: A}}}\n":         "for fields",
		"transport: serial\nframes: {kind: obis}\npoints: {x: {obis: 1.8.0, type: hextext, scale: 2}}": "numbers only",
	} {
		_, problems := Parse(nil, "x.yaml", []byte("name: x\nstatus: community\nsources: [a]\n"+src))
		text := fmt.Sprint(problems)
		if (want == "") != (len(problems) == 0) || !strings.Contains(text, want) {
			t.Errorf("%s: %v, want %q", src, problems, want)
		}
	}
}
