package telemetry

import (
	"math"
	"math/rand/v2"
	"testing"

	"tidegate/internal/clock"
)

// thinRun makes n batches of one second, each with rows groups of three
// points: a number, a float, a text. value gives the number.
func thinRun(t *testing.T, start int64, n, rows int, value func(i int) int64) [][]byte {
	t.Helper()
	var run [][]byte
	for i := range n {
		b := Batch{Catalog: "0badcafe", Boot: 3, Synced: true}
		for k := range rows {
			at := start + int64(i*1000+k*1000/rows)
			v := value(i*rows + k)
			b.Groups = append(b.Groups, Group{At: clock.Stamp{Wall: at, Mono: at - 777, Boot: 3, Synced: true}, Readings: []Reading{
				{Point: 5, Value: IntValue(v, 1)}, {Point: 6, Value: Float32Value(float32(v) / 4)}, {Point: 7, Value: TextValue("on")}}})
		}
		raw, err := AppendBatch(nil, &b)
		if err != nil {
			t.Fatal(err)
		}
		run = append(run, raw)
	}
	return run
}

// TestThinAgainstAllReadings compares what is kept with the lowest, highest
// and last of all readings, for random walks.
func TestThinAgainstAllReadings(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 50 {
		var all []int64
		x := int64(2300)
		start := int64(1_764_000_000_000) // a full minute
		rows := 1 + rng.IntN(20)
		run := thinRun(t, start, 60, rows, func(int) int64 { x += rng.Int64N(21) - 10; all = append(all, x); return x })
		raw, count, from, to, n := Thin(run)
		if n != 60 || raw == nil {
			t.Fatalf("%d of 60 batches became one", n)
		}
		var b Batch
		if err := DecodeBatch(raw, &b); err != nil {
			t.Fatal(err)
		}
		low, high := all[0], all[0]
		for _, v := range all {
			low, high = min(low, v), max(high, v)
		}
		want := map[Cause]int64{CauseMin: low, CauseMax: high, CauseLast: all[len(all)-1]}
		if len(b.Groups) != 3 || count != 7 { // the text has only a last
			t.Fatalf("%d groups, %d readings", len(b.Groups), count)
		}
		for _, g := range b.Groups {
			for _, r := range g.Readings {
				if r.Quality != Thinned {
					t.Errorf("quality %s", r.Quality)
				}
				if r.Point == 5 && r.Value != IntValue(want[r.Cause], 1) {
					t.Errorf("%s is %s, want %d", r.Cause, r.Value, want[r.Cause])
				}
				if r.Point == 6 && r.Value != Float32Value(float32(want[r.Cause])/4) {
					t.Errorf("%s is %s, want %d/4", r.Cause, r.Value, want[r.Cause])
				}
			}
			at := start
			if g.Readings[0].Cause == CauseLast {
				at = start + 59_000 + int64((rows-1)*1000/rows)
			}
			if g.At != (clock.Stamp{Wall: at, Mono: at - 777, Boot: 3, Synced: true}) {
				t.Errorf("%s at %+v, want %d", g.Readings[0].Cause, g.At, at)
			}
		}
		if from != start || to != start+59_000+int64((rows-1)*1000/rows) {
			t.Errorf("span %d..%d", from, to)
		}
	}
}

// TestThinEnds: a batch ends after the tenth minute, and where clock, boot or catalog
// change; what would not get smaller stays.
func TestThinEnds(t *testing.T) {
	count := func(i int) int64 { return int64(i) }
	start := int64(1_764_000_000_000)
	if raw, _, _, _, n := Thin(thinRun(t, start+30_000, 900, 4, count)); n != 570 {
		t.Errorf("a run from the half minute: %d batches, want 570", n)
	} else {
		var b Batch
		if err := DecodeBatch(raw, &b); err != nil || len(b.Groups) != 30 {
			t.Errorf("%d groups for ten minutes, %v", len(b.Groups), err)
		}
	}
	other := thinRun(t, start, 10, 4, count)
	var b Batch
	if err := DecodeBatch(other[5], &b); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Batch){
		"catalog": func(b *Batch) { b.Catalog = "deadbeef" },
		"boot":    func(b *Batch) { b.Boot++ },
		"synced":  func(b *Batch) { b.Synced = false },
		"clock": func(b *Batch) {
			for i := range b.Groups {
				b.Groups[i].At.Mono += 5000
			}
		},
	} {
		c := b
		c.Groups = append([]Group(nil), b.Groups...)
		change(&c)
		raw, err := AppendBatch(nil, &c)
		if err != nil {
			t.Fatal(err)
		}
		run := append([][]byte(nil), other...)
		run[5] = raw
		if _, _, _, _, n := Thin(run); n != 5 {
			t.Errorf("another %s at batch 5: %d batches became one", name, n)
		}
	}
	if raw, _, _, _, n := Thin(thinRun(t, start, 1, 3, count)); n != 0 || raw != nil {
		t.Errorf("three readings of a minute became %d bytes", len(raw))
	}
	if _, _, _, _, n := Thin([][]byte{[]byte("no batch")}); n != 0 {
		t.Error("thinned what is no batch")
	}
}

// TestThinKeepsWhatIsNotGood: a last reading without a value keeps its
// reason, and neither it nor an implausible one is a lowest or a highest.
func TestThinKeepsWhatIsNotGood(t *testing.T) {
	start := int64(1_764_000_000_000)
	b := Batch{Catalog: "0badcafe", Boot: 3}
	for i := range 40 {
		r := Reading{Point: 1, Value: IntValue(int64(100+i), 0)}
		f := Reading{Point: 2, Value: Float64Value(math.NaN())}
		switch {
		case i == 39:
			r = Reading{Point: 1, Quality: Comm, Cause: CauseTimeout}
		case i == 10:
			r = Reading{Point: 1, Value: IntValue(-5, 0), Quality: Range}
		}
		at := start + int64(i)*1000
		b.Groups = append(b.Groups, Group{At: clock.Stamp{Wall: at, Mono: at, Boot: 3}, Readings: []Reading{r, f}})
	}
	raw, err := AppendBatch(nil, &b)
	if err != nil {
		t.Fatal(err)
	}
	out, _, _, _, n := Thin([][]byte{raw})
	if n != 1 {
		t.Fatalf("n = %d", n)
	}
	var got Batch
	if err := DecodeBatch(out, &got); err != nil {
		t.Fatal(err)
	}
	seen := map[Cause]Reading{}
	for _, g := range got.Groups {
		for _, r := range g.Readings {
			if r.Point == 1 {
				seen[r.Cause] = r
			} else if r.Cause == CauseMin || r.Cause == CauseMax {
				t.Errorf("a NaN is the %s", r.Cause)
			}
		}
	}
	if seen[CauseMin].Value != IntValue(100, 0) || seen[CauseMax].Value != IntValue(138, 0) || seen[CauseTimeout].Quality != Comm {
		t.Errorf("kept %+v", seen)
	}
}
