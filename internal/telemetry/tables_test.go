package telemetry

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"

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
