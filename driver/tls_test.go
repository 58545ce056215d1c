package driver

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
	"tidegate/internal/telemetry"
)

// pki writes an authority, a server's and a client's certificate.
func pki(t *testing.T, names ...string) (ca *sim.CA, dir string) {
	t.Helper()
	ca, err := sim.NewCA("plant")
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := errors.Join(ca.WriteIdentity(dir, "gateway"), ca.WriteServer(dir, names...)); err != nil {
		t.Fatal(err)
	}
	return ca, dir
}

func clientFiles(dir string) *TLS {
	return &TLS{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "client.crt"), Key: filepath.Join(dir, "client.key")}
}

func tlsLine(t *testing.T, addr string, files *TLS) *Line {
	t.Helper()
	return open(t, Options{Name: "plant", Connect: "tls://" + addr, Timeout: 5 * time.Second, TLS: files,
		Devices: []Device{{Name: "d", Unit: 17, Every: 50 * time.Millisecond, Map: custom(t, 4)}}})
}

// TestPeerPymodbusTLS reads all tables of a pymodbus server over mutual TLS.
func TestPeerPymodbusTLS(t *testing.T) {
	t.Parallel()
	_, dir := pki(t, "127.0.0.1")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	peer(t, "/usr/bin/python3", "testdata/peer/pymodbus_tls.py", strconv.Itoa(port),
		filepath.Join(dir, "ca.crt"), filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	until(t, 10*time.Second, "pymodbus listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	l := tlsLine(t, addr, clientFiles(dir))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for tab := profile.Coils; tab <= profile.Input; tab++ {
		for _, count := range []uint16{1, 2, 60, 125} {
			r, err := l.Exchange(ctx, 17, tab, 13, count)
			if err != nil || string(r.Data) != string(peerBytes(tab, 13, count)) {
				t.Errorf("%v 13+%d: % x, %v", tab, count, r.Data, err)
			}
		}
	}
	if _, err := l.Exchange(ctx, 17, profile.Holding, 1000, 1); !errors.Is(err, Exception(2)) {
		t.Errorf("an address that is not there: %v", err)
	}
}

// TestTLSRefusals: a certificate that proves nothing opens no line, on either
// side, and each reason has its code; nothing was ever asked.
func TestTLSRefusals(t *testing.T) {
	t.Parallel()
	ca, dir := pki(t, "127.0.0.1")
	_, other := pki(t, "plc.local")
	serve := func(conf *tls.Config) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := newSlave(kindTCP, 1)
		s.listen(t, tls.NewListener(ln, conf))
		t.Cleanup(func() {
			if n := s.last.Load(); n > 0 {
				t.Errorf("%d requests reached a device that was not proven", n)
			}
		})
		return ln.Addr().String()
	}
	conf, err := ca.ServerConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
	elsewhere, err := ca.ServerConfig("plc.local")
	if err != nil {
		t.Fatal(err)
	}
	mixed := clientFiles(other)
	mixed.CA = filepath.Join(dir, "ca.crt")
	missing := clientFiles(dir)
	missing.Key = filepath.Join(dir, "none.key")
	plain := newSlave(kindTCP, 1)
	for _, c := range []struct {
		name, addr, code string
		files            *TLS
	}{
		{"unknown authority", serve(conf), "tls-unknown-ca", clientFiles(other)},
		{"our certificate is not accepted", serve(conf), "tls-refused", mixed},
		{"another name", serve(elsewhere), "tls-name", clientFiles(dir)},
		{"no TLS there", plain.onTCP(t), "tls-failed", clientFiles(dir)},
		{"a file is missing", serve(conf), "cert-file", missing},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := tlsLine(t, c.addr, c.files)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			_, err := l.Exchange(ctx, 17, profile.Holding, 0, 1)
			var e *Error
			if !errors.As(err, &e) || e.Code != c.code || !errors.Is(err, ErrGone) {
				t.Errorf("got %v, want code %s", err, c.code)
			} else {
				t.Log(e, "|", e.Hint())
			}
		})
	}
}

// TestTLSRuns polls over TLS through faults, with renewed certificates: no
// wrong value, and the line comes back.
func TestTLSRuns(t *testing.T) {
	t.Parallel()
	ca, dir := pki(t, "127.0.0.1")
	conf, err := ca.ServerConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, ca.Pool()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSlave(kindTCP, 1)
	s.plan = func(n int, _ byte, _ uint16) fault {
		switch n % 12 {
		case 3:
			return fault{name: "split", pieces: 5, split: 3 * time.Millisecond}
		case 7:
			return fault{name: "late", delay: 800 * time.Millisecond}
		case 11:
			return fault{name: "short", short: true}
		}
		return fault{}
	}
	s.listen(t, tls.NewListener(ln, conf))
	l := open(t, Options{Name: "plant", Connect: "tls://" + ln.Addr().String(), Timeout: 500 * time.Millisecond, TLS: clientFiles(dir),
		Devices: []Device{{Name: "d", Unit: 17, Every: 50 * time.Millisecond, Map: custom(t, 1)}}})
	var c tally
	for i := range 60 {
		if i == 30 { // renewed while the line is open
			if err := ca.WriteIdentity(dir, "gateway-2"); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
		c.read(t, l, s, byte(1+i%3), profile.Holding, uint16(i*8), 3)
	}
	t.Logf("%d good, %d wrong, %v, opened %d times", c.good, c.wrong, c.errs, l.Stats().Opened)
	if c.wrong > 0 || c.good < 40 || s.count("late") == 0 || s.count("split") == 0 || s.count("short") == 0 || l.Stats().Opened < 2 {
		t.Errorf("%d good, %d wrong, %v, faults %v", c.good, c.wrong, c.errs, s.fired)
	}
	var got sink
	stop := run(t, l, got.emit)
	until(t, 5*time.Second, "polling", func() bool { return got.count(0, telemetry.Good, 0) > 3 })
	stop()
}
