package agent

import (
	"context"

	"tidegate/driver"
	"tidegate/internal/capture"
	"tidegate/internal/status"
)

// Capture implements status.API: it listens to a bus without disturbing it.
func (a *Agent) Capture(ctx context.Context, name string, line func([]byte) error) error {
	bus, _ := a.reader.device(name)
	for i := range a.cfg.Buses {
		if a.cfg.Buses[i].Name == name {
			bus = &a.cfg.Buses[i]
		}
	}
	if bus == nil {
		var known []string
		for i := range a.cfg.Buses {
			known = append(known, a.cfg.Buses[i].Name)
		}
		return unknownName(name, append(known, a.reader.names()...))
	}
	h := CaptureHeader(bus, "tap", a.opt.Version)
	if err := line(capture.Encode(h)); err != nil {
		return err
	}
	return a.reader.lines[bus.Name].Tap(ctx, func(t driver.Traffic) error { return line(capture.Encode(CaptureEvent(bus.Name, t))) })
}

// CaptureHeader is the first line of a capture of a bus that begins now.
func CaptureHeader(bus *driver.Options, mode, version string) capture.Header {
	h := capture.Header{Schema: capture.Schema, Bus: bus.Name, Connect: bus.Connect, Line: bus.Line, Mode: mode,
		Started: capture.Now(), Version: version}
	for i := range bus.Devices {
		d := &bus.Devices[i]
		unit := d.Unit
		if unit == 0 && d.Map != nil {
			unit = d.Map.Unit
		}
		h.Devices = append(h.Devices, capture.Device{Name: d.Name, Unit: unit, Profile: d.Profile})
		if h.Line == "" && d.Map != nil {
			h.Line = d.Map.Line
		}
	}
	return h
}

// CaptureEvent is a line of a capture.
func CaptureEvent(bus string, t driver.Traffic) capture.Event {
	return capture.Event{T: capture.Time{Time: t.At}, Bus: bus, Dir: t.Kind, Hex: capture.Hex(t.Bytes), Lost: t.Lost}
}

var _ status.API = (*Agent)(nil)
