package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
	"tidegate/uplink"
)

// broker says what it received, until its input ends.
func broker(addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	b := sim.NewScript(ln, sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
		var m struct {
			Lane string
			Seq  json.RawMessage
		}
		n := uint64(0)
		if json.Unmarshal(a.Payload, &m) == nil && m.Lane == "data" && json.Unmarshal(m.Seq, &n) == nil && n > 0 {
			fmt.Println("got", n)
		}
		return sim.Pass
	}})
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return b.Close()
}

// gateway sends a batch twice a second, until its input ends.
func gateway(url string, keepalive time.Duration) error {
	c, err := clock.Open("")
	if err != nil {
		return err
	}
	cat := telemetry.NewCatalog([]telemetry.Point{{Device: "meter", Name: "power", Unit: "W", Kind: "gauge"}})
	o := uplink.Defaults()
	o.URL, o.Insecure, o.Keepalive = url, "plain-text", keepalive
	u, err := uplink.New(o, uplink.Env{Gateway: "gw", Site: "net", Epoch: "00000000", Clock: c, Catalog: cat})
	if err != nil {
		return err
	}
	q := &queue{cat: cat, clock: c, held: map[uint64][]byte{}, changed: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { u.Run(ctx, q) })
	wg.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			q.add()
			fmt.Println("given", q.Given("data"), "sessions", u.Stats().Sessions)
		}
	})
	io.Copy(io.Discard, os.Stdin)
	stop()
	wg.Wait()
	return nil
}

// queue is a Source in memory.
type queue struct {
	cat     *telemetry.Catalog
	clock   *clock.Clock
	mu      sync.Mutex
	held    map[uint64][]byte
	given   uint64
	changed chan struct{}
}

func (q *queue) add() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.given++
	b, err := telemetry.AppendBatch(nil, &telemetry.Batch{Catalog: q.cat.Hash(), Boot: 1, Groups: []telemetry.Group{{At: q.clock.Stamp(),
		Readings: []telemetry.Reading{{Point: 0, Value: telemetry.IntValue(int64(q.given), 0)}}}}})
	if err != nil {
		panic(err)
	}
	q.held[q.given] = b
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

func (q *queue) find(lane string, fits func(uint64) bool, better func(a, b uint64) bool) (uplink.Item, bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	best := uint64(0)
	for n := range q.held {
		if lane == "data" && fits(n) && (best == 0 || better(n, best)) {
			best = n
		}
	}
	return uplink.Item{Lane: lane, Seq: best, Bytes: slices.Clone(q.held[best]), Count: 1, From: 1, To: 1}, best != 0, nil
}

func (q *queue) Next(lane string, from uint64) (uplink.Item, bool, error) {
	return q.find(lane, func(n uint64) bool { return n >= from }, func(a, b uint64) bool { return a < b })
}

func (q *queue) Prev(lane string, upto uint64) (uplink.Item, bool, error) {
	return q.find(lane, func(n uint64) bool { return n <= upto }, func(a, b uint64) bool { return a > b })
}

func (q *queue) Ack(lane string, seqs ...uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, n := range seqs {
		delete(q.held, n)
	}
}

func (q *queue) Given(lane string) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if lane != "data" {
		return 0
	}
	return q.given
}

func (q *queue) Lowest(lane string) uint64 {
	if item, ok, _ := q.Next(lane, 0); ok { // in memory: no error
		return item.Seq
	}
	return q.Given(lane) + 1
}

func (q *queue) Losses() []uplink.Loss                      { return nil }
func (q *queue) AckLoss(uplink.Loss) error                  { return nil }
func (q *queue) SetAside(string, uint64, string) error      { return nil }
func (q *queue) Catalog(string) (*telemetry.Catalog, error) { return q.cat, nil }
func (q *queue) Changed() <-chan struct{}                   { return q.changed }
