package uplink

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// TestWire: the connection counts bytes, and its guard sees packets in
// whatever pieces they come.
func TestWire(t *testing.T) {
	a, z := net.Pipe()
	raw := &rawConn{Conn: a, meter: &meter{}, limit: time.Second}
	w := newWire(raw, raw, broker{})
	go func() {
		for _, b := range []byte{0x20, 2, 0, 0, 0x40, 2, 0x99, 0x99, 0x40, 2, 0x12, 0x34, 0xd0, 0, 0x30, 0x05, 0, 1, 'a', 'x', 'y', 0x50} {
			z.Write([]byte{b})
		}
	}()
	go io.Copy(io.Discard, z)
	// PUBLISH "a" with number 0x1234
	if _, err := w.Write([]byte{0x32, 5, 0, 1, 'a', 0x12, 0x34}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Second, "written", func() bool { return !w.proofOf(0x1234).written.IsZero() })
	if p := w.proofOf(0x1234); !p.acked.IsZero() {
		t.Errorf("%+v", p)
	}
	n := 0
	buf := make([]byte, 64)
	for {
		k, err := w.Read(buf)
		n += k
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Error(err)
			}
			break
		}
	}
	if n != 21 || raw.meter.out.Load() != 7 || raw.meter.in.Load() != 22 {
		t.Errorf("%d bytes passed, %d out, %d in", n, raw.meter.out.Load(), raw.meter.in.Load())
	}
	if w.proofOf(0x1234).acked.IsZero() {
		t.Error("the PUBACK was not seen")
	}
	if p := w.proofOf(0x9999); !p.acked.IsZero() || !p.written.IsZero() {
		t.Error("a PUBACK for what was never written counts")
	}
	select {
	case <-w.dead:
	default:
		t.Error("the session was not woken")
	}
	z.Close()
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

// publishOf is a PUBLISH of quality 1 to "a" with a body of so many bytes.
func publishOf(id uint16, size int) []byte {
	n := size + 5
	p := []byte{0x32, byte(n&0x7f | 0x80), byte(n>>7&0x7f | 0x80), byte(n >> 14), 0, 1, 'a', byte(id >> 8), byte(id)}
	return append(p, make([]byte, size)...)
}

// TestWireAhead: a PUBLISH is taken while the one before is written, up to a
// bound; packets keep their order; a PUBACK for what has not begun to leave
// proves nothing; and a broken connection takes nothing more.
func TestWireAhead(t *testing.T) {
	a, z := net.Pipe() // a write takes as long as the other end does not read
	raw := &rawConn{Conn: a, meter: &meter{}, limit: 10 * time.Second}
	w := newWire(raw, raw, broker{})
	w.first = true // CONNACK has been
	const size = 20 << 10
	var want []byte
	id := uint16(0)
	for w.unwritten() < ahead {
		id++
		p := publishOf(id, size)
		want = append(want, p...)
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if most := ahead + len(want)/int(id); w.unwritten() > most {
		t.Errorf("%d bytes wait, at most %d may", w.unwritten(), most)
	}
	// The first is on its way, or some; the last fits into no piece with them.
	eventually(t, 5*time.Second, "the first is being written", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, begun := w.proof[1]
		return begun
	})
	go z.Write([]byte{0x40, 2, byte(id >> 8), byte(id)})
	if _, err := io.ReadFull(w, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if !w.proofOf(id).acked.IsZero() {
		t.Errorf("a PUBACK before number %d left counts", id)
	}
	// Above the bound, and with a ping: written when Write returns.
	over := publishOf(id+1, size)
	want = append(append(want, over...), 0xc0, 0)
	done := make(chan error, 2)
	go func() {
		_, err := w.Write(over)
		done <- err
		_, err = w.Write([]byte{0xc0, 0})
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("above the bound a PUBLISH does not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(z, got); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the packets came in another order, or damaged")
	}
	if n := w.unwritten(); n != 0 {
		t.Errorf("%d bytes wait after a ping was written", n)
	}
	for n := uint16(1); n <= id+1; n++ {
		if w.proofOf(n).written.IsZero() {
			t.Errorf("number %d is not taken as written", n)
		}
	}
	// What waits while one is written goes in one piece.
	for n := id + 10; n < id+13; n++ {
		w.Write(publishOf(n, 10))
		eventually(t, 5*time.Second, "the first is being written", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			_, begun := w.proof[id+10]
			return begun
		})
	}
	one := len(publishOf(0, 10))
	for _, want := range []int{one, 2 * one} {
		if n, err := z.Read(got); n != want || err != nil {
			t.Errorf("a piece of %d bytes, %v, want %d", n, err, want)
		}
	}
	// Long messages share their memory; of one long one it is given back with
	// the next short one.
	go w.Write(publishOf(id+20, 4*ahead))
	if _, err := io.CopyN(io.Discard, z, int64(len(publishOf(0, 4*ahead)))); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "it is written", func() bool { return w.unwritten() == 0 })
	w.mu.Lock()
	if cap(w.out) < 4*ahead {
		t.Errorf("room for %d bytes is left after a long message", cap(w.out))
	}
	w.mu.Unlock()
	w.Write(publishOf(id+21, 10))
	if _, err := z.Read(got); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "its memory is given back", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.out) == 0 && cap(w.out) <= 2*ahead
	})
	z.Close()
	w.Write(publishOf(id+2, 10))
	select {
	case <-w.dead:
	case <-time.After(5 * time.Second):
		t.Fatal("a write that fails later is not noticed")
	}
	if _, err := w.Write(publishOf(id+3, 10)); err == nil {
		t.Error("a broken connection takes a PUBLISH")
	}
	if !w.proofOf(id + 2).written.IsZero() {
		t.Error("what could not be written counts as written")
	}
}

// TestWriteLimit: a write that nobody takes ends by itself, whatever the
// kernel does. Saying goodbye may take even less.
func TestWriteLimit(t *testing.T) {
	a, z := net.Pipe()
	defer z.Close()
	defer a.Close()
	raw := &rawConn{Conn: a, meter: &meter{}, limit: 50 * time.Millisecond}
	w := newWire(raw, raw, broker{})
	w.SetDeadline(time.Time{}) // as the MQTT library does after CONNACK
	w.SetWriteDeadline(time.Time{})
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := w.Write([]byte{0xc0, 0}) // a ping
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, errWrite) || !errors.Is(w.cause(), errWrite) {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took < 40*time.Millisecond {
			t.Errorf("after %s", took)
		}
	case <-time.After(20 * time.Second):
		t.Error("a ping hangs")
		a.Close()
		<-done
	}
}

func TestValidate(t *testing.T) {
	for _, x := range []struct {
		path   string
		change func(*Options)
	}{
		{"url", func(o *Options) { o.URL = "" }},
		{"url", func(o *Options) { o.URL = "broker" }},
		{"url", func(o *Options) { o.URL = "http://broker" }},
		{"url", func(o *Options) { o.URL = "mqtt://192.0.2.1" }},
		{"url", func(o *Options) { o.URL = "mqtts://user:secret@broker" }},
		{"url", func(o *Options) { o.URL = "mqtts://broker/path" }},
		{"url", func(o *Options) { o.URL = "mqtts://broker:0" }},
		{"url", func(o *Options) { o.URL = "ws://192.0.2.1/mqtt" }},
		{"url", func(o *Options) { o.URL = "wss://broker/mqtt#x" }},
		{"fallback[1]", func(o *Options) { o.Fallback = []string{"wss://b", "mqtt://b"} }},
		{"proxy", func(o *Options) { o.Proxy = "https://proxy" }},
		{"proxy", func(o *Options) { o.Proxy = "http://someone:secret@proxy" }},
		{"proxy", func(o *Options) { o.ProxyUser = "x" }},
		{"proxy_password_file", func(o *Options) { o.Proxy, o.ProxyFile = "socks5://p", "x" }},
		{"token_file", func(o *Options) { o.TokenFile = "x" }},
		{"shape", func(o *Options) { o.Fallback = []string{"https://h/x"}; o.Shape = "sparkplug" }},
		{"tls.alpn", func(o *Options) { o.TLS.ALPN = []string{""} }},
		{"tls", func(o *Options) { o.TLS.Cert = "x" }},
		{"tls", func(o *Options) { o.Identity = "x"; o.TLS.CA = "y" }},
		{"password_file", func(o *Options) { o.PasswordFile = "x" }},
		{"topic", func(o *Options) { o.Topic = "tg/{gateway}" }},
		{"topic", func(o *Options) { o.Topic = "tg/{gatway}/{kind}" }},
		{"topic", func(o *Options) { o.Topic = "tg/#/{kind}" }},
		{"shape", func(o *Options) { o.Shape = "xml" }},
		{"compress", func(o *Options) { o.Compress = "zip" }},
		{"preset", func(o *Options) { o.Preset = "aws" }},
		{"publish_rate", func(o *Options) { o.PublishRate = -1 }},
		{"publish_rate", func(o *Options) { o.PublishRate = 10_001 }},
		{"batch.max_age", func(o *Options) { o.Batch.MaxAge = 0 }},
		{"batch.max_readings", func(o *Options) { o.Batch.MaxReadings = 0 }},
		{"batch.max_bytes", func(o *Options) { o.Batch.MaxBytes = 1 }},
		{"inflight", func(o *Options) { o.Inflight = 0 }},
		{"inflight", func(o *Options) { o.Inflight = 101 }},
		{"keepalive", func(o *Options) { o.Keepalive = time.Second }},
		{"backlog.order", func(o *Options) { o.Backlog.Order = "random" }},
		{"backlog.rate", func(o *Options) { o.Backlog.Rate = -1 }},
		{"receipts", func(o *Options) { o.Receipts, o.Shape = true, "sparkplug" }},
		{"receipts", func(o *Options) { o.Receipts, o.Fallback = true, []string{"https://receiver.example/in"} }},
		{"commands", func(o *Options) { o.Commands, o.Shape = true, "homeassistant" }},
		{"command_key", func(o *Options) { o.CommandKey = "/etc/tidegate/command.pub" }},
		{"insecure", func(o *Options) { o.Insecure = "yes" }},
	} {
		o := Defaults()
		o.URL = "mqtts://broker"
		x.change(&o)
		var got []string
		o.Validate(func(path, msg, hint string) {
			if strings.Contains(msg+hint, "secret") {
				t.Errorf("%q tells the password", msg)
			}
			got = append(got, path)
		})
		if len(got) != 1 || got[0] != x.path {
			t.Errorf("want %s, got %v", x.path, got)
		}
	}
	for _, url := range []string{"mqtts://broker", "mqtts://broker:443", "mqtt://127.0.0.1", "mqtt://localhost:1884", "mqtt://[::1]"} {
		o := Defaults()
		o.URL = url
		o.Validate(func(path, msg, _ string) { t.Errorf("%s: %s: %s", url, path, msg) })
	}
	o := Defaults()
	o.URL, o.Insecure = "mqtt://192.0.2.1", "plain-text"
	o.Validate(func(path, msg, _ string) { t.Errorf("%s: %s", path, msg) })
	u, err := New(o, Env{Gateway: "g", Clock: testClock(t)})
	if err != nil {
		t.Fatal(err)
	}
	if !u.Stats().Insecure || u.state("online", nil).Insecure != "plain-text" {
		t.Error("a plain link is not called so")
	}
}

// TestNoWayAroundTLS: there is no switch that turns verification off.
func TestNoWayAroundTLS(t *testing.T) {
	_, file, _, _ := runtime.Caller(0)
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*.go"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "Insecure"+"SkipVerify") {
			t.Errorf("%s can switch verification off", f)
		}
	}
}

func TestStatsWhileTesting(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{Echo: true})
	src := newStore(t)
	u := start(t, newUplink(t, "mqtt://"+b.Addr(), nil), src)
	eventually(t, 5*time.Second, "online", func() bool { return u.Stats().State == StateOnline })
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 200 {
			src.add(laneData, 1)
			time.Sleep(time.Millisecond)
		}
	})
	for range 5 {
		steps := u.Test(context.Background())
		for _, s := range steps {
			if s.State == StepFail || s.State == StepNot || s.State == StepUnknown {
				t.Errorf("%+v", s)
			}
		}
		if steps[stepConnect].Text != "through the running agent's connection" {
			t.Errorf("%+v", steps[stepConnect])
		}
	}
	wg.Wait()
	eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	if n, _ := b.Connections(); n != 1 {
		t.Errorf("%d connections: the test threw the agent out", n)
	}
	complete(t, seqs(t, b, laneData), 200)
}

// TestOutageSince: the attempts of one outage do not begin it anew, so an
// agent that tries every second does not look healthy between two attempts.
func TestOutageSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUplink(t, "mqtts://127.0.0.1:1", nil)
		at := time.Now() // of the last change
		for _, c := range []struct {
			state string
			fresh bool
		}{{StateConnecting, false}, {StateAway, false}, {StateConnecting, false}, {StateOnline, true},
			{StateOnline, false}, {StateAway, true}, {StateConnecting, false}, {StateAway, false}, {StateStopped, true}} {
			time.Sleep(time.Second)
			if c.fresh {
				at = time.Now()
			}
			u.setState(c.state, nil)
			if s := u.Stats(); s.State != c.state || !s.Since.Equal(at) {
				t.Errorf("%s: state %s since %v, want %v", c.state, s.State, s.Since, at)
			}
		}
	})
}
