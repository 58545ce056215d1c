package uplink

import (
	"encoding/json"
	"time"

	"tidegate/internal/telemetry"
	"tidegate/uplink/payload"
)

// thingsboard is the speaker of ThingsBoard's gateway API: one connection
// for a gateway, whose devices are connected, described and fed through it.
type thingsboard struct {
	u         *Uplink
	telemetry payload.ThingsBoard
	connected map[string]bool // devices on this connection
}

const (
	tbConnect    = "v1/gateway/connect"
	tbDisconnect = "v1/gateway/disconnect"
	tbTelemetry  = "v1/gateway/telemetry"
	tbAttributes = "v1/gateway/attributes"
	tbOwn        = "v1/devices/me/telemetry"  // of the gateway itself
	tbOwnFacts   = "v1/devices/me/attributes" // likewise
)

// will: ThingsBoard knows by itself when a gateway is gone.
func (p *thingsboard) will() (message, bool) {
	p.connected = map[string]bool{}
	return message{}, false
}

func (p *thingsboard) filters() []string              { return nil }
func (p *thingsboard) heard(*session, incoming) error { return nil }
func (p *thingsboard) ready() bool                    { return true }

// status is telemetry of the gateway: how much waits, and up to where the
// numbers went. Attributes say who it is.
func (p *thingsboard) status(s *session) ([]message, error) {
	st := p.u.state("online", s.src)
	var out []message
	if len(p.connected) == 0 {
		out = append(out, p.own(tbOwnFacts, map[string]any{"gateway": st.Gateway, "site": p.u.env.Site, "version": st.Version, "epoch": st.Epoch,
			"boot": st.Boot, "stop": st.Stop, "labels": p.u.env.Labels, "state": "online"}))
		for _, pt := range p.u.env.Catalog.Points {
			out = p.connect(out, pt.Device)
		}
	}
	values := map[string]any{"backlog_batches": st.Backlog.Batches, "health": st.Health}
	for _, lane := range []string{laneData, laneEvent} {
		values["seq_"+lane], values["lo_"+lane] = st.Seq[lane], st.Lo[lane]
	}
	return append(out, p.own(tbOwn, map[string]any{"ts": st.Sent, "values": values})), nil
}

func (p *thingsboard) own(topic string, v any) message {
	b, _ := json.Marshal(v) // holds nothing that JSON cannot write
	return message{topic: topic, body: b}
}

// connect says that a device is there, once on a connection.
func (p *thingsboard) connect(out []message, device string) []message {
	if p.connected[device] {
		return out
	}
	p.connected[device] = true
	kind := "default"
	for _, d := range p.u.env.Devices {
		if d.Name == device && d.Profile != "" {
			kind = d.Profile
		}
	}
	return append(out, p.own(tbConnect, map[string]any{"device": device, "type": kind}))
}

// describe says units and kinds as attributes of the devices.
func (p *thingsboard) describe(_ *session, c *telemetry.Catalog, present bool) ([]message, error) {
	var out []message
	devices := map[string]map[string]any{}
	for _, pt := range c.Points {
		out = p.connect(out, pt.Device)
		d := devices[pt.Device]
		if d == nil {
			d = map[string]any{"units": map[string]string{}, "kinds": map[string]string{}}
			devices[pt.Device] = d
		}
		if pt.Unit != "" {
			d["units"].(map[string]string)[pt.Name] = pt.Unit
		}
		d["kinds"].(map[string]string)[pt.Name] = pt.Kind
	}
	if !present || len(devices) == 0 {
		return out, nil
	}
	for _, x := range p.u.env.Devices {
		if d := devices[x.Name]; d != nil {
			d["profile"], d["driver"], d["every_ms"] = x.Profile, x.Driver, x.Every.Milliseconds()
		}
	}
	return append(out, p.own(tbAttributes, devices)), nil
}

func (p *thingsboard) batch(dst []message, s *session, _ Item, c *telemetry.Catalog, _ bool) ([]message, error) {
	b, err := p.telemetry.Data(s.buffer(), &s.batch, c, p.u.env.Clock.Resolve)
	if err != nil || len(b) == 0 {
		return dst, err
	}
	return append(dst, message{topic: tbTelemetry, body: b, lent: true}), nil
}

// loss is telemetry of the gateway.
func (p *thingsboard) loss(dst []message, _ *session, l *Loss) ([]message, error) {
	return append(dst, p.own(tbOwn, map[string]any{"ts": time.Now().UnixMilli(), "values": map[string]any{
		"lost_lane": l.Lane, "lost_from": l.From, "lost_to": l.To, "lost_batches": l.Batches, "lost_readings": l.Readings,
		"lost_t0": l.T0, "lost_t1": l.T1, "lost_why": l.Why}})), nil
}

func (p *thingsboard) goodbye(*session) ([]message, error) {
	var out []message
	for _, pt := range p.u.env.Catalog.Points {
		if p.connected[pt.Device] {
			delete(p.connected, pt.Device)
			out = append(out, p.own(tbDisconnect, map[string]any{"device": pt.Device}))
		}
	}
	return append(out, p.own(tbOwnFacts, map[string]any{"state": "offline"})), nil
}
