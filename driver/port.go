package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"
)

// lineMode is speed and character format of a serial line.
type lineMode struct {
	mode serial.Mode
	bits int // bits of one character on the wire, start and stop included
}

// parseLine reads "9600 8E1": speed 50..4000000, data bits 5..8, parity N, E,
// O, M or S, stop bits 1 or 2.
func parseLine(s string) (lineMode, error) {
	f := strings.Fields(s)
	if len(f) != 2 || len(f[1]) != 3 {
		return lineMode{}, fmt.Errorf("%q is no line setting such as 9600 8E1", s)
	}
	baud, err := strconv.Atoi(f[0])
	if err != nil || baud < 50 || baud > 4_000_000 {
		return lineMode{}, fmt.Errorf("speed %q is outside 50..4000000", f[0])
	}
	m := lineMode{mode: serial.Mode{BaudRate: baud, DataBits: int(f[1][0] - '0')}, bits: 1}
	if m.mode.DataBits < 5 || m.mode.DataBits > 8 {
		return lineMode{}, fmt.Errorf("data bits %q are not 5, 6, 7 or 8", f[1][:1])
	}
	m.bits += m.mode.DataBits + 1
	switch f[1][1] {
	case 'N', 'n':
		m.mode.Parity = serial.NoParity
		m.bits--
	case 'E', 'e':
		m.mode.Parity = serial.EvenParity
	case 'O', 'o':
		m.mode.Parity = serial.OddParity
	case 'M', 'm':
		m.mode.Parity = serial.MarkParity
	case 'S', 's':
		m.mode.Parity = serial.SpaceParity
	default:
		return lineMode{}, fmt.Errorf("parity %q is not N, E, O, M or S", f[1][1:2])
	}
	switch f[1][2] {
	case '1':
		m.mode.StopBits = serial.OneStopBit
		m.bits++
	case '2':
		m.mode.StopBits = serial.TwoStopBits
		m.bits += 2
	default:
		return lineMode{}, fmt.Errorf("stop bits %q are not 1 or 2", f[1][2:])
	}
	return m, nil
}

// char returns how long one character takes.
func (m lineMode) char() time.Duration {
	return time.Duration(m.bits) * time.Second / time.Duration(m.mode.BaudRate)
}

// silence returns the 3.5 characters that part two frames: 1.75 ms above
// 19200 baud, as the standard says.
func (m lineMode) silence() time.Duration {
	if m.mode.BaudRate > 19200 {
		return 1750 * time.Microsecond
	}
	return m.char() * 7 / 2
}

// portStream is a stream over a serial port. The library reads; writing goes
// through a second descriptor of the same port that does not block, so that
// a stuck line costs a deadline and not a goroutine. That descriptor also
// carries the lock that keeps a second process out, root included.
type portStream struct {
	path string
	port serial.Port

	// Close waits for a read and a write under way, at most until their
	// deadlines: a descriptor number that is closed may be another file's
	// the next moment.
	reading sync.Mutex
	writing sync.Mutex
	fd      int    // the second descriptor; -1 once closed
	dev     uint64 // device number of the port that was opened
	closed  bool
}

// openPort opens a serial port for this process alone. Errors are *Error
// with the code port-missing, port-permission, port-busy, not-serial, rs485 or
// port-failed.
func openPort(path string, m lineMode, rs *RS485) (_ stream, err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(path, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, openError(path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return nil, openError(path, unix.ENOTTY)
	}
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		return nil, openError(path, err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, openError(path, unix.EBUSY)
	}
	mode := m.mode // InitialStatusBits stays nil: ptys and some adapters refuse it
	port, err := serial.Open(path, &mode)
	if err != nil {
		var pe *serial.PortError
		if errors.As(err, &pe) && pe.Code() == serial.PortBusy {
			err = unix.EBUSY
		}
		return nil, openError(path, err)
	}
	if err := rs.set(fd, path); err != nil {
		port.Close()
		return nil, err
	}
	port.ResetInputBuffer() // bytes from before; ptys without it are drained before the first request
	return &portStream{path: path, port: port, fd: fd, dev: uint64(st.Rdev)}, nil
}

func (s *portStream) WriteAll(p []byte, deadline time.Time) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.closed {
		return ErrGone
	}
	for len(p) > 0 {
		n, err := unix.Write(s.fd, p)
		switch {
		case n > 0:
			p = p[n:]
		case err == unix.EINTR:
		case err == unix.EAGAIN || err == nil:
			wait := time.Until(deadline)
			if wait <= 0 {
				return fmt.Errorf("%w: the port takes no more bytes", ErrTimeout)
			}
			fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
			unix.Poll(fds, int(min(wait, 100*time.Millisecond).Milliseconds())+1)
		default:
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
	return nil
}

func (s *portStream) ReadSome(p []byte, deadline time.Time) (n int, err error) {
	// The library panics on descriptor numbers of 1024 and more.
	defer func() {
		if r := recover(); r != nil {
			n, err = 0, fmt.Errorf("%w: reading the port failed: %v", ErrGone, r)
		}
	}()
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed {
		return 0, ErrGone
	}
	s.port.SetReadTimeout(max(time.Until(deadline), 0))
	n, err = s.port.Read(p)
	switch {
	case n > 0:
		return n, nil
	case err == nil:
		return 0, ErrTimeout // the library's way to say so
	}
	var pe *serial.PortError
	if errors.As(err, &pe) && pe.Code() == serial.PortClosed {
		return 0, fmt.Errorf("%w: the port was closed or its adapter was pulled", ErrGone)
	}
	return 0, fmt.Errorf("%w: %w", ErrGone, err)
}

func (s *portStream) Alive() error {
	var st unix.Stat_t
	if err := unix.Stat(s.path, &st); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	if uint64(st.Rdev) != s.dev {
		return fmt.Errorf("%w: %s is another port now", ErrGone, s.path)
	}
	return nil
}

func (s *portStream) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.port.Close()
	unix.Flock(s.fd, unix.LOCK_UN)
	if e := unix.Close(s.fd); err == nil {
		err = e
	}
	s.fd = -1
	return err
}

func openError(path string, err error) *Error {
	e := &Error{Op: "open", Code: "port-failed", What: "cannot open " + path, Err: fmt.Errorf("%w: %w", ErrGone, err)}
	kind, likely := notSerial(path)
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENXIO) && kind == "a socket":
		e.Code = "not-serial"
		e.What = path + " is no serial port"
		e.Err = fmt.Errorf("%w: %w", ErrGone, ErrNotSerial)
		e.Seen, e.Likely = "it is "+kind+"; ports here: "+portsHere(), likely
		if e.Try = "tidegate scan lists the ports by the names that stay the same"; likely == likelyWritten {
			e.Try = "remove the file and plug the adapter in again; " + e.Try
		}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		e.Code = "port-missing"
		e.What = "serial port " + path + " is not there"
		e.Err = fmt.Errorf("%w: %w", ErrGone, ErrNoPort)
		e.Seen = "ports here: " + portsHere()
		e.Likely = "the adapter is not plugged in, or it came back under another number"
		e.Try = "use the by-id name of the adapter; it stays the same"
	case errors.Is(err, fs.ErrPermission):
		e.Code = "port-permission"
		e.What = "no permission to open " + path
		e.Err = fmt.Errorf("%w: %w", ErrGone, ErrPermission)
		e.Seen, e.Try = permissionFacts(path)
	case errors.Is(err, unix.EBUSY):
		e.Code = "port-busy"
		e.What = path + " is in use by another program"
		e.Err = fmt.Errorf("%w: %w", ErrGone, ErrBusy)
		e.Seen = portHolder(path)
		e.Try = "stop that program, or let it ask through the running agent"
	default:
		e.Seen = err.Error()
	}
	return e
}

// likelyWritten is how a file comes to the name of a port.
const likelyWritten = "a program that runs as root wrote to this name while the adapter was away"

// notSerial says what a path is that is no serial port, and how that comes.
func notSerial(path string) (kind, likely string) {
	fi, err := os.Stat(path)
	if err != nil {
		return "gone", ""
	}
	switch fi.Mode().Type() {
	case 0:
		kind, likely = fmt.Sprintf("a file of %d bytes", fi.Size()), "the name of another file"
		if strings.HasPrefix(path, "/dev/") {
			likely = likelyWritten
		}
	case fs.ModeDir:
		kind, likely = "a directory", "the name of the port is missing behind it"
	case fs.ModeNamedPipe:
		kind, likely = "a pipe", "a program that passes bytes on makes a pipe and not a pty"
	case fs.ModeSocket:
		kind, likely = "a socket", "a program that passes bytes on makes a socket and not a pty"
	case fs.ModeDevice:
		kind, likely = "a disk", "the name of another device"
	default:
		kind, likely = "a device without line settings", "the name of another device"
	}
	return kind, likely
}

// SetMode changes speed and format of the open port, after what was written
// has left it.
func (s *portStream) SetMode(m lineMode) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed {
		return ErrGone
	}
	s.port.Drain()
	mode := m.mode
	return s.port.SetMode(&mode)
}
