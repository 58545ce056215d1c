package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// Error is everything that can go wrong between this gateway and the
// broker, in words for the person who has to mend it.
type Error struct {
	Code   string // such as "tls-unknown-ca"; see docs/delivery.md
	Msg    string // one line: what happened
	Seen   string // what was observed, "" for nothing more
	Likely string // the likely reason
	Try    string // what to do
	Note   string // what is well all the same
	Err    error  // the library's word, may be nil
}

// Error returns the message and the library's word.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Msg + ": " + e.Err.Error()
	}
	return e.Msg
}

// Brief returns the message, and the library's word only where nothing else
// says what was seen.
func (e *Error) Brief() string {
	if e.Seen == "" && e.Likely == "" {
		return e.Error()
	}
	return e.Msg
}

// Unwrap returns the library's error.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns reason and advice in one line, "" if there is none.
func (e *Error) Hint() string {
	switch {
	case e.Likely == "":
		return e.Try
	case e.Try == "":
		return e.Likely
	}
	return e.Likely + "; " + e.Try
}

// Errors of the connection that this package finds by itself.
var (
	errStalled   = errors.New("no acknowledgement came within the time limit")
	errWrite     = errors.New("nothing could be written within the time limit")
	errPing      = errors.New("the broker did not answer a ping")
	errProof     = errors.New("a message was reported as done without the broker's PUBACK on this connection")
	errMalformed = errors.New("the broker sent what no broker may send")
)

// stage says how far an attempt came.
type stage uint8

const (
	atFiles stage = iota
	atDNS
	atTCP
	atProxy
	atTLS
	atConnect
	atSession
)

// situation is what the explanation of an error needs to know.
type situation struct {
	broker  broker
	proxied bool      // broker is the proxy
	proxy   broker    // on the way to the broker, without a host: none
	ca      string    // file, "" for the system's list
	cert    string    // file, "" without one
	folder  string    // identity folder that lacks the certificate, "" if it does not
	now     time.Time // the time certificates were checked against
	wall    time.Time // what the clock of this machine says
	synced  bool
	built   time.Time // zero: not known
	timeout time.Duration
	probe   string // what else was tried meanwhile, "" for nothing
}

// explain turns an error of a stage into an Error. An Error stays as it is.
func explain(at stage, err error, s situation) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	e := &Error{Code: "uplink", Msg: s.broker.String() + " cannot be reached", Err: err}
	switch at {
	case atDNS:
		explainDNS(e, err, s)
	case atTCP:
		explainTCP(e, err, s)
	case atProxy:
		explainProxy(e, err, s)
	case atTLS:
		explainTLS(e, err, s)
	case atConnect:
		if !explainAnswer(e, err, s) && !explainAlert(e, err, s) {
			explainConnect(e, err, s)
		}
	case atSession:
		if !explainAnswer(e, err, s) && !explainAlert(e, err, s) {
			explainSession(e, err, s)
		}
	}
	return e
}

func explainDNS(e *Error, err error, s situation) {
	var d *net.DNSError
	if errors.As(err, &d) && d.IsNotFound {
		e.Code, e.Msg = "dns", fmt.Sprintf("the name %s cannot be resolved", s.broker.host)
		e.Seen = `the name server answered "no such name"`
		if d.Server != "" {
			e.Seen = fmt.Sprintf(`server %s answered "no such name"`, strings.TrimSuffix(d.Server, ":53"))
		}
		e.Seen += s.probe
		e.Likely = "spelling in uplink.url, or a private name that this SIM card's network does not know"
		e.Try = "ask the carrier for the APN's DNS, or put the address in /etc/hosts (keep the name in the config: the certificate needs it)"
		return
	}
	e.Code, e.Msg = "dns-down", fmt.Sprintf("no name server answered for %s", s.broker.host)
	e.Seen = network()
	e.Likely = "no network, or no name server in /etc/resolv.conf"
	e.Try = "look at address and default route with: ip address; ip route"
}

// network says in one line how this machine is connected.
func network() string {
	var out []string
	list, _ := net.Interfaces() // nothing to see without rights
	for _, i := range list {
		addrs, _ := i.Addrs()
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 || len(addrs) == 0 || len(out) == 3 {
			continue
		}
		out = append(out, i.Name+" "+addrs[0].String())
	}
	if len(out) == 0 {
		out = append(out, "no interface is up with an address")
	}
	return strings.Join(append(out, defaultRoute()), ", ")
}

// defaultRoute reads the kernel's table: Iface Destination Gateway ...
func defaultRoute() string {
	b, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return "default route not known"
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			return "default route by " + f[0]
		}
	}
	return "no default route"
}

func explainTCP(e *Error, err error, s situation) {
	addr := s.broker.addr()
	var n net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Code, e.Msg = "refused", fmt.Sprintf("%s refuses connections", addr)
		e.Seen = "the host is up and answered at once"
		e.Likely = "the broker is not running, or listens on another port"
		e.Try = "check the port in uplink.url, and the broker"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		e.Code, e.Msg = "network-down", fmt.Sprintf("there is no way to %s", addr)
		e.Likely = "no link, no address or no default route"
		e.Try = "look at: ip address; ip route"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &n) && n.Timeout():
		e.Code, e.Msg = "port-blocked", fmt.Sprintf("no TCP connection to %s within %g s", addr, s.timeout.Seconds())
		e.Seen = "no answer and no refusal (packets vanish)" + s.probe
		e.Likely = "a firewall or the mobile APN lets only some ports out"
		e.Try = "ask for outgoing TCP " + s.broker.port
		if s.broker.port != "443" {
			e.Try += ", or if the broker offers it: url: mqtts://" + s.broker.host + ":443 (MQTT on 443)"
		}
	}
}

// explainProxy: the proxy itself was reached.
func explainProxy(e *Error, err error, s situation) {
	p := s.proxy.String()
	e.Code, e.Msg = "proxy", fmt.Sprintf("%s does not work as a proxy", p)
	e.Likely, e.Try = "another port, or another kind of proxy", "check uplink.proxy with those who run the network of this site"
	said, ok := errors.AsType[*proxyError](err)
	switch {
	case ok && said.code == "proxy-auth":
		e.Code, e.Msg = said.code, fmt.Sprintf("%s does not let us in", p)
		e.Seen = "the proxy says: " + said.said
		e.Likely, e.Try = "user or password is missing or wrong", "check uplink.proxy_username and proxy_password_file"
	case ok && said.code == "proxy-refused":
		e.Code, e.Msg = said.code, fmt.Sprintf("%s lets nobody through to %s", p, s.broker.addr())
		e.Seen = "the proxy says: " + said.said
		e.Likely = "its rules allow other ports only (often just 443), or the broker is not reachable from there"
		e.Try = "ask for " + s.broker.addr() + ", or if the broker offers it: wss://" + s.broker.host + ":443"
	case ok:
		e.Seen = said.said
	case isTimeout(err):
		e.Code, e.Msg = "proxy-silent", fmt.Sprintf("%s took our connection but never answered", p)
		e.Likely = "another kind of proxy, or it cannot reach " + s.broker.addr()
	}
}

func explainTLS(e *Error, err error, s situation) {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	addr := s.broker.addr()
	switch {
	case errors.As(err, &unknown):
		e.Code, e.Msg = "tls-unknown-ca", fmt.Sprintf("%s shows a certificate we cannot trust", addr)
		e.Seen = seenServer(err) + "; " + seenCA(s.ca)
		e.Likely = "the CA file is of the old CA, or something between us and the broker opens TLS"
		e.Try = "get " + issuerOf(err) + " from the cloud team, compare the sha256 by phone, then replace " + orSystem(s.ca) + " and run: tidegate uplink test"
	case errors.As(err, &host):
		e.Code, e.Msg = "tls-host", fmt.Sprintf("the certificate of %s is for another name", addr)
		if host.Certificate != nil {
			names := append([]string(nil), host.Certificate.DNSNames...)
			for _, ip := range host.Certificate.IPAddresses {
				names = append(names, ip.String())
			}
			e.Seen = fmt.Sprintf("it is for %s; we look for %s", strings.Join(names, ", "), host.Host)
			if len(names) == 0 {
				e.Seen = fmt.Sprintf("it names CN=%s only, which is no proof of a name; we look for %s", host.Certificate.Subject.CommonName, host.Host)
				e.Likely = "the certificate was made the old way, without subject alternative names"
				e.Try = "the operator of the broker has to renew it with subjectAltName=DNS:" + host.Host
				break
			}
		}
		e.Likely = "the broker is reached by another name than its certificate has"
		e.Try = "write that name in uplink.url, or tls: {server_name: NAME}"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		explainExpired(e, invalid, s)
	case errors.As(err, &record),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		e.Code, e.Msg = "tls-on-plain-port", fmt.Sprintf("%s does not speak TLS", addr)
		e.Seen = "the connection ended right after our hello, or the answer was not TLS"
		e.Likely = "this port is the unencrypted one (often 1883; TLS is often 8883)"
		e.Try = "check the port in uplink.url"
	case explainAlert(e, err, s):
	case isTimeout(err):
		e.Code, e.Msg = "tls-silent", fmt.Sprintf("%s took our connection but never answered in TLS", addr)
		e.Likely = "a proxy or firewall holds the connection, or the broker is overloaded"
		e.Try = "try again; ask for what stands between: " + addr
	default:
		e.Code, e.Msg = "tls", fmt.Sprintf("no TLS with %s", addr)
	}
}

// explainExpired tells a wrong clock from an old certificate.
func explainExpired(e *Error, invalid x509.CertificateInvalidError, s situation) {
	addr := s.broker.addr()
	from, to := invalid.Cert.NotBefore.UTC(), invalid.Cert.NotAfter.UTC()
	e.Seen = fmt.Sprintf("server certificate valid from %s to %s; our clock says %s (%s)",
		from.Format(time.DateOnly), to.Format(time.DateOnly), s.wall.UTC().Format("2006-01-02 15:04:05Z"), syncWord(s.synced))
	if s.now.Before(from) {
		e.Seen = "server certificate valid from " + from.Format(time.DateOnly)
		if !s.built.IsZero() {
			e.Seen += "; our build is from " + s.built.UTC().Format(time.DateOnly)
		}
		e.Seen += "; NTP " + syncWord(s.synced)
		if _, err := os.Stat("/dev/rtc0"); err != nil {
			e.Seen += "; no battery clock (/dev/rtc0 missing)"
		}
		e.Code, e.Msg = "clock", fmt.Sprintf("this gateway believes it is %s", s.wall.UTC().Format("2006-01-02 15:04:05Z"))
		e.Likely = "no time source yet; TLS cannot work before the clock is right"
		e.Try = fmt.Sprintf("timedatectl; is UDP port 123 allowed? For now: sudo date -u -s %q", from.Add(24*time.Hour).Format("2006-01-02 15:04"))
		e.Note = "readings are kept with uptime stamps and get their true time once the clock is set"
		return
	}
	e.Code, e.Msg = "tls-expired", fmt.Sprintf("the certificate of %s expired on %s", addr, to.Format(time.DateOnly))
	e.Likely = "the broker's certificate was not renewed"
	if !s.synced {
		e.Likely += ", or our clock, which nothing has set, is ahead"
	}
	e.Try = "tell the operator of the broker; nothing is lost meanwhile"
}

func syncWord(synced bool) string {
	if synced {
		return "synchronised"
	}
	return "not synchronised"
}

// explainAlert knows what the broker's TLS says about our certificate. The
// alert has no exported type for TLS over TCP: its text is all there is.
func explainAlert(e *Error, err error, s situation) bool {
	text := err.Error()
	i := strings.Index(text, "remote error: tls: ")
	if i < 0 {
		return false
	}
	alert := text[i+len("remote error: tls: "):]
	e.Seen = "the broker's TLS says: " + alert
	switch {
	case strings.Contains(alert, "certificate required"),
		s.cert == "" && (strings.Contains(alert, "bad certificate") || strings.Contains(alert, "handshake failure")):
		e.Code, e.Msg = "client-cert-required", fmt.Sprintf("%s demands a client certificate", s.broker.addr())
		e.Likely = "no client certificate is configured"
		e.Try = "set uplink.identity to the folder with ca.crt, client.crt and client.key"
		switch {
		case s.cert != "":
			e.Likely = "our client certificate is not of an authority that the broker asks for"
		case s.folder != "":
			e.Likely = "client.crt is not in " + s.folder
			e.Try = "put client.crt and client.key there"
		}
	case strings.Contains(alert, "expired certificate"):
		e.Code, e.Msg = "client-cert-expired", "the broker says that our client certificate has expired"
		e.Likely = "it has, or the broker's clock is wrong"
		e.Try = "renew " + s.cert
	case strings.Contains(alert, "unknown certificate authority"):
		e.Code, e.Msg = "client-cert-unknown-ca", "the broker does not know the authority of our client certificate"
		e.Likely = "the certificate is of another authority, or an intermediate one is missing in " + s.cert
		e.Try = "put the intermediate certificates behind our own in " + s.cert
	case strings.Contains(alert, "revoked certificate"):
		e.Code, e.Msg = "client-cert-revoked", "the broker says that our client certificate is revoked"
		e.Try = "ask the cloud team for a new one"
	case strings.Contains(alert, "protocol version"):
		e.Code, e.Msg = "tls-version", fmt.Sprintf("%s speaks no TLS 1.2 or newer", s.broker.addr())
		e.Try = "the broker must allow TLS 1.2 or 1.3"
	default:
		e.Code, e.Msg = "client-cert", "the broker refuses our TLS"
		e.Likely = "something about our client certificate does not please the broker"
		e.Try = "read the broker's log"
	}
	return true
}

func explainConnect(e *Error, err error, s situation) {
	addr := s.broker.addr()
	switch {
	case errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword), errors.Is(err, packets.ErrorRefusedNotAuthorised):
		e.Code, e.Msg = "mqtt-auth", fmt.Sprintf("%s does not let us in", addr)
		e.Likely = "user, password or client id is not known there"
		e.Try = "check username, password_file and client_id with the cloud team"
	case errors.Is(err, packets.ErrorRefusedIDRejected):
		e.Code, e.Msg = "mqtt-client-id", fmt.Sprintf("%s does not accept our client id", addr)
		e.Try = "check client_id with the cloud team"
	case errors.Is(err, packets.ErrorRefusedServerUnavailable):
		e.Code, e.Msg = "mqtt-unavailable", fmt.Sprintf("%s says that it is not available now", addr)
		e.Try = "nothing: it is tried again"
	case errors.Is(err, packets.ErrorRefusedBadProtocolVersion):
		e.Code, e.Msg = "mqtt-version", fmt.Sprintf("%s does not speak MQTT 3.1.1", addr)
	case errors.Is(err, errMalformed):
		explainSession(e, err, s)
	case errors.As(err, new(*refusedUpgrade)):
		e.Code, e.Msg = "websocket", fmt.Sprintf("there is no MQTT at %s", s.broker)
		e.Seen = err.Error()
		e.Likely = "another path, or a web server or proxy that passes no WebSockets on"
		e.Try = "check the path in uplink.url; many brokers use /mqtt"
	case s.broker.posts() && isTimeout(err):
		e.Code, e.Msg = "https-silent", fmt.Sprintf("%s took our connection but never answered", addr)
		e.Likely, e.Try = "the server is overloaded, or another service is behind this port", "check the port in uplink.url"
	case s.broker.posts() && peerClosed(err):
		e.Code, e.Msg = "https-closed", fmt.Sprintf("%s closed the connection instead of answering", addr)
		e.Likely, e.Try = "no web server is behind this port, or it does not take our client certificate", "check the port in uplink.url"
	case s.broker.posts():
		e.Code, e.Msg = "https", fmt.Sprintf("%s gives no answer that a web server would give", addr)
		e.Likely, e.Try = "no web server is behind this port", "check the port in uplink.url"
	case isTimeout(err):
		e.Code, e.Msg = "mqtt-silent", fmt.Sprintf("%s took our connection but never answered in MQTT", addr)
		e.Likely = "this port is not MQTT, or the broker is overloaded"
		e.Try = "check the port in uplink.url"
	case peerClosed(err):
		e.Code, e.Msg = "mqtt-closed", fmt.Sprintf("%s closed the connection instead of answering CONNECT", addr)
		if s.broker.secure {
			e.Likely = "the broker does not accept our client certificate, client id or user, or has too many clients"
		} else {
			e.Likely = "this port wants TLS"
			e.Try = "write mqtts:// in uplink.url"
		}
	}
}

func explainSession(e *Error, err error, s situation) {
	switch {
	case errors.Is(err, errMalformed), errors.Is(err, errProof):
		e.Code, e.Msg = "protocol", fmt.Sprintf("%s broke the rules of MQTT; the connection was closed", s.broker.addr())
		e.Likely = "the broker is faulty, or something in between changes the stream"
	case errors.Is(err, errStalled):
		e.Code, e.Msg = "stalled", fmt.Sprintf("%s does not acknowledge what we send", s.broker.addr())
		e.Likely = "the link or the broker hangs"
		e.Try = "nothing: all that is not acknowledged is sent again"
	case errors.Is(err, errPing), errors.Is(err, errWrite), isTimeout(err), errors.Is(err, syscall.ETIMEDOUT):
		e.Code, e.Msg = "link-dead", "the link went dead without a word"
		e.Likely = "the network was lost between here and the broker"
		e.Try = "nothing: the connection is made anew"
	case peerClosed(err):
		e.Code, e.Msg = "closed", fmt.Sprintf("%s closed the connection", s.broker.addr())
		e.Likely = "the broker restarts, or does not like what it got"
	default:
		e.Code, e.Msg = "lost", "the connection to "+s.broker.addr()+" was lost"
	}
}

// peerClosed tells whether the other side ended the connection.
func peerClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.As(err, &n) && n.Timeout()
}

func orSystem(ca string) string {
	if ca == "" {
		return "the system's list of authorities (or name the file: tls: {ca: FILE})"
	}
	return ca
}

// seenServer describes the certificate that was refused, and the authority
// that it comes from if the broker showed that one too.
func seenServer(err error) string {
	var v *tls.CertificateVerificationError
	if !errors.As(err, &v) || len(v.UnverifiedCertificates) == 0 {
		return "no server certificate"
	}
	c := v.UnverifiedCertificates[0]
	last := v.UnverifiedCertificates[len(v.UnverifiedCertificates)-1]
	if c == last && c.Subject.CommonName == c.Issuer.CommonName {
		return fmt.Sprintf("server CN=%s, signed by itself (sha256 %s)", c.Subject.CommonName, shortSum(c))
	}
	if last != c && last.IsCA {
		return fmt.Sprintf("server CN=%s, issued by %q (sha256 of that: %s)", c.Subject.CommonName, last.Subject.CommonName, shortSum(last))
	}
	return fmt.Sprintf("server CN=%s (sha256 %s), issued by %q", c.Subject.CommonName, shortSum(c), c.Issuer.CommonName)
}

// shortSum is enough of a fingerprint to be compared by phone.
func shortSum(c *x509.Certificate) string {
	sum := fingerprint(c)
	return sum[:23] + ":..:" + sum[len(sum)-11:]
}

// issuerOf names the authority of a certificate that was refused.
func issuerOf(err error) string {
	var v *tls.CertificateVerificationError
	if errors.As(err, &v) && len(v.UnverifiedCertificates) > 0 {
		return strconv.Quote(v.UnverifiedCertificates[len(v.UnverifiedCertificates)-1].Issuer.CommonName)
	}
	return "the CA certificate"
}

func seenCA(file string) string {
	if file == "" {
		return "trusted: the system's list of authorities"
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, c := range certificates(b) {
		names = append(names, fmt.Sprintf("%q, valid to %s", c.Subject.CommonName, c.NotAfter.UTC().Format(time.DateOnly)))
	}
	return file + " holds " + strings.Join(names, "; ")
}
