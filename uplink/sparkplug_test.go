package uplink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
	sp "tidegate/uplink/sparkplug"
)

// memory is a Memory that lives as long as a test.
type memory struct {
	mu sync.Mutex
	m  map[string]string
}

func (m *memory) Meta(key string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.m[key]
	return []byte(v), ok, nil
}

func (m *memory) SaveMeta(key string, val []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[string]string{}
	}
	m.m[key] = string(val)
	return nil
}

func edgeCatalog() *telemetry.Catalog {
	return telemetry.NewCatalog([]telemetry.Point{
		{Device: "meter-1", Name: "power", Unit: "W", Kind: "gauge", Decimals: 1},
		{Device: "meter-1", Name: "energy", Unit: "Wh", Kind: "counter"},
		{Device: "meter-1", Name: "relay", Kind: "state"},
		{Device: "air-1", Name: "pm2_5", Unit: "ug/m3", Kind: "gauge"},
		{Device: "air-1", Name: "note", Kind: "text"},
		{Device: "dead-1", Name: "x", Kind: "gauge"},
		{Device: "rules", Name: "high", Kind: "event", Class: telemetry.ClassAlarm}})
}

// edge is a source with readings of edgeCatalog, and what the gateway knows of them.
type edge struct {
	*store
	mu     sync.Mutex
	latest map[int]telemetry.Reading
	at     map[int]clock.Stamp
}

func newEdge(t testing.TB) *edge {
	e := &edge{store: newStore(t), latest: map[int]telemetry.Reading{}, at: map[int]clock.Stamp{}}
	e.cat = edgeCatalog()
	return e
}

func (e *edge) tell(f func(int, telemetry.Reading, clock.Stamp)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.cat.Points {
		r, ok := e.latest[i]
		if !ok {
			r = telemetry.Reading{Point: uint32(i), Quality: telemetry.Init}
		}
		f(i, r, e.at[i])
	}
}

func now() clock.Stamp { return clock.Stamp{Wall: time.Now().UnixMilli(), Boot: 1, Synced: true} }

func reading(p uint32, v telemetry.Value) telemetry.Reading {
	return telemetry.Reading{Point: p, Value: v}
}

func failed(p uint32, q telemetry.Quality, c telemetry.Cause) telemetry.Reading {
	return telemetry.Reading{Point: p, Quality: q, Cause: c}
}

// take makes a batch of groups, as the collector would: what is read is known
// at once.
func (e *edge) take(lane string, groups ...telemetry.Group) {
	e.mu.Lock()
	for _, g := range groups {
		for _, r := range g.Readings {
			e.latest[int(r.Point)], e.at[int(r.Point)] = r, g.At
		}
	}
	e.mu.Unlock()
	e.batch(e.cat, lane, groups...)
}

func (e *edge) batch(c *telemetry.Catalog, lane string, groups ...telemetry.Group) {
	b, err := telemetry.AppendBatch(nil, &telemetry.Batch{Catalog: c.Hash(), Boot: 1, Synced: true, Groups: groups})
	if err != nil {
		e.t.Fatal(err)
	}
	e.put(lane, b)
}

func (e *edge) meter(n int64) telemetry.Group {
	return telemetry.Group{At: now(), Readings: []telemetry.Reading{reading(0, telemetry.IntValue(n*10+1, 1)),
		reading(1, telemetry.IntValue(n, 0)), reading(2, telemetry.BoolValue(n%2 == 0))}}
}

func (e *edge) air(f float32, note string) telemetry.Group {
	return telemetry.Group{At: now(), Readings: []telemetry.Reading{reading(3, telemetry.Float32Value(f)), reading(4, telemetry.TextValue(note))}}
}

func (e *edge) airGone() telemetry.Group {
	return telemetry.Group{At: now(), Readings: []telemetry.Reading{failed(3, telemetry.Comm, telemetry.CauseTimeout), failed(4, telemetry.Comm, telemetry.CauseTimeout)}}
}

func newNode(t testing.TB, url string, e *edge, m *memory, change func(*Options)) *Uplink {
	t.Helper()
	o := Defaults()
	o.URL, o.Shape = url, "sparkplug"
	if change != nil {
		change(&o)
	}
	u, err := New(o, Env{Gateway: "gw-1", Site: "here", Version: "test", Epoch: "6f3a91c2", Boot: 3, Stopped: "clean",
		Catalog: e.cat, Clock: testClock(t), Latest: e.tell, Memory: m})
	if err != nil {
		t.Fatal(err)
	}
	u.tune = quick()
	u.speaker.(*sparkplug).every = time.Second
	return u
}

func (e *edge) drained(t testing.TB, what string) {
	t.Helper()
	eventually(t, 10*time.Second, what, func() bool { return e.waiting() == 0 })
}

// heardBy returns what a broker got of one kind.
func heardBy(b *sim.Script, kind, device string) []heardMessage {
	var out []heardMessage
	for _, a := range b.Received() {
		if h, ok := takeApart(a); ok && h.kind == kind && h.device == device {
			out = append(out, h)
		}
	}
	return out
}

func command(t testing.TB, name string) []byte {
	return sp.AppendTime(sp.AppendMetric(nil, &sp.Metric{Name: name, Timestamp: time.Now().UnixMilli(), Type: sp.Boolean, Typed: true, Value: sp.Truth(true)}), time.Now().UnixMilli())
}

// TestSparkplug goes through the statements of the specification that can be
// seen from outside. docs/sparkplug.md lists them; each is a test here.
func TestSparkplug(t *testing.T) {
	t.Parallel()
	j := newJudge()
	t.Run("life", func(t *testing.T) { life(t, j, true, false) })
	t.Run("life with names and types", func(t *testing.T) { life(t, newJudge(), false, true).report(t) })
	t.Run("primary host", func(t *testing.T) { primaryHost(t, j) })
	t.Run("two brokers", func(t *testing.T) { twoBrokers(t, j) })
	for id := range j.seen {
		t.Run(id, func(t *testing.T) {
			for _, b := range j.broken[id] {
				t.Error(b)
			}
		})
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "sparkplug.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ = bytes.Cut(page, []byte("## Statements"))
	listed := map[string]bool{}
	for _, line := range strings.Split(string(page), "\n") {
		if !strings.HasPrefix(line, "- ") {
			continue
		}
		for _, m := range regexp.MustCompile("`([a-zA-Z0-9-]+)`").FindAllStringSubmatch(line, -1) {
			listed[m[1]] = true
			if j.seen[m[1]] == 0 {
				t.Errorf("docs/sparkplug.md says that %s is tested: nothing looks at it", m[1])
			}
		}
	}
	for id := range j.seen {
		if !listed[id] {
			t.Errorf("docs/sparkplug.md does not list %s", id)
		}
	}
}

func (j *judge) report(t *testing.T) {
	for id, list := range j.broken {
		t.Errorf("%s: %s", id, list)
	}
}

// life is an edge node from its first start: a backlog, live data past the
// end of the sequence numbers, a device that dies and returns, values of
// other types, losses, an old catalog, rebirths, a clean stop, a broken
// connection, a second start.
func life(t *testing.T, j *judge, aliases, datatypes bool) *judge {
	b := newScript(t, sim.ScriptOptions{})
	m := &memory{}
	e := newEdge(t)
	for n := range int64(3) {
		e.take(laneData, e.meter(n))
	}
	e.mu.Lock() // known to be silent before the first connection
	e.latest[5], e.at[5] = failed(5, telemetry.Comm, telemetry.CauseTimeout), now()
	e.mu.Unlock()
	set := func(o *Options) { o.Sparkplug = Sparkplug{Aliases: aliases, Datatypes: datatypes} }
	u := start(t, newNode(t, "mqtt://"+b.Addr(), e, m, set), e)
	e.drained(t, "the backlog")
	for n := range int64(280) {
		time.Sleep(time.Millisecond)
		e.take(laneData, e.meter(100+n), telemetry.Group{At: now(), Readings: []telemetry.Reading{failed(5, telemetry.Comm, telemetry.CauseTimeout)}})
	}
	e.drained(t, "live data")
	if n := len(heardBy(b, "DBIRTH", "air-1")) + len(heardBy(b, "DBIRTH", "dead-1")); n != 0 {
		t.Errorf("%d births of devices that never answered", n)
	}
	time.Sleep(2 * time.Millisecond)
	e.take(laneData, e.air(230.1, "fine"))
	e.drained(t, "a device comes up")
	time.Sleep(2 * time.Millisecond)
	e.take(laneData, e.air(11.25, "dust"), telemetry.Group{At: now(), Readings: []telemetry.Reading{
		failed(0, telemetry.Fault, telemetry.CauseMarker), {Point: 1, Value: telemetry.IntValue(5, 0), Quality: telemetry.Range}, failed(2, telemetry.Comm, telemetry.CauseCRC)}})
	e.drained(t, "bad qualities")
	time.Sleep(2 * time.Millisecond)
	e.take(laneEvent, telemetry.Group{At: now(), Readings: []telemetry.Reading{reading(6, telemetry.TextValue("raised"))}})
	e.take(laneData, e.meter(1))
	e.drained(t, "an event")
	late := e.meter(77) // comes behind what is newer
	late.At.Wall -= 1000
	e.batch(e.cat, laneData, late)
	e.drained(t, "a late reading")
	if d := heardBy(b, "DDATA", "meter-1"); !d[len(d)-1].metrics[0].historical {
		t.Error("what is older than the value said last is taken for the current one")
	}
	for range 3 {
		time.Sleep(2 * time.Millisecond)
		e.take(laneData, e.airGone())
	}
	e.drained(t, "the device dies")
	if n := len(heardBy(b, "DDEATH", "air-1")); n != 1 {
		t.Errorf("%d DDEATHs, want 1", n)
	}
	time.Sleep(2 * time.Millisecond)
	e.take(laneData, e.air(1, "back"))
	e.take(laneData, telemetry.Group{At: now(), Readings: []telemetry.Reading{reading(1, telemetry.Float64Value(1.5))}}) // of another type
	e.drained(t, "the device is back")
	if n := len(heardBy(b, "DBIRTH", "air-1")); n != 2 {
		t.Errorf("%d DBIRTHs, want 2", n)
	}
	old := telemetry.NewCatalog([]telemetry.Point{{Device: "meter-1", Name: "removed", Kind: "gauge"}, {Device: "gone-1", Name: "y", Kind: "gauge"}})
	e.store.mu.Lock()
	e.old[old.Hash()] = old
	e.store.mu.Unlock()
	e.batch(old, laneData, telemetry.Group{At: now(), Readings: []telemetry.Reading{reading(0, telemetry.IntValue(7, 0))}},
		telemetry.Group{At: now(), Readings: []telemetry.Reading{reading(1, telemetry.BoolValue(true))}})
	e.drained(t, "an old catalog")
	e.store.mu.Lock()
	e.losses = append(e.losses, Loss{Lane: laneData, From: 90, To: 92, Batches: 3, Readings: 12, Why: "full"})
	e.store.mu.Unlock()
	e.signal()
	e.drained(t, "a loss")
	if n := heardBy(b, "NDATA", ""); len(n) != 1 {
		t.Errorf("%d NDATA for one loss", len(n))
	}
	rebirths(t, j, b, e)
	u.stop()
	goneBy(b, 1)
	accepted, clean := b.Connections()
	j.must(accepted == 1 && clean == 1, "no DISCONNECT", "payloads-ndeath-will-message-publisher-disconnect-mqtt311")
	deaths := heardBy(b, "NDEATH", "")
	j.must(len(deaths) == 1 && deaths[0].Acked, fmt.Sprint(deaths), "payloads-ndeath-will-message-publisher")

	// A second start, and a connection that breaks.
	u = start(t, newNode(t, "mqtt://"+b.Addr(), e, m, set), e)
	eventually(t, 5*time.Second, "born again", func() bool { return len(heardBy(b, "DBIRTH", "meter-1")) > 0 && u.Stats().State == StateOnline })
	e.take(laneData, e.meter(7))
	e.drained(t, "data of the second start")
	b.Cut()
	eventually(t, 5*time.Second, "connected again", func() bool { n, _ := b.Connections(); return n == 3 })
	e.take(laneData, e.meter(8))
	e.drained(t, "data of the third connection")
	u.stop()
	if w := b.Wills(); len(w) != 1 {
		t.Errorf("%d wills for one broken connection", len(w))
	}
	for _, a := range b.Received() {
		if k := strings.Split(a.Topic, "/"); a.Conn == 1 && len(k) > 2 && k[2] == "DDATA" {
			if h, _ := takeApart(a); h.N < 8 && len(h.metrics) > 0 && !h.metrics[0].historical {
				t.Errorf("the backlog is not historical: %+v", h.rawPayload)
			}
		}
	}
	j.sessions(b.Received(), "here", "gw-1", []string{"meter-1"}, aliases, datatypes)
	j.connects(b, "here", "gw-1", "")
	commits(t, b, e)
	return j
}

// rebirths asks ten times within a moment while data flows.
func rebirths(t *testing.T, j *judge, b *sim.Script, e *edge) {
	ncmd := "spBv1.0/here/NCMD/gw-1"
	before := len(heardBy(b, "NBIRTH", ""))
	b.Say(ncmd, true, command(t, rebirth)) // a retained one is nobody's wish
	b.Say(ncmd, false, []byte{0xff})       // nor is this
	b.Say("spBv1.0/here/DCMD/gw-1/meter-1", false, command(t, "relay"))
	time.Sleep(1100 * time.Millisecond)
	if n := len(heardBy(b, "NBIRTH", "")); n != before {
		t.Errorf("%d births that nobody asked for", n-before)
	}
	total := len(b.Received())
	for range 10 {
		b.Say(ncmd, false, command(t, rebirth))
	}
	eventually(t, 5*time.Second, "a rebirth", func() bool { return len(heardBy(b, "NBIRTH", "")) > before })
	e.take(laneData, e.meter(2))
	e.drained(t, "data after it")
	time.Sleep(1500 * time.Millisecond)
	if n := len(heardBy(b, "NBIRTH", "")) - before; n < 1 || n > 2 {
		t.Errorf("%d births for ten requests at once", n)
	}
	var kinds []string
	for _, a := range b.Received()[total:] {
		if h, ok := takeApart(a); ok {
			kinds = append(kinds, strings.TrimSuffix(h.kind+" "+h.device, " "))
		}
	}
	j.must(len(kinds) > 0 && kinds[0] == "NBIRTH", fmt.Sprint(kinds), "operational-behavior-data-commands-rebirth-action-1")
	j.must(len(kinds) > 3 && strings.HasPrefix(kinds[1], "DBIRTH") && strings.HasPrefix(kinds[2], "DBIRTH") && !strings.HasPrefix(kinds[0], "D"),
		fmt.Sprint(kinds), "operational-behavior-data-commands-rebirth-action-2")
}

// goneBy waits a moment until the broker has read so many DISCONNECTs.
func goneBy(b *sim.Script, n int) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if _, clean := b.Connections(); clean >= n {
			return
		}
	}
}

// commits: every batch has its commit behind its data, acknowledged before
// the batch was given up.
func commits(t *testing.T, b *sim.Script, e *edge) {
	seen := map[uint64]bool{}
	for _, a := range b.Received() {
		if a.Topic != "tg/v1/here/gw-1/commit" {
			continue
		}
		var c struct {
			Lane string
			Seq  uint64
			Said *struct{ N int }
		}
		if err := json.Unmarshal(a.Payload, &c); err != nil {
			t.Fatalf("%s: %v", a.Payload, err)
		}
		if a.QoS != 1 || !a.Acked || a.Retained {
			t.Errorf("commit %+v", a)
		}
		if c.Lane == laneData && c.Said != nil {
			seen[c.Seq] = true
		}
	}
	for q := uint64(1); q <= e.Given(laneData); q++ {
		if !seen[q] {
			t.Errorf("batch %d has no commit", q)
		}
	}
}

// primaryHost: nothing is said before it is online, and nothing but the
// NDEATH after it went.
func primaryHost(t *testing.T, j *judge) {
	b := newScript(t, sim.ScriptOptions{})
	e := newEdge(t)
	e.take(laneData, e.meter(1))
	u := start(t, newNode(t, "mqtt://"+b.Addr(), e, &memory{}, func(o *Options) { o.Sparkplug.PrimaryHost = "scada" }), e)
	subscribed := func(n int) func() bool {
		return func() bool {
			k := 0
			for _, s := range b.Subscriptions() {
				if s.Filter == "spBv1.0/STATE/scada" {
					k++
				}
			}
			return k == n
		}
	}
	say := func(host string, online bool, at int64) {
		b.Say("spBv1.0/STATE/"+host, true, []byte(fmt.Sprintf(`{"online":%v,"timestamp":%d}`, online, at)))
	}
	births := func() int { return len(heardBy(b, "NBIRTH", "")) }
	quiet := func(what string, ids ...string) {
		t.Helper()
		n := len(b.Received())
		time.Sleep(50 * time.Millisecond)
		j.must(len(b.Received()) == n, what, ids...)
	}
	eventually(t, 5*time.Second, "the state is asked for", subscribed(1))
	quiet("said before any state", "message-flow-edge-node-birth-publish-phid-wait")
	say("other", true, 1000)
	quiet("another host counts", "message-flow-edge-node-birth-publish-phid-wait-id")
	say("scada", false, 1000)
	quiet("offline counts", "message-flow-edge-node-birth-publish-phid-wait-online")
	say("scada", true, 999)
	quiet("an old word counts", "message-flow-edge-node-birth-publish-phid-wait-timestamp")
	b.Say("spBv1.0/STATE/scada", true, []byte("ONLINE"))
	quiet("the word of an old version counts", "message-flow-edge-node-birth-publish-phid-wait")
	if e.waiting() != 1 {
		t.Error("a batch went before the host was there")
	}
	if h := u.Stats().Held; h != "the primary host scada is not online" {
		t.Errorf("why it waits: %q", h)
	}
	say("scada", true, 1001)
	e.drained(t, "the host is online")
	if h := u.Stats().Held; h != "" {
		t.Errorf("it waits no more: %q", h)
	}
	j.must(births() == 1, "no birth", "operational-behavior-edge-node-birth-sequence-wait")
	say("scada", false, 1000)
	quiet("an old offline counts", "operational-behavior-edge-node-termination-host-offline-timestamp")
	e.take(laneData, e.meter(2))
	e.drained(t, "it goes on")
	say("scada", false, 1002)
	eventually(t, 5*time.Second, "connected again", subscribed(2))
	goneBy(b, 1)
	n, clean := b.Connections()
	deaths := heardBy(b, "NDEATH", "")
	j.must(len(deaths) == 1, fmt.Sprint(deaths), "message-flow-edge-node-birth-publish-phid-offline")
	j.must(clean == 1, "no DISCONNECT", "operational-behavior-edge-node-termination-host-offline")
	j.must(n == 2, "no new connection", "operational-behavior-edge-node-termination-host-offline-reconnect")
	if e := u.Stats().Err; e == nil || e.Code != "primary-host" {
		t.Errorf("the reason is not told: %v", e)
	}
	e.take(laneData, e.meter(3))
	quiet("data while the host is offline", "message-flow-edge-node-birth-publish-phid-wait")
	if e.waiting() != 1 {
		t.Error("a batch went while the host was offline")
	}
	say("scada", true, 1003)
	e.drained(t, "the host is back")
	u.stop()
	late := heardBy(b, "DDATA", "meter-1")
	if l := late[len(late)-1]; len(l.metrics) == 0 || l.metrics[0].hasValue == false {
		t.Errorf("what was held: %+v", l)
	}
	j.sessions(b.Received(), "here", "gw-1", []string{"meter-1"}, true, false)
	j.connects(b, "here", "gw-1", "scada")
}

// TestRebirthCuts: a rebirth takes back the rest of a batch under way; it is
// sent again after the births.
func TestRebirthCuts(t *testing.T) {
	e := newEdge(t)
	e.take(laneData, e.meter(1))
	u := newNode(t, "mqtt://127.0.0.1:1", e, &memory{}, nil)
	p := u.speaker.(*sparkplug)
	p.will()
	p.births()
	p.birthAt = time.Now().Add(-time.Minute)
	s := &session{u: u, src: e}
	s.order = newOrder(u, e)
	_, item, _, ok, err := s.order.pick(true)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	k := key{item.Lane, item.Seq}
	s.order.flying[k] = true
	s.queue = []outgoing{{message: message{topic: "a", quick: true}}, {message: message{topic: "b"}, flight: flight{item: item}}}
	p.again = true
	if err := p.rebirth(s); err != nil {
		t.Fatal(err)
	}
	if len(s.queue) != 2 || !strings.Contains(s.queue[0].topic, "NBIRTH") || !strings.Contains(s.queue[1].topic, "DBIRTH") {
		t.Errorf("queue %+v", s.queue)
	}
	if s.order.flying[k] || !u.unacked[k] {
		t.Error("the batch is not taken back")
	}
	if _, again, _, ok, _ := s.order.pick(true); !ok || again.Seq != item.Seq {
		t.Error("the batch does not come again")
	}
}

// twoBrokers: a broker without the primary host is left for the next one.
func twoBrokers(t *testing.T, j *judge) {
	a, b := newScript(t, sim.ScriptOptions{}), newScript(t, sim.ScriptOptions{})
	e := newEdge(t)
	e.take(laneData, e.meter(1))
	up := newNode(t, "mqtt://"+a.Addr(), e, &memory{}, func(o *Options) {
		o.Fallback = []string{"mqtt://" + b.Addr()}
		o.Sparkplug.PrimaryHost = "scada"
	})
	up.speaker.(*sparkplug).patience = 50 * time.Millisecond
	u := start(t, up, e)
	walked := false
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && !walked; time.Sleep(5 * time.Millisecond) {
		b.Say("spBv1.0/STATE/scada", true, []byte(`{"online":true,"timestamp":5}`))
		walked = len(heardBy(b, "NBIRTH", "")) > 0
	}
	j.must(walked, "no birth at the second broker", "operational-behavior-primary-application-state-with-multiple-servers-walk")
	e.drained(t, "data at the second broker")
	goneBy(a, 1)
	n, clean := a.Connections()
	m, _ := b.Connections()
	j.must(n == clean && n >= 1 && m >= 1, fmt.Sprintf("%d connections to the first broker, %d ended", n, clean), "operational-behavior-primary-application-state-with-multiple-servers-single-server")
	u.stop()
	if len(heardBy(a, "NBIRTH", "")) != 0 {
		t.Error("born where the host is not")
	}
}
