package driver

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// pacedBus is a serial line in simulated time: every byte takes its time on
// the wire, devices their turnaround, and each silence is measured.
type pacedBus struct {
	mode lineMode
	turn time.Duration
	fifo int // bytes a UART hands over at a time; 0 is 8
	// refuse says what a unit does with a request: 0 answers, 1 to 11 refuses
	// with that exception, a negative number is silence.
	refuse func(unit, fc byte, addr, count int) int
	// content is what registers hold; nil: truth(1, address).
	content func(addr, count int) []byte

	mu       sync.Mutex
	free     time.Time // when the last byte has left the wire
	queue    []timedByte
	requests []pacedRequest
	shortest time.Duration // of the silences before a request
	ideal    time.Duration // what all exchanges take at least
}

type timedByte struct {
	at time.Time
	b  byte
}

type pacedRequest struct {
	unit, fc    byte
	addr, count int
	at          time.Time
	verdict     int
}

func (p *pacedBus) WriteAll(b []byte, _ time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.free.IsZero() {
		if s := now.Sub(p.free); p.shortest == 0 || s < p.shortest {
			p.shortest = s
		}
	}
	pk := packager(kindRTU, 1)
	pdu, err := pk.Decode(b)
	if err != nil {
		panic(err)
	}
	char := p.mode.char()
	end := now.Add(time.Duration(len(b)) * char)
	p.free = end
	r := pacedRequest{unit: b[0], fc: pdu.FunctionCode, addr: int(binary.BigEndian.Uint16(pdu.Data)),
		count: int(binary.BigEndian.Uint16(pdu.Data[2:])), at: now}
	if p.refuse != nil {
		r.verdict = p.refuse(r.unit, r.fc, r.addr, r.count)
	}
	p.requests = append(p.requests, r)
	var ans []byte
	s := newSlave(kindRTU, 1)
	switch {
	case r.verdict < 0:
		return nil
	case r.verdict > 0:
		ans = s.encode(r.unit, r.fc|0x80, []byte{byte(r.verdict)}, b)
	default:
		data := truthBytes(1, r.fc, uint16(r.addr), uint16(r.count))
		if p.content != nil {
			data = p.content(r.addr, r.count)
		}
		ans = s.encode(r.unit, r.fc, append([]byte{byte(len(data))}, data...), b)
	}
	for i, c := range ans {
		p.queue = append(p.queue, timedByte{end.Add(p.turn + time.Duration(i+1)*char), c})
	}
	p.free = p.queue[len(p.queue)-1].at
	p.ideal += time.Duration(len(b)+len(ans))*char + p.turn + p.mode.silence()
	return nil
}

func (p *pacedBus) ReadSome(b []byte, deadline time.Time) (int, error) {
	for {
		p.mu.Lock()
		now, n := time.Now(), 0
		for n < len(b) && len(p.queue) > 0 && !p.queue[0].at.After(now) {
			b[n] = p.queue[0].b
			p.queue = p.queue[1:]
			n++
		}
		next := deadline
		if len(p.queue) > 0 && p.queue[0].at.Before(deadline) {
			next = p.queue[min(cmp.Or(p.fifo, 8), len(p.queue))-1].at
		}
		p.mu.Unlock()
		switch {
		case n > 0:
			return n, nil
		case !next.After(now):
			return 0, ErrTimeout
		}
		time.Sleep(min(next.Sub(now), deadline.Sub(now)))
	}
}

func (p *pacedBus) Alive() error { return nil }
func (p *pacedBus) Close() error { return nil }

// since returns the requests from a time on.
func (p *pacedBus) since(t time.Time) []pacedRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.requests, func(r pacedRequest) bool { return !r.at.Before(t) })
	if i < 0 {
		return nil
	}
	return slices.Clone(p.requests[i:])
}

// pacedLine runs a line of units over a paced bus. It is for synctest bubbles.
func pacedLine(t *testing.T, bus *pacedBus, line string, units int, every time.Duration, m *profile.Profile) (l *Line, got *sink, stop func()) {
	t.Helper()
	mode, err := parseLine(line)
	if err != nil {
		t.Fatal(err)
	}
	bus.mode = mode
	o := Options{Name: "paced", Connect: "rtu:///dev/paced", Line: line}
	for u := range units {
		o.Devices = append(o.Devices, Device{Name: fmt.Sprintf("d%d", u+1), Unit: u + 1, Every: every, Map: m, Points: m.Points,
			Base: uint32(u * len(m.Points))})
	}
	l, err = Open(o, Env{})
	if err != nil {
		t.Fatal(err)
	}
	l.dial = func(context.Context) (stream, error) { return bus, nil }
	got = &sink{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, got.emit) }()
	return l, got, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// spread makes n holding registers with gaps: two blocks a device at 9600
// baud, one at 115200.
func spread(t *testing.T, n, gap int) *profile.Profile {
	points := make([]profile.Point, n)
	for i := range points {
		a := i
		if i >= n/2 {
			a += gap
		}
		points[i] = profile.Point{Name: fmt.Sprintf("p%d", i), Holding: &a}
	}
	p, issues := profile.Custom("spread", points, nil)
	if len(issues) > 0 {
		t.Fatal(issues)
	}
	return p
}

// TestPacedLine: a line that is always busy reaches its physical limit: bytes,
// turnaround and one silence of 3.5 characters an exchange. In simulated time
// only what the driver adds by itself can be missing.
func TestPacedLine(t *testing.T) {
	for _, line := range []string{"9600 8N1", "9600 8E1", "19200 8N1", "115200 8N1"} {
		t.Run(line, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus := &pacedBus{turn: 5 * time.Millisecond}
				m := spread(t, 20, 30)
				l, _, stop := pacedLine(t, bus, line, 32, 10*time.Millisecond, m)
				began := time.Now()
				time.Sleep(2 * time.Minute)
				took := time.Since(began)
				stop()
				bus.mu.Lock()
				defer bus.mu.Unlock()
				share := float64(bus.ideal) / float64(took)
				t.Logf("%d requests, %.2f %% of the limit, shortest silence %v of %v", len(bus.requests), 100*share, bus.shortest, bus.mode.silence())
				if share < 0.995 || share > 1.005 {
					t.Errorf("%.2f %% of the limit", 100*share)
				}
				if bus.shortest < bus.mode.silence() {
					t.Errorf("a silence of %v, shorter than %v", bus.shortest, bus.mode.silence())
				}
				blocks := map[[2]int]bool{}
				per := map[byte]int{}
				for _, r := range bus.requests {
					blocks[[2]int{r.addr, r.count}] = true
					per[r.unit]++
				}
				want := 1
				if line[:4] == "9600" || line[:5] == "19200" {
					want = 2
				}
				if len(blocks) != want {
					t.Errorf("blocks %v, want %d", blocks, want)
				}
				for u, n := range per {
					if math.Abs(float64(n)-float64(len(bus.requests))/32) > 4 {
						t.Errorf("unit %d was asked %d times of %d", u, n, len(bus.requests))
					}
				}
				if st := l.Stats().Devices[0]; st.Skipped == 0 || st.Late == 0 {
					t.Errorf("an overloaded line counts no late (%d) or skipped (%d) polls", st.Late, st.Skipped)
				}
			})
		})
	}
}

// TestLateCount: a line that keeps up has no late polls, however many blocks a
// device has and however long the first round after the start takes; one whose
// devices share an instant, and need longer than is allowed, has. The load is told
// from the start.
func TestLateCount(t *testing.T) {
	blocks := func(n int) *profile.Profile {
		var points []profile.Point
		for i := range n {
			for k := range 30 {
				a := 200*i + k
				points = append(points, profile.Point{Name: fmt.Sprintf("p%d", a), Holding: &a})
			}
		}
		p, issues := profile.Custom("blocks", points, nil)
		if len(issues) > 0 {
			t.Fatal(issues)
		}
		return p
	}
	for _, c := range []struct {
		units, blocks int // 82 ms each
		every         time.Duration
		late          bool
	}{
		{1, 6, time.Second, false},
		{24, 1, 10 * time.Second, false},
		{4, 6, time.Second, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			l, _, stop := pacedLine(t, &pacedBus{turn: 5 * time.Millisecond}, "9600 8N1", c.units, c.every, blocks(c.blocks))
			time.Sleep(3*time.Second + 10*time.Millisecond)
			if early := l.Stats().Load; c.units == 1 && (early < 0.3 || early > 0.7) {
				t.Errorf("the load after 3 s is %.2f, where six blocks take about half of a second", early)
			}
			time.Sleep(27 * time.Second)
			stop()
			if late := l.Stats().Load; c.units == 1 && (late < 0.45 || late > 0.55) {
				t.Errorf("the load after 30 s is %.2f, where six blocks take about half of a second", late)
			}
			for _, d := range l.Stats().Devices {
				t.Logf("%d units of %d blocks: %s %d polls, %d late, %d skipped", c.units, c.blocks, d.Name, d.Polls, d.Late, d.Skipped)
				if d.Polls < uint64(c.blocks)*2 || (d.Late > 0) != c.late || !c.late && d.Skipped > 0 {
					t.Errorf("%d units of %d blocks every %v: %s has %d polls, %d late, %d skipped", c.units, c.blocks, c.every, d.Name, d.Polls, d.Late, d.Skipped)
				}
			}
		})
	}
}

// TestDeadShare: with 1 dead unit of 32 the others keep 97 % of their rate,
// with 8 dead ones 90 %, once they were found out (which takes two or three
// timeouts each), after the start and when they die later; all absent
// units together take at most a twentieth of the time; a unit that comes back
// has its whole rate at its first answer.
func TestDeadShare(t *testing.T) {
	for _, c := range []struct {
		line string
		dead int
		keep float64
	}{{"9600 8N1", 1, 0.97}, {"115200 8N1", 1, 0.97}, {"9600 8N1", 8, 0.90}, {"115200 8N1", 8, 0.90}} {
		t.Run(fmt.Sprintf("%s/%d", c.line, c.dead), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dead := true
				var mu sync.Mutex
				bus := &pacedBus{turn: 5 * time.Millisecond, fifo: 300, refuse: func(unit, _ byte, _, _ int) int {
					mu.Lock()
					defer mu.Unlock()
					if dead && int(unit) <= c.dead {
						return -1
					}
					return 0
				}}
				set := func(b bool) { mu.Lock(); dead = b; mu.Unlock() }
				l, _, stop := pacedLine(t, bus, c.line, 32, 10*time.Millisecond, spread(t, 20, 0))
				rate := func(over time.Duration) float64 { // polls of the last unit
					from := time.Now()
					time.Sleep(over)
					n := 0
					for _, r := range bus.since(from) {
						if r.unit == 32 {
							n++
						}
					}
					return float64(n) / over.Seconds()
				}
				m := bus.mode
				one := time.Duration(8+45)*m.char() + bus.turn + m.silence()
				fair := 1 / (float64(32-c.dead) * one.Seconds())
				check := func(when string, got, least float64) {
					t.Logf("%s: %.2f %% of the rate", when, 100*got/fair)
					if got < least*fair {
						t.Errorf("%s: %.2f %% of the rate, want %.0f %%", when, 100*got/fair, 100*least)
					}
				}
				check("first minute", rate(time.Minute), min(c.keep, 0.80))
				from, asked := time.Now(), 0
				check("ten minutes", rate(10*time.Minute), c.keep)
				for _, r := range bus.since(from) {
					if int(r.unit) <= c.dead {
						asked++
					}
				}
				t.Logf("%d probes in 10 minutes", asked)
				if share := float64(asked) * 0.5 / 600; asked == 0 || share > 0.05 {
					t.Errorf("%d probes take %.1f %% of the time", asked, 100*share)
				}
				set(false)
				fair = 1 / (32 * one.Seconds())
				for began := time.Now(); ; time.Sleep(time.Second) {
					if time.Since(began) > 11*time.Minute {
						t.Fatal("a unit that is back is not found")
					}
					back := 0
					for _, d := range l.Stats().Devices {
						if d.State == "ok" {
							back++
						}
					}
					if back == 32 {
						t.Logf("all back after %v", time.Since(began))
						break
					}
				}
				check("all are back", rate(time.Minute), 0.97)
				set(true)
				fair = 1 / (float64(32-c.dead) * one.Seconds())
				time.Sleep(time.Minute) // each was asked three times
				check("dead again", rate(10*time.Minute), c.keep)
				stop()
			})
		})
	}
}

// TestHolesAreFound: at whatever place a register is missing, and whether the
// device refuses or is silent, all other points are read, with at most
// 2 log2 n requests more than a round; afterwards the rest is read in the
// best plan around the hole, which is asked for again after a minute, then
// hourly, and taken back when it answers.
func TestHolesAreFound(t *testing.T) {
	const n = 64
	for _, verdict := range []int{2, 3, -1} {
		for _, bad := range []int{0, 1, 31, 32, 40, 63} {
			t.Run(fmt.Sprintf("%d/%d", verdict, bad), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var mu sync.Mutex
					missing := true
					bus := &pacedBus{turn: 5 * time.Millisecond, fifo: 300, refuse: func(unit, _ byte, addr, count int) int {
						mu.Lock()
						defer mu.Unlock()
						if missing && unit == 1 && addr <= bad && bad < addr+count {
							return verdict
						}
						return 0
					}}
					l, got, stop := pacedLine(t, bus, "115200 8N1", 2, 10*time.Second, custom(t, n))
					defer stop()
					blocks := func(from time.Time, unit byte) (b []string, n int) {
						for _, r := range bus.since(from) {
							if r.unit == unit {
								b = append(b, fmt.Sprintf("%d+%d", r.addr, r.count))
								n++
							}
						}
						slices.Sort(b)
						return slices.Compact(b), n
					}
					began := time.Now()
					cause := telemetry.CauseIllegalAddress
					switch {
					case verdict == 3:
						cause = telemetry.CauseException + 3
					case verdict < 0:
						cause = telemetry.CauseTimeout
					}
					wait := 9 * time.Second
					if verdict < 0 {
						wait = 90 * time.Second // it is taken for absent before
					}
					time.Sleep(wait)
					b, asked := blocks(began, 1)
					t.Logf("%d requests to find it: %v", asked, b)
					most := 1 + 2*6
					if verdict < 0 {
						most += 4 // the whole block again, and what shows that the unit is there
					}
					rounds := 0
					for _, r := range bus.since(began) {
						if r.unit == 2 {
							rounds++
						}
					}
					if asked > most+3*(rounds-1) {
						t.Errorf("%d requests to find one hole in %d points in %d rounds", asked, n, rounds)
					}
					from := time.Now()
					time.Sleep(30 * time.Second)
					b, asked = blocks(from, 1)
					want := 2
					if bad == 0 || bad == n-1 {
						want = 1
					}
					retried := 0
					for _, r := range bus.since(from) {
						if r.unit == 1 && r.verdict != 0 {
							retried++
						}
					}
					if len(b)-retried != want || asked-retried > 3*want+want {
						t.Errorf("afterwards %d requests in 30 s, blocks %v", asked, b)
					}
					last := func() map[uint32]telemetry.Reading {
						got.mu.Lock()
						defer got.mu.Unlock()
						m := map[uint32]telemetry.Reading{}
						for _, g := range got.groups {
							for _, r := range g.Readings {
								m[r.Point] = r
							}
						}
						return m
					}
					for p, r := range last() {
						ok := r.Quality == telemetry.Good && r.Value.Mantissa() == int64(truth(1, uint16(p)%n))
						if int(p) == bad {
							ok = r.Quality == telemetry.Comm && r.Cause == cause
						}
						if !ok {
							t.Errorf("point %d: %v %v %v", p, r.Quality, r.Cause, r.Value)
						}
					}
					if len(last()) != 2*n {
						t.Errorf("%d points were told", len(last()))
					}
					h := l.Stats().Devices[0].Holes
					if len(h) != 1 || h[0].Point != fmt.Sprintf("p%d", bad) || h[0].Cause != cause.String() {
						t.Errorf("status names %+v", h)
					}
					if st := l.Stats().Devices[0]; st.State != "ok" {
						t.Errorf("the device is %s", st.State)
					}
					// It is asked again hourly.
					time.Sleep(time.Minute)
					from = time.Now()
					time.Sleep(3*time.Hour + time.Minute)
					retried = 0
					for _, r := range bus.since(from) {
						if r.unit == 1 && r.verdict != 0 {
							retried++
						}
					}
					if retried < 2 || retried > 4 {
						t.Errorf("asked again %d times in 3 hours", retried)
					}
					mu.Lock()
					missing = false
					mu.Unlock()
					time.Sleep(time.Hour + time.Minute)
					from = time.Now()
					time.Sleep(30 * time.Second)
					if b, _ = blocks(from, 1); len(b) != 1 || len(l.Stats().Devices[0].Holes) != 0 {
						t.Errorf("after it is there: blocks %v, holes %v", b, l.Stats().Devices[0].Holes)
					}
					if r := last()[uint32(bad)]; r.Quality != telemetry.Good {
						t.Errorf("the point is %v", r.Quality)
					}
				})
			})
		}
	}
}

// TestHolesAtRandom: whatever registers a device refuses, used or not, and
// however long a block it allows, every point that is there is read within
// some rounds, and from then on nothing is refused but the retries.
func TestHolesAtRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for round := range 40 {
		synctest.Test(t, func(t *testing.T) {
			var points []profile.Point
			at, bad := 0, map[int]bool{}
			for range 1 + rng.IntN(60) {
				at += rng.IntN(3) * rng.IntN(5)
				a := at
				typ := []string{"u16", "f32", "u64"}[rng.IntN(3)]
				points = append(points, profile.Point{Name: fmt.Sprintf("p%d", len(points)), Holding: &a, Type: typ})
				at += map[string]int{"u16": 1, "f32": 2, "u64": 4}[typ]
			}
			for range rng.IntN(8) {
				bad[rng.IntN(at+1)] = true
			}
			longest := 4 + rng.IntN(130)
			m, issues := profile.Custom("random", points, nil)
			if len(issues) > 0 {
				t.Fatal(issues)
			}
			bus := &pacedBus{turn: 5 * time.Millisecond, fifo: 300, refuse: func(_, _ byte, addr, count int) int {
				for a := addr; a < addr+count; a++ {
					if bad[a] {
						return 2
					}
				}
				if count > longest {
					return 3
				}
				return 0
			}}
			_, got, stop := pacedLine(t, bus, "115200 8N1", 1, 5*time.Second, m)
			defer stop()
			time.Sleep(58 * time.Second)
			missing := map[uint32]bool{}
			for i := range points {
				r, _ := m.PointRequest(i)
				for a := int(r.Address); a < int(r.Address)+int(r.Count); a++ {
					missing[uint32(i)] = missing[uint32(i)] || bad[a]
				}
			}
			got.mu.Lock()
			last := map[uint32]telemetry.Reading{}
			for _, g := range got.groups {
				for _, r := range g.Readings {
					last[r.Point] = r
				}
			}
			got.mu.Unlock()
			for i := range points {
				r, told := last[uint32(i)]
				if !told || missing[uint32(i)] != (r.Quality == telemetry.Comm) {
					t.Errorf("round %d, point %d: told %v, %v %v, missing %v", round, i, told, r.Quality, r.Cause, missing[uint32(i)])
				}
			}
			time.Sleep(3 * time.Minute) // the retries after a minute are over
			from := time.Now()
			time.Sleep(10 * time.Minute)
			for _, r := range bus.since(from) {
				if r.verdict != 0 {
					t.Errorf("round %d: %d+%d was refused again; bad %v, longest %d", round, r.addr, r.count, bad, longest)
					break
				}
			}
		})
	}
}
