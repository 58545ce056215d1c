package profile

import (
	"fmt"
	"strings"
	"testing"

	"tidegate/internal/telemetry"
)

// fuzzFrames tries the library's profiles with frames of one kind, and more
// of that kind: any bytes in any pieces give the same frames, what is yielded
// is sound, and what it decodes to is a value or has a reason. The seeds are
// the recordings of the library, one behind the other with noise between.
func fuzzFrames(f *testing.F, kind string, more ...*Profile) {
	lib, err := Load()
	if err != nil {
		f.Fatal(err)
	}
	all := more
	for _, name := range lib.Names() {
		p := get(f, name)
		if p.Frames == nil || p.Frames.Kind != kind {
			continue
		}
		all = append(all, p)
		var long []byte
		for _, e := range p.Examples {
			b := []byte(e.Frame)
			if e.Text != "" {
				b = []byte("\r\n" + e.Text + "\r\n")
			}
			f.Add(b, uint8(len(b)))
			long = append(append(long, b[:len(b)/2]...), b...)
		}
		f.Add(long, uint8(5))
	}
	if len(all) == len(more) {
		f.Fatalf("no profile has frames of the kind %s", kind)
	}
	f.Fuzz(func(t *testing.T, in []byte, size uint8) {
		if len(in) > 4096 {
			return
		}
		for _, p := range all {
			var outcome [3]string
			for k, n := range []int{len(in) + 1, 1, int(size)%31 + 1} {
				s := p.NewScanner()
				var log strings.Builder
				take := func(raw []byte) {
					fmt.Fprintf(&log, "%x\n", raw)
					sound(t, p, raw)
				}
				for rest := in; len(rest) > 0; rest = rest[min(n, len(rest)):] {
					s.Feed(rest[:min(n, len(rest))], take)
					if cap(s.buf) > p.raw.max {
						t.Fatalf("the buffer grew to %d", cap(s.buf))
					}
				}
				held := fmt.Sprintf("%x", s.buf)
				s.Flush(take)
				outcome[k] = fmt.Sprintf("%s bad %d skipped %d held %s", log.String(), s.Bad(), s.Skipped(), held)
			}
			if outcome[0] != outcome[1] || outcome[0] != outcome[2] {
				t.Errorf("%s: pieces matter:\n%s\n%s\n%s", p.Name, outcome[0], outcome[1], outcome[2])
			}
			p.DecodeFrame(in, 0, nil) // what is no frame is looked at again
		}
	})
}

// sound says whether a frame that a scanner yields may be one.
func sound(t *testing.T, p *Profile, raw []byte) {
	if len(raw) > p.raw.max {
		t.Fatalf("%s: a frame of %d bytes", p.Name, len(raw))
	}
	if p.raw.line {
		if !p.raw.lineHolds(raw) {
			t.Fatalf("%s: %q is no line", p.Name, raw)
		}
	} else if v, n := p.raw.look(raw); v != whole || n != len(raw) {
		t.Fatalf("%s: % x is no frame", p.Name, raw)
	}
	for _, r := range p.DecodeFrame(raw, 0, nil) {
		if int(r.Point) >= len(p.Points) {
			t.Fatalf("%s: there is no point %d", p.Name, r.Point)
		}
		if has := r.Value.Kind() != telemetry.None; has != (r.Quality == telemetry.Good || r.Quality == telemetry.Range) {
			t.Fatalf("%s: %s is %s from % x", p.Name, p.Points[r.Point].Name, ReadingText(r), raw)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add([]byte("2.5\r\na,1\r\rb,2\nc,3\r"), uint8(2))
	f.Add([]byte("x\n\na=1\nb=2\r\n\r\n\na=3\n\n"), uint8(1))
	f.Add([]byte("\x02a,1\x0302\r\n\x02\x02b"), uint8(3))
	fuzzFrames(f, "line",
		custom(f, &Frames{Kind: "line", End: "CR", Max: 16}, Point{Name: "x", Field: ptr(1)}),
		custom(f, &Frames{Kind: "line", Start: "STX", Max: 16}, Point{Name: "x", Field: ptr(1)}),
		custom(f, &Frames{Kind: "line", End: "LFLF", Max: 32, Split: "blanks"}, Point{Name: "x", Key: "a"}),
		custom(f, &Frames{Kind: "line", End: "~", Max: 32, Check: Check{Kind: "sum16"}}, Point{Name: "x", Field: ptr(0), Type: "hex", Bit: ptr(1)}),
		custom(f, &Frames{Kind: "line", Start: "STX", Tail: Hex{3}, Max: 32, Check: Check{Kind: "xor", After: true}}, Point{Name: "x", At: ptr(1), Length: 2, Type: "number"}),
		custom(f, &Frames{Kind: "line", Max: 32, Patterns: []string{`a(?P<v>[0-9.]+)`, `(?P<v>x)`}}, Point{Name: "x", Group: "v", Suffix: map[string]Decimal{"": dec(f, "1")}}))
}

func FuzzCounted(f *testing.F) {
	f.Add(unhex(f, "aa 06 01 aa 07 02 03 00 aa ff 00 00"), uint8(1))
	f.Add(unhex(f, "00 42 42 4d 00 1c 00 00 00 08 00 08 00 00 00 08 00 08 00 d2 00 46 00 2d 00 1e 00 00 00 00 97 00 02 c5 42 4d 00 1c"), uint8(7))
	fuzzFrames(f, "counted",
		custom(f, &Frames{Kind: "counted", Sync: Hex{0xaa}, Max: 32, Length: &Count{At: 1}, Check: Check{Kind: "xor"}}, Point{Name: "x", At: ptr(2), Type: "u16"}),
		custom(f, &Frames{Kind: "counted", Sync: Hex{0xaa}, Max: 32, Length: &Count{At: 1, Type: "u16", Order: "little", Adds: -2}, Tail: Hex{0x55}}, Point{Name: "x", At: ptr(3), Type: "f32"}),
		custom(f, &Frames{Kind: "counted", Sync: Hex{0x55, 0xaa}, Max: 64, Length: &Count{At: 2, Adds: 4}, Check: Check{Kind: "crc16-ccitt"},
			Records: &Records{At: 4, Size: 3, Count: &Many{At: 3}}}, Point{Name: "x", At: ptr(0), Type: "s24"}))
}

func FuzzFixed(f *testing.F) {
	f.Add(unhex(f, "81 01 02 03 81 01 82 03 81 00 00 00 ff 86 01"), uint8(2))
	fuzzFrames(f, "fixed",
		custom(f, &Frames{Kind: "fixed", Size: 4, LeadBit: ptr(7)}, Point{Name: "x", Join: []Bits{{At: 1, Bits: []int{0, 6}}, {At: 2, Bits: []int{0, 6}}}}),
		custom(f, &Frames{Kind: "fixed", Size: 6, Check: Check{Kind: "crc16-modbus"}}, Point{Name: "x", At: ptr(0), Type: "bcd16"}),
		custom(f, &Frames{Kind: "modem-lines"}, Point{Name: "x", Modem: "ri"}))
}

func FuzzDelimited(f *testing.F) {
	f.Add(unhex(f, "7e 7e 01 7d 5e 7d 5d 7e 7d 7e 01 02 7e 7e"), uint8(3))
	f.Add([]byte("\x02R00;1,2\x03\x02\x02R01\x03\x00"), uint8(1))
	fuzzFrames(f, "delimited",
		custom(f, &Frames{Kind: "delimited", Sync: Hex{0x7e}, Tail: Hex{0x7e}, Max: 32, Escape: &Escape{Byte: Hex{0x7d}, Xor: Hex{0x20}}, Check: Check{Kind: "sum8"}}, Point{Name: "x", At: ptr(1), Type: "u16"}),
		custom(f, &Frames{Kind: "delimited", Sync: Hex{2}, Tail: Hex{3}, Max: 32, Check: Check{Kind: "xor", After: true}, Split: ";"}, Point{Name: "x", Field: ptr(1)}),
		custom(f, &Frames{Kind: "delimited", Sync: Hex{0xf3}, Tail: Hex{0xfc}, Max: 16, Escape: &Escape{Byte: Hex{0xfa}, Xor: Hex{0xf0}}}, Point{Name: "x", At: ptr(1), Type: "s8"}))
}

func FuzzSequence(f *testing.F) {
	f.Add(unhex(f, "a5 01 a6 a5 00 a5 a5 00 a5 a5 01 a6"), uint8(2))
	fuzzFrames(f, "sequence",
		custom(f, &Frames{Kind: "sequence", Size: 3, Parts: 3, Sync: Hex{0xa5}, First: &BitAt{At: 1, Bit: 0}, Check: Check{Kind: "sum8"}}, Point{Name: "x", At: ptr(4), Type: "u8"}),
		custom(f, &Frames{Kind: "sequence", Size: 2, Parts: 4, First: &BitAt{At: 0, Bit: 7}}, Point{Name: "x", At: ptr(1), Type: "u16"}))
}
