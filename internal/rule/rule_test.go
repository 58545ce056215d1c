package rule

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

var points = []telemetry.Point{
	{Device: "m", Name: "v", Unit: "V", Kind: "gauge", Decimals: 1},
	{Device: "m", Name: "energy", Unit: "kWh", Kind: "counter"},
	{Device: "b", Name: "pump", Kind: "state"},
	{Device: "b", Name: "mode", Kind: "state"},
	{Device: "b", Name: "serial", Kind: "text"},
	{Device: "b", Name: "reset", Kind: "state"},
}

func compile(t testing.TB, rules ...Rule) *Set {
	t.Helper()
	s, issues := Compile(rules, points)
	for _, i := range issues {
		t.Errorf("%+v", i)
	}
	return s
}

// TestOperators: each operator against each kind of value, at its edges.
func TestOperators(t *testing.T) {
	tenth := telemetry.IntValue(2530, 1)
	for _, c := range []struct {
		when string
		v    telemetry.Value
		want truth
	}{
		{"m/v > 253", telemetry.IntValue(2531, 1), yes},
		{"m/v > 253", tenth, no},
		{"m/v >= 253", tenth, yes},
		{"m/v >= 253", telemetry.IntValue(2529, 1), no},
		{"m/v < 253", telemetry.IntValue(2529, 1), yes},
		{"m/v < 253", tenth, no},
		{"m/v <= 253", tenth, yes},
		{"m/v <= 253", telemetry.IntValue(2531, 1), no},
		{"m/v == 253", tenth, yes},
		{"m/v == 253", telemetry.IntValue(2531, 1), no},
		{"m/v != 253", telemetry.IntValue(2531, 1), yes},
		{"m/v != 253", tenth, no},
		{"m/v>-1.5e1", telemetry.Float64Value(-14.9), yes},
		{"m/v > +3", telemetry.Float64Value(3), no},
		// A single that prints as 0.1 is 0.1.
		{"m/v == 0.1", telemetry.Float32Value(0.1), yes},
		{"m/v > 0.1", telemetry.Float32Value(0.1), no},
		{"m/v == 0.1", telemetry.Float64Value(0.1), yes},
		{"m/v == 0.3", telemetry.IntValue(3, 1), yes},
		// Integers beyond 2^53 are compared exactly.
		{"m/energy == 9007199254740993", telemetry.IntValue(9007199254740993, 0), yes},
		{"m/energy == 9007199254740993", telemetry.IntValue(9007199254740992, 0), no},
		{"m/energy > 9223372036854775807", telemetry.UintValue(math.MaxUint64, 0), yes},
		{"b/pump == true", telemetry.BoolValue(true), yes},
		{"b/pump == true", telemetry.BoolValue(false), no},
		{"b/pump != true", telemetry.BoolValue(false), yes},
		{"b/pump == false", telemetry.BoolValue(false), yes},
		{"b/pump == TRUE", telemetry.BoolValue(true), yes},
		{"b/pump == 1", telemetry.BoolValue(true), yes},
		{"b/pump > 0", telemetry.BoolValue(false), no},
		{"b/pump == true", telemetry.IntValue(1, 0), yes},
		{"b/mode == run", telemetry.TextValue("run"), yes},
		{"b/mode == run", telemetry.TextValue("Run"), no},
		{"b/mode != run", telemetry.TextValue("idle"), yes},
		{`b/mode == "out of order"`, telemetry.TextValue("out of order"), yes},
		{`b/mode == 'on'`, telemetry.TextValue("on"), yes},
		{`b/mode == ""`, telemetry.TextValue(""), yes},
		{"b/serial == 0017", telemetry.TextValue("0017"), yes},
		{"b/serial == 17", telemetry.TextValue("0017"), no},
		{"b/serial == true", telemetry.TextValue("true"), yes},
		// Values of another kind are no answer.
		{"b/mode == run", telemetry.IntValue(3, 0), unknown},
		{"b/mode != run", telemetry.BoolValue(true), unknown},
		{"b/mode > 3", telemetry.TextValue("run"), unknown},
		{"m/v != 3", telemetry.Float64Value(math.NaN()), unknown},
		{"m/v != 3", telemetry.Float32Value(float32(math.NaN())), unknown},
		{"m/v != 3", telemetry.Value{}, unknown},
	} {
		s := compile(t, Rule{Name: "r", When: c.when})
		if s == nil || t.Failed() {
			t.Fatal(c.when)
		}
		if got := s.rules[0].when.holds(&c.v); got != c.want {
			t.Errorf("%s with %s: %d, want %d", c.when, c.v, got, c.want)
		}
	}
}

// step is one group given to Apply and what must come of it.
type step struct {
	mono   int64 // ms
	point  uint32
	value  telemetry.Value
	expect string // such as "r raised 254.0"; "" for nothing
	change func(g *telemetry.Group)
}

func volts(x int64) telemetry.Value { return telemetry.IntValue(x*10, 1) }

func say(events []Event) string {
	var out []string
	for _, e := range events {
		word := "cleared"
		if e.Raised {
			word = "raised"
		}
		if e.Points[0].Value.Text() != word || e.Points[1].Value.Text() != e.Severity {
			word += "?"
		}
		out = append(out, fmt.Sprintf("%s %s %s", e.Rule, word, e.Cause.Value))
	}
	return strings.Join(out, ", ")
}

// TestTransitions walks rules through their states.
func TestTransitions(t *testing.T) {
	over := Rule{Name: "r", When: "m/v > 253"}
	held := Rule{Name: "r", When: "m/v > 253", For: 10 * time.Second}
	gap := Rule{Name: "r", When: "m/v > 253", Clear: "m/v < 250"}
	latch := Rule{Name: "r", When: "m/v > 253", Clear: "b/reset == true"}
	bad := func(q telemetry.Quality) func(*telemetry.Group) {
		return func(g *telemetry.Group) { g.Readings[0].Quality = q }
	}
	wall := func(ms int64) func(*telemetry.Group) { return func(g *telemetry.Group) { g.At.Wall += ms } }
	for _, c := range []struct {
		name  string
		rule  Rule
		steps []step
	}{
		{"plain", over, []step{
			{0, 0, volts(230), "r cleared 230.0", nil}, {1, 0, volts(231), "", nil},
			{2, 0, volts(254), "r raised 254.0", nil}, {3, 0, volts(255), "", nil},
			{4, 0, volts(253), "r cleared 253.0", nil}, {5, 0, volts(252), "", nil}}},
		{"raised from the first reading", over, []step{{0, 0, volts(254), "r raised 254.0", nil}, {1, 0, volts(254), "", nil}}},
		{"hold", held, []step{
			{0, 0, volts(230), "r cleared 230.0", nil},
			{1000, 0, volts(254), "", nil}, {10_999, 0, volts(254), "", nil},
			{11_000, 0, volts(255), "r raised 255.0", nil}, {12_000, 0, volts(255), "", nil},
			{13_000, 0, volts(230), "r cleared 230.0", nil}}},
		{"hold interrupted", held, []step{
			{0, 0, volts(254), "", nil}, {9000, 0, volts(230), "r cleared 230.0", nil},
			{11_000, 0, volts(254), "", nil}, {20_999, 0, volts(254), "", nil}, {21_000, 0, volts(254), "r raised 254.0", nil}}},
		{"hold from one reading", held, []step{{0, 0, volts(254), "", nil}, {60_000, 0, volts(254), "r raised 254.0", nil}}},
		{"clock stepped forward", held, []step{
			{0, 0, volts(254), "", nil}, {1000, 0, volts(254), "", wall(3600_000)}, {9999, 0, volts(254), "", wall(3600_000)},
			{10_000, 0, volts(254), "r raised 254.0", wall(3600_000)}}},
		{"clock stepped back", held, []step{
			{0, 0, volts(254), "", nil}, {5000, 0, volts(254), "", wall(-3600_000)},
			{10_000, 0, volts(254), "r raised 254.0", wall(-3600_000)}, {11_000, 0, volts(254), "", wall(-7200_000)}}},
		{"another boot", held, []step{
			{9000, 0, volts(254), "", nil},
			{20_000, 0, volts(254), "", func(g *telemetry.Group) { g.At.Boot++ }},
			{29_999, 0, volts(254), "", func(g *telemetry.Group) { g.At.Boot++ }},
			{30_000, 0, volts(254), "r raised 254.0", func(g *telemetry.Group) { g.At.Boot++ }}}},
		{"bad readings change nothing", held, []step{
			{0, 0, volts(254), "", nil}, {5000, 0, volts(0), "", bad(telemetry.Comm)}, {6000, 0, volts(0), "", bad(telemetry.Range)},
			{7000, 0, volts(0), "", bad(telemetry.Stale)}, {8000, 0, volts(0), "", bad(telemetry.Fault)},
			{10_000, 0, volts(254), "r raised 254.0", nil}, {11_000, 0, volts(0), "", bad(telemetry.Init)},
			{12_000, 0, telemetry.Value{}, "", bad(telemetry.Comm)}}},
		{"bad readings raise nothing", over, []step{{0, 0, volts(254), "", bad(telemetry.Range)}, {1, 0, volts(230), "r cleared 230.0", nil}}},
		{"clear with a gap", gap, []step{
			{0, 0, volts(249), "r cleared 249.0", nil}, {1, 0, volts(254), "r raised 254.0", nil},
			{2, 0, volts(253), "", nil}, {3, 0, volts(250), "", nil}, {4, 0, volts(254), "", nil},
			{5, 0, volts(249), "r cleared 249.0", nil}, {6, 0, volts(251), "", nil}}},
		{"in the gap at the start", gap, []step{{0, 0, volts(251), "", nil}, {1, 0, volts(249), "r cleared 249.0", nil}}},
		{"latch", latch, []step{
			{0, 0, volts(254), "r raised 254.0", nil}, {1, 0, volts(230), "", nil}, {2, 5, telemetry.BoolValue(false), "", nil},
			{3, 5, telemetry.BoolValue(true), "r cleared true", nil}, {4, 5, telemetry.BoolValue(true), "", nil},
			// The reset is held down: no clearing while it still holds.
			{5, 0, volts(254), "r raised 254.0", nil}, {6, 5, telemetry.BoolValue(true), "", nil},
			{7, 0, volts(230), "r cleared 230.0", nil}}},
		{"latch at the start", latch, []step{
			{0, 5, telemetry.BoolValue(true), "", nil}, {1, 0, volts(230), "r cleared 230.0", nil}}},
		{"text", Rule{Name: "r", When: "b/mode == fault", Severity: "critical"}, []step{
			{0, 3, telemetry.TextValue("run"), "r cleared run", nil}, {1, 3, telemetry.TextValue("fault"), "r raised fault", nil},
			{2, 3, telemetry.IntValue(7, 0), "", nil}, {3, 3, telemetry.TextValue("idle"), "r cleared idle", nil}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := compile(t, c.rule)
			for i, st := range c.steps {
				g := telemetry.Group{At: clock.Stamp{Wall: 1e12 + st.mono, Mono: st.mono, Boot: 1, Synced: true},
					Readings: []telemetry.Reading{{Point: st.point, Value: st.value}}}
				if st.change != nil {
					st.change(&g)
				}
				if got := say(s.Apply(&g)); got != st.expect {
					t.Fatalf("step %d: got %q, want %q", i, got, st.expect)
				}
			}
		})
	}
}

// TestOneInstant: the readings of a group count together, whatever their
// order, and an event carries what the catalog promises.
func TestOneInstant(t *testing.T) {
	s := compile(t, Rule{Name: "latch", When: "b/pump == true", Clear: "b/reset == true"},
		Rule{Name: "over", When: "m/v > 253", Severity: "critical"}, Rule{Name: "high", When: "m/v > 240", Severity: "info"})
	group := func(pump, reset bool) *telemetry.Group {
		return &telemetry.Group{Readings: []telemetry.Reading{
			{Point: 5, Value: telemetry.BoolValue(reset)}, {Point: 2, Value: telemetry.BoolValue(pump)}}}
	}
	for i, c := range []struct {
		g    *telemetry.Group
		want string
	}{
		{group(true, true), "latch raised true"}, {group(true, true), ""}, {group(false, true), "latch cleared false"},
		{&telemetry.Group{Readings: []telemetry.Reading{{Point: 0, Value: volts(250)}}}, "over cleared 250.0, high raised 250.0"},
	} {
		if got := say(s.Apply(c.g)); got != c.want {
			t.Errorf("%d: got %q, want %q", i, got, c.want)
		}
	}
	got := s.events[1]
	want := [3]telemetry.Reading{{Point: 12, Value: telemetry.TextValue("raised")},
		{Point: 13, Value: telemetry.TextValue("info")}, {Point: 14, Value: volts(250)}}
	if got.Points != want || got.Cause.Point != 0 {
		t.Errorf("%+v", got)
	}
	if w := s.Words(); len(w) != 4 || w[0] != (Word{"over", "when", 0, "253"}) || w[3] != (Word{"latch", "clear", 5, "true"}) {
		t.Errorf("%+v", w)
	}
	p := s.Points()
	if len(p) != 9 || p[6] != (telemetry.Point{Device: "rules", Name: "high", Kind: "event", Class: telemetry.ClassAlarm}) ||
		p[7].Name != "high_severity" || p[8] != (telemetry.Point{Device: "rules", Name: "high_value", Unit: "V", Kind: "event", Decimals: 1, Class: telemetry.ClassAlarm}) {
		t.Errorf("%+v", p)
	}
}

// TestIssues: what is wrong and what to write instead.
func TestIssues(t *testing.T) {
	for _, c := range []struct{ when, clear, want string }{
		{"", "", `when: "" has no operator`},
		{"m/v", "", "has no operator"},
		{"m/v >", "", "not a whole comparison"},
		{"> 3", "", "not a whole comparison"},
		{"m/v = 3", "", `did you mean "m/v == 3"?`},
		{"m/v => 3", "", `did you mean "m/v >= 3"?`},
		{"m/v =< 3", "", `did you mean "m/v <= 3"?`},
		{"m/v <> 3", "", `did you mean "m/v != 3"?`},
		{"m/v === 3", "", `did you mean "m/v == 3"?`},
		{"m/v \u2265 3", "", `did you mean "m/v >= 3"?`},
		{"m/v ! 3", "", `did you mean "m/v != 3"?`},
		{"m/v >> 3", "", `"> 3" is no value`},
		{"253 < m/v", "", `did you mean "m/v > 253"?`},
		{"m/v > 253 V", "", `did you mean "m/v > 253"?`},
		{"m/v > 253,5", "", `did you mean "m/v > 253.5"?`},
		{"m/v > 1 and m/v < 3", "", "one comparison"},
		{"m/v > 1 && m/v < 3", "", "one comparison"},
		{"m/v > 1e999", "", "too large"},
		{"m/v > high", "", "> compares numbers"},
		{"b/pump > true", "", "> compares numbers"},
		{"m/v == high", "", "m/v is a number"},
		{"m/energy == true", "", "m/energy is a number"},
		{"b/serial > 3", "", "is a text"},
		{"b/pump == on", "", `did you mean "b/pump == true"?`},
		{"b/pump != OFF", "", `did you mean "b/pump != false"?`},
		{"b/mode == out of order", "", "several words stand in quotes"},
		{`b/mode == "out`, "", "is no value"},
		{"m/u > 3", "", `no point "m/u"`},
		{"v > 3", "", `no point "v"`},
		{"m/v > 253", "m/v > 250", "at 254 both when and clear hold"},
		{"m/v > 253", "m/v < 260", "at 256.5 both when and clear hold"},
		{"m/v >= 253", "m/v <= 253", "at 253 both when and clear hold"},
		{"m/v != 3", "m/v == 4", "both when and clear hold"},
		{"b/mode != run", "b/mode != idle", "at any other word both"},
		{"b/mode == run", "b/mode != idle", "at run both"},
		{"b/pump == true", "b/pump != false", "at true both"},
		{"m/v > 253", "m/w < 250", `clear: there is no point "m/w"`},
		{"m/v > 253", "m/v < 253", ""},
		{"m/v > 253", "m/v <= 253", ""},
		{"b/mode == run", "b/mode != run", ""},
		{"m/v == 0", "m/v != 0", ""},
	} {
		_, issues := Compile([]Rule{{Name: "r", When: c.when, Clear: c.clear}}, points)
		text := ""
		for _, i := range issues {
			if i.Rule != "r" || i.Path != "when" && i.Path != "clear" {
				t.Errorf("%+v", i)
			}
			text += i.Msg + " " + i.Hint
		}
		if len(issues) > 1 || c.want == "" && text != "" || !strings.Contains(text, c.want) {
			t.Errorf("%q, %q: got %q, want %q", c.when, c.clear, text, c.want)
		}
	}
	_, issues := Compile([]Rule{{Name: "a", When: "m/v > 1"}, {Name: "a_value", When: "m/v > 1"}}, points)
	if len(issues) != 1 || issues[0].Rule != "a_value" || issues[0].Path != "" {
		t.Errorf("%+v", issues)
	}
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{"m/v > 253", "m/v=<3", `b/mode == "x y"`, "253 < m/v", "m/v \u2265 1"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, when, clear string) {
		s, issues := Compile([]Rule{{Name: "r", When: when, Clear: clear}}, points)
		if len(issues) > 0 {
			return
		}
		for i := range points {
			for _, v := range []telemetry.Value{{}, volts(254), telemetry.TextValue("x"), telemetry.BoolValue(true)} {
				s.Apply(&telemetry.Group{Readings: []telemetry.Reading{{Point: uint32(i), Value: v}}})
			}
		}
	})
}

// TestNoAllocation: neither a group no rule looks at nor one that changes
// nothing costs memory, and a nil Set has no rules.
func TestNoAllocation(t *testing.T) {
	s := compile(t, Rule{Name: "r", When: "m/v > 253", For: time.Second, Clear: "m/v < 250"})
	g := &telemetry.Group{Readings: []telemetry.Reading{{Point: 0, Value: volts(230)}, {Point: 1, Value: volts(1)}, {Point: 99}}}
	s.Apply(g)
	if n := testing.AllocsPerRun(100, func() { s.Apply(g) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	none, issues := Compile(nil, points)
	if none != nil || issues != nil || none.Apply(g) != nil || none.Points() != nil {
		t.Error("a set without rules")
	}
}

// BenchmarkApply judges a group of 50 readings with 10 rules on them, and
// one that no rule looks at.
func BenchmarkApply(b *testing.B) {
	var pts []telemetry.Point
	var rules []Rule
	var group, other telemetry.Group
	for i := range 100 {
		pts = append(pts, telemetry.Point{Device: "d", Name: fmt.Sprint("p", i), Kind: "gauge"})
		r := telemetry.Reading{Point: uint32(i), Value: volts(230)}
		if i >= 50 {
			other.Readings = append(other.Readings, r)
			continue
		}
		group.Readings = append(group.Readings, r)
		if i%5 == 0 {
			rules = append(rules, Rule{Name: fmt.Sprint("r", i), When: fmt.Sprintf("d/p%d > 253", i), For: time.Second, Clear: fmt.Sprintf("d/p%d < 250", i)})
		}
	}
	s, issues := Compile(rules, pts)
	if len(issues) > 0 {
		b.Fatal(issues)
	}
	b.Run("10 rules", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Apply(&group)
		}
	})
	b.Run("none", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.Apply(&other)
		}
	})
}
