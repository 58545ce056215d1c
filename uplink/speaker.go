package uplink

import (
	"slices"
	"strings"

	"tidegate/internal/telemetry"
	"tidegate/uplink/payload"
)

// message is one PUBLISH.
type message struct {
	topic    string
	body     []byte
	retained bool
	quick    bool // quality 0: never the last message of a batch
	lent     bool // the body is a buffer of the session, which gets it back
	// late completes the body in the moment in which it goes out; nil: it is complete.
	late func(body []byte) []byte
}

// incoming is a message from the broker.
type incoming struct {
	topic    string
	body     []byte
	retained bool
	again    bool // the broker marks it as a repeat
}

// speaker decides what is said on a connection, and to which topics: the
// messages of docs/payloads.md, or what a platform prescribes. All methods
// but will are called by the goroutine of the session. The bodies of
// messages stay untouched until they are acknowledged.
type speaker interface {
	// will is what the broker says when the connection breaks; ok is false
	// for nothing. It is called before each CONNECT.
	will() (m message, ok bool)
	// filters are the topics to listen to; heard takes what comes there.
	filters() []string
	heard(s *session, m incoming) error
	// status is said at once and then each minute.
	status(s *session) ([]message, error)
	// describe says what the points of a catalog are: the present one at
	// once and daily, an old one before the first batch that needs it.
	describe(s *session, c *telemetry.Catalog, present bool) ([]message, error)
	// ready tells whether batches may go now.
	ready() bool
	// batch appends the messages of the batch that the session has decoded.
	// The PUBACK of the last one acknowledges it; no message at all means
	// that nobody needs it. An error sets the batch aside.
	batch(dst []message, s *session, item Item, c *telemetry.Catalog, history bool) ([]message, error)
	// loss appends the messages that tell of a loss, likewise.
	loss(dst []message, s *session, l *Loss) ([]message, error)
	// goodbye is said before an intended end.
	goodbye(s *session) ([]message, error)
}

// newSpeaker returns the one that the options ask for.
func (u *Uplink) newSpeaker() (speaker, error) {
	switch u.opts.Shape {
	case "sparkplug":
		return newSparkplug(u), nil
	case "thingsboard":
		return &thingsboard{u: u}, nil
	case "homeassistant":
		return newHomeAssistant(u), nil
	}
	d, err := payload.New(u.opts.Shape)
	return &envelopes{u: u, dialect: d}, err
}

// departure ends a good connection in order. With an error the uplink is
// away, without one it comes back at once.
type departure struct{ why *Error }

func (d *departure) Error() string {
	if d.why != nil {
		return d.why.Error()
	}
	return "the connection is made anew"
}

// drop takes back what waits to be handed over: it will be sent again.
func (s *session) drop() {
	for i := range s.queue {
		f := &s.queue[i].flight
		if f.loss != nil {
			delete(s.order.told, *f.loss)
		}
		if f.item.Seq != 0 {
			k := key{f.item.Lane, f.item.Seq}
			delete(s.order.flying, k)
			s.u.unacked[k] = true // a part of it may have gone
		}
	}
	s.queue = nil
	s.order.again()
}

// Shapes returns the names that `shape` may have.
func Shapes() []string { return append(payload.Shapes(), "sparkplug", "thingsboard", "homeassistant") }

// validateSpeaker checks what only some shapes know.
func (o *Options) validateSpeaker(report func(path, msg, hint string)) {
	d := Defaults()
	if h := o.Sparkplug.PrimaryHost; strings.ContainsAny(h, "/+#\x00") || len(h) > 128 {
		report("sparkplug.primary_host", "the id of a host has at most 128 bytes and no / + #", "")
	}
	if h := o.HomeAssistant.Prefix; h == "" || strings.ContainsAny(h, "+#\x00") || len(h) > 128 {
		report("homeassistant.prefix", "a discovery prefix has 1 to 128 bytes and no + #", "the default is homeassistant")
	}
	if o.Shape != "sparkplug" && o.Sparkplug != d.Sparkplug {
		report("sparkplug", "this is for shape sparkplug, and the shape is "+o.Shape, "write shape: sparkplug, or leave it out")
	}
	if o.Shape != "homeassistant" && o.HomeAssistant != d.HomeAssistant {
		report("homeassistant", "this is for shape homeassistant, and the shape is "+o.Shape, "write shape: homeassistant, or leave it out")
	}
	if slices.Contains([]string{"sparkplug", "thingsboard", "homeassistant"}, o.Shape) && o.Compress == "gzip" {
		report("compress", "shape "+o.Shape+" knows no gzip", "leave compress out")
	}
}

// envelopes is the speaker of docs/payloads.md: its own topics, one message a
// batch, in any shape.
type envelopes struct {
	u       *Uplink
	dialect payload.Dialect
	zip     payload.Gzip
	plain   []byte
	up      string // topic of data; "" before the first
}

func (p *envelopes) will() (message, bool) {
	return message{topic: p.u.topicOf("status"), body: payload.Status(p.u.state("lost", nil)), retained: true}, true
}

// filters: a broker that serves a session anew may send the receipts of
// others first; what they do not cover, they do not touch.
func (p *envelopes) filters() (f []string) {
	if p.u.env.Desk != nil {
		f = append(f, p.u.topicOf("cmd"))
	}
	if p.u.opts.Receipts {
		f = append(f, p.u.topicOf("receipt"))
	}
	return f
}

func (p *envelopes) heard(s *session, m incoming) error {
	switch {
	case p.u.opts.Receipts && m.topic == p.u.topicOf("receipt"):
		s.received(m.body)
	case p.u.env.Desk != nil && m.topic == p.u.topicOf("cmd"):
		p.u.env.Desk.Take(m.body, m.retained)
	}
	return nil
}

func (p *envelopes) ready() bool                          { return true }
func (p *envelopes) status(s *session) ([]message, error) { return p.state("online", s), nil }
func (p *envelopes) goodbye(s *session) ([]message, error) {
	return p.state("offline", s), nil
}

func (p *envelopes) state(word string, s *session) []message {
	return []message{{topic: p.u.topicOf("status"), body: payload.Status(p.u.state(word, s.src)), retained: true}}
}

// describe: only the present catalog is retained; an old one is told to
// those who listen now.
func (p *envelopes) describe(s *session, c *telemetry.Catalog, present bool) ([]message, error) {
	return []message{{topic: p.u.topicOf("meta"), body: payload.Meta(p.u.about(), c), retained: present}}, nil
}

func (p *envelopes) data() string {
	if p.up == "" {
		p.up = p.u.topicOf("up")
	}
	return p.up
}

func (p *envelopes) batch(dst []message, s *session, item Item, c *telemetry.Catalog, history bool) ([]message, error) {
	u, out := p.u, s.buffer()
	topic, zip := p.data(), item.Lane == laneData && p.u.opts.Compress == "gzip"
	if item.Lane == laneEvent {
		topic = u.topicOf("event")
	}
	plain := out
	if zip {
		plain = p.plain[:0]
	}
	plain, err := p.dialect.Data(plain, s.envelope(item.Lane, item.Seq), &s.batch, c, u.env.Clock.Resolve, history)
	if err != nil {
		return dst, err
	}
	if !zip {
		return append(dst, message{topic: topic, body: plain, lent: true}), nil
	}
	p.plain = plain
	out, packed := p.zip.Append(out, plain)
	if packed {
		topic = u.zipped(topic)
	} else {
		out = append(out, plain...)
	}
	return append(dst, message{topic: topic, body: out, lent: true}), nil
}

func (p *envelopes) loss(dst []message, s *session, l *Loss) ([]message, error) {
	b, err := p.dialect.Loss(s.buffer(), s.envelope(l.Lane, 0), payload.Tombstone{From: l.From, To: l.To,
		Batches: l.Batches, Readings: l.Readings, T0: l.T0, T1: l.T1, Why: l.Why})
	return append(dst, message{topic: p.data(), body: b, lent: true}), err
}
