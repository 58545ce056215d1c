package uplink

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
)

func TestDelivers(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	src := newStore(t).add(laneData, 30).add(laneEvent, 3)
	src.losses = []Loss{{Lane: laneData, From: 1, To: 0, Why: "restart"}}
	src.losses[0] = Loss{Lane: laneEvent, From: 9, To: 11, Batches: 3, Readings: -1, Why: "corrupt"}
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
	eventually(t, 5*time.Second, "all delivered", func() bool { return src.waiting() == 0 })
	src.add(laneData, 5)
	eventually(t, 5*time.Second, "live delivered", func() bool { return src.waiting() == 0 })
	st := u.Stats()
	u.stop()
	if h := b.Hellos(); len(h) != 1 || h[0] != (sim.Hello{ClientID: "gw-1", Clean: true, Version: 4}) {
		t.Errorf("CONNECT %+v", h)
	}

	got := messages(t, b)
	if m := got[0]; m.State != "online" || m.Topic != "tg/v1/here/gw-1/status" || !m.Arrival.Retained || m.Arrival.QoS != 1 {
		t.Errorf("first message %+v", m)
	}
	if m := got[1]; m.Topic != "tg/v1/here/gw-1/meta" || len(m.Points) != 2 || !m.Arrival.Retained || m.M != src.cat.Hash() {
		t.Errorf("second message %+v", m)
	}
	for i, m := range got[2:5] {
		if m.Topic != "tg/v1/here/gw-1/event" || m.Seq != uint64(i+1) {
			t.Errorf("message %d is no event: %+v", i+2, m)
		}
	}
	if m := got[5]; m.Topic != "tg/v1/here/gw-1/up" || m.Dropped == nil || m.Dropped.From != 9 || m.Dropped.To != 11 || m.Dropped.Why != "corrupt" || m.Lane != laneEvent || m.Seq != 0 {
		t.Errorf("no tombstone: %+v", m)
	}
	if r := complete(t, seqs(t, b, laneData), 35); r != 0 {
		t.Errorf("%d repeats", r)
	}
	for _, m := range got {
		if m.Lane == laneData && m.Seq != 0 {
			if m.Records[0].H != (m.Seq <= 30) {
				t.Errorf("number %d has h %v", m.Seq, m.Records[0].H)
			}
			if m.Records[0].Values["power"] != float64(m.Seq) || m.Lo == 0 || m.Lo > m.Seq || m.GW != "gw-1" || m.EP != "6f3a91c2" || m.Clk != "ok" {
				t.Errorf("number %d: %+v", m.Seq, m)
			}
		}
	}
	last := got[len(got)-1]
	if last.State != "offline" || !last.Arrival.Retained {
		t.Errorf("last message %+v", last)
	}
	eventually(t, time.Second, "one connection, ended with DISCONNECT", func() bool {
		n, clean := b.Connections()
		return n == 1 && clean == 1 && len(b.Wills()) == 0
	})
	if st.State != StateOnline || st.Acked != 39 || st.Repeats != 0 || st.InFlight != 0 || st.LastAck.IsZero() || st.BytesOut == 0 || st.BytesIn == 0 {
		t.Errorf("%+v", st)
	}
	if len(src.told) != 1 {
		t.Errorf("told %v", src.told)
	}
	if u.Stats().State != StateStopped {
		t.Errorf("state %s", u.Stats().State)
	}
}

// TestSweep lets the broker misbehave at the n-th message, for every n and
// every way it knows. Nothing may be lost, nothing may be acknowledged to
// the source without a PUBACK, and a lost connection may cost at most a
// window of repeats.
func TestSweep(t *testing.T) {
	const batches, window = 14, 5
	for move, name := range map[sim.Move]string{sim.DropBefore: "drop-before", sim.DropUnread: "drop-before-puback",
		sim.DropAfter: "drop-after-puback", sim.Swallow: "swallow", sim.Twice: "twice", sim.Stranger: "stranger",
		sim.Early: "early", sim.WrongAck: "wrong-ack", sim.Stall: "stall", sim.Oversize: "oversize"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; n <= batches+4; n++ {
				sweep(t, fmt.Sprintf("%s at %d", name, n), batches, window, func(a sim.Arrival) sim.Move {
					if a.Total == n {
						return move
					}
					return sim.Pass
				})
			}
		})
	}
	t.Run("every-third", func(t *testing.T) {
		t.Parallel()
		moves := []sim.Move{sim.DropBefore, sim.DropAfter, sim.Swallow, sim.DropUnread, sim.Twice, sim.WrongAck, sim.Early}
		sweep(t, "every third", 60, window, func(a sim.Arrival) sim.Move {
			if a.Total%5 == 3 {
				return moves[a.Total/5%len(moves)]
			}
			return sim.Pass
		})
	})
	t.Run("delay", func(t *testing.T) {
		t.Parallel()
		sweep(t, "delay", batches, window, func(a sim.Arrival) sim.Move {
			time.Sleep(time.Duration(a.Total%7) * 20 * time.Millisecond)
			return sim.Pass
		})
	})
}

func sweep(t *testing.T, what string, batches, window int, play func(sim.Arrival) sim.Move) {
	t.Helper()
	b := sim.NewScript(listen(t), sim.ScriptOptions{Play: play, SessionPresent: true})
	defer b.Close()
	src := newStore(t).add(laneData, batches).add(laneEvent, 1)
	src.onAck = func(lane string, seq uint64) {
		for _, a := range b.Received() {
			if a.Acked && strings.Contains(string(a.Payload), fmt.Sprintf(`"lane":%q,"seq":%d,`, lane, seq)) {
				return
			}
		}
		t.Errorf("%s: %s %d was acknowledged without a PUBACK", what, lane, seq)
	}
	up := newUplink(t, "mqtt://"+b.Addr(), func(o *Options) { o.Inflight = window })
	u := start(t, up, src)
	eventually(t, 20*time.Second, what+": all delivered", func() bool { return src.waiting() == 0 })
	src.add(laneData, 1)
	eventually(t, 20*time.Second, what+": live delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	repeats := complete(t, seqs(t, b, laneData), uint64(batches+1)) + complete(t, seqs(t, b, laneEvent), 1)
	sessions, _ := b.Connections()
	if repeats > window*(sessions-1) {
		t.Errorf("%s: %d repeats in %d sessions with a window of %d", what, repeats, sessions, window)
	}
	for k, n := range src.acked {
		if n != 1 {
			t.Errorf("%s: %v acknowledged %d times", what, k, n)
		}
	}
	if len(src.aside) > 0 {
		t.Errorf("%s: set aside %v", what, src.aside)
	}
}

// TestTokenTrap shows why no client of the library outlives its connection:
// with its own reconnecting, a token reports success though no PUBACK ever
// came. The same broker never gets us to acknowledge.
func TestTokenTrap(t *testing.T) {
	hostile := func() *sim.Script {
		return newScript(t, sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
			if strings.HasSuffix(a.Topic, "status") || strings.HasSuffix(a.Topic, "meta") {
				return sim.Pass
			}
			return sim.DropBefore
		}})
	}
	b := hostile()
	c := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("tcp://" + b.Addr()).SetClientID("trap").
		SetAutoReconnect(true).SetMaxReconnectInterval(50 * time.Millisecond).SetCleanSession(true))
	if tok := c.Connect(); !tok.WaitTimeout(30*time.Second) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	tok := c.Publish("up", 1, false, "lost for good")
	if !tok.WaitTimeout(time.Minute) {
		t.Fatal("the trap did not close: the token is still open")
	}
	if tok.Error() != nil {
		t.Errorf("the trap did not close: %v", tok.Error())
	}
	c.Disconnect(250)
	if n := len(b.Received()); n != 0 {
		t.Errorf("the broker kept %d messages", n)
	}

	b = hostile()
	src := newStore(t).add(laneData, 3)
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
	eventually(t, 10*time.Second, "ten sessions", func() bool { n, _ := b.Connections(); return n >= 10 })
	u.stop()
	if len(src.acked) != 0 || src.waiting() != 3 {
		t.Errorf("acknowledged %v", src.acked)
	}
}

func TestPoison(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
		if strings.Contains(string(a.Payload), `"lane":"data","seq":7,`) {
			return sim.DropBefore
		}
		return sim.Pass
	}})
	src := newStore(t).add(laneData, 25)
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
	// Until the batch is set aside, live data comes now and then.
	eventually(t, 20*time.Second, "all but one delivered, the tombstone told", func() bool {
		if n := src.Given(laneData); n < 60 {
			src.add(laneData, 1)
		}
		time.Sleep(10 * time.Millisecond)
		return src.waiting() == 0
	})
	sessions, _ := b.Connections()
	u.stop()
	if !slices.Equal(src.aside, []key{{laneData, 7}}) || len(src.told) != 1 || src.told[0].Why != "poison" {
		t.Errorf("set aside %v, told %v", src.aside, src.told)
	}
	// Ten strikes; the reset may eat PUBACKs of batches before it, which then
	// take the first blame.
	if sessions < poisonStrikes+1 || sessions > poisonStrikes+4 {
		t.Errorf("%d sessions", sessions)
	}
	got := seqs(t, b, laneData)
	for q := uint64(1); q <= src.Given(laneData); q++ {
		if slices.Contains(got, q) == (q == 7) {
			t.Errorf("number %d", q)
		}
	}
}

// TestNoPoison: a broker that closes on every batch condemns none, nor does
// one that restarts while a single batch is under way.
func TestNoPoison(t *testing.T) {
	for name, play := range map[string]func(a sim.Arrival) sim.Move{
		"access rule": func(a sim.Arrival) sim.Move {
			if strings.HasSuffix(a.Topic, "/up") {
				return sim.DropBefore
			}
			return sim.Pass
		},
	} {
		for _, batches := range []int{1, 5} {
			t.Run(fmt.Sprint(name, batches), func(t *testing.T) {
				b := newScript(t, sim.ScriptOptions{Play: play})
				src := newStore(t).add(laneData, batches)
				u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
				eventually(t, 20*time.Second, "many sessions", func() bool { n, _ := b.Connections(); return n >= 40 })
				u.stop()
				if len(src.aside) != 0 || src.waiting() != batches {
					t.Errorf("set aside %v", src.aside)
				}
				if e := u.Stats().Err; e == nil || e.Code != "closed" {
					t.Errorf("%v", e)
				}
			})
		}
	}
}

// TestOrder: with a slow broker and a long backlog, live data and events
// pass it, and the backlog still gets its share.
func TestOrder(t *testing.T) {
	for _, order := range []string{"oldest-first", "newest-first"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			var u *running
			src := newStore(t).add(laneData, 200)
			var late []uint64
			var mu sync.Mutex
			b := newScript(t, sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
				time.Sleep(2 * time.Millisecond)
				if a.Total%10 == 0 && a.Total < 200 {
					src.add(laneData, 1)
					if a.Total == 100 {
						src.add(laneEvent, 1)
					}
				}
				mu.Lock()
				late = append(late, src.Given(laneData))
				mu.Unlock()
				return sim.Pass
			}})
			u = start(t, newUplink(t, "mqtt://"+b.Addr(), func(o *Options) { o.Backlog.Order = order; o.Inflight = 10 }), src)
			eventually(t, 20*time.Second, "all delivered", func() bool { return src.waiting() == 0 })
			u.stop()
			given := src.Given(laneData)
			got := seqs(t, b, laneData)
			if r := complete(t, got, given); r != 0 {
				t.Errorf("%d repeats", r)
			}
			var back []uint64
			place := map[uint64]int{}
			for i, q := range got {
				place[q] = i
				if q <= 200 {
					back = append(back, q)
				}
			}
			sorted := slices.Clone(back)
			slices.Sort(sorted)
			if order == "newest-first" {
				slices.Reverse(sorted)
			}
			if !slices.Equal(back, sorted) {
				t.Errorf("backlog out of order: %v", back)
			}
			// A live batch waits for what is in flight, not for the backlog.
			mu.Lock()
			defer mu.Unlock()
			for q := uint64(201); q <= given; q++ {
				born := slices.IndexFunc(late, func(n uint64) bool { return n >= q })
				if wait := place[q] - born; wait > 12 {
					t.Errorf("live number %d was overtaken by %d messages", q, wait)
				}
			}
		})
	}
}

// TestBacklogShare: when live data could fill the link, the backlog still
// moves.
func TestBacklogShare(t *testing.T) {
	src := newStore(t).add(laneData, 20)
	b := newScript(t, sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
		if src.Given(laneData) < 420 {
			src.add(laneData, 1) // each message is followed by a live one
		}
		return sim.Pass
	}})
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
	eventually(t, 20*time.Second, "all delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	got := seqs(t, b, laneData)
	for i, q := range got {
		if q == 20 && i > 330 { // a tenth is 20 in 200, without a share it is the last
			t.Errorf("the backlog ended at message %d", i)
		}
	}
	if r := complete(t, got, 420); r != 0 {
		t.Errorf("%d repeats", r)
	}
}

func TestBacklogRate(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	src := newStore(t).add(laneData, 10)
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), func(o *Options) { o.Backlog.Rate = 4000 }), src)
	began := time.Now()
	eventually(t, 20*time.Second, "all delivered", func() bool { return src.waiting() == 0 })
	took := time.Since(began)
	u.stop()
	size := 0
	for _, a := range b.Received() {
		if strings.HasSuffix(a.Topic, "/up") {
			size += len(a.Payload)
		}
	}
	want := time.Duration(float64(size) * 0.85 / 4000 * float64(time.Second))
	if took < want || took > 10*want {
		t.Errorf("%d bytes at 4000 a second took %s", size, took)
	}
}

// TestLiveOverload: live data that comes faster than the link takes it does
// not pile up: what is newest goes first.
func TestLiveOverload(t *testing.T) {
	src := newStore(t)
	var slow atomic.Bool
	slow.Store(true)
	b := newScript(t, sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
		if slow.Load() {
			time.Sleep(20 * time.Millisecond)
			src.add(laneData, 3)
		}
		return sim.Pass
	}})
	u := newUplink(t, "mqtt://"+b.Addr(), func(o *Options) { o.Inflight = 2 })
	r := start(t, u, src)
	eventually(t, 20*time.Second, "a pile", func() bool { return src.Given(laneData) > 150 })
	slow.Store(false)
	at := src.Given(laneData)
	mark := len(b.Received())
	eventually(t, 20*time.Second, "all delivered", func() bool { return src.waiting() == 0 })
	r.stop()
	got := messages(t, b)[:mark]
	newest := uint64(0)
	for _, m := range got {
		newest = max(newest, m.Seq)
	}
	if at-newest > 30 {
		t.Errorf("the newest of %d numbers sent was %d", at, newest)
	}
	complete(t, seqs(t, b, laneData), src.Given(laneData))
}

func TestCatalogChange(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	src := newStore(t)
	old := telemetry.NewCatalog([]telemetry.Point{{Device: "old", Name: "x", Kind: "gauge"}})
	src.old[old.Hash()] = old
	src.put(laneData, src.encode(old, 1, ""))
	src.put(laneData, src.encode(old, 2, ""))
	src.put(laneData, []byte("damaged"))
	lost := telemetry.NewCatalog([]telemetry.Point{{Device: "lost", Name: "x", Kind: "gauge"}})
	src.put(laneData, src.encode(lost, 4, ""))
	src.add(laneData, 1)
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), func(o *Options) { o.Shape = "columns" }), src)
	eventually(t, 10*time.Second, "all delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	var log []string
	for _, m := range messages(t, b) {
		switch {
		case m.Points != nil:
			log = append(log, fmt.Sprintf("meta %s %v", m.M, m.Arrival.Retained))
		case m.Dropped != nil:
			log = append(log, fmt.Sprintf("dropped %d %s", m.Dropped.From, m.Dropped.Why))
		case m.Columns != nil:
			log = append(log, fmt.Sprintf("batch %d %s", m.Seq, m.M))
		}
	}
	want := []string{"meta " + src.cat.Hash() + " true", "meta " + old.Hash() + " false",
		"batch 1 " + old.Hash(), "batch 2 " + old.Hash(), "dropped 3 corrupt"}
	for _, w := range append(want, "dropped 4 corrupt", "batch 5 "+src.cat.Hash()) {
		if !slices.Contains(log, w) {
			t.Errorf("%q is missing", w)
		}
	}
	if len(log) != 7 || !slices.Equal(log[:4], want[:4]) {
		t.Errorf("%q", log)
	}
}

func TestGzipTopic(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	src := newStore(t).add(laneData, 1)
	src.put(laneData, src.encode(src.cat, 2, strings.Repeat("long ", 200)))
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), func(o *Options) { o.Compress = "gzip" }), src)
	eventually(t, 10*time.Second, "all delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	topics := map[uint64]string{}
	for _, m := range messages(t, b) {
		if m.Lane == laneData {
			topics[m.Seq] = m.Topic
		}
	}
	if topics[1] != "tg/v1/here/gw-1/up" || topics[2] != "tg/v1/here/gw-1/up/gz" {
		t.Errorf("%v", topics)
	}
}

// TestOversizeCostsNoMemory: a header of five bytes makes the library alone
// allocate 256 MB.
func TestOversizeCostsNoMemory(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{Greeting: []byte{0x30, 0xff, 0xff, 0xff, 0x7f}})
	src := newStore(t).add(laneData, 1)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
	eventually(t, 10*time.Second, "ten sessions", func() bool { n, _ := b.Connections(); return n >= 10 })
	u.stop()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 16<<20 {
		t.Errorf("%d MB were allocated", got>>20)
	}
	if e := u.Stats().Err; e == nil || e.Code != "protocol" {
		t.Errorf("error %v", e)
	}
}

// TestMalformed feeds the client what would make the library panic or lie.
func TestMalformed(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"second connack":   {0x20, 2, 0, 0},
		"connect":          {0x10, 0},
		"empty puback":     {0x40, 0},
		"long puback":      {0x40, 3, 0, 1, 0},
		"suback of two":    {0x90, 4, 0, 1, 0, 0},
		"length of five":   {0x40, 0x80, 0x80, 0x80, 0x80, 0x01},
		"publish too big":  {0x30, 0x81, 0x80, 0x10},
		"quality two":      {0x34, 5, 0, 1, 'a', 0, 1},
		"pingresp of two":  {0xd0, 2, 0, 0},
		"disconnect":       {0xe0, 0},
		"reserved":         {0xf0, 0},
		"pubrec":           {0x50, 2, 0, 1},
		"publish of 1":     {0x30, 1, 0},
		"bad topic length": {0x30, 4, 0xff, 0xff, 'a', 'b'},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newScript(t, sim.ScriptOptions{Greeting: bytes})
			src := newStore(t)
			u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
			eventually(t, 10*time.Second, "three sessions", func() bool { n, _ := b.Connections(); return n >= 3 })
			u.stop()
			if e := u.Stats().Err; e == nil || e.Code != "protocol" && name != "bad topic length" {
				t.Errorf("error %v", e)
			}
		})
	}
}

// TestLowest: what is lost but not told yet keeps "lo" down, else the cloud
// would miss numbers below it that no tombstone names.
func TestLowest(t *testing.T) {
	src := newStore(t).add(laneData, 9)
	src.Ack(laneData, 1, 2, 3, 4, 5, 6)
	for _, x := range []struct {
		losses []Loss
		want   uint64
	}{
		{nil, 7},
		{[]Loss{{Lane: laneData, From: 3, To: 4}, {Lane: laneData, From: 5, To: 5}}, 3},
		{[]Loss{{Lane: laneEvent, From: 1, To: 4}}, 7},
		{[]Loss{{Lane: laneData, From: 8, To: 9}}, 7},
	} {
		src.losses = x.losses
		if got := lowest(src, laneData); got != x.want {
			t.Errorf("%v: lo %d, want %d", x.losses, got, x.want)
		}
	}
}

func TestDelay(t *testing.T) {
	u := newUplink(t, "mqtt://127.0.0.1:1", nil)
	u.tune = defaultTuning()
	for attempt, most := range map[int]time.Duration{0: time.Second, 3: 8 * time.Second, 20: 5 * time.Minute, math.MaxInt: 5 * time.Minute} {
		low, high := time.Duration(math.MaxInt64), time.Duration(0)
		for range 2000 {
			d := u.delay(attempt)
			low, high = min(low, d), max(high, d)
		}
		if high > most || high < most*9/10 || low > most*6/10 || low < most/2 {
			t.Errorf("attempt %d: from %s to %s, want %s to %s", attempt, low, high, most/2, most)
		}
	}
}

// eager is a carrier that acknowledges everything at once.
type eager struct{ carrier }

func (eager) post(message, string) (ticket, error) { return receipted{}, nil }
func (eager) quick(message) error                  { return nil }
func (eager) busy() bool                           { return false }
func (eager) held() time.Time                      { return time.Time{} }

// receipted is the ticket of what it took.
type receipted struct{}

func (receipted) done() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
func (receipted) written() time.Time          { return time.Now() }
func (receipted) outcome() (time.Time, error) { return time.Now(), nil }
func (receipted) drop()                       {}

// TestBuffersComeBack: a session keeps the buffers that it made messages in, and
// no others: statuses, metadata and what a platform's speaker makes by itself
// would add up for as long as the connection lives.
func TestBuffersComeBack(t *testing.T) {
	for _, shape := range []string{"records", "thingsboard", "homeassistant", "sparkplug"} {
		t.Run(shape, func(t *testing.T) {
			u := newUplink(t, "mqtt://127.0.0.1:1", func(o *Options) { o.Shape = shape })
			src := newStore(t)
			s := &session{u: u, src: src, link: eager{}, metaSent: map[string]bool{}, order: newOrder(u, src), window: newWindow()}
			u.speaker.will()
			for range 50 {
				src.add(laneData, 1)
				s.nextStatus, s.nextMeta = time.Time{}, time.Time{}
				if err := s.fill(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := s.acknowledge(); err != nil {
					t.Fatal(err)
				}
			}
			if n := src.waiting(); n > 0 {
				t.Errorf("%d batches are not acknowledged: nothing was tried", n)
			}
			most := 1
			if shape == "homeassistant" {
				most = 0
			}
			if len(s.spare) != most {
				t.Errorf("%d buffers are kept after 50 batches, statuses and descriptions, want %d", len(s.spare), most)
			}
		})
	}
}
