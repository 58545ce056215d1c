package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidegate/config"
	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/document"
	"tidegate/internal/status"
	"tidegate/internal/telemetry"
)

// Reader answers questions about single points and registers over the lines
// of a configuration: for the running agent between two polls, and for the
// command line where no agent runs.
type Reader struct {
	cfg     *config.Config
	catalog *telemetry.Catalog
	lines   map[string]*driver.Line // by bus
	latest  func(device string) []status.Value
}

// OpenReader returns a reader of its own, for use where no agent runs. It
// opens a port only when it is asked for it. Close returns what it opened.
func OpenReader(cfg *config.Config) (*Reader, error) {
	r := &Reader{cfg: cfg, catalog: cfg.Catalog(), lines: map[string]*driver.Line{}}
	for i := range cfg.Buses {
		l, err := driver.Open(cfg.Buses[i], driver.Env{})
		if err != nil {
			return nil, err
		}
		r.lines[cfg.Buses[i].Name] = l
	}
	return r, nil
}

// Close closes the lines of OpenReader.
func (r *Reader) Close() error {
	var err error
	for _, l := range r.lines {
		err = errors.Join(err, l.Close())
	}
	return err
}

// device finds a device by name; bus is its line's section.
func (r *Reader) device(name string) (bus *driver.Options, dev *driver.Device) {
	for i := range r.cfg.Buses {
		for k := range r.cfg.Buses[i].Devices {
			if d := &r.cfg.Buses[i].Devices[k]; d.Name == name {
				return &r.cfg.Buses[i], d
			}
		}
	}
	return nil, nil
}

func (r *Reader) names() (devices []string) {
	for i := range r.cfg.Buses {
		for _, d := range r.cfg.Buses[i].Devices {
			devices = append(devices, d.Name)
		}
	}
	return devices
}

// Read reads a point, all points of a device, or registers of a bus, now.
// Of a serial device the agent tells the newest reading; where no agent runs,
// one that is polled is read out once.
func (r *Reader) Read(ctx context.Context, q status.ReadRequest) (status.ReadReply, error) {
	if q.Bus != "" {
		return r.readRaw(ctx, q)
	}
	name, point, _ := strings.Cut(q.Point, "/")
	bus, dev := r.device(name)
	if dev == nil {
		return status.ReadReply{}, unknownName(name, r.names())
	}
	reply := status.ReadReply{Device: name, Bus: bus.Name}
	var requests []profile.Request
	pick := -1
	if point != "" {
		if pick = slices.IndexFunc(dev.Map.Points, func(p profile.Point) bool { return p.Name == point }); pick < 0 {
			var known []string
			for _, p := range dev.Map.Points {
				known = append(known, p.Name)
			}
			return reply, unknownName(q.Point, known)
		}
	}
	switch {
	case dev.Map.Transport != "serial":
	case r.latest == nil && dev.Map.Polled():
		return r.readout(ctx, reply, bus, dev, point)
	default:
		return r.listened(reply, name, point)
	}
	m, err := r.lines[bus.Name].Located(ctx, name)
	if err != nil {
		return reply, Explain(err)
	}
	if pick >= 0 {
		req, err := m.PointRequest(pick)
		if err != nil {
			return reply, &status.Failure{Code: "no-such-point", What: fmt.Sprintf("%s has no %s", name, point), Exit: 1,
				Seen: "none of the models of this device has it"}
		}
		requests = []profile.Request{req}
	} else {
		requests = m.Plan(profile.Limits{})
	}
	var readings []telemetry.Reading
	for _, req := range requests {
		answer, err := r.lines[bus.Name].Exchange(ctx, deviceUnit(dev), req.Table, req.Address, req.Count)
		if pick < 0 && errors.As(err, new(driver.Exception)) {
			if readings, err = r.singly(ctx, bus, dev, m, req, readings); err == nil {
				reply.Unit = int(deviceUnit(dev))
				reply.Table, reply.Addr, reply.Count = int(req.Table), int(req.Address), int(req.Count)
				continue
			}
		}
		if err != nil {
			return reply, Explain(err)
		}
		reply.RTTMS += float64(answer.RTT) / float64(time.Millisecond)
		reply.Unit = int(deviceUnit(dev))
		reply.Table, reply.Addr, reply.Count = int(req.Table), int(req.Address), int(req.Count)
		if len(requests) == 1 {
			reply.Hex = hex.EncodeToString(answer.Data)
		}
		readings = m.Decode(req, answer.Data, dev.Base, readings)
	}
	now := time.Now().UnixMilli()
	for _, rd := range readings {
		if pick < 0 || rd.Point == dev.Base+uint32(pick) {
			v := valueOf(&r.catalog.Points[rd.Point], &rd, now, now)
			if t, addr, ok := m.Points[rd.Point-dev.Base].Place(); ok {
				v.Table, v.Addr, v.Manual = int(t), int(addr), profile.ManualNumber(t, addr)
			}
			reply.Values = append(reply.Values, v)
		}
	}
	return reply, nil
}

// singly asks for the points of a request that the device refuses as a whole
// one by one: one register that is not there does not hide the others.
func (r *Reader) singly(ctx context.Context, bus *driver.Options, dev *driver.Device, m *profile.Profile, req profile.Request, readings []telemetry.Reading) ([]telemetry.Reading, error) {
	for _, p := range req.Points {
		one, err := m.PointRequest(p)
		if err != nil {
			return readings, err
		}
		answer, err := r.lines[bus.Name].Exchange(ctx, deviceUnit(dev), one.Table, one.Address, one.Count)
		var refused driver.Exception
		switch {
		case errors.As(err, &refused):
			cause := telemetry.CauseException + telemetry.Cause(refused)
			if refused == 2 {
				cause = telemetry.CauseIllegalAddress
			}
			readings = append(readings, telemetry.Reading{Point: dev.Base + uint32(p), Quality: telemetry.Comm, Cause: cause})
		case err != nil:
			return readings, err
		default:
			readings = m.Decode(one, answer.Data, dev.Base, readings)
		}
	}
	return readings, nil
}

// deviceUnit is the unit id of a device: its own, else the profile's.
func deviceUnit(d *driver.Device) uint8 {
	if d.Unit == 0 {
		return uint8(d.Map.Unit)
	}
	return uint8(d.Unit)
}

// readout asks a device for all that it says, once.
func (r *Reader) readout(ctx context.Context, reply status.ReadReply, bus *driver.Options, dev *driver.Device, point string) (status.ReadReply, error) {
	n := len(dev.Map.Points)
	values := make([]*status.Value, n) // the last of each point
	rtt, err := r.lines[bus.Name].Readout(ctx, dev.Name, func(g *telemetry.Group) {
		now := time.Now().UnixMilli()
		for i := range g.Readings {
			rd := &g.Readings[i]
			if k := int(rd.Point) - int(dev.Base); k >= 0 && k < n { // others on the line may talk meanwhile
				v := valueOf(&r.catalog.Points[rd.Point], rd, g.At.Wall, now)
				values[k] = &v
			}
		}
	})
	if err != nil {
		return reply, Explain(err)
	}
	reply.RTTMS = float64(rtt) / float64(time.Millisecond)
	for _, v := range values {
		if v != nil && (point == "" || v.Point == point) {
			reply.Values = append(reply.Values, *v)
		}
	}
	if len(reply.Values) == 0 {
		return reply, &status.Failure{Code: "no-such-point", What: strings.TrimSuffix(dev.Name+"/"+point, "/") + " did not come", Exit: 1,
			Seen: dev.Name + " has answered, and what it says does not hold it"}
	}
	return reply, nil
}

// listened is the newest that the agent knows.
func (r *Reader) listened(reply status.ReadReply, name, point string) (status.ReadReply, error) {
	if r.latest == nil {
		return reply, &status.Failure{Code: "listening", What: name + " talks by itself and cannot be asked",
			Likely: "no agent is running that would have heard it",
			Try:    "start the agent: tidegate run; then: tidegate watch " + name, Exit: 69}
	}
	for _, v := range r.latest(name) {
		if point == "" || v.Point == point {
			reply.Values = append(reply.Values, v)
		}
	}
	return reply, nil
}

// rawLine returns the line of which registers are meant, by the name of a bus
// or of a device on it. With a device, bus becomes its bus and unit, if none
// is given, its own.
func (r *Reader) rawLine(bus *string, unit *int) (*driver.Line, error) {
	if l := r.lines[*bus]; l != nil {
		return l, nil
	}
	if b, dev := r.device(*bus); dev != nil && dev.Map.Transport != "serial" {
		if *bus = b.Name; *unit < 0 {
			*unit = int(deviceUnit(dev))
		}
		return r.lines[b.Name], nil
	}
	var known []string
	for i := range r.cfg.Buses {
		known = append(known, r.cfg.Buses[i].Name)
	}
	return nil, unknownName(*bus, append(known, r.names()...))
}

func (r *Reader) readRaw(ctx context.Context, q status.ReadRequest) (status.ReadReply, error) {
	l, err := r.rawLine(&q.Bus, &q.Unit)
	if err != nil {
		return status.ReadReply{}, err
	}
	if q.Unit < 0 {
		return status.ReadReply{}, &status.Failure{Code: "usage", Exit: 64,
			What: "which unit? Give --unit with its number on the line"}
	}
	return ReadRegisters(ctx, l, q)
}

// ReadRegisters reads registers or bits of one unit on a line.
func ReadRegisters(ctx context.Context, l *driver.Line, q status.ReadRequest) (status.ReadReply, error) {
	reply := status.ReadReply{Bus: q.Bus, Unit: q.Unit, Table: q.Table, Addr: q.Addr, Count: q.Count}
	t := profile.Table(q.Table)
	most := 125
	if t.Bits() {
		most = 2000
	}
	if t < profile.Coils || t > profile.Input || q.Addr < 0 || q.Count < 1 || q.Count > most ||
		q.Addr+q.Count > 1<<16 || q.Unit < 0 || q.Unit > 255 {
		return reply, &status.Failure{Code: "usage", Exit: 64,
			What: fmt.Sprintf("cannot ask for %d of %v %d of unit %d", q.Count, t, q.Addr, q.Unit),
			Seen: fmt.Sprintf("addresses are 0 to 65535, at most %d at once, units 0 to 255", most)}
	}
	answer, err := l.Exchange(ctx, uint8(q.Unit), t, uint16(q.Addr), uint16(q.Count))
	if err != nil {
		return reply, Explain(err)
	}
	reply.Hex, reply.RTTMS = hex.EncodeToString(answer.Data), float64(answer.RTT)/float64(time.Millisecond)
	return reply, nil
}

// valueOf is a reading as the socket tells it.
func valueOf(p *telemetry.Point, r *telemetry.Reading, at, now int64) status.Value {
	v := status.Value{Device: p.Device, Point: p.Name, Unit: p.Unit, Quality: r.Quality.String(),
		Cause: r.Cause.String(), At: at, AgeMS: -1, Value: json.RawMessage(r.Value.AppendJSON(nil))}
	if at != 0 {
		v.AgeMS = max(0, now-at)
	}
	return v
}

func unknownName(name string, known []string) error {
	f := &status.Failure{Code: "no-such-name", What: fmt.Sprintf("there is no %q", name), Exit: 64}
	point := name[strings.LastIndexByte(name, '/')+1:]
	if near := document.Nearest(point, known); near != "" {
		f.What += fmt.Sprintf("; did you mean %q?", strings.TrimSuffix(name, point)+near)
	}
	if len(known) > 0 {
		f.Seen = "known: " + wrap(known, 64)
	}
	return f
}

// wrap joins words with commas, in lines of about width characters, at most five lines.
func wrap(words []string, width int) string {
	var b strings.Builder
	line, lines := 0, 1
	for i, w := range words {
		if line > 0 && line+len(w) > width {
			if lines++; lines > 5 {
				fmt.Fprintf(&b, "and %d more", len(words)-i)
				break
			}
			b.WriteString("\n")
			line = 0
		}
		b.WriteString(w)
		if i < len(words)-1 {
			b.WriteString(", ")
		}
		line += len(w) + 2
	}
	return b.String()
}

// Explain turns an error of a line into what a person reads; other errors
// stay as they are.
func Explain(err error) error {
	var e *driver.Error
	if !errors.As(err, &e) {
		return err
	}
	f := &status.Failure{Code: e.Code, What: e.Error(), Seen: e.Seen, Likely: e.Likely, Try: e.Try, Exit: 1}
	switch {
	case errors.Is(err, driver.ErrBusy):
		f.Exit = 75
	case errors.Is(err, driver.ErrPermission):
		f.Exit = 77
	case errors.Is(err, driver.ErrNoPort):
		f.Exit = 66
	}
	return f
}
