package driver

import (
	"slices"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

// measured is what is known of a point whose values have a time of the
// device, such as that of a gas meter behind a P1 port.
type measured struct {
	mark  int64     // the device's time of the last value
	since time.Time // when that value came
	stale bool      // told that it is not renewed
}

// timed parts the readings of one frame: those of now stay, in all and at
// the front; those with a time of their own are told with it, once. A value
// that is not renewed is stale.
func (l *Line) timed(d *device, all []telemetry.Reading, at []profile.Moment, stamp clock.Stamp, emit func(*telemetry.Group)) []telemetry.Reading {
	if len(at) != len(all) || !slices.ContainsFunc(at, func(m profile.Moment) bool { return m.Mark != 0 }) {
		return all
	}
	if d.measured == nil {
		d.measured = map[uint32]*measured{}
	}
	clockNow, rest := time.Now(), all[:0:len(all)]
	past := make([]telemetry.Reading, 0, len(all))
	ages := make([]time.Duration, 0, len(all))
	for i, r := range all {
		m := at[i]
		if m.Mark == 0 {
			rest = append(rest, r)
			continue
		}
		k := d.measured[r.Point]
		switch {
		case k == nil || k.mark != m.Mark:
			k = &measured{mark: m.Mark, since: clockNow.Add(-m.Age)}
			d.measured[r.Point] = k
			if m.Renewed == 0 || m.Age <= m.Renewed {
				past, ages = append(past, r), append(ages, m.Age)
				continue
			}
		case m.Renewed == 0 || k.stale || clockNow.Sub(k.since) <= m.Renewed:
			continue
		}
		k.stale = true
		rest = append(rest, telemetry.Reading{Point: r.Point, Quality: telemetry.Stale, Cause: telemetry.CauseTimeout})
	}
	for i := range past {
		if ages[i] < 0 {
			continue // told with an earlier one
		}
		age := ages[i]
		g := l.group(stamp.Before(age), 0)
		for k := i; k < len(past); k++ {
			if ages[k] == age {
				g.Readings = append(g.Readings, past[k])
				ages[k] = -1
			}
		}
		emit(g)
	}
	return rest
}
