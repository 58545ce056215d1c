package profile

import (
	_ "embed"
	"slices"
	"strings"

	"tidegate/internal/document"
)

//go:embed names.txt
var nameTable string

// Name is a name that points have in all profiles: the same for the same
// thing whoever made the device.
type Name struct {
	Pattern string   // the name; * stands for digits
	Kinds   []string // gauge, counter, state, event, text
	Units   []string // SenML or UCUM symbols; "" is none
	Model   string   // Smart Data Models: MODEL.ATTRIBUTE, "" for none
	Own     bool     // only this vendor's device says it
	Meaning string
	Section string // heading in the table
}

// StandardNames returns the table of names, in its order.
func StandardNames() (out []Name) {
	section := ""
	for line := range strings.Lines(nameTable) {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "## "):
			section = line[3:]
		case len(f) < 5 || f[0] == "#":
		default:
			n := Name{Pattern: f[0], Kinds: strings.Split(f[1], ","), Model: f[3], Own: f[3] == "own",
				Meaning: strings.Join(f[4:], " "), Section: section}
			for _, u := range strings.Split(f[2], ",") {
				n.Units = append(n.Units, strings.TrimPrefix(u, "-"))
			}
			if n.Own || n.Model == "-" {
				n.Model = ""
			}
			out = append(out, n)
		}
	}
	return out
}

// Unusual says what is unusual about the names and units of a profile's
// points: one line for each, empty if all are in the table. It is advice: a
// cloud finds what it knows by these names.
func (p *Profile) Unusual() (out []string) {
	table := StandardNames()
	var known []string
	for _, n := range table {
		known = append(known, n.Pattern)
	}
	for i := range p.Points {
		pt := &p.Points[i]
		k := slices.IndexFunc(table, func(n Name) bool { return fitsPattern(n.Pattern, pt.Name) })
		switch {
		case k < 0:
			s := pt.Name + " is none of the usual names"
			if near := document.Nearest(pt.Name, known); near != "" {
				s += "; is it " + near + "?"
			}
			out = append(out, s)
		case !slices.Contains(table[k].Units, pt.Unit):
			out = append(out, pt.Name+" is in "+or(pt.Unit, "no unit")+", usual is "+or(strings.Join(table[k].Units, " or "), "none"))
		case !slices.Contains(table[k].Kinds, pt.kind()):
			out = append(out, pt.Name+" is a "+pt.kind()+", usual is "+strings.Join(table[k].Kinds, " or "))
		}
	}
	return out
}

func or(s, empty string) string {
	if s == "" {
		return empty
	}
	return s
}

// fitsPattern compares a name with a pattern in which * stands for digits.
func fitsPattern(pattern, name string) bool {
	for {
		before, after, wild := strings.Cut(pattern, "*")
		rest, ok := strings.CutPrefix(name, before)
		if !ok {
			return false
		}
		if !wild {
			return rest == ""
		}
		digits := strings.TrimLeft(rest, "0123456789")
		if digits == rest {
			return false
		}
		pattern, name = after, digits
	}
}
