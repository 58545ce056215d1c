// Package rule turns readings into events: thresholds with a hold time and a
// condition that ends them.
//
// It is pure. Its only clock is the stamps of the readings, and of those only
// the uptime counts, so a step of the wall clock neither raises nor clears a
// rule. It owns no goroutine and does no I/O.
package rule

import (
	"time"

	"tidegate/internal/telemetry"
)

// Device is the name under which the points of all rules stand in the
// catalog. No device may have it while there are rules.
const Device = "rules"

// DefaultSeverity is the severity of a rule that names none.
const DefaultSeverity = "warning"

// Rule is one entry of the section rules of the configuration.
type Rule struct {
	Name     string        `yaml:"-"`
	When     string        `yaml:"when" required:"true" doc:"One comparison of a point: main-meter/voltage_l1 > 253. Operators: > >= < <= == !=; values: numbers, true, false, words."`
	For      time.Duration `yaml:"for" doc:"How long the condition must hold, in the uptime of the gateway; default: one reading is enough."`
	Clear    string        `yaml:"clear" doc:"Comparison that ends the event once when is no longer true; default: at once."`
	Severity string        `yaml:"severity" enum:",info,warning,critical" doc:"How bad it is; default: warning."`
}

// Issue is one mistake in a rule. Path is when, clear, or "" for the rule as
// a whole. Unknown is the name of the point if the mistake is that there is
// none of that name.
type Issue struct{ Rule, Path, Msg, Hint, Unknown string }

// Event is a change of state of one rule. The first word on a rule after a
// start is a change too.
type Event struct {
	Rule     string
	Severity string // info, warning or critical
	Raised   bool   // else cleared
	// Cause is the reading that brought the change, one of the group.
	Cause telemetry.Reading
	// Points are the readings of the rule's own points, in the order of
	// Set.Points: state, severity and the value of the point of when.
	Points [perRule]telemetry.Reading
}

// perRule is how many points each rule has in the catalog.
const perRule = 3

// The suffixes of the second and third point of a rule.
const (
	severitySuffix = "_severity"
	valueSuffix    = "_value"
)

// Set is the compiled rules with their states. It is not safe for concurrent
// use. A nil Set has no rules.
type Set struct {
	rules   []state
	uses    [][]use // by point number
	points  []telemetry.Point
	touched []int
	events  []Event
}

// use says that a rule looks at a point.
type use struct {
	rule  int
	clear bool // in its clear, else in its when
}

// phase is what was said last of a rule.
type phase uint8

const (
	unsaid phase = iota // nothing since the start
	cleared
	raised
)

// state is one rule: what it says, and how far it has come.
type state struct {
	name, severity string
	first          uint32 // number of its first own point
	hold           int64  // ms
	when, clear    condition
	latching       bool // clear is written

	phase      phase
	touched    bool // by the group at hand
	fresh      bool // the group at hand has a reading of when
	pending    bool // when holds, since:
	sinceMono  int64
	sinceBoot  uint32
	whenNow    truth
	clearNow   truth
	whenCause  telemetry.Reading
	clearCause telemetry.Reading
}

// Compile checks rules against the points of all devices; the number of a
// point is its index. The Set is complete only if there are no issues. The
// numbers of the rules' own points follow those of points.
func Compile(rules []Rule, points []telemetry.Point) (*Set, []Issue) {
	if len(rules) == 0 {
		return nil, nil
	}
	c := compiler{numbers: make(map[string]uint32, len(points)), points: points}
	for i := range points {
		c.numbers[points[i].Device+"/"+points[i].Name] = uint32(i)
	}
	s := &Set{uses: make([][]use, len(points))}
	taken := map[string]string{}
	for i := range rules {
		r := &rules[i]
		c.rule = r.Name
		st := state{name: r.Name, severity: r.Severity, hold: r.For.Milliseconds(),
			first: uint32(len(points) + i*perRule), latching: r.Clear != ""}
		if st.severity == "" {
			st.severity = DefaultSeverity
		}
		for _, suffix := range []string{"", severitySuffix, valueSuffix} {
			if other, ok := taken[r.Name+suffix]; ok {
				c.report("", "the points of this rule would have the names of those of rule "+quoted(other),
					"a rule x has the points x, x"+severitySuffix+" and x"+valueSuffix)
			}
			taken[r.Name+suffix] = r.Name
		}
		own := [perRule]telemetry.Point{{Kind: "event"}, {Kind: "event"}, {Kind: "event"}}
		var ok bool
		if st.when, ok = c.condition("when", r.When); ok {
			s.uses[st.when.point] = append(s.uses[st.when.point], use{i, false})
			of := &points[st.when.point]
			own[2].Unit, own[2].Decimals = of.Unit, of.Decimals
		}
		if st.latching {
			var both bool
			if st.clear, both = c.condition("clear", r.Clear); both {
				s.uses[st.clear.point] = append(s.uses[st.clear.point], use{i, true})
			}
			if x, overlap := st.when.overlap(&st.clear); ok && both && overlap {
				c.report("clear", "at "+x+" both when and clear hold", "clear must begin where when has ended, such as when > 253, clear < 250")
			}
		}
		s.rules = append(s.rules, st)
		for k, suffix := range []string{"", severitySuffix, valueSuffix} {
			own[k].Device, own[k].Name, own[k].Class = Device, r.Name+suffix, telemetry.ClassAlarm
			s.points = append(s.points, own[k])
		}
	}
	return s, c.issues
}

// Word is what a rule compares a point with, as written, without quotes.
type Word struct {
	Rule, Path string // Path: when or clear
	Point      uint32
	Text       string
}

// Words returns what all rules compare with, by point, so that the caller
// can tell what a point with a fixed list of words never says.
func (s *Set) Words() []Word {
	if s == nil {
		return nil
	}
	var out []Word
	for point, uses := range s.uses {
		for _, u := range uses {
			c, path := &s.rules[u.rule].when, "when"
			if u.clear {
				c, path = &s.rules[u.rule].clear, "clear"
			}
			out = append(out, Word{s.rules[u.rule].name, path, uint32(point), c.text})
		}
	}
	return out
}

// Points returns the rules' own points for the catalog, where they follow
// the points that Compile was given.
func (s *Set) Points() []telemetry.Point {
	if s == nil {
		return nil
	}
	return s.points
}

// Apply looks at the readings of a group and returns the rules that change
// by it. Only good readings count: any other changes nothing. The slice is
// reused by the next Apply.
func (s *Set) Apply(g *telemetry.Group) []Event {
	if s == nil {
		return nil
	}
	s.touched, s.events = s.touched[:0], s.events[:0]
	for i := range g.Readings {
		r := &g.Readings[i]
		if int(r.Point) >= len(s.uses) || len(s.uses[r.Point]) == 0 || r.Quality != telemetry.Good {
			continue
		}
		for _, u := range s.uses[r.Point] {
			s.note(u, r)
		}
	}
	// All readings of the group are of one instant: a rule is judged once all are known.
	for _, i := range s.touched {
		s.judge(&s.rules[i], g)
	}
	return s.events
}

// note takes over one reading into one rule.
func (s *Set) note(u use, r *telemetry.Reading) {
	st := &s.rules[u.rule]
	if u.clear {
		now := st.clear.holds(&r.Value)
		if now == unknown {
			return
		}
		st.clearNow, st.clearCause = now, *r
	} else {
		now := st.when.holds(&r.Value)
		if now == unknown {
			return
		}
		st.whenNow, st.whenCause, st.fresh = now, *r, true
	}
	if !st.touched {
		st.touched = true
		s.touched = append(s.touched, u.rule)
	}
}

// judge moves one rule on.
func (s *Set) judge(st *state, g *telemetry.Group) {
	fresh := st.fresh
	st.touched, st.fresh = false, false
	if fresh {
		if st.whenNow == no {
			st.pending = false
		} else if !st.pending || st.sinceBoot != g.At.Boot {
			st.pending, st.sinceMono, st.sinceBoot = true, g.At.Mono, g.At.Boot
		}
		if st.pending && st.phase != raised && g.At.Mono-st.sinceMono >= st.hold {
			s.say(st, raised, &st.whenCause)
			return
		}
	}
	if st.phase == cleared || st.whenNow != no || st.latching && st.clearNow != yes {
		return
	}
	cause := &st.whenCause
	if !fresh {
		cause = &st.clearCause
	}
	s.say(st, cleared, cause)
}

// say adds an event.
func (s *Set) say(st *state, p phase, cause *telemetry.Reading) {
	st.phase = p
	word := "cleared"
	if p == raised {
		word = "raised"
	}
	s.events = append(s.events, Event{Rule: st.name, Severity: st.severity, Raised: p == raised, Cause: *cause,
		Points: [perRule]telemetry.Reading{
			{Point: st.first, Value: telemetry.TextValue(word)},
			{Point: st.first + 1, Value: telemetry.TextValue(st.severity)},
			{Point: st.first + 2, Value: st.whenCause.Value},
		}})
}
