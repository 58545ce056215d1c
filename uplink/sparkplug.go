package uplink

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tidegate/internal/telemetry"
	"tidegate/uplink/payload"
	sp "tidegate/uplink/sparkplug"
)

// Sparkplug says how this gateway is an edge node of Sparkplug B 3.0.
type Sparkplug struct {
	PrimaryHost string `yaml:"primary_host" doc:"Host application that must be online before anything is sent; empty: none."`
	Aliases     bool   `yaml:"aliases" doc:"Data names its metrics by numbers that the births give; false: by their names."`
	Datatypes   bool   `yaml:"datatypes" doc:"Data carries data types too, for hosts that do not keep those of the births."`
	Writes      bool   `yaml:"writes" doc:"Take writes to points (DCMD), besides commands: true; they have neither signature nor sender."`
}

// sparkplug is the speaker of an edge node: births, data, deaths. docs/sparkplug.md goes through the specification.
type sparkplug struct {
	u    *Uplink
	opts Sparkplug

	bdSeq    uint8 // of the present CONNECT
	kept     bool  // bdSeq is known
	seq      uint8 // of the next message
	born     bool  // NBIRTH was said on this connection
	birthAt  time.Time
	every    time.Duration // at least, between two births that hosts ask for
	patience time.Duration // with a broker where the primary host is not online, if there are others
	again    bool          // a rebirth was asked for and waits for its time
	host     bool          // the primary host is online, as far as this connection has heard
	hostAt   int64         // time of its last word, over all connections
	refused  time.Time
	losses   lossCount
	lossLast string

	catalogs map[*telemetry.Catalog][]*metric
	devices  []*edgeDevice // in order of first appearance
	named    map[string]*edgeDevice
	aliases  uint64        // given so far
	touched  []*edgeDevice // by the batch at hand
	scratch  sp.Metric
}

// lossCount is what tombstones said since the agent started.
type lossCount struct{ batches, readings int64 }

const (
	// edgeMessage is about how large a DDATA may become, in bytes.
	edgeMessage = 48 << 10
	// bdSeqKey is where the number of the last CONNECT is kept.
	bdSeqKey = "sparkplug/"
	// commandLife is how old a DCMD may be: it has no expiry of its own.
	commandLife = 30 * time.Second
	// commandMost is how many points a DCMD may write.
	commandMost = 64
	// rebirth is the one command that every edge node takes.
	rebirth = "Node Control/Rebirth"
)

func newSparkplug(u *Uplink) *sparkplug {
	p := &sparkplug{u: u, opts: u.opts.Sparkplug, every: 5 * time.Second, patience: 30 * time.Second, catalogs: map[*telemetry.Catalog][]*metric{}, named: map[string]*edgeDevice{}}
	p.metrics(u.env.Catalog)
	return p
}

// topic is that of a message of this node, or of a device of it.
func (p *sparkplug) topic(kind, device string) string {
	t := "spBv1.0/" + p.u.env.Site + "/" + kind + "/" + p.u.env.Gateway
	if device != "" {
		t += "/" + device
	}
	return t
}

func (p *sparkplug) state() string { return "spBv1.0/STATE/" + p.opts.PrimaryHost }

// will is the NDEATH of the connection to come. Its number is on disk before
// the CONNECT: no two sessions of this node ever have the same within 256.
func (p *sparkplug) will() (message, bool) {
	key := bdSeqKey + p.u.env.Site + "/" + p.u.env.Gateway
	next := uint8(0)
	if p.kept {
		next = p.bdSeq + 1
	} else if p.u.env.Memory != nil {
		if b, ok, err := p.u.env.Memory.Meta(key); err != nil {
			p.u.log.Warn("bdSeq cannot be read; it starts at 0", "error", err)
		} else if n, bad := strconv.ParseUint(string(b), 10, 8); ok && bad == nil {
			next = uint8(n) + 1
		}
	}
	p.bdSeq, p.kept = next, true
	if p.u.env.Memory != nil {
		if err := p.u.env.Memory.SaveMeta(key, strconv.AppendUint(nil, uint64(next), 10)); err != nil {
			p.u.log.Warn("bdSeq cannot be kept", "error", err)
		}
	}
	p.born, p.again, p.host = false, false, p.opts.PrimaryHost == ""
	return message{topic: p.topic("NDEATH", ""), body: p.death()}, true
}

// death is the body of the NDEATH: no sequence number, bdSeq alone.
func (p *sparkplug) death() []byte {
	now := time.Now().UnixMilli()
	m := p.number(now)
	return sp.AppendTime(sp.AppendMetric(nil, &m), now)
}

func (p *sparkplug) number(now int64) sp.Metric {
	return sp.Metric{Name: "bdSeq", Timestamp: now, Type: sp.Int64, Typed: true, Value: sp.Value{Bits: uint64(p.bdSeq)}}
}

func (p *sparkplug) filters() []string {
	f := []string{p.topic("NCMD", ""), p.topic("DCMD", "") + "/#"}
	if p.opts.PrimaryHost != "" {
		f = append(f, p.state())
	}
	return f
}

// heard takes the host's state and commands.
func (p *sparkplug) heard(s *session, m incoming) error {
	switch {
	case p.opts.PrimaryHost != "" && m.topic == p.state():
		return p.hostSays(s, m.body)
	case m.topic == p.topic("NCMD", ""):
		if m.retained {
			return nil // nobody asks now
		}
		body, err := sp.Decode(m.body)
		if err != nil {
			p.refuse(m.topic, err.Error())
			return nil
		}
		for i := range body.Metrics {
			if c := &body.Metrics[i]; c.Name == rebirth {
				if c.Value.Bits == 1 {
					p.again = true
				}
			} else {
				p.refuse(m.topic, "points are written by DCMD")
			}
		}
		return p.rebirth(s)
	case strings.HasPrefix(m.topic, p.topic("DCMD", "")+"/"):
		if p.u.env.Desk == nil || !p.opts.Writes {
			p.refuse(m.topic, "writes are off")
			return nil
		}
		p.write(strings.TrimPrefix(m.topic, p.topic("DCMD", "")+"/"), m)
	}
	return nil
}

// write hands each metric of a DCMD to the desk, as a command. It has no id
// and no expiry: its time stands for both.
func (p *sparkplug) write(device string, m incoming) {
	body, err := sp.Decode(m.body)
	if err != nil || len(body.Metrics) > commandMost {
		p.u.env.Desk.Take(m.body, m.retained) // it refuses what it cannot read, and keeps the record
		return
	}
	for i := range body.Metrics {
		x := &body.Metrics[i]
		if d := p.named[device]; d != nil {
			for _, known := range d.metrics {
				if x.Name == "" && known.alias == x.Alias {
					x.Name = known.name
				}
				if x.Name == known.name && !x.Typed {
					x.Type = known.declared()
				}
			}
		}
		c := struct {
			ID      string          `json:"id"`
			Op      string          `json:"op"`
			By      string          `json:"by"`
			Device  string          `json:"dev"`
			Point   string          `json:"point"`
			Value   json.RawMessage `json:"value,omitempty"`
			Asked   int64           `json:"t"`
			Expires int64           `json:"exp"`
		}{Op: "write", By: "sparkplug", Device: device, Point: x.Name, Value: x.AppendJSON(nil), Asked: body.Timestamp}
		if body.Timestamp != 0 { // else it is not whole
			c.Expires = body.Timestamp + commandLife.Milliseconds()
		}
		sum := sha256.Sum256([]byte(device + "/" + x.Name))
		c.ID = fmt.Sprintf("dcmd-%d-%x", body.Timestamp, sum[:6])
		text, err := json.Marshal(c)
		if err != nil {
			text = m.body
		}
		p.u.env.Desk.Take(text, m.retained)
	}
}

// refuse says at most once a minute that a command is not taken.
func (p *sparkplug) refuse(topic, why string) {
	if time.Since(p.refused) >= time.Minute {
		p.refused = time.Now()
		p.u.log.Warn("a command is not taken", "topic", topic, "why", why)
	}
}

// hostSays obeys the state of the primary host. A word that is older than
// the last one is not news.
func (p *sparkplug) hostSays(s *session, body []byte) error {
	var word struct {
		Online    *bool  `json:"online"`
		Timestamp *int64 `json:"timestamp"`
	}
	if err := json.Unmarshal(body, &word); err != nil || word.Online == nil || word.Timestamp == nil {
		p.u.log.Warn("the state of the primary host cannot be read", "host", p.opts.PrimaryHost)
		return nil
	}
	if *word.Timestamp < p.hostAt {
		return nil
	}
	p.hostAt = *word.Timestamp
	was := p.host
	p.host = *word.Online
	switch {
	case p.host && !p.born:
		p.u.log.Info("the primary host is online", "host", p.opts.PrimaryHost)
		return s.say(p.births(), nil)
	case !p.host && p.born:
		s.drop()
		bye, _ := p.goodbye(s)
		s.say(bye, nil)
		return &departure{&Error{Code: "primary-host", Msg: "the primary host " + p.opts.PrimaryHost + " is offline",
			Seen: "its state says so", Likely: "it is being restarted, or has lost its broker",
			Try: "nothing: everything is kept until it is back"}}
	case !p.host && was:
		p.u.log.Info("the primary host is offline", "host", p.opts.PrimaryHost)
	}
	return nil
}

// rebirth says the births again if that was asked for and it is time:
// requests within a few seconds share one birth. Data stops for it at once.
func (p *sparkplug) rebirth(s *session) error {
	if !p.again || !p.born {
		p.again = false // the birth that is to come answers it
		return nil
	}
	if due := p.birthAt.Add(p.every); time.Now().Before(due) {
		s.nextStatus = due
		return nil
	}
	p.again = false
	s.drop()
	return s.say(p.births(), nil)
}

func (p *sparkplug) status(s *session) ([]message, error) {
	if p.born {
		return nil, p.rebirth(s)
	}
	if !p.host {
		p.u.count(func(st *Stats) { st.Held = "the primary host " + p.opts.PrimaryHost + " is not online" })
		if len(p.u.brokers) == 1 {
			return nil, nil
		}
		if s.nextStatus = s.began.Add(p.patience); time.Now().Before(s.nextStatus) {
			return nil, nil
		}
		return nil, &departure{&Error{Code: "primary-host", Msg: "the primary host " + p.opts.PrimaryHost + " is not online at this broker",
			Try: "nothing: the next one of uplink.fallback is tried"}}
	}
	return p.births(), nil
}

func (p *sparkplug) describe(*session, *telemetry.Catalog, bool) ([]message, error) { return nil, nil }
func (p *sparkplug) ready() bool                                                    { return p.born }

// goodbye is the NDEATH before an intended DISCONNECT.
func (p *sparkplug) goodbye(*session) ([]message, error) {
	if !p.born {
		return nil, nil
	}
	p.born = false
	return []message{{topic: p.topic("NDEATH", ""), body: p.death()}}, nil
}

// numbered completes a body when it goes out: with the time of publishing and
// the next sequence number, so that both are right in the order of the wire.
func (p *sparkplug) numbered(topic string, body []byte) message {
	return message{topic: topic, body: body, quick: true, late: func(b []byte) []byte {
		b = sp.AppendSeq(sp.AppendTime(b, time.Now().UnixMilli()), p.seq)
		p.seq++
		return b
	}}
}

// births are the NBIRTH and the DBIRTHs of all devices that answer.
func (p *sparkplug) births() []message {
	p.born, p.birthAt = true, time.Now()
	p.u.count(func(st *Stats) { st.Held = "" })
	nbirth := p.numbered(p.topic("NBIRTH", ""), p.nbirth())
	late := nbirth.late
	nbirth.late = func(b []byte) []byte {
		p.seq = 0
		return late(b)
	}
	out := []message{nbirth}
	p.refresh()
	for _, d := range p.devices {
		if d.born = d.answering(); d.born {
			out = append(out, p.numbered(p.topic("DBIRTH", d.name), p.dbirth(d)))
		}
	}
	return out
}

// nbirth is what the node says of itself.
func (p *sparkplug) nbirth() []byte {
	now := time.Now().UnixMilli()
	bdSeq := p.number(now)
	dst := sp.AppendMetric(nil, &bdSeq)
	dst = sp.AppendMetric(dst, &sp.Metric{Name: rebirth, Timestamp: now, Type: sp.Boolean, Typed: true})
	for _, x := range [...][2]string{{"Properties/Software", "tidegate"}, {"Properties/Version", p.u.env.Version}, {"Properties/Epoch", p.u.env.Epoch}} {
		dst = sp.AppendMetric(dst, &sp.Metric{Name: x[0], Timestamp: now, Type: sp.String, Typed: true, Value: sp.Value{Text: x[1]}})
	}
	return p.lossMetrics(dst, now, true)
}

// lossMetrics tell of readings that will never come.
func (p *sparkplug) lossMetrics(dst []byte, now int64, birth bool) []byte {
	typed := birth || p.opts.Datatypes
	dst = sp.AppendMetric(dst, &sp.Metric{Name: "Losses/Batches", Timestamp: now, Type: sp.Int64, Typed: typed, Value: sp.Value{Bits: uint64(p.losses.batches)}})
	dst = sp.AppendMetric(dst, &sp.Metric{Name: "Losses/Readings", Timestamp: now, Type: sp.Int64, Typed: typed, Value: sp.Value{Bits: uint64(p.losses.readings)}})
	return sp.AppendMetric(dst, &sp.Metric{Name: "Losses/Last", Timestamp: now, Type: sp.String, Typed: typed, Null: p.lossLast == "",
		Value: sp.Value{Text: p.lossLast}})
}

// loss says that readings will never come: as metrics of the node, and as
// the tombstone of the other shapes, whose acknowledgement counts.
func (p *sparkplug) loss(dst []message, s *session, l *Loss) ([]message, error) {
	tomb := payload.Lost(s.buffer(), s.envelope(l.Lane, 0), payload.Tombstone{From: l.From, To: l.To,
		Batches: l.Batches, Readings: l.Readings, T0: l.T0, T1: l.T1, Why: l.Why})
	p.losses.batches += max(l.Batches, 0)
	p.losses.readings += max(l.Readings, 0)
	p.lossLast = string(tomb)
	dst = append(dst, p.numbered(p.topic("NDATA", ""), p.lossMetrics(nil, time.Now().UnixMilli(), false)))
	return append(dst, message{topic: p.u.topicOf("commit"), body: tomb, lent: true}), nil
}

// batch writes a DDATA for each device, the births and deaths that belong to
// it, and last the commit of quality 1: data has quality 0, and only what
// comes behind it on the same connection proves that the broker has it.
func (p *sparkplug) batch(dst []message, s *session, item Item, c *telemetry.Catalog, history bool) ([]message, error) {
	of := p.metrics(c)
	p.touched = p.touched[:0]
	for i := range s.batch.Len() {
		g := s.batch.Group(i)
		for j := range g.Readings {
			r := &g.Readings[j]
			if int(r.Point) >= len(of) {
				return dst, fmt.Errorf("point number %d is not in catalog %s of %d points", r.Point, c.Hash(), len(of))
			}
			p.touch(of[r.Point], r)
		}
	}
	fresh := false
	for _, d := range p.touched {
		if !d.answers || d.born {
			continue
		}
		if !fresh {
			p.refresh()
			fresh = true
		}
		d.born = true
		dst = append(dst, p.numbered(p.topic("DBIRTH", d.name), p.dbirth(d)))
	}
	for i := range s.batch.Len() {
		g := s.batch.Group(i)
		at, _ := p.u.env.Clock.Resolve(g.At)
		for j := range g.Readings {
			m := of[g.Readings[j].Point]
			if !m.device.answers {
				continue // its DDEATH said all there is to say
			}
			dst = p.data(dst, m, &g.Readings[j], at.UnixMilli(), history)
		}
	}
	for _, d := range p.touched {
		dst = p.flush(dst, d)
		if !history && d.born && d.silent() {
			d.born = false
			dst = append(dst, p.numbered(p.topic("DDEATH", d.name), nil))
		}
		d.touched = false
	}
	body, err := payload.Said(s.buffer(), s.envelope(item.Lane, item.Seq), &s.batch, c, p.u.env.Clock.Resolve, history)
	return append(dst, message{topic: p.u.topicOf("commit"), body: body, lent: true}), err
}

// touch notes what a reading says of its device and of the type of its metric.
func (p *sparkplug) touch(m *metric, r *telemetry.Reading) {
	d := m.device
	if !d.touched {
		d.touched, d.answers = true, d.born
		p.touched = append(p.touched, d)
	}
	if answer(r.Quality) {
		d.answers = true
	}
	if usable(r) {
		m.learn(r.Value)
	}
	if m.told != m.declared() {
		d.born = false // its DBIRTH is to say another type
	}
}

// data appends a metric to the DDATA of its device.
func (p *sparkplug) data(dst []message, m *metric, r *telemetry.Reading, at int64, history bool) []message {
	d := m.device
	x := m.metric(r, at, false, p.scratch.Properties[:0])
	x.Name, x.Alias, x.Typed = "", m.alias, p.opts.Datatypes
	if !p.opts.Aliases {
		x.Name, x.Alias = m.name, 0
	}
	// What is older than the value said last is not the current one.
	x.Historical = history || at <= m.said
	if !x.Historical {
		m.last, m.at, m.said = *r, at, at
	}
	d.body = sp.AppendMetric(d.body, &x)
	p.scratch.Properties = x.Properties
	if len(d.body) >= edgeMessage {
		return p.flush(dst, d)
	}
	return dst
}

// flush makes a message of what was collected for a device.
func (p *sparkplug) flush(dst []message, d *edgeDevice) []message {
	if len(d.body) == 0 {
		return dst
	}
	dst = append(dst, p.numbered(p.topic("DDATA", d.name), d.body))
	d.body = nil
	return dst
}
