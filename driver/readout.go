package driver

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidegate/driver/obis"
	"tidegate/driver/profile"
)

// readout is the dialogue of IEC 62056-21: sign on at the speed of the line,
// identification, acknowledgement, and the readout at the speed that was
// agreed. Modes A (nothing is agreed), B (the meter changes the speed by
// itself) and C. Every round begins at the speed of the line again.
type readout struct {
	dev     *device
	opt     *profile.Handshake
	scan    *profile.Scanner
	address string
	maxBaud int
	slow    int  // readouts in a row that went wrong at a higher speed
	good    int  // readouts in a row at the first speed since then
	failing bool // the last round went wrong
	ident   []byte
}

func newReadout(d *device) *readout {
	r := &readout{dev: d, opt: d.opt.Map.Handshake, scan: d.opt.Map.NewScanner(), address: d.opt.Address, maxBaud: d.opt.MaxBaud}
	if r.maxBaud == 0 {
		r.maxBaud = r.opt.MaxBaud
	}
	return r
}

// reset keeps what was learned about speeds: it belongs to head and meter.
func (r *readout) reset() {}

const (
	// byteGap is the longest pause between two characters of a message.
	byteGap = 1500 * time.Millisecond
	// readoutMost is how long a readout may take: 5 kB at 300 baud.
	readoutMost = 3 * time.Minute
	// slowAfter is how many readouts may go wrong at a higher speed before
	// the meter is asked to stay at the speed it began with.
	slowAfter = 2
	// fastAfter is how many readouts at the first speed must be right before
	// a higher one is tried again.
	fastAfter = 20
	// wokenAfter is the pause between the zero bytes that wake a meter and
	// the request.
	wokenAfter = 1600 * time.Millisecond
)

func (r *readout) poll(c *call) (time.Duration, error) {
	tries := 2
	if r.failing {
		tries = 1 // it is absent, or something is wrong for longer
	}
	var err error
	for range tries {
		if err = r.once(c); err == nil || errors.Is(err, ErrGone) || errors.Is(err, ErrClosed) || c.ctx.Err() != nil {
			break
		}
		c.line.wire.dirty = true
		if err2 := c.setMode(c.line.mode); err2 != nil {
			return 0, err2
		}
		if err2 := c.pause(byteGap); err2 != nil { // the meter gives up in that time, too
			return 0, err2
		}
	}
	r.failing = err != nil
	return 0, err
}

// once reads the meter out.
func (r *readout) once(c *call) error {
	if err := r.wake(c); err != nil {
		return err
	}
	ask := []byte("/?" + r.address + "!\r\n")
	if err := c.write(ask); err != nil {
		return err
	}
	if err := r.identify(c, ask); err != nil {
		return err
	}
	baud, agree := r.speed(c)
	if !agree {
		return r.data(c)
	}
	reaction := reaction(r.ident)
	char, base := c.char(), c.line.mode.mode.BaudRate
	sent := time.Duration(0)
	if letter := r.ident[4]; letter >= '0' && letter <= '9' { // mode C
		if err := c.pause(reaction); err != nil {
			return err
		}
		if err := c.write([]byte{0x06, '0', baudLetter(baud), '0', '\r', '\n'}); err != nil {
			return err
		}
		sent = 6 * char
	}
	if baud == base {
		err := r.data(c)
		if r.good++; err != nil {
			r.good = 0
		} else if r.slow >= slowAfter && r.good >= fastAfter {
			r.slow, r.good = slowAfter-1, 0
		}
		return err
	}
	// Not while the last character is on the wire, and before the meter begins.
	if err := c.pause(sent + reaction/2); err != nil {
		return err
	}
	fast := c.line.mode
	fast.mode.BaudRate = baud
	if err := c.setMode(fast); err != nil {
		return err
	}
	err := r.data(c)
	switch {
	case err == nil:
		r.slow = 0
	case !errors.Is(err, ErrGone):
		if r.slow++; r.slow == slowAfter {
			c.line.log.Warn("the readout fails at the speed the meter offers; it is asked to stay at the first one",
				"device", r.dev.name, "baud", baud, "stays", base, "error", err)
		}
	}
	return err
}

// reaction is the least time between two messages: 20 ms instead of 200 if
// the third letter of the maker is a small one.
func reaction(ident []byte) time.Duration {
	if x := ident[3]; x >= 'a' && x <= 'z' {
		return 20 * time.Millisecond
	}
	return 200 * time.Millisecond
}

// wake sends zero bytes for a while.
func (r *readout) wake(c *call) error {
	if r.opt.Wake == 0 {
		return nil
	}
	char := max(c.char(), time.Second/4000)
	n := int(r.opt.Wake / char)
	if err := c.write(make([]byte, n)); err != nil {
		return err
	}
	return c.pause(time.Duration(n)*char + wokenAfter)
}

// identify waits for the identification line. Our own request may come back
// before it, and noise.
func (r *readout) identify(c *call, ask []byte) error {
	var line []byte
	before, echoed := c.bytes, false
	until := time.Now().Add(c.timeout() + c.char()*time.Duration(len(ask)))
	most := until.Add(c.char()*256 + byteGap)
	for {
		b, err := r.read(c, until)
		switch {
		case errors.Is(err, ErrTimeout) && c.bytes == before:
			return ErrTimeout
		case errors.Is(err, ErrTimeout) && echoed && len(line) == 0:
			return ErrEcho
		case errors.Is(err, ErrTimeout) && bytes.IndexByte(line, '/') >= 0:
			return ErrShort
		case errors.Is(err, ErrTimeout):
			return ErrCRC // something came, and no part of it is an identification
		case err != nil:
			return err
		}
		line = append(line, b...)
		for {
			i := bytes.IndexByte(line, '\n')
			if i < 0 {
				break
			}
			text := line[:i]
			line = line[i+1:]
			if k := bytes.LastIndexByte(text, '/'); k < 0 {
				continue
			} else if text = text[k:]; len(text) > 1 && text[1] == '?' {
				echoed = true
				c.line.wire.count.Echoes++
				continue
			}
			if len(text) < 5 || !letters(text[1:4]) || bytes.ContainsFunc(text, func(x rune) bool { return x < ' ' && x != '\r' || x > '~' }) {
				return ErrCRC
			}
			r.ident = append(append(r.ident[:0], text...), '\n')
			r.ident = append(r.ident, line...) // a meter that agrees on nothing goes on at once
			return nil
		}
		if until = time.Now().Add(byteGap); until.After(most) {
			until = most
		}
	}
}

// read is c.read for waits that may be long: an end is obeyed meanwhile.
func (r *readout) read(c *call, until time.Time) ([]byte, error) {
	for {
		slice := time.Now().Add(listenSlice)
		if slice.After(until) {
			slice = until
		}
		b, err := c.read(slice)
		switch {
		case c.ctx.Err() != nil:
			return nil, c.ctx.Err()
		case c.line.isClosed():
			return nil, ErrClosed
		case !errors.Is(err, ErrTimeout) || !slice.Before(until):
			return b, err
		}
	}
}

func letters(b []byte) bool {
	for _, x := range b {
		if x|0x20 < 'a' || x|0x20 > 'z' {
			return false
		}
	}
	return true
}

// speed returns the speed of the readout, and whether one is agreed at all.
func (r *readout) speed(c *call) (baud int, agree bool) {
	base := c.line.mode.mode.BaudRate
	letter := r.ident[4]
	switch {
	case letter >= '0' && letter <= '6':
		baud = 300 << (letter - '0')
	case letter >= '7' && letter <= '9':
		return base, true // kept for later use by the standard
	case letter >= 'A' && letter <= 'F':
		return 600 << (letter - 'A'), true // the meter changes, whatever we say
	default:
		return base, false
	}
	if _, ok := c.line.wire.st.(modeStream); !ok || r.slow >= slowAfter {
		return base, true
	}
	if r.maxBaud > 0 {
		baud = min(baud, r.maxBaud)
	}
	return baud, true
}

// baudLetter is how an acknowledgement names a speed: 0 is 300 baud. A line
// that begins at a speed without a letter stays there with 0.
func baudLetter(baud int) byte {
	for z := range byte(7) {
		if 300<<z == baud {
			return '0' + z
		}
	}
	return '0'
}

// data reads the readout and emits what it says.
func (r *readout) data(c *call) error {
	r.scan.Begin()
	bad := r.scan.Bad()
	var whole []byte
	take := func(raw []byte) { whole = append(whole[:0], raw...) }
	rest := r.feed(r.ident, &whole, take)
	began := time.Now()
	until := began.Add(c.timeout() + byteGap)
	first := true
	for {
		if whole != nil {
			return r.deliver(c, whole, rest)
		}
		b, err := r.read(c, until)
		if errors.Is(err, ErrTimeout) {
			r.scan.Flush(take) // the line end behind the "!" may be missing
			switch {
			case whole != nil:
				continue
			case first:
				return fmt.Errorf("%w to the acknowledgement", ErrTimeout)
			case r.scan.Bad() > bad+1: // one for what just ended
				return ErrCRC
			}
			return ErrShort
		}
		if err != nil {
			return err
		}
		if first {
			b = bytes.TrimLeft(b, "\x00\x7f\xff") // from changing the speed
		}
		if first = first && len(b) == 0; len(b) > 0 {
			rest = r.feed(b, &whole, take)
		}
		switch {
		case whole != nil:
		case r.scan.Bad() > bad:
			c.line.wire.count.CRC += r.scan.Bad() - bad
			return ErrCRC
		case time.Since(began) > readoutMost:
			return ErrShort
		}
		until = time.Now().Add(byteGap)
	}
}

// feed gives bytes to the scanner until a readout is whole, and returns what
// comes behind it.
func (r *readout) feed(b []byte, whole *[]byte, take func([]byte)) (rest []byte) {
	for i := range b {
		if r.scan.Feed(b[i:i+1], take); *whole != nil {
			return b[i+1:]
		}
	}
	return nil
}

// deliver emits a sound readout. Behind one without a block check comes
// nothing; an ETX there says that the start of the block was lost.
func (r *readout) deliver(c *call, whole, rest []byte) error {
	block := bytes.IndexByte(whole, 0x02) >= 0
	if t, err := obis.Parse(whole); err != nil || block && !t.Checked {
		return ErrShort // what begins as a block has a check
	}
	until := time.Now().Add(20*c.char() + 50*time.Millisecond)
	for !block {
		if bytes.IndexByte(rest, 0x03) >= 0 {
			c.line.wire.count.CRC++
			return ErrCRC
		}
		var err error
		if rest, err = c.read(until); errors.Is(err, ErrTimeout) {
			break
		} else if err != nil {
			return err
		}
	}
	c.emitFrame(whole)
	return nil
}

// checkAddress says what is wrong with the number of a meter on a line.
func checkAddress(s string) error {
	if len(s) > 32 || strings.ContainsFunc(s, func(x rune) bool {
		return (x < '0' || x > '9') && (x < 'A' || x > 'Z') && (x < 'a' || x > 'z') && x != ' '
	}) {
		return fmt.Errorf("%q is no address of a meter: up to 32 letters, digits and blanks", s)
	}
	return nil
}
