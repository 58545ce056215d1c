package telemetry

import (
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"tidegate/internal/clock"
	"tidegate/internal/trial"
)

// series draws the numbers of a column: mantissas, or the bits of floats.
func series(t *trial.T, kind Kind, n int) []uint64 {
	way := t.Int(0, 6)
	x, step := t.Word()>>t.Int(0, 63), uint64(t.Int(-9, 9))<<t.Int(0, 60)
	spread := t.Int(0, 63)
	dec := math.Pow10(t.Int(0, 7))
	out := make([]uint64, n)
	for i := range out {
		noise := uint64(int64(t.Word()) >> spread)
		switch way {
		case 0: // the same again and again
		case 1: // to and fro
			x += noise
		case 2: // a counter
			x += step + noise>>60
		case 3: // seldom, and then far
			if t.Int(0, 9) == 0 {
				x += noise
			}
		case 4:
			x = t.Word()
		case 5: // decimal numbers
			x = math.Float64bits(math.Round(float64(int16(noise))+float64(int16(x))) / dec)
		case 6:
			x = math.Float64bits(genFloat(t))
		}
		v := x
		if kind == Float32 && way >= 5 {
			v = uint64(math.Float32bits(float32(math.Float64frombits(x))))
		} else if kind == Float32 {
			v &= math.MaxUint32
		}
		out[i] = v
	}
	return out
}

// TestPackedColumns: whatever numbers a column holds, in whatever company,
// every bit of them comes back.
func TestPackedColumns(t *testing.T) {
	packed, decimals := 0, 0
	trial.Run(t, func(t *trial.T) {
		rows, cols := t.Int(1, 40), t.Int(1, 5)
		b := Batch{Catalog: "0badcafe", Boot: 1}
		for i := range rows {
			b.Groups = append(b.Groups, Group{At: clock.Stamp{Wall: int64(i), Boot: 1}, Readings: make([]Reading, cols)})
		}
		for c := range cols {
			kind := trial.Pick(t, Int, Uint, Float32, Float64)
			dec := uint8(0)
			if kind == Int || kind == Uint {
				dec = uint8(t.Int(0, MaxDecimals))
			}
			gaps := t.Int(0, 3) == 0
			for i, x := range series(t, kind, rows) {
				r := &b.Groups[i].Readings[c]
				r.Point = uint32(c)
				if gaps && t.Int(0, 3) == 0 {
					r.Quality, r.Cause = Comm, CauseTimeout
				} else {
					r.Value = Value{kind: kind, num: x, dec: dec}
				}
			}
		}
		raw, err := AppendBatch(nil, &b)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range b.plans {
			if p.form >= formPackedInt {
				packed++
				if p.form >= formPackedF32 && p.dec != packBits {
					decimals++
				}
			}
		}
		var got Batch
		if err := DecodeBatch(raw, &got); err != nil {
			t.Fatal(err)
		}
		for i, g := range got.Groups {
			if !sameReadings(g.Readings, b.Groups[i].Readings) {
				t.Fatalf("row %d is %+v, want %+v", i, g.Readings, b.Groups[i].Readings)
			}
		}
		sameCells(t, raw)
		noneCut(t, raw)
	})
	t.Logf("%d columns packed, %d of them as decimal floats", packed, decimals)
	if packed == 0 || decimals == 0 {
		t.Error("none of either")
	}
}

// noneCut: what is left of a batch that was cut is never a batch, and never a
// panic.
func noneCut(t *trial.T, raw []byte) {
	var got Tables
	for cut := range raw {
		if got.Decode(raw[:cut]) == nil {
			t.Fatalf("a batch cut to %d of %d bytes is read", cut, len(raw))
		}
	}
}

// TestPackedRefused: decimals that no value has and floats of more than 32 bits
// are no batch.
func TestPackedRefused(t *testing.T) {
	for _, x := range []struct {
		form, dec byte
		first     uint64
		sound     bool
	}{
		{formPackedInt, MaxDecimals, 5, true}, {formPackedInt, MaxDecimals + 1, 5, false}, {formPackedUint, packBits, 5, false},
		{formPackedF32, packBits, 5, true}, {formPackedF32, packBits - 1, 5, false}, {formPackedF64, MaxDecimals + 1, 5, false},
		{formPackedF32, packBits, 1 << 33, false}, {formPackedF64, packBits, 1 << 33, true},
	} {
		raw := []byte{batchVersion, 1, 2, 3, 4, 0, 1, 0, 0, 1} // a table
		raw = append(raw, 1, 0, 0, 4, 0, 2, 0, 0, 0)           // of a column and four rows
		raw = binary.AppendUvarint(append(raw, 1, x.form, headDec, x.dec), x.first<<1)
		var got Tables
		if err := got.Decode(append(raw, 0)); (err == nil) != x.sound || err != nil && !errors.Is(err, ErrBatch) {
			t.Errorf("%+v: %v", x, err)
		} else if err == nil && got.Readings() != 4 {
			t.Errorf("%+v: %d readings", x, got.Readings())
		}
	}
}

// TestPackSize: what pack says a column takes is what it takes, and packing is
// chosen where that is less than varints take.
func TestPackSize(t *testing.T) {
	trial.Run(t, func(t *trial.T) {
		kind := trial.Pick(t, Int, Uint, Float32, Float64)
		nums := series(t, kind, t.Int(packFrom, 60))
		p, size := pack(nums)
		if got := 8 * len(appendPacked(nil, nums, p, 0, 0)); got != size {
			t.Fatalf("%x takes %d bits, pack says %d", nums, got, size)
		}
		b := Batch{Catalog: "0badcafe"}
		rows := make([]int, len(nums))
		for i, x := range nums {
			rows[i] = i
			b.Groups = append(b.Groups, Group{Readings: []Reading{{Value: Value{kind: kind, num: x}}}})
		}
		plain, most := varints(nums, kind, 0)
		if got := b.plan(rows, 0, plain, 0); size+newRun+8 < most && got.form < formPackedInt {
			t.Fatalf("%x takes %d bits packed, %d as varints, and is written as form %d", nums, size, most, got.form)
		} else if size > most && kind <= Uint && got.form >= formPackedInt {
			t.Fatalf("%x takes %d bits packed, %d as varints, and is packed", nums, size, most)
		}
	})
}

// TestPackedBudget holds what usual columns of 20 readings take.
func TestPackedBudget(t *testing.T) {
	drift := func(k int) float64 { return 230 + math.Sin(float64(k*k)) } // to and fro
	for _, c := range []struct {
		name  string
		value func(k int) Value
		most  float64 // bytes a reading
	}{
		{"a voltage of one decimal", func(k int) Value { return IntValue(int64(10*drift(k)), 1) }, 0.9},
		{"the same as a float", func(k int) Value { return Float32Value(float32(math.Floor(10*drift(k)) / 10)) }, 0.9},
		{"a float of all its bits", func(k int) Value { return Float32Value(float32(drift(k))) }, 2.5},
		{"a double of one decimal", func(k int) Value { return Float64Value(math.Floor(10*drift(k)) / 10) }, 0.9},
		{"a counter", func(k int) Value { return IntValue(1_000_000+50*int64(k)+int64(drift(k)), 2) }, 0.6},
		{"what never changes", func(int) Value { return IntValue(50, 0) }, 0.25},
		{"an alarm word", func(k int) Value { return IntValue(int64(k/10<<12), 0) }, 0.5},
	} {
		b := Batch{Catalog: "0badcafe"}
		for k := range 20 {
			b.Groups = append(b.Groups, Group{At: clock.Stamp{Wall: int64(k)}, Readings: []Reading{{Value: c.value(k)}}})
		}
		raw, err := AppendBatch(nil, &b)
		if err != nil {
			t.Fatal(err)
		}
		none, _ := AppendBatch(nil, &Batch{Catalog: "0badcafe", Groups: b.Groups[:1]})
		per := float64(len(raw)-len(none)-19) / 20 // 19 more times
		t.Logf("%s: %.2f bytes a reading", c.name, per)
		if per > c.most {
			t.Errorf("%s: %.2f bytes a reading, at most %.2f", c.name, per, c.most)
		}
	}
}
