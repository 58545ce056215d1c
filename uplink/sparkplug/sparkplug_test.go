package sparkplug

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"testing"
)

func examples() []Metric {
	return []Metric{
		{Name: "bdSeq", Timestamp: 1764000000000, Type: Int64, Typed: true, Value: Value{Bits: 7}},
		{Alias: 300, Timestamp: 1764000000001, Type: Int64, Typed: true, Historical: true, Value: Value{Bits: math.MaxUint64}},
		{Name: "a", Alias: 1, Timestamp: 1, Type: UInt64, Typed: true, Value: Value{Bits: math.MaxUint64}},
		{Name: "a", Timestamp: 1, Type: Double, Typed: true, Value: Number(230.1)},
		{Name: "a", Timestamp: 1, Type: Boolean, Typed: true, Value: Truth(true)},
		{Name: "a", Timestamp: 1, Type: Int32, Typed: true, Value: Value{Bits: 0xffffffff}},
		{Name: "a", Timestamp: 1, Type: String, Typed: true, Value: Value{Text: "two\nlines"}},
		{Name: "a", Timestamp: 1, Type: Double, Typed: true, Null: true},
	}
}

func TestRoundTrip(t *testing.T) {
	var b []byte
	for _, m := range examples() {
		m.Properties = []Property{{Key: "Quality", Type: Int32, Int: QualityStale}, {Key: "Reason", Type: String, Text: "init"}}
		b = AppendMetric(b, &m)
	}
	b = AppendSeq(AppendTime(b, 5), 255)
	p, err := Decode(b)
	if err != nil || p.Timestamp != 5 || p.Seq != 255 {
		t.Fatalf("%+v %v", p, err)
	}
	if !reflect.DeepEqual(p.Metrics, examples()) {
		t.Errorf("got  %+v\nwant %+v", p.Metrics, examples())
	}
}

// TestBytes holds the wire form to what the specification prints: field
// numbers, wire types, the order of nesting.
func TestBytes(t *testing.T) {
	m := Metric{Name: "a", Alias: 2, Timestamp: 3, Type: Double, Typed: true, Historical: true, Value: Number(1),
		Properties: []Property{{Key: "Quality", Type: Int32, Int: 192}}}
	got := hex.EncodeToString(AppendSeq(AppendTime(AppendMetric(nil, &m), 4), 5))
	want := "1226" + "0a0161" + "1002" + "1803" + "200a" + "2801" +
		"4a10" + "0a075175616c697479" + "1205" + "0803" + "18c001" +
		"69000000000000f03f" + "0804" + "1805"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	long := AppendMetric(nil, &Metric{Name: string(bytes.Repeat([]byte("x"), 300)), Type: Boolean})
	if p, err := Decode(long); err != nil || len(p.Metrics[0].Name) != 300 {
		t.Errorf("a long name: %v", err)
	}
}

// TestForeign: what others write and we do not is read or passed over.
func TestForeign(t *testing.T) {
	b, err := hex.DecodeString("08e807" + "1215" + "0a0161" + "2009" + "65" + "0000c03f" + // a Float of 1.5
		"42020801" + "82010161" + "98064d" /* an unknown field */ + "2a0141" + "220175")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Decode(b)
	if err != nil || p.Timestamp != 1000 || p.Seq != -1 || len(p.Metrics) != 1 {
		t.Fatalf("%+v %v", p, err)
	}
	if m := p.Metrics[0]; m.Name != "a" || m.Type != 9 || m.Value != Number(1.5) {
		t.Errorf("%+v", m)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range examples() {
		f.Add(AppendSeq(AppendTime(AppendMetric(nil, &m), 5), 1))
	}
	f.Add([]byte{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrPayload) {
				t.Fatal(err)
			}
			return
		}
		var again []byte
		for i := range p.Metrics {
			again = AppendMetric(again, &p.Metrics[i])
		}
		if q, err := Decode(again); err != nil || len(q.Metrics) != len(p.Metrics) {
			t.Fatalf("own output is refused: %v", err)
		}
	})
}

func BenchmarkMetric(b *testing.B) {
	var dst []byte
	m := Metric{Alias: 300, Timestamp: 1764000000000, Type: Double, Value: Number(230.1)}
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendMetric(dst[:0], &m)
	}
	b.ReportMetric(float64(len(dst)), "B/reading")
}
