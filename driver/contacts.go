package driver

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The input lines of a serial port as bits, in the order of the frames of
// modem-lines.
const (
	lineCTS = 1 << iota
	lineDSR
	lineRI
	lineDCD
)

// lineStream is a stream whose modem lines can be seen.
type lineStream interface {
	// Lines returns the input lines that are on, as bits. The error is
	// ErrNoLines, or wraps ErrGone.
	Lines() (byte, error)
}

// Lines asks the port for its input lines.
func (s *portStream) Lines() (byte, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed {
		return 0, ErrGone
	}
	b, err := s.port.GetModemStatusBits()
	if err != nil {
		return 0, linesError(err)
	}
	var out byte
	for bit, on := range map[byte]bool{lineCTS: b.CTS, lineDSR: b.DSR, lineRI: b.RI, lineDCD: b.DCD} {
		if on {
			out |= bit
		}
	}
	return out, nil
}

// linesError tells a port that has no modem lines from one that is gone.
func linesError(err error) error {
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return ErrNoLines
	}
	return fmt.Errorf("%w: %w", ErrGone, err)
}

// contacts is the dialogue of the input lines: they are looked at, and told
// when one has changed for long enough, and at the heartbeat.
type contacts struct {
	debounce time.Duration
	known    bool
	stable   byte
	since    [4]time.Time // when a line began to differ; zero: it does not
	told     time.Time
}

func newContacts(d *device) *contacts { return &contacts{debounce: d.opt.Map.Frames.Debounce} }

// reset makes the next look count at once.
func (k *contacts) reset() { k.known = false }

func (k *contacts) poll(c *call) (time.Duration, error) {
	st, ok := c.line.wire.st.(lineStream)
	if !ok {
		return 0, ErrNoLines
	}
	now, err := st.Lines()
	if err != nil {
		return 0, err
	}
	if k.look(now, time.Now()) {
		c.emitFrame([]byte{k.stable})
	}
	return 0, nil
}

// look takes what the lines are and says whether that is to be told.
func (k *contacts) look(lines byte, now time.Time) bool {
	changed := !k.known
	if !k.known {
		k.known, k.stable, k.since = true, lines, [4]time.Time{}
	}
	for i := range k.since {
		bit := byte(1) << i
		switch {
		case (lines^k.stable)&bit == 0:
			k.since[i] = time.Time{}
			continue
		case k.since[i].IsZero():
			k.since[i] = now
		}
		if now.Sub(k.since[i]) >= k.debounce {
			k.stable ^= bit
			k.since[i] = time.Time{}
			changed = true
		}
	}
	if changed || now.Sub(k.told) >= heartbeat {
		k.told = now
		return true
	}
	return false
}

// outputs sets the lines that supply a head or ask a P1 port to send: high,
// low, or "" for as they are, which is high.
func (s *portStream) outputs(dtr, rts string) error {
	for _, o := range []struct {
		name, level string
		set         func(bool) error
	}{{"DTR", dtr, s.port.SetDTR}, {"RTS", rts, s.port.SetRTS}} {
		if o.level == "" {
			continue
		}
		if err := o.set(o.level == "high"); err != nil {
			return &Error{Op: "open", Code: "no-modem-lines", What: fmt.Sprintf("%s of %s cannot be set", o.name, s.path),
				Seen: err.Error(), Likely: "a pseudo terminal, or an adapter without modem lines",
				Try: "remove dtr and rts from the bus", Err: fmt.Errorf("%w: %w", ErrGone, linesError(err))}
		}
	}
	return nil
}
