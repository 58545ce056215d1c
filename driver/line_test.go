package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// sink gathers what a line emits.
type sink struct {
	mu     sync.Mutex
	groups []telemetry.Group
	check  func(telemetry.Reading)
}

func (s *sink) emit(g *telemetry.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *g
	c.Readings = append([]telemetry.Reading(nil), g.Readings...)
	s.groups = append(s.groups, c)
	if s.check != nil {
		for _, r := range c.Readings {
			s.check(r)
		}
	}
}

// count returns how many groups of a device's block came with a quality and cause.
func (s *sink) count(base uint32, q telemetry.Quality, c telemetry.Cause) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, g := range s.groups {
		if r := g.Readings[0]; r.Point == base && r.Quality == q && r.Cause == c {
			n++
		}
	}
	return n
}

// run runs a line until the test ends or stop is called.
func run(t testing.TB, l *Line, emit func(*telemetry.Group)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, emit) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func open(t testing.TB, o Options) *Line {
	t.Helper()
	for i := range o.Devices {
		d := &o.Devices[i]
		if len(d.Points) == 0 && d.Profile == "" {
			d.Points = d.Map.Points
		}
	}
	l, err := Open(o, Env{Logger: slog.New(slog.NewTextHandler(logTo{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

type logTo struct{ t testing.TB }

func (w logTo) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// until waits for a condition.
func until(t testing.TB, most time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > 5*most { // the machine may be busy with other tests
			t.Fatalf("after %v still not: %s", most, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(began)
}

// TestRunWithLateUnit polls four units; one answers late by up to five
// timeouts again and again. No value is wrong and the others go on.
func TestRunWithLateUnit(t *testing.T) {
	t.Parallel()
	for _, medium := range []string{"rtu", "tcp"} {
		t.Run(medium, func(t *testing.T) {
			t.Parallel()
			const timeout, every, points = 30 * time.Millisecond, 20 * time.Millisecond, 4
			s := newSlave(kindOf(medium), 5)
			s.order = false // a late unit does not keep the others from answering
			n := 0
			s.plan = func(_ int, unit byte, _ uint16) fault {
				if unit != 2 {
					return fault{}
				}
				if n++; n%4 != 0 {
					return fault{}
				}
				return fault{name: "late", delay: time.Duration(1+n%5) * timeout}
			}
			o := Options{Name: "b", Timeout: timeout, Line: "115200 8N1"}
			if medium == "rtu" {
				o.Connect = "rtu://" + s.onPTY(t)
			} else {
				o.Connect, o.Line = "tcp://"+s.onTCP(t), ""
			}
			for u := range 4 {
				o.Devices = append(o.Devices, Device{Name: fmt.Sprintf("d%d", u+1), Unit: u + 1, Every: every,
					Map: custom(t, points), Base: uint32(100 * (u + 1))})
			}
			var mu sync.Mutex
			var wrong, good [4]int
			got := &sink{check: func(r telemetry.Reading) {
				mu.Lock()
				defer mu.Unlock()
				u, addr := r.Point/100, uint16(r.Point%100)
				if r.Quality != telemetry.Good {
					return
				}
				good[u-1]++
				if !s.lastSays(byte(u), addr, r.Value.Mantissa()) {
					wrong[u-1]++
				}
			}}
			l := open(t, o)
			stop := run(t, l, got.emit)
			took := until(t, 12*time.Second, "enough values beside late answers", func() bool {
				mu.Lock()
				defer mu.Unlock()
				for u, n := range good {
					if u != 1 && medium == "rtu" && n < points*10 {
						return false
					}
				}
				return s.count("late") >= 3
			})
			time.Sleep(max(0, 3*time.Second-took))
			stop()
			t.Logf("good %v, wrong %v, late answers %d, stray %d", good, wrong, s.count("late"), l.Stats().Stray)
			if wrong != [4]int{} {
				t.Errorf("wrong values: %v", wrong)
			}
		})
	}
}

// TestDeadUnit: one unit of eight is dead; the others keep their rate, the
// dead one is probed now and then and serves again after it came back.
func TestDeadUnit(t *testing.T) {
	t.Parallel()
	s := newSlave(kindRTU, 6)
	var dead sync.Map
	dead.Store(byte(8), true)
	s.plan = func(_ int, unit byte, _ uint16) fault {
		_, is := dead.Load(unit)
		return fault{silent: is}
	}
	o := Options{Name: "b", Connect: "rtu://" + s.onPTY(t), Line: "115200 8N1", Timeout: 500 * time.Millisecond}
	for u := range 8 {
		o.Devices = append(o.Devices, Device{Name: fmt.Sprintf("d%d", u+1), Unit: u + 1, Every: 50 * time.Millisecond,
			Map: custom(t, 2), Base: uint32(u * 10)})
	}
	var got sink
	l := open(t, o)
	run(t, l, got.emit)
	until(t, 10*time.Second, "unit 8 is taken for absent", func() bool { return l.Stats().Devices[7].State == "absent" })
	before, asked := l.Stats(), s.asked[8].Load()
	time.Sleep(2 * time.Second)
	after := l.Stats()
	for i := range 7 {
		// How many of 40 there are is the machine's business; TestDeadShare
		// counts them in simulated time.
		if n := after.Devices[i].Good - before.Devices[i].Good; n < 1 {
			t.Errorf("device %d: %d good polls of 40 in 2 s", i+1, n)
		}
	}
	if n := s.asked[8].Load() - asked; n > 2 {
		t.Errorf("the dead unit was asked %d times in 2 s", n)
	}
	if n := got.count(70, telemetry.Comm, telemetry.CauseTimeout); n != 1 {
		t.Errorf("the timeout was told %d times, want once", n)
	}
	if n := got.count(70, telemetry.Comm, telemetry.CauseAbsent); n != 1 {
		t.Errorf("the absence was told %d times, want once", n)
	}
	var e *Error
	if !errors.As(after.Devices[7].LastErr, &e) || e.Code != "unit-silent" {
		t.Errorf("got %v, want unit-silent", after.Devices[7].LastErr)
	} else if !strings.Contains(e.Seen, "0 bytes back; units 1, 2, 3, 4, 5, 6, 7 answered") {
		t.Errorf("seen: %s", e.Seen)
	} else if e.Try != "tidegate scan "+l.name {
		t.Errorf("try: %s", e.Try)
	}
	dead.Delete(byte(8))
	took := until(t, 40*time.Second, "unit 8 serves again", func() bool { return l.Stats().Devices[7].State == "ok" })
	t.Logf("back after %v", took)
}

// TestTCPPeers: refused, closing at once, silent, reset in mid-frame; each
// recovers when the peer does.
func TestTCPPeers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		peer func(net.Conn)
		code string
	}{
		"refused": {nil, "conn-refused"},
		"closing": {func(c net.Conn) { c.Close() }, "tcp-one-client"},
		"silent": {func(c net.Conn) {
			buf := make([]byte, 64)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}, "conn-closed"},
		"reset": {func(c net.Conn) {
			buf := make([]byte, 64)
			c.Read(buf)
			c.Write([]byte{buf[0], buf[1], 0, 0, 0, 7, 1})
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}, "tcp-one-client"},
		"drip": {func(c net.Conn) {
			buf := make([]byte, 64)
			c.Read(buf)
			for _, b := range []byte{buf[0], buf[1], 0, 0, 0, 7, 1, 3, 4, 1, 2, 3, 4} {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(60 * time.Millisecond)
			}
		}, "conn-closed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.5:0") // where no other test gets the port while it is closed
			if err != nil {
				t.Fatal(err)
			}
			first, addr := ln, ln.Addr().String()
			var wg sync.WaitGroup
			if c.peer == nil {
				first.Close()
			} else {
				wg.Go(func() {
					for {
						conn, err := first.Accept()
						if err != nil {
							return
						}
						wg.Go(func() { c.peer(conn); conn.Close() })
					}
				})
			}
			l := open(t, Options{Name: "b", Connect: "tcp://" + addr, Timeout: 100 * time.Millisecond,
				Devices: []Device{{Name: "d", Unit: 1, Every: 50 * time.Millisecond, Map: custom(t, 2)}}})
			var got sink
			run(t, l, got.emit)
			var e *Error
			until(t, 10*time.Second, "code "+c.code, func() bool {
				st := l.Stats()
				return st.State == "gone" && errors.As(st.Err, &e) && e.Code == c.code
			})
			if n := got.count(0, telemetry.Good, 0); n > 0 {
				t.Errorf("%d good groups from a peer that never answered", n)
			}
			first.Close()
			ln, err = net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			newSlave(kindTCP, 1).listen(t, ln)
			took := until(t, 10*time.Second, "polling", func() bool { return got.count(0, telemetry.Good, 0) > 2 })
			t.Logf("%s, then good after %v", e.Code, took)
			l.Close()
			wg.Wait()
		})
	}
}

// TestIdleCloseIsNoFailure: many devices close a connection they have not
// heard from, some only their half of it; the next poll opens it again and
// succeeds.
func TestIdleCloseIsNoFailure(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*net.TCPConn){
		"whole": func(*net.TCPConn) {},
		"half":  func(c *net.TCPConn) { c.CloseWrite(); c.SetReadDeadline(time.Time{}); io.Copy(io.Discard, c) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := newSlave(kindTCP, 1)
			var wg sync.WaitGroup
			defer wg.Wait()
			defer ln.Close()
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					c.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
					wg.Go(func() { s.serve(c); end(c.(*net.TCPConn)); c.Close() })
				}
			})
			l := open(t, Options{Name: "b", Connect: "tcp://" + ln.Addr().String(), Timeout: 2 * time.Second,
				Devices: []Device{{Name: "d", Unit: 1, Every: 500 * time.Millisecond, Map: custom(t, 2)}}})
			var got sink
			stop := run(t, l, got.emit)
			until(t, 20*time.Second, "five polls on four connections", func() bool { st := l.Stats(); return st.Devices[0].Good >= 5 && st.Opened >= 4 })
			stop()
			st := l.Stats()
			if st.Devices[0].Failed > 0 {
				t.Errorf("good %d, failed %d, opened %d", st.Devices[0].Good, st.Devices[0].Failed, st.Opened)
			}
		})
	}
}

// TestIllegalAddress: a device refuses two addresses inside a block; all
// other points are read, and the holes are not asked for again and again.
func TestIllegalAddress(t *testing.T) {
	t.Parallel()
	s := newSlave(kindRTU, 1)
	s.plan = func(int, byte, uint16) fault { return fault{} }
	refuse := map[uint16]bool{5: true, 11: true}
	path := refusing(t, s, refuse)
	l := open(t, Options{Name: "b", Connect: "rtu://" + path, Line: "115200 8N1", Timeout: time.Second,
		Devices: []Device{{Name: "d", Unit: 1, Every: 100 * time.Millisecond, Map: custom(t, 16)}}})
	last := map[uint32]telemetry.Reading{}
	var mu sync.Mutex
	run(t, l, func(g *telemetry.Group) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range g.Readings {
			last[r.Point] = r
		}
	})
	until(t, 3*time.Second, "all points are told", func() bool { mu.Lock(); defer mu.Unlock(); return len(last) == 16 })
	mu.Lock()
	for p, r := range maps.All(last) {
		want := telemetry.Reading{Quality: telemetry.Good}
		if refuse[uint16(p)] {
			want = telemetry.Reading{Quality: telemetry.Comm, Cause: telemetry.CauseIllegalAddress}
		}
		if r.Quality != want.Quality || r.Cause != want.Cause {
			t.Errorf("point %d: %v %v", p, r.Quality, r.Cause)
		}
	}
	mu.Unlock()
	n := s.bad.Load()
	if n > 20 {
		t.Errorf("%d refusals to find 2 holes in 16 points", n)
	}
	time.Sleep(500 * time.Millisecond)
	if again := s.bad.Load() - n; again > 0 {
		t.Errorf("the holes were asked again %d times", again)
	}
}

// refusing serves on a pty and answers exception 2 to blocks that touch an
// address; refusals count as bad.
func refusing(t testing.TB, s *slave, refuse map[uint16]bool) string {
	master, path := openPTY(t)
	go func() {
		buf := make([]byte, 0, 64)
		tmp := make([]byte, 64)
		for {
			n, err := master.Read(tmp)
			if err != nil {
				return
			}
			buf = append(buf, tmp[:n]...)
			for {
				req, pdu, unit, used := s.request(buf)
				if used == 0 {
					break
				}
				buf = buf[used:]
				if pdu == nil {
					continue
				}
				addr, count := uint16(pdu.Data[0])<<8|uint16(pdu.Data[1]), uint16(pdu.Data[3])
				for a := addr; a < addr+count; a++ {
					if refuse[a] {
						s.bad.Add(1)
						master.Write(s.encode(unit, 0x83, []byte{2}, req))
						req = nil
						break
					}
				}
				if req != nil {
					s.handle(req, pdu, unit, func(b []byte) { master.Write(b) })()
				}
			}
		}
	}()
	return path
}

// TestPanicCostsOnePoll: a panic in a poll is counted and the line goes on.
func TestPanicCostsOnePoll(t *testing.T) {
	t.Parallel()
	s := newSlave(kindTCP, 1)
	l := open(t, Options{Name: "b", Connect: "tcp://" + s.onTCP(t),
		Devices: []Device{{Name: "d", Unit: 1, Every: 20 * time.Millisecond, Map: custom(t, 2)}}})
	var mu sync.Mutex
	n := 0
	run(t, l, func(*telemetry.Group) {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == 2 {
			panic("one bad profile")
		}
	})
	until(t, 3*time.Second, "polling goes on", func() bool { mu.Lock(); defer mu.Unlock(); return n > 5 })
	if st := l.Stats(); st.Panics != 1 {
		t.Errorf("%d panics counted", st.Panics)
	}
}

// TestExchangeWhileRunning: a technician reads between two polls, and at
// most a quarter of the time is his.
func TestExchangeWhileRunning(t *testing.T) {
	t.Parallel()
	s := newSlave(kindRTU, 1)
	s.turn = 5 * time.Millisecond
	l := open(t, Options{Name: "b", Connect: "rtu://" + s.onPTY(t), Line: "115200 8N1", Timeout: 2 * time.Second,
		Devices: []Device{{Name: "d", Unit: 1, Every: 20 * time.Millisecond, Map: custom(t, 2)}}})
	var got sink
	stop := run(t, l, got.emit)
	until(t, 4*time.Second, "polling", func() bool { return got.count(0, telemetry.Good, 0) > 2 })
	began, n, before := time.Now(), 0, l.Stats().Devices[0].Good
	polls := func() uint64 { return l.Stats().Devices[0].Good - before }
	var his, last time.Duration
	for n < 20 || polls() < 20 {
		if time.Since(began) > time.Minute {
			t.Fatalf("%d exchanges and %d polls in a minute", n, polls())
		}
		r, err := l.Exchange(context.Background(), 9, profile.Input, 7, 3)
		if err != nil {
			t.Fatal(err)
		}
		if !s.right(9, profile.Input, 7, 3, r.Data) || len(r.Raw) != 11 || r.RTT < 5*time.Millisecond {
			t.Fatalf("reply %+v", r)
		}
		n++
		last = r.RTT
		his += last
	}
	took := time.Since(began)
	stop()
	t.Logf("%d exchanges of %v and %d polls in %v", n, his, polls(), took)
	if his-last > took/4 {
		t.Errorf("%d exchanges had the line for %v of %v", n, his, took)
	}
}

// TestAddressHint: a refused address comes with the read of the one before it.
func TestAddressHint(t *testing.T) {
	t.Parallel()
	l := open(t, Options{Name: "b", Connect: "tcp://127.0.0.1:9", Devices: []Device{{Name: "d", Unit: 7, Map: custom(t, 2)}}})
	for _, c := range []struct {
		fc         byte
		addr       uint16
		x          Exception
		code, want string
	}{
		{4, 1, 2, "address", "tidegate read b --unit 7 input:0+2 --as all"},
		{3, 400, 2, "address", "tidegate read b --unit 7 holding:399+2 --as all"},
		{3, 0, 2, "address", ""},
		{16, 5, 2, "address", ""},
		{3, 5, 4, "exception", ""},
	} {
		e := l.diagnose(l.devices[0], l.devices[0].unit, &ask{unit: 7, fc: c.fc, addr: c.addr, count: 2}, c.x)
		if e.Code != c.code || e.Try != c.want || !strings.Contains(e.Seen, fmt.Sprintf("address %d,", c.addr)) {
			t.Errorf("%+v: %s, %q, %s", c, e.Code, e.Try, e.Seen)
		}
	}
}
