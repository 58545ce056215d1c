package tcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// pair returns two ends of a connection, the first of them a Conn.
func pair(t *testing.T) (*Conn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(a.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); b.Close() })
	return c, b.(*net.TCPConn)
}

// TestWhole: more than the kernel takes at once arrives whole and in order.
func TestWhole(t *testing.T) {
	c, peer := pair(t)
	sent := make([]byte, 8<<20)
	for i := range sent {
		sent[i] = byte(i * 7 >> 3)
	}
	came := make(chan []byte)
	go func() {
		got, _ := io.ReadAll(peer)
		came <- got
	}()
	if n, err := c.Write(sent); n != len(sent) || err != nil {
		t.Fatalf("%d of %d, %v", n, len(sent), err)
	}
	c.CloseWrite()
	if !bytes.Equal(<-came, sent) {
		t.Error("something else arrived")
	}
}

// TestOffer: what the kernel does not take at once is not waited for, and
// Write ends at its deadline.
func TestOffer(t *testing.T) {
	c, _ := pair(t)
	total, full := 0, false
	for p := make([]byte, 64<<10); total < 64<<20 && !full; {
		n, err := c.Offer(p)
		if err != nil {
			t.Fatal(err)
		}
		total += n
		full = n < len(p)
	}
	if !full {
		t.Fatal("the kernel took everything: nothing was tried")
	}
	c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write without room: %v", err)
	}
}

// TestRead: bytes, nothing yet, the deadline, the end and a reset, each as
// net.TCPConn says it.
func TestRead(t *testing.T) {
	c, peer := pair(t)
	p := make([]byte, 16)
	if n, err := c.Look(p); n != 0 || err != nil {
		t.Errorf("a look at nothing: %d %v", n, err)
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.Read(p)
	var e *net.OpError
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &e) || e.Op != "read" || !e.Timeout() {
		t.Errorf("the deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	peer.Write([]byte("tide"))
	if n, err := c.Read(p); string(p[:n]) != "tide" || err != nil {
		t.Errorf("%q %v", p[:n], err)
	}
	peer.CloseWrite()
	if _, err := c.Read(p); err != io.EOF {
		t.Errorf("the end: %v", err)
	}

	c, peer = pair(t)
	peer.SetLinger(0)
	peer.Close()
	_, err = c.Read(p)
	if want := "read tcp " + c.LocalAddr().String() + "->" + c.RemoteAddr().String() + ": read: connection reset by peer"; !errors.Is(err, syscall.ECONNRESET) || err.Error() != want {
		t.Errorf("a reset: %v", err)
	}
	if _, err := c.Write(p); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a write after it: %v", err)
	}
	c.Close()
	if _, err := c.Read(p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection: %v", err)
	}
	if _, err := c.Write(p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write to it: %v", err)
	}
}

// TestAsk: each answer is noticed, whenever it comes and whatever came before
// it that nobody waited for.
func TestAsk(t *testing.T) {
	c, peer := pair(t)
	go func() {
		p := make([]byte, 8)
		for i := 0; ; i++ {
			if _, err := io.ReadFull(peer, p); err != nil {
				return
			}
			if i%7 == 0 {
				time.Sleep(time.Duration(i%5) * 100 * time.Microsecond)
			}
			peer.Write(p)
			if i%3 == 0 { // a stray
				time.Sleep(time.Duration(i%11) * 10 * time.Microsecond)
				peer.Write([]byte("........"))
			}
		}
	}()
	question, buf := make([]byte, 8), make([]byte, 64)
	for i := range 3_000 {
		binary.BigEndian.PutUint64(question, uint64(i)<<8|1)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		sent, n, err := c.Ask(question, buf)
		for !bytes.Contains(buf[:n], question) && err == nil {
			k := 0
			k, err = c.Read(buf[n:])
			n += k
		}
		if sent != len(question) || err != nil {
			t.Fatalf("question %d: sent %d, %q came, %v", i, sent, buf[:n], err)
		}
		if i%100 == 0 {
			time.Sleep(time.Millisecond) // the stray comes while nobody waits
		}
	}
}

// TestAskInVain: the deadline, no room, a connection that was closed by the
// other side before, and one that we closed.
func TestAskInVain(t *testing.T) {
	c, peer := pair(t)
	p, question := make([]byte, 16), []byte("?")
	peer.Write([]byte("stray"))
	time.Sleep(20 * time.Millisecond)
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if sent, n, err := c.Ask(question, p); sent != 1 || n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no answer: %d %d %v", sent, n, err)
	}
	if sent, n, err := c.Ask(question, p); sent != 0 || n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("asked when it was too late: %d %d %v", sent, n, err)
	}
	if n, err := c.Look(p); string(p[:n]) != "stray" || err != nil {
		t.Errorf("what had come before: %q %v", p[:n], err)
	}
	if n, _ := peer.Read(p); string(p[:n]) != "?" {
		t.Errorf("%q was asked", p[:n])
	}
	c.SetReadDeadline(time.Time{})
	for n := 1; n > 0; {
		n, _ = c.Offer(make([]byte, 64<<10))
	}
	if sent, n, err := c.Ask(make([]byte, 1<<20), p); sent == 1<<20 || n != 0 || err != nil {
		t.Errorf("without room: %d %d %v", sent, n, err)
	}

	c, peer = pair(t)
	peer.Close()
	time.Sleep(20 * time.Millisecond)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, n, err := c.Ask(question, p); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the other side has gone: %d %v", n, err)
	}
	if sent, _, err := c.Ask(question, p); sent != 0 || !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("and again: %d %v", sent, err)
	}
	c.Close()
	if _, _, err := c.Ask(question, p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection: %v", err)
	}
}

// TestCloseWhileReading: Close ends a Read that waits.
func TestCloseWhileReading(t *testing.T) {
	c, _ := pair(t)
	ended := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond)
	c.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
