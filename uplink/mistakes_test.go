package uplink

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/internal/sim"
	"tidegate/internal/status"
)

var update = flag.Bool("update", false, "rewrite the expected texts")

// nameServer answers example.org and says "no such name" to all else.
// Silent, it says nothing.
func nameServer(t *testing.T, silent bool) *net.Resolver {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if silent || n < 17 {
				continue
			}
			end := 12 // of the name
			for b[end] != 0 {
				end += int(b[end]) + 1
			}
			question := b[12 : end+5]
			answer := append([]byte{b[0], b[1], 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
			if strings.Contains(string(question), "\x07example\x03org\x00") {
				answer[3] = 0x80
				if question[len(question)-3] == 1 { // A
					answer[7] = 1
					answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1)
				}
			}
			c.WriteTo(answer, from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", c.LocalAddr().String())
	}}
}

// full is an address that answers no SYN any more, like a firewall that
// drops: its queue is full.
func full(t *testing.T) string {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprint("127.0.0.1:", name.(*syscall.SockaddrInet4).Port)
	for range 4 {
		if c, err := net.DialTimeout("tcp", addr, 50*time.Millisecond); err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return addr
}

// plain removes what differs from run to run.
func plain(s string, words ...string) string {
	s = strings.NewReplacer(words...).Replace(s)
	for _, x := range []struct{ from, to string }{
		{`[0-9a-f]{2}(:[0-9a-f]{2}){7}:\.\.(:[0-9a-f]{2}){4}`, "5b:1e:..:90"},
		{`20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9:]{8}Z`, "2026-11-21 12:04:31Z"},
		{`"20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9:]{5}"`, `"2026-11-22 09:00"`},
		{`20[0-9]{2}-[0-9]{2}-[0-9]{2}([;\n]| to)`, "2026-11-22$1"},
		{`127\.0\.0\.1:[0-9]{4,}`, "127.0.0.1:8883"}, {`TCP [0-9]+`, "TCP 8883"},
		{`in [0-9]+ ms`, "in 31 ms"}, {`NTP (not )?synchronised`, "NTP not synchronised"},
		{`; no battery clock \(/dev/rtc0 missing\)`, ""},
		{`(?m)^seen: .* default route.*$`, "seen: eth0 192.0.2.7/24, default route by eth0"},
		{`server [0-9a-f.:]+ answered`, "server 10.64.0.1 answered"},
	} {
		s = regexp.MustCompile(x.from).ReplaceAllString(s, x.to)
	}
	return s
}

// TestFieldMistakes shows what an installer reads on each mistake of the
// field, word by word.
func TestFieldMistakes(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t, "Example Edge CA 2"), newAuthority(t, "Example Edge CA 1")
	sc, sk := ca.good("127.0.0.1")
	day := 24 * time.Hour
	nc, nk := ca.issue("127.0.0.1", time.Now().Add(day), time.Now().Add(9*day))
	serve := func(cert, key []byte) string {
		return "mqtts://" + tlsScript(t, listenTLS(t, cert, key, nil, nil), sim.ScriptOptions{}).Addr()
	}
	closed := listen(t)
	closed.Close()
	for _, x := range []struct {
		name   string
		step   int
		url    string
		change func(u *Uplink)
	}{
		{name: "tls-unknown-ca", step: stepTLS, url: serve(sc, sk)},
		{name: "tls-unknown-ca-chain", step: stepTLS, url: serve(join(sc, ca.pem), sk)},
		{name: "clock", step: stepTLS, url: serve(nc, nk), change: func(u *Uplink) { u.env.Built = time.Now().Add(-50 * day) }},
		{name: "dns", step: stepDNS, url: "mqtts://broker.example", change: func(u *Uplink) { u.resolver = nameServer(t, false) }},
		{name: "dns-down", step: stepDNS, url: "mqtts://broker.example", change: func(u *Uplink) { u.resolver = nameServer(t, true) }},
		{name: "port-blocked", step: stepTCP, url: "mqtts://" + full(t), change: func(u *Uplink) { u.tune.connect = 200 * time.Millisecond }},
		{name: "refused", step: stepTCP, url: "mqtts://" + closed.Addr().String()},
		{name: "tls-on-plain-port", step: stepTLS, url: "mqtts://" + newScript(t, sim.ScriptOptions{}).Addr()},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := identityDir(t, other.pem, nil, nil)
			if x.name == "clock" {
				dir = identityDir(t, ca.pem, nil, nil)
			}
			up := newUplink(t, x.url, func(o *Options) { o.Identity = dir })
			if x.change != nil {
				x.change(up)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			steps := up.Test(ctx)
			e := steps[x.step].Err
			if e == nil {
				t.Fatalf("%+v", steps)
			}
			for _, s := range steps[x.step+1:] {
				if s.State != StepNot {
					t.Errorf("%s after the failure: %s", s.Name, s.State)
				}
			}
			got := ""
			for _, l := range []struct{ name, text string }{{"error", e.Brief() + " [" + e.Code + "]"}, {"seen", e.Seen}, {"likely", e.Likely}, {"try", e.Try}, {"note", e.Note}} {
				if l.text != "" {
					got += l.name + ": " + l.text + "\n"
				}
			}
			got = plain(got, dir, "/etc/tidegate/pki")
			file := filepath.Join("..", "testdata", "uplink", x.name+".txt")
			if *update {
				write(t, 0o644, file, []byte(got))
			}
			want, err := os.ReadFile(file)
			if err != nil || got != string(want) {
				t.Errorf("%v; got\n%s\nwant\n%s", err, got, want)
			}
			// It fits a serial console.
			f := status.Failure{Code: e.Code, What: e.Brief(), Seen: e.Seen, Likely: e.Likely, Try: e.Try, Note: e.Note}
			for line := range strings.Lines(strings.ReplaceAll(f.Text(), dir, "/etc/tidegate/pki")) {
				if len(line) > 81 {
					t.Errorf("%d columns: %s", len(line), line)
				}
			}
		})
	}
}
