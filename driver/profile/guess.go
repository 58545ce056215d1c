package profile

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"sort"
	"strconv"
	"strings"

	"tidegate/internal/telemetry"
)

// Guess is one way to read registers that gives about the value that was
// expected.
type Guess struct {
	Table   Table
	Address uint16 // wire address of its first register
	Shift   int    // registers from where it was looked for: -1, 0, 1
	Type    string
	Order   string  // "" where one register has none
	Scale   string  // exact, such as 0.1; "1" is none
	Value   string  // as it reads
	Off     float64 // relative distance from what was expected
	Cost    float64 // how unlikely it is; the order of the list
}

// Point is the guess as it stands in a configuration or a profile.
func (g Guess) Point() string {
	s := fmt.Sprintf("{%v: %d", g.Table, g.Address)
	if g.Type != "u16" {
		s += ", type: " + g.Type
	}
	if g.Order != "" && g.Order != "ABCD" {
		s += ", order: " + g.Order
	}
	if g.Scale != "1" {
		s += ", scale: " + g.Scale
	}
	return s + "}"
}

// guessTypes are the types that are tried, with the registers they take and
// how rarely they are met.
var guessTypes = []struct {
	name string
	regs int
	cost float64
}{
	{"f32", 2, 0}, {"u16", 1, 0.3}, {"s16", 1, 0.6}, {"u32", 2, 0.6}, {"s32", 2, 0.9},
	{"f64", 4, 1.2}, {"u64", 4, 1.6}, {"s64", 4, 1.9}, {"bcd16", 1, 3}, {"bcd32", 2, 3},
}

// guessOrders and their cost.
var guessOrders = []struct {
	name string
	cost float64
}{{"ABCD", 0}, {"CDAB", 1}, {"DCBA", 2.5}, {"BADC", 3}}

// guessScales and their cost. What a float needs a factor for is rare.
var guessScales = []struct {
	name string
	cost float64
}{
	{"1", 0}, {"0.1", 0.8}, {"0.01", 1.2}, {"0.001", 1.6}, {"0.0001", 3},
	{"10", 3}, {"100", 3}, {"1000", 2.5}, {"1/256", 4}, {"1/1000000", 4.5},
}

// GuessTolerance is how far a reading may be from what is expected and still
// be listed: values move, and displays round.
const GuessTolerance = 0.025

// Guesses lists the ways to read registers that give about want, the most
// likely first. data are the registers from first on, as they came; asked is
// the address where the value was looked for. Only readings that begin one
// register before asked, at it, or one behind are tried: manuals that count
// from 1 are off by one, and nothing is off by seven.
//
// What is more likely is common sense: the address that was named, a type
// and an order that many devices have, no factor, and a value close to the
// one expected. Readings of the same number in another type (s16 for u16)
// are left out.
func Guesses(t Table, first uint16, data []byte, asked uint16, want float64) []Guess {
	var out []Guess
	for shift := -1; shift <= 1; shift++ {
		addr := int(asked) + shift
		at := 2 * (addr - int(first))
		if addr < 0 || addr > 65535 || at < 0 || at+2 > len(data) {
			continue
		}
		for _, typ := range guessTypes {
			if at+2*typ.regs > len(data) {
				continue
			}
			cell := data[at : at+2*typ.regs]
			for _, o := range guessOrders {
				if typ.regs == 1 && (o.name == "CDAB" || o.name == "DCBA") {
					continue // one register has no order of words
				}
				g := Guess{Table: t, Address: uint16(addr), Shift: shift, Type: typ.name, Order: o.name,
					Cost: typ.cost + o.cost + map[int]float64{-1: 2.2, 0: 0, 1: 2.8}[shift]}
				out = append(out, g.scaled(cell, want)...)
			}
		}
	}
	sort.SliceStable(out, func(i, k int) bool { return out[i].Cost < out[k].Cost })
	return distinct(out)
}

// scaled tries the factors on one cell.
func (g Guess) scaled(cell []byte, want float64) (out []Guess) {
	raw, ok := g.raw(cell)
	if !ok {
		return nil
	}
	float := strings.HasPrefix(g.Type, "f")
	for _, s := range guessScales {
		scale, _ := new(big.Rat).SetString(s.name)
		f, _ := new(big.Rat).Mul(raw, scale).Float64()
		off := math.Abs(f - want)
		if want != 0 {
			off /= math.Abs(want)
		}
		if off > GuessTolerance || want == 0 && f != 0 {
			continue
		}
		n := g
		n.Scale, n.Off = s.name, off
		n.Cost += s.cost + 40*off
		if float && s.name != "1" {
			n.Cost += 2.5
		}
		if !float && wide(g.Type) && s.cost > 2 {
			n.Cost++ // a large number of many digits fits something by chance
		}
		if r, exact := new(big.Rat).Mul(raw, scale), float; exact {
			n.Value = strconv.FormatFloat(f, 'g', 7, 64)
		} else {
			n.Value = telemetry.Float64Value(f).String()
			if dec, ok := decimalsOf(r); ok {
				n.Value = r.FloatString(dec)
			}
		}
		out = append(out, n)
	}
	return out
}

func wide(typ string) bool { return typ[len(typ)-2:] == "32" || typ[len(typ)-2:] == "64" }

// raw reads the number in a cell; ok is false where it is none.
func (g Guess) raw(cell []byte) (*big.Rat, bool) {
	addr := 0
	pt := Point{Name: "guess", Type: g.Type, Order: g.Order, Input: &addr}
	p, issues := Custom("guess", []Point{pt}, nil)
	if len(issues) > 0 {
		return nil, false
	}
	rd := p.Decode(Request{Table: Input, Count: uint16(len(cell) / 2), Points: []int{0}}, cell, 0, nil)[0]
	if rd.Quality != telemetry.Good || rd.Value.Kind() == telemetry.None {
		return nil, false
	}
	return new(big.Rat).SetString(rd.Value.String())
}

// distinct leaves out what is the same reading in other words: s16 beside
// u16, and a wider type that only adds zeros in front.
func distinct(in []Guess) (out []Guess) {
	for _, g := range in {
		if !slices.ContainsFunc(out, func(o Guess) bool {
			return o.Address == g.Address && o.Order == g.Order && o.Scale == g.Scale && o.Value == g.Value && len(o.Type) == len(g.Type) && o.Type[1:] == g.Type[1:] && o.Type[0] != 'f' && g.Type[0] != 'f'
		}) {
			out = append(out, g)
		}
	}
	for i := range out {
		if strings.HasSuffix(out[i].Type, "16") && out[i].Order == "ABCD" {
			out[i].Order = ""
		}
	}
	return out
}
