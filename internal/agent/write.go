package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/status"
)

// Write gives a point a value, or writes bare registers of a bus. It is
// refused unless the configuration allows writes. The reply tells what was
// there, also with an error after the request went out.
func (r *Reader) Write(ctx context.Context, q status.WriteRequest) (status.WriteReply, error) {
	if r.cfg.Writes != "allow" {
		return status.WriteReply{}, &status.Failure{Code: "writes-off", Exit: 77,
			What:   "this gateway writes to no device",
			Seen:   "the configuration does not say writes: allow",
			Try:    "add the line writes: allow to the configuration, and restart the agent",
			Likely: "writing was never meant to be possible here"}
	}
	o := driver.WriteOptions{DryRun: q.DryRun, NoReadback: q.NoReadback}
	if q.Bus != "" {
		return r.writeRaw(ctx, q, o)
	}
	name, point, _ := strings.Cut(q.Point, "/")
	bus, dev := r.device(name)
	if dev == nil {
		return status.WriteReply{}, unknownName(name, r.names())
	}
	i := slices.IndexFunc(dev.Map.Points, func(p profile.Point) bool { return p.Name == point })
	if i < 0 {
		var known []string
		for _, p := range dev.Map.Points {
			if p.Write != nil {
				known = append(known, p.Name)
			}
		}
		return status.WriteReply{}, unknownName(q.Point, known)
	}
	reply := status.WriteReply{Device: name, Point: point, Bus: bus.Name, Measure: dev.Map.Points[i].Unit, DryRun: q.DryRun}
	if w := dev.Map.Points[i].Write; w != nil {
		reply.Allowed = w.String()
	}
	v, err := dev.Map.ParseValue(i, q.Value)
	if err != nil {
		return reply, &status.Failure{Code: "write-value", What: name + "/" + point + ": " + err.Error(), Exit: 64}
	}
	c, err := r.lines[bus.Name].WritePoint(ctx, name, point, v, o)
	reply.New = json.RawMessage(c.New.AppendJSON(nil))
	if c.OldData != nil {
		reply.Old = json.RawMessage(c.Old.Value.AppendJSON(nil))
	}
	if c.BackData != nil {
		reply.Back = json.RawMessage(c.Back.Value.AppendJSON(nil))
	}
	changed(&reply, &c)
	return reply, explainWrite(err)
}

func (r *Reader) writeRaw(ctx context.Context, q status.WriteRequest, o driver.WriteOptions) (status.WriteReply, error) {
	l, err := r.rawLine(&q.Bus, &q.Unit)
	if err != nil {
		return status.WriteReply{}, err
	}
	return WriteRegisters(ctx, l, q, o)
}

// WriteRegisters writes registers or coils of one unit on a line.
func WriteRegisters(ctx context.Context, l *driver.Line, q status.WriteRequest, o driver.WriteOptions) (status.WriteReply, error) {
	reply := status.WriteReply{Bus: q.Bus, DryRun: o.DryRun}
	data, err := hex.DecodeString(q.Hex)
	if err != nil || q.Unit < 0 || q.Unit > 255 || q.Addr < 0 || q.Addr > 65535 || q.Count < 1 || q.Count > 1968 {
		return reply, &status.Failure{Code: "usage", Exit: 64, What: fmt.Sprintf("cannot write %d at %d of unit %d", q.Count, q.Addr, q.Unit),
			Likely: "--unit is missing"}
	}
	c, err := l.WriteRegisters(ctx, uint8(q.Unit), profile.Table(q.Table), uint16(q.Addr), uint16(q.Count), data, o)
	changed(&reply, &c)
	return reply, explainWrite(err)
}

// changed copies what a write did.
func changed(reply *status.WriteReply, c *driver.Change) {
	reply.Unit, reply.Table, reply.Addr, reply.Count = int(c.Unit), int(c.Table), int(c.Address), int(c.Count)
	reply.Function, reply.Sent, reply.Verified = int(c.Function), c.Sent, c.Verified
	reply.OldHex, reply.NewHex, reply.BackHex = hex.EncodeToString(c.OldData), hex.EncodeToString(c.NewData), hex.EncodeToString(c.BackData)
	reply.RTTMS = float64(c.RTT) / float64(time.Millisecond)
}

func explainWrite(err error) error {
	if err == nil {
		return nil
	}
	err = Explain(err)
	var f *status.Failure
	if errors.As(err, &f) {
		switch f.Code {
		case "write-limits", "write-value", "no-such-name":
			f.Exit = 64
		case "read-only":
			f.Exit = 77
		}
	}
	return err
}

// Write writes between two polls and notes it.
func (a *Agent) Write(ctx context.Context, who string, q status.WriteRequest) (status.WriteReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	reply, err := a.reader.Write(ctx, q)
	if !q.DryRun {
		AuditWrite(a.log, who, q, reply, err)
	}
	return reply, err
}

// AuditWrite notes in the log who wrote what, or tried to, and what came of
// it. who is a person, as far as the system tells, or the sender of a command.
func AuditWrite(log *slog.Logger, who string, q status.WriteRequest, w status.WriteReply, err error) {
	what := q.Point
	if what == "" {
		unit := q.Unit
		if w.Function != 0 { // it came so far that the unit was known
			unit = w.Unit
		}
		what = fmt.Sprintf("%s unit %d %v %d+%d", q.Bus, unit, profile.Table(q.Table), q.Addr, q.Count)
	}
	args := []any{"who", who, "what", what, "value", q.Value, "sent", w.Sent, "verified", w.Verified}
	for _, v := range [...]struct {
		name string
		json json.RawMessage
		hex  string
	}{{"old", w.Old, w.OldHex}, {"new", w.New, w.NewHex}, {"back", w.Back, w.BackHex}} {
		switch {
		case len(v.json) > 0:
			args = append(args, v.name, string(v.json))
		case v.hex != "":
			args = append(args, v.name, v.hex)
		}
	}
	if err != nil {
		log.Warn("write failed", append(args, "error", err)...)
		return
	}
	log.Info("write", args...)
}
