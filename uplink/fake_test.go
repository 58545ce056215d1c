package uplink

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tidegate/internal/clock"
	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
)

func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "8") // they wait, and hardly work
	goleak.VerifyTestMain(m)
}

// store is a Source in memory.
type store struct {
	t   testing.TB
	cat *telemetry.Catalog
	old map[string]*telemetry.Catalog
	// onAck is called before a batch is removed.
	onAck func(lane string, seq uint64)

	mu      sync.Mutex
	held    map[string]map[uint64][]byte
	given   map[string]uint64
	acked   map[key]int
	losses  []Loss
	told    []Loss
	aside   []key
	changed chan struct{}
}

func testCatalog() *telemetry.Catalog {
	return telemetry.NewCatalog([]telemetry.Point{
		{Device: "meter-1", Name: "power", Unit: "W", Kind: "gauge"},
		{Device: "meter-1", Name: "note", Kind: "text"}})
}

func newStore(t testing.TB) *store {
	return &store{t: t, cat: testCatalog(), old: map[string]*telemetry.Catalog{},
		held:  map[string]map[uint64][]byte{laneData: {}, laneEvent: {}},
		given: map[string]uint64{}, acked: map[key]int{}, changed: make(chan struct{}, 1)}
}

// add appends n batches of one reading each; the value is the number.
func (s *store) add(lane string, n int) *store {
	s.mu.Lock()
	for range n {
		s.given[lane]++
		seq := s.given[lane]
		s.held[lane][seq] = s.encode(s.cat, seq, "")
	}
	s.mu.Unlock()
	s.signal()
	return s
}

func (s *store) encode(c *telemetry.Catalog, seq uint64, text string) []byte {
	at := clock.Stamp{Wall: time.Now().UnixMilli(), Boot: 1, Synced: true}
	r := []telemetry.Reading{{Point: 0, Value: telemetry.IntValue(int64(seq), 0)}}
	if text != "" {
		r = append(r, telemetry.Reading{Point: 1, Value: telemetry.TextValue(text)})
	}
	b, err := telemetry.AppendBatch(nil, &telemetry.Batch{Catalog: c.Hash(), Boot: 1, Synced: true,
		Groups: []telemetry.Group{{At: at, Readings: r}}})
	if err != nil {
		s.t.Error(err)
	}
	return b
}

func (s *store) put(lane string, b []byte) {
	s.mu.Lock()
	s.given[lane]++
	s.held[lane][s.given[lane]] = b
	s.mu.Unlock()
	s.signal()
}

func (s *store) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *store) find(lane string, better func(seq, best uint64) bool) (Item, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best uint64
	for seq := range s.held[lane] {
		if better(seq, best) {
			best = seq
		}
	}
	if best == 0 {
		return Item{}, false, nil
	}
	return Item{Lane: lane, Seq: best, Bytes: slices.Clone(s.held[lane][best]), Count: 1, From: 1, To: 1}, true, nil
}

func (s *store) Next(lane string, from uint64) (Item, bool, error) {
	return s.find(lane, func(seq, best uint64) bool { return seq >= from && (best == 0 || seq < best) })
}

func (s *store) Prev(lane string, upto uint64) (Item, bool, error) {
	return s.find(lane, func(seq, best uint64) bool { return seq <= upto && seq > best })
}

func (s *store) Ack(lane string, seqs ...uint64) {
	for _, seq := range seqs {
		if s.onAck != nil {
			s.onAck(lane, seq)
		}
		s.mu.Lock()
		delete(s.held[lane], seq)
		s.acked[key{lane, seq}]++
		s.mu.Unlock()
	}
}

func (s *store) Given(lane string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given[lane]
}

func (s *store) Lowest(lane string) uint64 {
	item, ok, _ := s.Next(lane, 0)
	if !ok {
		return s.Given(lane) + 1
	}
	return item.Seq
}

func (s *store) Losses() []Loss {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.losses)
}

func (s *store) AckLoss(l Loss) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.losses = slices.DeleteFunc(s.losses, func(x Loss) bool { return x == l })
	s.told = append(s.told, l)
	return nil
}

func (s *store) SetAside(lane string, seq uint64, why string) error {
	s.mu.Lock()
	delete(s.held[lane], seq)
	s.aside = append(s.aside, key{lane, seq})
	s.losses = append(s.losses, Loss{Lane: lane, From: seq, To: seq, Batches: 1, Readings: 1, Why: why})
	s.mu.Unlock()
	s.signal()
	return nil
}

func (s *store) Catalog(hash string) (*telemetry.Catalog, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hash == s.cat.Hash() {
		return s.cat, nil
	}
	if c := s.old[hash]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("no catalog %s", hash)
}

func (s *store) Changed() <-chan struct{} { return s.changed }

// waiting is how many batches and losses are left.
func (s *store) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held[laneData]) + len(s.held[laneEvent]) + len(s.losses)
}

// quick are times that suit a loopback.
func quick() tuning {
	return tuning{connect: 5 * time.Second, write: 2 * time.Second, ack: time.Second,
		grace: time.Second, backoff: 2 * time.Millisecond, backoffMax: 20 * time.Millisecond, stable: time.Minute,
		status: time.Minute, meta: time.Hour, retry: 10 * time.Millisecond,
		receipt: time.Minute, spread: 20 * time.Millisecond, look: 20 * time.Millisecond, verdict: 100 * time.Millisecond, glance: time.Hour, home: 50 * time.Millisecond}
}

func testClock(t testing.TB) *clock.Clock {
	c, err := clock.Open("")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newUplink(t testing.TB, url string, change func(*Options)) *Uplink {
	t.Helper()
	o := Defaults()
	o.URL = url
	if change != nil {
		change(&o)
	}
	u, err := New(o, Env{Gateway: "gw-1", Site: "here", Version: "test", Epoch: "6f3a91c2", Boot: 3, Stopped: "clean",
		Catalog: testCatalog(), Clock: testClock(t)})
	if err != nil {
		t.Fatal(err)
	}
	u.tune = quick()
	return u
}

func listen(t testing.TB) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func newScript(t testing.TB, o sim.ScriptOptions) *sim.Script {
	s := sim.NewScript(listen(t), o)
	t.Cleanup(func() { s.Close() })
	return s
}

// running is an Uplink at work.
type running struct {
	*Uplink
	stop func()
	done chan struct{}
}

// start runs an Uplink until the test ends or stop is called, which waits.
func start(t testing.TB, u *Uplink, src Source) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Uplink: u, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		if err := u.Run(ctx, src); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	r.stop = func() { cancel(); <-r.done }
	t.Cleanup(r.stop)
	return r
}

func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	limit *= 5 // the machine may be busy with other tests
	for end := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// arrived is what the tests read of a arrived.
type arrived struct {
	Topic   string
	V       int
	GW, EP  string
	Lane    string
	Seq, Lo uint64
	M, Clk  string
	State   string
	Records []struct {
		Dev    string
		T      int64
		Values map[string]any
		H      bool
	}
	Columns []json.RawMessage
	Dropped *struct {
		From, To uint64
		Why      string
	}
	Points  []json.RawMessage
	Arrival sim.Arrival
}

func parse(t testing.TB, a sim.Arrival) arrived {
	t.Helper()
	b := a.Payload
	if strings.HasSuffix(a.Topic, "/gz") {
		r, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if b, err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	m := arrived{Topic: a.Topic, Arrival: a}
	if strings.HasSuffix(a.Topic, "/status") {
		var status struct{ State string }
		if err := json.Unmarshal(b, &status); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		m.State = status.State
		return m
	}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return m
}

func messages(t testing.TB, s *sim.Script) []arrived {
	var out []arrived
	for _, a := range s.Received() {
		out = append(out, parse(t, a))
	}
	return out
}

// seqs returns the numbers of a lane in order of arrival.
func seqs(t testing.TB, s *sim.Script, lane string) []uint64 {
	var out []uint64
	for _, m := range messages(t, s) {
		if m.Lane == lane && m.Seq != 0 {
			out = append(out, m.Seq)
		}
	}
	return out
}

// complete checks that every number 1..n arrived, and returns the repeats.
func complete(t testing.TB, got []uint64, n uint64) int {
	t.Helper()
	seen := map[uint64]bool{}
	for _, q := range got {
		seen[q] = true
	}
	for q := uint64(1); q <= n; q++ {
		if !seen[q] {
			t.Errorf("number %d is lost", q)
		}
	}
	return len(got) - len(seen)
}
