package profile

import (
	"bytes"

	"tidegate/driver/obis"
)

// Scanner cuts a stream of bytes into frames and finds its way back after
// noise, damage or a start in mid-frame. What it yields depends on the
// bytes alone, not on the pieces they come in. It holds at most one frame.
// A Scanner is not safe for concurrent use.
type Scanner struct {
	f    *rawFrames
	tele *obis.Scanner // cuts telegrams; else nil
	buf  []byte
	bad  uint64
	skip uint64
	in   bool // a line has begun
	gap  bool // an empty line may come: the last one was closed, and no block has begun
}

// NewScanner returns a scanner for the frames of a serial profile; nil for
// a Modbus profile.
func (p *Profile) NewScanner() *Scanner {
	if p.Frames == nil {
		return nil
	}
	if p.raw.obis {
		return &Scanner{f: &p.raw, tele: &obis.Scanner{Checked: p.raw.check.bytes() > 0}}
	}
	s := &Scanner{f: &p.raw, buf: make([]byte, 0, p.raw.max)}
	s.Reset()
	return s
}

// Reset forgets a frame that is only partly there, as after the port was
// opened anew. Text lines without start character and check begin only
// after the next line end: the rest of a cut line would be a wrong value.
func (s *Scanner) Reset() {
	if s.tele != nil {
		s.tele.Forget()
		return
	}
	s.buf = s.buf[:0]
	s.in = s.f.line && len(s.f.start) == 0 && s.f.guarded
}

// Begin forgets what was there and takes what comes next as the beginning
// of a frame, as after a request.
func (s *Scanner) Begin() {
	if s.tele != nil {
		s.tele.Reset()
		return
	}
	s.buf = s.buf[:0]
	s.in = s.f.line && len(s.f.start) == 0
}

// Begun says whether a part of a frame is there.
func (s *Scanner) Begun() bool {
	if s.tele != nil {
		return s.tele.Begun()
	}
	if s.f.delimited && bytes.Equal(s.buf, s.f.tail) {
		return false // the end of one frame, until it is the start of another
	}
	return len(s.buf) > 0
}

// Bad returns how many damaged frames were seen: a frame began, but its
// length, check, tail or characters were wrong.
func (s *Scanner) Bad() uint64 {
	if s.tele != nil {
		return s.tele.Bad()
	}
	return s.bad
}

// Skipped returns how many bytes belonged to no good frame.
func (s *Scanner) Skipped() uint64 {
	if s.tele != nil {
		return s.tele.Skipped()
	}
	return s.skip
}

// Feed takes the next bytes of the stream and calls frame for each frame
// whose check holds. raw is valid during the call only; lines come without
// their end.
func (s *Scanner) Feed(b []byte, frame func(raw []byte)) {
	switch {
	case s.tele != nil:
		s.tele.Feed(b, frame)
		return
	case s.f.line:
		s.feedLines(b, frame)
		return
	}
	for len(b) > 0 {
		n := min(len(b), cap(s.buf)-len(s.buf))
		s.buf = append(s.buf, b[:n]...)
		b = b[n:]
		s.cut(frame)
	}
}

// Flush is told that the line has been silent for long: what looked like the
// beginning of a frame was none, and frames behind it are found.
func (s *Scanner) Flush(frame func(raw []byte)) {
	if s.tele != nil {
		s.tele.Flush(frame)
		return
	}
	for !s.f.line && s.Begun() {
		s.bad++
		s.skip++
		s.buf = s.buf[:copy(s.buf, s.buf[1:])]
		s.cut(frame)
	}
}

// cut takes all frames out of the buffer. It always leaves room: what fills it
// and still waits is none.
func (s *Scanner) cut(frame func([]byte)) {
	rest := s.buf
	for len(rest) > 0 {
		v, n := s.f.look(rest)
		if v == wait && len(rest) == cap(s.buf) {
			v = bad
		}
		if v == wait {
			break
		}
		switch v {
		case whole:
			frame(rest[:n])
			if s.f.delimited && bytes.Equal(s.f.sync, s.f.tail) {
				n -= len(s.f.tail) // it may open the next frame, too
			}
		case idle:
		case bad:
			s.bad++
			n = 1
		default:
			n = s.next(rest)
		}
		if v == noise || v == bad {
			s.skip += uint64(n)
		}
		rest = rest[n:]
	}
	s.buf = s.buf[:copy(s.buf, rest)]
}

// next returns how many bytes to pass to where a frame may begin.
func (s *Scanner) next(b []byte) int {
	if len(s.f.sync) == 0 {
		return 1
	}
	if i := bytes.IndexByte(b[1:], s.f.sync[0]); i >= 0 {
		return 1 + i
	}
	return len(b)
}

func (s *Scanner) feedLines(b []byte, frame func([]byte)) {
	for _, x := range b {
		starts := len(s.f.start) > 0 && bytes.IndexByte(s.f.start, x) >= 0
		switch {
		case x == s.f.end && s.f.block && len(s.buf) > 0 && s.buf[len(s.buf)-1] != '\n':
			s.buf = append(bytes.TrimSuffix(s.buf, []byte{'\r'}), x)
			if len(s.buf) == cap(s.buf) {
				s.drop()
			}
		case x == s.f.end && s.f.block && !s.in && !s.gap:
			s.gap = true // one more, and a block begins
		case x == s.f.end:
			s.endLine(frame)
		case starts:
			if s.in && len(s.buf) > 0 {
				s.drop() // the line before it lost its end
			}
			s.in, s.buf = true, append(s.buf[:0], x)
		case !s.in:
			s.skip++
			s.gap = s.gap && x == '\r'
		case s.f.end != '\n' && (x == '\n' || x == '\r') && len(s.buf) == 0:
			// A line end where another one was asked for.
		case s.f.block && x == '\r' && len(s.buf) > 0 && s.buf[len(s.buf)-1] == '\n':
			// The empty line of a block that ends with CR LF.
		case len(s.buf) == cap(s.buf):
			s.drop()
			s.skip++
		default:
			s.buf = append(s.buf, x)
		}
	}
}

// drop gives up the line under way; the next one begins after a line end or
// with a start character.
func (s *Scanner) drop() {
	s.bad++
	s.skip += uint64(len(s.buf))
	s.buf, s.in = s.buf[:0], false
}

// endLine judges the line under way. Empty lines are nothing.
func (s *Scanner) endLine(frame func([]byte)) {
	line := s.buf
	if s.f.end == '\n' {
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte{'\n'}), []byte{'\r'})
	}
	switch {
	case !s.in || len(line) == 0:
	case s.f.lineHolds(line):
		frame(line)
	default:
		s.drop()
	}
	s.buf = s.buf[:0]
	s.in = len(s.f.start) == 0
}
