package uplink

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidegate/internal/sim"
)

// sign makes a certificate for a request.
func (a *authority) sign(csr []byte, from, to time.Time, use x509.ExtKeyUsage) []byte {
	a.t.Helper()
	block, _ := pem.Decode(csr)
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || r.CheckSignature() != nil {
		a.t.Fatal(err, r.CheckSignature())
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: r.Subject, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}}, a.cert, r.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestRequest: a key is made once, never overwritten, and readable by its
// owner only.
func TestRequest(t *testing.T) {
	o := Defaults()
	o.Identity = filepath.Join(t.TempDir(), "pki")
	key, csr, sum, made, err := Request(&o, "gw-1", false)
	if err != nil || !made || key != filepath.Join(o.Identity, "client.key") || csr != filepath.Join(o.Identity, "client.csr") || len(sum) != 95 {
		t.Fatal(key, csr, sum, made, err)
	}
	if st, _ := os.Stat(key); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", st.Mode())
	}
	first := read(t, key)
	block, _ := pem.Decode([]byte(read(t, csr)))
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || r.Subject.CommonName != "gw-1" || r.PublicKey.(*ecdsa.PublicKey).Curve.Params().Name != "P-256" {
		t.Fatal(r, err)
	}
	if _, _, _, made, err = Request(&o, "gw-1", false); err != nil || made || read(t, key) != first {
		t.Error("the key was overwritten", made, err)
	}
	// Without a certificate nothing uses the key: force makes another one.
	if k, _, _, made, err := Request(&o, "gw-1", true); err != nil || !made || k != key || read(t, key) == first {
		t.Error(k, made, err)
	}
	inUse := read(t, key)
	write(t, 0o644, filepath.Join(o.Identity, "client.crt"), []byte("in use"))
	if k, _, _, made, err := Request(&o, "gw-1", true); err != nil || !made || k != key+".new" || read(t, key) != inUse {
		t.Error(k, made, err)
	}
	if left, _ := filepath.Glob(filepath.Join(o.Identity, ".tidegate*")); len(left) != 0 {
		t.Error(left)
	}
	os.Chmod(key, 0o644)
	if _, _, _, _, err := Request(&o, "gw-1", false); err == nil || err.(*Error).Code != "key-mode" {
		t.Error(err)
	}
	none := Defaults()
	if _, _, _, _, err := Request(&none, "gw-1", false); err == nil {
		t.Error("a request without a place for the key")
	}
}

// TestCandidate: what does not fit changes nothing; what fits is placed, and
// put back byte by byte.
func TestCandidate(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	g := newGate(t, ca, nil)
	o := Defaults()
	o.Identity = identityDir(t, ca.pem, nil, nil)
	if _, _, _, _, err := Request(&o, "gw-1", false); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(o.Identity, name) }
	csr := []byte(read(t, at("client.csr")))
	now, day := time.Now(), 24*time.Hour
	up := newUplink(t, "mqtts://"+g.Addr(), func(x *Options) { x.Identity = o.Identity })
	good := ca.sign(csr, now.Add(-day), now.Add(day), x509.ExtKeyUsageClientAuth)
	foreign, _ := ca.good("gw-1")
	for _, x := range []struct {
		name, code string
		body       []byte
	}{
		{"for another key", "key-mismatch", foreign},
		{"expired", "client-cert-expired", ca.sign(csr, now.Add(-2*day), now.Add(-day), x509.ExtKeyUsageClientAuth)},
		{"of tomorrow", "clock", ca.sign(csr, now.Add(day), now.Add(2*day), x509.ExtKeyUsageClientAuth)},
		{"for a server", "cert-file", ca.sign(csr, now.Add(-day), now.Add(day), x509.ExtKeyUsageServerAuth)},
		{"half", "cert-file", good[:len(good)/2]},
		{"half a chain", "cert-file", join(good, ca.pem[:len(ca.pem)/2])},
		{"chain out of order", "cert-file", join(good, other.pem)},
		{"nothing", "cert-file", nil},
		{"the request", "cert-file", csr},
	} {
		file := write(t, 0o644, filepath.Join(t.TempDir(), "new.crt"), x.body)
		var e *Error
		if _, err := up.Consider(file); !errors.As(err, &e) || e.Code != x.code || !strings.Contains(e.Msg, file) {
			t.Errorf("%s: %v", x.name, err)
		} else if x.name == "the request" && !strings.Contains(e.Seen, "CERTIFICATE REQUEST") {
			t.Errorf("a request in its place: %q", e.Seen)
		}
	}
	var e *Error
	if _, err := up.Consider("absent.crt"); !errors.As(err, &e) || !strings.Contains(e.Msg, "absent.crt") || !strings.Contains(e.Seen, "no such file") {
		t.Errorf("no file: %v", err)
	}
	if _, err := os.Stat(at("client.crt")); err == nil {
		t.Fatal("something was placed")
	}
	place := func(body []byte) *Candidate {
		t.Helper()
		c, err := up.Consider(write(t, 0o644, filepath.Join(t.TempDir(), "new.crt"), body))
		if err != nil {
			t.Fatal(err)
		}
		if err := up.Try(context.Background(), c); err != nil {
			t.Fatal(err)
		}
		if err := c.Place(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := place(join(good, ca.pem))
	if p, err := InPlace(&o); err != nil || p.SHA256 != c.SHA256 || !p.KeyOK || p.Chain != 2 || p.Subject != "gw-1" || p.Issuer != "ca" {
		t.Fatal(p, err)
	}
	if !c.First() {
		t.Error("the first one replaces nothing")
	}
	if err := c.Back(); err != nil {
		t.Fatal(err)
	}
	if p, err := InPlace(&o); p != nil || err != nil {
		t.Error("the first certificate is still there", p, err)
	}
	place(good)
	key := read(t, at("client.key"))

	// A new key comes with its certificate, and both go back.
	if _, _, _, _, err := Request(&o, "gw-1", true); err != nil {
		t.Fatal(err)
	}
	next := ca.sign([]byte(read(t, at("client.csr"))), now.Add(-day), now.Add(day), x509.ExtKeyUsageClientAuth)
	c = place(next)
	if p, _ := InPlace(&o); !p.KeyOK || read(t, at("client.key")) == key || read(t, at("client.key.old")) != key || read(t, at("client.crt.old")) != string(good) {
		t.Error(p)
	}
	if st, _ := os.Stat(at("client.key.old")); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %o of the old key", st.Mode())
	}
	if err := c.Back(); err != nil {
		t.Fatal(err)
	}
	if read(t, at("client.key")) != key || read(t, at("client.crt")) != string(good) || read(t, at("client.key.new")) == key {
		t.Error("the old pair is not back")
	}
	// A certificate that the broker does not take is not placed by Try.
	strange := other.sign(csr, now.Add(-day), now.Add(day), x509.ExtKeyUsageClientAuth)
	c, err := up.Consider(write(t, 0o644, filepath.Join(t.TempDir(), "new.crt"), strange))
	if err != nil {
		t.Fatal(err)
	}
	e = nil
	if err := up.Try(context.Background(), c); !errors.As(err, &e) || e.Code != "client-cert-unknown-ca" {
		t.Error(err)
	}
	plain := newUplink(t, "mqtt://"+newScript(t, sim.ScriptOptions{}).Addr(), func(x *Options) { x.Identity = o.Identity })
	if err := plain.Try(context.Background(), c); !errors.As(err, &e) || e.Code != "plain" {
		t.Error(err)
	}
}
