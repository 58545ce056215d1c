package telemetry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"tidegate/internal/clock"
	"tidegate/internal/trial"
)

// TestMerge: rows come into order whatever the runs, those of one instant in the
// order in which they came, and a merge ends: where the runs are no runs, with an
// error.
func TestMerge(t *testing.T) {
	refused := 0
	trial.Run(t, func(t *trial.T) {
		var rows []rowKey
		var runs []int
		for range t.Int(1, 9) {
			runs = append(runs, len(rows))
			at := int64(t.Int(0, 20))
			for range t.Int(1, 9) {
				rows = append(rows, rowKey{t: at, table: int32(len(runs)), row: int32(len(rows))})
				at += int64(t.Int(0, 5))
			}
		}
		want := slices.Clone(rows)
		slices.SortStableFunc(want, func(a, b rowKey) int { return int(a.t - b.t) })
		got, free, err := merge(slices.Clone(rows), nil, slices.Clone(runs))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v of runs at %v become %v, %v", rows, runs, got, err)
		}
		if len(got) > 1 && len(runs) > 1 && &got[0] == &append(free, rowKey{})[0] {
			t.Fatal("the free memory is that of the rows")
		}
		k := t.Int(0, len(runs)-1) // one that is none
		lie := slices.Delete(slices.Clone(runs), k, k+1)
		if len(lie) == 0 || k == 0 {
			lie = []int{0}
		}
		if got, _, err = merge(slices.Clone(rows), nil, lie); err != nil && !errors.Is(err, ErrBatch) {
			t.Fatal(err)
		} else if err != nil {
			refused++
		} else if !slices.Equal(got, want) {
			t.Fatalf("%v of runs at %v become %v, and that is no error", rows, lie, got)
		}
	})
	if refused == 0 {
		t.Error("no run that is none was refused")
	}
}

// TestTimesRunOver: where the times of a table run over the largest, its rows
// still come in order.
func TestTimesRunOver(t *testing.T) {
	raw := []byte{batchVersion, 1, 2, 3, 4, 0, 1, 0, 0, 1} // a table, from 0 on
	raw = append(raw, 1, 0, 0, 3)                          // of a column and three rows
	for _, step := range []int64{math.MaxInt64, 1, 0} {    // the largest, the smallest, two more
		raw = binary.AppendVarint(raw, step)
	}
	raw = append(raw, 0, 1, formInt, 0, 0, 2, 2) // no marks; 0, 1, 2
	var got Tables
	if err := got.Decode(raw); err != nil {
		t.Fatal(err)
	}
	x := got.Table(0)
	for row, want := range []int64{math.MinInt64, math.MinInt64 + 1, math.MaxInt64} {
		if at := x.At(row).Wall; at != want {
			t.Errorf("row %d is at %d, want %d", row, at, want)
		}
		if v := x.Reading(row, 0).Value.Mantissa(); v != int64(row+1)%3 {
			t.Errorf("row %d is %d", row, v)
		}
	}
	if got.At(0) != x.At(0) || got.At(2) != x.At(2) {
		t.Error("the groups are in another order")
	}
}

// TestShared: devices of one kind that were read a few times share tables, and
// every reading comes back to the point that it is of; others share none.
func TestShared(t *testing.T) {
	shared, alone := 0, 0
	b := Batch{Catalog: "0badcafe", Boot: 1} // one for all, as the collector has
	trial.Run(t, func(t *trial.T) {
		b.Groups = nil
		rows, cols, kinds, devices := t.Int(1, packFrom), t.Int(1, 5), t.Int(1, 3), t.Int(1, 12)
		list := t.Bool()
		want := map[string]int{}
		for row := range rows {
			for k := range devices {
				g := Group{At: clock.Stamp{Wall: int64(1000*row + 10*t.Int(0, 9)), Boot: 1}, Readings: make([]Reading, cols)}
				for c := range g.Readings {
					r := &g.Readings[c]
					if r.Point = uint32(100*k + c); list {
						r.Point = uint32(100*(devices-k) + c*c)
					}
					switch r.Value = UintValue(uint64(100*row+k+t.Int(0, 9)), 1); {
					case t.Int(0, 5) == 0:
						r.Value, r.Quality, r.Cause = Value{}, Comm, CauseTimeout
					case c == cols-1 && k%kinds == 1:
						r.Value = TextValue(trial.Pick(t, "on", "off"))
					case c == cols-1 && k%kinds == 2:
						r.Value = BoolValue(t.Bool())
					case t.Int(0, 30) == 0:
						r.Value = IntValue(-5, 2)
					}
				}
				want[fmt.Sprint(g)]++
				b.Groups = append(b.Groups, g)
			}
		}
		raw, err := AppendBatch(nil, &b)
		if err != nil {
			t.Fatal(err)
		}
		var got Batch
		if err := DecodeBatch(raw, &got); err != nil {
			t.Fatal(err)
		}
		if got.tables.Count() > devices {
			t.Fatalf("%d devices become %d tables", devices, got.tables.Count())
		}
		if n := tablesOf(t, raw); n < got.tables.Count() {
			if shared++; rows >= packFrom {
				t.Fatalf("devices with %d rows each share a table", rows)
			}
		} else {
			alone++
		}
		for _, g := range got.Groups {
			if g.At.Mono = 0; want[fmt.Sprint(g)] == 0 {
				t.Fatalf("%+v was never written", g)
			}
			want[fmt.Sprint(g)]--
		}
		if len(got.Groups) != len(b.Groups) {
			t.Fatalf("%d groups, want %d", len(got.Groups), len(b.Groups))
		}
		sameCells(t, raw)
		noneCut(t, raw)
	})
	t.Logf("%d batches with shared tables, %d without", shared, alone)
	if shared == 0 || alone == 0 {
		t.Error("none of either")
	}
}

// tablesOf reads how many tables a stored batch announces.
func tablesOf(t *trial.T, raw []byte) int {
	d := decoder{src: raw, at: 1 + hashLen + 1, t: &Tables{}}
	d.uvarint() // boot
	d.varint()  // t0
	d.varint()  // offset
	n := int(d.uvarint())
	if d.err != nil {
		t.Fatal(d.err)
	}
	return n
}

// TestSharedRefused: numbers that no point has, and more devices or rows than a
// batch can hold, are no batch.
func TestSharedRefused(t *testing.T) {
	for _, x := range []struct {
		what  string
		table []byte // columns, first, list, devices, rows
		sound bool
	}{
		{"two devices", []byte{1, 0, further, 1, 20, 1}, true},
		{"a number below 0", []byte{1, 0, further, 1, 1, 1}, false},
		{"a number above the last", append(binary.AppendVarint([]byte{1, 0, further, 1}, math.MaxUint32+1), 1), false},
		{"the last number", append(binary.AppendVarint([]byte{1, 0, further, 1}, math.MaxUint32), 1), true},
		{"more devices than bytes", []byte{1, 0, further, 100, 20, 1}, false},
		{"more columns than cells", append(binary.AppendUvarint(nil, maxCells/2+1), 0, further, 1, 20, 1), false},
		{"a list of another form", []byte{1, 0, 4 | further, 1, 20, 1}, false},
		{"no rows", []byte{1, 0, further, 1, 20, 0}, false},
	} {
		raw := append([]byte{batchVersion, 1, 2, 3, 4, 0, 1, 0, 0, 1}, x.table...)
		raw = append(raw, 0, 0, 0, 1, formInt, 0, 2, 4) // times, no marks, two cells
		var got Tables
		if err := got.Decode(raw); (err == nil) != x.sound || err != nil && !errors.Is(err, ErrBatch) || cap(got.points) > maxCells {
			t.Errorf("%s: %v, memory for %d points", x.what, err, cap(got.points))
		} else if err == nil && (got.Count() != 2 || got.Readings() != 2 || got.Table(1).Points[0] == 0 || got.Table(1).nums[0] != 3) {
			t.Errorf("%s: %+v", x.what, got)
		}
	}
}

// TestSharedDistances: points whose numbers lie at other distances share no
// table, though their numbers run over where 32 bits end.
func TestSharedDistances(t *testing.T) {
	b := Batch{Catalog: "0badcafe", Groups: []Group{
		{Readings: []Reading{{Point: math.MaxUint32, Value: IntValue(1, 0)}, {Point: 0, Value: IntValue(2, 0)}}},
		{Readings: []Reading{{Point: 0, Value: IntValue(3, 0)}, {Point: 1, Value: IntValue(4, 0)}}},
	}}
	raw, err := AppendBatch(nil, &b)
	if err != nil {
		t.Fatal(err)
	}
	var got Batch
	if err := DecodeBatch(raw, &got); err != nil || !sameReadings(got.Groups[0].Readings, b.Groups[0].Readings) || !sameReadings(got.Groups[1].Readings, b.Groups[1].Readings) {
		t.Errorf("%+v, %v", got.Groups, err)
	}
}
