package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"tidegate/buffer"
	"tidegate/internal/command"
	"tidegate/internal/document"
	"tidegate/uplink"
)

// Codes of the checks that look at files the configuration names.
const (
	codeCert  = "cert-file" // a certificate file is missing, damaged or about to expire
	codeKey   = "key-mode"  // others may read a secret
	codeMatch = "key-mismatch"
	codeDisk  = "disk-space"

	codeBufferKey = "buffer-key" // the key of the buffer is missing or is none
)

// soon is how long before its end a certificate is called about to expire.
const soon = 30 * 24 * time.Hour

// files checks the certificate files and the room for the buffer. What is
// not there yet is a warning: certificates often come after the file.
func (p *parser) files() {
	p.bufferKey()
	for i := range p.cfg.Buses {
		if b := &p.cfg.Buses[i]; b.TLS != nil {
			path := "buses." + b.Name + ".tls."
			p.authority(path+"ca", b.TLS.CA)
			p.pair(path+"cert", path+"key", b.TLS.Cert, b.TLS.Key)
		}
	}
	links := p.links()
	for i := range links {
		p.linkFiles(&links[i])
	}
	if len(links) > 0 {
		p.disk()
	}
}

// linkFiles checks the files that an uplink names.
func (p *parser) linkFiles(o *Uplink) {
	path := o.path()
	at := func(key string) string {
		if o.Identity != "" {
			return path + ".identity"
		}
		return path + ".tls." + key
	}
	ca, cert, key := o.TLS.CA, o.TLS.Cert, o.ClientKey()
	if o.Identity != "" {
		ca = filepath.Join(o.Identity, "ca.crt")
		cert = filepath.Join(o.Identity, "client.crt")
	}
	if o.Secure() {
		p.authority(at("ca"), ca)
		p.pair(at("cert"), at("key"), cert, key)
	}
	p.revoked(path+".tls.crl", o.TLS.CRL)
	if o.CommandKey != "" {
		if _, err := command.ReadKey(o.CommandKey); err != nil {
			p.doc.Report(path+".command_key", codeCert, fmt.Sprintf("command_key: %v", err), "write the public key with: openssl pkey -in command.key -pubout")
		}
	}
	for key, file := range map[string]string{"password_file": o.PasswordFile, "token_file": o.TokenFile, "device_key_file": o.KeyFile, "proxy_password_file": o.ProxyFile} {
		if file != "" {
			p.secret(path+"."+key, file, codeCert)
		}
	}
}

// read returns the content of a file, or warns and returns nil.
func (p *parser) read(path, file, code string) []byte {
	if file == "" {
		return nil
	}
	b, err := os.ReadFile(file)
	if err == nil {
		return b
	}
	msg, hint := fmt.Sprintf("%s cannot be read", file), ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		msg = file + " is not there"
	case errors.Is(err, fs.ErrPermission):
		hint = "check cannot see it; run it as the user of the service"
	}
	p.doc.Warn(path, code, msg, hint)
	return nil
}

// authority checks the file with the CAs of the broker, or of a device.
func (p *parser) authority(path, file string) {
	b := p.read(path, file, codeCert)
	if b == nil {
		return
	}
	certs := parseCerts(b)
	if len(certs) == 0 {
		p.doc.Warn(path, codeCert, file+" holds no certificate", "a PEM file begins with -----BEGIN CERTIFICATE-----")
		return
	}
	for _, c := range certs {
		p.dates(path, file, c)
	}
}

// revoked checks the list of revoked certificates. Without it nobody would
// be let in.
func (p *parser) revoked(path, file string) {
	if file == "" {
		return
	}
	next, err := uplink.CheckRevocations(file)
	switch {
	case err != nil:
		p.doc.Warn(path, codeCert, err.Error(), "without it every broker is refused")
	case !next.IsZero() && time.Now().After(next):
		p.doc.Warn(path, codeCert, fmt.Sprintf("%s is overdue since %s", file, next.UTC().Format(time.DateOnly)), "with it every broker is refused; get a new one")
	}
}

// pair checks the client certificate and its key.
func (p *parser) pair(certPath, keyPath, cert, key string) {
	certPEM := p.read(certPath, cert, codeCert)
	keyPEM := p.secret(keyPath, key, codeCert)
	if certs := parseCerts(certPEM); len(certs) > 0 {
		p.dates(certPath, cert, certs[0])
	} else if certPEM != nil {
		p.doc.Warn(certPath, codeCert, cert+" holds no certificate", "a PEM file begins with -----BEGIN CERTIFICATE-----")
		return
	}
	if certPEM == nil || keyPEM == nil {
		return
	}
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		if strings.Contains(err.Error(), "does not match") {
			p.doc.Warn(keyPath, codeMatch, fmt.Sprintf("%s does not belong to %s", key, cert), "put certificate and key of one request in place")
		} else {
			p.doc.Warn(keyPath, codeCert, key+" is not a key that can be used", "expected a PEM file with an unencrypted EC, RSA or Ed25519 key")
		}
	}
}

// secret reads a file that only the service may read; that others may read
// it is an error.
func (p *parser) secret(path, file, code string) []byte {
	b := p.read(path, file, code)
	if b == nil {
		return nil
	}
	if st, err := os.Stat(file); err == nil && st.Mode().Perm()&0o077 != 0 {
		p.doc.Report(path, codeKey, fmt.Sprintf("%s can be read by others (mode %04o)", file, st.Mode().Perm()), "chmod 0600 "+file)
	}
	return b
}

// bufferKey checks the key file of the buffer. One that is there and is no
// key, or that others may read, is an error.
func (p *parser) bufferKey() {
	file := p.cfg.Buffer.KeyFile
	if file == "" {
		return
	}
	var e *buffer.KeyError
	if !errors.As(buffer.CheckKey(file), &e) {
		return
	}
	switch {
	case e.Err != nil:
		p.read("buffer.key_file", file, codeBufferKey)
	case e.Mode:
		p.doc.Report("buffer.key_file", codeKey, e.Msg, e.Hint)
	default:
		p.doc.Report("buffer.key_file", codeBufferKey, e.Msg, e.Hint)
	}
}

func parseCerts(b []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return out
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, c)
		}
	}
}

// dates warns of a certificate that is over, or soon will be.
func (p *parser) dates(path, file string, c *x509.Certificate) {
	now := time.Now()
	switch left := c.NotAfter.Sub(now); {
	case left <= 0:
		p.doc.Warn(path, codeCert, fmt.Sprintf("%s expired on %s", file, c.NotAfter.UTC().Format(time.DateOnly)), "get a new one, or is the clock of this machine right?")
	case now.Before(c.NotBefore):
		p.doc.Warn(path, codeCert, fmt.Sprintf("%s is valid only from %s", file, c.NotBefore.UTC().Format(time.DateOnly)), "is the clock of this machine right?")
	case left < soon:
		p.doc.Warn(path, codeCert, fmt.Sprintf("%s expires in %d days", file, int(left.Hours()/24)), "renew it in time")
	}
}

// disk warns of a buffer that its disk has no room for.
func (p *parser) disk() {
	dir := p.cfg.Buffer.Dir
	if !filepath.IsAbs(dir) {
		return
	}
	used := int64(0)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			used += info.Size()
		}
	}
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return
	}
	free := int64(st.Bavail) * int64(st.Bsize)
	if free+used < p.cfg.Buffer.Size {
		p.doc.Warn("buffer.size", codeDisk, fmt.Sprintf("size %s, but %s has %s left",
			document.FormatSize(p.cfg.Buffer.Size), dir, document.FormatSize(free/1e6*1e6)), "write a smaller size, or make room")
	}
}
