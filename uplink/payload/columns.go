package payload

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// columns is one table per device and set of points: a time column, and a
// column of values per point. It writes what is stored column by column.
type columns struct {
	cache nameCache
}

func (d *columns) Data(dst []byte, e *Envelope, b *telemetry.Tables, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	n := d.cache.of(c)
	dst = appendHead(dst, e, n.hash, b, resolve)
	dst = append(dst, `,"columns":[`...)
	start := len(dst)
	for i := range b.Count() {
		x := b.Table(i)
		dst = appendTables(dst, &x, n, resolve, history)
		dst = append(dst, ',')
	}
	if len(dst) > start {
		dst = dst[:len(dst)-1]
	}
	return append(dst, "]}"...), nil
}

func (d *columns) Loss(dst []byte, e *Envelope, t Tombstone) ([]byte, error) {
	return appendLoss(dst, e, t), nil
}

// appendTables writes one table: one entry, or one per run of points of one
// device should a group ever mix devices.
func appendTables(dst []byte, x *telemetry.Table, n *names, resolve Resolve, history bool) []byte {
	for from := 0; from < len(x.Points); {
		to := n.run(x.Points, from)
		if from > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"dev":`...)
		dst = append(dst, n.device(x.Points[from])...)
		dst = appendTimes(dst, x, resolve)
		dst = appendColumns(dst, x, from, to, n)
		if history {
			dst = append(dst, `,"h":true`...)
		}
		dst = append(dst, '}')
		from = to
	}
	return dst
}

// appendTimes writes t0 and dt: each row's time less that of the row before.
func appendTimes(dst []byte, x *telemetry.Table, resolve Resolve) []byte {
	t, _ := resolve(x.At(0))
	last := t.UnixMilli()
	dst = append(dst, `,"t0":`...)
	dst = strconv.AppendInt(dst, last, 10)
	dst = append(dst, `,"dt":[0`...)
	for row := 1; row < x.Rows(); row++ {
		t, _ := resolve(x.At(row))
		dst = append(dst, ',')
		dst = strconv.AppendInt(dst, t.UnixMilli()-last, 10)
		last = t.UnixMilli()
	}
	return append(dst, ']')
}

// appendColumns writes values, q and cause of the columns from..to.
func appendColumns(dst []byte, x *telemetry.Table, from, to int, n *names) []byte {
	dst = append(dst, `,"values":{`...)
	start := len(dst)
	odd, why := false, false
	for col := from; col < to; col++ {
		mark, some := len(dst), false
		dst = append(dst, n.point(x.Points[col])...)
		dst = append(dst, '[')
		if dst, some = x.AppendColumn(dst, col); !some {
			for row := range x.Rows() {
				r := x.Reading(row, col)
				if quality(&r) != telemetry.Good {
					odd = true
					why = why || cause(&r) != telemetry.CauseNone
				}
				if valid(&r) {
					some = true
					dst = r.Value.AppendJSON(dst)
				} else {
					dst = append(dst, "null"...)
				}
				dst = append(dst, ',')
			}
		}
		if !some { // no value in the whole column: the point is absent
			dst = dst[:mark]
			continue
		}
		dst[len(dst)-1] = ']'
		dst = append(dst, ',')
	}
	dst = closeObject(dst, start)
	if odd {
		dst = appendMarks(append(dst, `,"q":{`...), x, from, to, n, qualityWord)
	}
	if why {
		dst = appendMarks(append(dst, `,"cause":{`...), x, from, to, n, causeWord)
	}
	return dst
}

// qualityWord returns the quality of a reading that is not good, else "".
func qualityWord(r *telemetry.Reading) string {
	if q := quality(r); q != telemetry.Good {
		return q.String()
	}
	return ""
}

// causeWord returns the cause of a reading that is not good, else "".
func causeWord(r *telemetry.Reading) string {
	if quality(r) != telemetry.Good {
		return cause(r).String()
	}
	return ""
}

// appendMarks writes one member per point that has a word in any row.
func appendMarks(dst []byte, x *telemetry.Table, from, to int, n *names, word func(*telemetry.Reading) string) []byte {
	start := len(dst)
	for col := from; col < to; col++ {
		mark, some := len(dst), false
		dst = append(dst, n.point(x.Points[col])...)
		dst = append(dst, '[')
		for row := range x.Rows() {
			r := x.Reading(row, col)
			if w := word(&r); w != "" {
				some = true
				dst = append(dst, '"')
				dst = append(dst, w...)
				dst = append(dst, `",`...)
			} else {
				dst = append(dst, "null,"...)
			}
		}
		if !some {
			dst = dst[:mark]
			continue
		}
		dst[len(dst)-1] = ']'
		dst = append(dst, ',')
	}
	return closeObject(dst, start)
}
