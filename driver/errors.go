package driver

import (
	"errors"
	"fmt"
	"strings"

	"tidegate/internal/telemetry"
)

// The kinds of failure. Errors of this package wrap one of them.
var (
	ErrTimeout    = errors.New("no answer in time")
	ErrShort      = errors.New("the answer broke off")
	ErrCRC        = errors.New("the answer is damaged")
	ErrMismatch   = errors.New("answers came, but none to this request")
	ErrEcho       = errors.New("only our own bytes came back")
	ErrResync     = errors.New("thrown away: it might have been a late answer")
	ErrGone       = errors.New("the port or connection is gone")
	ErrNoPort     = errors.New("the port is not there")
	ErrPermission = errors.New("no permission to open the port")
	ErrBusy       = errors.New("the port is in use")
	ErrNotSerial  = errors.New("this is no serial port")
	ErrRefused    = errors.New("connection refused")
	ErrUntrusted  = errors.New("the device does not accept our certificate")
	ErrAbsent     = errors.New("the unit has not answered for a while and is only probed now and then")
	ErrNoLines    = errors.New("this port has no modem lines")
	ErrClosed     = errors.New("the line is closed")
	ErrRequest    = errors.New("this cannot be asked")
)

// Exception is a refusal by the device: the code of a Modbus exception answer.
type Exception uint8

var exceptionNames = [...]string{1: "illegal function", 2: "illegal data address", 3: "illegal data value",
	4: "device failure", 5: "acknowledged, still at work", 6: "device busy", 7: "negative acknowledge",
	8: "memory parity error", 10: "gateway path unavailable", 11: "gateway target does not answer"}

// Error returns the name of the code, such as `exception 2 (illegal data address)`.
func (e Exception) Error() string {
	name := "unknown"
	if int(e) < len(exceptionNames) && exceptionNames[e] != "" {
		name = exceptionNames[e]
	}
	return fmt.Sprintf("exception %d (%s)", uint8(e), name)
}

// exceptionOf returns the refusal that err is, if it is one. It makes no garbage when all is well.
func exceptionOf(err error) (Exception, bool) {
	if err == nil {
		return 0, false
	}
	var x Exception
	ok := errors.As(err, &x)
	return x, ok
}

// Error says what failed and where. Code is the stable name of the failure
// (port-missing, port-permission, port-busy, not-serial, adapter-gone,
// conn-refused, conn-timeout, conn-closed, tcp-one-client, dns, cert-file,
// tls-unknown-ca, tls-name, tls-expired, tls-refused, tls-failed, rs485,
// no-modem-lines, unit-silent, bus-silent, line-settings, echo, address, exception, mismatch,
// short, resync, read-only, write-limits, write-value, read-back, no-such-name,
// closed, request). Seen holds measured facts, Likely and Try are for people; all
// three may be empty and may have several lines.
type Error struct {
	Line, Device, Op, Code string
	What                   string
	Seen, Likely, Try      string
	Err                    error
}

// Error returns what failed in one line, without hints.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Device != "" && e.Line != "":
		fmt.Fprintf(&b, "%s (%s): ", e.Device, e.Line)
	case e.Device != "" || e.Line != "":
		b.WriteString(e.Device + e.Line + ": ")
	}
	switch {
	case e.What != "":
		b.WriteString(e.What)
	case e.Err != nil:
		b.WriteString(e.Err.Error())
	default:
		b.WriteString(e.Code)
	}
	return b.String()
}

// Unwrap returns the cause: one of the sentinels, an Exception, or an error
// of the system.
func (e *Error) Unwrap() error { return e.Err }

// Hint returns the lines for the person at the cabinet: seen, likely, try;
// "" if there is nothing to say.
func (e *Error) Hint() string {
	var b strings.Builder
	for _, s := range [...]struct{ head, text string }{{"seen:   ", e.Seen}, {"likely: ", e.Likely}, {"try:    ", e.Try}} {
		if s.text == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(s.head + strings.ReplaceAll(s.text, "\n", "\n        "))
	}
	return b.String()
}

// causeOf returns the cause that readings carry for a failed poll.
func causeOf(err error) telemetry.Cause {
	var x Exception
	switch {
	case errors.As(err, &x):
		if x == 2 {
			return telemetry.CauseIllegalAddress
		}
		return telemetry.CauseException + telemetry.Cause(x)
	case errors.Is(err, ErrTimeout):
		return telemetry.CauseTimeout
	case errors.Is(err, ErrCRC):
		return telemetry.CauseCRC
	case errors.Is(err, ErrShort):
		return telemetry.CauseShort
	case errors.Is(err, ErrAbsent), errors.Is(err, ErrNoLines):
		return telemetry.CauseAbsent
	case errors.Is(err, ErrResync):
		return telemetry.CauseResync
	case errors.Is(err, ErrMismatch), errors.Is(err, ErrEcho):
		return telemetry.CauseMismatch
	}
	return telemetry.CauseGone
}
