package uplink

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tidegate/internal/sim"
)

// gate is a script broker that notes the names of the client certificates
// that came through its TLS.
type gate struct {
	*sim.Script
	mu    sync.Mutex
	names []string
}

func newGate(t *testing.T, ca *authority, change func(*tls.Config)) *gate {
	g := &gate{}
	sc, sk := ca.good("127.0.0.1")
	g.Script = tlsScript(t, listenTLS(t, sc, sk, ca, func(c *tls.Config) {
		c.VerifyConnection = func(s tls.ConnectionState) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.names = append(g.names, s.PeerCertificates[0].Subject.CommonName)
			return nil
		}
		if change != nil {
			change(c)
		}
	}), sim.ScriptOptions{Echo: true})
	return g
}

// sessions returns how many CONNECTs there were, and the name of the last
// certificate.
func (g *gate) sessions() (int, string) {
	n, _ := g.Connections()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.names) == 0 {
		return n, ""
	}
	return n, g.names[len(g.names)-1]
}

// TestRenewal: renewed files are tried on a second connection and used while
// the uplink is connected, without a restart and without a repeat; files that
// are damaged, half written or refused by the broker cost nothing.
func TestRenewal(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	g := newGate(t, ca, nil)
	c1, k1 := ca.good("first")
	dir := identityDir(t, ca.pem, c1, k1)
	file := func(name string) string { return filepath.Join(dir, name) }
	src := newStore(t)
	u := start(t, newUplink(t, "mqtts://"+g.Addr(), func(o *Options) { o.Identity = dir }), src)
	eventually(t, 5*time.Second, "connected", func() bool { n, _ := g.sessions(); return n == 1 })

	calm := func(what string) {
		t.Helper()
		eventually(t, 5*time.Second, what+" is told", func() bool { return u.Stats().CertWarning != "" })
		time.Sleep(5 * u.tune.look)
		src.add(laneData, 1)
		eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
		if n, _ := g.sessions(); n != 1 || u.Stats().State != StateOnline {
			t.Fatalf("%s ended the session: %d", what, n)
		}
		t.Log(u.Stats().CertWarning)
	}
	c2, k2 := ca.good("second")
	for i := 0; i < len(c2); i += len(c2)/3 + 1 { // every third of a new file
		write(t, 0o644, file("client.crt"), c2[:i])
		calm(fmt.Sprintf("%d bytes of a certificate", i))
	}
	write(t, 0o644, file("client.crt"), c2)
	calm("a certificate without its key")
	write(t, 0o644, file("client.key"), k2)
	calm("a key that all may read")
	write(t, 0o644, file("ca.crt"), ca.pem[:len(ca.pem)/2])
	calm("half an authority")
	write(t, 0o644, file("ca.crt"), ca.pem)
	fc, fk := other.good("foreign")
	write(t, 0o644, file("client.crt"), fc)
	write(t, 0o600, file("client.key"), fk)
	calm("a certificate that the broker does not know")
	write(t, 0o644, file("client.crt"), c1)
	write(t, 0o600, file("client.key"), k1)
	write(t, 0o644, file("ca.crt"), other.pem)
	calm("an authority that the broker is not of")
	write(t, 0o644, file("ca.crt"), ca.pem)

	// A good pair, while data flows.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				src.add(laneData, 1)
			}
		}
	})
	write(t, 0o644, file("client.crt"), c2)
	write(t, 0o600, file("client.key"), k2)
	eventually(t, 5*time.Second, "the new certificate is used", func() bool { n, name := g.sessions(); return n == 2 && name == "second" })
	close(stop)
	wg.Wait()
	eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	st := u.Stats()
	u.stop()
	pair, _ := tls.X509KeyPair(c2, k2)
	if st.Repeats != 0 || st.CertWarning != "" || st.Cert != fingerprint(pair.Leaf) {
		t.Errorf("%+v", st)
	}
	if r := complete(t, seqs(t, g.Script, laneData), src.Given(laneData)); r != 0 {
		t.Errorf("%d repeats", r)
	}
	eventually(t, 5*time.Second, "two sessions, both ended with DISCONNECT", func() bool { n, clean := g.Connections(); return n == 2 && clean == 2 })
}

// TestRollback: a certificate that TLS takes and CONNECT does not is given up
// for the one that worked.
func TestRollback(t *testing.T) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("127.0.0.1")
	var mu sync.Mutex
	var last string
	ln := listenTLS(t, sc, sk, ca, func(c *tls.Config) {
		c.VerifyConnection = func(s tls.ConnectionState) error {
			mu.Lock()
			defer mu.Unlock()
			last = s.PeerCertificates[0].Subject.CommonName
			return nil
		}
	})
	refused := 0
	b := tlsScript(t, ln, sim.ScriptOptions{Judge: func(sim.Hello) byte {
		mu.Lock()
		defer mu.Unlock()
		if last == "second" {
			refused++
			return 5
		}
		return 0
	}})
	c1, k1 := ca.good("first")
	dir := identityDir(t, ca.pem, c1, k1)
	src := newStore(t)
	u := start(t, newUplink(t, "mqtts://"+b.Addr(), func(o *Options) { o.Identity = dir }), src)
	eventually(t, 5*time.Second, "connected", func() bool { n, _ := b.Connections(); return n == 1 })
	c2, k2 := ca.good("second")
	write(t, 0o600, filepath.Join(dir, "client.key"), k2)
	write(t, 0o644, filepath.Join(dir, "client.crt"), c2)
	eventually(t, 5*time.Second, "back to the first", func() bool { n, _ := b.Connections(); return n == 2 })
	src.add(laneData, 3)
	eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	time.Sleep(5 * u.tune.look)
	st := u.Stats()
	u.stop()
	if n, _ := b.Connections(); n != 2 || refused != 1 || st.CertWarning == "" {
		t.Errorf("%d sessions, %d refused, warning %q", n, refused, st.CertWarning)
	}
}

// crl signs a list of revoked serial numbers.
func (a *authority) crl(next time.Time, revoked ...*x509.Certificate) []byte {
	a.t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: next}
	for _, c := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// TestRevoked: with a list of revoked certificates, nobody is let in of whom
// the list cannot say that the certificate is good, also by a resumed session.
func TestRevoked(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	sc, sk := ca.good("127.0.0.1")
	leaf := certificates(sc)[0]
	day := time.Now().Add(24 * time.Hour)
	good := ca.crl(day)
	der, _ := pem.Decode(good)
	for _, x := range []struct {
		name, code string
		list       []byte
	}{
		{"empty list", "", good},
		{"der", "", der.Bytes},
		{"two lists", "", join(other.crl(day), good)},
		{"other serial", "", ca.crl(day, ca.cert)},
		{"revoked", "tls-revoked", ca.crl(day, leaf)},
		{"revoked in the second list", "tls-revoked", join(other.crl(day), ca.crl(day, leaf))},
		{"overdue", "crl", ca.crl(time.Now().Add(-time.Minute))},
		{"of another authority", "crl", other.crl(day)},
		{"half a list", "crl", good[:len(good)/2]},
		{"one whole and one half", "crl", join(good, good[:len(good)/2])},
		{"no list", "crl", ca.pem},
		{"empty file", "crl", nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := tlsScript(t, listenTLS(t, sc, sk, nil, nil), sim.ScriptOptions{Echo: true})
			file := write(t, 0o644, filepath.Join(t.TempDir(), "crl.pem"), x.list)
			up := newUplink(t, "mqtts://"+b.Addr(), func(o *Options) { o.Identity = identityDir(t, ca.pem, nil, nil); o.TLS.CRL = file })
			s := up.Test(context.Background())[stepTLS]
			if x.code == "" && s.State != StepOK || x.code != "" && (s.State != StepFail || s.Err.Code != x.code || s.Err.Hint() == "") {
				t.Errorf("%+v %+v", s, s.Err)
			}
			src := newStore(t).add(laneData, 1)
			u := start(t, up, src)
			eventually(t, 5*time.Second, "an end", func() bool { return src.waiting() == 0 || u.Stats().Err != nil })
			if x.code != "" {
				u.stop()
				if e := u.Stats().Err; e == nil || e.Code != x.code {
					t.Errorf("%+v", e)
				}
				if n, _ := b.Connections(); n != 0 || src.waiting() != 1 {
					t.Errorf("%d sessions", n)
				}
				return
			}
			// Revoked from now on: the session ends, and the next one, which
			// could resume its TLS session, is refused.
			n, _ := b.Connections()
			write(t, 0o644, file, ca.crl(day, leaf))
			eventually(t, 5*time.Second, "refused", func() bool { e := u.Stats().Err; return e != nil && e.Code == "tls-revoked" })
			time.Sleep(10 * u.tune.backoffMax)
			u.stop()
			if m, _ := b.Connections(); m > n {
				t.Errorf("%d sessions more", m-n)
			}
		})
	}
}

// TestCommonName: a certificate that has its name only in CN is refused, and
// the error says so.
func TestCommonName(t *testing.T) {
	ca := newAuthority(t, "ca")
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca.cert, &k.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	g := tlsScript(t, listenTLS(t, cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: b}), nil, nil), sim.ScriptOptions{})
	s := newUplink(t, "mqtts://localhost:"+portOf(g.Addr()), func(o *Options) { o.Identity = identityDir(t, ca.pem, nil, nil) }).Test(context.Background())[stepTLS]
	if s.State != StepFail || s.Err.Code != "tls-host" || s.Err.Seen != "it names CN=localhost only, which is no proof of a name; we look for localhost" {
		t.Errorf("%+v %+v", s, s.Err)
	}
	if n, _ := g.Connections(); n != 0 {
		t.Error("it connected")
	}
}

// TestOldTLS: OpenSSL that speaks TLS 1.1 at most is refused.
func TestOldTLS(t *testing.T) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("127.0.0.1")
	dir, port := t.TempDir(), freePort(t)
	write(t, 0o644, filepath.Join(dir, "c"), sc)
	write(t, 0o600, filepath.Join(dir, "k"), sk)
	background(t, port, "openssl", "s_server", "-accept", "127.0.0.1:"+port, "-cert", filepath.Join(dir, "c"), "-key", filepath.Join(dir, "k"),
		"-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-quiet")
	s := newUplink(t, "mqtts://127.0.0.1:"+port, func(o *Options) { o.Identity = identityDir(t, ca.pem, nil, nil) }).Test(context.Background())[stepTLS]
	if s.State != StepFail || s.Err.Code != "tls-version" {
		t.Errorf("%+v %+v", s, s.Err)
	}
}

// TestALPN: the names of tls.alpn are offered, as a broker behind port 443
// demands.
func TestALPN(t *testing.T) {
	ca := newAuthority(t, "ca")
	cc, ck := ca.good("gw-1")
	g := newGate(t, ca, func(c *tls.Config) { c.NextProtos = []string{"x-amzn-mqtt-ca"} })
	dir := identityDir(t, ca.pem, cc, ck)
	for _, x := range []struct {
		alpn []string
		ok   bool
	}{{[]string{"x-amzn-mqtt-ca"}, true}, {[]string{"mqtt"}, false}} {
		s := newUplink(t, "mqtts://"+g.Addr(), func(o *Options) { o.Identity = dir; o.TLS.ALPN = x.alpn }).Test(context.Background())[stepTLS]
		if (s.State == StepOK) != x.ok {
			t.Errorf("%v: %+v %+v", x.alpn, s, s.Err)
		}
	}
}

// TestResumes: a reconnect resumes the TLS session, which saves the
// certificates on the wire; new files begin a new one.
func TestResumes(t *testing.T) {
	ca := newAuthority(t, "ca")
	var mu sync.Mutex
	var resumed []bool
	g := newGate(t, ca, func(c *tls.Config) {
		c.VerifyConnection = func(s tls.ConnectionState) error {
			mu.Lock()
			defer mu.Unlock()
			resumed = append(resumed, s.DidResume)
			return nil
		}
	})
	cc, ck := ca.good("gw-1")
	dir := identityDir(t, ca.pem, cc, ck)
	src := newStore(t).add(laneData, 1)
	up := newUplink(t, "mqtts://"+g.Addr(), func(o *Options) { o.Identity = dir })
	up.tune.look = time.Hour
	u := start(t, up, src)
	eventually(t, 5*time.Second, "connected", func() bool { return src.waiting() == 0 })
	g.Cut()
	eventually(t, 5*time.Second, "again", func() bool { n, _ := g.Connections(); return n == 2 })
	cc, ck = ca.good("gw-1")
	os.Remove(filepath.Join(dir, "client.key"))
	write(t, 0o644, filepath.Join(dir, "client.crt"), cc)
	write(t, 0o600, filepath.Join(dir, "client.key"), ck)
	src.add(laneData, 1)
	eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	g.Cut()
	eventually(t, 5*time.Second, "a third time", func() bool { n, _ := g.Connections(); return n == 3 })
	u.stop()
	if len(resumed) != 3 || resumed[0] || !resumed[1] || resumed[2] {
		t.Errorf("resumed %v", resumed)
	}
}
