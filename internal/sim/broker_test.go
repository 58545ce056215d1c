package sim

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// book collects what a broker took.
type book struct {
	mu  sync.Mutex
	got []string
}

func (b *book) add(topic string, payload []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, topic+" "+string(payload))
}

func (b *book) count(s string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.got {
		if g == s {
			n++
		}
	}
	return n
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// TestBrokerAgainstMosquitto publishes and subscribes with mosquitto's
// clients and client certificates, cuts the link, and goes on.
func TestBrokerAgainstMosquitto(t *testing.T) {
	pub, sub := need(t, "mosquitto_pub"), need(t, "mosquitto_sub")
	var got book
	b, err := NewBroker(BrokerOptions{OnPublish: got.add})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dir := t.TempDir()
	if err := b.CA().WriteIdentity(dir, "gw-1"); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "client.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("client.key: %v %v", st.Mode(), err)
	}
	_, port, _ := net.SplitHostPort(b.Addr())
	common := []string{"-h", "127.0.0.1", "-p", port, "--cafile", filepath.Join(dir, "ca.crt"), "-q", "1"}
	identity := []string{"--cert", filepath.Join(dir, "client.crt"), "--key", filepath.Join(dir, "client.key")}
	args := func(more ...string) []string {
		return append(append(append([]string{}, common...), identity...), more...)
	}

	listener := exec.Command(sub, args("-v", "-t", "tg/#", "-C", "2", "-W", "20")...)
	out := make(chan string, 1)
	go func() {
		o, err := listener.CombinedOutput()
		out <- fmt.Sprintf("%s%v", o, err)
	}()
	wait(t, "the subscriber", func() bool { open, _ := b.Connections(); return open == 1 })
	run(t, pub, args("-r", "-t", "tg/v1/s/g/status", "-m", "hello")...)
	wait(t, "the message", func() bool { return got.count("tg/v1/s/g/status hello") == 1 })
	run(t, pub, args("-t", "tg/v1/s/g/up", "-m", "one")...)
	if o := <-out; !strings.Contains(o, "tg/v1/s/g/status hello\ntg/v1/s/g/up one\n<nil>") {
		t.Errorf("the subscriber saw\n%s", o)
	}

	if o, err := exec.Command(pub, append(append([]string{}, common...), "-t", "x", "-m", "no certificate")...).CombinedOutput(); err == nil {
		t.Errorf("published without a client certificate: %s", o)
	}
	strangers := t.TempDir()
	other, err := NewCA("somebody else")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.WriteIdentity(strangers, "gw-1"); err != nil {
		t.Fatal(err)
	}
	if o, err := exec.Command(pub, append(append([]string{}, common...), "-t", "x", "-m", "no",
		"--cert", filepath.Join(strangers, "client.crt"), "--key", filepath.Join(strangers, "client.key"))...).CombinedOutput(); err == nil {
		t.Errorf("published with a stranger's certificate: %s", o)
	}

	// Cut: who is connected is thrown out, nobody comes in; Restore undoes it.
	stays := exec.Command(sub, args("-t", "tg/#", "-E")...)
	if err := stays.Start(); err != nil {
		t.Fatal(err)
	}
	stays.Wait() // -E: subscribed and gone
	addr := b.Addr()
	idle, err := tls.Dial("tcp", addr, clientConfig(t, b.CA(), tls.VersionTLS12))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	b.Cut()
	b.Cut()
	idle.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := idle.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a cut connection reads %v", err)
	}
	if o, err := exec.Command(pub, args("-t", "x", "-m", "cut")...).CombinedOutput(); err == nil {
		t.Errorf("published through a cut link: %s", o)
	}
	if err := b.Restore(); err != nil || b.Restore() != nil || b.Addr() != addr {
		t.Fatalf("restore: %v, %s", err, b.Addr())
	}
	run(t, pub, args("-t", "tg/v1/s/g/up", "-m", "two")...)
	wait(t, "the message after the cut", func() bool { return got.count("tg/v1/s/g/up two") == 1 })
	if n := b.Published(); n != 3 {
		t.Errorf("%d messages, want 3: %q", n, got.got)
	}
}

func clientConfig(t *testing.T, ca *CA, version uint16) *tls.Config {
	t.Helper()
	cert, key, err := ca.Client("test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{pair}, MinVersion: version, MaxVersion: version}
}

func TestBrokerRefusesOldTLS(t *testing.T) {
	b, err := NewBroker(BrokerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		c, err := tls.Dial("tcp", b.Addr(), clientConfig(t, b.CA(), version))
		if (err == nil) != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// TestBrokerClosesWithHalfOpenClients: a client that never says a word does
// not hold up Close.
func TestBrokerClosesWithHalfOpenClients(t *testing.T) {
	b, err := NewBroker(BrokerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wait(t, "the connection", func() bool { open, _ := b.Connections(); return open == 1 })
	done := make(chan struct{})
	go func() { b.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Close hangs")
	}
	if err := b.Restore(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", b.Addr()); err == nil {
		t.Error("a closed broker accepts")
	}
}

// TestBrokerAddressInUse: a taken port is an error that names it.
func TestBrokerAddressInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := NewBroker(BrokerOptions{Addr: ln.Addr().String()}); err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("error %v", err)
	}
}
