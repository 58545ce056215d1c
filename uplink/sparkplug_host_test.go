package uplink

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tidegate/internal/telemetry"
)

// hostWord is a line of testdata/peer/npm/host.js.
type hostWord struct {
	Kind, Node, Device string
	Seq                *int
	QoS                int
	Bad, Error         string
	Ready, Offline     bool
	Metrics            []hostMetric
}

type hostMetric struct {
	Name, Type string
	Alias      int
	Value      any
	IsNull     bool
	Historical bool
	Timestamp  int64
	Quality    *int
	Reason     *string
	Unit       *string
}

// sparkplugHost is a host application on npm sparkplug-payload.
type sparkplugHost struct {
	t    *testing.T
	in   io.WriteCloser
	mu   sync.Mutex
	said []hostWord
}

// peerModules is where `make peers` puts the packages of testdata/peer/npm.
func peerModules() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "tidegate-peers", "node_modules")
}

func newHost(t *testing.T, m *mosquitto, identity string) *sparkplugHost {
	t.Helper()
	needs(t, "node")
	modules := peerModules()
	if _, err := os.Stat(filepath.Join(modules, "sparkplug-payload")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("npm sparkplug-payload is not here: make peers")
		}
		t.Skip("NOT RUN: npm sparkplug-payload is not here: make peers")
	}
	script, err := filepath.Abs(filepath.Join("..", "testdata", "peer", "npm", "host.js"))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("node", script, m.url(), identity, "here", "scada")
	c.Env = append(os.Environ(), "NODE_PATH="+modules)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	h := &sparkplugHost{t: t, in: in}
	var wg sync.WaitGroup
	wg.Go(func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var w hostWord
			if err := json.Unmarshal(lines.Bytes(), &w); err != nil {
				t.Errorf("host: %v: %s", err, lines.Text())
			}
			h.mu.Lock()
			h.said = append(h.said, w)
			h.mu.Unlock()
		}
	})
	t.Cleanup(func() { in.Close(); wg.Wait(); c.Wait() })
	eventually(t, 15*time.Second, "the host is online", func() bool { return h.has(func(w hostWord) bool { return w.Ready }) })
	return h
}

func (h *sparkplugHost) has(ok func(hostWord) bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.said {
		if ok(w) {
			return true
		}
	}
	return false
}

func (h *sparkplugHost) of(kind, device string) []hostWord {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []hostWord
	for _, w := range h.said {
		if w.Kind == kind && w.Device == device {
			out = append(out, w)
		}
	}
	return out
}

// TestSparkplugHost: a host that none of us wrote decodes births, data and
// deaths through mosquitto, asks for a birth, goes and comes back.
func TestSparkplugHost(t *testing.T) {
	t.Parallel()
	for _, types := range []bool{false, true} {
		t.Run(fmt.Sprintf("datatypes %v", types), func(t *testing.T) { withHost(t, types) })
	}
}

func withHost(t *testing.T, types bool) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("127.0.0.1")
	m := newMosquitto(t, ca, [2][]byte{sc, sk}, "")
	hc, hk := ca.good("scada")
	h := newHost(t, m, identityDir(t, ca.pem, hc, hk))
	cc, ck := ca.good("gw-1")
	e := newEdge(t)
	e.take(laneData, e.meter(1))
	up := newNode(t, m.url(), e, &memory{}, func(o *Options) {
		o.Identity = identityDir(t, ca.pem, cc, ck)
		o.Sparkplug = Sparkplug{PrimaryHost: "scada", Aliases: true, Datatypes: types}
	})
	up.tune.ack, up.tune.write, up.tune.connect = 2*time.Second, 2*time.Second, 5*time.Second
	u := start(t, up, e)
	e.drained(t, "the backlog")
	time.Sleep(2 * time.Millisecond)
	e.take(laneData, e.meter(42), e.air(230.1, "fine"))
	time.Sleep(2 * time.Millisecond)
	e.take(laneData, telemetry.Group{At: now(), Readings: []telemetry.Reading{failed(0, telemetry.Comm, telemetry.CauseTimeout)}})
	time.Sleep(2 * time.Millisecond)
	e.take(laneData, e.airGone())
	e.drained(t, "live data")
	eventually(t, 5*time.Second, "the device's death", func() bool { return len(h.of("DDEATH", "air-1")) == 1 })

	nbirth := h.of("NBIRTH", "")
	if len(nbirth) != 1 || *nbirth[0].Seq != 0 {
		t.Fatalf("NBIRTH %+v", nbirth)
	}
	got := map[string]hostMetric{}
	for _, x := range nbirth[0].Metrics {
		got[x.Name] = x
	}
	if x := got["bdSeq"]; x.Type != "Int64" || x.Value != 0.0 {
		t.Errorf("bdSeq %+v", x)
	}
	if x := got[rebirth]; x.Type != "Boolean" || x.Value != false {
		t.Errorf("rebirth %+v", x)
	}
	born := map[string]hostMetric{}
	for _, x := range h.of("DBIRTH", "meter-1")[0].Metrics {
		born[x.Name] = x
	}
	if x := born["power"]; x.Type != "Double" || x.Value != 1.1 || *x.Unit != "W" || *x.Quality != 192 || x.Alias == 0 {
		t.Errorf("power %+v", x)
	}
	if x := born["energy"]; x.Type != "Int64" || x.Value != 1.0 {
		t.Errorf("energy %+v", x)
	}
	if x := born["relay"]; x.Type != "Boolean" || x.Value != false {
		t.Errorf("relay %+v", x)
	}
	data := h.of("DDATA", "meter-1")
	if len(data) != 3 {
		t.Fatalf("%d DDATA", len(data))
	}
	for _, x := range data[0].Metrics {
		if !x.Historical || x.Name == "" {
			t.Errorf("backlog %+v", x)
		}
	}
	want := map[string]any{"power": 42.1, "energy": 42.0, "relay": true}
	for _, x := range data[1].Metrics {
		// A metric without a type has no value for this library: that is what `datatypes` is for.
		if x.Historical || types && x.Value != want[x.Name] || !types && x.Value != nil {
			t.Errorf("live %+v, want %v", x, want[x.Name])
		}
	}
	if x := data[2].Metrics[0]; x.Name != "power" || x.Value != nil || x.Quality == nil || *x.Quality != 0 || *x.Reason != "comm timeout" {
		t.Errorf("no value: %+v", x)
	}
	air := h.of("DBIRTH", "air-1")[0].Metrics
	for _, x := range air {
		if x.Name == "pm2_5" && (x.Type != "Double" || x.Value != 230.1 && !x.IsNull) || x.Name == "note" && x.Type != "String" {
			t.Errorf("air %+v", x)
		}
	}

	time.Sleep(300 * time.Millisecond)
	fmt.Fprintln(h.in, "write gw-1 meter-1 power 5")
	fmt.Fprintln(h.in, "rebirth gw-1")
	eventually(t, 5*time.Second, "a birth on request", func() bool { return len(h.of("NBIRTH", "")) == 2 })
	fmt.Fprintln(h.in, "offline")
	eventually(t, 5*time.Second, "the node's death", func() bool { return len(h.of("NDEATH", "")) == 1 })
	e.take(laneData, e.meter(43))
	time.Sleep(100 * time.Millisecond)
	if e.waiting() != 1 {
		t.Error("data goes while the host is offline")
	}
	u.stop()
	if h.has(func(w hostWord) bool { return w.Bad != "" || w.Error != "" }) {
		t.Errorf("%+v", h.said)
	}
}
