package payload

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/influxdata/line-protocol/v2/lineprotocol"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

// tables sends a batch through its stored form, as the buffer does.
func tables(t testing.TB, b *telemetry.Batch) *telemetry.Tables {
	t.Helper()
	raw, err := telemetry.AppendBatch(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	out := &telemetry.Tables{}
	if err := out.Decode(raw); err != nil {
		t.Fatal(err)
	}
	return out
}

// stored is tables as a batch.
func stored(t testing.TB, b *telemetry.Batch) *telemetry.Batch {
	t.Helper()
	raw, err := telemetry.AppendBatch(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	out := &telemetry.Batch{}
	if err := telemetry.DecodeBatch(raw, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// cells lists what a batch says: device, point, time, value, quality, cause.
// Values are JSON; numbers without the zeros that only show decimals.
func cells(b *telemetry.Batch, c *telemetry.Catalog, resolve Resolve) []string {
	var out []string
	for i := range b.Groups {
		g := &b.Groups[i]
		at, _ := resolve(g.At)
		for k := range g.Readings {
			r := &g.Readings[k]
			v := "null"
			if valid(r) {
				v = canonical(r.Value.AppendJSON(nil))
			}
			why := ""
			if quality(r) != telemetry.Good {
				why = cause(r).String()
			}
			p := c.Points[r.Point]
			out = append(out, fmt.Sprint([]any{p.Device, p.Name, at.UnixMilli(), v, quality(r), why}))
		}
	}
	slices.Sort(out)
	return out
}

// canonical writes a JSON value in one way: numbers as the shortest float64.
func canonical(v []byte) string {
	var x any
	if json.Unmarshal(v, &x) != nil {
		return string(v)
	}
	out, _ := json.Marshal(x)
	return string(out)
}

// wild makes a batch with every kind of value, quality and table.
func wild(rng *rand.Rand, c *telemetry.Catalog) *telemetry.Batch {
	value := func() telemetry.Value {
		switch rng.IntN(9) {
		case 0:
			return telemetry.BoolValue(rng.IntN(2) == 0)
		case 1:
			return telemetry.Float32Value(math.Float32frombits(rng.Uint32()))
		case 2:
			return telemetry.Float64Value(rng.NormFloat64() * math.Pow10(rng.IntN(40)-20))
		case 3:
			return telemetry.TextValue([]string{"", "a b", "x,\"y\"=\\", "été\n"}[rng.IntN(4)])
		case 4:
			return telemetry.UintValue(rng.Uint64(), uint8(rng.IntN(19)))
		case 5:
			return telemetry.IntValue(math.MinInt64+rng.Int64N(3), uint8(rng.IntN(3)))
		}
		return telemetry.IntValue(rng.Int64N(200000)-1000, 1)
	}
	unsure := rng.IntN(2) == 0
	b := &telemetry.Batch{Catalog: c.Hash(), Boot: 3, Synced: !unsure}
	at := int64(t0)
	ways, wild := make([]func() telemetry.Value, 7), rng.IntN(2) == 0
	for p := range ways {
		if ways[p] = value; !wild {
			ways[p] = course(rng)
		}
	}
	if rng.IntN(2) == 0 { // both devices are of one kind
		copy(ways[3:6], ways)
	}
	for range 1 + rng.IntN([]int{8, 40}[rng.IntN(2)]) {
		at += rng.Int64N(3000)
		// One device a group, a run of its points, sometimes in another order.
		from := []int{0, 3, 6}[rng.IntN(3)]
		points := map[int][]uint32{0: {0, 1, 2}, 3: {3, 4, 5}, 6: {6}}[from]
		points = slices.Clone(points[:1+rng.IntN(len(points))])
		if rng.IntN(3) == 0 {
			slices.Reverse(points)
		}
		g := telemetry.Group{At: clock.Stamp{Wall: at, Mono: at - t0 + 5, Boot: 3, Synced: !unsure}}
		for _, p := range points {
			r := telemetry.Reading{Point: p, Value: ways[p]()}
			switch rng.IntN(6) {
			case 0:
				r = bad(p, telemetry.Comm, telemetry.CauseException+telemetry.Cause(rng.IntN(256)))
			case 1:
				r = bad(p, telemetry.Stale, telemetry.CauseNone)
			case 2:
				r.Quality = telemetry.Range
			}
			g.Readings = append(g.Readings, r)
		}
		b.Groups = append(b.Groups, g)
	}
	return b
}

// course is how a point goes that keeps its kind.
func course(rng *rand.Rand) func() telemetry.Value {
	x, way := 2000*rng.NormFloat64(), rng.IntN(9)
	return func() telemetry.Value {
		x += rng.NormFloat64()
		switch way {
		case 0:
			return telemetry.IntValue(int64(10*x), 1)
		case 1:
			x += 50
			return telemetry.IntValue(int64(100*x), 2)
		case 2:
			return telemetry.UintValue(1<<63+uint64(int64(x)), 2)
		case 3:
			return telemetry.Float32Value(float32(math.Round(100*x) / 100))
		case 4:
			return telemetry.Float32Value(float32(x))
		case 5:
			return telemetry.Float64Value(math.Round(1000*x) / 1000)
		case 6:
			return telemetry.Float64Value(x)
		case 7:
			return telemetry.BoolValue(x > 0)
		}
		if rng.IntN(10) == 0 {
			return telemetry.IntValue(int64(rng.Uint64()), 0)
		}
		return telemetry.IntValue(5, 0)
	}
}

// block returns the n-th code block of a language in a page of docs.
func block(t *testing.T, page, language string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n```"+language+"\n")
	code, _, closed := strings.Cut(rest, "\n```")
	if !ok || !closed {
		t.Fatalf("docs/%s has no block of %s", page, language)
	}
	return code + "\n"
}

// program finds a program; without it the test does not run, except where
// everything must be there.
func program(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil && len(args) > 0 {
		err = exec.Command(path, args...).Run()
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("%s %v: %v", name, args, err)
	} else if err != nil {
		t.Skipf("NOT RUN: %s %v: %v", name, args, err)
	}
	return path
}

// TestPackedDecoders runs the decoders of docs/packed.md, as they stand
// there, on random batches and compares what they read with the batch.
func TestPackedDecoders(t *testing.T) {
	c := testCatalog()
	known := func(s clock.Stamp) (time.Time, bool) { return time.UnixMilli(t0 + 77 + s.Mono).UTC(), true }
	var points []map[string]any
	for _, p := range c.Points {
		points = append(points, map[string]any{"dev": p.Device, "point": p.Name})
	}
	type sample struct {
		Hex    string           `json:"hex"`
		Points []map[string]any `json:"points"`
	}
	var samples []sample
	var want [][]string
	for seed := range uint64(60) {
		b := stored(t, wild(rand.New(rand.NewPCG(seed, 7)), c))
		resolve := Resolve(asWall)
		if !b.Synced {
			resolve = known
		}
		samples = append(samples, sample{hex.EncodeToString(mustData(t, "packed", b, c, resolve, false)), points})
		want = append(want, cells(b, c, resolve))
	}
	dir := t.TempDir()
	in, _ := json.Marshal(samples)
	if err := os.WriteFile(filepath.Join(dir, "in.json"), in, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ name, language, tail string }{
		{"python3", "python", `
import sys
for s in json.load(open(sys.argv[1])):
    head, rows = read(bytes.fromhex(s["hex"]), s["points"])
    assert head["n"] == len(rows) and head["t0"] == min(r[2] for r in rows) and head["t1"] == max(r[2] for r in rows)
    print(json.dumps([[*r[:3], float(r[3]) if isinstance(r[3], Decimal) else r[3], *r[4:]] for r in rows]))
`},
		{"node", "javascript", `
for (const s of JSON.parse(require("fs").readFileSync(process.argv[2]))) {
  const { head, readings } = read(Buffer.from(s.hex, "hex"), s.points);
  if (head.n !== readings.length) throw new Error("n");
  console.log(JSON.stringify(readings.map((r) => [r.dev, r.point, r.t, r.value, r.quality, r.cause])));
}
`}} {
		t.Run(x.language, func(t *testing.T) {
			path := program(t, x.name, "--version")
			code := block(t, "packed.md", x.language)
			if n := strings.Count(code, "\n"); n >= 150 {
				t.Errorf("the decoder has %d lines", n)
			}
			script := filepath.Join(dir, "read."+x.language)
			if err := os.WriteFile(script, []byte(code+x.tail), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(path, script, filepath.Join(dir, "in.json")).Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, err.(*exec.ExitError).Stderr)
			}
			lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
			if len(lines) != len(want) {
				t.Fatalf("%d answers for %d batches", len(lines), len(want))
			}
			for i, line := range lines {
				compareRows(t, uint64(i), line, want[i])
			}
		})
	}
}

func compareRows(t *testing.T, seed uint64, line []byte, want []string) {
	t.Helper()
	var rows [][]json.RawMessage
	if err := json.Unmarshal(line, &rows); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		var dev, point, q, why string
		var at int64
		json.Unmarshal(r[0], &dev)
		json.Unmarshal(r[1], &point)
		json.Unmarshal(r[2], &at)
		json.Unmarshal(r[4], &q)
		json.Unmarshal(r[5], &why)
		if q == "good" {
			why = ""
		}
		got = append(got, fmt.Sprint([]any{dev, point, at, canonical(r[3]), q, why}))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] && !sameFloat32(got[i], want[i]) {
				t.Fatalf("seed %d: got %s, want %s", seed, got[i], want[i])
			}
		}
	}
	if len(got) != len(want) {
		t.Fatalf("seed %d: %d cells, want %d", seed, len(got), len(want))
	}
}

func packedHead(t *testing.T, message []byte) []byte {
	t.Helper()
	head, _, ok := bytes.Cut(message, []byte("\n"))
	if !ok {
		t.Fatal("no line feed")
	}
	return head
}

// TestInfluxPeer reads line protocol with InfluxData's own parser.
func TestInfluxPeer(t *testing.T) {
	c := testCatalog()
	for seed := range uint64(60) {
		b := stored(t, wild(rand.New(rand.NewPCG(seed, 8)), c))
		msg := mustData(t, "influx", b, c, asWall, false)
		type place struct {
			dev, point string
			at         int64
		}
		values, words, why := map[place]string{}, map[place]string{}, map[place]string{}
		batches := 0
		for dec := lineprotocol.NewDecoderWithBytes(msg); dec.Next(); {
			m, err := dec.Measurement()
			if err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, msg)
			}
			tags := map[string]string{}
			for {
				k, v, err := dec.NextTag()
				if err != nil {
					t.Fatalf("seed %d: %v\n%s", seed, err, msg)
				}
				if k == nil {
					break
				}
				tags[string(k)] = string(v)
			}
			fields := map[string]lineprotocol.Value{}
			for {
				k, v, err := dec.NextField()
				if err != nil {
					t.Fatalf("seed %d: %v\n%s", seed, err, msg)
				}
				if k == nil {
					break
				}
				fields[string(k)] = v
			}
			at, err := dec.Time(lineprotocol.Nanosecond, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			if tags["gw"] != "sc-0042" {
				t.Fatalf("gw %q", tags["gw"])
			}
			if string(m) == "tidegate_batch" {
				batches++
				if fields["seq"].IntV() != 18231 || fields["lo"].IntV() != 18230 || fields["ep"].StringV() != "6f3a91c2" || tags["lane"] != "data" {
					t.Fatalf("envelope %v %v", tags, fields)
				}
				continue
			}
			for k, v := range fields {
				p := place{tags["dev"], k, at.UnixMilli()}
				if base, ok := strings.CutSuffix(k, ".q"); ok {
					p.point = base
					words[p] += v.StringV()
				} else if base, ok := strings.CutSuffix(k, ".cause"); ok {
					p.point = base
					why[p] += v.StringV()
				} else {
					out, _ := json.Marshal(v.Interface())
					values[p] += canonical(out)
				}
			}
		}
		if batches != 1 {
			t.Fatalf("%d lines of envelope", batches)
		}
		for i := range b.Groups {
			for k := range b.Groups[i].Readings {
				r := &b.Groups[i].Readings[k]
				p := place{c.Points[r.Point].Device, c.Points[r.Point].Name, b.Groups[i].At.Wall}
				if valid(r) {
					if v := canonical(r.Value.AppendJSON(nil)); !strings.Contains(values[p], v) {
						t.Fatalf("seed %d: %v is %s, want %s", seed, p, values[p], v)
					}
				}
				if q := quality(r); q != telemetry.Good && (!strings.Contains(words[p], q.String()) || !strings.Contains(why[p], cause(r).String())) {
					t.Fatalf("seed %d: %v: q %q cause %q, want %s %s", seed, p, words[p], why[p], q, cause(r))
				}
			}
		}
	}
}

// senmlRecord is a record of RFC 8428 as a reader sees it.
type senmlRecord struct {
	BN string          `json:"bn"`
	BT json.Number     `json:"bt"`
	N  string          `json:"n"`
	U  string          `json:"u"`
	V  json.RawMessage `json:"v"`
	VS json.RawMessage `json:"vs"`
	VB json.RawMessage `json:"vb"`
}

// resolveSenML applies the base fields as section 4.6 of the RFC says.
func resolveSenML(t *testing.T, doc []byte) []string {
	t.Helper()
	var records []senmlRecord
	if err := json.Unmarshal(doc, &records); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	type cell struct{ v, q, why string }
	found := map[string]*cell{}
	var names []string
	bn, bt := "", ""
	for i, r := range records {
		if r.BN != "" {
			bn = r.BN
		}
		if r.BT != "" {
			f, _ := r.BT.Float64()
			bt = fmt.Sprint(int64(math.Round(f * 1000)))
		}
		if i == 0 {
			if r.N != "sc-0042/tidegate/batch" {
				t.Fatalf("first record %q", r.N)
			}
			continue
		}
		name, what := bn+r.N, ""
		for _, w := range []string{"/quality", "/cause"} {
			if base, ok := strings.CutSuffix(name, w); ok {
				name, what = base, w
			}
		}
		part := strings.SplitN(name, "/", 3)
		k := part[1] + " " + part[2] + " " + bt
		if found[k] == nil {
			found[k] = &cell{v: "null", q: "good"}
			names = append(names, k)
		}
		v := slices.Concat(r.V, r.VS, r.VB)
		switch what {
		case "/quality":
			json.Unmarshal(v, &found[k].q)
		case "/cause":
			json.Unmarshal(v, &found[k].why)
		default:
			found[k].v = canonical(v)
		}
	}
	var out []string
	for _, k := range names {
		out = append(out, fmt.Sprintf("[%s %s %s %s]", k, found[k].v, found[k].q, found[k].why))
	}
	slices.Sort(out)
	return out
}

// lonely keeps one group an instant and device, so that a cell has one value.
func lonely(b *telemetry.Batch) *telemetry.Batch {
	for i := range b.Groups {
		b.Groups[i].At.Wall = t0 + int64(i)*1001
		b.Groups[i].At.Mono = int64(i) * 1001
	}
	return b
}

func TestSenML(t *testing.T) {
	c := testCatalog()
	var packs []string
	var want [][]string
	for seed := range uint64(60) {
		b := stored(t, lonely(wild(rand.New(rand.NewPCG(seed, 9)), c)))
		doc := mustData(t, "senml-json", b, c, asWall, false)
		validate(t, "senml", doc)
		want = append(want, cells(b, c, asWall))
		if got := resolveSenML(t, doc); !slices.Equal(got, want[seed]) {
			t.Fatalf("seed %d:\n%s\nwant\n%s\n%s", seed, strings.Join(got, "\n"), strings.Join(want[seed], "\n"), doc)
		}
		packs = append(packs, hex.EncodeToString(mustData(t, "senml-cbor", b, c, asWall, false)))
	}
	t.Run("cbor", func(t *testing.T) {
		python := "/usr/bin/python3" // where Debian's python3-cbor2 lives
		program(t, python, "-c", "import cbor2")
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "in"), []byte(strings.Join(packs, "\n")), 0o600)
		script := `
import cbor2, json, sys
from decimal import Decimal
label = {-2: "bn", -3: "bt", 0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb"}
for line in open(sys.argv[1]):
    raw = bytes.fromhex(line)
    pack = cbor2.loads(raw)
    print(json.dumps([{label.get(k, k): float(v) if isinstance(v, Decimal) else v for k, v in r.items()} for r in pack]))
`
		os.WriteFile(filepath.Join(dir, "read.py"), []byte(script), 0o600)
		out, err := exec.Command(python, filepath.Join(dir, "read.py"), filepath.Join(dir, "in")).Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, err.(*exec.ExitError).Stderr)
		}
		lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
		if len(lines) != len(packs) {
			t.Fatalf("%d answers", len(lines))
		}
		for i, line := range lines {
			got := resolveSenML(t, line)
			// A float32 in CBOR is the float itself: compare as float32 prints.
			if len(got) != len(want[i]) {
				t.Fatalf("seed %d: %d cells, want %d", i, len(got), len(want[i]))
			}
			for k := range got {
				if got[k] != want[i][k] && !sameFloat32(got[k], want[i][k]) {
					t.Fatalf("seed %d: got %s, want %s", i, got[k], want[i][k])
				}
			}
		}
	})
}

// sameFloat32 compares two cells whose value is a float32, once as the
// float64 of the same bits and once as its shortest decimal.
func sameFloat32(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	if len(x) != len(y) || len(x) < 5 {
		return false
	}
	for i := range x {
		var f, g float64
		if x[i] == y[i] {
			continue
		}
		if _, err := fmt.Sscan(x[i], &f); err != nil {
			return false
		}
		if _, err := fmt.Sscan(y[i], &g); err != nil || float32(f) != float32(g) {
			return false
		}
	}
	return true
}
