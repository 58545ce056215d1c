package sim

import (
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// echoServer sends back what it gets and tells when a connection ends.
func echoServer(t *testing.T) (addr string, ended chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended = make(chan error, 100)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				_, err := io.Copy(c, c)
				c.Close()
				ended <- err
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String(), ended
}

func newLink(t *testing.T, target string) *Link {
	t.Helper()
	l, err := NewLink(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, l *Link) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// talk sends s and reads what comes back within d.
func talk(c net.Conn, s string, d time.Duration) (string, error) {
	if _, err := c.Write([]byte(s)); err != nil {
		return "", err
	}
	c.SetReadDeadline(time.Now().Add(d))
	b := make([]byte, len(s))
	n, err := io.ReadFull(c, b)
	return string(b[:n]), err
}

func TestLinkPasses(t *testing.T) {
	addr, ended := echoServer(t)
	l := newLink(t, addr)
	c := dial(t, l)
	if got, err := talk(c, "hello", 15*time.Second); got != "hello" {
		t.Errorf("%q %v", got, err)
	}
	// A half close travels on, and the answer still comes back.
	c.Write([]byte("bye"))
	c.(*net.TCPConn).CloseWrite()
	c.SetReadDeadline(time.Now().Add(15 * time.Second))
	if b, err := io.ReadAll(c); string(b) != "bye" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	wait(t, "the end of the connection", func() bool { return l.Stats().Open == 0 })
	if st := l.Stats(); st != (LinkStats{Up: 8, Down: 8, Connections: 1}) {
		t.Errorf("%+v", st)
	}
}

// TestLinkBlackHole: nothing arrives, nobody learns of the other's end, and
// a stream with a hole stays dead after the link is back.
func TestLinkBlackHole(t *testing.T) {
	addr, ended := echoServer(t)
	l := newLink(t, addr)
	c := dial(t, l)
	if got, err := talk(c, "hello", 15*time.Second); got != "hello" {
		t.Fatalf("%q %v", got, err)
	}
	l.BlackHole()
	if got, err := talk(c, "lost", 100*time.Millisecond); got != "" || !os.IsTimeout(err) {
		t.Errorf("in the hole: %q %v", got, err)
	}
	c2 := dial(t, l)
	if got, err := talk(c2, "lost", 100*time.Millisecond); got != "" || !os.IsTimeout(err) {
		t.Errorf("new connection in the hole: %q %v", got, err)
	}
	c.Close()
	select {
	case err := <-ended:
		t.Errorf("the server saw the end of a link that nobody cut: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := l.Pass(); err != nil {
		t.Fatal(err)
	}
	if got, err := talk(c2, "dead", 100*time.Millisecond); got != "" || !os.IsTimeout(err) {
		t.Errorf("after the hole: %q %v", got, err)
	}
	if got, err := talk(dial(t, l), "fresh", 15*time.Second); got != "fresh" {
		t.Errorf("new connection after the hole: %q %v", got, err)
	}
	wait(t, "what was swallowed", func() bool { return l.Stats().Swallowed >= 12 })
	if st := l.Stats(); st.Swallowed != 12 || st.Connections != 3 {
		t.Errorf("%+v", st)
	}
	l.Cut()
	if err := <-ended; err == nil {
		t.Error("a cut is a clean end")
	}
}

func TestLinkRefusesAndCuts(t *testing.T) {
	addr, _ := echoServer(t)
	l := newLink(t, addr)
	c := dial(t, l)
	talk(c, "x", 15*time.Second)
	l.Cut()
	if _, err := talk(c, "x", 15*time.Second); err == nil || os.IsTimeout(err) {
		t.Errorf("after a cut: %v", err)
	}
	if got, err := talk(dial(t, l), "again", 15*time.Second); got != "again" {
		t.Errorf("%q %v", got, err)
	}
	l.Refuse()
	l.Refuse()
	if c, err := net.Dial("tcp", l.Addr()); err == nil {
		c.Close()
		t.Error("connected to a link that refuses")
	}
	if err := l.Pass(); err != nil {
		t.Fatal(err)
	}
	if got, err := talk(dial(t, l), "back", 15*time.Second); got != "back" {
		t.Errorf("%q %v", got, err)
	}
}

func TestLinkHoldsDelaysAndLimits(t *testing.T) {
	addr, _ := echoServer(t)
	l := newLink(t, addr)
	c := dial(t, l)
	talk(c, "x", 15*time.Second)
	l.Hold()
	if got, err := talk(c, "held", 100*time.Millisecond); got != "" || !os.IsTimeout(err) {
		t.Errorf("held: %q %v", got, err)
	}
	l.Pass()
	if got, err := talk(c, "", 0); err != nil {
		t.Errorf("%q %v", got, err)
	}
	c.SetReadDeadline(time.Now().Add(15 * time.Second))
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "held" {
		t.Errorf("released: %q %v", b, err)
	}
	l.SetDelay(50 * time.Millisecond)
	start := time.Now()
	if got, err := talk(c, "slow", 15*time.Second); got != "slow" || time.Since(start) < 100*time.Millisecond {
		t.Errorf("%q %v after %v", got, err, time.Since(start))
	}
	l.SetDelay(0)
	l.SetRate(10_000)
	start = time.Now()
	big := string(make([]byte, 2000))
	if got, err := talk(c, big, 15*time.Second); len(got) != len(big) || time.Since(start) < 390*time.Millisecond {
		t.Errorf("%d bytes, %v after %v", len(got), err, time.Since(start))
	}
	l.Hold()
	c.Write([]byte("never"))
	done := make(chan struct{})
	go func() { l.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("Close hangs while the link holds")
	}
}
