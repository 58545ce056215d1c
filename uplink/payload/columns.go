package payload

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// columns is one table per device and set of points: a time column, and a
// column of values per point.
type columns struct {
	cache  nameCache
	tables []table
	count  int            // of tables in use
	first  map[uint32]int // first point -> the last table that starts with it
}

// table collects the groups that share their points in the same order.
type table struct {
	rows []int // indexes of groups
	next int   // the table before this one with the same first point, or -1
}

func (d *columns) Data(dst []byte, e *Envelope, b *telemetry.Batch, c *telemetry.Catalog, resolve Resolve, history bool) ([]byte, error) {
	if err := check(b, c); err != nil {
		return dst, err
	}
	n := d.cache.of(c)
	d.collect(b.Groups)
	dst = appendHead(dst, e, n.hash, b, resolve)
	dst = append(dst, `,"columns":[`...)
	start := len(dst)
	for i := range d.tables[:d.count] {
		dst = d.appendTables(dst, b.Groups, d.tables[i].rows, n, c, resolve, history)
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

// collect sorts the groups into tables, in order of first appearance.
func (d *columns) collect(groups []telemetry.Group) {
	if d.first == nil {
		d.first = map[uint32]int{}
	}
	clear(d.first)
	d.count = 0
	for i := range groups {
		r := groups[i].Readings
		if len(r) == 0 {
			continue
		}
		at, ok := d.first[r[0].Point]
		if !ok {
			at = -1
		}
		found := at
		for found >= 0 && !samePoints(groups[d.tables[found].rows[0]].Readings, r) {
			found = d.tables[found].next
		}
		if found < 0 {
			if d.count == len(d.tables) {
				d.tables = append(d.tables, table{})
			}
			found = d.count
			d.count++
			d.tables[found].rows = d.tables[found].rows[:0]
			d.tables[found].next = at
			d.first[r[0].Point] = found
		}
		d.tables[found].rows = append(d.tables[found].rows, i)
	}
}

func samePoints(a, b []telemetry.Reading) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Point != b[i].Point {
			return false
		}
	}
	return true
}

// appendTables writes one table: one entry, or one per run of points of one
// device should a group ever mix devices.
func (d *columns) appendTables(dst []byte, groups []telemetry.Group, rows []int, n *names, c *telemetry.Catalog, resolve Resolve, history bool) []byte {
	points := groups[rows[0]].Readings
	for from := 0; from < len(points); {
		to := from + 1
		dev := c.Points[points[from].Point].Device
		for to < len(points) && c.Points[points[to].Point].Device == dev {
			to++
		}
		if from > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"dev":`...)
		dst = append(dst, n.device[points[from].Point]...)
		dst = appendTimes(dst, groups, rows, resolve)
		dst = appendColumns(dst, groups, rows, from, to, n)
		if history {
			dst = append(dst, `,"h":true`...)
		}
		dst = append(dst, '}')
		from = to
	}
	return dst
}

// appendTimes writes t0 and dt: each row's time less that of the row before.
func appendTimes(dst []byte, groups []telemetry.Group, rows []int, resolve Resolve) []byte {
	t, _ := resolve(groups[rows[0]].At)
	last := t.UnixMilli()
	dst = append(dst, `,"t0":`...)
	dst = strconv.AppendInt(dst, last, 10)
	dst = append(dst, `,"dt":[0`...)
	for _, row := range rows[1:] {
		t, _ := resolve(groups[row].At)
		dst = append(dst, ',')
		dst = strconv.AppendInt(dst, t.UnixMilli()-last, 10)
		last = t.UnixMilli()
	}
	return append(dst, ']')
}

// appendColumns writes values, q and cause of the points from..to.
func appendColumns(dst []byte, groups []telemetry.Group, rows []int, from, to int, n *names) []byte {
	dst = append(dst, `,"values":{`...)
	start := len(dst)
	odd, why := false, false
	for col := from; col < to; col++ {
		mark, some := len(dst), false
		dst = append(dst, n.point[groups[rows[0]].Readings[col].Point]...)
		dst = append(dst, '[')
		for _, row := range rows {
			r := &groups[row].Readings[col]
			if quality(r) != telemetry.Good {
				odd = true
				why = why || cause(r) != telemetry.CauseNone
			}
			if valid(r) {
				some = true
				dst = r.Value.AppendJSON(dst)
			} else {
				dst = append(dst, "null"...)
			}
			dst = append(dst, ',')
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
		dst = appendMarks(append(dst, `,"q":{`...), groups, rows, from, to, n, qualityWord)
	}
	if why {
		dst = appendMarks(append(dst, `,"cause":{`...), groups, rows, from, to, n, causeWord)
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
func appendMarks(dst []byte, groups []telemetry.Group, rows []int, from, to int, n *names, word func(*telemetry.Reading) string) []byte {
	start := len(dst)
	for col := from; col < to; col++ {
		mark, some := len(dst), false
		dst = append(dst, n.point[groups[rows[0]].Readings[col].Point]...)
		dst = append(dst, '[')
		for _, row := range rows {
			if w := word(&groups[row].Readings[col]); w != "" {
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
