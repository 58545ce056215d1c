package uplink

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// forgetful is a broker that keeps nothing on disk: what it acknowledged and
// had not handed on is gone when it is killed.
func forgetful(t *testing.T) *mosquitto {
	t.Helper()
	needs(t, "mosquitto")
	ln := listen(t)
	addr := ln.Addr().String()
	ln.Close()
	m := &mosquitto{t: t, dir: t.TempDir()}
	fmt.Sscanf(addr[strings.LastIndexByte(addr, ':')+1:], "%d", &m.port)
	conf := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence false\n", m.port)
	write(t, 0o644, filepath.Join(m.dir, "mosquitto.conf"), []byte(conf))
	m.start()
	t.Cleanup(m.kill)
	return m
}

// consumer stores what it receives and then says so.
type consumer struct {
	mu     sync.Mutex
	got    map[string]map[uint64]int
	due    map[string]string // lanes whose receipt is to be said, with their epoch
	mute   bool              // it stores and says nothing
	client mqtt.Client
}

func (c *consumer) has(lane string, seq uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got[lane][seq] > 0
}

func (c *consumer) count(lane string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got[lane])
}

// receipts are those that are to be said.
func (c *consumer) receipts() (all [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for lane, ep := range c.due {
		delete(c.due, lane)
		if c.mute {
			continue
		}
		through := uint64(0)
		for c.got[lane][through+1] > 0 {
			through++
		}
		also := [][2]uint64{}
		for n := range c.got[lane] {
			if n > through {
				also = append(also, [2]uint64{n, n})
			}
		}
		b, _ := json.Marshal(map[string]any{"ep": ep, "lane": lane, "through": through, "also": also})
		all = append(all, b)
	}
	return all
}

func consume(t *testing.T, m *mosquitto) *consumer {
	c := &consumer{got: map[string]map[uint64]int{laneData: {}, laneEvent: {}}, due: map[string]string{}}
	wake, stop := make(chan struct{}, 1), make(chan struct{})
	o := mqtt.NewClientOptions().AddBroker(fmt.Sprint("tcp://127.0.0.1:", m.port)).SetClientID("consumer").
		SetMaxReconnectInterval(100 * time.Millisecond).SetConnectRetry(true).SetConnectRetryInterval(50 * time.Millisecond)
	o.SetOnConnectHandler(func(cl mqtt.Client) {
		cl.Subscribe("tg/v1/here/gw-1/+", 1, func(cl mqtt.Client, msg mqtt.Message) {
			var e struct {
				Ep, Lane string
				Seq      uint64
			}
			if json.Unmarshal(msg.Payload(), &e) != nil || e.Seq == 0 {
				return
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.got[e.Lane][e.Seq]++
			c.due[e.Lane] = e.Ep
			select {
			case wake <- struct{}{}:
			default:
			}
		})
	})
	c.client = mqtt.NewClient(o)
	c.client.Connect()
	// Not where messages are handled: the library waits there for up to 30 s
	// when the connection has gone.
	var said sync.WaitGroup
	said.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-wake:
			}
			for _, b := range c.receipts() {
				c.client.Publish("tg/v1/here/gw-1/receipt", 1, false, b)
			}
		}
	})
	t.Cleanup(func() { close(stop); said.Wait(); c.client.Disconnect(50) })
	eventually(t, 10*time.Second, "the consumer", c.client.IsConnectionOpen)
	return c
}

// TestReceipts: a broker that forgets what it acknowledged is killed again
// and again. Nothing is deleted that the consumer has not got.
func TestReceipts(t *testing.T) {
	m := forgetful(t)
	c := consume(t, m)
	src := newStore(t)
	early := []key{}
	var mu sync.Mutex
	src.onAck = func(lane string, seq uint64) {
		if !c.has(lane, seq) {
			mu.Lock()
			early = append(early, key{lane, seq})
			mu.Unlock()
		}
	}
	u := newUplink(t, fmt.Sprint("mqtt://127.0.0.1:", m.port), func(o *Options) { o.Receipts = true })
	u.tune.receipt, u.tune.status = 300*time.Millisecond, 100*time.Millisecond
	start(t, u, src)
	for round := range 4 {
		for range 10 {
			src.add(laneData, 20)
			src.add(laneEvent, 1)
			time.Sleep(10 * time.Millisecond)
		}
		if round < 3 {
			m.kill()
			time.Sleep(50 * time.Millisecond)
			m.start()
		}
	}
	eventually(t, 60*time.Second, "the receipts", func() bool { return src.waiting() == 0 })
	if len(early) > 0 {
		t.Errorf("%d batches were deleted before the consumer had them: %v", len(early), early[:min(5, len(early))])
	}
	if d, e := c.count(laneData), c.count(laneEvent); d != 800 || e != 40 {
		t.Errorf("the consumer has %d and %d", d, e)
	}
	if s := u.Stats(); s.Received == 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestReceiptsOfOthers: what was never sent, another store, another lane and
// nonsense delete nothing; and without receipts nothing is deleted at all.
func TestReceiptsOfOthers(t *testing.T) {
	m := forgetful(t)
	needs(t, "mosquitto_pub")
	c := consume(t, m)
	c.mute = true
	src := newStore(t)
	u := newUplink(t, fmt.Sprint("mqtt://127.0.0.1:", m.port), func(o *Options) { o.Receipts, o.Inflight = true, 5 })
	start(t, u, src)
	src.add(laneData, 3)
	eventually(t, 10*time.Second, "three batches", func() bool { return c.count(laneData) == 3 })
	say := func(s string) {
		t.Helper()
		if out, err := exec.Command("mosquitto_pub", "-p", fmt.Sprint(m.port), "-q", "1", "-t", "tg/v1/here/gw-1/receipt", "-m", s).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	for _, s := range []string{"x", `{"ep":"00000000","lane":"data","through":3}`, `{"ep":"6f3a91c2","lane":"event","through":3}`,
		`{"ep":"6f3a91c2","lane":"other","through":3}`, `{"ep":"6f3a91c2","lane":"data","through":0,"also":[[4,900]]}`, `{"ep":"6f3a91c2","lane":"data","also":[[3,2]]}`} {
		say(s)
	}
	say(`{"ep":"6f3a91c2","lane":"data","through":1,"also":[[3,3]]}`)
	eventually(t, 10*time.Second, "the receipt", func() bool { return src.waiting() == 1 })
	src.mu.Lock()
	acked := []uint64{}
	for k := range src.acked {
		acked = append(acked, k.seq)
	}
	src.mu.Unlock()
	slices.Sort(acked)
	if !slices.Equal(acked, []uint64{1, 3}) {
		t.Errorf("deleted %v", acked)
	}
	src.add(laneData, 2) // 4 and 5 were named by a receipt before they existed
	eventually(t, 10*time.Second, "two more", func() bool { return c.has(laneData, 5) })
	if n := src.waiting(); n != 3 {
		t.Errorf("%d are held, want 3", n)
	}
	if u.Stats().Awaiting == 0 {
		t.Error("nothing awaits its receipt")
	}
}

func TestReceiptCovers(t *testing.T) {
	r := receipt{Through: 10, Also: [][2]uint64{{13, 20}, {30, 30}}}
	for _, c := range []struct {
		a, b uint64
		want bool
	}{{1, 10, true}, {10, 11, false}, {11, 11, false}, {13, 13, true}, {13, 20, true}, {12, 20, false}, {13, 21, false}, {30, 30, true}, {5, 20, false}} {
		if got := r.covers(c.a, c.b); got != c.want {
			t.Errorf("%d..%d: %v", c.a, c.b, got)
		}
	}
	r = receipt{Through: 12, Also: [][2]uint64{{13, 20}}}
	if !r.covers(5, 20) {
		t.Error("a span that joins what came before it")
	}
}
