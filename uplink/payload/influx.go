package payload

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// influx is line protocol as InfluxDB, Telegraf, VictoriaMetrics and
// QuestDB read it: a line for each device and instant, and one for the
// envelope, so that the account can be kept of what arrives.
// docs.influxdata.com, "Line protocol", says what is escaped and how.
type influx struct {
	kept []*influxNames
}

// influxNames are the escaped names of one catalog.
type influxNames struct {
	catalog *telemetry.Catalog
	head    [][]byte // by point number: measurement and tags before the fields
	point   [][]byte // by point number: the field's name
	gateway string
}

func (d *influx) Data(dst []byte, e *Envelope, b *telemetry.Tables, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	n := d.of(c, e.Gateway)
	dst = influxEnvelope(dst, "tidegate_batch", e)
	dst = append(dst, ",seq="...)
	dst = strconv.AppendUint(dst, e.Seq, 10)
	dst = append(dst, `i,m="`...)
	dst = append(dst, c.Hash()...)
	dst = append(dst, `",clk="`...)
	dst = append(dst, clockWord(b, resolve)...)
	dst = append(dst, `",h=`...)
	dst = strconv.AppendBool(dst, history)
	_, readings, _, _ := span(b, resolve)
	dst = append(dst, ",n="...)
	dst = strconv.AppendInt(dst, int64(readings), 10)
	dst = append(dst, 'i')
	dst = influxTime(dst, e.Sent)
	for i := range b.Len() {
		g := b.Group(i)
		t, _ := resolve(g.At)
		for from := 0; from < len(g.Readings); {
			to := from + 1
			dev := c.Points[g.Readings[from].Point].Device
			for to < len(g.Readings) && c.Points[g.Readings[to].Point].Device == dev {
				to++
			}
			dst = append(dst, n.head[g.Readings[from].Point]...)
			for k := range g.Readings[from:to] {
				if k > 0 {
					dst = append(dst, ',')
				}
				dst = influxField(dst, &g.Readings[from+k], n.point[g.Readings[from+k].Point])
			}
			dst = influxTime(dst, t.UnixMilli())
			from = to
		}
	}
	return dst, nil
}

func (d *influx) Loss(dst []byte, e *Envelope, t Tombstone) ([]byte, error) {
	dst = influxEnvelope(dst, "tidegate_loss", e)
	for _, f := range [...]struct {
		name string
		v    int64
	}{{"from", int64(t.From)}, {"to", int64(t.To)}, {"batches", t.Batches}, {"readings", t.Readings}, {"t0", t.T0}, {"t1", t.T1}} {
		dst = append(append(append(dst, ','), f.name...), '=')
		dst = append(strconv.AppendInt(dst, f.v, 10), 'i')
	}
	dst = append(dst, ",why="...)
	dst = influxQuoted(dst, t.Why)
	return influxTime(dst, e.Sent), nil
}

// influxEnvelope writes the measurement, tags and first fields of the line
// that says whose message this is. Integers are marked with i.
func influxEnvelope(dst []byte, measurement string, e *Envelope) []byte {
	dst = append(dst, measurement...)
	dst = append(dst, ",gw="...)
	dst = influxEscaped(dst, e.Gateway)
	dst = append(dst, ",lane="...)
	dst = influxEscaped(dst, e.Lane)
	dst = append(dst, " v="...)
	dst = strconv.AppendInt(dst, Version, 10)
	dst = append(dst, "i,ep="...)
	dst = influxQuoted(dst, e.Epoch)
	dst = append(dst, ",lo="...)
	dst = strconv.AppendUint(dst, e.Lo, 10)
	dst = append(dst, "i,boot="...)
	dst = strconv.AppendUint(dst, uint64(e.Boot), 10)
	return append(dst, 'i')
}

// influxField writes name=value, and name.q="word" where the reading is not
// good. Numbers are floats always: a field that changes its type is refused
// by the database.
func influxField(dst []byte, r *telemetry.Reading, name []byte) []byte {
	ok := valid(r)
	if ok {
		dst = append(append(dst, name...), '=')
		if r.Value.Kind() == telemetry.Text {
			dst = influxQuoted(dst, r.Value.Text())
		} else {
			dst = r.Value.AppendJSON(dst)
		}
	}
	q := quality(r)
	if q == telemetry.Good {
		return dst
	}
	if ok {
		dst = append(dst, ',')
	}
	dst = append(append(dst, name...), `.q="`...)
	dst = append(append(dst, q.String()...), '"')
	if w := cause(r); w != telemetry.CauseNone {
		dst = append(append(append(dst, ','), name...), `.cause="`...)
		dst = append(append(dst, w.String()...), '"')
	}
	return dst
}

// influxTime ends a line; line protocol counts nanoseconds.
func influxTime(dst []byte, ms int64) []byte {
	dst = strconv.AppendInt(append(dst, ' '), ms, 10)
	if ms == 0 {
		return append(dst, '\n')
	}
	return append(dst, "000000\n"...)
}

// influxEscaped writes a tag value or a field name. Line breaks, which no
// escape can carry, become spaces.
func influxEscaped(dst []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; c {
		case ',', '=', ' ':
			dst = append(dst, '\\', c)
		case '\n', '\r', '\t':
			dst = append(dst, '\\', ' ')
		default:
			dst = append(dst, c)
		}
	}
	if n := len(s); n > 0 && s[n-1] == '\\' {
		dst = append(dst, '_') // a backslash at the end would escape what follows
	}
	return dst
}

// influxQuoted writes a string field.
func influxQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}

func (d *influx) of(c *telemetry.Catalog, gateway string) *influxNames {
	for i, n := range d.kept {
		if n.catalog == c && n.gateway == gateway {
			if i > 0 {
				copy(d.kept[1:i+1], d.kept[:i])
				d.kept[0] = n
			}
			return n
		}
	}
	n := &influxNames{catalog: c, gateway: gateway, head: make([][]byte, len(c.Points)), point: make([][]byte, len(c.Points))}
	for i, p := range c.Points {
		if i > 0 && c.Points[i-1].Device == p.Device {
			n.head[i] = n.head[i-1]
		} else {
			h := append([]byte("tidegate,dev="), influxEscaped(nil, p.Device)...)
			h = append(influxEscaped(append(h, ",gw="...), gateway), ' ')
			n.head[i] = h
		}
		n.point[i] = influxEscaped(nil, p.Name)
	}
	d.kept = append([]*influxNames{n}, d.kept[:min(len(d.kept), keptNames-1)]...)
	return n
}
