package uplink

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/internal/sim"
)

// tlsScript serves a script broker over TLS.
func tlsScript(t *testing.T, ln net.Listener, o sim.ScriptOptions) *sim.Script {
	b := sim.NewScript(ln, o)
	t.Cleanup(func() { b.Close() })
	return b
}

// TestCodes raises each fault of the table in the manual and looks at the
// code that Run and Test report.
func TestCodes(t *testing.T) {
	ca, other := newAuthority(t, "Example Edge CA 1"), newAuthority(t, "Example Edge CA 2")
	serverCert, serverKey := ca.good("127.0.0.1")
	clientCert, clientKey := ca.good("gw-1")
	day := 24 * time.Hour
	mutual := func(t *testing.T) string {
		return "mqtts://" + tlsScript(t, listenTLS(t, serverCert, serverKey, ca, nil), sim.ScriptOptions{Echo: true}).Addr()
	}
	server := func(cert, key []byte, change func(*tls.Config)) func(t *testing.T) string {
		return func(t *testing.T) string {
			return "mqtts://" + tlsScript(t, listenTLS(t, cert, key, nil, change), sim.ScriptOptions{}).Addr()
		}
	}
	issued := func(a *authority, name string, from, to time.Duration) func(t *testing.T) string {
		c, k := a.issue(name, time.Now().Add(from), time.Now().Add(to))
		return server(c, k, nil)
	}
	plainScript := func(o sim.ScriptOptions) func(t *testing.T) string {
		return func(t *testing.T) string { return "mqtt://" + newScript(t, o).Addr() }
	}
	files := func(ca, cert, key []byte) func(t *testing.T, o *Options) {
		return func(t *testing.T, o *Options) { o.Identity = identityDir(t, ca, cert, key) }
	}
	both := files(ca.pem, clientCert, clientKey)
	foreignCert, foreignKey := other.good("gw-1")
	oldCert, oldKey := ca.issue("gw-1", time.Now().Add(-2*day), time.Now().Add(-day))
	_, strangeKey := ca.good("gw-1")

	for _, x := range []struct {
		name, code string
		step       int
		url        func(t *testing.T) string
		change     func(t *testing.T, o *Options)
	}{
		{"good", "", -1, mutual, both},
		{"no such name", "dns", stepDNS, func(*testing.T) string { return "mqtts://broker.invalid" }, both},
		{"refused", "refused", stepTCP, func(t *testing.T) string {
			ln := listen(t)
			ln.Close()
			return "mqtts://" + ln.Addr().String()
		}, both},
		{"tls to a plain port", "tls-on-plain-port", stepTLS, func(t *testing.T) string {
			return "mqtts://" + newScript(t, sim.ScriptOptions{}).Addr()
		}, both},
		{"plain to a tls port", "mqtt-closed", stepConnect, func(t *testing.T) string {
			return strings.Replace(mutual(t), "mqtts", "mqtt", 1)
		}, nil},
		{"no tls answer", "tls-silent", stepTLS, func(t *testing.T) string { return "mqtts://" + deaf(t) }, both},
		{"no connack", "mqtt-silent", stepConnect, plainScript(sim.ScriptOptions{Silent: true}), nil},
		{"wrong ca", "tls-unknown-ca", stepTLS, mutual, files(other.pem, clientCert, clientKey)},
		{"no ca", "tls-unknown-ca", stepTLS, mutual, nil},
		{"wrong host", "tls-host", stepTLS, issued(ca, "broker.example", -day, day), both},
		{"expired server", "tls-expired", stepTLS, issued(ca, "127.0.0.1", -2*day, -day), both},
		{"server of tomorrow", "clock", stepTLS, issued(ca, "127.0.0.1", day, 2*day), both},
		{"tls 1.1", "tls-version", stepTLS, server(serverCert, serverKey, func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}), both},
		{"no client certificate", "client-cert-required", stepCert, mutual, files(ca.pem, nil, nil)},
		{"no client certificate, tls 1.2", "client-cert-required", stepCert, func(t *testing.T) string {
			return "mqtts://" + tlsScript(t, listenTLS(t, serverCert, serverKey, ca, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), sim.ScriptOptions{}).Addr()
		}, files(ca.pem, nil, nil)},
		{"foreign client certificate", "client-cert-unknown-ca", stepCert, mutual, files(ca.pem, foreignCert, foreignKey)},
		{"expired client certificate", "client-cert-expired", stepCert, mutual, files(ca.pem, oldCert, oldKey)},
		{"foreign key", "key-mismatch", stepCert, mutual, files(ca.pem, clientCert, strangeKey)},
		{"key for all", "key-mode", stepCert, mutual, func(t *testing.T, o *Options) {
			both(t, o)
			os.Chmod(filepath.Join(o.Identity, "client.key"), 0o644)
		}},
		{"half a certificate", "cert-file", stepCert, mutual, files(ca.pem, clientCert[:len(clientCert)/2], clientKey)},
		{"no certificate in the ca file", "ca-file", stepTLS, mutual, files([]byte("nothing"), clientCert, clientKey)},
		{"missing key", "key-file", stepCert, mutual, func(t *testing.T, o *Options) {
			both(t, o)
			os.Remove(filepath.Join(o.Identity, "client.key"))
		}},
		{"wrong password", "mqtt-auth", stepConnect, plainScript(sim.ScriptOptions{Refuse: 5}), nil},
		{"bad password", "mqtt-auth", stepConnect, plainScript(sim.ScriptOptions{Refuse: 4}), nil},
		{"client id", "mqtt-client-id", stepConnect, plainScript(sim.ScriptOptions{Refuse: 2}), nil},
		{"unavailable", "mqtt-unavailable", stepConnect, plainScript(sim.ScriptOptions{Refuse: 3}), nil},
		{"password file", "password-file", stepConnect, plainScript(sim.ScriptOptions{}), func(t *testing.T, o *Options) {
			o.Username, o.PasswordFile = "u", filepath.Join(t.TempDir(), "none")
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			up := newUplink(t, x.url(t), func(o *Options) {
				if x.change != nil {
					x.change(t, o)
				}
			})
			up.tune.connect = time.Minute // the authorities of the system are read within
			if x.code == "tls-silent" || x.code == "mqtt-silent" {
				up.tune.connect = 2 * time.Second
			}
			steps := up.Test(context.Background())
			for i, s := range steps {
				switch {
				case i < x.step || x.step < 0 && i < stepEcho:
					if s.State != StepOK && s.State != StepWarn {
						t.Errorf("step %d %s: %s %s (%v)", i+1, s.Name, s.State, s.Text, s.Err)
					}
				case i == x.step:
					if s.State != StepFail || s.Err == nil || s.Err.Code != x.code {
						t.Errorf("step %d %s: %s %s (%+v), want %s", i+1, s.Name, s.State, s.Text, s.Err, x.code)
					}
				case x.step >= 0:
					later := i == stepCert && x.step == stepConnect // judged together
					if s.State != StepNot && !later {
						t.Errorf("step %d %s after a failure: %s", i+1, s.Name, s.State)
					}
				}
			}
			src := newStore(t).add(laneData, 1)
			u := start(t, up, src)
			if x.code == "" {
				eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
				if u.Stats().CertDays != 99 {
					t.Errorf("%d days left", u.Stats().CertDays)
				}
			} else {
				eventually(t, 5*time.Second, "the error", func() bool { return u.Stats().Err != nil })
			}
			u.stop()
			if e := u.Stats().Err; x.code != "" && e.Code != x.code {
				t.Errorf("Run: code %s: %v", e.Code, e)
			} else if x.code != "" && (e.Msg == "" || e.Hint() == "" || strings.Contains(e.Error(), "\n")) {
				t.Errorf("%+v", e)
			} else if x.code != "" {
				t.Logf("%s [%s] seen: %s", e.Msg, e.Code, e.Seen)
			}
		})
	}
}

// TestPortBlocked: a socket whose queue is full answers no SYN any more,
// like a firewall that drops.
func TestPortBlocked(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*syscall.SockaddrInet4).Port))
	for range 4 {
		if c, err := net.DialTimeout("tcp", addr, 50*time.Millisecond); err == nil {
			defer c.Close()
		}
	}
	up := newUplink(t, "mqtts://"+addr, nil)
	up.tune.connect = 200 * time.Millisecond
	if s := up.Test(context.Background())[stepTCP]; s.Err == nil || s.Err.Code != "port-blocked" {
		t.Errorf("%+v", s)
	}
}

// TestClockAtBirth: a gateway without a battery clock connects although it
// believes in 1970, and an expired certificate does not come back to life.
func TestClockAtBirth(t *testing.T) {
	ca := newAuthority(t, "ca")
	l := loaded{}
	up := newUplink(t, "mqtts://127.0.0.1", nil)
	built := time.Now().Add(1000 * time.Hour)
	up.env.Built = built
	if got := up.now(); !got.Equal(built) {
		t.Errorf("now is %s, the binary is from %s", got, built)
	}
	c, k := ca.issue("127.0.0.1", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	b := tlsScript(t, listenTLS(t, c, k, nil, nil), sim.ScriptOptions{})
	up = newUplink(t, "mqtts://"+b.Addr(), func(o *Options) { o.Identity = identityDir(t, ca.pem, nil, nil) })
	up.env.Built = built // the certificate is valid now, but had expired when the binary was built
	u := start(t, up, newStore(t))
	eventually(t, 5*time.Second, "refused", func() bool { e := u.Stats().Err; return e != nil && e.Code == "tls-expired" })
	u.stop()
	if conf := l.config(&up.opts, up.broker(), up.now); conf.MinVersion != tls.VersionTLS12 || conf.Time == nil {
		t.Error("TLS settings")
	}
}

// TestRotation replaces the files of a running gateway: a good new pair is
// used at the next connection, a damaged one is not and is reported.
func TestRotation(t *testing.T) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("127.0.0.1")
	var mu sync.Mutex
	var seen []string
	b := tlsScript(t, listenTLS(t, sc, sk, ca, func(c *tls.Config) {
		c.VerifyConnection = func(s tls.ConnectionState) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, s.PeerCertificates[0].Subject.CommonName)
			return nil
		}
	}), sim.ScriptOptions{})
	c1, k1 := ca.good("first")
	dir := identityDir(t, ca.pem, c1, k1)
	src := newStore(t)
	u := start(t, newUplink(t, "mqtts://"+b.Addr(), func(o *Options) { o.Identity = dir }), src)
	last := func(n int) string {
		eventually(t, 5*time.Second, "connected", func() bool { m, _ := b.Connections(); return m >= n })
		mu.Lock()
		defer mu.Unlock()
		return seen[len(seen)-1]
	}
	if got := last(1); got != "first" {
		t.Errorf("first connection with %s", got)
	}
	write(t, 0o644, filepath.Join(dir, "client.crt"), c1[:100]) // being written just now
	b.Cut()
	if got := last(2); got != "first" {
		t.Errorf("a damaged file was used: %s", got)
	}
	if u.Stats().CertWarning == "" {
		t.Error("nobody is told of the damaged file")
	}
	c2, k2 := ca.good("second")
	write(t, 0o644, filepath.Join(dir, "client.crt"), c2)
	write(t, 0o600, filepath.Join(dir, "client.key"), k2)
	b.Cut()
	if got := last(3); got != "second" {
		t.Errorf("the new pair is not used: %s", got)
	}
	if w := u.Stats().CertWarning; w != "" {
		t.Errorf("warning %s", w)
	}
	u.stop()
}

func TestEcho(t *testing.T) {
	for _, x := range []struct {
		name  string
		o     sim.ScriptOptions
		state string
		code  string
	}{
		{"echo", sim.ScriptOptions{Echo: true}, StepOK, ""},
		{"no echo", sim.ScriptOptions{}, StepUnknown, "puback"},
		{"subscription refused", sim.ScriptOptions{Suback: 0x80, Echo: true}, StepUnknown, "puback"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			up := newUplink(t, "mqtt://"+newScript(t, x.o).Addr(), nil)
			up.tune.connect = 2 * time.Second
			s := up.Test(context.Background())[stepEcho]
			if s.State != x.state || x.code != "" && (s.Err == nil || s.Err.Code != x.code) {
				t.Errorf("%+v", s)
			}
		})
	}
	t.Run("suback of two codes", func(t *testing.T) { // the library alone would panic
		up := newUplink(t, "mqtt://"+newScript(t, sim.ScriptOptions{SubackCodes: 2}).Addr(), nil)
		if s := up.Test(context.Background())[stepPublish]; s.State != StepFail || s.Err.Code != "protocol" {
			t.Errorf("%+v", s)
		}
	})
}
