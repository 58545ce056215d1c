package telemetry

import "slices"

// thinWindow is how much time one set of min, max and last stands for, ms.
const thinWindow = 60_000

// thinJoin is over how many minutes batches are joined: few large batches
// take less room than many small ones.
const thinJoin = 10

// thinDrift is by how much the offset of wall clock to uptime may differ
// between batches that become one, ms: the stored form has one offset.
const thinDrift = 20

// Thin makes one batch of the first n of a run of stored batches in the order
// of their numbers: of each point and minute of the wall clock it keeps the
// lowest, the highest and the last reading and throws the others away. What
// it keeps has quality Thinned and a cause that says which; the lowest and
// the highest bear the time of the first reading of the minute, the last its
// own. A last reading that is not Good stays as it is. A minute of a device
// with three readings or fewer is kept whole. Up to ten minutes become one batch.
//
// count is the number of readings kept, from and to the span of their stamps
// (Unix ms). n is 0 when nothing would be saved, or the first batch is no
// batch: it is to be kept as it is.
func Thin(run [][]byte) (thinned []byte, count int, from, to int64, n int) {
	var t thinner
	var b Batch
	before := 0
	for _, src := range run {
		if DecodeBatch(src, &b) != nil || len(b.Groups) == 0 || !t.add(&b) {
			break
		}
		before += len(src)
		n++
	}
	if n == 0 {
		return nil, 0, 0, 0, 0
	}
	out := t.batch()
	for i := range out.Groups {
		at := out.Groups[i].At.Wall
		if i == 0 {
			from, to = at, at
		}
		count, from, to = count+len(out.Groups[i].Readings), min(from, at), max(to, at)
	}
	thinned, err := AppendBatch(nil, out)
	if err != nil || len(thinned) >= before {
		return nil, 0, 0, 0, 0
	}
	return thinned, count, from, to, n
}

// thinner collects readings by minute and set of points.
type thinner struct {
	head   Batch // catalog, boot, synced
	offset int64 // wall - uptime
	minute int64 // of the first group
	tables []*thinTable
	byKey  map[thinKey][]*thinTable
}

type thinKey struct {
	minute int64
	first  uint32
}

// thinTable is one minute of groups with the same points.
type thinTable struct {
	groups         []Group // the first three, copied
	n              int     // of all
	first, last    Group   // first: its stamp only
	lowest, higher []Reading
}

// add takes a batch in; false when it cannot be told in the same batch as
// those before it, or begins too late for it.
func (t *thinner) add(b *Batch) bool {
	at := b.Groups[0].At
	minute := floorDiv(at.Wall, thinWindow)
	if t.byKey == nil {
		t.head = Batch{Catalog: b.Catalog, Boot: b.Boot, Synced: b.Synced}
		t.offset, t.minute, t.byKey = at.Wall-at.Mono, minute, map[thinKey][]*thinTable{}
	}
	if d := at.Wall - at.Mono - t.offset; b.Catalog != t.head.Catalog || b.Boot != t.head.Boot || b.Synced != t.head.Synced ||
		minute < t.minute || minute >= t.minute+thinJoin || d > thinDrift || d < -thinDrift {
		return false
	}
	for i := range b.Groups {
		t.group(&b.Groups[i])
	}
	return true
}

func (t *thinner) group(g *Group) {
	if len(g.Readings) == 0 {
		return
	}
	key := thinKey{floorDiv(g.At.Wall, thinWindow), g.Readings[0].Point}
	var tab *thinTable
	for _, c := range t.byKey[key] {
		if samePoints(c.last.Readings, g.Readings) {
			tab = c
		}
	}
	if tab == nil {
		tab = &thinTable{first: Group{At: g.At}, lowest: make([]Reading, len(g.Readings)), higher: make([]Reading, len(g.Readings))}
		t.byKey[key] = append(t.byKey[key], tab)
		t.tables = append(t.tables, tab)
	}
	tab.n++
	if len(tab.groups) < 3 {
		tab.groups = append(tab.groups, Group{At: g.At, Readings: slices.Clone(g.Readings)})
	}
	tab.last = Group{At: g.At, Readings: append(tab.last.Readings[:0], g.Readings...)}
	for i := range g.Readings {
		r := &g.Readings[i]
		if r.Quality != Good && r.Quality != Thinned || !r.Value.ordered() {
			continue
		}
		if low := &tab.lowest[i]; low.Value.kind == None || less(r.Value, low.Value) {
			*low = Reading{Point: r.Point, Value: r.Value, Quality: Thinned, Cause: CauseMin}
		}
		if high := &tab.higher[i]; high.Value.kind == None || less(high.Value, r.Value) {
			*high = Reading{Point: r.Point, Value: r.Value, Quality: Thinned, Cause: CauseMax}
		}
	}
}

// batch returns what is kept.
func (t *thinner) batch() *Batch {
	b := t.head
	for _, tab := range t.tables {
		if tab.n <= 3 {
			b.Groups = append(b.Groups, tab.groups...)
			continue
		}
		for _, row := range [][]Reading{tab.lowest, tab.higher} {
			row = slices.DeleteFunc(slices.Clone(row), func(r Reading) bool { return r.Value.kind == None })
			if len(row) > 0 {
				b.Groups = append(b.Groups, Group{At: tab.first.At, Readings: row})
			}
		}
		last := slices.Clone(tab.last.Readings)
		for i := range last {
			if last[i].Quality == Good {
				last[i].Quality, last[i].Cause = Thinned, CauseLast
			}
		}
		b.Groups = append(b.Groups, Group{At: tab.last.At, Readings: last})
	}
	return &b
}

// ordered says whether a value has a place among others: no text, no NaN, no
// infinity.
func (v Value) ordered() bool {
	switch v.kind {
	case None, Text:
		return false
	case Float32, Float64:
		f := v.Float()
		return f-f == 0
	}
	return true
}

// less compares two values that are ordered.
func less(a, b Value) bool {
	if a.kind == b.kind && a.dec == b.dec {
		switch a.kind {
		case Int:
			return int64(a.num) < int64(b.num)
		case Uint, Bool:
			return a.num < b.num
		}
	}
	return a.Float() < b.Float()
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
