package agent

import (
	"fmt"
	"sync"

	"tidegate/buffer"
	"tidegate/internal/telemetry"
	"tidegate/uplink"
)

// source is the queue as the uplink sees it: lanes by name, catalogs by hash.
type source struct {
	*buffer.Queue

	mu       sync.Mutex
	catalogs map[string]*telemetry.Catalog
}

func newSource(q *buffer.Queue, current *telemetry.Catalog) *source {
	return &source{Queue: q, catalogs: map[string]*telemetry.Catalog{current.Hash(): current}}
}

func laneOf(name string) buffer.Lane {
	if name == buffer.Event.String() {
		return buffer.Event
	}
	return buffer.Data
}

func itemOf(i buffer.Item) uplink.Item {
	return uplink.Item{Lane: i.Lane.String(), Seq: i.Seq, Bytes: i.Bytes, Count: i.Count, From: i.From, To: i.To}
}

func (s *source) Next(lane string, from uint64) (uplink.Item, bool, error) {
	i, ok, err := s.Queue.Next(laneOf(lane), from)
	return itemOf(i), ok, err
}

func (s *source) Prev(lane string, upto uint64) (uplink.Item, bool, error) {
	i, ok, err := s.Queue.Prev(laneOf(lane), upto)
	return itemOf(i), ok, err
}

func (s *source) Ack(lane string, seqs ...uint64) { s.Queue.Ack(laneOf(lane), seqs...) }
func (s *source) Given(lane string) uint64        { return s.Queue.Given(laneOf(lane)) }
func (s *source) Lowest(lane string) uint64       { return s.Queue.Lowest(laneOf(lane)) }

func (s *source) SetAside(lane string, seq uint64, why string) error {
	return s.Queue.SetAside(laneOf(lane), seq, why)
}

func (s *source) Losses() []uplink.Loss {
	var out []uplink.Loss
	for _, l := range s.Queue.Losses() {
		out = append(out, uplink.Loss{Lane: l.Lane.String(), From: l.From, To: l.To, Batches: l.Batches,
			Readings: l.Readings, T0: l.T0, T1: l.T1, Why: l.Why})
	}
	return out
}

func (s *source) AckLoss(l uplink.Loss) error {
	return s.Queue.AckLoss(buffer.Loss{Lane: laneOf(l.Lane), From: l.From, To: l.To, Batches: l.Batches,
		Readings: l.Readings, T0: l.T0, T1: l.T1, Why: l.Why})
}

// Catalog returns the catalog that a batch was written with: the present
// one, or an older one that the buffer kept.
func (s *source) Catalog(hash string) (*telemetry.Catalog, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.catalogs[hash]; c != nil {
		return c, nil
	}
	raw, ok, err := s.Queue.Meta(catalogKey + hash)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("the buffer has no catalog %s: its points cannot be named", hash)
	}
	c, err := telemetry.DecodeCatalog(raw)
	if err != nil {
		return nil, err
	}
	s.catalogs[hash] = c
	return c, nil
}

// catalogKey is the buffer's key of a catalog, before its hash.
const catalogKey = "catalog/"
