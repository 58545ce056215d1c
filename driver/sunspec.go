package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// A device with SunSpec has one job at first: to find its models. Then it has
// those of an ordinary Modbus device whose points stand where they were found.
// It is looked through again when it refuses an address or comes back after a
// trouble, because it may be another device by then.

// How long what was found is believed, though the device refuses an address,
// or its connection was made anew: many close one that is idle.
const (
	refusedAfter  = time.Minute
	reopenedAfter = 10 * time.Minute
)

// model returns the points of a device as they stand in it.
func (d *device) model() *profile.Profile {
	if p := d.found.Load(); p != nil {
		return p
	}
	return d.opt.Map
}

// search returns the job that finds the models of a device.
func (l *Line) search(d *device, due time.Time) (*job, error) {
	a, err := newAsk(packager(l.at.kind, d.unit.id), l.at.kind, d.unit.id, profile.Holding, 40000, 2)
	if err != nil {
		return nil, err
	}
	j := &job{dev: d, req: profile.Request{Table: profile.Holding, Address: 40000, Count: 2}, ask: a, due: due, search: true}
	for i := range d.opt.Map.Points {
		j.req.Points = append(j.req.Points, i)
	}
	return j, nil
}

// locate looks a device through and plans its blocks. again says that they
// are asked at once.
func (l *Line) locate(ctx context.Context, j *job, now time.Time, emit func(*telemetry.Group)) (again bool, err error) {
	d := j.dev
	chain, err := profile.WalkSunSpec(func(addr, count uint16) ([]byte, error) {
		a, err := newAsk(packager(l.at.kind, d.unit.id), l.at.kind, d.unit.id, profile.Holding, addr, count)
		if err != nil {
			return nil, err
		}
		r, err := l.query(ctx, d.unit, a, d.timeout, d.gap)
		return r.data, refusal(err)
	})
	if err != nil {
		if ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
			l.fail(j, sunspecError(l.name, d.name, err), time.Now(), emit)
		}
		return false, err
	}
	found, missing := d.opt.Map.Locate(chain)
	d.found.Store(found)
	d.walked = time.Now()
	jobs := l.jobs[:0:0]
	for _, o := range l.jobs {
		if o.dev != d {
			jobs = append(jobs, o)
		}
	}
	for _, r := range found.Plan(l.limits) {
		a, err := newAsk(packager(l.at.kind, d.unit.id), l.at.kind, d.unit.id, r.Table, r.Address, r.Count)
		if err != nil {
			return false, err
		}
		jobs = append(jobs, &job{dev: d, req: r, ask: a, due: now})
	}
	l.jobs = jobs
	l.log.Info("the models of a device are found", "device", d.name, "models", len(chain), "points", len(found.Points)-len(missing), "missing", len(missing))
	if len(missing) > 0 {
		g := l.group(l.clk.Stamp(), len(missing))
		for _, i := range missing {
			g.Readings = append(g.Readings, telemetry.Reading{Point: d.opt.Base + uint32(i), Quality: telemetry.Fault, Cause: telemetry.CauseMarker})
		}
		emit(g)
	}
	return true, nil
}

// relocate lets a device be looked through again. It says whether it will be.
func (l *Line) relocate(d *device, now time.Time, after time.Duration) bool {
	if d.found.Load() == nil || now.Sub(d.walked) < after {
		return false
	}
	j, err := l.search(d, now)
	if err != nil {
		return false
	}
	jobs := l.jobs[:0:0]
	for _, o := range l.jobs {
		if o.dev != d {
			jobs = append(jobs, o)
		}
	}
	l.jobs = append(jobs, j)
	d.known = learned{}
	d.unit.searching = false
	return true
}

// refusal lets WalkSunSpec tell a refused address from other errors.
func refusal(err error) error {
	var x Exception
	if errors.As(err, &x) && x != 10 && x != 11 {
		return fmt.Errorf("%w: %w", profile.ErrRefused, err)
	}
	return err
}

// sunspecError says what a person can do about a device without models.
func sunspecError(line, device string, err error) error {
	e := &Error{Line: line, Device: device, Op: "poll", What: device + ": " + err.Error(), Err: fmt.Errorf("%w: %w", ErrMismatch, err)}
	switch {
	case errors.Is(err, profile.ErrNoSunSpec):
		e.Code, e.Likely = "no-sunspec", "SunSpec is not switched on in the device, or its unit is another one"
		e.Try = "switch SunSpec on at the device's own menu; tidegate read " + device + " holding:40000+2 --as all"
	case errors.Is(err, profile.ErrSunSpecChain):
		e.Code, e.Likely = "sunspec-chain", "the device is starting, or its models are not as the specification has them"
		e.Try = "tidegate capture " + device + " -o chain.tgcap, and let us see it"
	default:
		return err
	}
	return e
}

// Located returns the points of a device as they stand in it: those of its
// profile, or, with SunSpec, where they were found. If nobody has looked yet,
// the device is looked through now, between two polls while Run runs.
func (l *Line) Located(ctx context.Context, name string) (*profile.Profile, error) {
	for _, d := range l.devices {
		if d.name != name {
			continue
		}
		if !d.opt.Map.SunSpec() || d.found.Load() != nil {
			return d.model(), nil
		}
		var chain []profile.Model
		err := l.asTechnician(ctx, func() (err error) {
			chain, err = profile.WalkSunSpec(func(addr, count uint16) ([]byte, error) {
				a, err := l.askFor(d.unit.id, profile.Request{Table: profile.Holding, Address: addr, Count: count})
				if err != nil {
					return nil, err
				}
				r, err := l.request(ctx, "read", d.unit.id, a)
				return r.Data, refusal(err)
			})
			return err
		})
		if err != nil {
			return nil, sunspecError(l.name, name, err)
		}
		p, _ := d.opt.Map.Locate(chain)
		return p, nil
	}
	return nil, &Error{Line: l.name, Device: name, Op: "read", Code: "no-such-name", Err: fmt.Errorf("%w: there is no device %q on this line", ErrRequest, name)}
}
