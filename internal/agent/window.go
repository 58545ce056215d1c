package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/driver"
	"tidegate/internal/clock"
	"tidegate/internal/status"
	"tidegate/internal/telemetry"
	"tidegate/uplink"
)

// Snapshot gathers the state of every room.
func (a *Agent) Snapshot() status.Snapshot {
	now := time.Now()
	h := a.health
	s := status.Snapshot{
		Schema: status.Schema, At: now.UnixMilli(), Health: status.OK, Reasons: h.reasons(now),
		Gateway: status.Gateway{ID: a.cfg.Gateway.ID, Site: a.cfg.Gateway.Site, Version: a.opt.Version,
			Boot: a.queue.Boot(), Epoch: a.queue.Epoch(), Started: h.started.UnixMilli(), Stopped: a.queue.Stopped(), PID: os.Getpid()},
		Uplink: uplinkOf(a.ways[0].up.Stats(), now),
		Buffer: bufferOf(a.queue, now),
		Buses:  []status.Bus{},
	}
	if s.Health = healthOf(s.Reasons); s.Reasons == nil {
		s.Reasons = []status.Reason{}
	}
	for i, l := range a.lines {
		s.Buses = append(s.Buses, busOf(l.Stats(), &a.cfg.Buses[i], h.started, now))
	}
	if a.share != nil {
		for _, w := range a.ways {
			s.Uplinks = append(s.Uplinks, w.snapshot(now))
		}
	}
	stamp := a.clock.Stamp()
	s.Clock = status.Clock{Synced: stamp.Synced, Uptime: stamp.Mono}
	h.mu.Lock()
	s.Config = status.Config{File: a.opt.File, Hash: a.cfg.Hash(), LoadedAt: h.loaded.UnixMilli(), DiskNewer: h.newer, Refused: h.refused}
	h.mu.Unlock()
	return s
}

func ms(t, now time.Time) int64 {
	if t.IsZero() {
		return -1
	}
	return max(0, now.Sub(t).Milliseconds())
}

func uplinkOf(u uplink.Stats, now time.Time) status.Uplink {
	s := status.Uplink{State: u.State, URL: u.Broker, Insecure: u.Insecure, Since: u.Since.UnixMilli(), LastAckMS: ms(u.LastAck, now),
		RTTMS: u.RTT.Milliseconds(), Inflight: u.InFlight, Awaiting: u.Awaiting, CertDays: u.CertDays, Cert: u.Cert, CertWarning: u.CertWarning, Held: u.Held, Sessions: u.Sessions,
		Published: u.Published, Acked: u.Acked, Repeats: u.Repeats,
		BytesIn: uint64(u.BytesIn), BytesOut: uint64(u.BytesOut)}
	if u.State == uplink.StateOnline {
		s.State = "connected"
	} else if u.Err != nil {
		s.ErrorCode, s.Error, s.Hint = u.Err.Code, u.Err.Brief(), u.Err.Hint()
	}
	return s
}

func bufferOf(q *buffer.Queue, now time.Time) status.Buffer {
	b := q.Stats()
	s := status.Buffer{State: status.OK, Batches: b.Waiting[buffer.Data] + b.Waiting[buffer.Event],
		Records: b.Readings[buffer.Data] + b.Readings[buffer.Event], Events: b.Waiting[buffer.Event],
		Bytes: b.Disk, LimitBytes: b.Limit, MemoryBytes: b.Memory, OldestMS: -1, LostTotal: b.LostReadings,
		Tombstones: b.Losses, BytesWritten: b.Written, Commits: b.Commits, Quarantined: b.Quarantined,
		Seq: q.Given(buffer.Data), EventSeq: q.Given(buffer.Event), Error: b.LastError}
	if b.Oldest > 0 {
		s.OldestMS = max(0, now.UnixMilli()-b.Oldest)
	}
	if b.LastError != "" {
		s.State = status.Fail
	}
	return s
}

func busOf(l driver.Stats, o *driver.Options, started, now time.Time) status.Bus {
	b := status.Bus{Name: l.Name, Connect: l.Connect, State: l.State, Since: l.Since.UnixMilli(), Load: l.Load,
		Stray: l.Stray, Devices: []status.Device{}}
	if l.Lease != nil {
		b.Lease = &status.Lease{By: l.Lease.By, Since: l.Lease.Since.UnixMilli(), Until: l.Lease.Until.UnixMilli()}
	}
	if l.Err != nil {
		b.Code, b.Error = codeOf(l.Err), errText(l.Err)
	}
	var polls, failed uint64
	for i, d := range l.Devices {
		state, limit := deviceState(&d, started, now)
		polls, failed = polls+d.Polls, failed+d.Failed
		dev := status.Device{Name: d.Name, Unit: d.Unit, Profile: o.Devices[i].Profile, State: state,
			AgeMS: ms(d.LastGood, now), LimitMS: limit.Milliseconds(), RTTMS: float64(d.RTT.Microseconds()) / 1000,
			Polls: d.Polls, Failed: d.Failed, Late: d.Late, Skipped: d.Skipped}
		for _, h := range d.Holes {
			dev.Refused = append(dev.Refused, status.Refusal{Point: h.Point, Cause: h.Cause, Place: h.Place, Since: h.Since.UnixMilli(), Retry: h.Retry.UnixMilli()})
		}
		if d.Row > 0 && d.LastErr != nil {
			dev.LastError = &status.LastError{Code: codeOf(d.LastErr), Text: errText(d.LastErr), Seen: seenOf(d.LastErr),
				Count: uint64(d.Row), Since: d.ErrSince.UnixMilli()}
		}
		b.Devices = append(b.Devices, dev)
	}
	if polls > 0 {
		b.ErrRate = float64(failed) / float64(polls)
	}
	return b
}

func codeOf(err error) string {
	var e *driver.Error
	if errors.As(err, &e) && e.Code != "" {
		return e.Code
	}
	return "comm"
}

func seenOf(err error) string {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Seen
	}
	return ""
}

// errText is what failed, without the name of the bus, which stands beside it.
func errText(err error) string {
	if err == nil {
		return ""
	}
	var e *driver.Error
	if errors.As(err, &e) && e.What != "" {
		if e.Device != "" {
			return e.Device + ": " + e.What
		}
		return e.What
	}
	return err.Error()
}

// Values returns the newest readings of the named devices or device/points,
// of all without names.
func (a *Agent) Values(names []string) ([]status.Value, error) {
	want := make([]bool, len(a.catalog.Points))
	for i := range want {
		want[i] = len(names) == 0
	}
	for _, n := range names {
		device, point, one := strings.Cut(n, "/")
		found := false
		var known []string
		for i := range a.catalog.Points {
			p := &a.catalog.Points[i]
			if p.Device == device {
				known = append(known, p.Name)
				if !one || p.Name == point {
					want[i], found = true, true
				}
			}
		}
		if !found {
			if len(known) == 0 {
				known = a.reader.names()
			}
			return nil, unknownName(n, known)
		}
	}
	now := time.Now().UnixMilli()
	out := []status.Value{}
	a.collect.latest(func(i int, l *last) {
		if want[i] {
			out = append(out, valueOf(&a.catalog.Points[i], &l.Reading, a.trueTime(l.at), now))
		}
	})
	return out, nil
}

// trueTime is the best known time of a stamp, Unix ms; 0 for none.
func (a *Agent) trueTime(s clock.Stamp) int64 {
	if s == (clock.Stamp{}) {
		return 0
	}
	t, _ := a.clock.Resolve(s)
	return t.UnixMilli()
}

func (a *Agent) latest(device string) []status.Value {
	v, err := a.Values([]string{device})
	if err != nil {
		return nil
	}
	return v
}

// Read reads from a bus, between two polls.
func (a *Agent) Read(ctx context.Context, q status.ReadRequest) (status.ReadReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return a.reader.Read(ctx, q)
}

// Peek returns the n newest batches that wait.
func (a *Agent) Peek(_ context.Context, n int, device string) ([]status.Batch, error) {
	return peek(a.queue, newSource(a.queue, a.catalog), n, device)
}

func peek(q *buffer.Queue, src *source, n int, device string) ([]status.Batch, error) {
	out := []status.Batch{}
	for _, lane := range []buffer.Lane{buffer.Event, buffer.Data} {
		upto := q.Given(lane)
		for upto > 0 && len(out) < n {
			item, ok, err := q.LookBack(lane, upto)
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			upto = item.Seq - 1
			b := status.Batch{Lane: lane.String(), Seq: item.Seq, Count: item.Count, Bytes: len(item.Bytes), From: item.From, To: item.To}
			if b.Values, err = valuesOf(item, src, device); err != nil {
				return nil, err
			}
			out = append(out, b)
		}
	}
	for i, k := 0, len(out)-1; i < k; i, k = i+1, k-1 {
		out[i], out[k] = out[k], out[i]
	}
	return out, nil
}

func valuesOf(item buffer.Item, src *source, device string) ([]status.Value, error) {
	var b telemetry.Tables
	if err := b.Decode(item.Bytes); err != nil {
		return nil, err
	}
	c, err := src.Catalog(b.Catalog)
	if err != nil {
		return nil, err
	}
	var out []status.Value
	now := time.Now().UnixMilli()
	for n := range b.Len() {
		g := b.Group(n)
		for i := range g.Readings {
			r := &g.Readings[i]
			if int(r.Point) < len(c.Points) && (device == "" || c.Points[r.Point].Device == device) {
				out = append(out, valueOf(&c.Points[r.Point], r, g.At.Wall, now))
			}
		}
	}
	return out, nil
}

func stepsOf(name string, steps []uplink.Step) []status.Step {
	var out []status.Step
	for _, s := range steps {
		step := status.Step{Uplink: name, Broker: s.Broker, Name: s.Name, State: s.State, Text: s.Text, MS: float64(s.Took.Microseconds()) / 1000}
		if s.Err != nil {
			step.Failure = ExplainUplink(s.Err)
		}
		out = append(out, step)
	}
	return out
}

// ExplainUplink turns an error of the uplink into what a person reads.
func ExplainUplink(e *uplink.Error) *status.Failure {
	return &status.Failure{Code: e.Code, What: e.Brief(), Seen: e.Seen, Likely: e.Likely, Try: e.Try, Note: e.Note, Exit: 69}
}

// Stopped is the buffer of a gateway whose agent does not run.
type Stopped struct {
	queue   *buffer.Queue
	src     *source
	gateway string
	clock   *clock.Clock
}

// OpenStopped opens the buffer of a configuration for looking at it; it
// changes nothing. buffer.ErrLocked tells that an agent does run.
func OpenStopped(cfg *config.Config) (*Stopped, error) {
	q, err := buffer.OpenReadOnly(cfg.Buffer)
	if err != nil {
		return nil, err
	}
	// A clock whose file is damaged is usable: its times are then uncertain.
	c, _ := clock.Read(filepath.Join(cfg.Buffer.Dir, "clock.json"))
	return &Stopped{q, newSource(q, cfg.Catalog()), cfg.Gateway.ID, c}, nil
}

// Erase removes all that the buffer of a configuration holds, and the clock's
// memory with it; without yes it tells what would go. buffer.ErrLocked tells
// that an agent runs.
func Erase(cfg *config.Config, yes bool) (buffer.Remains, error) {
	return buffer.Erase(cfg.Buffer, yes, clockFile, clockFile+".new", cursorsFile, cursorsFile+".new", auditFile, auditFile+".1", auditFile+".new")
}

// Buffer is the state of the buffer.
func (s *Stopped) Buffer() status.Buffer { return bufferOf(s.queue, time.Now()) }

// Peek returns the n newest batches that wait.
func (s *Stopped) Peek(n int, device string) ([]status.Batch, error) {
	return peek(s.queue, s.src, n, device)
}

// Close gives the buffer back.
func (s *Stopped) Close() error { return s.queue.Close() }
