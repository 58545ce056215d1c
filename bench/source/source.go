// Package source makes batches for the uplinks of the rigs.
package source

import (
	"slices"
	"sync"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
	"tidegate/uplink"
)

// New returns an empty Queue.
func New(c *clock.Clock) *Queue {
	cat := telemetry.NewCatalog([]telemetry.Point{{Device: "meter", Name: "power", Unit: "W", Kind: "gauge"}})
	return &Queue{cat: cat, clock: c, held: map[uint64][]byte{}, changed: make(chan struct{}, 1)}
}

// Waiting is how many batches are not acknowledged.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.held)
}

// Points is the catalog of the batches.
func (q *Queue) Points() *telemetry.Catalog { return q.cat }

// Queue is a Source of an uplink in memory. Make one with New.
type Queue struct {
	cat     *telemetry.Catalog
	clock   *clock.Clock
	mu      sync.Mutex
	held    map[uint64][]byte
	given   uint64
	changed chan struct{}
}

// Add appends a batch of one reading, whose value is its number.
func (q *Queue) Add() {
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

func (q *Queue) find(lane string, fits func(uint64) bool, better func(a, b uint64) bool) (uplink.Item, bool, error) {
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

// Next is as uplink.Source wants it.
func (q *Queue) Next(lane string, from uint64) (uplink.Item, bool, error) {
	return q.find(lane, func(n uint64) bool { return n >= from }, func(a, b uint64) bool { return a < b })
}

// Prev is as uplink.Source wants it.
func (q *Queue) Prev(lane string, upto uint64) (uplink.Item, bool, error) {
	return q.find(lane, func(n uint64) bool { return n <= upto }, func(a, b uint64) bool { return a > b })
}

// Ack is as uplink.Source wants it.
func (q *Queue) Ack(lane string, seqs ...uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, n := range seqs {
		delete(q.held, n)
	}
}

// Given is as uplink.Source wants it.
func (q *Queue) Given(lane string) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if lane != "data" {
		return 0
	}
	return q.given
}

// Lowest is as uplink.Source wants it.
func (q *Queue) Lowest(lane string) uint64 {
	if item, ok, _ := q.Next(lane, 0); ok { // in memory: no error
		return item.Seq
	}
	return q.Given(lane) + 1
}

// Losses is as uplink.Source wants it.
func (q *Queue) Losses() []uplink.Loss { return nil }

// AckLoss is as uplink.Source wants it.
func (q *Queue) AckLoss(uplink.Loss) error { return nil }

// SetAside is as uplink.Source wants it.
func (q *Queue) SetAside(string, uint64, string) error { return nil }

// Catalog is as uplink.Source wants it.
func (q *Queue) Catalog(string) (*telemetry.Catalog, error) { return q.cat, nil }

// Changed is as uplink.Source wants it.
func (q *Queue) Changed() <-chan struct{} { return q.changed }
