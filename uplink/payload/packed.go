package payload

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// packed is the stored form itself behind one line of JSON: nothing is
// encoded twice, and a reading costs what it costs on the gateway's flash.
// docs/packed.md specifies it byte by byte.
type packed struct{}

func (d *packed) Data(dst []byte, e *Envelope, b *telemetry.Batch, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	shift, readings, first, last := span(b, resolve)
	dst = appendHead(dst, e, c.Hash(), b, resolve)
	dst = append(dst, `,"shift":`...)
	dst = strconv.AppendInt(dst, shift, 10)
	dst = append(dst, `,"n":`...)
	dst = strconv.AppendInt(dst, int64(readings), 10)
	dst = append(dst, `,"t0":`...)
	dst = strconv.AppendInt(dst, first, 10)
	dst = append(dst, `,"t1":`...)
	dst = strconv.AppendInt(dst, last, 10)
	if history {
		dst = append(dst, `,"h":true`...)
	}
	dst = append(dst, "}\n"...)
	if stored := b.Stored(); stored != nil {
		return append(dst, stored...), nil
	}
	return telemetry.AppendBatch(dst, b)
}

// Loss writes the tombstone of the JSON shapes: it has no second line.
func (d *packed) Loss(dst []byte, e *Envelope, t Tombstone) ([]byte, error) {
	return appendLoss(dst, e, t), nil
}

// span returns what must be added to the stored times, how many readings
// there are, and their first and last time as corrected. One shift serves
// the whole batch, because all its stamps share the offset of wall clock to
// uptime.
func span(b *telemetry.Batch, resolve Resolve) (shift int64, readings int, first, last int64) {
	for i := range b.Groups {
		g := &b.Groups[i]
		readings += len(g.Readings)
		if i == 0 {
			t, _ := resolve(g.At)
			shift, first, last = t.UnixMilli()-g.At.Wall, t.UnixMilli(), t.UnixMilli()
		}
		first, last = min(first, g.At.Wall+shift), max(last, g.At.Wall+shift)
	}
	return shift, readings, first, last
}
