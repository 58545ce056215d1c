package profile

import (
	"encoding/binary"
	"math"
	"testing"
)

func f32(x float32) []byte { return binary.BigEndian.AppendUint32(nil, math.Float32bits(x)) }

// TestSigns: each read of detect accepts what the device says and nothing else.
func TestSigns(t *testing.T) {
	p := get(t, "eastron-sdm120")
	signs := p.Signs()
	if len(signs) < 3 {
		t.Fatalf("%d signs", len(signs))
	}
	for _, c := range []struct {
		sign     int
		data     []byte
		ok, zero bool
		seen     string
	}{
		{0, f32(230.5), true, false, "voltage_l1 230.5 V"},
		{0, f32(23.5), false, false, "voltage_l1 23.5 V"},
		{0, f32(0), false, true, "voltage_l1 0 V"},
		{0, f32(float32(math.NaN())), false, false, "voltage_l1 fault/nan"},
		{0, []byte{0x43, 0x66}, false, false, ""},
		{1, f32(0), true, true, "input 2 0"},
		{1, f32(229), false, false, "input 2 229"},
	} {
		seen, ok, zero := signs[c.sign].Judge(c.data)
		if ok != c.ok || zero != c.zero || seen != c.seen {
			t.Errorf("sign %d of % x: %q %v %v, want %q %v %v", c.sign, c.data, seen, ok, zero, c.seen, c.ok, c.zero)
		}
	}
	if get(t, "nmea-weather").Signs() != nil {
		t.Error("a serial profile has no reads")
	}
}

// TestExplains: what a sibling has at the same place does not part the two;
// the same place with another meaning of the bytes does.
func TestExplains(t *testing.T) {
	voltage := get(t, "eastron-sdm120").Signs()[0]
	if !get(t, "eastron-sdm630").Explains(&voltage, f32(230)) {
		t.Error("the SDM630 has the same voltage")
	}
	if get(t, "eastron-sdm630").Explains(&voltage, f32(9000)) {
		t.Error("9000 V is not explained by a range to 500")
	}
	if half := get(t, "omega-os-mini").Signs()[0]; !get(t, "eastron-sdm120").Explains(&half, []byte{0x1f, 0x40}) {
		t.Error("input 7 is the half of a current")
	}
	if get(t, "pzem-016").Explains(&voltage, f32(230)) {
		t.Error("the PZEM has an u16 there")
	}
}

func TestSameValue(t *testing.T) {
	for _, name := range []string{"carlo-gavazzi-em24-ethernet"} {
		for _, s := range get(t, name).Signs() {
			if s.is == "" {
				continue
			}
			if _, ok, _ := s.Judge([]byte{0, 7}); !ok {
				t.Errorf("%s: 7 is 7", name)
			}
			if _, ok, _ := s.Judge([]byte{0, 8}); ok {
				t.Errorf("%s: 8 is not 7", name)
			}
		}
	}
}
