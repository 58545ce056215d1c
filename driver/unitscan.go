package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidegate/driver/profile"
)

// likelyCount is how many units are asked at each line setting.
const likelyCount = 16

// setIDs chooses the units to ask, and those that are asked first.
func (s *scan) setIDs() error {
	lo, hi := 1, 247
	if s.at.kind == kindTCP {
		lo, hi = 0, 255
	}
	for _, id := range slices.Concat(s.o.IDs, s.o.Likely) {
		if id < lo || id > hi {
			return fmt.Errorf("unit %d is outside %d..%d", id, lo, hi)
		}
	}
	if len(s.o.IDs) == 0 {
		if s.at.kind == kindTCP {
			s.o.IDs = []int{1, 255, 0}
		} else {
			for id := lo; id <= hi; id++ {
				s.o.IDs = append(s.o.IDs, id)
			}
		}
	}
	likely := slices.DeleteFunc(slices.Clone(s.o.Likely), func(id int) bool { return !slices.Contains(s.o.IDs, id) })
	for _, id := range s.o.IDs {
		if len(likely) < likelyCount && !slices.Contains(likely, id) {
			likely = append(likely, id)
		}
	}
	s.o.Likely = likely
	if s.o.Deep {
		s.o.Likely = s.o.IDs
	}
	return nil
}

// find tries the line settings until a unit answers. On a network there is
// nothing to try.
func (s *scan) find(ctx context.Context) (bool, error) {
	s.res.Asked = len(s.o.Likely)
	if len(s.modes) == 0 {
		s.res.Asked = len(s.o.IDs)
		return true, nil
	}
	for i, m := range s.modes {
		s.say(ScanStep{Text: "asking " + number(len(s.o.Likely), "unit") + " at " + s.names[i], Done: i, Of: len(s.modes)})
		if err := s.set(m); err != nil {
			return false, err
		}
		s.res.Tried = i + 1
		found, err := s.anyone(ctx)
		if err != nil {
			return false, err
		}
		if found {
			s.res.Line, s.res.Asked = s.names[i], len(s.o.IDs)
			s.say(ScanStep{Text: fmt.Sprintf("valid answer from unit %d at %s", s.res.Units[0].ID, s.names[i])})
			return true, nil
		}
	}
	if err := s.set(s.modes[0]); err != nil {
		return false, err
	}
	found, err := s.again(ctx, true)
	if found {
		s.res.Line, s.res.Asked = s.names[0], len(s.o.IDs)
	}
	return found, err
}

// anyone asks the likely units at one setting until one answers.
func (s *scan) anyone(ctx context.Context) (bool, error) {
	for _, id := range s.o.Likely {
		found, err := s.alive(ctx, id, profile.Holding, s.o.Timeout)
		if !found && err == nil && len(s.late) > 0 {
			found, err = s.belated(ctx)
		}
		if found || err != nil {
			return found, err
		}
	}
	return s.alive(ctx, s.o.Likely[0], profile.Input, s.o.Timeout)
}

// Some devices (those built on libmodbus) take a request that another unit
// leaves unanswered for the beginning of an exchange, and the next request for
// its answer; after half a second of silence they know better.
const (
	scanHush = 600 * time.Millisecond
	// againUntil is until when a scan takes the time for that.
	againUntil = time.Minute
)

// again asks the likely units that were silent once more, each after a long
// silence, and for input registers: some devices know nothing else. one ends
// it with the first that answers.
func (s *scan) again(ctx context.Context, one bool) (found bool, err error) {
	if s.at.kind == kindTCP {
		return false, nil
	}
	for _, id := range s.o.Likely[:min(len(s.o.Likely), likelyCount)] {
		if s.has(id) || time.Since(s.began) > againUntil {
			continue
		}
		if err := s.hush(ctx, time.Now().Add(scanHush)); err != nil {
			return found, err
		}
		ok, err := s.alive(ctx, id, profile.Input, s.o.Timeout)
		if found = found || ok; err != nil || ok && one {
			return found, err
		}
	}
	return found, nil
}

// belated asks those units again that have answered after their time.
func (s *scan) belated(ctx context.Context) (found bool, err error) {
	for id := range s.late {
		delete(s.late, id)
		if s.has(int(id)) || !slices.Contains(s.o.IDs, int(id)) {
			continue
		}
		ok, err := s.alive(ctx, int(id), profile.Holding, scanSlow)
		if err != nil {
			return found, err
		}
		found = found || ok
	}
	return found, nil
}

// sweep asks all units at the setting that was found.
func (s *scan) sweep(ctx context.Context) error {
	if any, err := s.anyID(ctx); any || err != nil {
		return err
	}
	s.say(ScanStep{Text: fmt.Sprintf("asking %s", span(s.o.IDs)), Of: len(s.o.IDs)})
	for i, id := range s.o.IDs {
		s.say(ScanStep{Done: i, Of: len(s.o.IDs)})
		if s.has(id) {
			continue
		}
		if _, err := s.alive(ctx, id, profile.Holding, s.o.Timeout); err != nil {
			return err
		}
	}
	if _, err := s.again(ctx, false); err != nil {
		return err
	}
	if _, err := s.belated(ctx); err != nil {
		return err
	}
	s.say(ScanStep{Done: len(s.o.IDs), Of: len(s.o.IDs)})
	return nil
}

// oddIDs are units that nobody sets: an endpoint that answers to all of them
// does not look at the unit.
var oddIDs = []int{113, 37, 211}

// anyID finds out whether a network endpoint answers to every unit id; then
// one unit stands for all.
func (s *scan) anyID(ctx context.Context) (bool, error) {
	if s.at.serial {
		return false, nil
	}
	for _, id := range oddIDs {
		_, answered, err := s.ask(ctx, id, profile.Holding, 0, 1, s.o.Timeout)
		if err != nil && (ctx.Err() != nil || errors.Is(err, ErrGone)) {
			return false, err
		}
		if !answered {
			return false, nil
		}
	}
	for _, id := range s.o.IDs {
		if ok, err := s.alive(ctx, id, profile.Holding, s.o.Timeout); ok || err != nil {
			s.res.AnyID = ok
			return ok, err
		}
	}
	return false, nil
}

// alive asks whether a unit is there and takes it down if it is.
func (s *scan) alive(ctx context.Context, id int, t profile.Table, wait time.Duration) (bool, error) {
	r, answered, err := s.ask(ctx, id, t, 0, 1, wait)
	if answered {
		u := ScanUnit{ID: id, Answer: "registers", RTT: r.got.Sub(r.sent)}
		var x Exception
		if errors.As(err, &x) {
			u.Answer = fmt.Sprintf("exception %d", uint8(x))
		} else if err != nil {
			u.Answer = "damaged"
		}
		delete(s.late, byte(id))
		u.Slow = u.RTT > s.o.Timeout+s.w.char*20
		s.res.Units = append(s.res.Units, u)
		for all, i := s.res.Units, len(s.res.Units)-1; i > 0 && all[i].ID < all[i-1].ID; i-- {
			all[i], all[i-1] = all[i-1], all[i] // in order
		}
		return true, nil
	}
	if err != nil && (ctx.Err() != nil || errors.Is(err, ErrGone)) {
		return false, err
	}
	return false, nil
}

func (s *scan) has(id int) bool {
	return slices.ContainsFunc(s.res.Units, func(u ScanUnit) bool { return u.ID == id })
}

// ask sends one read and waits until wait after the end of the request for
// the answer to begin. answered tells whether the unit is there, whatever it
// said; a gateway that speaks for a unit that is not there does not count.
func (s *scan) ask(ctx context.Context, id int, t profile.Table, addr, count uint16, wait time.Duration) (r result, answered bool, err error) {
	if ctx.Err() != nil {
		return r, false, ctx.Err()
	}
	a, err := newAsk(packager(s.at.kind, byte(id)), s.at.kind, byte(id), t, addr, count)
	if err != nil {
		return r, false, err
	}
	return s.send(ctx, a, wait)
}

// send is ask for any request that changes nothing.
func (s *scan) send(ctx context.Context, a *ask, wait time.Duration) (r result, answered bool, err error) {
	for try := 0; ; try++ {
		timeout := wait
		if try == 0 { // the wire adds the time of the whole answer, which is not over when it begins
			timeout = max(wait-s.w.char*time.Duration(a.expect), 0)
		}
		got, failure := s.w.do(a, timeout, 0)
		r, err = *got, failure
		var x Exception
		switch {
		case err == nil:
			return r, true, nil
		case errors.As(err, &x):
			if !s.at.serial && (x == 10 || x == 11) {
				s.res.Gateway = true
				return r, false, err
			}
			return r, true, err
		case errors.Is(err, ErrGone):
			if !s.at.serial && try == 0 && ctx.Err() == nil { // many devices hang up on what they do not like
				if err := s.redial(ctx); err != nil {
					return r, false, err
				}
				continue
			}
			return r, false, err
		case r.bytes == 0 && !r.sent.IsZero():
			// Nothing stirred: there is nothing to wait for, and an answer
			// that comes yet is told apart by its unit.
			s.w.dirty = false
			s.owed = append(s.owed, owed{a, r.sent})
			return r, false, err
		case r.answered && try < 2 && a.fc <= 4:
			wait = max(wait, scanSlow)
			continue
		}
		s.owed = append(s.owed, owed{a, r.sent})
		return r, r.answered, err
	}
}

// redial opens a connection that the other side has closed.
func (s *scan) redial(ctx context.Context) error {
	s.w.st.Close()
	st, err := s.open(ctx, s.mode)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	s.w.attach(st, time.Now())
	return nil
}

// span writes units as people do: "units 1 to 247", "units 1, 3, 7".
func span(ids []int) string {
	if len(ids) > 2 && ids[len(ids)-1]-ids[0] == len(ids)-1 {
		return fmt.Sprintf("units %d to %d", ids[0], ids[len(ids)-1])
	}
	if len(ids) == 1 {
		return fmt.Sprintf("unit %d", ids[0])
	}
	return "units " + list(ids)
}
