package payload

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// records is one object per device and instant.
type records struct {
	cache nameCache
}

func (d *records) Data(dst []byte, e *Envelope, b *telemetry.Batch, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	n := d.cache.of(c)
	dst = appendHead(dst, e, n.hash, b, resolve)
	dst = append(dst, `,"records":[`...)
	first := true
	for i := range b.Groups {
		g := &b.Groups[i]
		// A group is one device by contract; should one ever mix devices,
		// each run of one device is a record of its own.
		for from := 0; from < len(g.Readings); {
			to := from + 1
			dev := c.Points[g.Readings[from].Point].Device
			for to < len(g.Readings) && c.Points[g.Readings[to].Point].Device == dev {
				to++
			}
			if !first {
				dst = append(dst, ',')
			}
			first = false
			t, _ := resolve(g.At)
			dst = append(dst, `{"dev":`...)
			dst = append(dst, n.device[g.Readings[from].Point]...)
			dst = append(dst, `,"t":`...)
			dst = strconv.AppendInt(dst, t.UnixMilli(), 10)
			dst = appendValues(dst, g.Readings[from:to], n)
			if history {
				dst = append(dst, `,"h":true`...)
			}
			dst = append(dst, '}')
			from = to
		}
	}
	return append(dst, "]}"...), nil
}

func (d *records) Loss(dst []byte, e *Envelope, t Tombstone) ([]byte, error) {
	return appendLoss(dst, e, t), nil
}

// appendValues writes the members values, q and cause of one record.
func appendValues(dst []byte, readings []telemetry.Reading, n *names) []byte {
	dst = append(dst, `,"values":{`...)
	start := len(dst)
	odd, why := false, false
	for i := range readings {
		r := &readings[i]
		if !valid(r) {
			odd = true
			why = why || cause(r) != telemetry.CauseNone
			continue
		}
		if r.Quality != telemetry.Good {
			odd = true
			why = why || r.Cause != telemetry.CauseNone
		}
		dst = append(dst, n.point[r.Point]...)
		dst = r.Value.AppendJSON(dst)
		dst = append(dst, ',')
	}
	dst = closeObject(dst, start)
	if !odd {
		return dst
	}
	dst = append(dst, `,"q":{`...)
	start = len(dst)
	for i := range readings {
		if q := quality(&readings[i]); q != telemetry.Good {
			dst = append(dst, n.point[readings[i].Point]...)
			dst = append(dst, '"')
			dst = append(dst, q.String()...)
			dst = append(dst, `",`...)
		}
	}
	dst = closeObject(dst, start)
	if !why {
		return dst
	}
	dst = append(dst, `,"cause":{`...)
	start = len(dst)
	for i := range readings {
		if w := cause(&readings[i]); w != telemetry.CauseNone && quality(&readings[i]) != telemetry.Good {
			dst = append(dst, n.point[readings[i].Point]...)
			dst = append(dst, '"')
			dst = append(dst, w.String()...)
			dst = append(dst, `",`...)
		}
	}
	return closeObject(dst, start)
}

// closeObject turns the comma after the last member into a brace.
func closeObject(dst []byte, start int) []byte {
	if len(dst) > start {
		dst[len(dst)-1] = '}'
		return dst
	}
	return append(dst, '}')
}
