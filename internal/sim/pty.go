package sim

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// OpenPTY makes a pseudo terminal in raw mode: a serial line without a cable.
// The instrument holds master, the program under test opens slavePath.
// Closing master is pulling the adapter.
func OpenPTY() (master *os.File, slavePath string, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, "", fmt.Errorf("sim: open a pty: %w", err)
	}
	defer func() {
		if err != nil {
			master.Close()
			master = nil
		}
	}()
	var number, unlock int32
	if err = ioctl(master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock)); err != nil {
		return nil, "", fmt.Errorf("sim: unlock the pty: %w", err)
	}
	if err = ioctl(master, syscall.TIOCGPTN, unsafe.Pointer(&number)); err != nil {
		return nil, "", fmt.Errorf("sim: number of the pty: %w", err)
	}
	// On Linux the settings of a pair are set from either end.
	var t syscall.Termios
	if err = ioctl(master, syscall.TCGETS, unsafe.Pointer(&t)); err != nil {
		return nil, "", fmt.Errorf("sim: settings of the pty: %w", err)
	}
	t.Iflag &^= syscall.IGNBRK | syscall.BRKINT | syscall.PARMRK | syscall.ISTRIP |
		syscall.INLCR | syscall.IGNCR | syscall.ICRNL | syscall.IXON
	t.Oflag &^= syscall.OPOST
	t.Lflag &^= syscall.ECHO | syscall.ECHONL | syscall.ICANON | syscall.ISIG | syscall.IEXTEN
	t.Cflag = t.Cflag&^(syscall.CSIZE|syscall.PARENB) | syscall.CS8
	t.Cc[syscall.VMIN], t.Cc[syscall.VTIME] = 1, 0
	if err = ioctl(master, syscall.TCSETS, unsafe.Pointer(&t)); err != nil {
		return nil, "", fmt.Errorf("sim: raw mode of the pty: %w", err)
	}
	slavePath = ptyPath(number)
	// Until it has been open once, the kernel does not tell that nobody has
	// it open, and a writer could not know that its bytes are lost.
	once, err := os.OpenFile(slavePath, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, "", fmt.Errorf("sim: open the pty: %w", err)
	}
	once.Close()
	return master, slavePath, nil
}

// OpenPort opens a serial port, or one end of a pair of ptys, in raw mode at a
// line setting such as 9600 8E1.
func OpenPort(path, setting string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var t syscall.Termios
	if err := ioctl(f, syscall.TCGETS, unsafe.Pointer(&t)); err != nil {
		f.Close()
		return nil, fmt.Errorf("sim: %s is no serial port: %w", path, err)
	}
	baud, format, _ := strings.Cut(setting, " ")
	n, err := strconv.Atoi(baud)
	code := uint32(0)
	for c, b := range speeds {
		if b == n {
			code = c
		}
	}
	if err != nil || code == 0 || len(format) != 3 || format[0] != '8' && format[0] != '7' {
		f.Close()
		return nil, fmt.Errorf("sim: %q is no line setting such as 9600 8E1", setting)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^(cbaud|syscall.CSIZE|syscall.PARENB|syscall.PARODD|syscall.CSTOPB) | syscall.CREAD | syscall.CLOCAL
	t.Cflag |= code
	if format[0] == '7' {
		t.Cflag |= syscall.CS7
	} else {
		t.Cflag |= syscall.CS8
	}
	switch format[1] {
	case 'E':
		t.Cflag |= syscall.PARENB
	case 'O':
		t.Cflag |= syscall.PARENB | syscall.PARODD
	}
	if format[2] == '2' {
		t.Cflag |= syscall.CSTOPB
	}
	t.Cc[syscall.VMIN], t.Cc[syscall.VTIME] = 1, 0
	if err := ioctl(f, syscall.TCSETS, unsafe.Pointer(&t)); err != nil {
		f.Close()
		return nil, fmt.Errorf("sim: settings of %s: %w", path, err)
	}
	return f, nil
}

// speeds are the codes of the usual speeds.
var speeds = map[uint32]int{syscall.B300: 300, syscall.B600: 600, syscall.B1200: 1200, syscall.B2400: 2400,
	syscall.B4800: 4800, syscall.B9600: 9600, syscall.B19200: 19200, syscall.B38400: 38400,
	syscall.B57600: 57600, syscall.B115200: 115200}

// cbaud masks the speed in the control flags of a terminal.
const cbaud = 0x100F

// ptySetting returns the setting that the other end of a pty has chosen, such
// as 9600 8E1; "" if it cannot be told. A pty keeps no parity bit, but the
// wish to check parity and its sense.
func ptySetting(master *os.File) string {
	var t syscall.Termios
	if ioctl(master, syscall.TCGETS, unsafe.Pointer(&t)) != nil {
		return ""
	}
	baud := speeds[uint32(t.Cflag)&cbaud]
	if baud == 0 {
		return ""
	}
	parity, stop := "N", 1
	switch {
	case t.Iflag&syscall.INPCK == 0 && t.Cflag&syscall.PARENB == 0:
	case t.Cflag&syscall.PARODD != 0:
		parity = "O"
	default:
		parity = "E"
	}
	if t.Cflag&syscall.CSTOPB != 0 {
		stop = 2
	}
	return strconv.Itoa(baud) + " 8" + parity + strconv.Itoa(stop)
}

// mouth writes to a line. What is written to a pty that nobody has open is
// lost, as on a real line; the kernel would store it up.
type mouth struct {
	w    io.Writer
	lost bool
}

func (m *mouth) Write(b []byte) (int, error) {
	if f, ok := m.w.(*os.File); ok && hungUp(f) {
		m.lost = true
		return len(b), nil
	}
	return m.w.Write(b)
}

// hungUp tells whether f is the master of a pty that nobody has open.
func hungUp(f *os.File) bool {
	type pollfd struct {
		fd              int32
		events, revents int16
	}
	const pollHup = 0x10
	c, err := f.SyscallConn()
	if err != nil {
		return false
	}
	p := pollfd{}
	var now syscall.Timespec
	err = c.Control(func(fd uintptr) {
		p.fd = int32(fd)
		syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	})
	return err == nil && p.revents&pollHup != 0
}

// forget throws away what was written to a pty and not read: who opens it
// next must not find old bytes. Only the other end can do that. Where it
// cannot be opened, because its last user kept it to himself and died, the
// bytes stay.
func forget(r io.Reader) {
	const tciflush = 0
	tcflsh := uintptr(0x540B)
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		tcflsh = 0x5407
	}
	f, ok := r.(*os.File)
	if !ok {
		return
	}
	var number int32
	if ioctl(f, syscall.TIOCGPTN, unsafe.Pointer(&number)) != nil {
		return
	}
	if end, err := os.OpenFile(ptyPath(number), os.O_RDWR|syscall.O_NOCTTY, 0); err == nil {
		if c, err := end.SyscallConn(); err == nil {
			// It fails only where there is nothing to flush.
			_ = c.Control(func(fd uintptr) { syscall.Syscall(syscall.SYS_IOCTL, fd, tcflsh, tciflush) })
		}
		end.Close()
	}
}

func ptyPath(number int32) string { return "/dev/pts/" + strconv.Itoa(int(number)) }

// ioctl goes through SyscallConn: Fd would take the file out of the poller,
// and a Read under way could then not be ended.
func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	if err := c.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg))
	}); err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
