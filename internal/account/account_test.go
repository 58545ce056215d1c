package account

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
	"tidegate/uplink/payload"
)

// msg is a batch of one reading whose value follows from its number.
func msg(seq, lo uint64) string {
	return fmt.Sprintf(`{"v":1,"gw":"g","ep":"e1","lane":"data","seq":%d,"lo":%d,"boot":1,"sent":5,"m":"b","clk":"ok",`+
		`"records":[{"dev":"d","t":%d,"values":{"x":%d.10}}]}`, seq, lo, 1764000000000+seq*1000, seq)
}

func tomb(from, to, lo uint64, why string) string {
	return fmt.Sprintf(`{"v":1,"gw":"g","ep":"e1","lane":"data","lo":%d,"boot":1,"sent":5,`+
		`"dropped":{"from":%d,"to":%d,"batches":%d,"readings":%d,"t0":1,"t1":2,"why":%q}}`, lo, from, to, to-from+1, 10*(to-from+1), why)
}

func state(seq, lo uint64) string {
	return fmt.Sprintf(`{"v":1,"state":"online","gw":"g","boot":1,"ep":"e1","sent":5,"lo":{"data":%d,"event":1},"seq":{"data":%d,"event":0}}`, lo, seq)
}

func gz(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write([]byte(s))
	w.Close()
	return b.String()
}

func TestVerdicts(t *testing.T) {
	other := strings.Replace(msg(2, 1), "2.10", "7.10", 1)
	for _, c := range []struct {
		name     string
		messages []string
		verdict  string
		want     Sums
	}{
		{"nothing", nil, "nothing received", Sums{}},
		{"metadata only", []string{`{"v":1,"gw":"g","m":"b","points":[]}`}, "nothing received", Sums{}},
		{"status before the first batch", []string{state(0, 1)}, "nothing received", Sums{}},
		{"the echo of uplink test", []string{`{"gw":"g","nonce":"x","sent":1,"test":true}`}, "nothing received", Sums{}},
		{"all", []string{msg(1, 1), msg(2, 1), msg(3, 3), state(3, 4)}, "complete", Sums{Expected: 3, Received: 3, Readings: 3}},
		{"order does not matter", []string{state(3, 4), msg(3, 3), msg(1, 1), msg(2, 1)}, "complete", Sums{Expected: 3, Received: 3, Readings: 3}},
		{"repeats", []string{msg(1, 1), msg(2, 1), msg(1, 1), msg(2, 1), msg(2, 2)}, "complete", Sums{Expected: 2, Received: 2, Repeats: 3, Readings: 2}},
		{"late", []string{msg(1, 1), msg(4, 2)}, "INCOMPLETE: 2 late", Sums{Expected: 4, Received: 2, Late: 2, Readings: 2}},
		{"the tail is late", []string{msg(1, 1), state(3, 2)}, "INCOMPLETE: 2 late", Sums{Expected: 3, Received: 1, Late: 2, Readings: 1}},
		{"lost", []string{msg(1, 1), msg(4, 4)}, "INCOMPLETE: 2 lost without a tombstone", Sums{Expected: 4, Received: 2, Lost: 2, Readings: 2}},
		{"lo of a status counts", []string{msg(1, 1), msg(4, 2), state(4, 4)}, "INCOMPLETE: 2 lost without a tombstone", Sums{Expected: 4, Received: 2, Lost: 2, Readings: 2}},
		{"the first is lost", []string{msg(2, 2)}, "INCOMPLETE: 1 lost without a tombstone", Sums{Expected: 2, Received: 1, Lost: 1, Readings: 1}},
		{"tombstone", []string{msg(1, 1), tomb(2, 3, 4, "full"), msg(4, 4)}, "complete except tombstones", Sums{Expected: 4, Received: 2, Dropped: 2, Readings: 2}},
		{"tombstone first", []string{tomb(2, 3, 4, "full"), msg(4, 4), msg(1, 1)}, "complete except tombstones", Sums{Expected: 4, Received: 2, Dropped: 2, Readings: 2}},
		{"tombstone of half", []string{msg(1, 1), tomb(2, 2, 4, "full"), msg(4, 4)}, "INCOMPLETE: 1 lost without a tombstone", Sums{Expected: 4, Received: 2, Dropped: 1, Lost: 1, Readings: 2}},
		{"tombstone twice", []string{msg(1, 1), tomb(2, 3, 4, "full"), tomb(2, 3, 4, "full")}, "complete except tombstones", Sums{Expected: 3, Received: 1, Dropped: 2, Readings: 1}},
		{"restart closes what came: received wins", []string{msg(1, 1), msg(2, 1), tomb(2, 100, 101, "restart")}, "complete except tombstones", Sums{Expected: 100, Received: 2, Dropped: 98, Readings: 2}},
		{"came after its tombstone", []string{tomb(1, 2, 3, "full"), msg(1, 1), msg(2, 2)}, "complete except tombstones", Sums{Expected: 2, Received: 2, Readings: 2}},
		{"readings without a number", []string{msg(1, 1), tomb(0, 0, 2, "full")}, "complete except tombstones", Sums{Expected: 1, Received: 1, Readings: 1}},
		{"conflict", []string{msg(1, 1), msg(2, 1), other}, "INCOMPLETE: 1 in conflict", Sums{Expected: 2, Received: 2, Conflicts: 1, Readings: 2}},
		{"gzip", []string{gz(msg(1, 1)), msg(1, 1)}, "complete", Sums{Expected: 1, Received: 1, Repeats: 1, Readings: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := New()
			for _, m := range c.messages {
				if err := b.Add("tg/v1/s/g/up", []byte(m)); err != nil {
					t.Fatal(err)
				}
			}
			r := b.Report()
			if got := r.verdictLine(); got != c.verdict {
				t.Errorf("verdict %q, want %q\n%s", got, c.verdict, r.Text())
			}
			if r.Sums != c.want {
				t.Errorf("sums %+v, want %+v", r.Sums, c.want)
			}
			if r.Broken != (r.Lost > 0 || r.Conflicts > 0) {
				t.Error("broken")
			}
		})
	}
}

func TestEpochsAndLanesAreApart(t *testing.T) {
	b := New()
	for _, m := range []string{msg(1, 1),
		strings.Replace(msg(1, 1), `"ep":"e1"`, `"ep":"e2"`, 1),
		strings.Replace(msg(1, 1), `"lane":"data"`, `"lane":"event"`, 1),
		strings.Replace(msg(1, 1), `"gw":"g"`, `"gw":"h"`, 1)} {
		if err := b.Add("t", []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	if r := b.Report(); len(r.Lanes) != 4 || r.Repeats != 0 || r.Verdict != Complete {
		t.Errorf("%s", r.Text())
	}
}

func TestMidway(t *testing.T) {
	for _, c := range []struct {
		name     string
		messages []string
		verdict  string
		begin    uint64
	}{
		{"later numbers only", []string{msg(5000, 4999), msg(5001, 5001)}, "complete", 5000},
		{"what was under way", []string{state(5000, 4990), msg(5001, 4995), msg(5002, 5002), state(5002, 5003)}, "complete", 5001},
		{"then one is lost", []string{msg(5000, 4999), msg(5002, 5002)}, "INCOMPLETE: 1 lost without a tombstone", 5000},
		{"backlog and live", []string{msg(5000, 1000), msg(1005, 1000), msg(5001, 1006)}, "INCOMPLETE: 3801 late", 1005},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := New()
			b.Midway()
			for _, m := range c.messages {
				if err := b.Add("t", []byte(m)); err != nil {
					t.Fatal(err)
				}
			}
			r := b.Report()
			if got := r.verdictLine(); got != c.verdict || r.Lanes[0].First != c.begin {
				t.Errorf("%q from %d, want %q from %d", got, r.Lanes[0].First, c.verdict, c.begin)
			}
		})
	}
}

// TestShapesAgree: the same batch in any shape that the uplink writes is a
// repeat, another one is a conflict.
func TestShapesAgree(t *testing.T) {
	cat := telemetry.NewCatalog([]telemetry.Point{
		{Device: "a", Name: "x", Decimals: 2}, {Device: "a", Name: "y"}, {Device: "b", Name: "x"}})
	at := func(ms int64) clock.Stamp { return clock.Stamp{Wall: ms, Synced: true} }
	groups := func(last telemetry.Value) []telemetry.Group {
		return []telemetry.Group{
			{At: at(1764000000137), Readings: []telemetry.Reading{
				{Point: 0, Value: telemetry.IntValue(23010, 2)}, {Point: 1, Quality: telemetry.Comm, Cause: telemetry.CauseTimeout}}},
			{At: at(1764000000200), Readings: []telemetry.Reading{{Point: 2, Value: telemetry.Float32Value(1.5)}}},
			{At: at(1764000001137), Readings: []telemetry.Reading{
				{Point: 0, Value: telemetry.IntValue(23011, 2)}, {Point: 1, Value: telemetry.TextValue("on")}}},
			{At: at(1764000002137), Readings: []telemetry.Reading{
				{Point: 0, Value: telemetry.IntValue(23012, 2), Quality: telemetry.Range}, {Point: 1, Value: last}}},
		}
	}
	resolve := func(s clock.Stamp) (time.Time, bool) { return time.UnixMilli(s.Wall), s.Synced }
	write := func(shape string, last telemetry.Value, sent int64, history bool) []byte {
		d, err := payload.New(shape)
		if err != nil {
			t.Fatal(err)
		}
		e := &payload.Envelope{Gateway: "g", Epoch: "e", Lane: "data", Seq: 1, Lo: 1, Boot: 1, Sent: sent}
		raw, err := telemetry.AppendBatch(nil, &telemetry.Batch{Catalog: cat.Hash(), Synced: true, Groups: groups(last)})
		if err != nil {
			t.Fatal(err)
		}
		var b telemetry.Tables
		if err := b.Decode(raw); err != nil {
			t.Fatal(err)
		}
		out, err := d.Data(nil, e, &b, cat, resolve, history)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, shape := range payload.Shapes() {
		for _, next := range payload.Shapes() {
			b := New()
			for i, v := range []bool{true, true, false} {
				if i == 1 {
					shape, next = next, shape
				}
				if err := b.Add("t", write(shape, telemetry.BoolValue(v), int64(i), i > 0)); err != nil {
					t.Fatalf("%s: %v", shape, err)
				}
			}
			r := b.Report()
			// The body of packed is compared as it is: with another shape only by its count.
			conflicts := int64(1)
			if shape != next && (shape == "packed" || next == "packed") {
				conflicts = 0
			}
			if r.Received != 1 || r.Repeats+r.Conflicts != 2 || r.Conflicts != conflicts || r.Readings != 7 {
				t.Errorf("%s then %s:\n%s", next, shape, r.Text())
			}
			if l := r.Lanes[0]; l.T0 != 1764000000137 || l.T1 != 1764000002137 {
				t.Errorf("%s: times %d to %d", next, l.T0, l.T1)
			}
		}
		d, _ := payload.New(shape)
		b := New()
		loss, err := d.Loss(nil, &payload.Envelope{Gateway: "g", Epoch: "e", Lane: "data", Lo: 6, Boot: 1},
			payload.Tombstone{From: 2, To: 5, Batches: 3, Readings: 7, T0: 1764000000000, T1: 1764000000001, Why: "full"})
		if err != nil || b.Add("t", loss) != nil {
			t.Fatalf("%s: tombstone: %v %q", shape, err, loss)
		}
		if r := b.Report(); r.Dropped != 4 || r.Lost != 1 || r.Lanes[0].Tombstones[0].Readings != 7 {
			t.Errorf("%s: after a tombstone of 2 to 5:\n%s", shape, r.Text())
		}
	}
	// A commit stands for a batch whose readings went another way.
	b := New()
	for _, n := range []int{7, 7, 8} {
		if err := b.Add("t", fmt.Appendf(nil, `{"v":1,"gw":"g","ep":"e","lane":"data","seq":3,"lo":1,"boot":1,"m":"00000000","clk":"ok","said":{"n":%d,"t0":5,"t1":9}}`, n)); err != nil {
			t.Fatal(err)
		}
	}
	if r := b.Report(); r.Received != 1 || r.Late != 2 || r.Repeats != 1 || r.Conflicts != 1 || r.Readings != 7 || r.Lanes[0].T1 != 9 {
		t.Errorf("commits:\n%s", r.Text())
	}
	b = New()
	for _, m := range [][]byte{
		write("records", telemetry.BoolValue(true), 1, false),
		write("columns", telemetry.BoolValue(true), 2, true),
		write("records", telemetry.BoolValue(true), 3, true),
		write("columns", telemetry.BoolValue(false), 4, true),
	} {
		if err := b.Add("t", m); err != nil {
			t.Fatalf("%v: %s", err, m)
		}
	}
	r := b.Report()
	if r.Received != 1 || r.Repeats != 2 || r.Conflicts != 1 || r.Readings != 7 {
		t.Errorf("%s", r.Text())
	}
	if l := r.Lanes[0]; l.T0 != 1764000000137 || l.T1 != 1764000002137 {
		t.Errorf("times %d to %d", l.T0, l.T1)
	}
	d, _ := payload.New("records")
	loss, err := d.Loss(nil, &payload.Envelope{Gateway: "g", Epoch: "e", Lane: "data", Lo: 3, Boot: 1}, payload.Tombstone{From: 2, To: 2, Batches: 1, Readings: 7, Why: "full"})
	if err != nil || b.Add("t", loss) != nil {
		t.Fatalf("tombstone: %v %s", err, loss)
	}
	st := payload.Status(payload.State{State: "online", Gateway: "g", Epoch: "e", Boot: 1, Lo: map[string]uint64{"data": 4}, Seq: map[string]uint64{"data": 3}})
	if err := b.Add("t", st); err != nil {
		t.Fatal(err)
	}
	if r := b.Report(); r.Dropped != 1 || r.Lost != 1 {
		t.Errorf("after tombstone and status:\n%s", r.Text())
	}
}

func TestCorrectedTimesAreNoConflict(t *testing.T) {
	early := strings.NewReplacer(`"clk":"ok"`, `"clk":"unsynced"`, "1764000001000", "100000").Replace(msg(1, 1))
	fixed := strings.Replace(msg(1, 1), `"clk":"ok"`, `"clk":"corrected"`, 1)
	moved := strings.Replace(msg(2, 1), "1764000002000", "1764000002001", 1)
	b := New()
	for _, m := range []string{early, fixed, msg(2, 1), moved} {
		if err := b.Add("t", []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	if r := b.Report(); r.Repeats != 1 || r.Conflicts != 1 {
		t.Errorf("%s", r.Text())
	}
}

// TestSameReadingsWrittenOtherwise: decimals that only pad are no conflict,
// and a tombstone that comes again is counted once.
func TestSameReadingsWrittenOtherwise(t *testing.T) {
	b := New()
	for _, m := range []string{msg(1, 1), strings.Replace(msg(1, 1), "1.10", "1.1", 1),
		tomb(2, 3, 4, "full"), tomb(2, 3, 4, "full"), tomb(4, 4, 4, "full")} {
		if err := b.Add("t", []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	r := b.Report()
	if d := r.Lanes[0].Tombstones[0]; r.Repeats != 1 || d.Numbers != 3 || d.Batches != 3 || d.Readings != 30 {
		t.Errorf("%+v\n%s", d, r.Text())
	}
}

func TestBadMessages(t *testing.T) {
	b := New()
	for _, m := range []string{
		"hello", "[]", "[{}]", "\x9a", "\x81\xa1\x00", "\x9a\xff\xff\xff\xff", "tidegate_batch", "tidegate_batch,gw=g,lane=data seq=1i 1",
		"tidegate_batch,gw=g,lane=data ep=\"e\",lo=1i,seq=0i 1", "tidegate_batch,gw=g,lane=data ep=\"e,lo=1i,seq=1i 1", "tidegate_batch,gw=g,lane=data ep=\"e\",lo=1i,seq=1i",
		`[{"tidegate":1,"gw":"g","ep":"e","lane":"data","seq":0,"lo":1}]`, `{"v":1,"shift":0,"n":-1}` + "\n", `{"gw":"g","ep":"e","lane":"data","shift":0,"n":1}` + "\n", "{", `{"a":1}`, `{"records":[]}`, `{"gw":"g","ep":"e","lane":"data","seq":0,"records":[]}`,
		`{"gw":"g","ep":"e","lane":"data","seq":-1,"records":[]}`, `{"gw":"g","ep":"e","lane":"data","seq":18446744073709551615,"records":[]}`,
		`{"gw":"g","ep":"e","lane":"data","seq":1.5,"records":[]}`, `{"gw":"g","lane":"data","seq":1,"records":[]}`,
		tomb(3, 2, 1, "full"), tomb(1, 2, 1, ""), "\x1f\x8b\x08", gz("hello"),
		`{"gw":"g","ep":"e","lane":"data","seq":1,"columns":[{"dev":"d","t0":1,"dt":[0],"values":{"x":[1,2]}}]}`,
		`{"gw":"g","ep":"e","lane":"data","seq":1,"columns":[{"dev":"d","t0":1,"dt":[0],"values":{"x":[1]},"q":{"x":["comm","comm"]}}]}`,
		`{"state":"online","seq":{"data":1}}`, `{"state":"online","ep":"e","gw":"g","seq":{"data":18446744073709551615}}`,
	} {
		if err := b.Add("t", []byte(m)); err == nil {
			t.Errorf("no error for %q", m)
		}
	}
	if err := b.Add("tg/v1/s/g/up/gz", []byte("not gzip")); err == nil {
		t.Error("no error for a /gz topic without gzip")
	}
	if r := b.Report(); r.Verdict != NothingReceived || r.Unreadable != r.Messages {
		t.Errorf("%s", r.Text())
	}
}

// TestBombsAreBounded: a small gzip of a large message is refused.
func TestBombsAreBounded(t *testing.T) {
	if err := New().Add("t", []byte(gz(strings.Repeat(" ", maxMessage+10)))); err == nil {
		t.Error("no error")
	}
}

// TestAgainstModel feeds random histories, in random order and with repeats,
// and compares with the plainest possible count.
func TestAgainstModel(t *testing.T) {
	for seed := uint64(0); seed < 300; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		var messages []string
		n := 1 + rng.Uint64N(60)
		got, gone := map[uint64]bool{}, map[uint64]bool{}
		var repeats int64
		var lo, high uint64
		for i := range n {
			seq := i + 1
			switch rng.IntN(6) {
			case 0: // lost, late or nothing
			case 1:
				to := min(n, seq+rng.Uint64N(4))
				l := rng.Uint64N(n + 2)
				messages = append(messages, tomb(seq, to, l, []string{"full", "restart", "corrupt"}[rng.IntN(3)]))
				for k := seq; k <= to; k++ {
					gone[k] = true
				}
				lo, high = max(lo, l), max(high, to)
			default:
				for range 1 + rng.IntN(2)*rng.IntN(3) {
					l := rng.Uint64N(seq + 1)
					messages = append(messages, msg(seq, l))
					lo, high = max(lo, l), max(high, seq)
					if got[seq] {
						repeats++
					}
					got[seq] = true
				}
			}
		}
		if rng.IntN(2) == 0 {
			messages = append(messages, state(n, rng.Uint64N(2)*n))
			var s struct{ Lo map[string]uint64 }
			json.Unmarshal([]byte(messages[len(messages)-1]), &s)
			lo, high = max(lo, s.Lo["data"]), max(high, n)
		}
		rng.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
		want := Sums{Expected: int64(high), Received: int64(len(got)), Repeats: repeats, Readings: int64(len(got))}
		for k := uint64(1); k <= high; k++ {
			switch {
			case got[k]:
			case gone[k]:
				want.Dropped++
			case k < lo:
				want.Lost++
			default:
				want.Late++
			}
		}
		b := New()
		for _, m := range messages {
			if err := b.Add("t", []byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		if r := b.Report(); r.Sums != want {
			t.Fatalf("seed %d: got %+v, want %+v\n%s", seed, r.Sums, want, strings.Join(messages, "\n"))
		}
	}
}

func TestConflictMemoryIsBounded(t *testing.T) {
	b := New()
	b.keep = 1000
	for n := uint64(1); n <= 1010; n++ {
		if err := b.Add("t", []byte(msg(n, n))); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.digests) != b.keep || len(b.recent) != b.keep || b.ranges != 1 {
		t.Errorf("%d digests, %d in the ring, %d ranges", len(b.digests), len(b.recent), b.ranges)
	}
	changed := strings.Replace(msg(5, 1), "5.10", "6.10", 1) // forgotten: a repeat
	if err := b.Add("t", []byte(changed)); err != nil || b.Report().Repeats != 1 {
		t.Error("a number whose digest is forgotten is not a repeat")
	}
}

func TestSet(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for range 500 {
		var s, u set
		in, out := map[uint64]bool{}, map[uint64]bool{}
		fill := func(s *set, m map[uint64]bool) {
			for range rng.IntN(12) {
				from := 1 + rng.Uint64N(50)
				to := from + rng.Uint64N(6)
				s.add(from, to)
				for k := from; k <= to; k++ {
					m[k] = true
				}
			}
		}
		fill(&s, in)
		fill(&u, out)
		d := s.minus(u)
		below, rest := s.split(20)
		var n int64
		for k := uint64(1); k < 70; k++ {
			if s.has(k) != in[k] || d.has(k) != (in[k] && !out[k]) ||
				below.has(k) != (in[k] && k < 20) || rest.has(k) != (in[k] && k >= 20) {
				t.Fatalf("number %d: %v minus %v is %v", k, s, u, d)
			}
			if in[k] {
				n++
			}
		}
		if s.count() != n || !slices.IsSortedFunc(s, func(a, b Range) int { return int(a.From) - int(b.To) - 1 }) {
			t.Fatalf("%v", s)
		}
	}
}

func TestLines(t *testing.T) {
	in := "tg/v1/s/g/up " + msg(1, 1) + "\n" +
		"tg/v1/s/g/up\t" + msg(2, 1) + "\r\n\n" +
		"tg/v1/s/g/up/gz " + hex.EncodeToString([]byte(gz(msg(3, 1)))) + "\n" +
		"tg/v1/s/g/up " + strings.ToUpper(hex.EncodeToString([]byte(msg(4, 1)))) + "\n" +
		"garbage\n" +
		"tg/v1/s/g/up/gz " + "\x1f\x8b\x00binary" + "\n" +
		"tg/v1/s/g/meta \n" +
		"tg/v1/s/g/up " + msg(5, 1)
	b := New()
	var bad []int
	if err := b.AddLines(strings.NewReader(in), func(line int, err error) { bad = append(bad, line) }); err != nil {
		t.Fatal(err)
	}
	if r := b.Report(); r.Received != 5 || r.Unreadable != 2 || r.Verdict != Complete || !slices.Equal(bad, []int{6, 7}) {
		t.Errorf("bad lines %v\n%s", bad, r.Text())
	}
	// an export: the messages alone, packed as a whole
	export := gz(msg(1, 1) + "\n" + msg(2, 1) + "\n" + tomb(3, 4, 1, "full") + "\n")
	b = New()
	if err := b.AddLines(strings.NewReader(export), nil); err != nil || b.Report().verdictLine() != CompleteButTombs || b.Report().Received != 2 {
		t.Errorf("export: %v\n%s", err, b.Report().Text())
	}
	for i, s := range []string{export[:len(export)-9], export[:12], export[:40] + "\xff\xff\xff" + export[43:]} {
		if err := New().AddLines(strings.NewReader(s), nil); !errors.Is(err, ErrGzip) {
			t.Errorf("damaged export %d: %v", i, err)
		}
	}
	broken := errors.New("broken")
	if err := b.AddLines(failing{broken}, nil); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestText(t *testing.T) {
	b := New()
	for _, m := range []string{msg(1, 1), msg(1, 1), tomb(2, 3, 4, "full"), msg(4, 4), msg(8, 7), tomb(9, 20, 5, "restart")} {
		if err := b.Add("t", []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	want := `g, epoch e1
  lane  numbers           received repeats  late dropped  lost conflicts
  data  1..20                    3       1     1      14     2         0
        3 readings
          2025-11-24T16:00:01Z to 2025-11-24T16:00:08Z
        dropped (full): 2 numbers, 20 readings
          1970-01-01T00:00:00Z to 1970-01-01T00:00:00Z
        dropped (restart): 12 numbers, 120 readings
          1970-01-01T00:00:00Z to 1970-01-01T00:00:00Z
        late: 7
        LOST: 5..6
INCOMPLETE: 2 lost without a tombstone, 1 late
`
	r := b.Report()
	if got := r.Text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for line := range strings.Lines(r.Text()) {
		if len(line) > 81 {
			t.Errorf("%d columns: %s", len(line)-1, line)
		}
	}
	var back Report
	if err := json.Unmarshal(r.JSON(), &back); err != nil || back.Schema != "tidegate.verify/1" || back.Lanes[0].LostAt[0] != (Range{5, 6}) {
		t.Errorf("%v %s", err, r.JSON())
	}
}

// FuzzAdd: any bytes give an error or a count, never a panic, and the sums
// add up.
func FuzzAdd(f *testing.F) {
	for _, s := range []string{msg(1, 1), tomb(2, 3, 4, "full"), state(3, 4), gz(msg(1, 1)),
		`{"gw":"g","ep":"e","lane":"data","seq":1,"columns":[{"dev":"d","t0":1,"dt":[0,5],"values":{"x":[1,null]},"q":{"x":[null,"comm"],"y":["comm",null]}}]}`} {
		f.Add("tg/v1/s/g/up", []byte(s), false)
		f.Add("tg/v1/s/g/up/gz", []byte(s+"\n"+s), true)
	}
	f.Fuzz(func(t *testing.T, topic string, p []byte, lines bool) {
		b := New()
		if len(p)%2 == 1 {
			b.Midway()
		}
		if lines {
			b.AddLines(bytes.NewReader(p), func(int, error) {})
		} else {
			b.Add(topic, p)
			b.Add(topic, p)
		}
		r := b.Report()
		if r.Expected < r.Received || r.Expected != r.Received+r.Late+r.Dropped+r.Lost {
			t.Fatalf("%s", r.JSON())
		}
		r.Text()
		r.JSON()
	})
}

func BenchmarkAdd(b *testing.B) {
	var s strings.Builder
	for i := range 50 {
		fmt.Fprintf(&s, `,{"dev":"meter-%d","t":1764000000137,"values":{`, i)
		for j := range 20 {
			fmt.Fprintf(&s, `%s"point_%d":%d.%d`, map[bool]string{true: ","}[j > 0], j, i*j, j)
		}
		s.WriteString("}}")
	}
	book := New()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m := fmt.Sprintf(`{"gw":"g","ep":"e","lane":"data","seq":%d,"lo":%d,"clk":"ok","records":[%s]}`, i+1, i+1, s.String()[1:])
		if err := book.Add("t", []byte(m)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/reading")
}

// FuzzParse: whatever comes from a broker is a message or an error.
func FuzzParse(f *testing.F) {
	for _, s := range []string{msg(1, 1), tomb(1, 2, 3, "full"), `{"v":1,"gw":"g","ep":"e","lane":"data","seq":1,"lo":1,"shift":0,"n":1,"t0":1,"t1":1}` + "\n\x01",
		"tidegate_batch,gw=g,lane=data v=1i,ep=\"e\",lo=1i,boot=1i,seq=3i 1\ntidegate,dev=a,gw=g x=1.5,y.q=\"comm\" 1000000\n",
		`[{"tidegate":1,"gw":"g","ep":"e","lane":"data","seq":1,"lo":1},{"bn":"g/d/","bt":1.5,"n":"x","v":2}]`,
		"\x81\xa5\x62gw\x61g\x62ep\x61e\x64lane\x64data\x63seq\x01\x62lo\x01"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		book := New()
		book.Add("t", b)
		book.Report()
	})
}
