package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/status"
)

// isPort says whether a word is a path and nothing else: the name of a device
// or a point does not begin so.
func isPort(s string) bool {
	return (strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../")) && !isFile(s)
}

// address recognises a raw address: rtu:/dev/ttyUSB0, tcp:HOST:PORT, the
// connect strings of the configuration, an IP address, which is Modbus TCP, and
// the path of a port, which is Modbus RTU.
func address(s string) (connect string, ok bool) {
	if isPort(s) {
		port, err := filepath.Abs(s)
		return "rtu://" + port, err == nil
	}
	if at, err := netip.ParseAddrPort(s); err == nil {
		return "tcp://" + at.String(), true
	}
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		if s = ip.String(); ip.Is6() {
			s = "[" + s + "]"
		}
		return "tcp://" + s, true
	}
	scheme, rest, found := strings.Cut(s, ":")
	if !found {
		return "", false
	}
	switch scheme {
	case "rtu", "ascii", "tcp", "tls", "rtu+tcp", "serial", "serial+tcp":
		if strings.HasPrefix(rest, "//") {
			return s, true
		}
		if strings.ContainsAny(rest, "/:.") {
			if scheme == "rtu" || scheme == "ascii" || scheme == "serial" { // a port may be named from here
				if port, err := filepath.Abs(rest); err == nil {
					rest = port
				}
			}
			return scheme + "://" + rest, true
		}
	}
	return "", false
}

// samePlace says whether two connect strings mean the same port or endpoint,
// whatever the port is called.
func samePlace(a, b string) bool {
	place := func(s string) string {
		scheme, rest, _ := strings.Cut(s, "://")
		if strings.HasPrefix(rest, "/") {
			if real, err := filepath.EvalSymlinks(rest); err == nil {
				return real
			}
			return rest
		}
		if port := map[string]string{"tcp": ":502", "tls": ":802"}[scheme]; !strings.Contains(rest[strings.LastIndex(rest, "]")+1:], ":") {
			rest += port
		}
		return rest
	}
	return place(a) == place(b)
}

// busOf returns the bus of the running agent that is at the address connect, or
// has the name if connect is "": one master is enough, whatever the port is
// called. It is "" if there is none, or no agent; any other reason why the agent
// cannot be asked is an error.
func (a *app) busOf(ctx context.Context, name, connect string) (bus string, err error) {
	s, err := a.client().Status(ctx)
	if err != nil && !errors.Is(err, status.ErrNoAgent) {
		return "", err
	}
	for _, b := range s.Buses {
		if connect == "" && b.Name == name || connect != "" && samePlace(b.Connect, connect) {
			return b.Name, nil
		}
	}
	return "", nil
}

// openAddress is a line to an address that is in no configuration.
func openAddress(connect string, unit, baud int, mode string, timeout time.Duration, files *driver.TLS) (*driver.Line, error) {
	zero := 0
	m, issues := profile.Custom("register", []profile.Point{{Name: "value", Holding: &zero}}, nil)
	if len(issues) > 0 {
		return nil, errors.New(issues[0].Msg)
	}
	m.Unit = unit // whatever it is: some devices answer to 254
	o := driver.Options{Name: strings.Replace(connect, "://", ":", 1), Connect: connect, Timeout: timeout,
		Devices: []driver.Device{{Name: fmt.Sprintf("unit-%d", unit), Unit: max(unit, 1), Points: m.Points, Map: m}}}
	switch scheme, _, _ := strings.Cut(connect, ":"); scheme {
	case "tcp", "rtu+tcp":
	case "tls":
		if files.CA == "" || files.Cert == "" || files.Key == "" {
			return nil, usage{errors.New("a device on tls: wants certificates of both sides: --tls-ca, --tls-cert and --tls-key")}
		}
		o.TLS = files
	default:
		o.Line = fmt.Sprintf("%d %s", baud, strings.ToUpper(mode))
	}
	var bad error
	o.Validate(func(_, msg, _ string) {
		if bad == nil {
			bad = usage{errors.New(msg)}
		}
	})
	if bad != nil {
		return nil, bad
	}
	return driver.Open(o, driver.Env{})
}

// tlsFlags are the files for a tls: address, as tls: has them in the
// configuration.
func tlsFlags(c *cobra.Command, t *driver.TLS) {
	c.Flags().StringVar(&t.CA, "tls-ca", "", "of a tls: address: PEM `FILE` with the authority of the device")
	c.Flags().StringVar(&t.Cert, "tls-cert", "", "PEM `FILE` with the certificate that is shown to it")
	c.Flags().StringVar(&t.Key, "tls-key", "", "PEM `FILE` with the key of that")
	c.Flags().StringVar(&t.ServerName, "tls-name", "", "`NAME` in the device's certificate (default: the host)")
}
