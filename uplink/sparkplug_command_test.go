package uplink

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"tidegate/internal/telemetry"
	sp "tidegate/uplink/sparkplug"
)

// bench is a Desk that keeps what it is given.
type bench struct{ took []string }

func (b *bench) Take(body []byte, retained bool) {
	b.took = append(b.took, fmt.Sprint(string(body), " ", retained))
}
func (b *bench) Answers() <-chan Answer { return nil }

// TestSparkplugCommand: what a DCMD becomes, by the type of its value, with
// names and aliases; what is not whole reaches the desk too, which refuses it.
func TestSparkplugCommand(t *testing.T) {
	e := newEdge(t)
	u := newNode(t, "mqtt://127.0.0.1:1", e, nil, func(o *Options) { o.Commands, o.Sparkplug.Writes = true, true })
	p, desk := u.speaker.(*sparkplug), &bench{}
	u.env.Desk = desk
	relay := p.named["meter-1"].metrics[slices.IndexFunc(p.named["meter-1"].metrics, func(m *metric) bool { return m.name == "relay" })]
	relay.learn(telemetry.BoolValue(true))
	say := func(device string, at int64, retained bool, metrics ...sp.Metric) {
		t.Helper()
		var body []byte
		for i := range metrics {
			body = sp.AppendMetric(body, &metrics[i])
		}
		if at != 0 {
			body = sp.AppendTime(body, at)
		}
		if err := p.heard(nil, incoming{topic: "spBv1.0/here/DCMD/gw-1/" + device, body: body, retained: retained}); err != nil {
			t.Fatal(err)
		}
	}
	number := func(kind sp.DataType, bits uint64) sp.Metric {
		return sp.Metric{Name: "power", Type: kind, Typed: true, Value: sp.Value{Bits: bits}}
	}
	say("meter-1", 1764000000000, false, number(sp.Double, math.Float64bits(33.5)), number(sp.Int64, math.MaxUint64), number(sp.UInt64, math.MaxUint64),
		number(sp.Int32, 0xffff_fffe), sp.Metric{Alias: relay.alias, Type: sp.Boolean, Value: sp.Truth(true)}, number(sp.Double, math.Float64bits(math.NaN())),
		sp.Metric{Name: "note", Type: sp.String, Typed: true, Value: sp.Value{Text: `a "b"`}}, sp.Metric{Name: "power", Null: true, Typed: true, Type: sp.Double},
		sp.Metric{Alias: 99, Type: sp.Double, Typed: true})
	say("meter-1", 1764000000001, true, number(sp.Boolean, 0))
	say("meter-1", 0, false, number(sp.Double, math.Float64bits(1)))
	type request struct {
		ID, Op, By, Dev, Point string
		Value                  any
		T, Exp                 int64
	}
	var got []string
	ids := map[string]bool{}
	for _, took := range desk.took {
		var r request
		body, retained, _ := strings.Cut(took, "} ")
		dec := json.NewDecoder(strings.NewReader(body + "}"))
		dec.UseNumber()
		if err := dec.Decode(&r); err != nil || r.Op != "write" || r.By != "sparkplug" || r.T != 0 && r.Exp != r.T+30_000 || r.T == 0 && r.Exp != 0 {
			t.Errorf("%v: %s", err, took)
		}
		ids[r.ID] = true
		got = append(got, fmt.Sprint(r.Dev, "/", r.Point, " ", r.Value, " ", r.T%1000, " ", retained))
	}
	want := []string{"meter-1/power 33.5 0 false", "meter-1/power -1 0 false", "meter-1/power 18446744073709551615 0 false", "meter-1/power -2 0 false",
		"meter-1/relay true 0 false", "meter-1/power <nil> 0 false", `meter-1/note a "b" 0 false`, "meter-1/power <nil> 0 false", "meter-1/ 0 0 false",
		"meter-1/power false 1 true", "meter-1/power 1 0 false"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nand not\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(ids) != 6 { // by point and time: power, relay, note and none at one time, power at two others
		t.Errorf("ids %v", ids)
	}
	desk.took = nil
	if err := p.heard(nil, incoming{topic: "spBv1.0/here/DCMD/gw-1/meter-1", body: []byte{0xff}}); err != nil || len(desk.took) != 1 {
		t.Errorf("rubbish: %v %q", err, desk.took)
	}
	say("meter-1", 1764000000000, false, slices.Repeat([]sp.Metric{number(sp.Double, 0)}, 65)...)
	if len(desk.took) != 2 {
		t.Errorf("65 metrics became %d commands", len(desk.took)-1)
	}
	p.opts.Writes = false
	say("meter-1", 1764000000000, false, number(sp.Double, math.Float64bits(33.5)))
	if len(desk.took) != 2 {
		t.Errorf("writes are off: %q", desk.took[2:])
	}
}

// TestSparkplugWritesOptions: writes have two switches, and no signature.
func TestSparkplugWritesOptions(t *testing.T) {
	for _, c := range []struct {
		commands, writes bool
		key, want        string
	}{{}, {true, true, "", ""}, {true, false, "", "commands"}, {false, true, "", "sparkplug.writes"}, {true, true, "key.pem", "sparkplug.writes"}} {
		o := Defaults()
		o.URL, o.Shape, o.Commands, o.CommandKey, o.Sparkplug.Writes = "mqtts://a.example", "sparkplug", c.commands, c.key, c.writes
		got := ""
		o.Validate(func(path, msg, hint string) { got += path })
		if got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
