package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
	"testing"
	"time"

	"tidegate/internal/sim"
)

// TestCertificatesEnd: Stats tells the days left of the client's certificate,
// of the broker's and of what it rests upon, and sees that the broker renewed
// its own while the session goes on.
func TestCertificatesEnd(t *testing.T) {
	const day = 24 * time.Hour
	ca := newAuthority(t, "ca") // 365 days
	issue := func(days int) tls.Certificate {
		c, k := ca.issue("127.0.0.1", time.Now().Add(-day), time.Now().Add(time.Duration(days)*day+time.Hour))
		pair, err := tls.X509KeyPair(c, k)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	var mu sync.Mutex
	now := issue(20)
	sc, sk := ca.good("127.0.0.1")
	b := tlsScript(t, listenTLS(t, sc, sk, ca, func(c *tls.Config) {
		c.Certificates = nil
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			mu.Lock()
			defer mu.Unlock()
			return &now, nil
		}
	}), sim.ScriptOptions{Echo: true})
	cc, ck := ca.issue("gw", time.Now().Add(-day), time.Now().Add(5*day+time.Hour))
	src := newStore(t)
	up := newUplink(t, "mqtts://"+b.Addr(), func(o *Options) { o.Identity = identityDir(t, ca.pem, cc, ck) })
	up.tune.glance = 50 * time.Millisecond
	if s := up.Stats(); s.CertDays != -1 || s.BrokerDays != -1 || s.CADays != -1 {
		t.Errorf("before the first handshake %d, %d, %d", s.CertDays, s.BrokerDays, s.CADays)
	}
	u := start(t, up, src)
	eventually(t, 10*time.Second, "the days of all three", func() bool {
		s := u.Stats()
		return s.CertDays == 5 && s.BrokerDays == 20 && s.CADays == 364
	})
	eventually(t, 10*time.Second, "online", func() bool { return u.Stats().State == StateOnline })
	mu.Lock()
	now = issue(80)
	mu.Unlock()
	eventually(t, 10*time.Second, "the broker's new certificate", func() bool { return u.Stats().BrokerDays == 80 })
	src.add(laneData, 1)
	eventually(t, 10*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	if n := u.Stats().Sessions; n != 1 {
		t.Errorf("%d sessions", n)
	}
	u.stop()
}

// TestChainEnds: of several chains that which serves longest counts; an
// intermediate certificate that ends first is the broker's.
func TestChainEnds(t *testing.T) {
	u := newUplink(t, "mqtts://127.0.0.1:1", nil)
	in := func(days int) *x509.Certificate {
		return &x509.Certificate{NotAfter: time.Now().Add(time.Duration(days)*24*time.Hour + time.Hour)}
	}
	for _, c := range []struct {
		chains     [][]*x509.Certificate
		broker, ca int
	}{
		{nil, -1, -1},
		{[][]*x509.Certificate{{in(50), in(900)}}, 50, 900},
		{[][]*x509.Certificate{{in(50), in(9), in(900)}}, 9, 900},
		{[][]*x509.Certificate{{in(50), in(5)}, {in(50), in(40), in(900)}}, 40, 900},
		{[][]*x509.Certificate{{in(50), in(40), in(900)}, {in(50), in(5)}}, 40, 900},
		{[][]*x509.Certificate{{in(7)}}, 7, 7},
		{[][]*x509.Certificate{{in(-3), in(900)}}, 0, 900},
	} {
		u.shown(c.chains)
		if s := u.Stats(); s.BrokerDays != c.broker || s.CADays != c.ca {
			t.Errorf("%d and %d, want %d and %d", s.BrokerDays, s.CADays, c.broker, c.ca)
		}
	}
}
