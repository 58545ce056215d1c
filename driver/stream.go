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
	"unsafe"
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

// tcpStream is a stream over a TCP connection. Its calls to the kernel never
// block, so the scheduler is not told of them: telling it wakes one more
// thread for each request. A deadline is moved only when it must be.
type tcpStream struct {
	c       *net.TCPConn
	raw     syscall.RawConn
	until   time.Time // the read deadline that is set
	p       []byte    // of the call under way
	n       int
	errno   syscall.Errno
	receive func(fd uintptr) bool // fills p; false when nothing is there
	look    func(fd uintptr)      // likewise
	send    func(fd uintptr)      // writes what fits of p
	closed  atomic.Bool
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
	c := conn.(*net.TCPConn)
	raw, err := c.SyscallConn()
	if err != nil {
		c.Close()
		return nil, dialError(addr, err, time.Since(began))
	}
	return newTCPStream(c, raw), nil
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

func newTCPStream(c *net.TCPConn, raw syscall.RawConn) *tcpStream {
	s := &tcpStream{c: c, raw: raw}
	s.receive = func(fd uintptr) bool {
		s.n, s.errno = rawCall(syscall.SYS_READ, fd, s.p)
		return s.errno != syscall.EAGAIN
	}
	s.look = func(fd uintptr) { s.receive(fd) }
	s.send = func(fd uintptr) { s.n, s.errno = rawCall(syscall.SYS_WRITE, fd, s.p) }
	return s
}

// rawCall reads or writes on a descriptor that does not block.
func rawCall(trap, fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch {
		case errno == syscall.EINTR:
		case errno != 0:
			return 0, errno
		default:
			return int(n), 0
		}
	}
}

func (s *tcpStream) WriteAll(p []byte, deadline time.Time) error {
	if s.closed.Load() {
		return ErrGone
	}
	s.p = p
	if err := s.raw.Control(s.send); err != nil {
		return netFailure(err)
	}
	if s.n == len(p) {
		return nil
	}
	if s.errno != 0 && s.errno != syscall.EAGAIN {
		return netFailure(s.errno)
	}
	s.c.SetWriteDeadline(deadline)
	_, err := s.c.Write(p[s.n:])
	return netFailure(err)
}

func (s *tcpStream) ReadSome(p []byte, deadline time.Time) (int, error) {
	for s.p = p; ; {
		if s.closed.Load() {
			return 0, ErrGone
		}
		now := time.Now()
		wait := deadline.Sub(now)
		if wait <= 0 { // what the kernel already holds; raw.Read would not even look
			return s.received(s.raw.Control(s.look))
		}
		if s.until.After(deadline) || s.until.Sub(now) < wait/2 {
			s.c.SetReadDeadline(deadline)
			s.until = deadline
		}
		err := s.raw.Read(s.receive)
		if s.until.Before(deadline) && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		return s.received(err)
	}
}

func (s *tcpStream) received(err error) (int, error) {
	switch {
	case err != nil:
		return 0, netFailure(err)
	case s.errno == syscall.EAGAIN:
		return 0, ErrTimeout
	case s.errno != 0:
		return 0, netFailure(s.errno)
	case s.n == 0:
		return 0, netFailure(io.EOF)
	}
	return s.n, nil
}

// netFailure maps an error of a connection.
func netFailure(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
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
