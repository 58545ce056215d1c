package obis

import (
	"fmt"
	"strconv"
	"strings"
)

// Code is an OBIS code A-B:C.D.E*F (IEC 62056-61): medium, channel,
// quantity, processing, tariff, billing period. The letters of IEC 62056-21
// are numbers: C is 96, F 97, L 98, P 99.
type Code struct{ A, B, C, D, E, F int16 }

// Values of a part that are no number.
const (
	None int16 = -1 // the part is not written
	Any  int16 = -2 // in patterns: n, every number
)

// ParseCode reads a code as meters write it: 1-0:1.8.1*255, 1.8.0, F.F,
// C.1.0, 3:171.0, 1.8.0*05, 1.6.0&12. C and D must be there, each number is
// 0 to 255.
func ParseCode(s string) (Code, error) { return parseCode(s, false) }

// ParsePattern reads a code that may have n for any number: 0-n:24.2.1.
func ParsePattern(s string) (Code, error) { return parseCode(s, true) }

func parseCode(s string, pattern bool) (Code, error) {
	c := Code{None, None, None, None, None, None}
	ok := true
	part := func(t string) int16 {
		n, err := strconv.ParseUint(t, 10, 8)
		switch {
		case err == nil && len(t) <= 3:
			return int16(n)
		case len(t) == 1 && strings.Contains("CFLP", t):
			return letters[t[0]]
		case pattern && t == "n":
			return Any
		}
		ok = false
		return None
	}
	rest := s
	if a, after, found := strings.Cut(rest, "-"); found {
		c.A, rest = part(a), after
	}
	if b, after, found := strings.Cut(rest, ":"); found {
		c.B, rest = part(b), after
	} else if c.A != None {
		ok = false
	}
	if i := strings.IndexAny(rest, "*&"); i >= 0 {
		c.F, rest = part(rest[i+1:]), rest[:i]
	}
	parts := strings.Split(rest, ".")
	if len(parts) < 2 || len(parts) > 4 || len(parts) == 4 && c.F != None {
		ok = false
	} else {
		c.C, c.D = part(parts[0]), part(parts[1])
		if len(parts) > 2 {
			c.E = part(parts[2])
		}
		if len(parts) > 3 {
			c.F = part(parts[3])
		}
	}
	if !ok {
		return Code{}, fmt.Errorf("%q is no OBIS code such as 1-0:1.8.0", s)
	}
	return c, nil
}

var letters = map[byte]int16{'C': 96, 'F': 97, 'L': 98, 'P': 99}

// String writes the code with the parts that it has: 1-0:1.8.0*255.
func (c Code) String() string {
	var b strings.Builder
	for _, p := range [...]struct {
		before string
		n      int16
		after  string
	}{{"", c.A, "-"}, {"", c.B, ":"}, {"", c.C, ""}, {".", c.D, ""}, {".", c.E, ""}, {"*", c.F, ""}} {
		switch p.n {
		case None:
		case Any:
			b.WriteString(p.before + "n" + p.after)
		default:
			b.WriteString(p.before + strconv.Itoa(int(p.n)) + p.after)
		}
	}
	return b.String()
}

// Fits says whether a meter's code is the one that the pattern p means.
// Meters shorten their codes: a medium or channel that the meter does not
// write fits every number, but not n; an E that one of the two lacks is 0. An
// F that one of the two lacks is 255, the present value: a value of a past
// billing period fits only a pattern that asks for it. An E of 255 at a
// measured value means no tariff, which is 0.
func (p Code) Fits(meter Code) bool {
	if meter.E == 255 && meter.C < 96 {
		meter.E = 0
	}
	return place(p.A, meter.A) && place(p.B, meter.B) && p.C == meter.C && p.D == meter.D &&
		part(p.E, meter.E, 0) && part(p.F, meter.F, 255)
}

func place(p, meter int16) bool {
	return p == None || p == meter || p == Any && meter != None || p != Any && meter == None
}

func part(p, meter, def int16) bool {
	if p == None {
		p = def
	}
	if meter == None {
		meter = def
	}
	return p == meter || p == Any
}
