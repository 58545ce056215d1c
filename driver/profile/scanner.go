package profile

import "bytes"

// Scanner cuts a stream of bytes into frames and finds its way back after
// noise, damage or a start in mid-frame. What it yields depends on the
// bytes alone, not on the pieces they come in. It holds at most one frame.
// A Scanner is not safe for concurrent use.
type Scanner struct {
	f    *rawFrames
	buf  []byte
	bad  uint64
	skip uint64
	in   bool // a line has begun
}

// NewScanner returns a scanner for the frames of a serial profile; nil for
// a Modbus profile.
func (p *Profile) NewScanner() *Scanner {
	if p.Frames == nil {
		return nil
	}
	s := &Scanner{f: &p.raw, buf: make([]byte, 0, p.raw.max)}
	s.Reset()
	return s
}

// Reset forgets a frame that is only partly there, as after the port was
// opened anew. Text lines without start character and check begin only
// after the next line end: the rest of a cut line would be a wrong value.
func (s *Scanner) Reset() {
	s.buf = s.buf[:0]
	s.in = s.f.line && len(s.f.start) == 0 && s.f.nmea
}

// Begin forgets what was there and takes what comes next as the beginning
// of a frame, as after a request.
func (s *Scanner) Begin() {
	s.buf = s.buf[:0]
	s.in = s.f.line && len(s.f.start) == 0
}

// Begun says whether a part of a frame is there.
func (s *Scanner) Begun() bool { return len(s.buf) > 0 }

// Bad returns how many damaged frames were seen: a frame began, but its
// length, check, tail or characters were wrong.
func (s *Scanner) Bad() uint64 { return s.bad }

// Skipped returns how many bytes belonged to no good frame.
func (s *Scanner) Skipped() uint64 { return s.skip }

// Feed takes the next bytes of the stream and calls frame for each frame
// whose check holds. raw is valid during the call only; lines come without
// their end.
func (s *Scanner) Feed(b []byte, frame func(raw []byte)) {
	if s.f.line {
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

// cut takes all frames out of the buffer. It always leaves room, because a
// frame is never longer than the buffer.
func (s *Scanner) cut(frame func([]byte)) {
	rest := s.buf
	for len(rest) > 0 {
		v, n := s.f.look(rest)
		if v == wait {
			break
		}
		switch v {
		case whole:
			frame(rest[:n])
		case bad:
			s.bad++
			n = 1
		default:
			n = 1
			if i := bytes.IndexByte(rest[1:], s.f.sync[0]); i >= 0 {
				n += i
			} else {
				n = len(rest)
			}
		}
		if v != whole {
			s.skip += uint64(n)
		}
		rest = rest[n:]
	}
	s.buf = s.buf[:copy(s.buf, rest)]
}

func (s *Scanner) feedLines(b []byte, frame func([]byte)) {
	end := byte('\n')
	if s.f.cr {
		end = '\r'
	}
	for _, x := range b {
		starts := len(s.f.start) > 0 && bytes.IndexByte(s.f.start, x) >= 0
		switch {
		case x == end:
			s.endLine(frame)
		case starts:
			if s.in {
				s.drop() // the line before it lost its end
			}
			s.in, s.buf = true, append(s.buf[:0], x)
		case !s.in:
			s.skip++
		case s.f.cr && x == '\n' && len(s.buf) == 0:
			// CR LF where CR was asked for.
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
	if !s.f.cr && len(line) > 0 && line[len(line)-1] == '\r' {
		line = line[:len(line)-1]
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
