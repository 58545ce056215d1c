package profile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/internal/trial"
)

const char9600 = 1041667 * time.Nanosecond // 10 bits at 9600 baud

func TestPlan(t *testing.T) {
	regs := func(at ...int) (out []Point) {
		for i, a := range at {
			out = append(out, Point{Name: fmt.Sprintf("p%d", i), Input: ptr(a)})
		}
		return out
	}
	for _, c := range []struct {
		name   string
		points []Point
		edit   func(p *Profile)
		limits Limits
		want   string
	}{
		{"neighbours", regs(0, 1, 2), nil, Limits{Char: char9600}, "input 0+3"},
		{"a small gap is read", regs(0, 8), nil, Limits{Char: char9600}, "input 0+9"},
		{"a wide gap is not", regs(0, 40), nil, Limits{Char: char9600}, "input 0+1 input 40+1"},
		{"over TCP a few dozen registers are", regs(0, 40), nil, Limits{}, "input 0+41"},
		{"but not a hundred", regs(0, 100), nil, Limits{}, "input 0+1 input 100+1"},
		{"a slow device makes gaps cheap", regs(0, 40), nil, Limits{Char: char9600, Turnaround: 100 * time.Millisecond}, "input 0+41"},
		{"max_read", regs(0, 10, 20, 30), func(p *Profile) { p.MaxRead = 25 }, Limits{}, "input 0+21 input 30+1"},
		{"limit of the line", regs(0, 10, 20, 30), nil, Limits{MaxRegisters: 11}, "input 0+11 input 20+11"},
		{"forbidden", regs(0, 5, 9), func(p *Profile) { p.Forbidden = []Region{{Input: []int{2, 3}}} }, Limits{}, "input 0+1 input 5+5"},
		{"forbidden in another table", regs(0, 5), func(p *Profile) { p.Forbidden = []Region{{Holding: []int{2, 3}}} }, Limits{}, "input 0+6"},
		{"no gaps", regs(0, 1, 3), func(p *Profile) { p.MaxGap = ptr(0) }, Limits{}, "input 0+2 input 3+1"},
		{"tables apart", []Point{{Name: "a", Coil: ptr(0)}, {Name: "b", Coil: ptr(1999)}, {Name: "c", Holding: ptr(0)}, {Name: "d", Discrete: ptr(5)}}, nil, Limits{},
			"coil 0+1 coil 1999+1 discrete 5+1 holding 0+1"},
		{"shared registers", []Point{{Name: "a", Input: ptr(0), Bit: ptr(1)}, {Name: "b", Input: ptr(0), Type: "u64"}, {Name: "c", Input: ptr(0), Bit: ptr(2)}}, nil, Limits{}, "input 0+4"},
		{"scale factor before and after", []Point{{Name: "a", Input: ptr(100), SF: "0"}, {Name: "b", Input: ptr(50)}}, nil, Limits{Char: char9600}, "input 0+101"},
		{"an atomic group", regs(0, 8, 60, 62), func(p *Profile) { p.Atomic = [][]string{{"p1", "p2"}} }, Limits{Char: char9600}, "input 0+63"},
		{"and what stands far from it", regs(0, 50, 60, 110), func(p *Profile) { p.Atomic = [][]string{{"p1", "p2"}} }, Limits{Char: char9600}, "input 0+1 input 50+11 input 110+1"},
		{"max_gap does not part it", regs(0, 2, 4), func(p *Profile) { p.MaxGap, p.Atomic = ptr(0), [][]string{{"p0", "p1"}} }, Limits{}, "input 0+3 input 4+1"},
		{"a refusal does", regs(0, 2, 4), func(p *Profile) { p.Atomic = [][]string{{"p0", "p2"}} },
			Limits{Barriers: []Barrier{{Table: Input, Lo: 3, Hi: 4}}}, "input 0+3 input 4+1"},
		{"a point that is not asked for", regs(0, 8, 60, 62), func(p *Profile) { p.Atomic = [][]string{{"p0", "p2"}} },
			Limits{Char: char9600, Without: []int{2}}, "input 0+9 input 62+1"},
		{"a line with small requests", regs(0, 20), func(p *Profile) { p.Atomic = [][]string{{"p0", "p1"}} }, Limits{MaxRegisters: 10}, "input 0+1 input 20+1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := custom(t, nil, c.points...)
			if c.edit != nil {
				c.edit(p)
			}
			got := ""
			for _, r := range p.Plan(c.limits) {
				if got != "" {
					got += " "
				}
				got += fmt.Sprintf("%s %d+%d", r.Table, r.Address, r.Count)
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestPlanSDM630(t *testing.T) {
	p := get(t, "eastron-sdm630")
	for _, r := range p.Plan(Limits{Char: char9600}) {
		t.Logf("%s %d+%d: %d points", r.Table, r.Address, r.Count, len(r.Points))
		if r.Count > 50 {
			t.Errorf("%d registers in one request", r.Count)
		}
	}
}

// TestPlanIsBest compares the plan with every other way to cut the points.
func TestPlanIsBest(t *testing.T) {
	trial.Run(t, func(t *trial.T) {
		var points []Point
		n := t.Int(1, 7)
		for i := range n {
			pt := Point{Name: fmt.Sprintf("p%d", i), Holding: ptr(t.Int(0, 120))}
			pt.Type = trial.Pick(t, "u16", "f32", "u64")
			points = append(points, pt)
		}
		p, issues := Custom("test", points, nil)
		if len(issues) > 0 {
			t.Fatal(issues)
		}
		p.MaxRead = t.Int(4, 60)
		bad := t.Int(200, 300)
		if t.Bool() {
			bad = t.Int(0, 120)
			for i := range p.codecs {
				if lo, hi := p.codecs[i].span(); lo <= bad && bad < hi {
					return
				}
			}
		}
		p.Forbidden = []Region{{Holding: []int{bad, bad}}}
		l := Limits{Char: time.Duration(trial.Pick(t, 0, 86806, 1041667))}
		got := p.Plan(l)
		var seen []int
		var cost int64
		for _, r := range got {
			lo, hi := int(r.Address), int(r.Address)+int(r.Count)
			if int(r.Count) > p.MaxRead || bad >= lo && bad < hi {
				t.Fatalf("%+v breaks a limit", r)
			}
			for _, i := range r.Points {
				if a, b := p.codecs[i].span(); a < lo || b > hi {
					t.Fatalf("point %d is not in %+v", i, r)
				}
			}
			seen = append(seen, r.Points...)
			cost += l.cost(r.Table, int(r.Count))
		}
		slices.Sort(seen)
		if len(slices.Compact(seen)) != n || len(seen) != n {
			t.Fatalf("points %v in %+v", seen, got)
		}
		if best := cheapest(p, l, bad, 0, nil); cost > best {
			t.Fatalf("cost %d, but %d is possible: %+v", cost, best, got)
		}
	})
}

// cheapest tries all partitions of the points from i on.
func cheapest(p *Profile, l Limits, bad, i int, blocks [][2]int) int64 {
	if i == len(p.codecs) {
		var sum int64
		for _, b := range blocks {
			sum += l.cost(Holding, b[1]-b[0])
		}
		return sum
	}
	lo, hi := p.codecs[i].span()
	best := cheapest(p, l, bad, i+1, append(slices.Clone(blocks), [2]int{lo, hi}))
	for k, b := range blocks {
		m := [2]int{min(b[0], lo), max(b[1], hi)}
		if m[1]-m[0] > p.MaxRead || bad >= m[0] && bad < m[1] {
			continue
		}
		next := slices.Clone(blocks)
		next[k] = m
		best = min(best, cheapest(p, l, bad, i+1, next))
	}
	return best
}

func TestAtomic(t *testing.T) {
	lib, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	const head = "name: x\ntitle: x\nstatus: community\nsources: [a manual]\ntransport: modbus\nforbidden: [{input: [50, 60]}]\n"
	const points = "points: {a: {input: 0}, b: {input: 10}, c: {input: 70}, d: {holding: 0}, e: {input: 200}}\n"
	for atomic, want := range map[string]string{
		"[[a, b]]":         "",
		"[[a, b], [c, c]]": "is in a group already",
		"[[a, b], [b, c]]": "is in a group already",
		"[a, b]":           "two points or more",
		"[[a, q]]":         `no point "q"`,
		"[[a, d]]":         "another table",
		"[[a, c]]":         "forbidden",
		"[[c, e]]":         "131 addresses",
	} {
		_, problems := Parse(lib, "x.yaml", []byte(head+"atomic: "+atomic+"\n"+points))
		text := ""
		for _, p := range problems {
			if !p.Warning {
				text += p.Msg
			}
		}
		if (want == "") != (text == "") || !strings.Contains(text, want) {
			t.Errorf("%s: %q, want %q", atomic, text, want)
		}
	}
}
