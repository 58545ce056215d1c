package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"tidegate/internal/tcp"
)

// stream is the bytes of a line: a serial port or a connection. One
// goroutine at a time reads and writes; Close may come from any.
type stream interface {
	// WriteAll writes all of p. If it cannot before the deadline it returns
	// ErrTimeout; if the other side is gone, an error that wraps ErrGone.
	WriteAll(p []byte, deadline time.Time) error
	// ReadSome waits for bytes until the deadline and returns at least one,
	// or an error: ErrTimeout, or one that wraps ErrGone. It never returns
	// (0, nil). A deadline that has passed fetches what is already there.
	ReadSome(p []byte, deadline time.Time) (int, error)
	// Alive says without traffic whether the port is still the one that was
	// opened. For connections it always is.
	Alive() error
	// Close frees the file descriptor. Later calls return ErrGone.
	Close() error
}

// asker is a stream that spares a call to the kernel when it writes a request
// and waits for the answer in one.
type asker interface {
	// Ask is WriteAll and ReadSome. What had come before it was called may be
	// seen only with the answer, or at the deadline.
	Ask(request, p []byte, deadline time.Time) (int, error)
}

// tcpStream is a stream over a TCP connection. A deadline is moved only when
// it must be.
type tcpStream struct {
	c      *tcp.Conn
	until  time.Time // the read deadline that is set
	closed atomic.Bool
}

// keepAlive lets the kernel notice a dead peer after about 30 s of silence.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// dialTCP connects within the timeout. Errors are *Error with the code
// conn-refused, conn-timeout, dns or conn-failed.
func dialTCP(ctx context.Context, addr string, timeout time.Duration) (stream, error) {
	began := time.Now()
	d := net.Dialer{Timeout: timeout, KeepAliveConfig: keepAlive}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, dialError(addr, err, time.Since(began))
	}
	c, err := tcp.New(conn.(*net.TCPConn))
	if err != nil {
		conn.Close()
		return nil, dialError(addr, err, time.Since(began))
	}
	return &tcpStream{c: c}, nil
}

func dialError(addr string, err error, took time.Duration) *Error {
	e := &Error{Op: "connect", Code: "conn-failed", What: "no TCP connection to " + addr, Err: fmt.Errorf("%w: %w", ErrGone, err)}
	var dns *net.DNSError
	var nerr net.Error
	ms := took.Round(time.Millisecond)
	switch {
	case errors.As(err, &dns):
		e.Code = "dns"
		e.What = fmt.Sprintf("the name %s cannot be resolved", dns.Name)
		e.Seen = dns.Err
		e.Try = "write the address instead of the name, or check the gateway's DNS"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Code = "conn-refused"
		e.Err = fmt.Errorf("%w: %w", ErrGone, ErrRefused)
		e.Seen = fmt.Sprintf("refused after %v: the host is up, nothing listens on this port", ms)
		e.Likely = "another port number, Modbus TCP switched off in the device, or the device is starting"
	case errors.Is(err, context.Canceled):
		e.Code = "closed"
	case errors.As(err, &nerr) && nerr.Timeout():
		e.Code = "conn-timeout"
		e.Seen = fmt.Sprintf("no answer and no refusal within %v (packets vanish)", ms)
		e.Likely = "no power, wrong address, cable, or a firewall"
	default:
		e.Seen = err.Error()
	}
	return e
}

func (s *tcpStream) WriteAll(p []byte, deadline time.Time) error {
	if s.closed.Load() {
		return ErrGone
	}
	n, err := s.c.Offer(p)
	if n == len(p) || err != nil {
		return netFailure(err)
	}
	s.c.SetWriteDeadline(deadline)
	_, err = s.c.Write(p[n:])
	return netFailure(err)
}

func (s *tcpStream) Ask(request, p []byte, deadline time.Time) (int, error) {
	if s.closed.Load() {
		return 0, ErrGone
	}
	s.bound(deadline)
	sent, n, err := s.c.Ask(request, p)
	if late := errors.Is(err, os.ErrDeadlineExceeded); err != nil && !late || n > 0 {
		return n, netFailure(err)
	}
	if sent < len(request) {
		if err := s.WriteAll(request[sent:], deadline); err != nil {
			return 0, halved(err)
		}
	}
	return s.ReadSome(p, deadline)
}

// bound moves the read deadline if it is far from this one; false: this one has passed.
func (s *tcpStream) bound(deadline time.Time) bool {
	now := time.Now()
	wait := deadline.Sub(now)
	if wait > 0 && (s.until.After(deadline) || s.until.Sub(now) < wait/2) {
		s.c.SetReadDeadline(deadline)
		s.until = deadline
	}
	return wait > 0
}

func (s *tcpStream) ReadSome(p []byte, deadline time.Time) (int, error) {
	for {
		if s.closed.Load() {
			return 0, ErrGone
		}
		if !s.bound(deadline) { // what the kernel already holds; Read would not even look
			n, err := s.c.Look(p)
			if n == 0 && err == nil {
				err = ErrTimeout
			}
			return n, netFailure(err)
		}
		n, err := s.c.Read(p)
		if s.until.Before(deadline) && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		return n, netFailure(err)
	}
}

// netFailure maps an error of a connection.
func netFailure(err error) error {
	switch {
	case err == nil:
		return nil
	case err == ErrTimeout || errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the other side closed the connection", ErrGone)
	}
	return fmt.Errorf("%w: %w", ErrGone, err)
}

func (s *tcpStream) Alive() error { return nil }

func (s *tcpStream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.c.Close()
}
