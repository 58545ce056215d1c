package uplink

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// proxyError is a proxy's refusal in its own words.
type proxyError struct {
	code string
	said string
}

func (e *proxyError) Error() string { return e.said }

// through asks the proxy at the other end of c for a connection to addr; what
// is read and written afterwards is the broker's. The name is resolved by the
// proxy: a site with a proxy often has no DNS of its own for the world.
func through(ctx context.Context, c *rawConn, p broker, addr, user, password string, limit time.Duration) error {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	ask := connectHTTP
	if p.scheme == "socks5" {
		ask = connectSOCKS
	}
	if err := ask(c, addr, user, password); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return c.SetReadDeadline(time.Time{})
}

// connectHTTP speaks CONNECT (RFC 9110, 9.3.6) with Basic authentication.
func connectHTTP(c *rawConn, addr, user, password string) error {
	ask := "CONNECT " + addr + " HTTP/1.1\r\nHost: " + addr + "\r\n"
	if user != "" {
		ask += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(c, ask+"\r\n"); err != nil {
		return err
	}
	// The broker speaks only after us, so what is read ahead is the proxy's;
	// byte by byte is still safer than a lost byte of the stream behind it.
	r := bufio.NewReaderSize(io.LimitReader(single{c}, 16<<10), 16)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	switch {
	case isTimeout(err):
		return err
	case err != nil:
		return &proxyError{"proxy", "no HTTP proxy answers there: " + err.Error()}
	case resp.StatusCode == http.StatusProxyAuthRequired, resp.StatusCode == http.StatusUnauthorized: // 401: tinyproxy
		return &proxyError{"proxy-auth", resp.Status}
	case resp.StatusCode/100 != 2:
		return &proxyError{"proxy-refused", resp.Status}
	}
	return nil
}

// single reads one byte at a time, so that nothing behind the answer of the
// proxy is taken from the stream.
type single struct{ io.Reader }

func (s single) Read(p []byte) (int, error) { return s.Reader.Read(p[:min(len(p), 1)]) }

// connectSOCKS speaks SOCKS5 (RFC 1928) with the name of the target, and
// user and password (RFC 1929) if there are some.
func connectSOCKS(c *rawConn, addr, user, password string) error {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || len(host) > 255 || len(user) > 255 || len(password) > 255 {
		return errors.New("a name for SOCKS5 has at most 255 bytes")
	}
	methods := []byte{5, 1, 0}
	if user != "" {
		methods = []byte{5, 2, 0, 2}
	}
	var b [262]byte
	exchange := func(ask []byte, answer int) error {
		if _, err := c.Write(ask); err != nil {
			return err
		}
		_, err := io.ReadFull(c, b[:answer])
		return err
	}
	if err := exchange(methods, 2); err != nil {
		return err
	}
	switch {
	case b[0] != 5:
		return &proxyError{"proxy", "no SOCKS5 proxy answers there"}
	case b[1] == 2 && user != "":
		ask := append([]byte{1, byte(len(user))}, user...)
		ask = append(append(ask, byte(len(password))), password...)
		if err := exchange(ask, 2); err != nil {
			return err
		}
		if b[1] != 0 {
			return &proxyError{"proxy-auth", "user or password refused"}
		}
	case b[1] != 0:
		return &proxyError{"proxy-auth", "it demands a way of logging in that we do not have set up"}
	}
	ask := []byte{5, 1, 0}
	if ip := net.ParseIP(host); ip == nil {
		ask = append(append(ask, 3, byte(len(host))), host...)
	} else if ip4 := ip.To4(); ip4 != nil {
		ask = append(append(ask, 1), ip4...)
	} else {
		ask = append(append(ask, 4), ip...)
	}
	if err := exchange(append(ask, byte(port>>8), byte(port)), 4); err != nil {
		return err
	}
	if b[1] != 0 {
		words := []string{"", "general failure", "not allowed by its rules", "network unreachable", "host unreachable",
			"connection refused", "time to live expired", "command not supported", "address type not supported"}
		said := fmt.Sprintf("code %d", b[1])
		if int(b[1]) < len(words) {
			said = words[b[1]]
		}
		return &proxyError{"proxy-refused", said}
	}
	rest := 0 // the address it speaks from, which nobody needs
	switch b[3] {
	case 1:
		rest = net.IPv4len
	case 4:
		rest = net.IPv6len
	case 3:
		if _, err := io.ReadFull(c, b[:1]); err != nil {
			return err
		}
		rest = int(b[0])
	}
	_, err = io.ReadFull(c, b[:rest+2])
	return err
}
