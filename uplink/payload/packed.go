package payload

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// packed is the stored form itself behind one line of JSON: nothing is
// encoded twice, and a reading costs what it costs on the gateway's flash.
// docs/packed.md specifies it byte by byte.
type packed struct{}

func (d *packed) Data(dst []byte, e *Envelope, b *telemetry.Tables, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
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
	return append(dst, b.Stored()...), nil
}

// Loss writes the tombstone of the JSON shapes: it has no second line.
func (d *packed) Loss(dst []byte, e *Envelope, t Tombstone) ([]byte, error) {
	return appendLoss(dst, e, t), nil
}

// span returns what must be added to the stored times, how many readings
// there are, and their first and last time as corrected. One shift serves
// the whole batch, because all its stamps share the offset of wall clock to
// uptime.
func span(b *telemetry.Tables, resolve Resolve) (shift int64, readings int, first, last int64) {
	if b.Len() == 0 {
		return 0, 0, 0, 0
	}
	from, to := b.Span()
	t, _ := resolve(from)
	shift = t.UnixMilli() - from.Wall
	return shift, b.Readings(), from.Wall + shift, to.Wall + shift
}
