package uplink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
	"tidegate/uplink/payload"
)

// platform is an Uplink of edgeCatalog in a shape.
func platform(t testing.TB, url, shape string, e *edge, m *memory, change func(*Options)) *Uplink {
	t.Helper()
	o := Defaults()
	o.URL, o.Shape = url, shape
	if change != nil {
		change(&o)
	}
	u, err := New(o, Env{Gateway: "gw-1", Site: "here", Version: "test", Epoch: "6f3a91c2", Boot: 3, Stopped: "clean",
		Labels: map[string]string{"district": "hanyang"},
		Devices: []payload.Device{{Name: "meter-1", Profile: "eastron-sdm630", Driver: "rtu", Every: 5 * time.Second},
			{Name: "air-1", Driver: "serial"}},
		Catalog: e.cat, Clock: testClock(t), Latest: e.tell, Memory: m})
	if err != nil {
		t.Fatal(err)
	}
	u.tune = quick()
	return u
}

// golden compares messages with a file of testdata/payload; times of now
// become 0.
func golden(t *testing.T, name string, got []sim.Arrival) {
	t.Helper()
	var out bytes.Buffer
	for _, a := range got {
		mark := ""
		if a.Retained {
			mark = " retained"
		}
		body := blank(a.Payload)
		fmt.Fprintf(&out, "%s%s\n%s\n\n", a.Topic, mark, body)
	}
	file := filepath.Join("..", "testdata", "payload", name)
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, out.Bytes()) {
		t.Errorf("differs from %s:\n%s", file, out.Bytes())
	}
}

// blank writes JSON with indents and without the present time.
func blank(b []byte) string {
	if len(b) == 0 {
		return "(empty)"
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return string(b)
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch x := v.(type) {
		case map[string]any:
			for k := range x {
				x[k] = walk(x[k])
			}
		case []any:
			for i := range x {
				x[i] = walk(x[i])
			}
		case json.Number:
			if n, err := x.Int64(); err == nil && n > 1_500_000_000_000 {
				return 0
			}
		}
		return v
	}
	out, _ := json.MarshalIndent(walk(v), "", " ")
	return string(out)
}

// story is what both platforms are told.
func story(t *testing.T, e *edge) {
	time.Sleep(2 * time.Millisecond)
	e.take(laneData, e.meter(2), e.air(230.1, "fine"))
	e.drained(t, "live data")
	time.Sleep(2 * time.Millisecond)
	e.take(laneData, telemetry.Group{At: now(), Readings: []telemetry.Reading{
		failed(0, telemetry.Comm, telemetry.CauseTimeout), {Point: 1, Value: telemetry.IntValue(5, 0), Quality: telemetry.Range}, failed(2, telemetry.Comm, telemetry.CauseTimeout)}})
	e.drained(t, "bad qualities")
	time.Sleep(2 * time.Millisecond)
	e.take(laneEvent, telemetry.Group{At: now(), Readings: []telemetry.Reading{reading(6, telemetry.TextValue("raised"))}})
	e.drained(t, "an event")
	e.take(laneData, e.meter(3))
	e.drained(t, "good again")
	e.store.mu.Lock()
	e.losses = append(e.losses, Loss{Lane: laneData, From: 90, To: 92, Batches: 3, Readings: 12, T0: 1, T1: 2, Why: "full"})
	e.store.mu.Unlock()
	e.signal()
	e.drained(t, "a loss")
}

func TestThingsBoard(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	e := newEdge(t)
	e.take(laneData, e.meter(1))
	u := start(t, platform(t, "mqtt://"+b.Addr(), "thingsboard", e, &memory{}, nil), e)
	e.drained(t, "the backlog")
	story(t, e)
	old := telemetry.NewCatalog([]telemetry.Point{{Device: "gone-1", Name: "y", Kind: "gauge"}})
	e.store.mu.Lock()
	e.old[old.Hash()] = old
	e.store.mu.Unlock()
	e.batch(old, laneData, telemetry.Group{At: now(), Readings: []telemetry.Reading{reading(0, telemetry.IntValue(7, 0))}})
	e.drained(t, "an old catalog")
	u.stop()
	got := b.Received()
	golden(t, "thingsboard.txt", got)
	connected := map[string]bool{}
	for _, a := range got {
		if a.QoS != 1 || a.Retained || !strings.HasPrefix(a.Topic, "v1/") {
			t.Errorf("%+v", a)
		}
		switch a.Topic {
		case tbConnect:
			var c struct{ Device string }
			json.Unmarshal(a.Payload, &c)
			connected[c.Device] = true
		case tbTelemetry:
			var m map[string][]struct {
				TS     int64
				Values map[string]any
			}
			if err := json.Unmarshal(a.Payload, &m); err != nil || len(m) == 0 {
				t.Errorf("%v: %s", err, a.Payload)
			}
			for d, list := range m {
				if !connected[d] {
					t.Errorf("%s is fed before it is connected", d)
				}
				for _, x := range list {
					if x.TS < time.Now().UnixMilli()-60_000 || len(x.Values) == 0 {
						t.Errorf("%s", a.Payload)
					}
				}
			}
		}
	}
	// On a new connection the devices are connected anew.
	before := len(got)
	u = start(t, platform(t, "mqtt://"+b.Addr(), "thingsboard", e, &memory{}, nil), e)
	connects := func(conn int) (n int) {
		for _, a := range b.Received()[before:] {
			if a.Topic == tbConnect && a.Conn == conn {
				n++
			}
		}
		return n
	}
	eventually(t, 5*time.Second, "connected", func() bool { return connects(2) == 4 })
	b.Cut()
	eventually(t, 5*time.Second, "connected again", func() bool { return connects(3) == 4 })
	u.stop()
	if v := b.Promises()[0]; v.Topic != "" {
		t.Errorf("a will that nobody reads: %+v", v)
	}
}

func TestHomeAssistant(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	e := newEdge(t)
	m := &memory{}
	m.SaveMeta("homeassistant/here/gw-1", []byte("homeassistant/sensor/gw-1/meter-1_power/config\nhomeassistant/sensor/gw-1/gone_x/config"))
	e.take(laneData, e.meter(1))
	u := start(t, platform(t, "mqtt://"+b.Addr(), "homeassistant", e, m, nil), e)
	e.drained(t, "the backlog")
	story(t, e)
	before := len(b.Received())
	golden(t, "homeassistant.txt", b.Received())
	b.Say("homeassistant/status", true, []byte("online"))
	b.Say("homeassistant/status", false, []byte("offline"))
	time.Sleep(30 * time.Millisecond)
	if n := len(b.Received()); n != before {
		t.Errorf("%d messages that nobody asked for", n-before)
	}
	b.Say("homeassistant/status", false, []byte("online"))
	configs, states := 0, 0
	eventually(t, 5*time.Second, "announced again", func() bool {
		configs, states = 0, 0
		for _, a := range b.Received()[before:] {
			if strings.HasSuffix(a.Topic, "/config") && len(a.Payload) > 0 && a.Retained {
				configs++
			}
			if strings.Contains(a.Topic, "/state/") && configs == 7 {
				states++ // dead-1 has said nothing
			}
		}
		return configs == 7 && states == 3
	})
	u.stop()
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "docs", "schema", "homeassistant.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range b.Received() {
		if strings.Contains(a.Topic, "/state/") {
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.Payload))
			if err != nil || schema.Validate(v) != nil {
				t.Errorf("%v %v: %s", err, schema.Validate(v), a.Payload)
			}
		}
	}
	last := b.Received()[len(b.Received())-1]
	if v := b.Promises()[0]; v.Topic != "tg/v1/here/gw-1/status" || !v.Retained || !strings.Contains(string(v.Payload), `"lost"`) || !strings.Contains(string(last.Payload), `"offline"`) {
		t.Errorf("will %s, goodbye %s", v.Payload, last.Payload)
	}
	gone := false
	for _, a := range b.Received() {
		if len(a.Payload) == 0 {
			gone = a.Topic == "homeassistant/sensor/gw-1/gone_x/config" && a.Retained
			if !gone {
				t.Errorf("taken away: %s", a.Topic)
			}
		}
	}
	if !gone {
		t.Error("a point that is gone is still announced")
	}
}

// TestPlatformsMosquitto: both speak through a real broker with mutual TLS;
// what is retained is there for who comes later.
func TestPlatformsMosquitto(t *testing.T) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("127.0.0.1")
	m := newMosquitto(t, ca, [2][]byte{sc, sk}, "")
	lc, lk := ca.good("listener")
	for shape, want := range map[string][]string{
		"thingsboard":   {"v1/gateway/disconnect ", "v1/gateway/telemetry {\"meter-1\":[{\"ts\":", "v1/devices/me/attributes {\"state\":\"offline\"}"},
		"homeassistant": {"homeassistant/sensor/gw-1/meter-1_power/config {", "homeassistant/binary_sensor/gw-1/meter-1_relay/config {", "tg/v1/here/gw-1/state/meter-1 {\"t\":"},
	} {
		t.Run(shape, func(t *testing.T) {
			l := m.listen(identityDir(t, ca.pem, lc, lk), "#")
			defer l.close()
			cc, ck := ca.good("gw-1")
			e := newEdge(t)
			up := platform(t, m.url(), shape, e, &memory{}, func(o *Options) { o.Identity = identityDir(t, ca.pem, cc, ck) })
			up.tune.ack, up.tune.connect = 2*time.Second, 5*time.Second
			u := start(t, up, e)
			eventually(t, 10*time.Second, "the listener hears", func() bool {
				e.take(laneData, e.meter(1))
				time.Sleep(20 * time.Millisecond)
				return l.has("meter-1")
			})
			e.take(laneData, e.meter(2), e.air(1, "x"))
			e.drained(t, "all delivered")
			u.stop()
			for _, w := range want {
				eventually(t, 5*time.Second, w, func() bool { return l.has(w) })
			}
		})
	}
}

// TestHomeAssistantClasses: unit and class are words that Home Assistant
// knows, and classes of totals are for counters only.
func TestHomeAssistantClasses(t *testing.T) {
	for _, x := range []struct {
		unit, name  string
		counter     bool
		want, class string
	}{
		{"Cel", "t", false, "°C", "temperature"}, {"kWh", "e", true, "kWh", "energy"}, {"kWh", "e", false, "kWh", ""},
		{"ug/m3", "pm2_5", false, "µg/m³", "pm25"}, {"ug/m3", "dust", false, "µg/m³", ""}, {"%RH", "h", false, "%", "humidity"},
		{"%", "soc", false, "%", ""}, {"count", "n", true, "", ""}, {"m3", "v", true, "m³", "volume"}, {"W", "p", true, "W", ""},
	} {
		if u, c := haUnit(x.unit, x.name, x.counter); u != x.want || c != x.class {
			t.Errorf("%s %s counter %v: %q %q, want %q %q", x.unit, x.name, x.counter, u, c, x.want, x.class)
		}
	}
}
