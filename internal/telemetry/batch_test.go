package telemetry

import (
	"encoding/hex"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"tidegate/internal/clock"
	"tidegate/internal/trial"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func genValue(t *trial.T) Value {
	switch Kind(t.Int(0, int(Text))) {
	case Bool:
		return BoolValue(t.Bool())
	case Int:
		return IntValue(int64(t.Word()), uint8(t.Int(0, MaxDecimals)))
	case Uint:
		return UintValue(t.Word(), uint8(t.Int(0, 3)))
	case Float32:
		return Float32Value(float32(genFloat(t)))
	case Float64:
		return Float64Value(genFloat(t))
	case Text:
		return TextValue(genText(t))
	}
	return Value{}
}

func genFloat(t *trial.T) float64 {
	switch t.Int(0, 2) {
	case 0:
		return float64(int32(t.Word())) / 100
	case 1:
		return trial.Pick(t, 0, math.Copysign(0, -1), math.MaxFloat64, math.SmallestNonzeroFloat64, math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, math.Inf(1), math.Inf(-1))
	}
	if f := math.Float64frombits(t.Word()); f == f {
		return f
	}
	return 0
}

func genText(t *trial.T) string {
	var s []rune
	for range t.Int(0, 5) {
		s = append(s, trial.Pick(t, 'a', 0, '"', 'é', '€', '😀', rune(t.Int(0, 0xD7FF))))
	}
	return string(s)
}

// sameCells: what a table appends is what its readings say, and tables and
// their rows are in order.
func sameCells(t *trial.T, raw []byte) {
	var b Tables
	if err := b.Decode(raw); err != nil {
		t.Fatal(err)
	}
	before := int64(math.MinInt64)
	for i := range b.Count() {
		x := b.Table(i)
		if first := x.At(0).Wall; first < before {
			t.Fatalf("a table from %d on comes behind one from %d on", first, before)
		} else {
			before = first
		}
		for row := 1; row < x.Rows(); row++ {
			if x.At(row).Wall < x.At(row-1).Wall {
				t.Fatalf("rows of a table are not in order of time: %d after %d", x.At(row).Wall, x.At(row-1).Wall)
			}
		}
		for c := range x.Points {
			whole, all := []byte("-"), true
			for row := range x.Rows() {
				r := x.Reading(row, c)
				want := r.Value.AppendJSON([]byte("-"))
				writable := r.Quality == Good && r.Cause == CauseNone && r.Value.Kind() != None && string(want) != "-null"
				got, ok := x.AppendValue([]byte("-"), row, c)
				if ok != writable || ok && string(got) != string(want) || !ok && string(got) != "-" {
					t.Fatalf("%+v is appended as %s, %v, want %s, %v", r, got, ok, want, writable)
				}
				all = all && ok
				whole = append(append(whole, want[1:]...), ',')
			}
			if got, ok := x.AppendColumn([]byte("-"), c); ok != all || ok && string(got) != string(whole) || !ok && string(got) != "-" {
				t.Fatalf("a column is appended as %s, %v, want %s, %v", got, ok, whole, all)
			}
		}
	}
}

// TestBatchRoundTrip: what AppendBatch wrote, DecodeBatch gives back, group
// by group in time order, for any mixture of points, kinds and qualities and
// in whatever order the groups came.
func TestBatchRoundTrip(t *testing.T) {
	trial.Run(t, func(t *trial.T) {
		b := Batch{Catalog: "0badcafe", Boot: uint32(t.Word()), Synced: t.Bool()}
		wall := int64(t.Uint(0, 5e12)) - 1e12
		offset := int64(t.Uint(0, 5e12)) - 1e12
		uniform := t.Bool()
		for range t.Int(1, 20) {
			wall += int64(t.Int(0, 5000))
			g := Group{At: clock.Stamp{Wall: wall, Mono: wall - offset, Boot: b.Boot, Synced: b.Synced}}
			first := uint32(t.Int(0, 3)) * 100
			n := 4
			if !uniform {
				n = t.Int(1, 12)
			}
			for i := range n {
				r := Reading{Point: first + uint32(i)}
				if !uniform {
					r.Point = uint32(t.Word())
				}
				if t.Int(0, 3) == 0 {
					r.Quality = Quality(t.Int(0, 5))
					r.Cause = Cause(uint16(t.Word()))
				}
				if uniform {
					r.Value = IntValue(int64(wall%977)*int64(i), 2)
				} else {
					r.Value = genValue(t)
				}
				g.Readings = append(g.Readings, r)
			}
			b.Groups = append(b.Groups, g)
		}
		mixed := b
		mixed.Groups = slices.Clone(b.Groups)
		if t.Bool() { // as groups come that a meter tells afterwards
			for i := range mixed.Groups {
				k := t.Int(0, i)
				mixed.Groups[i], mixed.Groups[k] = mixed.Groups[k], mixed.Groups[i]
			}
		}
		raw, err := AppendBatch([]byte("x"), &mixed)
		if err != nil {
			t.Fatal(err)
		}
		sameCells(t, raw[1:])
		var got Batch
		if err := DecodeBatch(raw[1:], &got); err != nil {
			t.Fatal(err)
		}
		if got.Catalog != b.Catalog || got.Boot != b.Boot || got.Synced != b.Synced || len(got.Groups) != len(b.Groups) {
			t.Fatalf("head differs: %+v", got)
		}
		// Groups of one instant may change places: compare them as a bag per instant.
		for i := 0; i < len(b.Groups); {
			j := i
			for j < len(b.Groups) && b.Groups[j].At == b.Groups[i].At {
				j++
			}
			left := append([]Group(nil), got.Groups[i:j]...)
		next:
			for _, w := range b.Groups[i:j] {
				for k, g := range left {
					if g.At == w.At && sameReadings(g.Readings, w.Readings) {
						left = append(left[:k], left[k+1:]...)
						continue next
					}
				}
				t.Fatalf("group lost: %+v\nhave %+v", w, left)
			}
			i = j
		}
	})
}

func sameReadings(a, b []Reading) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// drifting is the reference load of the size budgets: mixed kinds that
// change slowly.
func drifting(points, rows int) *Batch {
	r := rand.New(rand.NewPCG(1, 2))
	b := &Batch{Catalog: "00000001", Boot: 1, Synced: true}
	cur := make([]float64, points)
	for i := range cur {
		cur[i] = 200 + 50*r.Float64()
	}
	for row := range rows {
		wall := 1764000000000 + int64(row)*1000 + r.Int64N(5)
		g := Group{At: clock.Stamp{Wall: wall, Mono: wall - 1763000000000, Boot: 1, Synced: true}}
		for i := range cur {
			cur[i] += r.NormFloat64() * 0.2
			v := IntValue(int64(math.Round(cur[i]*10)), 1)
			switch i % 10 {
			case 7:
				v = IntValue(int64(row*3)+100000, 2)
			case 8:
				v = BoolValue(row%50 == 0)
			case 9:
				v = Float32Value(float32(math.Round(cur[i]*100) / 100))
			}
			g.Readings = append(g.Readings, Reading{Point: uint32(i), Value: v})
		}
		b.Groups = append(b.Groups, g)
	}
	return b
}

// fleet is a batch of devices of one kind, each with the same points, which were
// read in turn.
func fleet(devices, points, rows int) *Batch {
	b := drifting(devices*points, rows)
	whole := b.Groups
	b.Groups = nil
	for _, g := range whole {
		for k := range devices {
			at := g.At
			at.Wall, at.Mono = at.Wall+int64(k%4), at.Mono+int64(k%4)
			b.Groups = append(b.Groups, Group{At: at, Readings: g.Readings[k*points:][:points:points]})
		}
	}
	return b
}

// TestBatchSize holds the budgets of the stored form on the reference loads:
// 50 points x 20 samples, and 20 devices of 50 points that were read once, all of
// one kind or of two.
func TestBatchSize(t *testing.T) {
	two := fleet(20, 50, 1)
	for i := 0; i < 20; i += 2 {
		rs := two.Groups[i].Readings
		first := rs[0].Value
		for k := range rs[1:] {
			rs[k].Value = rs[k+1].Value
		}
		rs[49].Value = first
	}
	for _, x := range []struct {
		b    *Batch
		most float64
	}{{drifting(50, 20), 0.7}, {fleet(20, 50, 1), 1.4}, {two, 1.6}} {
		raw, err := AppendBatch(nil, x.b)
		if err != nil {
			t.Fatal(err)
		}
		per := float64(len(raw)) / 1000
		t.Logf("%.2f bytes a reading", per)
		if per > x.most {
			t.Errorf("%.2f bytes a reading, budget %.1f", per, x.most)
		}
	}
}

// TestBatchGolden: stored batches decode for ever. The files were written by
// the version in their name.
func TestBatchGolden(t *testing.T) {
	dir := filepath.Join("..", "..", "testdata", "queue", "batch")
	if *update {
		raw, _ := AppendBatch(nil, sharedBatch())
		if err := os.WriteFile(filepath.Join(dir, "v2-shared.hex"), []byte(hex.EncodeToString(raw)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]*Batch{"v1.hex": goldenBatch(), "v2.hex": packedBatch(), "v2-shared.hex": sharedBatch()} {
		src, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := hex.DecodeString(string(src[:len(src)-1]))
		if err != nil {
			t.Fatal(err)
		}
		var got Batch
		if err := DecodeBatch(raw, &got); err != nil {
			t.Fatal(name, err)
		}
		if !reflect.DeepEqual(got.Groups, want.Groups) {
			t.Errorf("%s: got %+v\nwant %+v", name, got.Groups, want.Groups)
		}
	}
}

// packedBatch has every packed form, with a step, changing decimals, a float's
// bits, a difference in full, and cells that hold no value.
func packedBatch() *Batch {
	b := &Batch{Catalog: "89abcdef", Boot: 3}
	for k := range int64(12) {
		to := k * k % 7 // to and fro
		g := Group{At: clock.Stamp{Wall: 1764000000000 + 1000*k, Mono: 5000 + 1000*k, Boot: 3}, Readings: []Reading{
			{Point: 0, Value: IntValue(2331-to, 1)}, {Point: 1, Value: IntValue(100_000+250*k+to, 3)}, {Point: 2, Value: IntValue(k/11<<40, 0)},
			{Point: 3, Value: UintValue(math.MaxUint64-uint64(to), 2)}, {Point: 4, Value: Float32Value(float32(4998+to) / 100)},
			{Point: 5, Value: Float32Value(float32(230 + 1/float64(3+to)))}, {Point: 6, Value: Float64Value(float64(-5+to) / 1000)},
			{Point: 7, Value: Float64Value(1 / float64(3+to))}}}
		if k == 0 || k == 5 {
			g.Readings[4] = Reading{Point: 4, Quality: Comm, Cause: CauseTimeout}
		}
		b.Groups = append(b.Groups, g)
	}
	return b
}

// sharedBatch has a table of three devices with two rows each, whose points have
// numbers of their own and one a text, and one of six devices with a row each.
func sharedBatch() *Batch {
	b := &Batch{Catalog: "89abcdef", Boot: 3}
	for k := range int64(6) {
		n := uint32(500 - 200*(k%3)) // the first points of the first kind
		at := clock.Stamp{Wall: 1764000000000 + 400*k, Mono: 5000 + 400*k, Boot: 3}
		b.Groups = append(b.Groups,
			Group{At: at, Readings: []Reading{{Point: n, Value: IntValue(2331-k, 1)},
				{Point: n + 7, Value: TextValue([]string{"on", "off"}[k/4])}, {Point: n + 2, Value: BoolValue(k%2 == 0)}}},
			Group{At: at, Readings: []Reading{{Point: uint32(1000 + 2*k), Value: UintValue(uint64(70+k*k), 0)},
				{Point: uint32(1001 + 2*k), Value: Float32Value(float32(4998+k) / 100)}}})
	}
	b.Groups[4].Readings[0] = Reading{Point: 100, Quality: Comm, Cause: CauseTimeout}
	b.Groups[9].Readings[1].Quality = Range
	return b
}

func goldenBatch() *Batch {
	at := func(ms int64) clock.Stamp {
		return clock.Stamp{Wall: 1764000000000 + ms, Mono: 5000 + ms, Boot: 3}
	}
	return &Batch{Catalog: "89abcdef", Boot: 3, Groups: []Group{
		{At: at(0), Readings: []Reading{
			{Point: 0, Value: IntValue(2331, 1)}, {Point: 1, Value: Float32Value(49.98)}, {Point: 2, Value: BoolValue(true)},
			{Point: 3, Value: TextValue("on")}, {Point: 4, Value: UintValue(math.MaxUint64, 2)}, {Point: 5, Value: Float64Value(1e-3)}}},
		{At: at(700), Readings: []Reading{
			{Point: 9, Quality: Comm, Cause: CauseTimeout}, {Point: 7, Quality: Range, Value: IntValue(-1, 0)}}},
		{At: at(1000), Readings: []Reading{
			{Point: 0, Value: IntValue(2330, 1)}, {Point: 1, Quality: Fault, Cause: CauseNaN}, {Point: 2, Value: BoolValue(false)},
			{Point: 3, Value: TextValue("on")}, {Point: 4, Value: UintValue(math.MaxUint64-1, 2)}, {Point: 5, Value: Float64Value(-2)}}},
	}}
}

// FuzzDecodeBatch: any bytes give a batch or an error, never a panic, and
// what was decoded survives a second round.
func FuzzDecodeBatch(f *testing.F) {
	for _, b := range []*Batch{goldenBatch(), packedBatch(), sharedBatch(), drifting(5, 4), drifting(50, 1)} {
		raw, _ := AppendBatch(nil, b)
		f.Add(raw)
		f.Add(raw[:len(raw)/2])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b, again Batch
		if err := DecodeBatch(raw, &b); err != nil || len(b.Groups) == 0 {
			return
		}
		for i := range b.tables.Count() {
			x := b.tables.Table(i)
			for c := range x.Points {
				x.AppendColumn(nil, c)
			}
		}
		second, err := AppendBatch(nil, &b)
		if err != nil {
			t.Fatal(err)
		}
		if err := DecodeBatch(second, &again); err != nil {
			t.Fatalf("own output is refused: %v", err)
		}
	})
}

func TestCatalog(t *testing.T) {
	c := NewCatalog([]Point{{Device: "a", Name: "x", Unit: "V", Kind: "gauge", Decimals: 1},
		{Device: "a", Name: "y", Kind: "state", Class: ClassAlarm}, {Device: "b", Name: "x", Kind: "counter"}})
	d, err := DecodeCatalog(c.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c.Points, d.Points) || c.Hash() != d.Hash() || len(c.Hash()) != 8 {
		t.Errorf("got %+v %s, want %+v %s", d.Points, d.Hash(), c.Points, c.Hash())
	}
}

func BenchmarkAppendBatch(b *testing.B) {
	for name, batch := range loads() {
		b.Run(name, func(b *testing.B) {
			var dst []byte
			for b.Loop() {
				dst, _ = AppendBatch(dst[:0], batch)
			}
			readings := 0
			for _, g := range batch.Groups {
				readings += len(g.Readings)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(readings), "ns/reading")
			b.ReportMetric(float64(len(dst))/float64(readings), "B/reading")
		})
	}
}

func BenchmarkDecodeBatch(b *testing.B) {
	raw, _ := AppendBatch(nil, drifting(50, 20))
	var batch Batch
	for b.Loop() {
		if err := DecodeBatch(raw, &batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/reading")
}

func BenchmarkTables(b *testing.B) {
	for name, batch := range loads() {
		raw, _ := AppendBatch(nil, batch)
		b.Run(name, func(b *testing.B) {
			var t Tables
			for b.Loop() {
				if err := t.Decode(raw); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(t.Readings()), "ns/reading")
		})
	}
}

// loads are batches by their points and samples.
func loads() map[string]*Batch {
	floats := fleet(20, 50, 1) // what the agent's reference load brings
	for i := range floats.Groups {
		for k := range floats.Groups[i].Readings {
			r := &floats.Groups[i].Readings[k]
			r.Value = Float32Value(float32(23000+100*i+k) / 100)
		}
	}
	return map[string]*Batch{"50x20": drifting(50, 20), "50x1": drifting(50, 1), "20devicesx50x1": fleet(20, 50, 1), "20devicesx50floats": floats}
}
