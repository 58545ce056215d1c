package profile

import (
	"fmt"
	"math/big"
	"strings"
	"testing"

	"tidegate/internal/telemetry"
)

func sentences(t testing.TB) (all sentenceFile) {
	for _, file := range []string{"go-nmea-tests", "bg-zeus2-capture", "humminbird-M37"} {
		var f sentenceFile
		readJSON(t, "nmea/"+file+".json", &f)
		all.Sentences = append(all.Sentences, f.Sentences...)
	}
	if len(all.Sentences) < 270 {
		t.Fatalf("%d sentences", len(all.Sentences))
	}
	return all
}

// checksum is the exclusive or of what stands between the $ and the *.
func checksum(s string) string {
	var sum byte
	for i := range len(s) {
		sum ^= s[i]
	}
	return fmt.Sprintf("%02X", sum)
}

// TestNMEAFields takes every field of every recorded sentence: a number is
// that number, an empty field is no value and never 0, anything else is bad
// text. Every sentence is also damaged, and then says nothing.
func TestNMEAFields(t *testing.T) {
	fields, empty := 0, 0
	for _, s := range sentences(t).Sentences {
		body, _, _ := strings.Cut(s.Text[1:], "*")
		parts := strings.Split(body, ",")
		var points []Point
		for i := 1; i < len(parts); i++ {
			points = append(points, Point{Name: fmt.Sprintf("f%d", i), NMEA: parts[0][2:], Field: ptr(i)})
		}
		p := custom(t, &Frames{Kind: "line", Check: Check{Kind: "nmea"}}, points...)
		got := p.DecodeFrame([]byte(s.Text), 0, nil)
		if len(got) != len(points) {
			t.Errorf("%s: %d readings of %d", s.Text, len(got), len(points))
			continue
		}
		for _, r := range got {
			raw, text := parts[r.Point+1], ReadingText(r)
			fields++
			want, number := new(big.Rat).SetString(raw)
			switch {
			case raw == "":
				empty++
				if text != "fault/marker" {
					t.Errorf("%s: the empty field %d is %s", s.Text, r.Point+1, text)
				}
			case number:
				if v, ok := new(big.Rat).SetString(r.Value.String()); !ok || r.Quality != telemetry.Good || v.Cmp(want) != 0 {
					t.Errorf("%s: field %d is %s, want %s", s.Text, r.Point+1, text, raw)
				}
			case text != "fault/bad-text" && text != "fault/marker":
				t.Errorf("%s: field %d is %s, and it is %q", s.Text, r.Point+1, text, raw)
			}
		}
		for i := range s.Text {
			for _, x := range []byte{1, 2, 0x10} {
				b := []byte(s.Text)
				b[i] ^= x
				if got := p.DecodeFrame(b, 0, nil); len(got) > 0 && !strings.EqualFold(string(b), s.Text) && b[0] != '!' {
					t.Fatalf("%q was taken for %q", b, s.Text)
				}
			}
			if got := p.DecodeFrame([]byte(s.Text[:i]), 0, nil); len(got) > 0 {
				t.Fatalf("%q was taken for %q", s.Text[:i], s.Text)
			}
		}
	}
	t.Logf("%d fields, %d of them empty", fields, empty)
	if empty < 200 {
		t.Errorf("only %d empty fields", empty)
	}
}

// TestGNSS decodes all recorded sentences with the profile of receivers.
func TestGNSS(t *testing.T) {
	p := get(t, "nmea-gnss-vehicle")
	seen := map[string]int{}
	for _, s := range sentences(t).Sentences {
		got, v, kind := readings(p, []byte(s.Text)), s.Values, s.Text[3:6]
		check := func(name string, want any, factor, by float64) {
			t.Helper()
			if f, ok := want.(float64); ok {
				want = f * factor
			}
			if !near(got[name], want, by) {
				t.Errorf("%s: %s = %q, want %v", s.Text, name, got[name], want)
			}
		}
		switch {
		case s.Error != "":
			// What the sentence says wrong is not said.
			for _, name := range []string{"latitude", "longitude", "speed", "heading"} {
				if text, ok := got[name]; ok && !strings.HasPrefix(text, "fault/") {
					t.Errorf("%s (%s): %s = %s", s.Text, s.Error, name, text)
				}
			}
			if strings.Contains(s.Error, "fix quality") && (got["altitude"] != "fault/marker" || !strings.HasSuffix(got["fix_quality"], " range")) {
				t.Errorf("%s gives %v", s.Text, got)
			}
		case kind == "RMC":
			check("latitude", v["lat"], 1, 6e-8)
			check("longitude", v["lon"], 1, 6e-8)
			check("speed", v["speed_kn"], 1.852, 0.0051)
			check("course", v["course_deg"], 1, 0)
		case kind == "GGA":
			check("altitude", v["alt_m"], 1, 0)
			check("satellites", v["sats"], 1, 0)
			if v["quality"] != nil && got["fix_quality"] == "" {
				t.Errorf("%s gives %v", s.Text, got)
			}
		case kind == "HDT":
			if _, field, _ := strings.Cut(s.Text, ","); !strings.HasPrefix(field, got["heading"]+",") {
				t.Errorf("%s gives %v", s.Text, got)
			}
		case len(got) > 0:
			t.Errorf("%s gives %v", s.Text, got)
		}
		if len(got) > 0 {
			seen[kind]++
		}
	}
	if seen["RMC"] < 20 || seen["GGA"] < 15 || seen["HDT"] < 1 {
		t.Errorf("%v", seen)
	}
}

// TestUnusualSentences: what stands on a line beside plain sentences.
func TestUnusualSentences(t *testing.T) {
	p := custom(t, &Frames{Kind: "line", Check: Check{Kind: "nmea"}}, Point{Name: "t", NMEA: "MTW", Field: ptr(1)},
		Point{Name: "w", NMEA: "PGRME", Field: ptr(1)})
	sentence := func(body string) string { return "$" + body + "*" + checksum(body) }
	for in, want := range map[string]string{
		sentence("INMTW,17.9,C"):                              "t=17.9",
		sentence("SDMTW,17.9,C"):                              "t=17.9",
		sentence("YXMTW,-1.5,C"):                              "t=-1.5",
		sentence("INMTW,+17.9,C"):                             "t=17.9",
		sentence("INMTW,017.90,C"):                            "t=17.90",
		sentence("INMTW,.5,C"):                                "t=0.5",
		sentence("INMTW,17.,C"):                               "t=17",
		sentence("INMTW, 17.9 ,C"):                            "t=17.9",
		sentence("INMTW,17,9,C"):                              "t=17",
		sentence("INMTW,1e400,C"):                             "t=fault/bad-text",
		sentence("INMTW,0x10,C"):                              "t=fault/bad-text",
		sentence("INMTW,NaN,C"):                               "t=fault/bad-text",
		sentence("INMTW,--.-,C"):                              "t=fault/marker",
		sentence("INMTW,,C"):                                  "t=fault/marker",
		sentence("INMTW,"):                                    "t=fault/marker",
		sentence("INMTW"):                                     "",
		sentence("PXMTW,17.9,C"):                              "", // proprietary
		sentence("PGRME,15.0,M,45.0,M,25.0,M"):                "w=15.0",
		sentence("XPGRME,15.0,M"):                             "",
		sentence("INMTWX,17.9,C"):                             "",
		sentence("MTW,17.9,C"):                                "t=17.9", // without a talker
		`\s:mast,c:1577836800*5C\` + sentence("INMTW,17.9,C"): "t=17.9", // a tag block before it
		"$INMTW,3.3,C" + sentence("INMTW,17.9,C"):             "t=17.9", // the one before lost its end
		"$INMTW,17.9,C":                                       "",
		"$INMTW,17.9,C*":                                      "",
		"$INMTW,17.9,C*1":                                     "",
		"$INMTW,17.9,C*1B0":                                   "",
		"INMTW,17.9,C*1B":                                     "",
		"$*00":                                                "",
	} {
		s := p.NewScanner()
		var got []string
		s.Feed([]byte(in+"\r\n"), func(raw []byte) {
			for _, r := range p.DecodeFrame(raw, 0, nil) {
				got = append(got, p.Points[r.Point].Name+"="+ReadingText(r))
			}
		})
		if strings.Join(got, " ") != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}

// FuzzNMEA: whatever comes, a sentence is taken only if it stands whole on
// the line and its checksum holds, and an empty field has no value.
func FuzzNMEA(f *testing.F) {
	for i, s := range sentences(f).Sentences {
		if i%9 == 0 {
			f.Add("noise\x00" + s.Text + "\r\n" + s.Text[5:] + "\n" + s.Text)
		}
	}
	f.Add("\\s:a*00\\$INMTW,,C*1A\r\n$*00\n$,*2C\n$P*50\r\n$INMTW,17.9,C*1b\r!INMTW,17.9,C*1B\n")
	weather, gnss := get(f, "nmea-weather"), get(f, "nmea-gnss-vehicle")
	any := custom(f, &Frames{Kind: "line", Check: Check{Kind: "nmea"}}, Point{Name: "a", NMEA: "MTW", Field: ptr(1)}, Point{Name: "b", Field: ptr(2), Type: "string"},
		Point{Name: "c", XDR: &XDR{Name: "BARO"}})
	f.Fuzz(func(t *testing.T, in string) {
		for _, p := range []*Profile{weather, gnss, any} {
			s := p.NewScanner()
			take := func(raw []byte) {
				body, sum, found := strings.Cut(string(raw[1:]), "*")
				if i := strings.LastIndexByte(string(raw), '*'); i > 0 {
					body, sum = string(raw[1:i]), string(raw[i+1:])
				}
				if !found || !strings.EqualFold(sum, checksum(body)) || !strings.Contains(in, string(raw)) {
					t.Fatalf("%q was taken", raw)
				}
				parts := strings.Split(body, ",")
				for _, r := range p.DecodeFrame(raw, 0, nil) {
					pt := &p.Points[r.Point]
					if pt.Field != nil && len(pt.Or) == 0 && strings.TrimSpace(parts[*pt.Field]) == "" && r.Value.Kind() != telemetry.None {
						t.Fatalf("%q: %s = %s of an empty field", raw, pt.Name, ReadingText(r))
					}
					if (r.Quality == telemetry.Good) != (r.Value.Kind() != telemetry.None) && r.Quality != telemetry.Range {
						t.Fatalf("%q: %s is %s", raw, pt.Name, ReadingText(r))
					}
				}
			}
			s.Feed([]byte(in), take)
			s.Flush(take)
		}
	})
}
