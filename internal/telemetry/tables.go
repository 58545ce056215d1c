package telemetry

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"tidegate/internal/clock"
)

// Tables is a batch as it is read back: the tables of its stored form, in
// order of their first time, their values still in columns. A reading takes
// eight bytes here and forty in a Batch. What Table, Group and Stored return
// is valid until the next Decode.
type Tables struct {
	Catalog string // Catalog.Hash of the points' catalog
	Boot    uint32
	Synced  bool

	stored  []byte
	offset  int64 // wall - uptime of all stamps, ms
	highest uint32
	heads   []head
	order   []rowKey // all rows in time order
	merged  []rowKey // scratch of it
	runs    []int    // likewise
	group   Group    // scratch of Group

	// The tables one after the other; a head says where each begins.
	points  []uint32
	columns []column
	times   []int64
	nums    []uint64 // cells, by columns: a mantissa, bits, or an index of values
	marks   []mark   // of tables that have any, beside their cells
	values  []Value  // texts, and cells of columns that mix kinds

	wereNums  []uint64 // scratch of part
	wereMarks []mark
}

// head is where a table begins, and how large it is.
type head struct {
	col, cols int // in points and columns
	row, rows int // in times
	cell      int // in nums
	mark      int // in marks; -1: every cell is good
}

// column says how the cells of a column are held.
type column struct {
	kind Kind
	dec  uint8
}

// kept is the kind of a column whose cells are indexes of Tables.values.
const kept = Text + 1

// empty tells whether the cell has no value.
func (m mark) empty() bool { return m.quality&0x80 != 0 }

type rowKey struct {
	t          int64
	table, row int32
}

func (t *Tables) empty() {
	t.stored, t.highest, t.heads, t.order = nil, 0, t.heads[:0], t.order[:0]
	t.points, t.columns, t.times, t.nums, t.marks = t.points[:0], t.columns[:0], t.times[:0], t.nums[:0], t.marks[:0]
	clear(t.values)
	t.values = t.values[:0]
}

// Stored returns the bytes that Decode read; they are its caller's.
func (t *Tables) Stored() []byte { return t.stored }

// Readings returns how many readings there are.
func (t *Tables) Readings() int { return len(t.nums) }

// Highest returns the highest point number.
func (t *Tables) Highest() uint32 { return t.highest }

// Len returns how many groups there are: the rows of all tables.
func (t *Tables) Len() int { return len(t.times) }

// Span returns the stamps of the first and the last group.
func (t *Tables) Span() (first, last clock.Stamp) {
	if len(t.times) == 0 {
		return first, last
	}
	from, to := t.times[0], t.times[0]
	for _, at := range t.times {
		from, to = min(from, at), max(to, at)
	}
	return t.stamp(from), t.stamp(to)
}

func (t *Tables) stamp(wall int64) clock.Stamp {
	return clock.Stamp{Wall: wall, Mono: wall - t.offset, Boot: t.Boot, Synced: t.Synced}
}

// sort brings the tables, and the rows of each, in order of time; those of one
// instant stay as they come.
func (t *Tables) sort() {
	for i := range t.heads {
		if h := &t.heads[i]; !slices.IsSorted(t.times[h.row:][:h.rows]) {
			t.sortRows(h)
		}
	}
	slices.SortStableFunc(t.heads, func(a, b head) int { return cmp.Compare(t.times[a.row], t.times[b.row]) })
}

// sortRows is for what meters tell afterwards: that is rare.
func (t *Tables) sortRows(h *head) {
	times := t.times[h.row:][:h.rows]
	from := make([]int, h.rows) // which row each was
	for i := range from {
		from[i] = i
	}
	slices.SortStableFunc(from, func(a, b int) int { return cmp.Compare(times[a], times[b]) })
	permute(times, from)
	for c := range h.cols {
		permute(t.nums[h.cell+c*h.rows:], from)
		if h.mark >= 0 {
			permute(t.marks[h.mark+c*h.rows:], from)
		}
	}
}

// part gives each of the devices that share a table one of its own.
func (t *Tables) part(h head, devices int) {
	whole, columns := h, t.columns[h.col:]
	h.rows /= devices
	for range devices {
		t.heads = append(t.heads, h)
		t.columns = append(t.columns, columns...)
		h.col, h.row, h.cell = h.col+h.cols, h.row+h.rows, h.cell+h.cols*h.rows
		if h.mark >= 0 {
			h.mark += h.cols * h.rows
		}
	}
	t.columns = t.columns[:h.col]
	regroup(t.nums[whole.cell:], &t.wereNums, whole, devices)
	if whole.mark >= 0 {
		regroup(t.marks[whole.mark:], &t.wereMarks, whole, devices)
	}
}

// regroup brings cells that stand by columns of all devices into those of each.
func regroup[T any](cells []T, scratch *[]T, h head, devices int) {
	was := append((*scratch)[:0], cells...)
	*scratch = was
	each := h.rows / devices
	for c := range h.cols {
		for k := range devices {
			copy(cells[(k*h.cols+c)*each:][:each], was)
			was = was[each:]
		}
	}
}

func permute[T any](s []T, from []int) {
	was := slices.Clone(s[:len(from)])
	for i, k := range from {
		s[i] = was[k]
	}
}

// At returns the stamp of a group, counted in time order from 0.
func (t *Tables) At(i int) clock.Stamp { return t.stamp(t.order[i].t) }

// Group returns a group, counted in time order from 0. It is valid until the
// next call.
func (t *Tables) Group(i int) *Group {
	t.group.At = t.At(i)
	t.group.Readings = t.appendGroup(t.group.Readings[:0], i)
	return &t.group
}

// First returns the point number of the first reading of a group.
func (t *Tables) First(i int) uint32 { return t.points[t.heads[t.order[i].table].col] }

func (t *Tables) appendGroup(dst []Reading, i int) []Reading {
	x, row := t.Row(i)
	n := len(dst)
	dst = slices.Grow(dst, len(x.Points))[:n+len(x.Points)]
	for c := range x.Points {
		x.read(&dst[n+c], row, c)
	}
	return dst
}

// Row returns the table of a group, counted in time order from 0, and which
// of its rows the group is.
func (t *Tables) Row(i int) (x Table, row int) {
	k := t.order[i]
	return t.Table(int(k.table)), int(k.row)
}

// arrange brings all rows into time order; those of one instant as the tables
// and their rows come.
func (t *Tables) arrange() (err error) {
	t.order, t.runs = t.order[:0], t.runs[:0]
	for i := range t.heads {
		h := &t.heads[i]
		for k, at := range t.times[h.row:][:h.rows] {
			if n := len(t.order); n == 0 || at < t.order[n-1].t {
				t.runs = append(t.runs, n)
			}
			t.order = append(t.order, rowKey{at, int32(i), int32(k)})
		}
	}
	if len(t.runs) > 1 {
		t.order, t.merged, err = merge(t.order, t.merged, t.runs)
	}
	return err
}

// merge brings rows into order, of which runs says where each run that is in
// order begins. A round leaves half of the runs, and there are as many rounds as
// that takes: what is not in order then is an error, where waiting for the order
// could last for ever. It uses the memory of rows and of other, which it gives
// back, and that of runs.
func merge(rows, other []rowKey, runs []int) (sorted, free []rowKey, err error) {
	n := len(rows)
	for range bits.Len(uint(len(runs) - 1)) {
		out, left := other[:0], runs[:0]
		for i := 0; i < len(runs); i += 2 {
			from, mid, to := runs[i], n, n
			if i+1 < len(runs) {
				mid = runs[i+1]
			}
			if i+2 < len(runs) {
				to = runs[i+2]
			}
			left = append(left, from)
			a, b := rows[from:mid], rows[mid:to]
			for range to - from {
				if len(a) == 0 || len(b) > 0 && b[0].t < a[0].t {
					out, b = append(out, b[0]), b[1:]
				} else {
					out, a = append(out, a[0]), a[1:]
				}
			}
		}
		rows, other, runs = out, rows, left
	}
	if len(rows) != n || !slices.IsSortedFunc(rows, func(a, b rowKey) int { return cmp.Compare(a.t, b.t) }) {
		return rows, other, fmt.Errorf("%w: its %d rows do not come into order", ErrBatch, n)
	}
	return rows, other, nil
}

// Count returns how many tables there are.
func (t *Tables) Count() int { return len(t.heads) }

// Table returns a table.
func (t *Tables) Table(i int) Table {
	h := &t.heads[i]
	x := Table{Points: t.points[h.col:][:h.cols], of: t, rows: h.rows, columns: t.columns[h.col:][:h.cols],
		times: t.times[h.row:][:h.rows], nums: t.nums[h.cell:][:h.rows*h.cols]}
	if h.mark >= 0 {
		x.marks = t.marks[h.mark:][:len(x.nums)]
	}
	return x
}

// Table is what the groups with the same points say: a column for each point,
// a row for each group, in time order.
type Table struct {
	Points []uint32 // the number of each column's point

	of      *Tables
	rows    int
	columns []column
	times   []int64
	nums    []uint64
	marks   []mark // nil: every cell is good
}

// Rows returns how many rows the table has.
func (x *Table) Rows() int { return x.rows }

// At returns the stamp of a row.
func (x *Table) At(row int) clock.Stamp { return x.of.stamp(x.times[row]) }

// Reading returns a cell.
func (x *Table) Reading(row, col int) (r Reading) {
	x.read(&r, row, col)
	return r
}

func (x *Table) read(r *Reading, row, col int) {
	k, c := col*x.rows+row, x.columns[col]
	*r = Reading{Point: x.Points[col], Value: Value{num: x.nums[k], kind: c.kind, dec: c.dec}}
	var m mark
	if x.marks != nil {
		m = x.marks[k]
		r.Quality, r.Cause = Quality(m.quality&0x7F), m.cause
	}
	if m.empty() {
		r.Value = Value{}
	} else if c.kind == kept {
		r.Value = x.of.values[x.nums[k]]
	}
}

// AppendValue appends the value of a cell as Value.AppendJSON writes it. ok
// is false, and dst as it was, if the cell is not good or JSON cannot write
// it: then its reading must be looked at.
func (x *Table) AppendValue(dst []byte, row, col int) (out []byte, ok bool) {
	k := col*x.rows + row
	if x.marks != nil && x.marks[k] != (mark{}) {
		return dst, false
	}
	c, n := x.columns[col], x.nums[k]
	switch c.kind {
	case Int:
		return appendInt(dst, int64(n), int(c.dec)), true
	case Float32:
		return appendFinite(dst, float64(math.Float32frombits(uint32(n))), 32)
	case Float64:
		return appendFinite(dst, math.Float64frombits(n), 64)
	case kept:
		v := &x.of.values[n]
		if v.kind == Float32 || v.kind == Float64 {
			return appendFinite(dst, v.Float(), 32*int(v.kind-Float32+1))
		}
		return v.AppendJSON(dst), true
	}
	return Value{num: n, kind: c.kind, dec: c.dec}.AppendJSON(dst), true
}

// appendFinite refuses what JSON cannot write.
func appendFinite(dst []byte, f float64, bits int) ([]byte, bool) {
	if f-f != 0 {
		return dst, false
	}
	return appendFloat(dst, f, bits), true
}

// AppendColumn appends the values of a column, each as AppendValue does and
// with a comma behind it. ok is false, and dst as it was, if it is for one of
// the cells.
func (x *Table) AppendColumn(dst []byte, col int) (out []byte, ok bool) {
	if c := x.columns[col]; c.kind == Int && x.marks == nil {
		return appendInts(dst, x.nums[col*x.rows:][:x.rows], int(c.dec)), true
	}
	out = dst
	for row := range x.rows {
		if out, ok = x.AppendValue(out, row, col); !ok {
			return dst, false
		}
		out = append(out, ',')
	}
	return out, true
}
