package uplink

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// needs skips loudly when a program is missing; with CI=true that is a failure.
func needs(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed (make peers)", p)
			}
			t.Skipf("NOT RUN: %s is not installed (make peers)", p)
		}
	}
}

// mosquitto is a real broker that demands client certificates.
type mosquitto struct {
	t    testing.TB
	dir  string
	port int
	cmd  *exec.Cmd
}

func newMosquitto(t testing.TB, ca *authority, certs [2][]byte, extra string) *mosquitto {
	t.Helper()
	needs(t, "mosquitto", "mosquitto_sub")
	ln := listen(t)
	m := &mosquitto{t: t, dir: t.TempDir(), port: ln.Addr().(*net.TCPAddr).Port}
	ln.Close()
	write(t, 0o644, filepath.Join(m.dir, "ca.crt"), ca.pem)
	write(t, 0o644, filepath.Join(m.dir, "server.crt"), certs[0])
	write(t, 0o644, filepath.Join(m.dir, "server.key"), certs[1]) // mosquitto drops its rights before it reads this
	os.Chmod(m.dir, 0o777)
	for d := m.dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o777)
	}
	conf := fmt.Sprintf(`listener %d 127.0.0.1
cafile %[2]s/ca.crt
certfile %[2]s/server.crt
keyfile %[2]s/server.key
require_certificate true
use_identity_as_username true
allow_anonymous false
persistence true
persistence_location %[2]s/
autosave_interval 1
autosave_on_changes true
max_queued_messages 100000
%[3]s`, m.port, m.dir, extra)
	write(t, 0o644, filepath.Join(m.dir, "mosquitto.conf"), []byte(conf))
	m.start()
	t.Cleanup(m.kill)
	return m
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.cmd = exec.Command("mosquitto", "-c", filepath.Join(m.dir, "mosquitto.conf"))
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	// Its log says when it is ready. Knocking with a bare TCP connection
	// would leave an error in OpenSSL's queue that mosquitto then takes for
	// one of the next client.
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(m.dir, "log"))
		if strings.Contains(string(b), " running") {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("mosquitto did not start:\n%s", b)
		}
	}
}

// kill ends the broker as a crash would.
func (m *mosquitto) kill() {
	if m.cmd != nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
		m.cmd = nil
	}
}

func (m *mosquitto) url() string { return fmt.Sprint("mqtts://127.0.0.1:", m.port) }

// listener is mosquitto_sub, started again when the broker takes it down.
type listener struct {
	mu   sync.Mutex
	got  []arrived
	raw  []string
	stop context.CancelFunc
	wg   sync.WaitGroup
}

func (m *mosquitto) listen(identity string, topic string) *listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{stop: cancel}
	l.wg.Go(func() {
		for ctx.Err() == nil {
			c := exec.CommandContext(ctx, "mosquitto_sub", "-h", "127.0.0.1", "-p", strconv.Itoa(m.port), "-t", topic,
				"-q", "1", "-i", "listener", "-c", "-F", "%t %p", "--cafile", filepath.Join(identity, "ca.crt"),
				"--cert", filepath.Join(identity, "client.crt"), "--key", filepath.Join(identity, "client.key"))
			out, err := c.StdoutPipe()
			if err != nil {
				return
			}
			if c.Start() != nil {
				return
			}
			for lines := bufio.NewScanner(out); lines.Scan(); {
				topic, body, _ := strings.Cut(lines.Text(), " ")
				msg := arrived{Topic: topic}
				if json.Unmarshal([]byte(body), &msg) == nil {
					l.mu.Lock()
					l.got = append(l.got, msg)
					l.mu.Unlock()
				}
				l.mu.Lock()
				l.raw = append(l.raw, lines.Text())
				l.mu.Unlock()
			}
			c.Wait()
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return l
}

func (l *listener) close() { l.stop(); l.wg.Wait() }

func (l *listener) numbers() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []uint64
	for _, m := range l.got {
		if m.Lane == laneData && m.Seq != 0 {
			out = append(out, m.Seq)
		}
	}
	return out
}

func (l *listener) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.raw {
		if strings.Contains(r, part) {
			return true
		}
	}
	return false
}

// mutual is a mosquitto with mutual TLS, its authority and the folder of the
// certificate of gw-1.
func mutual(t testing.TB) (m *mosquitto, ca *authority, identity string) {
	t.Helper()
	ca = newAuthority(t, "ca")
	sc, sk := ca.good("127.0.0.1")
	m = newMosquitto(t, ca, [2][]byte{sc, sk}, "")
	cc, ck := ca.good("gw-1")
	return m, ca, identityDir(t, ca.pem, cc, ck)
}

// TestMosquitto delivers a thousand batches to a real broker with mutual
// TLS, which is killed and started again meanwhile.
func TestMosquitto(t *testing.T) {
	m, ca, dir := mutual(t)
	lc, lk := ca.good("listener")
	l := m.listen(identityDir(t, ca.pem, lc, lk), "tg/v1/here/gw-1/#")
	defer l.close()

	up := newUplink(t, m.url(), func(o *Options) { o.Identity = dir })
	up.tune.ack, up.tune.write, up.tune.connect = 2*time.Second, 2*time.Second, 5*time.Second
	var steps []Step
	// The listener has subscribed when it hears a test.
	eventually(t, time.Minute, "the listener listens", func() bool {
		steps = up.Test(context.Background())
		return l.has("/test ")
	})
	for _, s := range steps {
		t.Logf("%-12s %-8s %s %s", s.Name, s.State, s.Text, s.Took.Round(100*time.Microsecond))
		if s.State != StepOK && s.Name != "clock" {
			t.Errorf("%s: %+v", s.Name, s)
		}
	}
	src := newStore(t).add(laneData, 100)
	u := start(t, up, src)
	// A first batch is at the listener before anything is killed: its
	// session at the broker exists and is saved.
	eventually(t, 10*time.Second, "the first arrives", func() bool { return len(l.numbers()) > 0 })
	time.Sleep(1200 * time.Millisecond) // the broker saves its sessions
	for range 3 {
		src.add(laneData, 200)
		time.Sleep(30 * time.Millisecond)
		m.kill()
		src.add(laneData, 100)
		time.Sleep(100 * time.Millisecond)
		m.start()
		eventually(t, 20*time.Second, "delivered after a restart", func() bool { return src.waiting() == 0 })
	}
	st := u.Stats()
	u.stop()
	if st.Acked != 1000 {
		t.Errorf("%d of 1000 acknowledged", st.Acked)
	}
	eventually(t, 10*time.Second, "offline is told", func() bool { return l.has(`"state":"offline"`) })
	if !l.has("tg/v1/here/gw-1/meta ") {
		t.Error("the metadata never arrived")
	}
	got := l.numbers()
	seen := map[uint64]bool{}
	for _, q := range got {
		seen[q] = true
	}
	t.Logf("%d sessions, %d repeats sent, %d batches at the listener, %d different", st.Sessions, st.Repeats, len(got), len(seen))
	if st.Repeats > 20*(st.Sessions-1) {
		t.Errorf("%d repeats in %d sessions", st.Repeats, st.Sessions)
	}
	// What the killed broker had acknowledged but not passed on is lost by
	// the broker, not by us: without receipts that is outside the promise.
	if len(seen) < 700 {
		t.Errorf("only %d of 1000 arrived", len(seen))
	}
}

// TestMosquittoRestart: a broker that is stopped in good order loses
// nothing that it acknowledged, so all of it arrives.
func TestMosquittoRestart(t *testing.T) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("127.0.0.1")
	m := newMosquitto(t, ca, [2][]byte{sc, sk}, "")
	cc, ck := ca.good("gw-1")
	lc, lk := ca.good("listener")
	l := m.listen(identityDir(t, ca.pem, lc, lk), "tg/v1/here/gw-1/up")
	defer l.close()
	src := newStore(t).add(laneData, 1)
	up := newUplink(t, m.url(), func(o *Options) { o.Identity = identityDir(t, ca.pem, cc, ck) })
	up.tune.ack, up.tune.connect = 2*time.Second, 5*time.Second
	u := start(t, up, src)
	eventually(t, 10*time.Second, "the first arrives", func() bool {
		if len(l.numbers()) == 0 {
			src.add(laneData, 1)
		}
		time.Sleep(50 * time.Millisecond)
		return len(l.numbers()) > 0
	})
	first := l.numbers()[0]
	for range 2 {
		src.add(laneData, 100)
		time.Sleep(20 * time.Millisecond)
		m.cmd.Process.Signal(os.Interrupt)
		m.cmd.Wait()
		m.cmd = nil
		src.add(laneData, 100)
		time.Sleep(50 * time.Millisecond)
		m.start()
		eventually(t, 20*time.Second, "delivered after a restart", func() bool { return src.waiting() == 0 })
	}
	given := src.Given(laneData)
	eventually(t, 10*time.Second, "all arrive", func() bool {
		seen := map[uint64]bool{}
		for _, q := range l.numbers() {
			seen[q] = true
		}
		for q := first; q <= given; q++ {
			if !seen[q] {
				return false
			}
		}
		return true
	})
	u.stop()
}

// TestMosquittoRefuses: the faults of the field, with OpenSSL on the other
// side.
func TestMosquittoRefuses(t *testing.T) {
	ca, other := newAuthority(t, "ca one"), newAuthority(t, "ca two")
	cc, ck := ca.good("gw-1")
	fc, fk := other.good("gw-1")
	day := 24 * time.Hour
	sc, sk := ca.good("127.0.0.1")
	hc, hk := ca.good("broker.example")
	xc, xk := ca.issue("127.0.0.1", time.Now().Add(-2*day), time.Now().Add(-day))
	for _, x := range []struct {
		name, code string
		server     [2][]byte
		identity   [3][]byte
	}{
		{"wrong ca", "tls-unknown-ca", [2][]byte{sc, sk}, [3][]byte{other.pem, cc, ck}},
		{"wrong host", "tls-host", [2][]byte{hc, hk}, [3][]byte{ca.pem, cc, ck}},
		{"expired server", "tls-expired", [2][]byte{xc, xk}, [3][]byte{ca.pem, cc, ck}},
		{"no client certificate", "client-cert-required", [2][]byte{sc, sk}, [3][]byte{ca.pem, nil, nil}},
		{"foreign client certificate", "client-cert-unknown-ca", [2][]byte{sc, sk}, [3][]byte{ca.pem, fc, fk}},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			m := newMosquitto(t, ca, x.server, "")
			up := newUplink(t, m.url(), func(o *Options) {
				o.Identity = identityDir(t, x.identity[0], x.identity[1], x.identity[2])
			})
			src := newStore(t).add(laneData, 3)
			u := start(t, up, src)
			eventually(t, 10*time.Second, "the error", func() bool { return u.Stats().Err != nil })
			u.stop()
			if e := u.Stats().Err; e.Code != x.code {
				t.Errorf("code %s, want %s: %v", e.Code, x.code, e)
			}
			if src.waiting() != 3 {
				t.Error("something was delivered")
			}
			failed := ""
			for _, s := range up.Test(context.Background()) {
				if s.State == StepFail {
					failed = s.Err.Code
				}
			}
			if failed != x.code {
				t.Errorf("Test says %q, want %s", failed, x.code)
			}
		})
	}
	t.Run("denied topic", func(t *testing.T) {
		t.Parallel()
		acl := write(t, 0o644, filepath.Join(t.TempDir(), "acl"), []byte("user gw-1\ntopic readwrite elsewhere/#\n"))
		for d := filepath.Dir(acl); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			os.Chmod(d, 0o777)
		}
		m := newMosquitto(t, ca, [2][]byte{sc, sk}, "acl_file "+acl+"\n")
		up := newUplink(t, m.url(), func(o *Options) { o.Identity = identityDir(t, ca.pem, cc, ck) })
		steps := up.Test(context.Background())
		if s := steps[stepEcho]; s.State != StepUnknown || s.Err.Code != "puback" {
			log, _ := os.ReadFile(filepath.Join(m.dir, "log"))
			t.Errorf("a denied topic: %+v\n%s", steps, log)
		}
	})
}
