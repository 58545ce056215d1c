package profile

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tidegate/internal/telemetry"
)

func get(t testing.TB, name string) *Profile {
	t.Helper()
	lib, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	p, err := lib.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// readings decodes one frame by name.
func readings(p *Profile, raw []byte) map[string]string {
	out := map[string]string{}
	for _, r := range p.DecodeFrame(raw, 0, nil) {
		out[p.Points[r.Point].Name] = ReadingText(r)
	}
	return out
}

type frameFile struct {
	Frames []struct {
		Hex    string
		Values map[string]any
	}
}

// TestResync: noise, lost bytes and damage between frames cost the frames
// they touch and no other.
func TestResync(t *testing.T) {
	for _, name := range []string{"plantower-pms5003", "nova-sds011"} {
		p := get(t, name)
		var f frameFile
		readJSON(t, "serial/"+name+".json", &f)
		rng := rand.New(rand.NewPCG(1, 2))
		for round := range 300 {
			var stream []byte
			var want [][]byte
			stream = append(stream, unhex(t, f.Frames[0].Hex)[1+rng.IntN(8):]...) // start in mid-frame
			damaged := 0
			for i := range 20 {
				raw := unhex(t, f.Frames[i%len(f.Frames)].Hex)
				switch rng.IntN(5) {
				case 0:
					raw[4] ^= 0x10
					damaged++
				case 1:
					raw = slices.Delete(raw, 6, 7)
					damaged++
				case 2:
					for range rng.IntN(40) {
						stream = append(stream, byte(rng.IntN(64))) // no sync byte among them
					}
					want = append(want, raw)
				default:
					want = append(want, raw)
				}
				stream = append(stream, raw...)
			}
			stream = append(stream, make([]byte, 64)...)
			s := p.NewScanner()
			var got [][]byte
			for rest := stream; len(rest) > 0; {
				n := 1 + rng.IntN(min(40, len(rest)))
				s.Feed(rest[:n], func(raw []byte) { got = append(got, bytes.Clone(raw)) })
				rest = rest[n:]
			}
			if !slices.EqualFunc(got, want, bytes.Equal) || s.Bad() < uint64(damaged) {
				t.Fatalf("%s, round %d: %d frames, want %d; bad %d, want %d", name, round, len(got), len(want), s.Bad(), damaged)
			}
		}
	}
}

type sentenceFile struct {
	Sentences []struct {
		Text       string
		ChecksumOK bool `json:"checksum_ok"`
		Values     map[string]any
		Error      string `json:"go_nmea_error"`
	}
}

// TestNMEA decodes all recorded sentences with the weather profile.
func TestNMEA(t *testing.T) {
	p := get(t, "nmea-weather")
	knots := map[string]float64{"N": 1852.0 / 3600, "M": 1, "K": 1 / 3.6}
	seen := map[string]int{}
	for _, file := range []string{"go-nmea-tests", "bg-zeus2-capture", "humminbird-M37"} {
		var f sentenceFile
		readJSON(t, "nmea/"+file+".json", &f)
		for _, s := range f.Sentences {
			got := readings(p, []byte(s.Text))
			kind := s.Text[3:6]
			check := func(name string, want any, by float64) {
				t.Helper()
				if !near(got[name], want, by) {
					t.Errorf("%s: %s = %q, want %v", s.Text, name, got[name], want)
				}
			}
			v := s.Values
			switch {
			case !s.ChecksumOK:
				if len(got) > 0 {
					t.Errorf("%s gives %v", s.Text, got)
				}
				continue
			case s.Error != "":
				for name, text := range got {
					if !strings.HasPrefix(text, "fault/") {
						t.Errorf("%s (%s): %s = %s", s.Text, s.Error, name, text)
					}
				}
			case kind == "MWV":
				suffix := map[any]string{"R": "relative", "T": "true"}[v["ref"]]
				check("wind_angle_"+suffix, v["angle_deg"], 0)
				speed := v["speed"]
				if speed != nil {
					speed = speed.(float64) * knots[v["unit"].(string)]
				}
				check("wind_speed_"+suffix, speed, 0.005)
				if len(got) != 2 {
					t.Errorf("%s gives %v", s.Text, got)
				}
			case kind == "MWD":
				check("wind_direction", v["dir_true_deg"], 0)
				check("wind_speed", v["speed_ms"], 0)
			case kind == "MTW":
				check("water_temperature", v["water_temp_c"], 0)
			case kind == "MDA":
				check("pressure", v["pressure_bar"].(float64)*1000, 1e-9)
				check("temperature", v["air_temp_c"], 0)
				check("humidity", v["rh_pct"], 0)
				check("dew_point", v["dew_c"], 0)
				check("wind_direction", v["dir_true_deg"], 0)
				check("wind_speed", v["speed_ms"], 0)
			case kind == "XDR":
				want := 0
				for _, m := range v["measurements"].([]any) {
					m := m.(map[string]any)
					if name := map[any]string{"AIRTEMP": "temperature", "BARO": "pressure"}[m["name"]]; name != "" {
						check(name, m["value"], 0)
						want++
					}
				}
				if len(got) != want {
					t.Errorf("%s gives %v", s.Text, got)
				}
			default:
				if len(got) > 0 {
					t.Errorf("%s gives %v", s.Text, got)
				}
				continue
			}
			seen[kind]++
		}
	}
	if got := readings(p, []byte("$WIXDR,C,23.4,C,AIRTEMP,A,1.0,D*1B")); len(got) > 0 {
		t.Errorf("an XDR that is not made of groups of four gives %v", got)
	}
	for _, kind := range []string{"MWV", "MWD", "MDA", "MTW", "XDR"} {
		if seen[kind] == 0 {
			t.Errorf("no sentence %s was checked", kind)
		}
	}
	t.Log(seen)
}

func TestLines(t *testing.T) {
	points := []Point{{Name: "v", Field: ptr(1)}, {Name: "s", Field: ptr(0), Type: "string", NA: []Marker{"--"}}}
	for _, c := range []struct {
		name   string
		frames Frames
		stream string
		want   string
		bad    uint64
	}{
		{"first piece is thrown away", Frames{Kind: "line", End: "LF"}, "2.5\na,1\nb,2\n", "a,1|b,2", 0},
		{"CR LF and LF", Frames{Kind: "line", End: "CRLF"}, "\na,1\r\nb,2\n\r\n", "a,1|b,2", 0},
		{"CR", Frames{Kind: "line", End: "CR"}, "\ra,1\r\nb,2\r", "a,1|b,2", 0},
		{"start character", Frames{Kind: "line", Start: "$"}, "1,2\r\nxx$a,1\r\n$b,$c,3\r\n", "$a,1|$c,3", 1},
		{"control characters", Frames{Kind: "line"}, "\na,\x011\nb,2\n", "b,2", 1},
		{"too long", Frames{Kind: "line", Max: 8}, "\n0123456789abcdef\nb,2\n", "b,2", 1},
		{"nmea", Frames{Kind: "line", Check: Check{Kind: "nmea"}}, "PT,1*00\r\n$INMTW,17.9,C*1B\r\n$INMTW,17.9,C*1C\r\n$INMTW,17.9,C\r\n!INMTW,17.9,C*1b\r\n",
			"$INMTW,17.9,C*1B|!INMTW,17.9,C*1b", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := custom(t, &c.frames, points...)
			s := p.NewScanner()
			var got []string
			s.Feed([]byte(c.stream), func(raw []byte) { got = append(got, string(raw)) })
			if strings.Join(got, "|") != c.want || s.Bad() != c.bad {
				t.Errorf("%q, bad %d; want %q, bad %d", strings.Join(got, "|"), s.Bad(), c.want, c.bad)
			}
		})
	}
}

func TestTextFields(t *testing.T) {
	rg := []Decimal{dec(t, "0"), dec(t, "60")}
	for _, c := range []struct {
		text, want string
		pt         Point
	}{
		{"57.5", "57.5", Point{}}, {"+57.50", "57.50", Point{}}, {"-0.5", "-0.5", Point{}}, {".5", "0.5", Point{}}, {" 57.5 ", "57.5", Point{}},
		{"1e3", "1000", Point{}}, {"12345678901234567890", "1.2345678901234567e+19", Point{}},
		{"", "fault/marker", Point{}}, {"--", "fault/marker", Point{NA: []Marker{"--"}}}, {"--", "fault/marker", Point{}},
		{"23.x", "fault/bad-text", Point{}}, {"NaN", "fault/bad-text", Point{}}, {"inf", "fault/bad-text", Point{}}, {"0x10", "fault/bad-text", Point{}},
		{"1_0", "fault/bad-text", Point{}}, {"1/2", "fault/bad-text", Point{}}, {"1e999", "fault/bad-text", Point{}}, {"-", "fault/marker", Point{}}, {".", "fault/marker", Point{}},
		{"57.5", "5.75", Point{Scale: dec(t, "0.1")}}, {"57.5", "58", Point{Decimals: ptr(0)}}, {"13.0", "6.69", Point{Scale: dec(t, "463/900"), Decimals: ptr(2)}},
		{"32", "0.0", Point{Scale: dec(t, "5/9"), Offset: dec(t, "-160/9"), Decimals: ptr(1)}},
		{"61", "61 range", Point{Range: rg}}, {"60.0", "60.0", Point{Range: rg}}, {"60.01", "60.01 range", Point{Range: rg}},
		{"2", "open", Point{Enum: map[int64]string{2: "open"}}}, {"3", "3 range", Point{Enum: map[int64]string{2: "open"}}}, {"x", "fault/bad-text", Point{Enum: map[int64]string{2: "open"}}},
		{"A", "A", Point{Type: "string"}},
	} {
		pt := c.pt
		pt.Name, pt.Field = "x", ptr(1)
		p := custom(t, &Frames{Kind: "line"}, pt)
		got := p.DecodeFrame([]byte("k,"+c.text), 0, nil)
		if len(got) != 1 || ReadingText(got[0]) != c.want {
			t.Errorf("%q = %q, want %q", c.text, ReadingText(got[0]), c.want)
		}
	}
}

func TestChecks(t *testing.T) {
	for _, c := range []struct {
		check Check
		frame string
	}{
		{Check{Kind: "none"}, "aa 01 02 03 04 05"},
		{Check{Kind: "sum8"}, "aa 01 02 03 04 b4"},
		{Check{Kind: "negated-sum"}, "aa 01 02 03 04 4c"},
		{Check{Kind: "inverted-sum"}, "aa 01 02 03 04 4b"},
		{Check{Kind: "xor"}, "aa 01 02 03 04 ae"},
		{Check{Kind: "sum16"}, "aa 01 02 03 00 b0"},
		{Check{Kind: "sum16", Order: "little"}, "aa 01 02 03 b0 00"},
		{Check{Kind: "sum8", At: ptr(1), From: ptr(2), To: ptr(-1)}, "aa 09 02 03 04 ff"},
		{Check{Kind: "crc16-modbus", From: ptr(1)}, "aa 01 02 03 61 61"},
		{Check{Kind: "crc16-modbus", From: ptr(1), Order: "big"}, "aa 01 02 03 61 61"},
		{Check{Kind: "crc8"}, "aa 01 02 03 04 00"},
		{Check{Kind: "crc8", Poly: ptr(0x31), Init: ptr(0xff)}, "aa 01 02 03 04 00"},
		{Check{Kind: "crc8", Poly: ptr(0x8c), Reflect: true}, "aa 01 02 03 04 00"},
	} {
		p := custom(t, &Frames{Kind: "counted", Sync: Hex{0xaa}, Size: 6, Check: c.check}, Point{Name: "x", At: ptr(2), Type: "u8"})
		raw := unhex(t, c.frame)
		if c.check.Kind == "crc8" || c.check.Kind == "crc16-modbus" {
			p.raw.check.put(raw, 0, 0)
		}
		if got := readings(p, raw); got["x"] != "2" {
			t.Errorf("%v: % x gives %v", c.check, raw, got)
		}
		raw[2]++
		if got := readings(p, raw); c.check.Kind != "none" && len(got) > 0 {
			t.Errorf("%v: damaged % x gives %v", c.check, raw, got)
		}
	}
	// Published check values of "123456789".
	digits := []byte("123456789")
	for _, c := range []struct {
		check Check
		want  uint16 // in the order of the wire
	}{
		{Check{Kind: "crc8"}, 0xf4},
		{Check{Kind: "crc8", Poly: ptr(0x31), Init: ptr(0xff)}, 0xf7},
		{Check{Kind: "crc8", Poly: ptr(0x8c), Reflect: true}, 0xa1},
		{Check{Kind: "crc16-modbus"}, 0x374b},
		{Check{Kind: "crc16-arc"}, 0x3dbb},
		{Check{Kind: "crc16-ccitt"}, 0x31c3},
		{Check{Kind: "crc16-ccitt", Order: "little"}, 0xc331},
		{Check{Kind: "crc16-ccitt", Init: ptr(0xffff)}, 0x29b1},
	} {
		if got := c.check.value(digits); got != c.want {
			t.Errorf("%+v: %04x, want %04x", c.check, got, c.want)
		}
	}
}

func TestEncodeFrame(t *testing.T) {
	for _, name := range []string{"plantower-pms5003", "nova-sds011"} {
		p := get(t, name)
		values := make([]telemetry.Value, len(p.Points))
		for i := range values {
			values[i] = telemetry.IntValue(int64(7+i), p.codecs[i].num.dec)
		}
		raw, err := p.EncodeFrame(values)
		if err != nil {
			t.Fatal(err)
		}
		got := p.DecodeFrame(raw, 0, nil)
		if len(got) != len(values) {
			t.Fatalf("%s: % x gives %d readings", name, raw, len(got))
		}
		for i, r := range got {
			if r.Value != values[i] {
				t.Errorf("%s: %s is %v, want %v", name, p.Points[i].Name, r.Value, values[i])
			}
		}
	}
	if _, err := get(t, "nmea-weather").EncodeFrame(nil); err == nil {
		t.Error("a text line was built")
	}
}

func BenchmarkDecodeFrame(b *testing.B) {
	for name, raw := range map[string][]byte{"nmea-weather": []byte("$WIMWV,57.5,R,13.0,N,A*26"),
		"plantower-pms5003": unhex(b, "42 4d 00 1c 00 00 00 08 00 08 00 00 00 08 00 08 00 d2 00 46 00 2d 00 1e 00 00 00 00 97 00 02 c5")} {
		b.Run(name, func(b *testing.B) {
			p := get(b, name)
			dst := make([]telemetry.Reading, 0, 32)
			b.ReportAllocs()
			for b.Loop() {
				dst = p.DecodeFrame(raw, 0, dst[:0])
			}
		})
	}
}
