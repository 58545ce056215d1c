package payload

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// ThingsBoard writes telemetry as ThingsBoard's gateway API takes it: by
// device a list of times with their values. It is not safe for concurrent
// use.
type ThingsBoard struct {
	cache nameCache
	bad   map[string]bool // DEVICE/POINT: what was said of its quality last
	done  []bool          // groups that are written
}

// Data appends the message of a batch; nothing if it has no readings. What is
// not good has a key POINT.q and, where known, POINT.cause; the first good
// value after it, and after a start, has POINT.q good.
func (d *ThingsBoard) Data(dst []byte, b *telemetry.Tables, c *telemetry.Catalog, resolve Resolve) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	n := d.cache.of(c)
	d.done = append(d.done[:0], make([]bool, b.Len())...)
	start := len(dst)
	for i := range b.Len() {
		if d.done[i] {
			continue
		}
		p := b.First(i)
		dst = append(append(append(dst, ','), n.device(p)...), ":["...)
		list := len(dst)
		for k := i; k < b.Len(); k++ {
			if d.done[k] || n.number[b.First(k)] != n.number[p] {
				continue
			}
			d.done[k] = true
			g := b.Group(k)
			t, _ := resolve(g.At)
			dst = append(dst, `{"ts":`...)
			dst = strconv.AppendInt(dst, t.UnixMilli(), 10)
			dst = append(d.values(append(dst, `,"values":{`...), g.Readings, n, c), "},"...)
		}
		dst = append(dst[:max(list, len(dst)-1)], ']')
	}
	if len(dst) == start {
		return dst, nil
	}
	dst[start] = '{'
	return append(dst, '}'), nil
}

// values appends the members of one instant, with the closing brace.
func (d *ThingsBoard) values(dst []byte, readings []telemetry.Reading, n *names, c *telemetry.Catalog) []byte {
	if d.bad == nil {
		d.bad = map[string]bool{}
	}
	start := len(dst)
	for i := range readings {
		r := &readings[i]
		if valid(r) {
			dst = append(r.Value.AppendJSON(append(dst, n.point(r.Point)...)), ',')
		}
		q, pt := quality(r), &c.Points[r.Point]
		id := pt.Device + "/" + pt.Name
		if was, known := d.bad[id]; known && !was && q == telemetry.Good {
			continue
		}
		d.bad[id] = q != telemetry.Good
		dst = append(telemetry.AppendQuoted(append(telemetry.AppendQuoted(dst, pt.Name+".q"), ':'), q.String()), ',')
		if w := cause(r); w != telemetry.CauseNone && q != telemetry.Good {
			dst = append(telemetry.AppendQuoted(append(telemetry.AppendQuoted(dst, pt.Name+".cause"), ':'), w.String()), ',')
		}
	}
	return closeObject(dst, start)
}
