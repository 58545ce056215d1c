package payload

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// records is one object per device and instant.
type records struct {
	cache nameCache
}

func (d *records) Data(dst []byte, e *Envelope, b *telemetry.Tables, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	n := d.cache.of(c)
	dst = appendHead(dst, e, n.hash, b, resolve)
	dst = append(dst, `,"records":[`...)
	first := true
	for i := range b.Len() {
		x, row := b.Row(i)
		t, _ := resolve(x.At(row))
		// A group is one device by contract; should one ever mix devices,
		// each run of one device is a record of its own.
		for from := 0; from < len(x.Points); {
			to := n.run(x.Points, from)
			if !first {
				dst = append(dst, ',')
			}
			first = false
			dst = append(dst, `{"dev":`...)
			dst = append(dst, n.device(x.Points[from])...)
			dst = append(dst, `,"t":`...)
			dst = strconv.AppendInt(dst, t.UnixMilli(), 10)
			dst = appendValues(dst, &x, row, from, to, n)
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

// appendValues writes the members values, q and cause of one record: the
// columns from..to of a row.
func appendValues(dst []byte, x *telemetry.Table, row, from, to int, n *names) []byte {
	dst = append(dst, `,"values":{`...)
	start := len(dst)
	odd, why := false, false
	for col := from; col < to; col++ {
		mark, ok := len(dst), false
		dst = append(dst, n.point(x.Points[col])...)
		if dst, ok = x.AppendValue(dst, row, col); !ok {
			r := x.Reading(row, col)
			odd = true
			why = why || cause(&r) != telemetry.CauseNone
			if !valid(&r) {
				dst = dst[:mark]
				continue
			}
			dst = r.Value.AppendJSON(dst)
		}
		dst = append(dst, ',')
	}
	dst = closeObject(dst, start)
	if odd {
		dst = appendWords(append(dst, `,"q":{`...), x, row, from, to, n, qualityWord)
	}
	if why {
		dst = appendWords(append(dst, `,"cause":{`...), x, row, from, to, n, causeWord)
	}
	return dst
}

// appendWords writes one member for each point that has a word.
func appendWords(dst []byte, x *telemetry.Table, row, from, to int, n *names, word func(*telemetry.Reading) string) []byte {
	start := len(dst)
	for col := from; col < to; col++ {
		r := x.Reading(row, col)
		if w := word(&r); w != "" {
			dst = append(dst, n.point(x.Points[col])...)
			dst = append(dst, '"')
			dst = append(dst, w...)
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
