package uplink

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

// Poll is one exchange with a device: the points it reads, by their numbers
// in the catalog, and how often.
type Poll struct {
	Points []uint32
	Every  time.Duration
}

// Traffic is what an uplink costs in a month of 30 days on a healthy link
// with one connection a day.
type Traffic struct {
	Batches  int64   // a month
	Readings int64   // in one batch, on average
	Out, In  int64   // bytes of the TLS stream, or of MQTT without TLS
	IP       int64   // what TCP and IP add to both, about
	Reading  float64 // bytes of messages a reading, without MQTT and TLS
}

// What the layers below the messages cost, in bytes.
const (
	tlsRecord    = 22       // TLS 1.3 with AES-GCM or ChaCha20: header, type, tag
	tlsFull      = 16 << 10 // largest record
	tlsHandshake = 1900     // with a client certificate of 256 bits, out; the broker's side is about as much
	ipPacket     = 40       // IPv4 and TCP without options
	ipPayload    = 1400
	httpOut      = 330 // head of a request
	httpIn       = 160 // head and body of an answer
	month        = 30 * 24 * time.Hour
)

// Estimate tells the traffic of a configuration: it lets the speaker write
// what a stretch of such readings would be, and counts. Values are made up:
// every second gauge changes by a little from poll to poll, counters count,
// switches stay. maxAge is that of a batch as the collector obeys it.
func Estimate(o Options, e Env, polls []Poll, maxAge time.Duration) (Traffic, error) {
	c, err := clock.Open("")
	if err != nil {
		return Traffic{}, err
	}
	e.Clock, e.Epoch, e.Boot, e.Memory, e.Latest = c, "00000000", 17, nil, nil
	o.Sparkplug.PrimaryHost = ""
	u, err := New(o, e)
	if err != nil {
		return Traffic{}, err
	}
	u.speaker.will()
	x := estimate{u: u, s: &session{u: u, src: steady{}}, secure: u.broker().secure, posts: u.broker().posts()}
	if err := x.say(u.speaker.status(x.s)); err != nil { // what is said once on a connection
		return Traffic{}, err
	}
	if err := x.say(u.speaker.describe(x.s, u.env.Catalog, true)); err != nil {
		return Traffic{}, err
	}
	out, in, ip := x.out+tlsHandshake, x.in+tlsHandshake, x.ip+20*ipPacket
	if !x.secure {
		out, in = x.out+100, x.in
	}
	connects := int64(month / (24 * time.Hour))
	t := Traffic{Out: out * connects, In: in * connects, IP: ip * connects}

	x.clear()
	if err := x.say(u.speaker.status(x.s)); err != nil {
		return Traffic{}, err
	}
	said := int64(month / u.tune.status)
	t.Out, t.In, t.IP = t.Out+x.out*said, t.In+x.in*said, t.IP+x.ip*said

	x.clear()
	took, readings, batches, err := x.live(polls, maxAge)
	if err != nil || batches == 0 {
		return t, err
	}
	scale := float64(month) / float64(took)
	t.Batches = int64(math.Round(float64(batches) * scale))
	t.Readings = readings / batches
	t.Out += int64(float64(x.out) * scale)
	t.In += int64(float64(x.in) * scale)
	t.IP += int64(float64(x.ip) * scale)
	t.Reading = float64(x.bodies) / float64(readings)
	if idle := min(took/time.Duration(batches), u.tune.status); idle > o.Keepalive && !x.posts {
		pings := int64(idle/o.Keepalive) * int64(month/idle)
		t.Out, t.In, t.IP = t.Out+pings*(2+x.record(2)), t.In+pings*(2+x.record(2)), t.IP+pings*3*ipPacket
	}
	return t, nil
}

// estimate counts what messages cost.
type estimate struct {
	u             *Uplink
	s             *session
	secure, posts bool
	out, in, ip   int64
	bodies        int64
}

func (x *estimate) clear() { x.out, x.in, x.ip, x.bodies = 0, 0, 0, 0 }

// record is what TLS adds to a piece that is written at once.
func (x *estimate) record(n int64) int64 {
	if !x.secure {
		return 0
	}
	return (n + tlsFull - 1) / tlsFull * tlsRecord
}

func (x *estimate) say(out []message, err error) error {
	for _, m := range out {
		if m.late != nil {
			m.body = m.late(m.body)
		}
		x.bodies += int64(len(m.body))
		n := int64(2 + len(m.topic) + len(m.body))
		in := int64(0)
		switch {
		case x.posts:
			n, in = int64(len(m.body))+httpOut, httpIn
		case !m.quick:
			n, in = n+2, 4 // the number of the message; the PUBACK
		}
		if !x.posts {
			for k := n; ; k >>= 7 { // the length
				n++
				if k < 128 {
					break
				}
			}
			n++
		}
		n += x.record(n)
		x.out += n
		packets := (n + ipPayload - 1) / ipPayload
		if in > 0 {
			in += x.record(in)
			x.in += in
			packets += 2 // it and the acknowledgement of TCP
		}
		x.ip += packets * ipPacket
	}
	return err
}

// live lets polls run and batches go until that says enough. It returns the
// time it stands for.
func (x *estimate) live(polls []Poll, maxAge time.Duration) (took time.Duration, readings, batches int64, err error) {
	const start = 1764000000000
	polls = slices.DeleteFunc(slices.Clone(polls), func(p Poll) bool { return len(p.Points) == 0 || p.Every <= 0 })
	if len(polls) == 0 {
		return 0, 0, 0, nil
	}
	r := rand.New(rand.NewPCG(7, 11))
	v := newValues(x.u.env.Catalog, r)
	next := make([]time.Duration, len(polls))
	// As the lines do it: devices have phases of their own all over the period,
	// the exchanges of one device follow each other.
	device, nth, block := "", -1, 0
	for i, p := range polls {
		if d := x.u.env.Catalog.Points[p.Points[0]].Device; d != device || i == 0 {
			device, block = d, -1
			nth++
		}
		block++
		_, phase := math.Modf(float64(nth) * 0.618034)
		next[i] = time.Duration(phase*float64(p.Every)) + time.Duration(block)*30*time.Millisecond
	}
	open := telemetry.Batch{Catalog: x.u.env.Catalog.Hash(), Boot: 1, Synced: true}
	var opened, now, first time.Duration
	count, weight := 0, 0
	flush := func() error {
		raw, err := telemetry.AppendBatch(nil, &open)
		if err == nil {
			err = x.s.batch.Decode(raw)
		}
		if err != nil {
			return err
		}
		readings += int64(count)
		batches++
		open.Groups, count, weight = nil, 0, 0
		return x.say(x.u.speaker.batch(nil, x.s, Item{Lane: laneData, Seq: 100_000 + uint64(batches)}, x.u.env.Catalog, false))
	}
	limit := x.u.opts.Batch
	for batches < 40 && readings < 200_000 && now < 7*24*time.Hour {
		i := 0
		for k := range next {
			if next[k] < next[i] {
				i = k
			}
		}
		p := &polls[i]
		now = next[i]
		next[i] += p.Every
		cost := 60
		for _, n := range p.Points {
			cost += len(x.u.env.Catalog.Points[n].Name) + 14
		}
		// As the collector does it.
		if count > 0 && (now-opened >= maxAge || count+len(p.Points) > limit.MaxReadings || int64(weight+cost) > limit.MaxBytes) {
			if err := flush(); err != nil {
				return 0, 0, 0, err
			}
			if batches == 1 { // the first is an exception: births, states
				x.clear()
				first, readings = now, 0
			}
		}
		if count == 0 {
			opened = now
		}
		wall := start + now.Milliseconds() + r.Int64N(4)
		g := telemetry.Group{At: clock.Stamp{Wall: wall, Mono: wall - start, Boot: 1, Synced: true}}
		for _, n := range p.Points {
			g.Readings = append(g.Readings, telemetry.Reading{Point: n, Value: v.next(n)})
		}
		open.Groups = append(open.Groups, g)
		count, weight = count+len(p.Points), weight+cost
		if count >= limit.MaxReadings {
			if err := flush(); err != nil {
				return 0, 0, 0, err
			}
			if batches == 1 {
				x.clear()
				first, readings = now, 0
			}
		}
	}
	return now - first, readings, batches - 1, nil
}

// values makes up readings.
type values struct {
	c     *telemetry.Catalog
	r     *rand.Rand
	level []int64
}

func newValues(c *telemetry.Catalog, r *rand.Rand) *values {
	v := &values{c: c, r: r, level: make([]int64, len(c.Points))}
	for i := range v.level {
		// From 1 to 1000 at any number of decimals, small ones as often as large ones.
		v.level[i] = int64(math.Pow(10, 3*r.Float64()+float64(min(c.Points[i].Decimals, 6))))
		if c.Points[i].Kind == "counter" {
			v.level[i] = 100_000 + r.Int64N(10_000_000)
		}
	}
	return v
}

func (v *values) next(n uint32) telemetry.Value {
	p := &v.c.Points[n]
	switch p.Kind {
	case "text":
		return telemetry.TextValue("ok")
	case "event":
		return telemetry.TextValue("cleared")
	case "state":
		return telemetry.BoolValue(v.level[n]%2 == 0)
	case "counter":
		v.level[n] += v.r.Int64N(2)
	default:
		if v.r.Int64N(2) == 0 {
			v.level[n] += v.r.Int64N(3) - 1
		}
	}
	return telemetry.IntValue(v.level[n], uint8(p.Decimals))
}

// steady is a source on a healthy link: nothing waits.
type steady struct{}

func (steady) Next(string, uint64) (Item, bool, error)    { return Item{}, false, nil }
func (steady) Prev(string, uint64) (Item, bool, error)    { return Item{}, false, nil }
func (steady) Ack(string, ...uint64)                      {}
func (steady) Given(string) uint64                        { return 100_000 }
func (steady) Lowest(string) uint64                       { return 100_000 }
func (steady) Losses() []Loss                             { return nil }
func (steady) AckLoss(Loss) error                         { return nil }
func (steady) SetAside(string, uint64, string) error      { return nil }
func (steady) Catalog(string) (*telemetry.Catalog, error) { return nil, nil }
func (steady) Changed() <-chan struct{}                   { return nil }
