package payload

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const t0 = 1764000000000

func testCatalog() *telemetry.Catalog {
	return telemetry.NewCatalog([]telemetry.Point{
		{Device: "meter-1", Name: "voltage_l1", Unit: "V", Kind: "gauge", Decimals: 1},
		{Device: "meter-1", Name: "energy_import", Unit: "kWh", Kind: "counter", Decimals: 2},
		{Device: "meter-1", Name: "relay", Kind: "state"},
		{Device: "air-1", Name: "pm2_5", Unit: "ug/m3", Kind: "gauge", Decimals: 1},
		{Device: "air-1", Name: "no2", Unit: "ppb", Kind: "gauge"},
		{Device: "air-1", Name: "note \"x\"", Kind: "text"},
		{Device: "door", Name: "open", Kind: "event", Class: telemetry.ClassAlarm},
	})
}

func synced(ms int64) clock.Stamp { return clock.Stamp{Wall: ms, Boot: 3, Synced: true} }

func good(p uint32, v telemetry.Value) telemetry.Reading {
	return telemetry.Reading{Point: p, Value: v}
}

func bad(p uint32, q telemetry.Quality, c telemetry.Cause) telemetry.Reading {
	return telemetry.Reading{Point: p, Quality: q, Cause: c}
}

func testBatch(c *telemetry.Catalog) *telemetry.Batch {
	return &telemetry.Batch{Catalog: c.Hash(), Boot: 3, Synced: true, Groups: []telemetry.Group{
		{At: synced(t0 + 137), Readings: []telemetry.Reading{
			good(0, telemetry.IntValue(2301, 1)), good(1, telemetry.IntValue(1823452, 2)), good(2, telemetry.BoolValue(true))}},
		{At: synced(t0 + 418), Readings: []telemetry.Reading{
			good(3, telemetry.IntValue(112, 1)), bad(4, telemetry.Stale, 0), good(5, telemetry.TextValue("a\nb"))}},
		{At: synced(t0 + 1137), Readings: []telemetry.Reading{
			{Point: 0, Value: telemetry.Float32Value(231.68), Quality: telemetry.Range},
			bad(1, telemetry.Comm, telemetry.CauseTimeout), good(2, telemetry.BoolValue(false))}},
		{At: synced(t0 + 1418), Readings: []telemetry.Reading{
			good(3, telemetry.Float64Value(math.NaN())), bad(4, telemetry.Comm, telemetry.CauseException+4), good(5, telemetry.TextValue("c"))}},
		{At: synced(t0 + 2137), Readings: []telemetry.Reading{
			good(0, telemetry.IntValue(2299, 1)), good(1, telemetry.IntValue(1823453, 2)), good(2, telemetry.BoolValue(false))}},
	}}
}

func envelope() *Envelope {
	return &Envelope{Gateway: "sc-0042", Epoch: "6f3a91c2", Lane: "data", Seq: 18231, Lo: 18230, Boot: 17, Sent: t0 + 200123}
}

func asWall(s clock.Stamp) (time.Time, bool) { return time.UnixMilli(s.Wall).UTC(), s.Synced }

func mustData(t testing.TB, shape string, b *telemetry.Batch, c *telemetry.Catalog, resolve Resolve, history bool) []byte {
	t.Helper()
	d, err := New(shape)
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.Data(nil, envelope(), tables(t, b), c, resolve, history)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestGolden compares every message with its file in testdata/payload and
// validates it with its schema in docs/schema.
func TestGolden(t *testing.T) {
	c := testCatalog()
	unsynced := testBatch(c)
	unsynced.Synced = false
	for i := range unsynced.Groups {
		unsynced.Groups[i].At = clock.Stamp{Wall: int64(1000 * i), Mono: int64(1000 * i), Boot: 9}
	}
	known := func(s clock.Stamp) (time.Time, bool) { return time.UnixMilli(t0 + s.Mono).UTC(), true }
	loss := func(shape string, x Tombstone) []byte {
		d, err := New(shape)
		if err != nil {
			t.Fatal(err)
		}
		out, err := d.Loss(nil, envelope(), x)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	said, err := Said(nil, envelope(), tables(t, unsynced), c, known, true)
	if err != nil {
		t.Fatal(err)
	}
	about := About{Gateway: "sc-0042", Site: "wuhan-hanyang", Version: "0.1.0", Sent: t0,
		Labels:  map[string]string{"district": "hanyang"},
		Devices: []Device{{"meter-1", "eastron-sdm630", "modbus-rtu", 5 * time.Second}, {"air-1", "plantower-pms5003", "serial", 0}}}
	for _, x := range []struct {
		name, schema string
		got          []byte
	}{
		{"records", "records", mustData(t, "records", testBatch(c), c, asWall, false)},
		{"records-history", "records", mustData(t, "records", testBatch(c), c, asWall, true)},
		{"records-unsynced", "records", mustData(t, "records", unsynced, c, asWall, false)},
		{"records-corrected", "records", mustData(t, "records", unsynced, c, known, false)},
		{"columns", "columns", mustData(t, "columns", testBatch(c), c, asWall, false)},
		{"columns-history", "columns", mustData(t, "columns", testBatch(c), c, asWall, true)},
		{"columns-corrected", "columns", mustData(t, "columns", unsynced, c, known, false)},
		{"senml", "senml", mustData(t, "senml-json", testBatch(c), c, asWall, true)},
		{"senml-tombstone", "senml", loss("senml-json", Tombstone{5, 9, 5, 4812, t0, t0 + 5000, "full"})},
		{"packed-head", "packed", packedHead(t, mustData(t, "packed", unsynced, c, known, true))},
		{"commit", "commit", said},
		{"tombstone", "tombstone", loss("records", Tombstone{5, 9, 5, 4812, t0, t0 + 5000, "full"})},
		{"tombstone-unknown", "tombstone", loss("columns", Tombstone{10, 10, 1, -1, 0, 0, "corrupt"})},
		{"meta", "meta", Meta(about, c)},
		{"status-online", "status", Status(State{State: "online", Gateway: "sc-0042", Boot: 17, Epoch: "6f3a91c2", Sent: t0,
			Lo: map[string]uint64{"data": 18230, "event": 3}, Seq: map[string]uint64{"data": 18231, "event": 2},
			Backlog: &Backlog{2, t0 - 1000}, Version: "0.1.0", Stop: "power", Health: "ok"})},
		{"status-lost", "status", Status(State{State: "lost", Gateway: "sc-0042", Boot: 17, Epoch: "6f3a91c2", Sent: t0})},
	} {
		t.Run(x.name, func(t *testing.T) {
			file := filepath.Join("..", "..", "testdata", "payload", x.name+".json")
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, x.got, "", " "); err != nil {
				t.Fatalf("not JSON: %v\n%s", err, x.got)
			}
			pretty.WriteByte('\n')
			if *update {
				if err := os.WriteFile(file, pretty.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, pretty.Bytes()) {
				t.Errorf("differs from %s:\n%s", file, pretty.Bytes())
			}
			validate(t, x.schema, x.got)
		})
	}
}

func validate(t testing.TB, schema string, doc []byte) {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "..", "docs", "schema", schema+".json"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%s: %v", schema, err)
	}
}

// TestSchemaRefuses shows that the schemas hold the rules and are not empty.
func TestSchemaRefuses(t *testing.T) {
	c := testCatalog()
	rec := string(mustData(t, "records", testBatch(c), c, asWall, false))
	s, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "..", "docs", "schema", "records.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range [][2]string{
		{`"seq":18231,`, ``},
		{`"seq":18231,`, `"seq":0,`},
		{`"voltage_l1":230.1`, `"voltage_l1":null`},
		{`"no2":"stale"`, `"no2":"good"`},
		{`"clk":"ok"`, `"clk":"fine"`},
	} {
		doc := strings.Replace(rec, x[0], x[1], 1)
		if doc == rec {
			t.Fatalf("%q is not in the message", x[0])
		}
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		if s.Validate(v) == nil {
			t.Errorf("%q instead of %q passes", x[1], x[0])
		}
	}
}

// TestColumnsEqualRecords reads both shapes back and compares cell by cell.
func TestColumnsEqualRecords(t *testing.T) {
	c := testCatalog()
	b := testBatch(c)
	// other order of points and a subset: tables of their own
	b.Groups = append(b.Groups,
		telemetry.Group{At: synced(t0 + 3000), Readings: []telemetry.Reading{good(1, telemetry.IntValue(5, 0)), good(0, telemetry.IntValue(6, 0))}},
		telemetry.Group{At: synced(t0 + 3100), Readings: []telemetry.Reading{good(0, telemetry.IntValue(7, 0))}},
		telemetry.Group{At: synced(t0 + 3200), Readings: nil},
		telemetry.Group{At: synced(t0 + 3300), Readings: []telemetry.Reading{good(0, telemetry.IntValue(8, 0)), good(3, telemetry.IntValue(9, 0))}})
	var rec struct {
		Records []struct {
			Dev              string
			T                int64
			Values, Q, Cause map[string]any
		}
	}
	var col struct {
		Columns []struct {
			Dev              string
			T0               int64
			DT               []int64
			Values, Q, Cause map[string][]any
		}
	}
	for _, x := range []struct {
		shape string
		into  any
	}{{"records", &rec}, {"columns", &col}} {
		if err := json.Unmarshal(mustData(t, x.shape, b, c, asWall, false), x.into); err != nil {
			t.Fatal(err)
		}
	}
	cells := func(kind string, dev string, at int64, m map[string]any, into map[string]any) {
		for k, v := range m {
			if v != nil {
				into[fmt.Sprint(kind, dev, at, k)] = v
			}
		}
	}
	a, z := map[string]any{}, map[string]any{}
	for _, r := range rec.Records {
		cells("v", r.Dev, r.T, r.Values, a)
		cells("q", r.Dev, r.T, r.Q, a)
		cells("c", r.Dev, r.T, r.Cause, a)
	}
	for _, table := range col.Columns {
		at := table.T0
		for i, dt := range table.DT {
			at += dt
			for kind, m := range map[string]map[string][]any{"v": table.Values, "q": table.Q, "c": table.Cause} {
				row := map[string]any{}
				for k, v := range m {
					if len(v) != len(table.DT) {
						t.Fatalf("column %s has %d cells, dt %d", k, len(v), len(table.DT))
					}
					row[k] = v[i]
				}
				cells(kind, table.Dev, at, row, z)
			}
		}
	}
	if len(a) != 24 {
		t.Errorf("%d cells, want 24: %v", len(a), a)
	}
	if fmt.Sprint(a) != fmt.Sprint(z) {
		t.Errorf("records %v\ncolumns %v", a, z)
	}
}

func TestUnknownPoint(t *testing.T) {
	c := testCatalog()
	for _, point := range []uint32{7, 1 << 31, math.MaxUint32} { // below zero as an int of 32 bits
		b := tables(t, &telemetry.Batch{Catalog: c.Hash(), Groups: []telemetry.Group{{At: synced(t0), Readings: []telemetry.Reading{good(point, telemetry.IntValue(1, 0))}}}})
		for _, shape := range Shapes() {
			d, _ := New(shape)
			if _, err := d.Data(nil, envelope(), b, c, asWall, false); err == nil {
				t.Errorf("%s: a reading of the unknown point %d vanished", shape, point)
			}
		}
	}
	if _, err := New("xml"); err == nil {
		t.Error("shape xml is accepted")
	}
}

// drifting is the size budget's data: one meter of 50 points, each sample a
// little different from the one before.
func drifting(samples int) (*telemetry.Catalog, *telemetry.Batch) {
	names := []string{"voltage_l1", "voltage_l2", "voltage_l3", "current_l1", "current_l2", "current_l3", "power", "frequency", "temperature", "energy_import"}
	var points []telemetry.Point
	for channel := range 5 {
		for i, n := range names {
			kind := "gauge"
			if i == 9 {
				kind = "counter"
			}
			points = append(points, telemetry.Point{Device: "meter-1", Name: strings.Replace(n, "_", fmt.Sprint(channel+1, "_"), 1), Kind: kind, Decimals: 1})
		}
	}
	c := telemetry.NewCatalog(points)
	b := &telemetry.Batch{Catalog: c.Hash(), Synced: true}
	state := uint32(1)
	rnd := func(n uint32) int64 {
		state = state*1664525 + 1013904223
		return int64((state >> 16) % n)
	}
	level := make([]int64, len(points))
	base := []int64{2301, 2305, 2298, 52, 48, 61, 3650, 500, 231, 1823452}
	for i := range level {
		level[i] = base[i%10]
	}
	for s := range samples {
		g := telemetry.Group{At: synced(t0 + int64(s)*1000 + rnd(3))}
		for k := range level {
			switch {
			case k%10 == 9:
				level[k] += rnd(2)
			case rnd(10) < 5:
				level[k] += rnd(3) - 1
			}
			g.Readings = append(g.Readings, good(uint32(k), telemetry.IntValue(level[k], 1)))
		}
		b.Groups = append(b.Groups, g)
	}
	return c, b
}

// TestSizeBudget holds the bytes a reading that docs/payloads.md promises.
func TestSizeBudget(t *testing.T) {
	c, b := drifting(20)
	var z Gzip
	for _, x := range []struct {
		shape string
		zip   bool
		most  float64
	}{{"records", false, 22}, {"columns", false, 7}, {"columns", true, 2}, {"packed", false, 0.7},
		{"influx", false, 22}, {"senml-json", false, 60}, {"senml-cbor", false, 30}} {
		out := mustData(t, x.shape, b, c, asWall, false)
		if x.zip {
			packed, ok := z.Append(nil, out)
			if !ok {
				t.Fatal("not compressed")
			}
			out = packed
		}
		got := float64(len(out)) / 1000
		t.Logf("%s gzip=%v: %.2f bytes a reading", x.shape, x.zip, got)
		if got > x.most {
			t.Errorf("%s gzip=%v: %.2f bytes a reading, budget %.1f", x.shape, x.zip, got, x.most)
		}
	}
}

func TestGzip(t *testing.T) {
	var z Gzip
	if _, ok := z.Append(nil, bytes.Repeat([]byte("a"), GzipFrom-1)); ok {
		t.Error("a short message was compressed")
	}
	for i := range 3 { // the writer is used again
		src := []byte(strings.Repeat(fmt.Sprint("reading ", i, " "), 100))
		out, ok := z.Append([]byte("kept"), src)
		if !ok || !bytes.HasPrefix(out, []byte("kept")) {
			t.Fatal("not appended")
		}
		r, err := gzip.NewReader(bytes.NewReader(out[4:]))
		if err != nil {
			t.Fatal(err)
		}
		if back, err := io.ReadAll(r); err != nil || !bytes.Equal(back, src) {
			t.Errorf("round %d: %v", i, err)
		}
	}
}

// TestNoAllocations: with room in dst and the names cached, a message costs
// no allocation.
func TestNoAllocations(t *testing.T) {
	c, batch := drifting(20)
	b := tables(t, batch)
	for _, shape := range Shapes() {
		d, _ := New(shape)
		e := envelope()
		buf := make([]byte, 0, 64<<10)
		d.Data(buf, e, b, c, asWall, false)
		if n := testing.AllocsPerRun(20, func() { d.Data(buf, e, b, c, asWall, false) }); n > 0 {
			t.Errorf("%s: %.0f allocations a message of 1000 readings", shape, n)
		}
	}
}

func benchmarkData(b *testing.B, shape string) {
	c, drift := drifting(20)
	batch := tables(b, drift)
	d, err := New(shape)
	if err != nil {
		b.Fatal(err)
	}
	e := envelope()
	buf := make([]byte, 0, 64<<10)
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = d.Data(buf[:0], e, batch, c, asWall, false)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/reading")
	b.ReportMetric(float64(len(buf))/1000, "B/reading")
}

func BenchmarkRecords(b *testing.B) { benchmarkData(b, "records") }
func BenchmarkPacked(b *testing.B)  { benchmarkData(b, "packed") }
func BenchmarkInflux(b *testing.B)  { benchmarkData(b, "influx") }
func BenchmarkSenML(b *testing.B)   { benchmarkData(b, "senml-json") }
func BenchmarkCBOR(b *testing.B)    { benchmarkData(b, "senml-cbor") }
func BenchmarkColumns(b *testing.B) { benchmarkData(b, "columns") }

func BenchmarkColumnsGzip(b *testing.B) {
	c, drift := drifting(20)
	batch := tables(b, drift)
	d, _ := New("columns")
	var z Gzip
	var buf, out []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = d.Data(buf[:0], envelope(), batch, c, asWall, false)
		out, _ = z.Append(out[:0], buf)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/reading")
	b.ReportMetric(float64(len(out))/1000, "B/reading")
}
