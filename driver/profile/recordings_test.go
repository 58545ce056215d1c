package profile

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tidegate/internal/telemetry"
)

// near compares the text of a reading with a published figure.
func near(got string, want any, by float64) bool {
	if want == nil {
		return got == "fault/marker"
	}
	var f float64
	if _, err := fmt.Sscan(got, &f); err != nil {
		return false
	}
	return math.Abs(f-want.(float64)) <= by
}

// figure says how a published figure compares with a point: its name, the
// factor from ours to theirs, and how far they rounded theirs.
type figure struct {
	point  string
	factor float64
	by     float64
}

// recordings says which profile reads each file of recorded frames, and what
// the figures in it are called here.
var recordings = []struct {
	file, profile string
	figures       map[string]figure
	wrap          func(frame []byte) []byte // what the recording leaves away
}{
	{file: "plantower-pms5003", figures: map[string]figure{"raw01": {"pm1_cf1", 1, 0}, "raw25": {"pm2_5_cf1", 1, 0}, "raw10": {"pm10_cf1", 1, 0},
		"pm01": {"pm1", 1, 0}, "pm25": {"pm2_5", 1, 0}, "pm10": {"pm10", 1, 0}, "n0_3": {"particles_0_3", 1, 0}, "n0_5": {"particles_0_5", 1, 0},
		"n1_0": {"particles_1_0", 1, 0}, "n2_5": {"particles_2_5", 1, 0}, "n5_0": {"particles_5_0", 1, 0}, "n10_0": {"particles_10", 1, 0}}},
	{file: "plantower-pms3003", figures: map[string]figure{"raw01": {"pm1_cf1", 1, 0}, "raw25": {"pm2_5_cf1", 1, 0}, "raw10": {"pm10_cf1", 1, 0},
		"pm01": {"pm1", 1, 0}, "pm25": {"pm2_5", 1, 0}, "pm10": {"pm10", 1, 0}}},
	{file: "nova-sds011", figures: map[string]figure{"pm25": {"pm2_5", 1, 0}, "pm10": {"pm10", 1, 0}}},
	{file: "winsen-mhz19b", figures: map[string]figure{"CO2": {"co2", 1, 0}}},
	{file: "sensirion-sps30", figures: map[string]figure{"pm01": {"pm1", 1, 0.051}, "pm25": {"pm2_5", 1, 0.051}, "pm04": {"pm4", 1, 0.051}, "pm10": {"pm10", 1, 0.051},
		"n0_5": {"particles_to_0_5", 1, 0.01}, "n1_0": {"particles_to_1_0", 1, 0.01}, "n2_5": {"particles_to_2_5", 1, 0.01},
		"n4_0": {"particles_to_4_0", 1, 0.01}, "n10_0": {"particles_to_10", 1, 0.01}, "diam": {"particle_size", 1, 0.051}}},
	// The published accuracy is 25 >> 4, of the index and not of the word: it
	// is not compared. The module's upper four bits say 0.
	{file: "gy-mcu680", figures: map[string]figure{"temp": {"temperature", 1, 0.051}, "rhum": {"humidity", 1, 0.051}, "pres": {"pressure", 1, 0.001},
		"IAQ": {"iaq", 1, 0}, "IAQ_acc": {"", 0, 0}, "gas": {"gas_resistance", 0.001, 0.051}, "alt": {"altitude", 1, 0}}},
	{file: "gill-windobserver", figures: map[string]figure{"node": {"node", 0, 0}, "dir_deg": {"wind_direction", 1, 0}, "speed": {"wind_speed", 3600.0 / 1852, 0.01},
		"unit_letter": {"", 0, 0}, "sound_speed": {"sound_speed", 1, 0}, "sonic_temp_c": {"sonic_temperature", 1, 0}, "status": {"device_status", 0, 0}}},
	{file: "contec-cms50d", figures: map[string]figure{"signal": {"signal_strength", 1, 0}, "finger_out": {"finger_out", 0, 0}, "pulse_bpm": {"heart_rate", 1, 0}, "spo2_pct": {"spo2", 1, 0}}},
	{file: "nonin-oem3", figures: map[string]figure{"hr": {"heart_rate_instant", 1, 0}, "spo2": {"spo2_instant", 1, 0}, "firmware": {"firmware_revision", 1, 0},
		"spo2_d": {"spo2", 1, 0}, "e_hr": {"heart_rate_extended", 1, 0}, "hr_d": {"heart_rate", 1, 0}}},
	{file: "masimo-rad8", figures: map[string]figure{"spo2_pct": {"spo2", 1, 0}, "pulse_bpm": {"heart_rate", 1, 0}, "perfusion_pct": {"perfusion_index", 1, 0},
		"alarm_hex": {"device_alarm", 0, 0}, "exc_hex": {"device_status", 0, 0}}},
	{file: "datascope-accutorr", figures: map[string]figure{"spo2_pct": {"spo2", 1, 0}, "pulse_bpm": {"heart_rate", 1, 0}, "systolic_mmHg": {"systolic", 1, 0},
		"mean_mmHg": {"mean_pressure", 1, 0}, "diastolic_mmHg": {"diastolic", 1, 0}, "minutes_since": {"measurement_age", 1, 0}}},
	{file: "visomat-double-comfort", figures: map[string]figure{"user": {"user", 1, 0}, "flag": {"record_flag", 1, 0}, "yymmdd": {"record_time", 0, 0}, "hhmm": {"record_time", 0, 0},
		"systolic_mmHg": {"systolic", 1, 0}, "diastolic_mmHg": {"diastolic", 1, 0}, "pulse_bpm": {"heart_rate", 1, 0}}},
	// The recording holds the body of the packet alone.
	{file: "wavetronix-ss125", profile: "wavetronix-ss125-events", wrap: ss125, figures: map[string]figure{"lane": {"lane", 1, 0}, "range": {"vehicle_range", 1, 0.005},
		"duration_ms": {"presence_time", 1, 0}, "speed": {"speed", 1, 0}, "class": {"vehicle_class", 1, 0}, "length": {"vehicle_length", 1, 0.005}}},
}

// ss125 puts the head of a packet of sensor 1 before a body.
func ss125(body []byte) []byte {
	head := []byte{0x5a, 0x31, 0, 0, 0, 0, 0, 1, 1, byte(len(body) - 1)}
	return append(append(head, crc8(head, 0x1c, 0, false)), body...)
}

type recordedFile struct {
	Frames, Lines []struct {
		Hex, Text string
		Values    any // of one record, of several, or null: it must be rejected
	}
}

// TestRecordings decodes every recorded frame and line with the profile of
// its device. What must be rejected gives nothing, what has no value gives a
// reading without one; with any single bit turned, or cut, a frame that is
// protected by a check is not taken.
func TestRecordings(t *testing.T) {
	for _, rec := range recordings {
		t.Run(rec.file, func(t *testing.T) {
			var f recordedFile
			readJSON(t, "serial/"+rec.file+".json", &f)
			p := get(t, first(rec.profile, rec.file))
			good, bad := 0, 0
			var stream []byte
			for i, fr := range append(f.Frames, f.Lines...) {
				wire := unhex(t, fr.Hex)
				if fr.Text != "" {
					wire = []byte("\r\n" + fr.Text + "\r\n")
				}
				if rec.wrap != nil {
					wire = rec.wrap(wire)
				}
				var groups []map[string]string
				var raw []byte
				take := func(b []byte) {
					raw = bytes.Clone(b)
					groups = append(groups, grouped(p, b)...)
				}
				s := p.NewScanner()
				s.Feed(wire, take)
				s.Flush(take)
				records, _ := fr.Values.([]any)
				if one, ok := fr.Values.(map[string]any); ok {
					records = []any{one}
				}
				if len(groups) != len(records) {
					t.Errorf("frame %d: %d records, want %d: %v", i, len(groups), len(records), groups)
					continue
				}
				if len(records) == 0 {
					bad++
					continue
				}
				for k, want := range records {
					compare(t, fmt.Sprintf("frame %d, record %d", i, k), groups[k], want.(map[string]any), rec.figures)
				}
				good++
				stream = append(append(stream, wire...), byte(i))
				if p.raw.guarded {
					damage(t, p, raw)
				}
			}
			if good+bad == 0 {
				t.Fatal("the file holds no frames")
			}
			n := 0
			p.NewScanner().Feed(stream, func(b []byte) { n++ })
			if n != good {
				t.Errorf("%d of %d frames found in the stream", n, good)
			}
			t.Logf("%d frames decoded, %d rejected", good, bad)
		})
	}
}

// grouped decodes a frame into records by name. Points that stand once in a
// frame with several records belong to the first.
func grouped(p *Profile, raw []byte) (out []map[string]string) {
	Groups(p.DecodeFrame(raw, 0, nil), func(g []telemetry.Reading) {
		m := map[string]string{}
		for _, r := range g {
			m[p.Points[r.Point].Name] = ReadingText(r)
		}
		out = append(out, m)
	})
	return out
}

func compare(t *testing.T, at string, got map[string]string, want map[string]any, figures map[string]figure) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(want)) {
		v := want[key]
		fig, known := figures[key]
		text := got[fig.point]
		ok := known
		switch x := v.(type) {
		case float64:
			if fig.point == "" {
				continue
			}
			text = strings.TrimSuffix(text, " range")
			f, err := strconv.ParseFloat(text, 64)
			ok = ok && err == nil && math.Abs(f*fig.factor-x) <= fig.by+1e-9
		case nil:
			ok = ok && text == "fault/marker"
		case bool:
			ok = ok && text == strconv.FormatBool(x)
		case string:
			switch key {
			case "unit_letter":
				ok = x == "N" // the factor of the speed above
			case "alarm_hex", "exc_hex":
				ok = ok && text == map[string]string{"0000": "", "000800": "masimo-set"}[x]
			case "yymmdd":
				ok = ok && strings.HasPrefix(text, x)
			case "hhmm":
				ok = ok && strings.HasSuffix(text, x)
			default:
				ok = ok && text == x
			}
		}
		if !ok {
			t.Errorf("%s: %s = %v, but %s is %q", at, key, v, fig.point, text)
		}
	}
}

// damage turns each bit of a good frame, and cuts it.
func damage(t *testing.T, p *Profile, raw []byte) {
	t.Helper()
	for bit := range 8 * len(raw) {
		broken := bytes.Clone(raw)
		broken[bit/8] ^= 1 << (bit % 8)
		if got := readings(p, broken); len(got) > 0 && !alike(broken, raw) {
			t.Fatalf("with bit %d turned, %s gives %v", bit, hex.EncodeToString(raw), got)
		}
	}
	for n := range raw {
		if got := readings(p, raw[:n]); len(got) > 0 {
			t.Fatalf("%d bytes of %s give %v", n, hex.EncodeToString(raw), got)
		}
	}
}

// TestRecordingsInNoise feeds the recordings in random pieces with noise
// between them: no value comes out that is not in a recording, and all come
// of those devices whose frames a check protects.
func TestRecordingsInNoise(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	for _, rec := range recordings {
		t.Run(rec.file, func(t *testing.T) {
			var f recordedFile
			readJSON(t, "serial/"+rec.file+".json", &f)
			p := get(t, first(rec.profile, rec.file))
			if !p.raw.guarded {
				return // nothing tells noise from a value there
			}
			for round := range 40 {
				var stream []byte
				want := map[string]bool{}
				frames := 0
				for _, fr := range append(f.Frames, f.Lines...) {
					wire := unhex(t, fr.Hex)
					if fr.Values == nil || len(wire) == 0 {
						continue
					}
					if rec.wrap != nil {
						wire = rec.wrap(wire)
					}
					noise := random(rng, rng.IntN(24))
					for i := range noise {
						noise[i] %= 0x40 // no byte that starts a frame with a length of its own
					}
					if p.raw.line {
						noise = append(noise, '\r')
					}
					stream = append(append(stream, noise...), wire...)
					p.NewScanner().Feed(wire, func(b []byte) { want[fmt.Sprint(readings(p, b))] = true })
					frames++
				}
				got := 0
				s := p.NewScanner()
				take := func(b []byte) {
					if r := readings(p, b); len(r) > 0 {
						got++
						if !want[fmt.Sprint(r)] {
							t.Fatalf("round %d of seed 11, 12: noise gives %v", round, r)
						}
					}
				}
				for rest := stream; len(rest) > 0; {
					n := 1 + rng.IntN(len(rest))
					s.Feed(rest[:n], take)
					rest = rest[n:]
				}
				s.Flush(take)
				if got != frames {
					t.Fatalf("round %d of seed 11, 12: %d of %d frames", round, got, frames)
				}
			}
		})
	}
}
