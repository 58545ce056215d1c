package buffer

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"tidegate/internal/trial"
)

// model is what a queue must be: for every number given, where it is.
type model struct {
	given uint64
	held  map[uint64]bool // true: durable
	acked map[uint64]bool // true: it was durable when it was acknowledged, so a crash may bring it back
	lost  ranges          // in the ledger
	told  ranges          // its Loss was acknowledged
	gone  ranges          // in memory at the last crash
}

// TestModel runs random operations against the model, reopening now and then
// after a clean stop and after a crash.
func TestModel(t *testing.T) {
	dir := fastDir(t)
	n := 0
	trial.Run(t, func(rt *trial.T) {
		n++
		o := Options{Dir: filepath.Join(dir, strconv.Itoa(n)), Size: 16 << 20, Segment: 256 << 10}
		defer os.RemoveAll(o.Dir)
		o.MaxLoss = trial.Pick(rt, 0, time.Hour)
		tune := defaultTuning()
		tune.block = 200
		tune.cache = trial.Pick[int64](rt, 0, 20<<10, 1<<20)
		tune.riding = trial.Pick(rt, 0, time.Hour)
		tune.idle = tune.riding
		q, err := open(o, tune)
		if err != nil {
			rt.Fatal(err)
		}
		var lanes [laneCount]*model
		for i := range lanes {
			lanes[i] = &model{held: map[uint64]bool{}, acked: map[uint64]bool{}}
		}
		lane := func() Lane { return trial.Pick(rt, Data, Data, Event) }
		number := func(m *model) uint64 {
			// Close to the lowest and to the highest held, as a sender asks.
			low, high := uint64(1), m.given+1
			for k := range m.held {
				high = max(high, k)
			}
			if rt.Bool() {
				if low = m.given + 1; len(m.held) > 0 {
					for k := range m.held {
						low = min(low, k)
					}
				}
				return low + rt.Uint(0, 5)
			}
			return max(1, high-min(high-1, rt.Uint(0, 5)))
		}
		reopen := func(clean bool) {
			if clean {
				if err := q.Close(); err != nil {
					rt.Fatal(err)
				}
			} else {
				crash(q)
			}
			for _, m := range lanes {
				for k, durable := range m.held {
					if clean {
						m.held[k] = true
					} else if !durable {
						delete(m.held, k)
						m.gone.add(k, k) // must be in the ledger
					}
				}
			}
			if q, err = open(o, tune); err != nil {
				rt.Fatal(err)
			}
			for i, m := range lanes {
				got := lost(q, Lane(i))
				here := set(all(rt, q, Lane(i)))
				if g := q.Given(Lane(i)); g < m.given || clean && g != m.given {
					rt.Fatalf("%s: given %d after %d", Lane(i), g, m.given)
				} else {
					m.given = g
				}
				for k := uint64(1); k <= m.given; k++ {
					switch {
					case m.held[k] && !here.has(k):
						rt.Fatalf("%s %d was durable and is gone", Lane(i), k)
					case here.has(k) && !m.held[k]:
						if durable, ok := m.acked[k]; clean || !ok || !durable {
							rt.Fatalf("%s %d is back", Lane(i), k)
						}
						delete(m.acked, k)
						m.held[k] = true
					case m.held[k] && got.has(k):
						rt.Fatalf("%s %d is told as lost", Lane(i), k)
					case m.gone.has(k) && !got.has(k):
						rt.Fatalf("%s %d went missing silently", Lane(i), k)
					case got.has(k):
						if clean && !m.lost.has(k) {
							rt.Fatalf("%s %d is in the ledger after a clean stop", Lane(i), k)
						}
					}
				}
				m.lost, m.gone = *got, ranges{}
			}
		}
		rt.Steps(func() {
			for i, m := range lanes {
				l := Lane(i)
				if q.Given(l) != m.given {
					rt.Fatalf("%s: given %d, want %d", l, q.Given(l), m.given)
				}
				got := all(rt, q, l)
				here := set(got)
				if uint64(len(got)) != here.n {
					rt.Fatalf("%s: a number twice", l)
				}
				for k := range m.held {
					if !here.has(k) && k <= q.limitOf(l) {
						rt.Fatalf("%s %d is not there", l, k)
					}
				}
				for _, k := range got {
					if _, ok := m.held[k]; !ok {
						rt.Fatalf("%s %d should be done", l, k)
					}
				}
				low := m.given + 1
				for k := range m.held {
					low = min(low, k)
				}
				if q.Lowest(l) != low {
					rt.Fatalf("%s: lowest %d, want %d", l, q.Lowest(l), low)
				}
				if s := q.Stats(); s.Waiting[l] != int64(len(m.held)) {
					rt.Fatalf("%s: %d waiting, want %d", l, s.Waiting[l], len(m.held))
				}
				at := number(m)
				it, ok, err := q.Prev(l, at)
				if err != nil {
					rt.Fatal(err)
				}
				want := uint64(0)
				for _, k := range got {
					if k <= at {
						want = k
					}
				}
				if it.Seq != want || ok != (want > 0) {
					rt.Fatalf("%s: Prev(%d) = %d, want %d", l, at, it.Seq, want)
				}
			}
		}, map[string]func(){
			"append": func() {
				l := lane()
				m := lanes[l]
				for range rt.Int(1, 12) {
					m.given++
					if seq := put(rt, q, l); seq != m.given {
						rt.Fatalf("given %d, want %d", seq, m.given)
					}
					m.held[m.given] = o.MaxLoss == 0
				}
			},
			"sync": func() {
				everything := rt.Bool()
				older := time.Hour
				if everything {
					older = 0
				}
				if err := q.Sync(older); err != nil {
					rt.Fatal(err)
				}
				for l, m := range lanes {
					for k := range m.held {
						m.held[k] = m.held[k] || everything || Lane(l) == Event
					}
				}
			},
			"ack": func() {
				l := lane()
				m := lanes[l]
				var seqs []uint64
				for range rt.Int(1, 8) {
					seqs = append(seqs, number(m))
				}
				q.Ack(l, seqs...)
				for _, k := range seqs {
					if durable, ok := m.held[k]; ok {
						m.acked[k] = durable
						delete(m.held, k)
					}
				}
			},
			"ackall": func() {
				l := lane()
				m := lanes[l]
				for k, durable := range m.held {
					q.Ack(l, k)
					m.acked[k] = durable
				}
				m.held = map[uint64]bool{}
			},
			"aside": func() {
				l := lane()
				m := lanes[l]
				k := number(m)
				if err := q.SetAside(l, k, WhyPoison); err != nil {
					rt.Fatal(err)
				}
				if _, ok := m.held[k]; ok {
					delete(m.held, k)
					m.lost.add(k, k)
				}
			},
			"told": func() {
				for _, x := range q.Losses() {
					m := lanes[x.Lane]
					if err := q.AckLoss(x); err != nil {
						rt.Fatal(err)
					}
					m.told.add(x.From, x.To)
				}
				for i, m := range lanes {
					m.lost = *lost(q, Lane(i))
				}
			},
			"clean": func() { reopen(true) },
			"crash": func() { reopen(false) },
		})
		if err := q.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}

func (q *Queue) limitOf(l Lane) uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.limit(&q.lanes[l])
}

func TestRanges(t *testing.T) {
	trial.Run(t, func(rt *trial.T) {
		var r ranges
		truth := make(map[uint64]bool)
		for range rt.Int(0, 40) {
			a := rt.Uint(0, 60)
			b := a + rt.Uint(0, 6)
			r.add(a, b)
			for i := max(a, 1); i <= b; i++ {
				truth[i] = true
			}
		}
		if r.n != uint64(len(truth)) {
			rt.Fatal(r.n, len(truth))
		}
		for i, s := range r.s {
			if s.a > s.b || s.a == 0 || i > 0 && s.a <= r.s[i-1].b+1 {
				rt.Fatal(r.s)
			}
		}
		for x := uint64(1); x < 80; x++ {
			if r.has(x) != truth[x] {
				rt.Fatal("has", x)
			}
			n := x
			for truth[n] {
				n++
			}
			p := x
			for p > 0 && truth[p] {
				p--
			}
			if r.next(x) != n || r.prev(x) != p {
				rt.Fatal(x, r.next(x), n, r.prev(x), p)
			}
		}
		a := rt.Uint(1, 60)
		b := a + rt.Uint(0, 20)
		var holes ranges
		for _, h := range r.holes(a, b) {
			holes.add(h.a, h.b)
		}
		in := uint64(0)
		for x := a; x <= b; x++ {
			if holes.has(x) == truth[x] {
				rt.Fatal("hole", x)
			}
			if truth[x] {
				in++
			}
		}
		if r.count(a, b) != in || r.covers(a, b) != (in == b-a+1) {
			rt.Fatal("count", r.count(a, b), in)
		}
	})
}

func TestStateRoundTrip(t *testing.T) {
	trial.Run(t, func(rt *trial.T) {
		s := &state{gen: rt.Word(), epoch: uint32(rt.Word()), boot: 3, clean: rt.Bool(), last: int64(rt.Word())}
		for i := range s.lanes {
			s.lanes[i].given = rt.Word()
			for range rt.Int(0, 9) {
				a := rt.Uint(1, 1<<40)
				s.lanes[i].done.add(a, a+rt.Uint(0, 1<<20))
			}
		}
		for range rt.Int(0, 5) {
			s.ledger = append(s.ledger, entry{saved: true, Loss: Loss{Lane: Event, From: 5, To: rt.Uint(5, 1<<60), Batches: -1, Readings: 7, T0: -4, Why: WhyFull}})
		}
		blob := s.encode()
		got, err := decodeState(blob)
		if err != nil {
			rt.Fatal(err)
		}
		if string(got.encode()) != string(blob) || len(got.ledger) != len(s.ledger) {
			rt.Fatal("not the same")
		}
		i := rt.Int(0, len(blob)*8-1)
		blob[i/8] ^= 1 << (i % 8)
		if _, err := decodeState(blob); err == nil {
			rt.Fatal("a flipped bit was not seen")
		}
	})
}
