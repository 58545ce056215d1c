package uplink

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"
)

// revocations reads the lists of revoked certificates in a file: one in DER,
// or any number in PEM.
func revocations(file string, b []byte) ([]*x509.RevocationList, error) {
	var out []*x509.RevocationList
	damaged := func(err error) error {
		return &Error{Code: "crl", Msg: file + " is no list of revoked certificates, or not whole",
			Likely: "another kind of file, or one that is being written", Try: "get it anew from the authority", Err: err}
	}
	if !bytes.Contains(b, []byte("-----BEGIN ")) {
		l, err := x509.ParseRevocationList(b)
		if err != nil {
			return nil, damaged(err)
		}
		return append(out, l), nil
	}
	begun := bytes.Count(b, []byte("-----BEGIN "))
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		l, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, damaged(err)
		}
		out = append(out, l)
	}
	if len(out) < begun {
		return nil, damaged(nil)
	}
	return out, nil
}

// CheckRevocations reads a file of revoked certificates and returns the first
// moment at which one of its lists is overdue, zero if none ever is. The
// error is an *Error.
func CheckRevocations(file string) (next time.Time, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return next, fileError("crl", "the list of revoked certificates cannot be read", err)
	}
	lists, err := revocations(file, b)
	for _, l := range lists {
		if !l.NextUpdate.IsZero() && (next.IsZero() || l.NextUpdate.Before(next)) {
			next = l.NextUpdate
		}
	}
	return next, err
}

// checkRevoked refuses a broker whose certificate is revoked, and one of
// which the lists cannot tell: without a list of the authority that issued
// its certificate, or with one that is overdue, nobody knows. An authority
// in between is looked up where there is a list of the one above it.
func checkRevoked(lists []*x509.RevocationList, chains [][]*x509.Certificate, now time.Time) error {
	var last error
	for _, chain := range chains {
		if last = checkChain(lists, chain, now); last == nil {
			return nil
		}
	}
	if last == nil {
		last = &Error{Code: "crl", Msg: "there is no chain of certificates to look up"}
	}
	return last
}

func checkChain(lists []*x509.RevocationList, chain []*x509.Certificate, now time.Time) error {
	for i := 0; i+1 < len(chain); i++ {
		c, issuer := chain[i], chain[i+1]
		known := false
		for _, l := range lists {
			if !bytes.Equal(l.RawIssuer, issuer.RawSubject) || l.CheckSignatureFrom(issuer) != nil {
				continue
			}
			known = true
			if !l.NextUpdate.IsZero() && now.After(l.NextUpdate) {
				return &Error{Code: "crl", Msg: fmt.Sprintf("the list of certificates that %q revoked is overdue since %s", issuer.Subject.CommonName, l.NextUpdate.UTC().Format(time.DateOnly)),
					Likely: "tls.crl is not renewed", Try: "get a new list from the authority, and renew it before its date"}
			}
			for _, e := range l.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
					return &Error{Code: "tls-revoked", Msg: fmt.Sprintf("the certificate of %q is revoked", c.Subject.CommonName),
						Seen:   fmt.Sprintf("%q revoked number %x on %s", issuer.Subject.CommonName, c.SerialNumber, e.RevocationTime.UTC().Format(time.DateOnly)),
						Likely: "its key was stolen: whoever shows this certificate need not be the broker",
						Try:    "do not work around this; tell the operator of the broker"}
				}
			}
		}
		if !known && i == 0 {
			return &Error{Code: "crl", Msg: fmt.Sprintf("tls.crl has no list of %q, which issued the broker's certificate", issuer.Subject.CommonName),
				Likely: "the file is of another authority", Try: "get the list of this authority, or take tls.crl out of the configuration"}
		}
	}
	return nil
}
