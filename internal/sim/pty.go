package sim

import (
	"fmt"
	"os"
	"strconv"
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
	return master, "/dev/pts/" + strconv.Itoa(int(number)), nil
}

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
