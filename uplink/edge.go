package uplink

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
	sp "tidegate/uplink/sparkplug"
)

// edgeDevice is a device as Sparkplug sees it: born, or dead.
type edgeDevice struct {
	name    string
	metrics []*metric
	born    bool // its DBIRTH was said on this connection

	touched bool   // the batch at hand speaks of it
	answers bool   // and has something to say of it
	body    []byte // of the DDATA under way
}

// metric is a point as Sparkplug sees it.
type metric struct {
	device     *edgeDevice
	name, unit string
	text       bool // a point of words, as long as no value says more
	present    bool // in the present catalog
	alias      uint64
	typ        sp.DataType       // learnt from values; Unknown before the first
	told       sp.DataType       // what the last DBIRTH said
	last       telemetry.Reading // said last as current
	at         int64             // its time, Unix ms; 0: nothing said yet
	said       int64             // time of the newest value said as current
	bad        bool              // the quality said last was not good
}

// metrics returns the metrics of a catalog by the numbers of its points.
// Points that only an old catalog has are metrics of the next DBIRTH.
func (p *sparkplug) metrics(c *telemetry.Catalog) []*metric {
	if of := p.catalogs[c]; of != nil || len(c.Points) == 0 {
		return of
	}
	of := make([]*metric, len(c.Points))
	for i, pt := range c.Points {
		d := p.named[pt.Device]
		if d == nil {
			d = &edgeDevice{name: pt.Device}
			p.named[pt.Device] = d
			p.devices = append(p.devices, d)
		}
		k := slices.IndexFunc(d.metrics, func(m *metric) bool { return m.name == pt.Name })
		if k < 0 {
			k = len(d.metrics)
			p.aliases++
			d.metrics = append(d.metrics, &metric{device: d, name: pt.Name, unit: pt.Unit, alias: p.aliases,
				text: pt.Kind == "text" || pt.Kind == "event", last: telemetry.Reading{Quality: telemetry.Init}})
			d.born = false
		}
		of[i] = d.metrics[k]
		if c == p.u.env.Catalog {
			of[i].present = true
		}
	}
	p.catalogs[c] = of
	return of
}

// refresh takes over what the gateway knows now.
func (p *sparkplug) refresh() {
	if p.u.env.Latest == nil {
		return
	}
	of := p.metrics(p.u.env.Catalog)
	p.u.env.Latest(func(point int, r telemetry.Reading, at clock.Stamp) {
		if point >= len(of) || at == (clock.Stamp{}) {
			return
		}
		m := of[point]
		t, _ := p.u.env.Clock.Resolve(at)
		m.last, m.at = r, t.UnixMilli()
		if usable(&r) {
			m.learn(r.Value)
		}
	})
}

// answer tells whether a reading is a word of the device itself.
func answer(q telemetry.Quality) bool {
	return q == telemetry.Good || q == telemetry.Range || q == telemetry.Fault
}

// usable tells whether a reading has a value that can be said.
func usable(r *telemetry.Reading) bool {
	if r.Quality != telemetry.Good && r.Quality != telemetry.Range || r.Value.Kind() == telemetry.None {
		return false
	}
	if k := r.Value.Kind(); k == telemetry.Float32 || k == telemetry.Float64 {
		f := r.Value.Float()
		return f-f == 0
	}
	return true
}

// answering tells whether the device has answered, as far as is known.
func (d *edgeDevice) answering() bool {
	return slices.ContainsFunc(d.metrics, func(m *metric) bool { return m.present && m.at != 0 && answer(m.last.Quality) })
}

// silent tells whether all that the present configuration reads of the
// device is without an answer.
func (d *edgeDevice) silent() bool {
	dead := false
	for _, m := range d.metrics {
		if !m.present || m.last.Quality == telemetry.Init {
			continue
		}
		if answer(m.last.Quality) {
			return false
		}
		dead = true
	}
	return dead
}

// dbirth is the body of a DBIRTH: every metric with name, type and value, in
// the order of their times.
func (p *sparkplug) dbirth(d *edgeDevice) []byte {
	now := time.Now().UnixMilli()
	order := slices.Clone(d.metrics)
	at := func(m *metric) int64 {
		if m.at == 0 {
			return now
		}
		return m.at
	}
	slices.SortStableFunc(order, func(a, b *metric) int { return cmp.Compare(at(a), at(b)) })
	var dst []byte
	for _, m := range order {
		x := m.metric(&m.last, at(m), true, nil)
		m.said, m.told = m.at, x.Type
		if p.opts.Aliases {
			x.Alias = m.alias
		}
		dst = sp.AppendMetric(dst, &x)
	}
	return dst
}

// declared is the type that births say.
func (m *metric) declared() sp.DataType {
	switch {
	case m.typ != sp.Unknown:
		return m.typ
	case m.text:
		return sp.String
	}
	return sp.Double
}

// learn makes the type of a metric wide enough for a value.
func (m *metric) learn(v telemetry.Value) {
	need := typeOf(v)
	switch {
	case m.typ == need, m.typ == sp.String:
	case m.typ == sp.Unknown:
		m.typ = need
	case need == sp.String:
		m.typ = sp.String
	case m.typ == sp.Int64 && need == sp.Boolean:
	case m.typ == sp.Boolean && need == sp.Int64:
		m.typ = sp.Int64
	default:
		m.typ = sp.Double
	}
}

func typeOf(v telemetry.Value) sp.DataType {
	switch v.Kind() {
	case telemetry.Bool:
		return sp.Boolean
	case telemetry.Text:
		return sp.String
	case telemetry.Int:
		if v.Decimals() == 0 {
			return sp.Int64
		}
	case telemetry.Uint:
		if v.Decimals() == 0 {
			return sp.UInt64
		}
	}
	return sp.Double
}

// valueOf writes a value in a type that learn has made wide enough.
func valueOf(t sp.DataType, v telemetry.Value) sp.Value {
	switch t {
	case sp.Boolean:
		return sp.Truth(v.Bool())
	case sp.Int64:
		return sp.Value{Bits: uint64(v.Mantissa())}
	case sp.UInt64:
		if v.Kind() == telemetry.Uint {
			return sp.Value{Bits: v.Unsigned()}
		}
		return sp.Value{Bits: uint64(v.Mantissa())}
	case sp.String:
		return sp.Value{Text: v.String()}
	}
	f := v.Float()
	if v.Kind() == telemetry.Float32 { // 230.1, not 230.10000610
		f, _ = strconv.ParseFloat(v.String(), 64)
	}
	return sp.Number(f)
}

// metric writes a reading. What is not good has the property Quality, and
// Reason where known; so has the first good one after it.
func (m *metric) metric(r *telemetry.Reading, at int64, birth bool, props []sp.Property) sp.Metric {
	x := sp.Metric{Name: m.name, Timestamp: at, Type: m.declared(), Typed: birth, Null: !usable(r)}
	if !x.Null {
		x.Value = valueOf(x.Type, r.Value)
	}
	quality, reason := int32(sp.QualityGood), ""
	if r.Quality != telemetry.Good || x.Null {
		quality, reason = sp.QualityBad, r.Quality.String()
		if r.Quality == telemetry.Stale || r.Quality == telemetry.Init {
			quality = sp.QualityStale
		}
		if r.Quality == telemetry.Good { // a number that is none
			reason = telemetry.Fault.String()
		}
		if w := r.Cause.String(); w != "" {
			reason += " " + w
		}
	}
	if birth || quality != sp.QualityGood || m.bad {
		props = append(props, sp.Property{Key: "Quality", Type: sp.Int32, Int: quality})
		if reason != "" {
			props = append(props, sp.Property{Key: "Reason", Type: sp.String, Text: reason})
		}
	}
	if birth && m.unit != "" {
		props = append(props, sp.Property{Key: "engUnit", Type: sp.String, Text: m.unit})
	}
	m.bad = quality != sp.QualityGood
	x.Properties = props
	return x
}
