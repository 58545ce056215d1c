package profile

import (
	"encoding/binary"
	"math"
	"testing"
)

// regs lays registers out as they come.
func regs(words ...uint16) (b []byte) {
	for _, w := range words {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return b
}

// TestGuesses: the way in which the value was written comes first, whatever
// it was, and false friends come behind it or not at all.
func TestGuesses(t *testing.T) {
	hi := func(f float64) uint16 { return uint16(math.Float32bits(float32(f)) >> 16) }
	lo := func(f float64) uint16 { return uint16(math.Float32bits(float32(f))) }
	swap := func(w uint16) uint16 { return w<<8 | w>>8 }
	d := math.Float64bits(230.1)
	for _, c := range []struct {
		name   string
		first  uint16
		data   []byte
		want   float64
		point  string
		value  string
		behind string // a false friend that is there, behind the right one
	}{
		{"f32", 9, regs(7, hi(230.1), lo(230.1), 9, 9, 9), 230, "{holding: 10, type: f32}", "230.1", ""},
		{"f32 low word first", 9, regs(7, lo(230.1), hi(230.1), 9, 9, 9), 230, "{holding: 10, type: f32, order: CDAB}", "230.1", ""},
		{"f32 bytes swapped", 9, regs(7, swap(hi(230.1)), swap(lo(230.1)), 9, 9, 9), 230, "{holding: 10, type: f32, order: BADC}", "230.1", ""},
		{"f32 all reversed", 9, regs(7, swap(lo(230.1)), swap(hi(230.1)), 9, 9, 9), 230, "{holding: 10, type: f32, order: DCBA}", "230.1", ""},
		{"u16 tenths", 9, regs(7, 2301, 5, 9, 9, 9), 230, "{holding: 10, scale: 0.1}", "230.1", ""},
		{"u16 whole", 9, regs(7, 230, 2300, 9, 9, 9), 230, "{holding: 10}", "230", "{holding: 11, scale: 0.1}"},
		{"u16 bytes swapped", 9, regs(7, swap(2301), 1, 9, 9, 9), 230, "{holding: 10, order: BADC, scale: 0.1}", "230.1", ""},
		{"s16 tenths below zero", 9, regs(7, 0xFF38, 1, 9, 9, 9), -20, "{holding: 10, type: s16, scale: 0.1}", "-20", ""},
		{"u32 hundredths", 9, regs(7, 0, 23010, 9, 9, 9), 230, "{holding: 10, type: u32, scale: 0.01}", "230.1", "{holding: 11, scale: 0.01}"},
		{"u32 thousandths, low word first", 9, regs(7, 0x82D4, 3, 1, 1, 1), 230, "{holding: 10, type: u32, order: CDAB, scale: 0.001}", "230.1", ""},
		{"s32 or s16, which nothing parts", 9, regs(7, 0xFC18, 0xFFFF, 1, 1, 1), -100, "{holding: 10, type: s16, scale: 0.1}", "-100", "{holding: 10, type: s32, order: CDAB, scale: 0.1}"},
		{"s32 below zero, low word first", 9, regs(7, 0x2B5C, 0xFFFE, 1, 1, 1), -120000, "{holding: 10, type: s32, order: CDAB}", "-119972", ""},
		{"f64", 9, regs(7, uint16(d>>48), uint16(d>>32), uint16(d>>16), uint16(d), 9), 230, "{holding: 10, type: f64}", "230.1", ""},
		{"u64 Wh as kWh", 9, regs(7, 0, 0, 0x10, 0x6740, 9), 1075, "{holding: 10, type: u64, scale: 0.001}", "1075.008", ""},
		{"manual counts from 1", 9, regs(hi(230.1), lo(230.1), 9, 9, 9, 9), 230, "{holding: 9, type: f32}", "230.1", ""},
		{"one further", 9, regs(7, 9, 2301, 9, 9, 9), 230, "{holding: 11, scale: 0.1}", "230.1", ""},
		{"bcd", 9, regs(7, 0x2301, 9, 9, 9, 9), 230, "{holding: 10, type: bcd16, scale: 0.1}", "230.1", ""},
		{"kilo", 9, regs(7, 3, 9, 9, 9, 9), 3000, "{holding: 10, scale: 1000}", "3000", ""},
		{"the first register", 0, regs(2301, 9, 9, 9), 230, "{holding: 0, scale: 0.1}", "230.1", ""},
		{"zero", 9, regs(7, 0, 5, 9, 9, 9), 0, "{holding: 10}", "0", ""},
	} {
		asked := uint16(10)
		if c.first == 0 {
			asked = 0
		}
		got := Guesses(Holding, c.first, c.data, asked, c.want)
		if len(got) == 0 || got[0].Point() != c.point || got[0].Value != c.value {
			t.Errorf("%s: got %+v, want %s = %s first", c.name, got, c.point, c.value)
			continue
		}
		found := c.behind == ""
		for _, g := range got[1:] {
			found = found || g.Point() == c.behind
		}
		if !found {
			t.Errorf("%s: %s is not behind the right one: %+v", c.name, c.behind, got)
		}
		// The line that is pasted reads that value.
		for _, g := range got {
			if g.Off > GuessTolerance {
				t.Errorf("%s: %+v is too far away", c.name, g)
			}
		}
	}
	for _, c := range []struct {
		name string
		data []byte
		want float64
	}{
		{"nothing near", regs(7, 11, 12, 13, 14, 15), 230},
		{"no registers", nil, 230},
		{"NaN", regs(0x7FC0, 0, 0x7FC0, 0), 230},
		{"too small for a device", regs(0, 1, 0, 1, 0, 1), 230},
	} {
		if got := Guesses(Input, 9, c.data, 10, c.want); len(got) != 0 {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
