package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidegate/driver/profile"
)

// candidate is a profile with the reads that prove it.
type candidate struct {
	p     *profile.Profile
	signs []profile.Sign
}

// place is a read without its unit.
type place struct {
	table       profile.Table
	addr, count uint16
}

func placeOf(s *profile.Sign) place {
	return place{s.Request.Table, s.Request.Address, s.Request.Count}
}

// interview is what one unit has said to the reads of this scan.
type interview struct {
	id     int
	wait   time.Duration
	data   map[place][]byte // nil: refused or silent
	unable [5]bool          // tables whose function the unit does not know
	silent int              // reads in a row without an answer
	models []profile.Model  // of SunSpec
	walked bool             // they have been looked for
	// patience is how many reads without an answer are repeated: a busy line
	// loses one now and then, and a device that is silent where it has no
	// register is not waited for thirty times.
	patience int
}

// crowd is how many units are compared with every profile. Of more, a unit
// that fits a profile already found, or one that begins with the same read,
// is not compared with the others: a street of equal meters is not asked
// thousands of questions.
const crowd = 16

// recognise compares every unit with the profiles.
func (s *scan) recognise(ctx context.Context) error {
	var all []candidate
	for _, p := range s.o.Profiles {
		if signs := p.Signs(); len(signs) >= 2 {
			all = append(all, candidate{p, signs})
		}
	}
	if len(all) == 0 || len(s.res.Units) == 0 {
		return nil
	}
	s.say(ScanStep{Text: fmt.Sprintf("comparing with %d profiles", len(all)), Of: len(s.res.Units)})
	known := map[place]bool{}
	for i := range s.res.Units {
		s.say(ScanStep{Done: i, Of: len(s.res.Units)})
		u := &s.res.Units[i]
		heard := &interview{id: u.ID, wait: max(s.o.Timeout, 2*u.RTT+50*time.Millisecond), data: map[place][]byte{}, patience: 3}
		likely, rest := all, []candidate(nil)
		if i >= crowd {
			likely, rest = nil, nil
			for _, c := range all {
				if known[placeOf(&c.signs[0])] {
					likely = append(likely, c)
				} else {
					rest = append(rest, c)
				}
			}
		}
		fits, err := s.fitting(ctx, heard, likely, nil)
		if err == nil && len(fits) == 0 && len(rest) > 0 {
			fits, err = s.fitting(ctx, heard, rest, nil)
		}
		if err != nil {
			return err
		}
		u.Matches, u.Best = rank(fits, heard)
		for _, m := range fits[:min(len(fits), 1)] {
			known[placeOf(&m.signs[0])] = true
		}
	}
	s.say(ScanStep{Done: len(s.res.Units), Of: len(s.res.Units)})
	return nil
}

// fitting returns those candidates all of whose reads fit, not all of them zero.
func (s *scan) fitting(ctx context.Context, heard *interview, from, fits []candidate) ([]candidate, error) {
	for _, c := range from {
		alive := false
		for k := range c.signs {
			data, err := s.read(ctx, heard, placeOf(&c.signs[k]))
			if err != nil {
				return nil, err
			}
			_, ok, zero := c.signs[k].Judge(data)
			alive = ok && (alive || !zero)
			if !ok {
				break
			}
			if k == len(c.signs)-1 && alive && c.p.SunSpec() {
				if alive, err = s.hasModels(ctx, heard, c.p); err != nil {
					return nil, err
				}
			}
			if k == len(c.signs)-1 && alive {
				fits = append(fits, c)
			}
		}
	}
	return fits, nil
}

// hasModels says whether a unit has a model with a point of the profile: all
// devices of SunSpec begin alike.
func (s *scan) hasModels(ctx context.Context, heard *interview, p *profile.Profile) (bool, error) {
	if !heard.walked {
		heard.walked = true
		models, err := profile.WalkSunSpec(func(addr, count uint16) ([]byte, error) {
			data, err := s.read(ctx, heard, place{profile.Holding, addr, count})
			if err == nil && data == nil {
				err = profile.ErrRefused
			}
			return data, err
		})
		if err != nil && !errors.Is(err, profile.ErrNoSunSpec) && !errors.Is(err, profile.ErrSunSpecChain) {
			return false, err
		}
		heard.models = models
	}
	_, missing := p.Locate(heard.models)
	return len(missing) < len(p.Points), nil
}

// evidence tells the models of SunSpec that were found.
func (heard *interview) evidence(p *profile.Profile) []string {
	if !p.SunSpec() {
		return nil
	}
	var ids []string
	for _, m := range heard.models {
		ids = append(ids, strconv.Itoa(m.ID))
	}
	return []string{"models " + strings.Join(ids, ", ")}
}

// read asks a unit for one place, once in a scan. A refusal and silence give
// no data and no error.
func (s *scan) read(ctx context.Context, heard *interview, at place) ([]byte, error) {
	if data, ok := heard.data[at]; ok {
		return data, nil
	}
	heard.data[at] = nil
	if heard.unable[at.table] || heard.silent >= 8 {
		return nil, nil
	}
	r, answered, err := s.ask(ctx, heard.id, at.table, at.addr, at.count, heard.wait)
	for try := 0; !answered && ctx.Err() == nil && !errors.Is(err, ErrGone); try++ {
		// A late answer would look like that to the next read of this unit.
		if err := s.hush(ctx, time.Now().Add(3*heard.wait)); err != nil {
			return nil, err
		}
		if try > 0 || heard.patience == 0 {
			break
		}
		heard.patience--
		r, answered, err = s.ask(ctx, heard.id, at.table, at.addr, at.count, scanSlow/2)
		if answered && r.got.Sub(r.sent) > heard.wait {
			heard.wait = scanSlow / 2
		}
	}
	var x Exception
	switch {
	case err == nil:
		heard.data[at] = slices.Clone(r.data)
	case errors.As(err, &x):
		heard.unable[at.table] = x == 1
	case ctx.Err() != nil, errors.Is(err, ErrGone):
		return nil, err
	}
	if heard.silent++; answered {
		heard.silent = 0
	}
	return heard.data[at], nil
}

// rank puts those matches first that no other is as good as. A profile is
// better than another if one of its reads shows something that the other
// has no explanation for, and not the other way round: a model code parts
// two devices, the voltage that both have at the same place does not.
func rank(fits []candidate, heard *interview) (out []ScanMatch, best int) {
	parts := func(a, b candidate) bool {
		for k := range a.signs {
			if !b.p.Explains(&a.signs[k], heard.data[placeOf(&a.signs[k])]) && !slices.ContainsFunc(b.signs, func(s profile.Sign) bool {
				_, ok, _ := s.Judge(heard.data[placeOf(&s)])
				return placeOf(&s) == placeOf(&a.signs[k]) && ok
			}) {
				return true
			}
		}
		return false
	}
	beaten := make([]bool, len(fits))
	for i, a := range fits {
		for k, b := range fits {
			if i != k && parts(b, a) && !parts(a, b) {
				beaten[i] = true
			}
		}
	}
	for _, want := range []bool{false, true} {
		for i, c := range fits {
			if beaten[i] != want {
				continue
			}
			m := ScanMatch{Profile: c.p.Name}
			for k := range c.signs {
				seen, _, _ := c.signs[k].Judge(heard.data[placeOf(&c.signs[k])])
				m.Evidence = append(m.Evidence, seen)
			}
			m.Evidence = append(m.Evidence, heard.evidence(c.p)...)
			out = append(out, m)
			if !want {
				best++
			}
		}
	}
	if best == 0 {
		best = len(out) // each is beaten by another: nothing is plain
	}
	return out, best
}

// objectNames are the objects of function 43/14.
var objectNames = [...]string{"vendor", "product code", "revision", "url", "product", "model", "application"}

// identify asks every unit who it is.
func (s *scan) identify(ctx context.Context) error {
	s.say(ScanStep{Text: "asking for identification", Of: len(s.res.Units)})
	for i := range s.res.Units {
		u := &s.res.Units[i]
		wait := max(s.o.Timeout, 2*u.RTT+50*time.Millisecond)
		var gone error
		id, _ := identify(s.at.kind, byte(u.ID), func(a *ask) ([]byte, error) { // not to know it is no failure
			r, _, err := s.send(ctx, a, wait)
			if ctx.Err() != nil || errors.Is(err, ErrGone) {
				gone = err
			}
			return slices.Clone(r.data), err
		})
		if gone != nil {
			return gone
		}
		u.Identity = map[string]string{}
		for n, text := range id.Objects {
			name := fmt.Sprintf("object %d", n)
			if int(n) < len(objectNames) {
				name = objectNames[n]
			}
			u.Identity[name] = printable(text)
		}
		if id.ID != nil {
			u.Identity["server id"] = printable(string(id.ID))
		}
		s.say(ScanStep{Done: i + 1, Of: len(s.res.Units)})
	}
	return nil
}

// printable writes bytes that a device made up as text, others as numbers.
func printable(s string) string {
	for _, r := range s {
		if r < ' ' || r > '~' {
			return fmt.Sprintf("% x", s)
		}
	}
	return s
}
