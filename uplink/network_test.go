package uplink

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tidegate/internal/sim"
)

// proxy stands between uplink and broker. Swallowing, it takes bytes from
// both sides and delivers none, without FIN or RST: a half-open link.
type proxy struct {
	ln      net.Listener
	to      string
	swallow atomic.Bool
	wg      sync.WaitGroup
	mu      sync.Mutex
	conns   []net.Conn
	rate    atomic.Int64 // bytes per second towards the broker, 0 for no limit
}

func newProxy(t *testing.T, to string) *proxy {
	p := &proxy{ln: listen(t), to: to}
	p.wg.Go(func() {
		for {
			a, err := p.ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", p.to)
			if err != nil {
				a.Close()
				continue
			}
			a.(*net.TCPConn).SetReadBuffer(64 << 10)
			p.mu.Lock()
			p.conns = append(p.conns, a, b)
			p.mu.Unlock()
			p.wg.Go(func() { p.copy(b, a, true) })
			p.wg.Go(func() { p.copy(a, b, false) })
		}
	})
	t.Cleanup(p.close)
	return p
}

func (p *proxy) copy(to, from net.Conn, up bool) {
	defer to.Close()
	all := make([]byte, 4096)
	for {
		buf := all
		if rate := p.rate.Load(); up && rate > 0 {
			time.Sleep(time.Second / 20)
			buf = buf[:max(1, rate/20)]
		}
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if p.swallow.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) close() {
	p.ln.Close()
	p.mu.Lock()
	for _, c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// TestHalfOpen: a link that swallows both directions is noticed within two
// keep-alives when idle, and nothing is lost.
func TestHalfOpen(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(map[bool]string{false: "idle", true: "busy"}[busy], func(t *testing.T) {
			t.Parallel()
			b := newScript(t, sim.ScriptOptions{})
			p := newProxy(t, b.Addr())
			up := newUplink(t, "mqtt://"+p.ln.Addr().String(), func(o *Options) { o.Keepalive = 2 * time.Second })
			up.tune.ack = 1400 * time.Millisecond
			src := newStore(t).add(laneData, 3)
			u := start(t, up, src)
			eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
			p.swallow.Store(true)
			began := time.Now()
			if busy {
				src.add(laneData, 3)
			}
			eventually(t, 5*time.Second, "loss noticed", func() bool { return u.Stats().Err != nil })
			if took := time.Since(began); took > 4*time.Second+2*time.Second { // and what a busy machine takes
				t.Errorf("noticed after %s", took)
			}
			if e := u.Stats().Err; e.Code != "link-dead" && e.Code != "stalled" {
				t.Errorf("%s: %v", e.Code, e)
			}
			p.swallow.Store(false)
			src.add(laneData, 3)
			eventually(t, 10*time.Second, "delivered again", func() bool { return src.waiting() == 0 })
			u.stop()
			complete(t, seqs(t, b, laneData), src.Given(laneData))
		})
	}
}

// TestSlowReader: a peer that reads ten bytes a second is given up within
// the write limit, also when the kernel's buffers are full.
func TestSlowReader(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	p := newProxy(t, b.Addr())
	up := newUplink(t, "mqtt://"+p.ln.Addr().String(), nil)
	up.tune.connect = 20 * time.Second
	up.tune.ack = 20 * time.Second
	up.tune.write = 600 * time.Millisecond
	src := newStore(t)
	u := start(t, up, src)
	eventually(t, 15*time.Second, "online", func() bool { return !u.Stats().LastAck.IsZero() })
	p.rate.Store(20)
	long := strings.Repeat("0123456789", 300_000)
	for range 8 {
		src.put(laneData, src.encode(src.cat, 1, long))
	}
	began := time.Now()
	eventually(t, 15*time.Second, "given up", func() bool { return u.Stats().Err != nil })
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("given up after %s", took)
	}
	if e := u.Stats().Err; e.Code != "link-dead" {
		t.Errorf("%s: %v", e.Code, e)
	}
	u.stop()
}

// deaf is a peer that accepts and never says anything.
func deaf(t *testing.T) string {
	ln := listen(t)
	var conns []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		for _, c := range conns {
			c.Close()
		}
	})
	return ln.Addr().String()
}

// TestEndsQuickly: wherever an attempt is stuck, the end of the context
// ends it.
func TestEndsQuickly(t *testing.T) {
	for name, url := range map[string]func(t *testing.T) string{
		"no route":    func(t *testing.T) string { return "mqtts://192.0.2.1:8883" },
		"no tls":      func(t *testing.T) string { return "mqtts://" + deaf(t) },
		"no connack":  func(t *testing.T) string { return "mqtt://" + newScript(t, sim.ScriptOptions{Silent: true}).Addr() },
		"deaf broker": func(t *testing.T) string { return "mqtt://" + deaf(t) },
		"no puback": func(t *testing.T) string {
			return "mqtt://" + newScript(t, sim.ScriptOptions{Play: func(sim.Arrival) sim.Move { return sim.Swallow }}).Addr()
		},
	} {
		t.Run(name, func(t *testing.T) {
			up := newUplink(t, url(t), nil)
			up.tune = defaultTuning()
			up.tune.grace = 300 * time.Millisecond
			u := start(t, up, newStore(t).add(laneData, 3))
			time.Sleep(100 * time.Millisecond)
			began := time.Now()
			u.stop()
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("ended after %s", took)
			}
		})
	}
}

// TestUnacknowledgedAtTheEnd: what was not acknowledged in the time of
// grace stays in the source.
func TestUnacknowledgedAtTheEnd(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
		if strings.Contains(string(a.Payload), `"seq":2,`) {
			return sim.Swallow
		}
		return sim.Pass
	}})
	up := newUplink(t, "mqtt://"+b.Addr(), nil)
	up.tune.ack = time.Minute
	up.tune.grace = time.Second
	src := newStore(t).add(laneData, 4)
	u := start(t, up, src)
	eventually(t, 5*time.Second, "all sent", func() bool { return len(seqs(t, b, laneData)) == 4 })
	u.stop()
	src.mu.Lock()
	defer src.mu.Unlock()
	if src.acked[key{laneData, 1}] != 1 || src.acked[key{laneData, 2}] != 0 {
		t.Errorf("acknowledged %v", src.acked)
	}
}

func TestClientIDTaken(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	src := newStore(t)
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
	for range 3 {
		eventually(t, 5*time.Second, "idle", func() bool {
			s := u.Stats()
			return s.State == StateOnline && !s.LastAck.Before(s.Since) && !s.Since.IsZero()
		})
		time.Sleep(20 * time.Millisecond)
		n, _ := b.Connections()
		b.Cut()
		eventually(t, 5*time.Second, "back", func() bool { m, _ := b.Connections(); return m > n })
	}
	eventually(t, 5*time.Second, "the reason", func() bool { e := u.Stats().Err; return e != nil && e.Code == "client-id-taken" })
	u.stop()
}

// TestEndLeavesNothing: a connection that ends while messages wait that nobody
// takes leaves no goroutine behind.
func TestEndLeavesNothing(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	for _, politely := range []bool{true, false} {
		before := goleak.IgnoreCurrent()
		u := newUplink(t, "mqtt://"+b.Addr(), nil)
		c, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		raw := &rawConn{Conn: c, meter: &u.meter, limit: time.Minute}
		l, problem := u.connect(t.Context(), newWire(raw, raw, u.broker()), true)
		if problem != nil {
			t.Fatal(problem)
		}
		if err := l.subscribe("said/#", "the test", time.Minute); err != nil {
			t.Fatal(err)
		}
		for range 3 * cap(l.in) {
			b.Say("said/x", false, []byte("much"))
		}
		eventually(t, 10*time.Second, "more than are taken", func() bool { return len(l.in) == cap(l.in) })
		l.end(politely)
		eventually(t, 10*time.Second, "all have ended", func() bool { return goleak.Find(before) == nil })
	}
}
