package profile

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// parseText makes a profile of YAML text.
func parseText(t testing.TB, src string) *Profile {
	t.Helper()
	p, problems := Parse(nil, "test.yaml", []byte("name: test\nstatus: community\ntransport: serial\n"+src))
	for _, x := range problems {
		if !x.Warning {
			t.Fatalf("%d: %s: %s (%s)\n%s", x.Line, x.Path, x.Msg, x.Hint, src)
		}
	}
	return p
}

// kinds has each kind of frame, and how a good one is made of any content.
// wire is what is sent, want what the scanner must yield (the same, if nil).
var kinds = map[string]struct {
	yaml string
	make func(rng *rand.Rand) (wire, want []byte)
}{
	"counted": {`
frames: {kind: counted, sync: 42 4D, length: {at: 2, type: u16, adds: 4}, max: 40, check: sum16}
points: {x: {at: 4, type: u8}}
`, func(rng *rand.Rand) (wire, want []byte) {
		data := random(rng, 1+rng.IntN(20))
		b := append([]byte{0x42, 0x4d, 0, byte(len(data) + 2)}, data...)
		return (&Check{Kind: "sum16"}).append(b, 0), nil
	}},
	"fixed with a sync bit": {`
frames: {kind: fixed, size: 5, lead_bit: 7}
points: {x: {at: 3, type: u8}}
`, func(rng *rand.Rand) (wire, want []byte) {
		b := random(rng, 5)
		for i := range b {
			b[i] &= 0x7f
		}
		b[0] |= 0x80
		return b, nil
	}},
	"fixed with a crc": {`
frames: {kind: fixed, sync: AA, size: 9, check: {kind: crc16-ccitt, from: 1}}
points: {x: {at: 3, type: u8}}
`, func(rng *rand.Rand) (wire, want []byte) {
		return (&Check{Kind: "crc16-ccitt"}).append(append([]byte{0xaa}, random(rng, 6)...), 1), nil
	}},
	"shdlc": {`
frames: {kind: delimited, sync: 7E, tail: 7E, escape: {byte: 7D, xor: 20}, max: 60, check: crc16-arc}
points: {x: {at: 3, type: u8}}
`, func(rng *rand.Rand) (wire, want []byte) {
		b := (&Check{Kind: "crc16-arc"}).append(append([]byte{0x7e}, random(rng, 3+rng.IntN(10))...), 1)
		f := rawFrames{sync: []byte{0x7e}, tail: []byte{0x7e}, esc: 0x7d, xor: 0x20, escapes: true}
		return f.escape(append(b, 0x7e)), nil
	}},
	"delimited, low half": {`
frames: {kind: delimited, sync: F3, tail: FC, escape: {byte: FA, xor: F0}, max: 60, check: {kind: crc16-ccitt, order: little}}
points: {x: {at: 1, type: u8}}
`, func(rng *rand.Rand) (wire, want []byte) {
		b := (&Check{Kind: "crc16-ccitt", Order: "little"}).append(append([]byte{0xf3}, random(rng, 1+rng.IntN(6))...), 1)
		f := rawFrames{sync: []byte{0xf3}, tail: []byte{0xfc}, esc: 0xfa, xor: 0xf0, escapes: true}
		return f.escape(append(b, 0xfc)), nil
	}},
	"text between STX and ETX, BCC behind": {`
frames: {kind: delimited, sync: 02, tail: 03, max: 60, check: {kind: xor, after: true}}
points: {x: {field: 0}}
`, func(rng *rand.Rand) (wire, want []byte) {
		b := append(append([]byte{2}, letters(rng, 3+rng.IntN(20))...), 3)
		return (&Check{Kind: "xor"}).append(b, 1), nil
	}},
	"sequence": {`
frames: {kind: sequence, sync: 01, size: 5, parts: 4, first: {at: 1, bit: 0}, set: [{at: 1, bit: 7}], check: sum8}
points: {x: {at: 3, type: u8}}
`, func(rng *rand.Rand) (wire, want []byte) {
		for i := range 4 {
			b := []byte{1, 0x80 | byte(rng.IntN(64))<<1, byte(rng.IntN(256)), byte(rng.IntN(256))}
			if i == 0 {
				b[1] |= 1
			}
			wire = append(wire, (&Check{Kind: "sum8"}).append(b, 0)...)
		}
		return wire, nil
	}},
	"line with a start, a tail and a check in digits": {`
frames: {kind: line, start: STX, tail: 03, end: CR, check: xor}
points: {x: {field: 1}}
`, func(rng *rand.Rand) (wire, want []byte) {
		b := append([]byte{2}, letters(rng, 3+rng.IntN(20))...)
		sum := (&Check{Kind: "xor"}).value(b[1:])
		want = append(append(b, 3), fmt.Sprintf("%02X", sum)...)
		return append(bytes.Clone(want), '\r'), want
	}},
	"line that ends with a tilde": {`
frames: {kind: line, start: Z, end: "~", check: {kind: sum16, from: 0}}
points: {x: {field: 1}}
`, func(rng *rand.Rand) (wire, want []byte) {
		b := append([]byte{'Z'}, letters(rng, 3+rng.IntN(20))...)
		want = append(b, fmt.Sprintf("%04X", (&Check{Kind: "sum16"}).value(b))...)
		return append(bytes.Clone(want), '~'), want
	}},
	"nmea": {`
frames: {kind: line, check: nmea}
points: {x: {nmea: MWV, field: 1}}
`, func(rng *rand.Rand) (wire, want []byte) {
		b := append([]byte("$"), letters(rng, 3+rng.IntN(20))...)
		want = append(b, fmt.Sprintf("*%02X", (&Check{Kind: "xor"}).value(b[1:]))...)
		return append(bytes.Clone(want), "\r\n"...), want
	}},
}

// append returns b with its check behind it, over b[from:].
func (c *Check) append(b []byte, from int) []byte {
	return append(b, c.written(c.value(b[from:]))...)
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func letters(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = "0123456789ABCDEFabc,.-+"[rng.IntN(23)]
	}
	return b
}

// noisy is noise of any bytes, or of such as frames are made of.
func noisy(rng *rand.Rand, like []byte) []byte {
	b := random(rng, rng.IntN(30))
	for i := range b {
		if rng.IntN(2) == 0 {
			b[i] = like[rng.IntN(len(like))]
		}
	}
	return b
}

// TestNoise sends good frames with noise before, between and after them, and
// inside of others. Exactly the good ones come out, whatever the pieces.
func TestNoise(t *testing.T) {
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			p := parseText(t, k.yaml)
			rng := rand.New(rand.NewPCG(7, 7))
			rounds, damaged := 0, 0
			for try := 0; rounds < 400 && try < 4000; try++ {
				var stream []byte
				var want [][]byte
				good := map[int]bool{} // where a good frame begins
				for range 1 + rng.IntN(6) {
					wire, frame := k.make(rng)
					if frame == nil {
						frame = wire
					}
					stream = append(stream, noisy(rng, wire)...)
					if p.raw.line {
						stream = append(stream, p.raw.end)
					}
					if rng.IntN(3) == 0 { // noise inside
						cut := 1 + rng.IntN(len(wire)-1)
						stream = append(append(stream, wire[:cut]...), noisy(rng, wire)...)
						if rng.IntN(2) == 0 {
							stream = append(stream, wire[cut:]...)
						}
						damaged++
						continue
					}
					good[len(stream)] = true
					want = append(want, bytes.Clone(frame))
					stream = append(stream, wire...)
				}
				stream = append(stream, noisy(rng, stream[len(stream)-1:])...)
				if chance(p, stream, good) {
					continue
				}
				rounds++
				var got [][]byte
				take := func(raw []byte) { got = append(got, bytes.Clone(raw)) }
				s := p.NewScanner()
				for rest := stream; len(rest) > 0; {
					n := 1 + rng.IntN(len(rest))
					s.Feed(rest[:n], take)
					rest = rest[n:]
				}
				s.Flush(take)
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("round %d of seed 7: in % x\ngot  % x\nwant % x", rounds, stream, got, want)
				}
			}
			if rounds < 150 || damaged < 100 {
				t.Errorf("only %d rounds without a chance hit, %d damaged frames", rounds, damaged)
			}
		})
	}
}

// chance says whether the noise happens to hold a sound frame.
func chance(p *Profile, stream []byte, good map[int]bool) bool {
	for i := range stream {
		if good[i] {
			continue
		}
		if !p.raw.line {
			if v, _ := p.raw.look(stream[i:]); v == whole {
				return true
			}
		} else if end := bytes.IndexByte(stream[i:], p.raw.end); end >= 0 && p.raw.lineHolds(bytes.TrimSuffix(stream[i:i+end], []byte{'\r'})) {
			return true
		}
	}
	return false
}

// TestFramesAreWhole: of each kind, a frame that lacks its last byte or has a
// bit turned is not taken, where a check protects it.
func TestFramesAreWhole(t *testing.T) {
	for name, k := range kinds {
		p := parseText(t, k.yaml)
		rng := rand.New(rand.NewPCG(3, 3))
		for range 30 {
			wire, frame := k.make(rng)
			if frame == nil {
				frame = wire
			}
			count := func(b []byte) int {
				n := 0
				s := p.NewScanner()
				s.Feed(b, func([]byte) { n++ })
				s.Flush(func([]byte) { n++ })
				return n
			}
			if count(wire) != 1 || count(wire[:len(wire)-1]) != 0 {
				t.Errorf("%s: % x: %d frames, %d of it without its end", name, wire, count(wire), count(wire[:len(wire)-1]))
			}
			for bit := range 8 * len(frame) {
				broken := bytes.Clone(frame)
				if broken[bit/8] ^= 1 << (bit % 8); p.raw.guarded && len(p.DecodeFrame(broken, 0, nil)) > 0 && !alike(broken, frame) {
					t.Errorf("%s: % x with bit %d turned is taken", name, frame, bit)
				}
			}
		}
	}
}

// alike says whether two frames differ in the case of a letter only: the
// digits of a check may be written in either.
func alike(a, b []byte) bool {
	return bytes.EqualFold(a[len(a)-4:], b[len(b)-4:]) && bytes.Equal(a[:len(a)-4], b[:len(b)-4])
}

// TestBlocks: lines up to an empty one are a frame.
func TestBlocks(t *testing.T) {
	p := parseText(t, `
frames: {kind: line, end: LFLF, split: tab, patterns: ['a=(?P<a>\d+)\s+b=(?P<b>\d+)']}
points: {a: {group: a}, b: {group: b}}
`)
	for _, end := range []string{"\n", "\r\n"} {
		var got []string
		s := p.NewScanner()
		in := "cut=1" + end + "b=7" + end + end + "a=1" + end + "b=2" + end + end + end + "x" + end + end + "a=3" + end + "b=4" + end + end + "a=9" + end
		for i := range len(in) {
			s.Feed([]byte(in[i:i+1]), func(raw []byte) {
				for _, r := range p.DecodeFrame(raw, 0, nil) {
					got = append(got, ReadingText(r))
				}
			})
		}
		if fmt.Sprint(got) != "[1 2 3 4]" {
			t.Errorf("%q: %v", end, got)
		}
	}
}
