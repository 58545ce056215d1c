package driver

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tidegate/driver/profile"
)

// TestMain lets the tests wait side by side: they sleep more than they work.
func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "8")
	goleak.VerifyTestMain(m)
}

// bus is a line to a slave in the framing and on the medium named.
func bus(t testing.TB, s *slave, medium string, timeout time.Duration) *Line {
	t.Helper()
	o := Options{Name: medium, Timeout: timeout}
	switch medium {
	case "rtu", "ascii":
		o.Connect, o.Line = medium+"://"+s.onPTY(t), "115200 8N1"
	default:
		o.Connect = medium + "://" + s.onTCP(t)
	}
	o.Devices = []Device{{Name: "d", Unit: 200, Every: time.Hour, Map: custom(t, 1)}}
	o.Devices[0].Points = o.Devices[0].Map.Points
	l, err := Open(o, Env{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func kindOf(medium string) kind {
	switch medium {
	case "tcp":
		return kindTCP
	case "ascii":
		return kindASCII
	}
	return kindRTU
}

// custom makes a map of n u16 holding registers from 0.
func custom(t testing.TB, n int) *profile.Profile {
	t.Helper()
	points := make([]profile.Point, n)
	for i := range points {
		a := i
		points[i] = profile.Point{Name: "p" + strconv.Itoa(i), Holding: &a}
	}
	p, issues := profile.Custom("test", points, nil)
	if len(issues) > 0 {
		t.Fatal(issues)
	}
	return p
}

// tally judges reads against the slave's memory of what it answered.
type tally struct {
	reads, good, wrong, failed int
	errs                       map[string]int
}

func (c *tally) read(t testing.TB, l *Line, s *slave, unit byte, tab profile.Table, addr, count uint16) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := l.Exchange(ctx, unit, tab, addr, count)
	c.reads++
	if err != nil {
		c.failed++
		if c.errs == nil {
			c.errs = map[string]int{}
		}
		c.errs[causeOf(err).String()]++
		return err
	}
	c.good++
	if !s.right(unit, tab, addr, count, r.Data) {
		c.wrong++
		t.Errorf("wrong value: unit %d %v %d+%d: % x", unit, tab, addr, count, r.Data)
	}
	return nil
}

// TestLateSweep delays the answer at each position of a 50-poll cycle by 0.5
// to 5 timeouts, with devices that answer in order and with such that do not.
func TestLateSweep(t *testing.T) {
	const timeout = 30 * time.Millisecond
	delays := []float64{0.5, 0.95, 1.05, 1.5, 2, 3, 4, 5}
	for _, medium := range []string{"rtu", "ascii", "rtu+tcp", "tcp"} {
		for _, ordered := range []bool{true, false} {
			for _, x := range delays {
				if medium == "ascii" && (x != 2 && x != 5) {
					continue
				}
				t.Run(fmt.Sprintf("%s/ordered=%v/%.2f", medium, ordered, x), func(t *testing.T) {
					t.Parallel()
					s := newSlave(kindOf(medium), 1)
					s.order = ordered
					var fire atomic.Bool
					s.plan = func(int, byte, uint16) fault {
						if !fire.Swap(false) {
							return fault{}
						}
						return fault{name: "late", delay: time.Duration(x * float64(timeout))}
					}
					l := bus(t, s, medium, timeout)
					var c tally
					for pos := range 50 {
						for i := range 8 { // the rest of the cycle is as any other
							at := (pos + i) % 50
							if i == 1 {
								until(t, 10*time.Second, "the fault before this one", func() bool { return !fire.Load() })
								fire.Store(true)
							}
							count := uint16(2)
							if at%10 == 9 {
								count = 12
							}
							unit := byte(1)
							if at%7 == 6 {
								unit = 2
							}
							c.read(t, l, s, unit, profile.Holding, uint16(at*16), count)
						}
					}
					fired := s.count("late")
					if fired < 48 { // a slave that got no processor in time takes two for one
						t.Errorf("the fault fired %d times, want 50", fired)
					}
					if c.wrong > 0 {
						t.Errorf("%d of %d values are wrong", c.wrong, c.reads)
					}
					if c.failed > 3*fired {
						t.Errorf("%d polls lost in %d events, want at most 3 each: %v", c.failed, fired, c.errs)
					}
					if x > 1.2 && c.failed < fired-5 {
						t.Errorf("only %d polls failed in %d events: the fault did not bite", c.failed, fired)
					}
				})
			}
		}
	}
}

// TestVeryLate: a device that answers in order, but later than any hold lasts,
// is told apart by the barrier.
func TestVeryLate(t *testing.T) {
	const timeout = 20 * time.Millisecond
	for _, x := range []int{9, 12, 19, 25, 33, 40} {
		t.Run(strconv.Itoa(x), func(t *testing.T) {
			t.Parallel()
			s := newSlave(kindRTU, 1)
			var fire atomic.Bool
			s.plan = func(int, byte, uint16) fault {
				if !fire.Swap(false) {
					return fault{}
				}
				return fault{name: "late", delay: time.Duration(x) * timeout}
			}
			l := bus(t, s, "rtu", timeout)
			var c tally
			for pos := range 6 {
				until(t, 10*time.Second, "the fault before this one", func() bool { return !fire.Load() })
				fire.Store(true)
				for i := range 9 {
					c.read(t, l, s, 1, profile.Holding, uint16((pos*9+i)*16), 4)
				}
			}
			if s.count("late") != 6 || c.good < 6 {
				t.Errorf("the fault fired %d times, %d good reads", s.count("late"), c.good)
			}
			t.Logf("%d reads, %d good, %d wrong", c.reads, c.good, c.wrong)
		})
	}
}

// TestEchoLooksLikeAnswer: a request for 17 to 24 coils from 0x0300 on has
// the very form of an answer with three bytes. Its echo is no value.
func TestEchoLooksLikeAnswer(t *testing.T) {
	t.Parallel()
	s := newSlave(kindRTU, 1)
	s.plan = func(n int, _ byte, _ uint16) fault {
		return fault{name: "echo", echo: true, onlyEcho: n == 1}
	}
	l := bus(t, s, "rtu", time.Second)
	var c tally
	err := c.read(t, l, s, 1, profile.Coils, 0x0301, 20)
	var e *Error
	if !errors.Is(err, ErrEcho) || !errors.As(err, &e) || e.Code != "echo" {
		t.Errorf("an echo alone: got %v, want code echo", err)
	}
	for i := range 5 {
		if err := c.read(t, l, s, 2, profile.Coils, 0x0302+uint16(i), 20); err != nil {
			t.Errorf("echo and answer: %v", err)
		}
	}
}

// TestRepeatedAnswer: a device says everything twice, the second time a few
// milliseconds later. Only the listening before each request tells the
// repetition from the next answer of the same shape.
func TestRepeatedAnswer(t *testing.T) {
	t.Parallel()
	s := newSlave(kindRTU, 1)
	s.plan = func(int, byte, uint16) fault {
		return fault{name: "twice", twice: true, pieces: 2, split: 5 * time.Millisecond}
	}
	l := open(t, Options{Name: "b", Connect: "rtu://" + s.onPTY(t), Line: "115200 8N1", Timeout: time.Second, Gap: 200 * time.Millisecond,
		Devices: []Device{{Name: "d", Unit: 200, Every: time.Hour, Map: custom(t, 1)}}})
	var c tally
	for i := range 30 {
		c.read(t, l, s, 1, profile.Holding, uint16(i*8), 2)
	}
	if c.wrong > 0 || c.failed > 0 || s.count("twice") < 30 {
		t.Errorf("%d wrong, %d failed, the fault fired %d times", c.wrong, c.failed, s.count("twice"))
	}
	if st := l.Stats(); st.Stray < 25 {
		t.Errorf("%d strays seen of 30 repetitions", st.Stray)
	}
}

// TestRandomFaults mixes everything that can happen to an answer: no value
// may be wrong in 10,000 reads.
func TestRandomFaults(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SEED=%d", seed)
	const timeout = 60 * time.Millisecond
	const lanes, reads = 8, 1250
	mediums := []string{"rtu", "rtu", "rtu", "ascii", "rtu+tcp", "tcp", "tcp", "tcp"}
	total := make(chan tally, lanes)
	t.Run("lanes", func(t *testing.T) {
		for lane := range lanes {
			medium := mediums[lane]
			t.Run(fmt.Sprintf("%d-%s", lane, medium), func(t *testing.T) {
				t.Parallel()
				s := newSlave(kindOf(medium), seed+uint64(lane))
				s.order = lane%2 == 0
				s.units = []byte{1, 2, 3, 4}
				rng := rand.New(rand.NewPCG(seed, uint64(lane)))
				s.plan = func(n int, _ byte, _ uint16) fault { // called under no lock, one at a time per connection
					s.mu.Lock()
					defer s.mu.Unlock()
					if n%20 == 0 && n/20 <= faultKinds { // each comes once for certain
						return randomFault(s.rng, n/20-1, s.kind, timeout)
					}
					if s.rng.IntN(10) > 0 {
						return fault{}
					}
					return randomFault(s.rng, s.rng.IntN(faultKinds), s.kind, timeout)
				}
				l := bus(t, s, medium, timeout)
				var c tally
				for range reads {
					tab := profile.Table(1 + rng.IntN(4))
					c.read(t, l, s, byte(1+rng.IntN(4)), tab, uint16(rng.IntN(1200)), uint16(1+rng.IntN(4)*rng.IntN(8)))
				}
				s.mu.Lock()
				t.Logf("%d reads, %d good, %d wrong, causes %v, faults %v", c.reads, c.good, c.wrong, c.errs, s.fired)
				s.mu.Unlock()
				for _, name := range []string{"late", "garbled", "split", "foreign", "echo", "noise", "silent", "twice", "exception"} {
					if s.count(name) == 0 {
						t.Errorf("the fault %q never fired", name)
					}
				}
				if c.good < reads/2 {
					t.Errorf("only %d of %d reads succeeded", c.good, reads)
				}
				total <- c
			})
		}
	})
	close(total)
	var sum tally
	for c := range total {
		sum.reads += c.reads
		sum.wrong += c.wrong
	}
	t.Logf("%d reads, %d wrong values", sum.reads, sum.wrong)
	if sum.reads < 10000 || sum.wrong > 0 {
		t.Errorf("%d reads, %d wrong", sum.reads, sum.wrong)
	}
}

const faultKinds = 14

// randomFault is a fault of one of faultKinds, how bad is drawn by lot.
func randomFault(rng *rand.Rand, which int, k kind, timeout time.Duration) fault {
	switch which {
	case 0:
		return fault{name: "late", delay: time.Duration((0.5 + 4.5*rng.Float64()) * float64(timeout))}
	case 1:
		return fault{name: "garbled", garble: true}
	case 2:
		return fault{name: "split", pieces: 2 + rng.IntN(8), split: time.Duration(rng.IntN(4)) * time.Millisecond}
	case 3:
		return fault{name: "foreign", foreign: true}
	case 4:
		return fault{name: "echo", echo: true}
	case 5:
		return fault{name: "noise", noise: 1 + rng.IntN(20), tail: rng.IntN(4)}
	case 6:
		return fault{name: "silent", silent: true}
	case 7:
		return fault{name: "twice", twice: true}
	case 8:
		return fault{name: "exception", exception: byte(1 + rng.IntN(11)), pieces: 1 + rng.IntN(5), split: time.Millisecond}
	case 9:
		return fault{name: "wrong unit", wrongUnit: true}
	case 10:
		return fault{name: "short", short: true}
	case 11:
		return fault{name: "long", long: true}
	case 12:
		return fault{name: "tail", tail: 1 + rng.IntN(8)}
	}
	if k == kindTCP {
		return fault{name: "old id", oldID: true}
	}
	return fault{name: "wrong function", wrongFunc: true}
}

// TestFaultsNamed: each fault has its cause, and two good polls follow soon.
func TestFaultsNamed(t *testing.T) {
	const timeout = 400 * time.Millisecond
	for _, c := range []struct {
		fault fault
		tcp   bool
		want  error
	}{
		{fault{silent: true}, false, ErrTimeout},
		{fault{silent: true}, true, ErrTimeout},
		{fault{short: true}, false, ErrShort},
		{fault{short: true}, true, ErrShort},
		{fault{wrongUnit: true}, false, ErrMismatch},
		{fault{wrongUnit: true}, true, ErrMismatch},
		{fault{wrongFunc: true}, false, ErrMismatch},
		{fault{wrongFunc: true}, true, ErrMismatch},
		{fault{long: true}, false, ErrMismatch},
		{fault{long: true}, true, ErrMismatch},
		{fault{oldID: true}, true, ErrMismatch},
		{fault{exception: 2}, false, Exception(2)},
		{fault{exception: 2, noCRC: true}, false, Exception(2)},
		{fault{exception: 6, noCRC: true, pieces: 3, split: time.Millisecond}, false, Exception(6)},
		{fault{empty: true}, false, ErrMismatch},
		{fault{empty: true}, true, ErrMismatch},
		{fault{exception: 4, pieces: 5, split: 3 * time.Millisecond}, false, Exception(4)},
		{fault{exception: 6, pieces: 2, split: 15 * time.Millisecond}, true, Exception(6)},
		{fault{exception: 11, echo: true}, false, Exception(11)},
		{fault{echo: true}, false, nil},
		{fault{echo: true, pieces: 9, split: time.Millisecond}, false, nil},
		{fault{noise: 9}, false, nil},
		{fault{foreign: true}, false, nil},
		{fault{foreign: true}, true, nil},
		{fault{twice: true}, false, nil},
		{fault{twice: true}, true, nil},
		{fault{delay: timeout / 2}, false, nil},
		{fault{pieces: 9, split: 2 * time.Millisecond}, true, nil},
	} {
		medium := "rtu"
		if c.tcp {
			medium = "tcp"
		}
		t.Run(fmt.Sprintf("%s/%+v", medium, c.fault), func(t *testing.T) {
			t.Parallel()
			s := newSlave(kindOf(medium), 3)
			c.fault.name = "it"
			s.plan = func(n int, _ byte, _ uint16) fault {
				if n == 3 {
					return c.fault
				}
				return fault{}
			}
			l := bus(t, s, medium, timeout)
			var ok tally
			for i := range 5 {
				err := ok.read(t, l, s, 1, profile.Holding, uint16(i*8), 2)
				want := error(nil)
				if i == 2 {
					want = c.want
				}
				if (want == nil) != (err == nil) || want != nil && !errors.Is(err, want) {
					t.Errorf("read %d: got %v, want %v", i, err, want)
				}
			}
			if s.count("it") != 1 {
				t.Errorf("the fault fired %d times", s.count("it"))
			}
		})
	}
}
