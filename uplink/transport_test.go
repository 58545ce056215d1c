package uplink

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"tidegate/internal/sim"
)

// freePort is one that nobody has just now.
func freePort(t testing.TB) string {
	ln := listen(t)
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// background runs a program until the test ends, once something listens on
// the port of loopback.
func background(t testing.TB, port, name string, args ...string) {
	t.Helper()
	needs(t, name)
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = io.Discard, io.Discard
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	eventually(t, 10*time.Second, name+" listens", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// tinyproxy is an HTTP proxy that lets through to one port only.
func tinyproxy(t testing.TB, allow, extra string) string {
	port := freePort(t)
	conf := write(t, 0o644, filepath.Join(t.TempDir(), "tinyproxy.conf"), fmt.Appendf(nil,
		"Port %s\nListen 127.0.0.1\nTimeout 60\nAllow 127.0.0.1\nMaxClients 20\nConnectPort %s\n%s", port, allow, extra))
	background(t, port, "tinyproxy", "-d", "-c", conf)
	return "http://127.0.0.1:" + port
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// TestProxies goes through real proxies, with and without a password.
func TestProxies(t *testing.T) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("localhost")
	cc, ck := ca.good("gw-1")
	for _, x := range []struct {
		name, code string // of a failure at the step tcp
		proxy      func(t *testing.T, port string) string
		user       string
	}{
		{name: "http", proxy: func(t *testing.T, port string) string { return tinyproxy(t, port, "") }},
		{name: "http with password", proxy: func(t *testing.T, port string) string { return tinyproxy(t, port, "BasicAuth someone secret\n") }, user: "someone"},
		{name: "http wrong user", code: "proxy-auth", proxy: func(t *testing.T, port string) string { return tinyproxy(t, port, "BasicAuth other secret\n") }, user: "someone"},
		{name: "http no user", code: "proxy-auth", proxy: func(t *testing.T, port string) string { return tinyproxy(t, port, "BasicAuth other secret\n") }},
		{name: "http port not allowed", code: "proxy-refused", proxy: func(t *testing.T, port string) string { return tinyproxy(t, "443", "") }},
		{name: "socks5", proxy: func(t *testing.T, _ string) string {
			port := freePort(t)
			background(t, port, "microsocks", "-i", "127.0.0.1", "-p", port)
			return "socks5://127.0.0.1:" + port
		}},
		{name: "socks5 with password", user: "someone", proxy: func(t *testing.T, _ string) string {
			port := freePort(t)
			background(t, port, "microsocks", "-i", "127.0.0.1", "-p", port, "-u", "someone", "-P", "secret")
			return "socks5://127.0.0.1:" + port
		}},
		{name: "socks5 wrong user", code: "proxy-auth", user: "nobody", proxy: func(t *testing.T, _ string) string {
			port := freePort(t)
			background(t, port, "microsocks", "-i", "127.0.0.1", "-p", port, "-u", "someone", "-P", "secret")
			return "socks5://127.0.0.1:" + port
		}},
		{name: "socks5 no user", code: "proxy-auth", proxy: func(t *testing.T, _ string) string {
			port := freePort(t)
			background(t, port, "microsocks", "-i", "127.0.0.1", "-p", port, "-u", "someone", "-P", "secret")
			return "socks5://127.0.0.1:" + port
		}},
		{name: "socks5 where http is", code: "proxy-silent", proxy: func(t *testing.T, port string) string {
			return strings.Replace(tinyproxy(t, port, ""), "http", "socks5", 1)
		}},
		{name: "http where socks5 is", code: "proxy", proxy: func(t *testing.T, _ string) string {
			port := freePort(t)
			background(t, port, "microsocks", "-i", "127.0.0.1", "-p", port)
			return "http://127.0.0.1:" + port
		}},
		{name: "no proxy there", code: "refused", proxy: func(t *testing.T, _ string) string { return "http://127.0.0.1:" + freePort(t) }},
		{name: "silent proxy", code: "proxy-silent", proxy: func(t *testing.T, _ string) string { return "http://" + deaf(t) }},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			b := tlsScript(t, listenTLS(t, sc, sk, ca, nil), sim.ScriptOptions{Echo: true})
			port := portOf(b.Addr())
			up := newUplink(t, "mqtts://localhost:"+port, func(o *Options) {
				o.Identity = identityDir(t, ca.pem, cc, ck)
				o.Proxy = x.proxy(t, port)
				if o.ProxyUser = x.user; x.user != "" {
					o.ProxyFile = write(t, 0o600, filepath.Join(t.TempDir(), "pw"), []byte("secret\n"))
				}
			})
			if x.code == "proxy-silent" || x.code == "proxy" {
				up.tune.connect = 2 * time.Second
			}
			steps := up.Test(context.Background())
			if x.code != "" {
				s := steps[stepTCP]
				if s.State != StepFail || s.Err.Code != x.code || !strings.Contains(s.Err.Msg, portOf(up.opts.Proxy)) {
					t.Errorf("%+v %+v", s, s.Err)
				}
				return
			}
			for _, s := range steps {
				if s.State != StepOK && s.Name != "clock" {
					t.Errorf("%+v %+v", s, s.Err)
				}
			}
			src := newStore(t).add(laneData, 20)
			start(t, up, src)
			eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
			complete(t, seqs(t, b, laneData), 20)
		})
	}
}

// webScript is a script broker behind WebSockets at /mqtt. Messages of the
// broker are cut and joined without regard to packets.
func webScript(t *testing.T, secure func(http.Handler) (url string, stop func()), o sim.ScriptOptions) (*sim.Script, string) {
	b := newScript(t, o)
	up := websocket.Upgrader{Subprotocols: []string{"mqtt"}}
	var wg sync.WaitGroup
	h := http.NewServeMux()
	h.HandleFunc("/mqtt", func(w http.ResponseWriter, r *http.Request) {
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		wg.Add(1)
		defer wg.Done()
		defer ws.Close()
		c, err := net.Dial("tcp", b.Addr())
		if err != nil {
			return
		}
		defer c.Close()
		wg.Go(func() {
			defer ws.Close()
			buf := make([]byte, 3)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				if ws.WriteMessage(websocket.BinaryMessage, buf[:n]) != nil {
					return
				}
			}
		})
		for {
			_, m, err := ws.ReadMessage()
			if err != nil {
				return
			}
			if _, err := c.Write(m); err != nil {
				return
			}
		}
	})
	h.HandleFunc("/text", func(w http.ResponseWriter, r *http.Request) {
		if ws, err := up.Upgrade(w, r, nil); err == nil {
			ws.ReadMessage()
			ws.WriteMessage(websocket.TextMessage, []byte{0x20, 2, 0, 0})
			ws.ReadMessage()
			ws.Close()
		}
	})
	url, stop := secure(h)
	t.Cleanup(func() { stop(); b.Cut(); wg.Wait() })
	return b, url
}

func serveHTTP(t *testing.T, ln net.Listener) func(http.Handler) (string, func()) {
	return func(h http.Handler) (string, func()) {
		s := &http.Server{Handler: h}
		var wg sync.WaitGroup
		wg.Go(func() { s.Serve(ln) })
		return ln.Addr().String(), func() { s.Close(); wg.Wait() }
	}
}

func TestWebSocket(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		b, addr := webScript(t, serveHTTP(t, listen(t)), sim.ScriptOptions{Echo: true, Play: func(a sim.Arrival) sim.Move {
			if a.Total%9 == 0 {
				return sim.DropUnread
			}
			return sim.Pass
		}})
		up := newUplink(t, "ws://"+addr, nil)
		if s := up.Test(context.Background())[stepEcho]; s.State != StepOK {
			t.Errorf("%+v", s)
		}
		src := newStore(t).add(laneData, 60)
		src.put(laneData, src.encode(src.cat, 61, strings.Repeat("long ", 30_000)))
		u := start(t, up, src)
		eventually(t, 10*time.Second, "delivered", func() bool { return src.waiting() == 0 })
		u.stop()
		complete(t, seqs(t, b, laneData), 61)
		if n, _ := b.Connections(); n < 4 {
			t.Errorf("%d connections: the fault did not fire", n)
		}
	})
	t.Run("oversize", func(t *testing.T) {
		b, addr := webScript(t, serveHTTP(t, listen(t)), sim.ScriptOptions{Play: func(a sim.Arrival) sim.Move {
			if a.Total == 3 {
				return sim.Oversize
			}
			return sim.Pass
		}})
		src := newStore(t).add(laneData, 5)
		u := start(t, newUplink(t, "ws://"+addr, nil), src)
		eventually(t, 10*time.Second, "delivered", func() bool { return src.waiting() == 0 })
		eventually(t, 5*time.Second, "refused", func() bool { e := u.Stats().Err; return e != nil && e.Code == "protocol" })
		u.stop()
		complete(t, seqs(t, b, laneData), 5)
	})
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("localhost")
	cc, ck := ca.good("gw-1")
	t.Run("tls", func(t *testing.T) {
		b, addr := webScript(t, serveHTTP(t, listenTLS(t, sc, sk, ca, nil)), sim.ScriptOptions{Echo: true})
		up := newUplink(t, "wss://localhost:"+portOf(addr)+"/mqtt", func(o *Options) { o.Identity = identityDir(t, ca.pem, cc, ck) })
		for _, s := range up.Test(context.Background()) {
			if s.State != StepOK && s.Name != "clock" {
				t.Errorf("%+v %+v", s, s.Err)
			}
		}
		src := newStore(t).add(laneData, 20)
		u := start(t, up, src)
		eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
		u.stop()
		complete(t, seqs(t, b, laneData), 20)
		eventually(t, 5*time.Second, "DISCONNECT", func() bool { n, clean := b.Connections(); return n == 2 && clean == 2 })
	})
	for _, x := range []struct{ name, path, code string }{{"other path", "/other", "websocket"}, {"text", "/text", "protocol"}} {
		t.Run(x.name, func(t *testing.T) {
			_, addr := webScript(t, serveHTTP(t, listen(t)), sim.ScriptOptions{})
			s := newUplink(t, "ws://"+addr+x.path, nil).Test(context.Background())[stepConnect]
			if s.State != StepFail || s.Err.Code != x.code {
				t.Errorf("%+v %+v", s, s.Err)
			}
		})
	}
	t.Run("not a web server", func(t *testing.T) {
		up := newUplink(t, "ws://"+deaf(t), nil)
		up.tune.connect = 2 * time.Second
		if s := up.Test(context.Background())[stepConnect]; s.State != StepFail || s.Err.Code != "mqtt-silent" {
			t.Errorf("%+v %+v", s, s.Err)
		}
	})
}

// TestMosquittoWebSocket is MQTT over WebSocket and TLS with libwebsockets on
// the other side.
func TestMosquittoWebSocket(t *testing.T) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("127.0.0.1")
	cc, ck := ca.good("gw-1")
	port := freePort(t)
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o777)
	}
	write(t, 0o644, filepath.Join(dir, "ca.crt"), ca.pem)
	write(t, 0o644, filepath.Join(dir, "server.crt"), sc)
	write(t, 0o644, filepath.Join(dir, "server.key"), sk)
	newMosquitto(t, ca, [2][]byte{sc, sk}, fmt.Sprintf(`listener %s
socket_domain ipv4
protocol websockets
cafile %[2]s/ca.crt
certfile %[2]s/server.crt
keyfile %[2]s/server.key
require_certificate true
use_identity_as_username true
`, port, dir))
	up := newUplink(t, "wss://127.0.0.1:"+port, func(o *Options) { o.Identity = identityDir(t, ca.pem, cc, ck) })
	up.tune = up.tuning()
	for _, s := range up.Test(context.Background()) {
		if s.State != StepOK && s.Name != "clock" {
			t.Errorf("%+v %+v", s, s.Err)
		}
	}
	src := newStore(t).add(laneData, 300)
	u := start(t, up, src)
	eventually(t, 10*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	if st := u.Stats(); st.Sessions != 1 || st.Repeats != 0 {
		t.Errorf("%+v", st)
	}
}

// TestFailover: while the first broker is away the next one gets everything;
// when the first is back, the uplink returns to it, and nothing is sent twice
// on the way home.
func TestFailover(t *testing.T) {
	home := listen(t)
	addr := home.Addr().String()
	first := sim.NewScript(home, sim.ScriptOptions{})
	second := newScript(t, sim.ScriptOptions{})
	up := newUplink(t, "mqtt://"+addr, func(o *Options) {
		o.Fallback = []string{"mqtt://127.0.0.1:" + freePort(t), "mqtt://" + second.Addr()}
	})
	src := newStore(t).add(laneData, 20)
	u := start(t, up, src)
	eventually(t, 5*time.Second, "delivered to the first", func() bool { return src.waiting() == 0 })
	if n, _ := second.Connections(); n != 0 {
		t.Error("the second broker was asked although the first was there")
	}
	first.Close()
	src.add(laneData, 20)
	eventually(t, 10*time.Second, "delivered to the second", func() bool { return src.waiting() == 0 })
	lost := u.Stats().Repeats // under way when the first one went
	if b := u.Stats().Broker; b != "mqtt://"+second.Addr() {
		t.Errorf("the broker in use is %s", b)
	}
	// The first one comes back while messages are under way.
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	again := sim.NewScript(ln, sim.ScriptOptions{})
	defer again.Close()
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			src.add(laneData, 1)
			time.Sleep(time.Millisecond)
		}
	})
	eventually(t, 10*time.Second, "home again", func() bool { n, _ := again.Connections(); return n > 0 })
	time.Sleep(50 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	eventually(t, 10*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	st := u.Stats()
	u.stop()
	if st.Broker != "mqtt://"+addr || st.Repeats != lost {
		t.Errorf("%+v", st)
	}
	got := slices.Concat(seqs(t, first, laneData), seqs(t, second, laneData), seqs(t, again, laneData))
	if r := complete(t, got, src.Given(laneData)); r > int(lost) {
		t.Errorf("%d repeats", r)
	}
	eventually(t, 5*time.Second, "one session, ended with DISCONNECT", func() bool { n, clean := second.Connections(); return n == 1 && clean == 1 })
}

// TestSpread: after a long session that the broker closed, the way back is
// spread over the whole time; after a short one it is not.
func TestSpread(t *testing.T) {
	for _, long := range []bool{true, false} {
		var waits []time.Duration
		for range 30 {
			b := newScript(t, sim.ScriptOptions{})
			up := newUplink(t, "mqtt://"+b.Addr(), nil)
			up.tune.spread, up.tune.backoff = 600*time.Millisecond, 4*time.Millisecond
			if long {
				up.tune.stable = 0
			}
			u := start(t, up, newStore(t).add(laneData, 1))
			eventually(t, 5*time.Second, "online", func() bool { return !u.Stats().LastAck.IsZero() })
			b.Cut()
			began := time.Now()
			eventually(t, 5*time.Second, "back", func() bool { n, _ := b.Connections(); return n > 1 })
			waits = append(waits, time.Since(began))
			u.stop()
		}
		slices.Sort(waits)
		if spread := waits[24] - waits[5]; long && spread < 150*time.Millisecond || !long && waits[15] > 250*time.Millisecond {
			t.Errorf("after a long session %v: back after %s", long, waits)
		}
	}
}

// TestEveryBroker: Test tries every broker of the list. While Run is
// connected it logs in at none: one of them may be of the same cluster.
func TestEveryBroker(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	sc, sk := ca.good("127.0.0.1")
	home := tlsScript(t, listenTLS(t, sc, sk, ca, nil), sim.ScriptOptions{Echo: true})
	away := tlsScript(t, listenTLS(t, sc, sk, ca, nil), sim.ScriptOptions{Echo: true})
	picky := tlsScript(t, listenTLS(t, sc, sk, other, nil), sim.ScriptOptions{Echo: true}) // takes clients of another authority
	names := []string{"mqtts://" + home.Addr(), "mqtts://127.0.0.1:" + freePort(t), "mqtts://" + away.Addr(), "mqtts://" + picky.Addr()}
	cc, ck := ca.good("gw")
	up := newUplink(t, names[0], func(o *Options) {
		o.Fallback, o.Identity = names[1:], identityDir(t, ca.pem, cc, ck)
	})
	test := func() (all string) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		for _, s := range up.Test(ctx) {
			code := ""
			if s.Err != nil {
				code = s.Err.Code
			}
			if s.Name == "config" {
				all += fmt.Sprint("\n", slices.Index(names, s.Broker), ":")
			}
			if s.State != StepOK && s.State != StepWarn || s.Name == "echo" || s.Name == "connect" {
				all += strings.TrimRight(fmt.Sprint(" ", s.Name, " ", s.State, " ", code), " ") + ";"
			}
		}
		return all
	}
	refused := "\n1: tcp FAIL refused; tls not tried; client cert not tried; connect not tried; publish not tried; echo not tried;"
	unknown := "\n3: client cert FAIL client-cert-unknown-ca; connect not tried; publish not tried; echo not tried;"
	if got, want := test(), "\n0: connect ok; echo ok;"+refused+"\n2: connect ok; echo ok;"+unknown; got != want {
		t.Errorf("got%s\nwant%s", got, want)
	}
	u := start(t, up, newStore(t))
	eventually(t, 10*time.Second, "online", func() bool { return u.Stats().State == StateOnline })
	before, _ := away.Connections()
	if got, want := test(), "\n0: connect ok; echo ok;"+refused+"\n2: connect ok;"+unknown; got != want {
		t.Errorf("while connected got%s\nwant%s", got, want)
	}
	if after, _ := away.Connections(); after != before {
		t.Error("it logged in at another broker")
	}
	if n := u.Stats().Sessions; n != 1 {
		t.Errorf("%d sessions", n)
	}
	u.stop()
}
