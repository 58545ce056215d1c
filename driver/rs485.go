package driver

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RS485 lets the kernel switch the driver of an RS-485 port on while it
// sends. The zero values fit most boards: RTS is high while sending.
type RS485 struct {
	RTS         string        `yaml:"rts_on_send" enum:"high,low" doc:"Level of RTS while sending; high if not given."`
	DelayBefore time.Duration `yaml:"delay_before" doc:"Wait between switching to sending and the first byte (0 to 100ms, whole milliseconds)."`
	DelayAfter  time.Duration `yaml:"delay_after" doc:"Wait between the last byte and switching back (0 to 100ms, whole milliseconds)."`
	HearSelf    bool          `yaml:"rx_during_tx" doc:"Receive while sending; the echo is recognised."`
}

func (r *RS485) validate(serial bool, report func(path, msg, hint string)) {
	if r == nil {
		return
	}
	if !serial {
		report("rs485", "only a serial port of this machine has a direction to switch", "remove it")
	}
	for _, d := range [...]struct {
		key string
		d   time.Duration
	}{{"delay_before", r.DelayBefore}, {"delay_after", r.DelayAfter}} {
		if d.d < 0 || d.d > 100*time.Millisecond || d.d%time.Millisecond != 0 {
			report("rs485."+d.key, fmt.Sprintf("%v is not 0 to 100 whole milliseconds", d.d), "")
		}
	}
}

// serialRS485 is struct serial_rs485 of linux/serial.h.
type serialRS485 struct {
	flags, before, after uint32
	_                    [5]uint32
}

// The flags of struct serial_rs485.
const (
	rs485Enabled   = 1 << 0
	rs485OnSend    = 1 << 1
	rs485AfterSend = 1 << 2
	rs485Hear      = 1 << 4
)

func (r *RS485) raw() serialRS485 {
	s := serialRS485{flags: rs485Enabled | rs485OnSend, before: uint32(r.DelayBefore / time.Millisecond), after: uint32(r.DelayAfter / time.Millisecond)}
	if r.RTS == "low" {
		s.flags = rs485Enabled | rs485AfterSend
	}
	if r.HearSelf {
		s.flags |= rs485Hear
	}
	return s
}

// set switches the port, and looks whether the kernel took it: a driver may
// leave away what it cannot do.
func (r *RS485) set(fd int, path string) error {
	if r == nil {
		return nil
	}
	s := r.raw()
	err := ioctlRS485(fd, unix.TIOCSRS485, &s)
	if err == nil {
		var is serialRS485
		if err = ioctlRS485(fd, unix.TIOCGRS485, &is); err == nil && is.flags&rs485Enabled == 0 {
			err = unix.ENOTSUP
		}
	}
	if err == nil {
		return nil
	}
	return &Error{Op: "open", Code: "rs485", What: "the driver of " + path + " does not switch RS-485 directions", Err: fmt.Errorf("%w: %w", ErrGone, err),
		Seen: "TIOCSRS485: " + err.Error(), Likely: "an adapter that switches by itself, as USB adapters do",
		Try: "remove rs485: from this bus"}
}

func ioctlRS485(fd int, request uint, s *serialRS485) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(s))); errno != 0 {
		return errno
	}
	return nil
}
