package uplink

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Certificate is the client certificate of an uplink as it lies on disk, or
// one that may take its place.
type Certificate struct {
	File, Key string // the files
	Subject   string // common name
	Issuer    string // common name
	From, To  time.Time
	Chain     int    // certificates in the file
	SHA256    string // fingerprint, as people compare it by phone
	KeyOK     bool   // the key in Key belongs to it
}

// Request makes a certificate request for the key of the options, and the key
// (EC P-256, mode 0600) if there is none. A key that is there is never
// overwritten, but with fresh a new one waits beside it, as KEY.new, until
// its certificate is put in place. It returns the files of the key and of the
// request, the request's SHA-256, and whether the key is new.
func Request(o *Options, name string, fresh bool) (key, csr, sum string, made bool, err error) {
	_, cert, key := o.files()
	if key == "" {
		return "", "", "", false, &Error{Code: "key-file", Msg: "the configuration names no place for a client key",
			Try: "write identity: /etc/tidegate/pki under uplink"}
	}
	csr = strings.TrimSuffix(key, ".key") + ".csr"
	_, missing := os.Stat(key)
	if missing == nil && fresh {
		if _, err := os.Stat(cert); err == nil {
			key += ".new" // the one in use stays in use
		}
	}
	var signer any
	if made = fresh || errors.Is(missing, fs.ErrNotExist); made {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return "", "", "", false, err
		}
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return "", "", "", false, err
		}
		if err := replace(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return "", "", "", false, fileError("key-file", "the key cannot be written", err)
		}
		signer = k
	} else {
		if err := keyMode(key); err != nil {
			return "", "", "", false, err
		}
		if signer, err = readKey(key); err != nil {
			return "", "", "", false, err
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, signer)
	if err != nil {
		return "", "", "", false, err
	}
	if err := replace(csr, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0o644); err != nil {
		return "", "", "", false, fileError("cert-file", "the request cannot be written", err)
	}
	return key, csr, colons(sha256.Sum256(der)), made, nil
}

// readKey reads a private key of any usual form.
func readKey(file string) (any, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fileError("key-file", "the client key cannot be read", err)
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
			return k, nil
		}
		if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			return k, nil
		}
		if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
			return k, nil
		}
	}
	return nil, &Error{Code: "key-file", Msg: file + " is not a key that can be used", Try: "expected a PEM file with an unencrypted EC, RSA or Ed25519 key"}
}

// replace writes a file under another name and renames it: nobody ever reads
// half of it. Root gives it to the owner of the folder.
func replace(file string, b []byte, mode os.FileMode) error {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tidegate-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone by then, if all went well
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), ownAs(f, dir), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return move(f.Name(), file)
}

func ownAs(f *os.File, dir string) error {
	st, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	return f.Chown(int(sys.Uid), int(sys.Gid))
}

// move renames for good: the folder is written, too.
func move(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// InPlace returns the client certificate that the options name; nil without
// an error where there is none.
func InPlace(o *Options) (*Certificate, error) {
	_, cert, key := o.files()
	if _, err := os.Stat(cert); cert == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return inspect(cert, key)
}

func inspect(cert, key string) (*Certificate, error) {
	b, err := os.ReadFile(cert)
	if err != nil {
		return nil, fileError("cert-file", cert+" cannot be read", err)
	}
	list := certificates(b)
	if len(list) == 0 || len(list) < bytes.Count(b, []byte("-----BEGIN ")) {
		e := &Error{Code: "cert-file", Msg: cert + " is damaged or no certificate",
			Likely: "the file is not whole, or not PEM", Try: "a PEM file begins with -----BEGIN CERTIFICATE-----"}
		if block, _ := pem.Decode(b); block != nil && len(list) == 0 && block.Type != "CERTIFICATE" {
			e.Seen, e.Likely, e.Try = "its first line is -----BEGIN "+block.Type+"-----", "another file was named", "name the certificate that the authority made of the request"
		}
		return nil, e
	}
	c := &Certificate{File: cert, Key: key, Subject: list[0].Subject.CommonName, Issuer: list[0].Issuer.CommonName,
		From: list[0].NotBefore, To: list[0].NotAfter, Chain: len(list), SHA256: fingerprint(list[0])}
	if k, err := os.ReadFile(key); err == nil {
		_, err := tls.X509KeyPair(b, k)
		c.KeyOK = err == nil
	}
	return c, nil
}

// Candidate is a certificate that may take the place of the present one.
type Candidate struct {
	Certificate
	opts *Options
	body []byte
	keep []string // files to put back: the old pair, as FILE.old
}

// Consider checks a file as the successor of the client certificate: whole,
// for a key of ours (KEY, or KEY.new, which Request made), valid now, each
// certificate signed by the next, and for a client. It changes nothing.
func (u *Uplink) Consider(file string) (*Candidate, error) {
	_, cert, key := u.opts.files()
	if cert == "" || key == "" {
		return nil, &Error{Code: "cert-file", Msg: "the configuration names no place for a client certificate",
			Try: "write identity: /etc/tidegate/pki under uplink"}
	}
	var c *Certificate
	for _, k := range []string{key, key + ".new"} {
		var err error
		if c, err = inspect(file, k); err != nil {
			return nil, err
		}
		if c.KeyOK {
			break
		}
	}
	if !c.KeyOK {
		return nil, &Error{Code: "key-mismatch", Msg: fmt.Sprintf("%s does not belong to %s", file, key),
			Seen: fmt.Sprintf("it is for CN=%s, issued by %q", c.Subject, c.Issuer), Likely: "it was made from another request, or for another gateway",
			Try: "send " + strings.TrimSuffix(key, ".key") + ".csr to the authority again"}
	}
	if err := keyMode(c.Key); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	list, now := certificates(b), u.now()
	switch {
	case now.After(c.To):
		return nil, &Error{Code: "client-cert-expired", Msg: fmt.Sprintf("%s expired on %s", file, c.To.UTC().Format(time.DateOnly)), Try: "get a new one"}
	case now.Before(c.From):
		return nil, &Error{Code: "clock", Msg: fmt.Sprintf("%s is valid only from %s", file, c.From.UTC().Format("2006-01-02 15:04:05Z")),
			Seen: "our clock says " + now.UTC().Format("2006-01-02 15:04:05Z"), Likely: "the clock of this gateway or that of the authority is wrong", Try: "timedatectl"}
	}
	for i := range list[:len(list)-1] {
		if err := list[i].CheckSignatureFrom(list[i+1]); err != nil {
			return nil, &Error{Code: "cert-file", Msg: fmt.Sprintf("the chain in %s is broken: certificate %d is not signed by number %d", file, i+1, i+2),
				Likely: "the order is wrong: our own first, then the one that signed it, and so on", Try: "put the certificates in order", Err: err}
		}
	}
	if uses := list[0].ExtKeyUsage; len(uses) > 0 && !slices.Contains(uses, x509.ExtKeyUsageClientAuth) && !slices.Contains(uses, x509.ExtKeyUsageAny) {
		return nil, &Error{Code: "cert-file", Msg: file + " is not for a client", Seen: "its extended key usage lacks clientAuth",
			Likely: "it was signed as a server certificate", Try: "ask the authority for one with clientAuth"}
	}
	return &Candidate{Certificate: *c, opts: &u.opts, body: b}, nil
}

// Try makes a handshake with the broker under the new certificate, beside
// whatever connection there is.
func (u *Uplink) Try(ctx context.Context, c *Candidate) error {
	ca, _, _ := u.opts.files()
	if _, err := os.Stat(ca); errors.Is(err, fs.ErrNotExist) {
		ca = ""
	}
	o := u.opts
	o.Identity = ""
	o.TLS.CA, o.TLS.Cert, o.TLS.Key = ca, c.File, c.Key
	again, err := New(o, u.env)
	if err != nil {
		return err
	}
	if !again.brokers[0].secure {
		return &Error{Code: "plain", Msg: again.brokers[0].String() + " takes no certificate", Try: "use mqtts:// in uplink.url"}
	}
	again.tune = u.tune
	if err := again.trial(ctx, again.brokers[0]); err != nil {
		return err
	}
	return nil
}

// First tells whether Place has replaced nothing.
func (c *Candidate) First() bool { return len(c.keep) == 0 }

// Place puts the certificate, and the key if a new one came with it, in
// place, each file in one step. The old ones stay beside them as FILE.old.
func (c *Candidate) Place() error {
	_, cert, key := c.opts.files()
	c.keep = nil
	save := func(file string, mode os.FileMode) error {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		c.keep = append(c.keep, file)
		return replace(file+".old", b, mode)
	}
	if err := save(cert, 0o644); err != nil {
		return err
	}
	if c.Key != key {
		if err := save(key, 0o600); err != nil {
			return err
		}
		if err := move(c.Key, key); err != nil {
			return err
		}
	}
	return replace(cert, c.body, 0o644)
}

// Back undoes Place: the old pair is in place again, a new key waits again.
func (c *Candidate) Back() error {
	_, cert, key := c.opts.files()
	var err error
	if c.Key != key {
		err = move(key, c.Key)
	}
	if len(c.keep) == 0 || c.keep[0] != cert {
		err = errors.Join(err, os.Remove(cert)) // there was none
	}
	for i := range c.keep {
		err = errors.Join(err, move(c.keep[len(c.keep)-1-i]+".old", c.keep[len(c.keep)-1-i]))
	}
	return err
}
