package uplink

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Identity is what the certificate files hold.
type Identity struct {
	Subject  string    // common name of the client certificate, "" without one
	NotAfter time.Time // its last moment, zero without one
	Chain    int       // certificates in the client certificate's file
}

// identity reads the certificate files anew at every dial. New files that are
// damaged, such as one that is being written just now, or with which the
// broker does not let us in, do not replace those that worked.
type identity struct {
	opts *Options

	mu      sync.Mutex
	good    *loaded  // of the last connection that the broker accepted
	refused [32]byte // of files with which a connection failed since
	why     *Error
	last    *loaded // what was read last
	sum     [32]byte
	cache   tls.ClientSessionCache // of the files with that sum
}

// loaded is one reading of the files.
type loaded struct {
	roots *x509.CertPool // nil: the system's
	pair  *tls.Certificate
	crls  []*x509.RevocationList
	must  bool // crls must know the issuer of the broker's certificate
	info  Identity
	warn  *Error   // the new files are bad, these are the old ones
	sum   [32]byte // of what the files hold
	stamp string   // of the files themselves, see stamp
	cache tls.ClientSessionCache
}

// load returns what the files hold. While they are bad, it returns what they
// held when a connection was last accepted, with the reason in warn.
func (id *identity) load(now time.Time) (loaded, error) {
	l, err := id.read(now)
	id.mu.Lock()
	defer id.mu.Unlock()
	switch {
	case id.good == nil && err != nil:
		return l, err
	case id.good != nil && (err != nil || l.sum == id.refused):
		old := *id.good
		old.warn, old.stamp = id.why, l.stamp
		if err != nil && !errors.As(err, &old.warn) {
			old.warn = &Error{Code: "cert-file", Msg: "the certificate files cannot be read", Err: err}
		}
		l = old
	}
	// Old TLS sessions were made under the old files: with new files the
	// broker must see the new certificate, and we must judge the broker's.
	if id.cache == nil || l.sum != id.sum {
		id.sum, id.cache = l.sum, tls.NewLRUClientSessionCache(4)
	}
	l.cache = id.cache
	id.last = &l
	return l, nil
}

// accept takes note that the broker accepted a connection with these files.
func (id *identity) accept(l loaded) {
	id.mu.Lock()
	defer id.mu.Unlock()
	l.warn = nil
	id.good = &l
}

// refuse takes note that a connection with these files failed in a way that
// the files may be to blame for. It tells whether older ones are left. A
// broker that a new list names as revoked is no fault of the list.
func (id *identity) refuse(l loaded, why *Error) bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.good == nil || l.sum == id.good.sum {
		return false
	}
	switch why.Code {
	case "client-cert-required", "client-cert-unknown-ca", "client-cert-expired", "client-cert-revoked", "client-cert",
		"tls-unknown-ca", "mqtt-auth", "mqtt-client-id", "mqtt-closed":
		id.refused, id.why = l.sum, why
		return true
	}
	return false
}

// stamp tells whether a file may have changed since it was read.
func (id *identity) stamp() string {
	ca, cert, key := id.opts.files()
	var b strings.Builder
	for _, f := range []string{ca, cert, key, id.opts.TLS.CRL} {
		if st, err := os.Stat(f); err == nil {
			sys, _ := st.Sys().(*syscall.Stat_t)
			fmt.Fprint(&b, st.ModTime().UnixNano(), " ", st.Size(), " ", st.Mode(), " ", sys.Ino, "; ")
		} else {
			b.WriteString("none; ")
		}
	}
	return b.String()
}

func (id *identity) read(now time.Time) (loaded, error) {
	l := loaded{stamp: id.stamp()}
	ca, cert, key := id.opts.files()
	sum := sha256.New()
	if ca != "" {
		b, err := os.ReadFile(ca)
		switch {
		case errors.Is(err, fs.ErrNotExist) && id.opts.Identity != "":
			// an identity folder without ca.crt: the system's authorities
		case err != nil:
			return l, fileError("ca-file", "the CA file cannot be read", err)
		default:
			if l.roots, err = authorities(ca, b); err != nil {
				return l, err
			}
			sum.Write(b)
		}
	}
	if file := id.opts.TLS.CRL; file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return l, fileError("crl", "the list of revoked certificates cannot be read", err)
		}
		if l.crls, err = revocations(file, b); err != nil {
			return l, err
		}
		l.must = true
		sum.Write(b)
	}
	pair, err := readPair(cert, key, id.opts.Identity != "", now)
	if err != nil {
		return l, err
	}
	if pair != nil {
		for _, c := range pair.Certificate {
			sum.Write(c)
		}
		l.pair = pair
		l.info = Identity{Subject: pair.Leaf.Subject.CommonName, NotAfter: pair.Leaf.NotAfter, Chain: len(pair.Certificate)}
	}
	l.sum = [32]byte(sum.Sum(nil))
	return l, nil
}

// authorities reads a CA file. Every block must be whole: of a file that is
// being written only the beginning is there.
func authorities(file string, b []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for _, c := range certificates(b) {
		pool.AddCert(c)
		n++
	}
	switch begun := bytes.Count(b, []byte("-----BEGIN ")); {
	case n == 0:
		return nil, &Error{Code: "ca-file", Msg: file + " holds no certificate",
			Likely: "it is not PEM, or empty", Try: "a PEM file begins with -----BEGIN CERTIFICATE-----"}
	case n < begun:
		return nil, &Error{Code: "ca-file", Msg: fmt.Sprintf("%s is damaged: %d of %d blocks are certificates", file, n, begun),
			Likely: "the file is not whole", Try: "copy it anew"}
	}
	return pool, nil
}

// readPair returns nil without an error when no client certificate is
// configured, or a folder has neither of the two files.
func readPair(cert, key string, folder bool, now time.Time) (*tls.Certificate, error) {
	if cert == "" {
		return nil, nil
	}
	certPEM, err1 := os.ReadFile(cert)
	keyPEM, err2 := os.ReadFile(key)
	if folder && errors.Is(err1, fs.ErrNotExist) && errors.Is(err2, fs.ErrNotExist) {
		return nil, nil
	}
	if err1 != nil {
		return nil, fileError("cert-file", "the client certificate cannot be read", err1)
	}
	if err2 != nil {
		return nil, fileError("key-file", "the client key cannot be read", err2)
	}
	if err := keyMode(key); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil && len(certificates(certPEM)) < bytes.Count(certPEM, []byte("-----BEGIN ")) {
		err = errors.New("not every block is a whole certificate")
	}
	if err != nil {
		if strings.Contains(err.Error(), "does not match") {
			return nil, &Error{Code: "key-mismatch", Msg: fmt.Sprintf("%s does not belong to %s", key, cert),
				Likely: "one of the two files was replaced alone", Try: "put certificate and key of one request in place", Err: err}
		}
		return nil, &Error{Code: "cert-file", Msg: fmt.Sprintf("%s or %s is damaged", cert, key),
			Likely: "the file is not whole, or not PEM", Err: err}
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, &Error{Code: "cert-file", Msg: cert + " is damaged", Err: err}
		}
	}
	if now.After(pair.Leaf.NotAfter) {
		return nil, &Error{Code: "client-cert-expired",
			Msg:    fmt.Sprintf("our client certificate %s expired on %s", cert, pair.Leaf.NotAfter.UTC().Format(time.DateOnly)),
			Likely: "it was not renewed in time", Try: "renew it with the cloud team; nothing is lost meanwhile"}
	}
	return &pair, nil
}

// keyMode refuses a key that others may read.
func keyMode(key string) error {
	st, err := os.Stat(key)
	if err != nil {
		return fileError("key-file", "the client key cannot be read", err)
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return &Error{Code: "key-mode", Msg: fmt.Sprintf("%s may be read by others (mode %04o)", key, mode),
			Likely: "it was copied without its mode", Try: "chmod 600 " + key}
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() && sys.Uid != 0 {
		return &Error{Code: "key-mode", Msg: fmt.Sprintf("%s belongs to another user (uid %d, we are %d)", key, sys.Uid, os.Geteuid()),
			Try: "chown it to the user of the service"}
	}
	return nil
}

func fileError(code, msg string, err error) *Error {
	return &Error{Code: code, Msg: msg, Seen: err.Error(), Likely: "wrong name or rights", Try: "check uplink.identity or uplink.tls", Err: err}
}

// config returns the TLS settings of one dial. Certificates are checked
// against now, which is never before the build or a time known to have
// passed: a gateway that wakes up in 1970 can still connect, and a
// certificate that expired does not come back to life.
func (l *loaded) config(o *Options, b broker, now func() time.Time) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: l.roots, ServerName: b.host,
		NextProtos: o.TLS.ALPN, ClientSessionCache: l.cache, Time: now,
	}
	if (b.websocket() || b.posts()) && len(c.NextProtos) == 0 {
		c.NextProtos = []string{"http/1.1"} // or a server may choose HTTP/2
	}
	if l.must {
		c.VerifyConnection = func(s tls.ConnectionState) error { return checkRevoked(l.crls, s.VerifiedChains, now()) }
	}
	if o.TLS.ServerName != "" {
		c.ServerName = o.TLS.ServerName
	}
	if l.pair != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return l.pair, nil }
	}
	return c
}

// certificates returns all certificates of a PEM file.
func certificates(b []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for len(b) > 0 {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// fingerprint is the SHA-256 of a certificate as people compare it by phone.
func fingerprint(c *x509.Certificate) string { return colons(sha256.Sum256(c.Raw)) }

func colons(sum [32]byte) string {
	var b strings.Builder
	for i, x := range sum {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(hex.EncodeToString([]byte{x}))
	}
	return b.String()
}
