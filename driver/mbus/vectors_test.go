package mbus

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// frames is where the recorded frames lie; see SOURCE.md there.
const frames = "testdata/libmbus"

type vector struct {
	File     string `json:"file"`
	Expected *struct {
		Slave   map[string]string   `json:"slave"`
		Records []map[string]string `json:"records"`
	} `json:"expected"`
}

func loadVectors(t testing.TB) (list []vector) {
	t.Helper()
	src, err := os.ReadFile(filepath.Join(frames, "expected.json"))
	if err == nil {
		err = json.Unmarshal(src, &list)
	}
	if err != nil || len(list) == 0 {
		t.Fatal(err)
	}
	return list
}

func loadFrame(t testing.TB, file string) []byte {
	t.Helper()
	src, err := os.ReadFile(filepath.Join(frames, filepath.Base(file)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(src)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(b []byte) (*Telegram, error) {
	f, n, err := ParseFrame(b)
	switch {
	case err != nil:
		return nil, err
	case n != len(b):
		return nil, ErrFrame
	}
	return Parse(f)
}

// libmbusNames are libmbus's quantities by ours, where both have one.
var libmbusNames = map[string]string{
	"Actuality Duration": "actuality_duration", "Averaging Duration": "averaging_duration", "Current": "current",
	"Customer location": "customer_location", "Digital Input": "digital_input", "Dimensionless": "dimensionless",
	"Energy": "energy", "Error flags": "error_flags", "External temperature": "external_temperature",
	"Fabrication No": "fabrication_number", "Firmware version": "firmware_version", "Flow temperature": "flow_temperature",
	"H.C.A.": "hca", "Manufacturer specific": "maker", "Model / Version": "model", "On time": "on_time",
	"Operating time": "operating_time", "Parameter set identification": "parameter_set", "Power": "power", "Reserved": "",
	"Return temperature": "return_temperature", "Software version": "software_version",
	"Temperature difference": "temperature_difference", "Time point (date & time)": "time_point", "Time point (date)": "time_point",
	"Voltage": "voltage", "Volume flow": "volume_flow", "Volume": "volume",
}

var libmbusUnits = map[string]string{"m^3": "m3", "m^3/h": "m3/h", "°C": "Cel", "-": "", "Units for H.C.A.": "", "Reserved": "", "l": "m3", "reserved but historic": "m3"}

var libmbusFunctions = map[string]Function{"Instantaneous value": Instantaneous, "Maximum value": Maximum, "Minimum value": Minimum, "Value during error state": DuringError, "Actual value": Instantaneous}

// TestVectors compares every record of every recorded frame with what
// libmbus makes of it, but for the differences that SOURCE.md names.
func TestVectors(t *testing.T) {
	good, bad, records := 0, 0, 0
	for _, v := range loadVectors(t) {
		tele, err := parse(loadFrame(t, v.File))
		if v.Expected == nil {
			bad++
			if err == nil || tele != nil {
				t.Errorf("%s: %+v, %v; want an error and nothing else", v.File, tele, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", v.File, err)
			continue
		}
		good++
		s := v.Expected.Slave
		for key, got := range map[string]string{"Id": tele.ID, "Manufacturer": tele.Maker,
			"Version": strconv.Itoa(int(tele.Version)), "AccessNumber": strconv.Itoa(int(tele.Access)), "Status": strings.ToUpper(hex.EncodeToString([]byte{tele.Status}))} {
			if want, ok := s[key]; ok && strings.TrimLeft(want, "0") != strings.TrimLeft(got, "0") {
				t.Errorf("%s: %s %s, want %s", v.File, key, got, want)
			}
		}
		k := 0
		for _, want := range v.Expected.Records {
			if want["Function"] == "" && k < len(tele.Records) && tele.Records[k].Quantity == "" {
				k++ // a VIF that neither of us knows
				continue
			}
			if _, ok := libmbusFunctions[want["Function"]]; !ok { // the maker's own data
				raw := strings.ToUpper(hex.EncodeToString(tele.Own))
				if w := strings.ReplaceAll(want["Value"], " ", ""); w != "" && raw != w || tele.More != (want["Function"] == "More records follow") {
					t.Errorf("%s: the maker's data are %s more=%t, want %v", v.File, raw, tele.More, want)
				}
				continue
			}
			if k >= len(tele.Records) {
				t.Errorf("%s: no record %d", v.File, k)
				break
			}
			compare(t, v.File, k, &tele.Records[k], want, tele.Fixed)
			k++
			records++
		}
		if k != len(tele.Records) {
			t.Errorf("%s: %d records, want %d", v.File, len(tele.Records), k)
		}
	}
	t.Logf("%d frames with %d records are right, %d malformed ones are refused", good, records, bad)
	if good < 53 || bad < 9 {
		t.Error("frames are missing")
	}
}

func compare(t *testing.T, file string, k int, r *Record, want map[string]string, fixed bool) {
	t.Helper()
	number := func(key string) string {
		if want[key] == "" {
			return "0"
		}
		return want[key]
	}
	if !fixed {
		place := [...]string{strconv.FormatUint(r.Storage, 10), strconv.Itoa(int(r.Tariff)), strconv.Itoa(int(r.Subunit))}
		if place != [...]string{number("StorageNumber"), number("Tariff"), number("Device")} || r.Function != libmbusFunctions[want["Function"]] {
			t.Errorf("%s %d: storage, tariff, subunit %v %v, want %v", file, k, place, r.Function, want)
		}
		quantity, ok := libmbusNames[want["Quantity"]]
		if r.Label != "" {
			ok, quantity = r.Label == want["Quantity"], "text"
		}
		if !ok && want["Quantity"] != "" || ok && r.Quantity != quantity {
			t.Errorf("%s %d: quantity %q %q, want %v", file, k, r.Quantity, r.Label, want)
		}
	}
	unit := strings.ReplaceAll(want["Unit"], "Â", "")
	if u, ok := libmbusUnits[unit]; ok {
		unit = u
	}
	scale := math.Pow10(r.Exp)
	got := r.Unit
	switch {
	case unit == "kWh":
		unit, scale = "Wh", scale/1000
	case want["Unit"] == "l" || want["Unit"] == "reserved but historic":
		scale *= 1000
	case unit == "s":
		scale *= map[string]float64{"s": 1, "min": 60, "h": 3600, "d": 86400}[got]
		got = "s"
	case unit == "W" && got == "J/h":
		scale, got = scale/3600, "W"
	}
	if len(r.Qualifiers) > 0 && got == "s" {
		unit = "s" // how long a limit was exceeded; libmbus does not know
	}
	if r.Value.Fault == OK && got != unit {
		t.Errorf("%s %d: unit %s, want %v", file, k, r.Unit, want)
	}
	text := strings.TrimSpace(want["Value"])
	x, err := strconv.ParseFloat(text, 64)
	near := func(got float64) bool { return err == nil && math.Abs(got-x) <= 1e-6*math.Abs(x)+1e-6 }
	ok := false
	switch v := r.Value; v.Form {
	case Integer:
		ok = near(float64(v.Int) * scale)
	case Unsigned:
		ok = near(float64(v.Uint) * scale)
	case Real:
		ok = near(float64(v.Float) * scale)
	case Text:
		ok = v.Str == text
	case Bytes:
		raw := []byte{}
		for i := len(v.Raw) - 1; i >= 0; i-- {
			raw = append(raw, v.Raw[i])
		}
		ok = hex.EncodeToString(raw) == strings.ToLower(strings.ReplaceAll(text, " ", ""))
	case Moment:
		ok = v.Time.String() == strings.TrimSuffix(strings.TrimSuffix(text, "Z"), ":00") || v.Time.String() == text
	case None:
		switch v.Fault {
		case NotTime:
			ok = strings.Contains(text, "-00") || strings.Contains(text, "2000-00")
		case NotBCD:
			ok = r.Function == DuringError
		case NoValue:
			ok = text == ""
		}
	}
	if !ok {
		t.Errorf("%s %d: %+v, want %v", file, k, r, want)
	}
}

// TestEveryCut: a frame that ends early, or with a byte changed, is an error
// or, where only the length of the data was at stake, never a shorter answer.
func TestEveryCut(t *testing.T) {
	for _, v := range loadVectors(t) {
		b := loadFrame(t, v.File)
		for n := range b {
			if _, _, err := ParseFrame(b[:n]); !errors.Is(err, ErrShort) {
				t.Fatalf("%s: %d of %d bytes: %v", v.File, n, len(b), err)
			}
		}
		for i := range b {
			c := append([]byte{}, b...)
			c[i] ^= 0x40
			if _, _, err := ParseFrame(c); err == nil {
				t.Errorf("%s: byte %d changed, and nothing was noticed", v.File, i)
			}
		}
	}
}
