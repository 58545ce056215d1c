package profile

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"tidegate/internal/telemetry"
	"tidegate/internal/trial"
)

func ptr[T any](x T) *T { return &x }

func dec(t testing.TB, s string) Decimal {
	t.Helper()
	d, err := ParseDecimal(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func custom(t testing.TB, frames *Frames, points ...Point) *Profile {
	t.Helper()
	p, issues := Custom("test", points, frames)
	for _, i := range issues {
		t.Fatalf("%s: %s (%s)", i.Path, i.Msg, i.Hint)
	}
	return p
}

// one decodes the bytes of a single point at input 0.
func one(t testing.TB, pt Point, data string) telemetry.Reading {
	t.Helper()
	pt.Name = "x"
	if _, _, ok := pt.Place(); !ok {
		pt.Input = ptr(0)
	}
	p := custom(t, nil, pt)
	r, err := p.PointRequest(0)
	if err != nil {
		t.Fatal(err)
	}
	got := p.Decode(r, unhex(t, data), 7, nil)
	if len(got) != 1 || got[0].Point != 7 {
		t.Fatalf("readings %v", got)
	}
	return got[0]
}

// TestTypes shows the same number in every type and every order.
func TestTypes(t *testing.T) {
	for _, c := range []struct{ typ, order, data, want string }{
		{"u16", "ABCD", "12 34", "4660"},
		{"u16", "CDAB", "12 34", "4660"},
		{"u16", "BADC", "34 12", "4660"},
		{"u16", "DCBA", "34 12", "4660"},
		{"s16", "ABCD", "ff 9c", "-100"},
		{"s16", "BADC", "9c ff", "-100"},
		{"u8", "", "12 fe", "254"},
		{"s8", "", "12 fe", "-2"},
		{"u32", "ABCD", "12 34 56 78", "305419896"},
		{"u32", "CDAB", "56 78 12 34", "305419896"},
		{"u32", "BADC", "34 12 78 56", "305419896"},
		{"u32", "DCBA", "78 56 34 12", "305419896"},
		{"s32", "ABCD", "ff ff ff fe", "-2"},
		{"s32", "CDAB", "ff fe ff ff", "-2"},
		{"s32", "BADC", "ff ff fe ff", "-2"},
		{"s32", "DCBA", "fe ff ff ff", "-2"},
		{"u24", "ABCD", "99 01 02 03", "66051"},
		{"u24", "CDAB", "02 03 99 01", "66051"},
		{"u24", "BADC", "01 99 03 02", "66051"},
		{"u24", "DCBA", "03 02 01 99", "66051"},
		{"s24", "ABCD", "00 ff ff fe", "-2"},
		{"s24", "CDAB", "ff fe 00 ff", "-2"},
		{"f32", "ABCD", "43 67 af 55", "231.68489"},
		{"f32", "CDAB", "af 55 43 67", "231.68489"},
		{"f32", "BADC", "67 43 55 af", "231.68489"},
		{"f32", "DCBA", "55 af 67 43", "231.68489"},
		{"u64", "ABCD", "01 02 03 04 05 06 07 08", "72623859790382856"},
		{"u64", "CDAB", "07 08 05 06 03 04 01 02", "72623859790382856"},
		{"u64", "BADC", "02 01 04 03 06 05 08 07", "72623859790382856"},
		{"u64", "DCBA", "08 07 06 05 04 03 02 01", "72623859790382856"},
		{"u64", "ABCD", "ff ff ff ff ff ff ff ff", "18446744073709551615"},
		{"s64", "ABCD", "ff ff ff ff ff ff ff fe", "-2"},
		{"s64", "CDAB", "ff fe ff ff ff ff ff ff", "-2"},
		{"s64", "BADC", "ff ff ff ff ff ff fe ff", "-2"},
		{"s64", "DCBA", "fe ff ff ff ff ff ff ff", "-2"},
		{"f64", "ABCD", "40 09 21 fb 54 44 2d 18", "3.141592653589793"},
		{"f64", "CDAB", "2d 18 54 44 21 fb 40 09", "3.141592653589793"},
		{"f64", "BADC", "09 40 fb 21 44 54 18 2d", "3.141592653589793"},
		{"f64", "DCBA", "18 2d 44 54 fb 21 09 40", "3.141592653589793"},
		{"bcd16", "", "12 34", "1234"},
		{"bcd16", "BADC", "34 12", "1234"},
		{"bcd24", "", "99 12 34 56", "123456"},
		{"bcd32", "ABCD", "12 34 56 78", "12345678"},
		{"bcd32", "CDAB", "56 78 12 34", "12345678"},
		{"bcd48", "ABCD", "12 34 56 78 90 12", "123456789012"},
		{"bcd48", "CDAB", "90 12 56 78 12 34", "123456789012"},
		{"bcd48", "BADC", "34 12 78 56 12 90", "123456789012"},
		{"bcd48", "DCBA", "12 90 78 56 34 12", "123456789012"},
		{"bcd64", "ABCD", "12 34 56 78 90 12 34 56", "1234567890123456"},
		{"bcd64", "CDAB", "34 56 90 12 56 78 12 34", "1234567890123456"},
	} {
		t.Run(c.typ+"/"+c.order, func(t *testing.T) {
			pt := Point{Type: c.typ, Order: c.order}
			if got := one(t, pt, c.data); ReadingText(got) != c.want {
				t.Errorf("%s = %s, want %s", c.data, ReadingText(got), c.want)
			}
		})
	}
}

// TestMeaning shows what becomes of a raw number.
func TestMeaning(t *testing.T) {
	for _, c := range []struct {
		name, data, want string
		pt               Point
	}{
		{"scale 0.1", "09 1b", "233.1", Point{Scale: dec(t, "0.1")}},
		{"scale 0.01 keeps its zeros", "00 c8", "2.00", Point{Scale: dec(t, "0.01")}},
		{"scale 1e-3", "09 1b", "2.331", Point{Scale: dec(t, "1e-3")}},
		{"scale 10", "09 1b", "23310", Point{Scale: dec(t, "10")}},
		{"scale 1/256", "0c 80", "12.50000000", Point{Scale: dec(t, "1/256")}},
		{"scale 1/256, two decimals", "0c 80", "12.50", Point{Scale: dec(t, "1/256"), Decimals: ptr(2)}},
		{"scale 1/3 has no decimal", "00 01", "0.33", Point{Scale: dec(t, "1/3")}},
		{"its step is kept", "00 02", "0.67", Point{Scale: dec(t, "1/3")}},
		{"seconds as hours", "00 04", "0.00111", Point{Scale: dec(t, "1/3600")}},
		{"an offset without a decimal has one more", "00 64", "37.778", Point{Scale: dec(t, "5/9"), Offset: dec(t, "-160/9")}},
		{"steps that differ by a tenth", "00 05", "0.56", Point{Scale: dec(t, "1/9")}},
		{"more decimals than there are", "00 01", "3.3333333333333334e-19", Point{Scale: dec(t, "1/3000000000000000000")}},
		{"scale 1/3 rounded", "00 02", "0.667", Point{Scale: dec(t, "1/3"), Decimals: ptr(3)}},
		{"half away from zero", "00 05", "1", Point{Scale: dec(t, "0.1"), Decimals: ptr(0)}},
		{"half away from zero, below", "ff fb", "-1", Point{Type: "s16", Scale: dec(t, "0.1"), Decimals: ptr(0)}},
		{"just under half", "00 31", "0", Point{Scale: dec(t, "0.01"), Decimals: ptr(0)}},
		{"offset", "01 22", "-11.00", Point{Scale: dec(t, "0.1"), Offset: dec(t, "-40.00")}.with(2)},
		{"offset of more decimals", "01 22", "29.25", Point{Scale: dec(t, "0.1"), Offset: dec(t, "0.25")}},
		{"huge stays exact", "ff ff ff ff ff ff ff ff", "184467440737095516.15", Point{Type: "u64", Scale: dec(t, "0.01")}},
		{"too huge for a mantissa", "ff ff ff ff ff ff ff ff", "1.8446744073709552e+22", Point{Type: "u64", Scale: dec(t, "1000")}},
		{"f32 scaled", "3f 9d f3 b6", "1234", Point{Type: "f32", Scale: dec(t, "1000")}},
		{"f32 rounded", "43 67 af 55", "231.68", Point{Type: "f32", Decimals: ptr(2)}},
		{"f32 tie", "3e 00 00 00", "0.13", Point{Type: "f32", Decimals: ptr(2)}},
		{"f32 tie below zero", "be 00 00 00", "-0.13", Point{Type: "f32", Decimals: ptr(2)}},
		{"f32 minus zero", "80 00 00 00", "0", Point{Type: "f32"}},
		{"f64 almost a tie", "3f f0 14 7a e1 47 ae 14", "1.00", Point{Type: "f64", Decimals: ptr(2)}},
		{"f64 a tie by the product only", "40 2f 4a 3d 70 a3 d7 0a", "15.64", Point{Type: "f64", Decimals: ptr(2)}},
		{"NaN", "7f c0 00 00", "fault/nan", Point{Type: "f32"}},
		{"NaN of Schneider", "ff c0 00 00", "fault/nan", Point{Type: "f32"}},
		{"infinity", "7f 80 00 00", "fault/nan", Point{Type: "f32"}},
		{"NaN in 64 bits", "7f f8 00 00 00 00 00 01", "fault/nan", Point{Type: "f64"}},
		{"marker", "7f ff", "fault/marker", Point{Type: "s16", NA: []Marker{"0x8000", "0x7FFF"}}},
		{"negative marker", "ff ff", "fault/marker", Point{Type: "s16", NA: []Marker{"-1"}}},
		{"marker of a float by its value", "c6 1c 3c 00", "fault/marker", Point{Type: "f32", NA: []Marker{"-9999"}}},
		{"marker of a float by its bits", "ff ff ff ff", "fault/marker", Point{Type: "f32", NA: []Marker{"0xFFFFFFFF"}}},
		{"no marker", "7f fe", "32766", Point{Type: "s16", NA: []Marker{"0x7FFF"}}},
		{"range", "05 dd", "150.1 range", Point{Scale: dec(t, "0.1"), Range: []Decimal{dec(t, "-20"), dec(t, "150")}}},
		{"at the end of the range", "05 dc", "150.0", Point{Scale: dec(t, "0.1"), Range: []Decimal{dec(t, "-20"), dec(t, "150")}}},
		{"range between two mantissas", "00 05", "5 range", Point{Range: []Decimal{dec(t, "0"), dec(t, "4.9")}}},
		{"range of a float", "43 67 af 55", "231.68489 range", Point{Type: "f32", Range: []Decimal{dec(t, "0"), dec(t, "100")}}},
		{"bcd that is none", "12 3a", "fault/bad-text", Point{Type: "bcd16"}},
		{"high byte", "12 fe", "18", Point{Type: "u8", Byte: "high"}},
		{"bit 15", "80 00", "true", Point{Bit: ptr(15)}},
		{"bit 0", "80 00", "false", Point{Bit: ptr(0)}},
		{"bit 20 of two registers", "00 10 00 00", "true", Point{Type: "u32", Bit: ptr(20)}},
		{"inverted", "80 00", "true", Point{Bit: ptr(0), Invert: true}},
		{"bits", "ab cd", "188", Point{Bits: []int{4, 11}}},
		{"enum", "00 04", "mppt", Point{Enum: map[int64]string{4: "mppt", -1: "off"}}},
		{"enum below zero", "ff ff", "off", Point{Type: "s16", Enum: map[int64]string{4: "mppt", -1: "off"}}},
		{"enum without a word", "00 05", "5 range", Point{Enum: map[int64]string{4: "mppt"}}},
		{"flags", "00 0b", "low,fan,bit3", Point{Flags: map[int64]string{0: "low", 1: "fan", 2: "high"}}},
		{"no flags", "00 00", "", Point{Flags: map[int64]string{0: "low"}}},
		{"string", "41 42 43 20 00 00", "ABC", Point{Type: "string", Length: 3}},
		{"string swapped", "42 41 00 43", "ABC", Point{Type: "string", Length: 2, Order: "BADC"}},
		{"string of NULs", "00 00 00 00", "fault/marker", Point{Type: "string", Length: 2}},
		{"string that is no UTF-8", "41 ff 42 00", "A\uFFFDB", Point{Type: "string", Length: 2}},
		{"manual number", "00 07", "7", Point{Register: ptr(40021)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ReadingText(one(t, c.pt, c.data)); got != c.want {
				t.Errorf("%s = %q, want %q", c.data, got, c.want)
			}
		})
	}
}

func (pt Point) with(decimals int) Point { pt.Decimals = &decimals; return pt }

// TestBits pins the order of packed bits: least significant first.
func TestBits(t *testing.T) {
	var points []Point
	for i := range 16 {
		points = append(points, Point{Name: fmt.Sprintf("di%d", i), Discrete: ptr(8204 + i)})
	}
	points[9].Invert = true
	p := custom(t, nil, points...)
	plan := p.Plan(Limits{})
	if len(plan) != 1 || plan[0].Address != 8204 || plan[0].Count != 16 || plan[0].Table != Discrete {
		t.Fatalf("plan %+v", plan)
	}
	got := p.Decode(plan[0], []byte{0x05, 0x80}, 0, nil)
	for i, r := range got {
		want := i == 0 || i == 2 || i == 9 || i == 15
		if r.Value.Bool() != want {
			t.Errorf("input %d is %v, want %v", i, r.Value, want)
		}
	}
}

func TestScaleFactor(t *testing.T) {
	p := custom(t, nil,
		Point{Name: "power", Holding: ptr(100), Type: "s16", SF: "power_sf", Unit: "W", NA: []Marker{"0x8000"}},
		Point{Name: "power_sf", Holding: ptr(101), Type: "s16"},
		Point{Name: "energy", Holding: ptr(90), Type: "u32", SF: "95", Decimals: ptr(1)})
	plan := p.Plan(Limits{Char: 100})
	for _, r := range plan {
		if slices.Contains(r.Points, 2) && (r.Address > 90 || int(r.Address)+int(r.Count) < 96) {
			t.Errorf("value and scale factor are not in one request: %+v", plan)
		}
	}
	for _, c := range []struct{ data, want string }{
		{"15 90 00 00", "5520"}, {"15 90 ff fe", "55.20"}, {"15 90 00 02", "552000"},
		{"15 90 00 0a", "55200000000000"}, {"15 90 ff f6", "0.0000005520"},
		{"15 90 80 00", "fault/marker"}, {"15 90 00 0b", "fault/marker"}, {"80 00 00 00", "fault/marker"},
	} {
		r, _ := p.PointRequest(0)
		if got := ReadingText(p.Decode(r, unhex(t, c.data), 0, nil)[0]); got != c.want {
			t.Errorf("%s = %s, want %s", c.data, got, c.want)
		}
	}
	r, _ := p.PointRequest(2)
	if got := ReadingText(p.Decode(r, unhex(t, "00 00 00 7b 00 00 00 00 00 00 ff fe"), 0, nil)[0]); got != "1.2" {
		t.Errorf("energy = %s", got)
	}
}

// TestShort shows that no piece of an answer is taken for the whole.
func TestShort(t *testing.T) {
	lib, _ := Load()
	for _, name := range lib.Names() {
		p, err := lib.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range p.Plan(Limits{}) {
			for n := 0; n <= r.Size()+2; n++ {
				for _, rd := range p.Decode(r, make([]byte, n), 0, nil) {
					if n != r.Size() && (rd.Value.Kind() != telemetry.None || rd.Quality != telemetry.Comm) {
						t.Fatalf("%s: %d bytes instead of %d give %s", name, n, r.Size(), ReadingText(rd))
					}
				}
			}
		}
	}
	// A request that does not hold the scale factor.
	sf := custom(t, nil, Point{Name: "x", Input: ptr(10), SF: "12"}, Point{Name: "y", Input: ptr(10), SF: "8"})
	for i := range 2 {
		if got := sf.Decode(Request{Input, 10, 1, []int{i}}, make([]byte, 2), 0, nil)[0]; got.Quality != telemetry.Comm {
			t.Errorf("a value without its scale factor: %s", ReadingText(got))
		}
	}
	// A request that does not hold the point it names.
	p := custom(t, nil, Point{Name: "x", Input: ptr(10), Type: "f64"})
	for _, r := range []Request{{Input, 11, 4, []int{0}}, {Input, 8, 4, []int{0}}, {Holding, 10, 4, []int{0}}, {Coils, 10, 64, []int{0}}} {
		if got := p.Decode(r, make([]byte, r.Size()), 0, nil)[0]; got.Quality != telemetry.Comm {
			t.Errorf("%+v gives %s", r, ReadingText(got))
		}
	}
}

// genPoint draws a point of any binary type.
func genPoint(t *trial.T) Point {
	pt := Point{Name: "x", Holding: ptr(0),
		Type:  trial.Pick(t, "u8", "s8", "u16", "s16", "u24", "s24", "u32", "s32", "u64", "s64", "f32", "f64", "bcd16", "bcd24", "bcd32", "bcd48", "bcd64"),
		Order: trial.Pick(t, "", "ABCD", "CDAB", "BADC", "DCBA")}
	if pt.Type[0] != 'f' {
		scale, _ := ParseDecimal(trial.Pick(t, "1", "0.1", "0.01", "0.001", "10", "1/256", "-0.5", "1/3", "463/900"))
		pt.Scale = scale
		pt.Offset, _ = ParseDecimal(trial.Pick(t, "0", "-40", "0.25", "273.15"))
	}
	if pt.Type == "u8" || pt.Type == "s8" {
		pt.Order = ""
		pt.Byte = trial.Pick(t, "low", "high")
	}
	return pt
}

// TestDecodeEncode: Decode(Encode(x)) = x for every value a point can have.
func TestDecodeEncode(t *testing.T) {
	trial.Run(t, func(t *trial.T) {
		pt := genPoint(t)
		p, issues := Custom("test", []Point{pt}, nil)
		if len(issues) > 0 {
			t.Fatal(issues)
		}
		r, _ := p.PointRequest(0)
		data := t.Bytes(r.Size())
		first := p.Decode(r, data, 0, nil)[0]
		if first.Value.Kind() == telemetry.None {
			if first.Quality == telemetry.Good {
				t.Fatalf("good without a value")
			}
			return
		}
		if first.Value.Kind() == telemetry.Float64 && pt.Type[0] != 'f' && math.Abs(first.Value.Float()) > 1e15 {
			return // beyond what a mantissa holds: not exact, and said so
		}
		again, err := p.Encode(0, first.Value, 0)
		if err != nil {
			t.Fatalf("%v of % x: %v", first.Value, data, err)
		}
		second := p.Decode(r, again, 0, nil)[0]
		if second.Value != first.Value {
			t.Fatalf("% x is %v, encoded % x is %v", data, first.Value, again, second.Value)
		}
	})
}

func TestEncode(t *testing.T) {
	p := custom(t, nil,
		Point{Name: "c", Coil: ptr(1)},
		Point{Name: "s", Holding: ptr(1), Type: "string", Length: 2},
		Point{Name: "e", Holding: ptr(3), Enum: map[int64]string{4: "mppt"}},
		Point{Name: "f", Holding: ptr(4), Flags: map[int64]string{1: "fan"}},
		Point{Name: "b", Holding: ptr(5), Bits: []int{4, 11}},
		Point{Name: "u", Holding: ptr(6)})
	for i, c := range []struct {
		v    telemetry.Value
		want string
	}{
		{telemetry.BoolValue(true), "01"}, {telemetry.TextValue("AB"), "41420000"}, {telemetry.TextValue("mppt"), "0004"},
		{telemetry.TextValue("fan,bit3"), "000a"}, {telemetry.IntValue(188, 0), "0bc0"}, {telemetry.Float64Value(7.4), "0007"},
	} {
		if got, err := p.Encode(i, c.v, 0); err != nil || hex.EncodeToString(got) != c.want {
			t.Errorf("%s: %x %v, want %s", p.Points[i].Name, got, err, c.want)
		}
	}
	for i, v := range []telemetry.Value{1: telemetry.TextValue("ABCDE"), 2: telemetry.TextValue("boost"), 3: telemetry.TextValue("bit77"), 4: telemetry.IntValue(256, 0), 5: telemetry.IntValue(-1, 0)} {
		if got, err := p.Encode(i, v, 0); i > 0 && err == nil {
			t.Errorf("%s: %v became %x", p.Points[i].Name, v, got)
		}
	}
}

func TestManualNumbers(t *testing.T) {
	for _, c := range []struct {
		t    Table
		addr uint16
		n    int
	}{{Coils, 0, 1}, {Discrete, 0, 10001}, {Input, 0, 30001}, {Holding, 20, 40021}, {Holding, 9998, 49999}, {Holding, 9999, 410000}, {Input, 65535, 365536}} {
		if got := ManualNumber(c.t, c.addr); got != c.n {
			t.Errorf("%v %d is %d, want %d", c.t, c.addr, got, c.n)
		}
		tab, addr, ok := manualPlace(c.n)
		if !ok || tab != c.t || addr != c.addr {
			t.Errorf("%d is %v %d", c.n, tab, addr)
		}
	}
	if tab, addr, ok := manualPlace(400021); !ok || tab != Holding || addr != 20 {
		t.Errorf("400021 is %v %d %v", tab, addr, ok)
	}
	for _, n := range []int{0, 10000, 20001, 50001, 30000, 200001, 465537, 500000} {
		if _, _, ok := manualPlace(n); ok {
			t.Errorf("%d was taken", n)
		}
	}
}

// fifty is a profile of n points of mixed types, in one block.
func fifty(t testing.TB, n int) (*Profile, Request, []byte) {
	var points []Point
	addr := 0
	for i := range n {
		pt := Point{Name: fmt.Sprintf("p%d", i), Input: ptr(addr)}
		switch i % 5 {
		case 0:
			pt.Type, pt.Order = "f32", "CDAB"
			addr += 2
		case 1:
			pt.Type, pt.Scale = "s16", dec(t, "0.1")
			pt.Range = []Decimal{dec(t, "-3000"), dec(t, "3000")}
			addr++
		case 2:
			pt.Type, pt.Decimals = "f32", ptr(2)
			addr += 2
		case 3:
			pt.Type, pt.Scale, pt.NA = "u32", dec(t, "0.01"), []Marker{"0xFFFFFFFF"}
			addr += 2
		case 4:
			pt.Type = "u16"
			pt.Bit = ptr(3)
			addr++
		}
		points = append(points, pt)
	}
	p := custom(t, nil, points...)
	r := Request{Table: Input, Count: uint16(addr)}
	for i := range n {
		r.Points = append(r.Points, i)
	}
	data := bytes.Repeat([]byte{0x43, 0x67, 0xaf, 0x55, 0x12, 0x34}, addr)[:2*addr]
	return p, r, data
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	p, r, data := fifty(t, 75)
	dst := make([]telemetry.Reading, 0, 100)
	if n := testing.AllocsPerRun(100, func() { dst = p.Decode(r, data, 0, dst[:0]) }); n != 0 {
		t.Errorf("%v allocations for a block", n)
	}
	// Words and texts that do not change cost nothing either.
	p = custom(t, nil, Point{Name: "f", Input: ptr(0), Flags: map[int64]string{0: "a", 1: "b"}},
		Point{Name: "e", Input: ptr(1), Enum: map[int64]string{2: "on"}},
		Point{Name: "s", Input: ptr(2), Type: "string", Length: 2})
	r = p.Plan(Limits{})[0]
	data = []byte{0, 3, 0, 2, 'A', 'B', 0, 0}
	dst = p.Decode(r, data, 0, dst[:0])
	if n := testing.AllocsPerRun(100, func() { dst = p.Decode(r, data, 0, dst[:0]) }); n != 0 {
		t.Errorf("%v allocations for texts that did not change", n)
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, n := range []int{50, 75} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, r, data := fifty(b, n)
			dst := make([]telemetry.Reading, 0, n)
			b.ReportAllocs()
			for b.Loop() {
				dst = p.Decode(r, data, 0, dst[:0])
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/point")
		})
	}
}
