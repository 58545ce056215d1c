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

// identity reads the certificate files anew at every dial. A damaged new
// pair, such as a file that is being written just now, does not replace the
// pair that worked.
type identity struct {
	opts *Options

	mu    sync.Mutex
	pair  *tls.Certificate // the last good one
	sum   [32]byte         // of all files as last used
	cache tls.ClientSessionCache
}

// loaded is one reading of the files.
type loaded struct {
	roots *x509.CertPool // nil: the system's
	pair  *tls.Certificate
	info  Identity
	warn  *Error // the new pair is bad, pair is the old one
	cache tls.ClientSessionCache
}

func (id *identity) load(now time.Time) (loaded, error) {
	var l loaded
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
			l.roots = x509.NewCertPool()
			if !l.roots.AppendCertsFromPEM(b) {
				return l, &Error{Code: "ca-file", Msg: ca + " holds no certificate",
					Likely: "it is not PEM, or empty", Try: "a PEM file begins with -----BEGIN CERTIFICATE-----"}
			}
			sum.Write(b)
		}
	}
	pair, err := readPair(cert, key, id.opts.Identity != "", now)
	id.mu.Lock()
	defer id.mu.Unlock()
	if err != nil {
		if id.pair == nil {
			return l, err
		}
		errors.As(err, &l.warn)
		pair = id.pair
	}
	if pair != nil {
		id.pair = pair
		for _, c := range pair.Certificate {
			sum.Write(c)
		}
		l.pair = pair
		l.info = Identity{Subject: pair.Leaf.Subject.CommonName, NotAfter: pair.Leaf.NotAfter, Chain: len(pair.Certificate)}
	}
	// Old TLS sessions were made under the old files: with new files the
	// broker must see the new certificate, and we must judge the broker's.
	if got := [32]byte(sum.Sum(nil)); id.cache == nil || got != id.sum {
		id.sum, id.cache = got, tls.NewLRUClientSessionCache(4)
	}
	l.cache = id.cache
	return l, nil
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
	return &Error{Code: code, Msg: msg, Likely: "wrong name or rights", Try: "check uplink.identity or uplink.tls", Err: err}
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
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	var b bytes.Buffer
	for i, x := range sum {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(hex.EncodeToString([]byte{x}))
	}
	return b.String()
}
