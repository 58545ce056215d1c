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

	// of an Ask, guarded by in.mu
	question []byte                // to be written before the wait
	left     int                   // of it
	refused  syscall.Errno         // when it was written
	asked    func(fd uintptr) bool // like call.ready
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
	s.asked = s.put
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
	return c.came(err)
}

// came is what a read has come to; the caller holds in.mu.
func (c *Conn) came(err error) (n int, _ error) {
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

// Ask writes p and then waits for bytes until the read deadline, as Read does.
// It waits first and reads then: a Read behind a Write finds nothing there yet
// and has called the kernel in vain. What had come before, the end of the
// connection too, is seen only with what comes behind p. sent is less than
// len(p) if the kernel has no room for all; then nothing was waited for.
func (c *Conn) Ask(p, answer []byte) (sent, n int, err error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.question, c.left, c.refused = p, len(p), 0
	c.in.p = answer
	err = c.raw.Read(c.asked)
	c.question = nil
	sent = len(p) - c.left
	if err == nil && c.left > 0 {
		return sent, 0, c.refusal(c.refused)
	}
	n, err = c.came(err)
	return sent, n, err
}

// put writes the question when it is called first, then reads. The runtime has
// forgotten by then what the connection was ready for, and only what is written
// after that can be answered: so no answer comes unnoticed.
func (c *Conn) put(fd uintptr) bool {
	if c.question == nil {
		return c.in.ready(fd)
	}
	c.out.mu.Lock()
	c.out.p = c.question
	c.out.do(fd)
	c.left -= c.out.n
	c.refused = c.out.errno
	c.out.p, c.question = nil, nil
	c.out.mu.Unlock()
	return c.left > 0
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
	if err != nil {
		return 0, c.failed("write", err)
	}
	return c.out.n, c.refusal(c.out.errno)
}

// refusal is the error of a write; that there is no room is none.
func (c *Conn) refusal(errno syscall.Errno) error {
	if errno == 0 || errno == syscall.EAGAIN {
		return nil
	}
	return c.failed("write", os.NewSyscallError("write", errno))
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
