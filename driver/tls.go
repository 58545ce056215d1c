package driver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// TLS names the files of Modbus over TLS (MODBUS/TCP Security, port 802).
// Both sides prove who they are: all three files are needed, and nothing
// switches the check of the device's certificate off. The files are read at
// each connect, so renewed ones are used at the next.
type TLS struct {
	CA         string `yaml:"ca" doc:"PEM file with the authorities that may sign the device's certificate."`
	Cert       string `yaml:"cert" doc:"PEM file with the certificate that is shown to the device, and what leads to its authority."`
	Key        string `yaml:"key" doc:"PEM file with its key; mode 0600."`
	ServerName string `yaml:"server_name" doc:"Name that the device's certificate must carry; default: the host of connect."`
}

// validate reports what is missing.
func (t *TLS) validate(secure bool, report func(path, msg, hint string)) {
	switch {
	case secure && t == nil:
		report("tls", "a tls:// line needs certificates on both sides", "write tls: {ca: FILE, cert: FILE, key: FILE}")
	case !secure && t != nil:
		report("tls", "tls belongs to a line with connect: tls://HOST", "remove it, or write connect: tls://HOST")
	case secure:
		for _, f := range [...]struct{ key, file, what string }{{"ca", t.CA, "the authority of the device's certificate"},
			{"cert", t.Cert, "the certificate that is shown to the device"}, {"key", t.Key, "the key of that certificate"}} {
			if f.file == "" {
				report("tls."+f.key, fmt.Sprintf("%q is missing: %s", f.key, f.what), "name a PEM file")
			}
		}
	}
}

// config reads the files.
func (t *TLS) config(addr string) (*tls.Config, error) {
	fail := func(file string, err error) error {
		return &Error{Op: "connect", Code: "cert-file", What: file + " cannot be used", Seen: strings.TrimPrefix(err.Error(), "open "+file+": "),
			Err: fmt.Errorf("%w: %w", ErrGone, err)}
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fail(t.CA, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool(), ServerName: t.ServerName}
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fail(t.CA, errors.New("it holds no certificate"))
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fail(t.Cert, err)
	}
	c.Certificates = []tls.Certificate{pair}
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(addr)
	}
	return c, nil
}

// tlsStream is a stream over a TLS connection.
type tlsStream struct {
	c      *tls.Conn
	closed atomic.Bool
}

// dialTLS connects and shakes hands within the timeout. Besides the errors of
// dialTCP there are cert-file, tls-unknown-ca, tls-name, tls-expired,
// tls-refused and tls-failed.
func dialTLS(ctx context.Context, addr string, t *TLS, timeout time.Duration) (stream, error) {
	conf, err := t.config(addr)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	d := net.Dialer{Timeout: timeout, KeepAliveConfig: keepAlive}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, dialError(addr, err, time.Since(began))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, tlsError(addr, conf.ServerName, err)
	}
	return &tlsStream{c: c}, nil
}

// untrusted is what is likely when the device closes on our certificate.
const untrusted = "tls.cert is not of an authority that the device knows, it has expired, or its role may not ask"

func tlsError(addr, name string, err error) *Error {
	e := &Error{Op: "connect", Code: "tls-failed", What: "no TLS with " + addr, Seen: err.Error(), Err: fmt.Errorf("%w: %w", ErrGone, err)}
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var bad x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case errors.As(err, &unknown):
		e.Code, e.Likely = "tls-unknown-ca", "tls.ca holds another authority than the one that signed the device's certificate"
	case errors.As(err, &host):
		e.Code, e.Likely = "tls-name", fmt.Sprintf("the device's certificate is not for %s; tls.server_name says which name it must carry", name)
	case errors.As(err, &bad) && bad.Reason == x509.Expired:
		e.Code, e.Likely = "tls-expired", "the device's certificate has expired, or the clock of the gateway is wrong"
	case errors.As(err, &record):
		e.Likely = "the device does not speak TLS on this port; Modbus TCP without it is tcp://HOST:502"
	case errors.As(err, &op) && op.Op == "remote error":
		e.Code, e.Err = "tls-refused", fmt.Errorf("%w: %w: %w", ErrGone, ErrUntrusted, err)
		e.Likely = untrusted
	}
	return e
}

func (s *tlsStream) WriteAll(p []byte, deadline time.Time) error {
	if s.closed.Load() {
		return ErrGone
	}
	s.c.SetWriteDeadline(deadline)
	_, err := s.c.Write(p)
	return s.failure(err)
}

// ReadSome: a read of TLS that ran into its deadline can be repeated; what
// has come of a record is kept.
func (s *tlsStream) ReadSome(p []byte, deadline time.Time) (int, error) {
	if s.closed.Load() {
		return 0, ErrGone
	}
	// With a deadline that has passed nothing would be read at all.
	if soon := time.Now().Add(time.Millisecond); deadline.Before(soon) {
		deadline = soon
	}
	s.c.SetReadDeadline(deadline)
	n, err := s.c.Read(p)
	if n > 0 {
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, s.failure(err)
}

func (s *tlsStream) failure(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" { // with TLS 1.3 a refusal comes after the handshake
		return fmt.Errorf("%w: %w: %w", ErrGone, ErrUntrusted, err)
	}
	return netFailure(err)
}

func (s *tlsStream) Alive() error { return nil }

func (s *tlsStream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	// The farewell must not wait for a peer that does not read.
	s.c.NetConn().SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	return s.c.Close()
}
