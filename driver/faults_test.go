package driver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// TestExceptionsNamed: each code that a device may refuse with reaches the
// reading, whole, in five pieces, and without its check.
func TestExceptionsNamed(t *testing.T) {
	t.Parallel()
	for _, medium := range []string{"rtu", "ascii", "tcp"} {
		t.Run(medium, func(t *testing.T) {
			t.Parallel()
			s := newSlave(kindOf(medium), 1)
			var next atomic.Pointer[fault]
			s.plan = func(int, byte, uint16) fault { return *next.Load() }
			l := bus(t, s, medium, 500*time.Millisecond)
			var c tally
			for code := byte(1); code <= 11; code++ {
				if code == 9 { // there is none
					continue
				}
				for _, f := range []fault{{exception: code}, {exception: code, pieces: 5, split: time.Millisecond}, {exception: code, noCRC: true}} {
					if f.noCRC && medium != "rtu" {
						continue
					}
					f.name = "it"
					next.Store(&f)
					if err := c.read(t, l, s, 1, profile.Holding, uint16(code), 2); !errors.Is(err, Exception(code)) {
						t.Errorf("%+v: %v", f, err)
					}
				}
			}
			next.Store(&fault{})
			if err := c.read(t, l, s, 1, profile.Holding, 1, 2); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if s.count("it") < 20 {
				t.Errorf("the fault fired %d times", s.count("it"))
			}
		})
	}
}

// TestFlippedBits: bits of the line flip at random, in requests as in answers,
// one in 10^2 to 10^4 bytes, and noise comes before, inside and after frames.
// No value is wrong (what the check of RTU lets through is 2^-16 of what is
// damaged), and nine of ten reads that an ideal master could get are got: those
// whose request and answer are whole.
func TestFlippedBits(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SEED=%d", seed)
	t.Run("lanes", func(t *testing.T) {
		for lane, every := range []int{100, 300, 1000, 10000} {
			t.Run(strconv.Itoa(every), func(t *testing.T) {
				t.Parallel()
				s := newSlave(kindRTU, seed)
				rng := rand.New(rand.NewPCG(seed, uint64(lane)))      // of the goroutine below
				ask := rand.New(rand.NewPCG(seed, uint64(lane)+1000)) // of this one
				var noise, whole, damaged, flips atomic.Int64
				master, path := openPTY(t)
				flip := func(b []byte) bool {
					bad := false
					for i := range b {
						if certain := flips.Add(1) == 1000 && every < 10000; certain || rng.IntN(every) == 0 {
							b[i] ^= 1 << rng.IntN(8)
							bad = true
						}
					}
					return bad
				}
				go func() { // request, answer: one goroutine, as on a line
					buf := make([]byte, 64)
					for {
						n, err := master.Read(buf)
						if err != nil {
							return
						}
						bad := flip(buf[:n])
						req, pdu, unit, used := s.request(buf[:n])
						if used == 0 || pdu == nil {
							damaged.Add(1)
							continue
						}
						s.handle(req, pdu, unit, func(ans []byte) {
							ans = append([]byte(nil), ans...)
							if flip(ans) || bad {
								damaged.Add(1)
							} else {
								whole.Add(1)
							}
							if rng.IntN(8) == 0 { // foreign bytes before or behind
								noise.Add(1)
								extra := []byte{byte(rng.Uint32()), byte(rng.Uint32())}
								if rng.IntN(2) == 0 {
									ans = append(extra, ans...)
								} else {
									ans = append(ans, extra...)
								}
							}
							master.Write(ans)
						})()
					}
				}()
				l := open(t, Options{Name: "n", Connect: "rtu://" + path, Line: "115200 8N1", Timeout: 150 * time.Millisecond,
					Devices: []Device{{Name: "d", Unit: 200, Every: time.Hour, Map: custom(t, 1)}}})
				var c tally
				for range 250 {
					c.read(t, l, s, byte(1+ask.IntN(3)), profile.Holding, uint16(ask.IntN(500)), uint16(1+ask.IntN(20)))
				}
				t.Logf("%d good of %d whole, %d damaged, %d with noise, %d wrong, %v", c.good, whole.Load(), damaged.Load(), noise.Load(), c.wrong, c.errs)
				if c.wrong > 0 || noise.Load() == 0 || damaged.Load() == 0 && every < 10000 {
					t.Errorf("%d wrong, %d with noise, %d damaged", c.wrong, noise.Load(), damaged.Load())
				}
				if c.good < int(whole.Load())*9/10 {
					t.Errorf("%d good of %d that came whole", c.good, whole.Load())
				}
			})
		}
	})
}

// TestDeviceChanges: a device that restarts with other registers, sends NaN,
// infinity, its marker for no value, what is out of range, a counter that has
// wrapped: each reading says so by its quality, the value is kept where there
// is one, and nothing stops.
func TestDeviceChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := func(a int) *int { return &a }
		dec := func(s string) profile.Decimal { d, _ := profile.ParseDecimal(s); return d }
		m, issues := profile.Custom("d7", []profile.Point{
			{Name: "f", Holding: at(0), Type: "f32"},
			{Name: "n", Holding: at(2), Type: "s16", NA: []profile.Marker{"0x8000"}, Range: []profile.Decimal{dec("-100"), dec("100")}},
			{Name: "count", Holding: at(3), Type: "u16", Kind: "counter"},
			{Name: "ordered", Holding: at(4), Type: "f32", Range: []profile.Decimal{dec("0"), dec("500")}},
		}, nil)
		if len(issues) > 0 {
			t.Fatal(issues)
		}
		var mu sync.Mutex // of what the device holds and what was told
		regs := []uint16{0x4048, 0xF5C3, 5, 65535, 0x4367, 0x6666}
		moved := false
		bus := &memoryBus{pacedBus: pacedBus{turn: 5 * time.Millisecond}, read: func(addr, count int) []uint16 {
			mu.Lock()
			defer mu.Unlock()
			if moved && addr < 4 && addr+count > 2 {
				return nil
			}
			return slices.Clone(regs[addr : addr+count])
		}}
		bus.mode, _ = parseLine("9600 8N1")
		l, err := Open(Options{Name: "b", Connect: "rtu:///dev/paced", Line: "9600 8N1",
			Devices: []Device{{Name: "d", Unit: 1, Every: time.Second, Map: m, Points: m.Points}}}, Env{})
		if err != nil {
			t.Fatal(err)
		}
		l.dial = func(context.Context) (stream, error) { return bus, nil }
		last := map[uint32]telemetry.Reading{}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			done <- l.Run(ctx, func(g *telemetry.Group) {
				mu.Lock()
				defer mu.Unlock()
				for _, r := range g.Readings {
					last[r.Point] = r
				}
			})
		}()
		set := func(f func()) { mu.Lock(); f(); mu.Unlock() }
		want := func(what string, says ...string) {
			t.Helper()
			time.Sleep(3 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			for i, s := range says {
				r := last[uint32(i)]
				if got := fmt.Sprintf("%s %s %s", r.Value, r.Quality, r.Cause); strings.TrimSpace(got) != s {
					t.Errorf("%s, %s: got %q, want %q", what, m.Points[i].Name, got, s)
				}
			}
		}
		want("well", "3.14 good", "5 good", "65535 good", "231.4 good")
		set(func() { regs[0], regs[1], regs[2] = 0x7FC0, 0, 0x8000 })
		want("NaN and the marker", "- fault nan", "- fault marker", "65535 good", "231.4 good")
		set(func() { regs[0], regs[2], regs[3] = 0x7F80, 101, 0 })
		want("infinity, out of range, wrapped", "- fault nan", "101 range", "0 good", "231.4 good")
		set(func() { regs[0], regs[1], regs[4], regs[5] = 0x4048, 0xF5C3, 0x6666, 0x4367 })
		want("the words change places", "3.14 good", "101 range", "0 good", "2.7184691e+23 range")
		set(func() { moved = true })
		want("registers vanish", "3.14 good", "- comm illegal-address", "- comm illegal-address", "2.7184691e+23 range")
		set(func() { moved, regs[2] = false, 7 })
		time.Sleep(2 * time.Minute) // asked again after a minute
		want("and come back", "3.14 good", "7 good", "0 good", "2.7184691e+23 range")
		cancel()
		if err := <-done; err != nil || l.Stats().Panics > 0 {
			t.Errorf("%v, %d panics", err, l.Stats().Panics)
		}
	})
}

// memoryBus is a paced bus of one device with given registers; nil refuses.
type memoryBus struct {
	pacedBus
	read func(addr, count int) []uint16
}

func (b *memoryBus) WriteAll(p []byte, until time.Time) error {
	b.refuse = func(_, _ byte, addr, count int) int {
		if b.read(addr, count) == nil {
			return 2
		}
		return 0
	}
	b.content = func(addr, count int) []byte { return words(b.read(addr, count)...) }
	return b.pacedBus.WriteAll(p, until)
}
