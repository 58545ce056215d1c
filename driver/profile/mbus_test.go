package profile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"encoding/hex"

	"tidegate/driver/mbus"
	"tidegate/internal/telemetry"
)

// TestMBusProblems: what a place in a telegram does not go with.
func TestMBusProblems(t *testing.T) {
	const head = "name: x\nstatus: community\nsources: [x]\ntransport: serial\nhandshake: mbus\npoints: {a: {"
	for point, want := range map[string]string{
		"mbus: {quantity: volume}, unit: m3":                  "",
		"mbus: {quantity: volum}":                             "no quantity",
		"mbus: {storage: 1}":                                  "one of quantity",
		"mbus: {quantity: volume, header: id}":                "one of quantity",
		"mbus: {quantity: volume, with: [l9]}":                "no extension",
		"mbus: {header: status, tariff: 1}":                   "no functions",
		"mbus: {vif: FF 22, with: [l1]}":                      "extensions, too",
		"mbus: {quantity: volume}, type: u16":                 "says itself",
		"mbus: {quantity: volume}, at: 3":                     "more than one place",
		"at: 3":                                               "",
		"mbus: {header: status}, flags: {2: low-battery}":     "",
		"mbus: {quantity: error_flags}, bits: [0, 3]":         "",
		"mbus: {quantity: error_flags}, bit: 3":               "",
		"mbus: {quantity: volume, function: maximum, nth: 2}": "",
	} {
		_, problems := Parse(nil, "x.yaml", []byte(head+point+"}}\n"))
		text := ""
		for _, p := range problems {
			text += p.Msg + "\n"
		}
		if point == "at: 3" {
			want = "telegrams of the M-Bus"
		}
		if want == "" && text != "" || !strings.Contains(text, want) {
			t.Errorf("%s: %q, want %q", point, text, want)
		}
	}
}

// TestMBusUnits: values come in the unit of the point, exactly.
func TestMBusUnits(t *testing.T) {
	p, problems := Parse(nil, "x.yaml", []byte(`
name: x
status: community
sources: [x]
transport: serial
handshake: mbus
points:
  kwh: {mbus: {quantity: energy}, unit: kWh}
  gj: {mbus: {quantity: energy, tariff: 1}, unit: GJ}
  cold: {mbus: {quantity: flow_temperature}, unit: Cel, decimals: 1}
  litres: {mbus: {quantity: volume}, unit: l}
  wrong: {mbus: {quantity: power}, unit: V}
  bit3: {mbus: {quantity: error_flags}, bit: 3}
  flow: {mbus: {quantity: volume_flow}, unit: m3/h}
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	data := []byte{
		0x04, 0x86, 0x3C, 1, 0, 0, 0, // what was given away: another value
		0x04, 0x06, 0x39, 0x30, 0, 0, // 12345 kWh
		0x84, 0x10, 0x0E, 0x39, 0x30, 0, 0, // 12345 MJ, tariff 1
		0x02, 0xFB, 0x5B, 0xD4, 0, // 212 degF
		0x02, 0x13, 7, 0,
		0x02, 0x2B, 7, 0,
		0x01, 0xFD, 0x17, 0x08,
		0x02, 0x40, 0x10, 0x27, // 10000 x 10^-7 m3/min
	}
	got := p.DecodeFrame(mbus.Long(mbus.RspUd, 1, 0x78, data...), 0, nil)
	want := []string{"12345", "12.345", "100.0", "7", "fault/bad-text", "true", "0.060000"}
	if len(got) != len(want) {
		t.Fatalf("%d readings", len(got))
	}
	for i, r := range got {
		if text := ReadingText(r); !Want(want[i]).fits(r) && text != want[i] {
			t.Errorf("%s: %s, want %s", p.Points[i].Name, text, want[i])
		}
	}
	if _, err := p.Encode(0, telemetry.IntValue(1, 0), 0); err == nil {
		t.Error("a record has no bytes of its own")
	}
}

// TestMBusRefused: the malformed frames give no reading through the scanner
// of any profile, and good frames around one are found.
func TestMBusRefused(t *testing.T) {
	lib, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	p, err := lib.Get("mbus-water")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../mbus/testdata/libmbus/error_*.hex")
	if err != nil || len(files) < 9 {
		t.Fatal(files, err)
	}
	good := mbus.Long(mbus.RspUd, 1, 0x78, 0x02, 0x13, 7, 0)
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(string(src)), ""))
		if err != nil {
			t.Fatal(err)
		}
		var out []telemetry.Reading
		frame := func(raw []byte) { out = p.DecodeFrame(raw, 0, out) }
		s := p.NewScanner()
		s.Feed(append([]byte{0xE5}, b...), frame)
		s.Flush(frame)
		if len(out) != 0 {
			t.Errorf("%s: %d readings", f, len(out))
		}
		s.Feed(append([]byte{0x68, 0x05}, good...), frame)
		s.Flush(frame)
		if len(out) != 1 {
			t.Errorf("%s: the good frame behind it gave %d readings", f, len(out))
		}
	}
}
