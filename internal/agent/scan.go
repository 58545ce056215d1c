package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidegate/config"
	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/status"
)

// The longest pause of the polls for a scan: if nothing is said, and at all.
const (
	scanPause    = 2 * time.Minute
	scanPauseMax = 30 * time.Minute
)

// Scan looks for devices on a bus of the configuration. Its polls pause
// meanwhile, at most for the time that the request allows.
func (a *Agent) Scan(ctx context.Context, q status.ScanRequest, tell func(status.ScanEvent)) error {
	lib, err := config.Library(a.opt.File)
	if err != nil {
		return err
	}
	return a.reader.Scan(ctx, q, lib, tell)
}

// Scan looks for devices on a bus of the configuration.
func (r *Reader) Scan(ctx context.Context, q status.ScanRequest, lib *profile.Library, tell func(status.ScanEvent)) error {
	l := r.lines[q.Bus]
	if l == nil {
		var known []string
		for i := range r.cfg.Buses {
			known = append(known, r.cfg.Buses[i].Name)
		}
		return unknownName(q.Bus, known)
	}
	pause := time.Duration(q.PauseMS) * time.Millisecond
	switch {
	case pause == 0:
		pause = scanPause
	case pause < time.Second || pause > scanPauseMax:
		return &status.Failure{Code: "usage", What: fmt.Sprintf("a pause of %v is outside 1s to %v", pause, scanPauseMax), Exit: 64}
	}
	return scanned(q, lib, tell, func(o driver.ScanOptions, say func(driver.ScanStep)) (*driver.ScanResult, error) {
		return l.Scan(ctx, pause, o, say)
	})
}

// ScanAddress looks for devices on a port or at an address that no agent has.
func ScanAddress(ctx context.Context, connect string, q status.ScanRequest, lib *profile.Library, tell func(status.ScanEvent)) error {
	return scanned(q, lib, tell, func(o driver.ScanOptions, say func(driver.ScanStep)) (*driver.ScanResult, error) {
		return driver.Scan(ctx, connect, o, say)
	})
}

// scanned translates between the socket's words and the driver's.
func scanned(q status.ScanRequest, lib *profile.Library, tell func(status.ScanEvent),
	scan func(driver.ScanOptions, func(driver.ScanStep)) (*driver.ScanResult, error)) error {
	o := driver.ScanOptions{Lines: q.Lines, IDs: q.IDs, Deep: q.Deep, Identify: q.Identify, MBus: q.MBus,
		Timeout: time.Duration(q.TimeoutMS) * time.Millisecond}
	for _, n := range lib.Names() {
		p, err := lib.Get(n)
		if err != nil {
			tell(status.ScanEvent{Text: fmt.Sprintf("profile %s cannot be used: %v", n, err)})
			continue
		}
		o.Profiles = append(o.Profiles, p)
		if p.Transport == "modbus" && p.Unit >= 1 && p.Unit <= 247 && !slices.Contains(o.Likely, p.Unit) {
			o.Likely = append(o.Likely, p.Unit)
		}
	}
	slices.Sort(o.Likely)
	if q.Fast && len(o.IDs) == 0 && q.MBus {
		for id := range 17 {
			o.IDs = append(o.IDs, id)
		}
	} else if q.Fast && len(o.IDs) == 0 {
		for id := 1; id <= 16; id++ {
			o.IDs = append(o.IDs, id)
		}
		for _, id := range o.Likely {
			if id > 16 {
				o.IDs = append(o.IDs, id)
			}
		}
	}
	known := -1
	var soFar *driver.ScanResult
	r, err := scan(o, func(s driver.ScanStep) {
		soFar = s.Found
		e := status.ScanEvent{Text: s.Text, Done: s.Done, Of: s.Of}
		if n := facts(s.Found); n != known {
			known, e.Found = n, scanOf(s.Found, q.Bus)
		}
		tell(e)
	})
	var f *status.Failure
	switch {
	case err != nil:
		if err = Explain(err); !errors.As(err, &f) {
			if soFar != nil { // with what it has cost in the end
				tell(status.ScanEvent{Found: scanOf(soFar, q.Bus)})
			}
			return err
		}
	case len(r.Units) == 0 && len(r.Talkers) == 0:
		if e := Explain(r.Silence()); !errors.As(e, &f) {
			return e
		}
	}
	tell(status.ScanEvent{Result: scanOf(r, q.Bus)})
	if f != nil {
		return f
	}
	return nil
}

// facts counts what a scan has found out; it grows with it.
func facts(r *driver.ScanResult) int {
	n := len(r.Units) + len(r.Talkers) + len(r.Line)
	for i := range r.Units {
		n += len(r.Units[i].Matches) + len(r.Units[i].Lines)
	}
	return n
}

// scanOf is a result as the socket tells it.
func scanOf(r *driver.ScanResult, bus string) *status.Scan {
	s := &status.Scan{Connect: r.Connect, Bus: bus, MBus: r.MBus, Units: []status.ScanUnit{}, Talkers: []status.ScanTalker{},
		AnyID: r.AnyID, Tried: r.Tried, Asked: r.Asked, Requests: r.Requests, Seconds: r.Took.Round(10 * time.Millisecond).Seconds(), Cut: r.Cut}
	s.Line.Noise = status.ScanNoise{Bytes: r.Noise.Bytes, Damaged: r.Noise.Errors, Breaks: r.Noise.Breaks}
	if baud, mode, ok := strings.Cut(r.Line, " "); ok {
		s.Line.Baud, _ = strconv.Atoi(baud) // the driver wrote it
		s.Line.Mode = mode
	}
	for _, n := range r.NotAsked {
		s.NotAsked = append(s.NotAsked, status.ScanRest{Line: n.Line, Seconds: n.Takes.Round(time.Second).Seconds()})
	}
	for _, u := range r.Units {
		out := status.ScanUnit{ID: u.ID, Address: u.Address, Lines: u.Lines, Answer: u.Answer, RTTMS: float64(u.RTT.Microseconds()) / 1000, Slow: u.Slow}
		for i, m := range u.Matches {
			switch {
			case i == 0 && u.Best == 1:
				out.Profile, out.Evidence = m.Profile, m.Evidence
			case i < u.Best:
				out.Ties = append(out.Ties, m.Profile)
				if i == 0 {
					out.Evidence = m.Evidence
				}
			default:
				out.Rivals = append(out.Rivals, m.Profile)
			}
		}
		if len(u.Identity) > 0 {
			out.Identity = maps.Clone(u.Identity)
		}
		s.Units = append(s.Units, out)
	}
	for _, t := range r.Talkers {
		out := status.ScanTalker{Line: t.Line, Frames: t.Frames}
		if len(t.Profiles) == 1 {
			out.Profile = t.Profiles[0]
		} else {
			out.Ties = t.Profiles
		}
		s.Talkers = append(s.Talkers, out)
	}
	return s
}
