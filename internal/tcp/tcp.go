// Package tcp is TCP for a program that mostly waits. A call to the kernel
// on a socket never blocks here, so the scheduler of Go is not told of it:
// telling it wakes the runtime's monitor, a thread of its own, which then
// looks around for milliseconds. On an idle gateway that costs more than the
// call.
package tcp

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// Conn is a TCP connection. It keeps the promises of net.Conn: errors are
// those of net.TCPConn, deadlines hold, and its methods may be called from
// several goroutines.
type Conn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out call
}

// call is a read or a write under way.
type call struct {
	mu    sync.Mutex
	trap  uintptr
	p     []byte
	n     int
	errno syscall.Errno
	once  func(fd uintptr)
	ready func(fd uintptr) bool // false when it would have to wait
}

// New takes a connection over.
func New(c *net.TCPConn) (*Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &Conn{TCPConn: c, raw: raw}
	s.in.prepare(syscall.SYS_READ)
	s.out.prepare(syscall.SYS_WRITE)
	return s, nil
}

// prepare makes the functions of a call, so that the call makes no garbage.
func (c *call) prepare(trap uintptr) {
	c.trap = trap
	c.once = c.do
	c.ready = func(fd uintptr) bool {
		c.do(fd)
		return c.errno != syscall.EAGAIN
	}
}

func (c *call) do(fd uintptr) {
	for {
		n, _, errno := syscall.RawSyscall(c.trap, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.p))), uintptr(len(c.p)))
		if errno == syscall.EINTR {
			continue
		}
		if c.n, c.errno = int(n), errno; errno != 0 {
			c.n = 0
		}
		return
	}
}

// Read waits for bytes until the read deadline.
func (c *Conn) Read(p []byte) (int, error) { return c.read(p, true) }

// Look reads what the kernel already holds: it never waits, and n is 0 if
// there is nothing.
func (c *Conn) Look(p []byte) (int, error) { return c.read(p, false) }

func (c *Conn) read(p []byte, wait bool) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.p = p
	if wait {
		err = c.raw.Read(c.in.ready)
	} else {
		err = c.raw.Control(c.in.once)
	}
	c.in.p = nil
	switch {
	case err != nil:
		return 0, c.failed("read", err)
	case c.in.errno == syscall.EAGAIN:
		return 0, nil
	case c.in.errno != 0:
		return 0, c.failed("read", os.NewSyscallError("read", c.in.errno))
	case c.in.n == 0:
		return 0, io.EOF
	}
	return c.in.n, nil
}

// Offer writes what the kernel takes at once: it never waits, and n is less
// than len(p) if there is no room for all.
func (c *Conn) Offer(p []byte) (n int, err error) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.offer(p)
}

// offer is Offer; the caller holds out.mu.
func (c *Conn) offer(p []byte) (n int, err error) {
	c.out.p = p
	err = c.raw.Control(c.out.once)
	c.out.p = nil
	switch {
	case err != nil:
		return 0, c.failed("write", err)
	case c.out.errno != 0 && c.out.errno != syscall.EAGAIN:
		return 0, c.failed("write", os.NewSyscallError("write", c.out.errno))
	}
	return c.out.n, nil
}

// Write writes all of p, and waits for room until the write deadline.
func (c *Conn) Write(p []byte) (n int, err error) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if n, err = c.offer(p); n == len(p) || err != nil {
		return n, err
	}
	rest, err := c.TCPConn.Write(p[n:])
	return n + rest, err
}

// failed gives an error the form that net gives it.
func (c *Conn) failed(op string, err error) error {
	var e *net.OpError
	if errors.As(err, &e) {
		err = e.Err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
