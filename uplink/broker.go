package uplink

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// broker is a parsed url.
type broker struct {
	scheme     string // mqtts, mqtt, wss, ws, https, http
	secure     bool   // TLS
	host, port string
	path       string // of a WebSocket or a receiver, with its query
}

func (b broker) addr() string { return net.JoinHostPort(b.host, b.port) }

func (b broker) String() string { return b.scheme + "://" + b.addr() + b.path }

// websocket tells whether MQTT travels in a WebSocket.
func (b broker) websocket() bool { return b.scheme == "ws" || b.scheme == "wss" }

// posts tells whether messages travel as HTTP requests.
func (b broker) posts() bool { return b.scheme == "https" || b.scheme == "http" }

// loopback tells whether the host can only be this machine.
func (b broker) loopback() bool {
	ip := net.ParseIP(b.host)
	return b.host == "localhost" || ip != nil && ip.IsLoopback()
}

// open tells that everything would travel unencrypted to another machine.
func (b broker) open() bool { return !b.secure && !b.loopback() }

// schemes are the words of a url and what they stand for: the scheme as it is
// shown, and the usual port.
var schemes = map[string]struct{ name, port string }{
	"mqtts": {"mqtts", "8883"}, "ssl": {"mqtts", "8883"}, "tls": {"mqtts", "8883"},
	"mqtt": {"mqtt", "1883"}, "tcp": {"mqtt", "1883"},
	"wss": {"wss", "443"}, "ws": {"ws", "80"},
	"https": {"https", "443"}, "http": {"http", "80"},
}

// expectedSchemes is what the url of a broker begins with.
const expectedSchemes = "mqtts://, wss:// or https://, or to this machine mqtt://, ws:// or http://"

func parseURL(s string) (broker, error) {
	if s == "" {
		return broker{}, fmt.Errorf("no broker is named")
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return broker{}, fmt.Errorf("%q is not a broker url", redact(s))
	}
	scheme, known := schemes[u.Scheme]
	b := broker{scheme: scheme.name, secure: scheme.name == "mqtts" || scheme.name == "wss" || scheme.name == "https", host: u.Hostname(), port: u.Port()}
	if !known {
		return broker{}, fmt.Errorf("unknown scheme %q: expected %s", u.Scheme, expectedSchemes)
	}
	if b.port == "" {
		b.port = scheme.port
	}
	if n, err := strconv.Atoi(b.port); err != nil || n < 1 || n > 65535 {
		return broker{}, fmt.Errorf("%q is no port: expected 1 to 65535", b.port)
	}
	if b.host == "" {
		return broker{}, fmt.Errorf("%q names no host", redact(s))
	}
	if u.User != nil {
		return broker{}, fmt.Errorf("a user or password does not belong into the url: use username and password_file")
	}
	if u.Fragment != "" {
		return broker{}, fmt.Errorf("a broker url has no part behind #")
	}
	if b.posts() {
		b.path = u.RequestURI()
	} else if b.websocket() {
		// /mqtt is what nearly every broker listens to.
		if b.path = u.RequestURI(); u.Path == "" && u.RawQuery == "" {
			b.path = "/mqtt"
		}
	} else if u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return broker{}, fmt.Errorf("the url of %s:// ends after the port", b.scheme)
	}
	return b, nil
}

// redact removes what may be a password from a url that could not be used.
func redact(s string) string {
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		if i := strings.Index(s, "://"); i >= 0 && i+3 <= at {
			return s[:i+3] + "...@" + s[at+1:]
		}
		return "..." + s[at:]
	}
	return s
}

// parseProxy reads the url of a proxy.
func parseProxy(s string) (broker, error) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return broker{}, fmt.Errorf("%q is not the url of a proxy", redact(s))
	}
	b := broker{scheme: u.Scheme, host: u.Hostname(), port: u.Port()}
	switch {
	case u.Scheme != "http" && u.Scheme != "socks5":
		return broker{}, fmt.Errorf("unknown scheme %q of a proxy: expected http:// or socks5://", u.Scheme)
	case u.User != nil:
		return broker{}, fmt.Errorf("a user or password does not belong into the url: use proxy_username and proxy_password_file")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return broker{}, fmt.Errorf("the url of a proxy ends after the port")
	case b.port == "":
		b.port = map[string]string{"http": "3128", "socks5": "1080"}[u.Scheme]
	}
	if n, err := strconv.Atoi(b.port); err != nil || n < 1 || n > 65535 {
		return broker{}, fmt.Errorf("%q is no port: expected 1 to 65535", b.port)
	}
	return b, nil
}
