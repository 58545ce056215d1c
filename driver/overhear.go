package driver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/goburrow/modbus"
	"golang.org/x/sys/unix"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// ScanNoise is what was heard while nobody sent.
type ScanNoise struct {
	Bytes   int    // heard while listening at the first setting
	Level   int    // of these, 00 and FF: what an undriven or reversed line reads as
	Errors  uint32 // characters without a stop bit, or with a wrong parity
	Breaks  uint32
	Counted bool // the driver of the port counts errors and breaks
}

// ScanTalker is a device that was heard talking by itself.
type ScanTalker struct {
	Line     string
	Frames   int      // good frames heard
	Profiles []string // those that can read them all; one, if it is plain
}

// How long a scan listens before it sends, and how long at each setting once
// it has heard something.
const (
	listenFirst = 2 * time.Second
	listenEach  = 1200 * time.Millisecond
	// listenMore is how much longer it listens where one good frame came:
	// the second one proves it.
	listenMore = 3 * time.Second
)

// overhear listens before anything is sent. done means that there is nobody
// to ask: a device that talks by itself was found. Another master is an error.
func (s *scan) overhear(ctx context.Context) (done bool, err error) {
	s.w.char, s.w.gap = s.mode.char(), s.mode.silence()
	s.say(ScanStep{Text: fmt.Sprintf("listening %v", listenFirst), Of: 1})
	before, counted := lineErrors(s.w.st)
	e := s.ears(s.names[0])
	if err := s.listenTo(ctx, e, listenFirst); err != nil {
		return false, err
	}
	n := &s.res.Noise
	n.Bytes, n.Level = e.bytes, e.level
	if after, ok := lineErrors(s.w.st); ok && counted {
		n.Counted, n.Errors, n.Breaks = true, after.errors()-before.errors(), uint32(after.brk-before.brk)
	}
	if done, err := s.judge(e); done || err != nil {
		return done, err
	}
	if e.bytes < 4 {
		s.say(ScanStep{Text: "quiet: no other master"})
		return false, nil
	}
	s.say(ScanStep{Text: fmt.Sprintf("heard %d bytes that make no sense at %s", e.bytes, s.names[0])})
	for _, name := range s.ownLines() {
		m, err := parseLine(name)
		if err != nil {
			continue // a profile's own mistake, told elsewhere
		}
		s.say(ScanStep{Text: "listening at " + name, Of: 1})
		if err := s.set(m); err != nil {
			return false, err
		}
		e := s.ears(name)
		if err := s.listenTo(ctx, e, listenEach); err != nil {
			return false, err
		}
		if done, err := s.judge(e); done || err != nil {
			return done, err
		}
	}
	return false, s.set(s.modes[0])
}

// ownLines are the settings at which something is listened for: those of the
// serial profiles and those that are tried.
func (s *scan) ownLines() []string {
	var out []string
	for _, p := range s.o.Profiles {
		if p.Transport == "serial" && p.Line != "" && !slices.Contains(out, p.Line) {
			out = append(out, p.Line)
		}
	}
	for _, n := range s.names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// ears take in what is heard at one setting.
type ears struct {
	line    string
	bytes   int
	level   int
	more    bool // it was listened to for longer
	frames  int  // whole Modbus frames
	unit    byte // of the last of them
	fc      byte
	talkers []*heardTalker
}

type heardTalker struct {
	p      *profile.Profile
	scan   *profile.Scanner
	frames int // good frames with at least one value
}

func (s *scan) ears(line string) *ears {
	e := &ears{line: line}
	for _, p := range s.o.Profiles {
		if p.Transport == "serial" && (p.Line == "" || p.Line == line) && !p.Polled() {
			if sc := p.NewScanner(); sc != nil {
				e.talkers = append(e.talkers, &heardTalker{p: p, scan: sc})
			}
		}
	}
	return e
}

// listenTo takes what comes for a time.
func (s *scan) listenTo(ctx context.Context, e *ears, d time.Duration) error {
	var buf [512]byte
	var kept []byte
	for end := time.Now().Add(d); time.Now().Before(end); {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		slice := time.Now().Add(50 * time.Millisecond)
		n, err := s.w.st.ReadSome(buf[:], slice)
		if n == 0 {
			if !errors.Is(err, ErrTimeout) {
				return err
			}
			kept = e.cut(s.w.kind, s.w.pk, kept, true)
			continue
		}
		s.w.last = time.Now()
		e.take(buf[:n])
		kept = e.cut(s.w.kind, s.w.pk, append(kept, buf[:n]...), false)
	}
	e.cut(s.w.kind, s.w.pk, kept, true)
	if !e.more && slices.ContainsFunc(e.talkers, func(t *heardTalker) bool { return t.frames == 1 }) {
		e.more = true
		return s.listenTo(ctx, e, listenMore)
	}
	return nil
}

// take gives bytes to everyone who may understand them.
func (e *ears) take(b []byte) {
	e.bytes += len(b)
	for _, x := range b {
		if x == 0 || x == 0xff {
			e.level++
		}
	}
	for _, t := range e.talkers {
		t.scan.Feed(b, func(raw []byte) {
			for _, r := range t.p.DecodeFrame(raw, 0, nil) {
				if r.Quality == telemetry.Good {
					t.frames++
					return
				}
			}
		})
	}
}

// cut counts the Modbus frames in b and returns what may become one.
func (e *ears) cut(k kind, pk modbus.Packager, b []byte, quiet bool) []byte {
	for len(b) > 0 {
		f, skip, n := cut(k, pk, b, quiet)
		if n == 0 {
			if quiet {
				return nil
			}
			return b[min(skip, len(b)):]
		}
		e.frames, e.unit, e.fc = e.frames+1, f.unit, f.pdu.FunctionCode
		b = b[skip+n:]
	}
	return nil
}

// judge says what was heard: nothing that speaks, a talker, or a master.
func (s *scan) judge(e *ears) (done bool, err error) {
	if e.frames >= 2 {
		return false, &Error{Op: "scan", Code: "other-master", What: s.res.Connect + ": another master asks on this line",
			Seen:   fmt.Sprintf("%d whole Modbus frames while nobody here sent, the last for unit %d with function %d; line %s", e.frames, e.unit, e.fc, e.line),
			Likely: "a controller or another gateway polls these devices",
			Try:    "stop it or disconnect it: one line has one master", Err: ErrBusy}
	}
	slices.SortStableFunc(e.talkers, func(a, b *heardTalker) int { return b.frames - a.frames })
	if len(e.talkers) == 0 || e.talkers[0].frames < 2 {
		return false, nil
	}
	t := ScanTalker{Line: e.line, Frames: e.talkers[0].frames}
	for _, o := range e.talkers {
		if o.frames == t.Frames {
			t.Profiles = append(t.Profiles, o.p.Name)
		}
	}
	s.res.Talkers, s.res.Line = append(s.res.Talkers, t), e.line
	return true, nil
}

// icounters is struct serial_icounter_struct of linux/serial.h.
type icounters struct {
	cts, dsr, rng, dcd, rx, tx        int32
	frame, overrun, parity, brk, over int32
	_                                 [9]int32
}

func (c icounters) errors() uint32 { return uint32(c.frame) + uint32(c.parity) }

// lineErrors asks the driver of a port for its counters of damaged
// characters and breaks; ok is false where it has none, as on ptys.
func lineErrors(st stream) (c icounters, ok bool) {
	p, isPort := st.(*portStream)
	if !isPort {
		return c, false
	}
	p.reading.Lock()
	defer p.reading.Unlock()
	if p.closed {
		return c, false
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(p.fd), unix.TIOCGICOUNT, uintptr(unsafe.Pointer(&c)))
	return c, errno == 0
}

// Silence explains a scan that found nobody, from what it has seen.
func (r *ScanResult) Silence() *Error {
	e := &Error{Op: "scan", Err: ErrTimeout}
	n := r.Noise
	asked := number(r.Asked, "unit") + " asked"
	if n := len(r.NotAsked); n > 0 {
		asked += " at " + number(r.Tried-n, "line setting") + ", all at once at " + number(r.Tried, "setting")
	} else if r.Tried > 0 {
		asked += " at " + number(r.Tried, "line setting")
	}
	noise := number(n.Bytes, "byte") + " while nobody sent"
	if n.Counted {
		noise += fmt.Sprintf(", %d characters damaged, %d breaks", n.Errors, n.Breaks)
	}
	switch {
	case r.Cut:
		e.Code, e.What = "scan-cut", r.Connect+": the time was over before anybody answered"
		e.Seen = asked
		e.Try = "give it longer: --pause 5m; or look for less: --baud, --mode, --ids"
	case n.Bytes >= 16 && 10*n.Level >= 8*n.Bytes || n.Counted && n.Errors+n.Breaks >= 8:
		e.Code, e.What = "wires-swapped", r.Connect+": noise instead of data"
		e.Seen = asked + "; " + noise + fmt.Sprintf(", %d of them 00 or ff; no unit has answered", n.Level)
		e.Likely = "1 wires A and B are exchanged (makers do not agree on the letters)\n2 bus without bias or ground wire"
		e.Try = "swap the two wires at the adapter; it does no harm. Idle voltage\nbetween D+ and D- should be above +0.2 V. Then scan again"
	case r.MBus:
		e.Code, e.What = "unit-silent", r.Connect+": no meter answers"
		e.Seen = asked + "; " + noise
		e.Likely = "1 the level converter has no power, or this is another port\n2 the meters have another speed   3 one of them short-circuits the bus"
		e.Try = "measure the bus: 24 to 42 V between its wires; then other speeds:\n--baud 300,600,1200,2400,4800,9600 --mode 8E1"
		for _, n := range r.NotAsked {
			baud, mode, _ := strings.Cut(n.Line, " ")
			e.Try += fmt.Sprintf("\neach address at %s, %.0f min: --baud %s --mode %s", n.Line, math.Ceil(n.Takes.Minutes()), baud, mode)
		}
	case r.Tried == 0 && r.Gateway:
		e.Code, e.What = "unit-silent", r.Connect+": the gateway answers, no unit behind it does"
		e.Seen = asked
		e.Likely = "1 the device behind the gateway has another unit id   2 it has no power"
		e.Try = "ask all units: --ids 1-247"
	case r.Tried == 0:
		e.Code, e.What = "unit-silent", r.Connect+": the connection stands, no unit answers"
		e.Seen = asked
		e.Likely = "1 another unit id   2 this port speaks something else than Modbus\n3 the device serves one master only, and another one is connected"
		e.Try = "ask all units: --ids 1-247"
	default:
		e.Code, e.What = "bus-silent", r.Connect+": nobody answers"
		e.Seen = asked + "; " + noise
		e.Likely = "1 no power at the devices   2 wires open or exchanged\n3 the adapter does not switch to sending   4 an unusual unit id or setting"
		e.Try = "check power and wires; then --deep asks all units at all settings"
	}
	return e
}
