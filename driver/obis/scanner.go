package obis

import "bytes"

// Scanner cuts a stream of bytes into telegrams and finds its way back after
// noise, damage or a start in the middle. What it yields depends on the bytes
// alone, not on the pieces they come in, and is sound: Parse takes it. It
// holds at most one telegram. A Scanner is not safe for concurrent use.
type Scanner struct {
	// Checked demands a check: a telegram without one is damaged. Else that
	// holds from the first telegram with a check on.
	Checked bool

	buf     []byte
	ends    bool // there is a "!" in buf
	bad     uint64
	skip    uint64
	last    error
	checked bool // telegrams of this meter have a check
}

// Reset forgets a telegram that is only partly there.
func (s *Scanner) Reset() { s.buf, s.ends = s.buf[:0], false }

// Forget forgets also that the telegrams of the meter had a check: another
// meter may be there now.
func (s *Scanner) Forget() {
	s.Reset()
	s.checked = false
}

// Begun says whether a part of a telegram is there.
func (s *Scanner) Begun() bool { return len(s.buf) > 0 }

// Bad returns how many damaged telegrams were seen.
func (s *Scanner) Bad() uint64 { return s.bad }

// Skipped returns how many bytes belonged to no sound telegram.
func (s *Scanner) Skipped() uint64 { return s.skip }

// Err returns what was wrong with the last damaged telegram, nil if there
// was none.
func (s *Scanner) Err() error { return s.last }

// Feed takes the next bytes and calls telegram for each sound one. raw is
// valid during the call only.
func (s *Scanner) Feed(b []byte, telegram func(raw []byte)) {
	for _, x := range b {
		if len(s.buf) == 0 && x != '/' {
			s.skip++
			continue
		}
		s.buf = append(s.buf, x)
		if s.ends = s.ends || x == '!'; s.ends || len(s.buf) == MaxLength {
			s.look(false, telegram)
		}
	}
}

// Flush is told that the line has been silent: a telegram without a line end
// behind its "!" is whole, and what lacks its end is none.
func (s *Scanner) Flush(telegram func(raw []byte)) {
	for len(s.buf) > 0 {
		s.look(true, telegram)
	}
}

// look judges what is there and goes on until more bytes are needed.
func (s *Scanner) look(quiet bool, telegram func([]byte)) {
	for len(s.buf) > 0 {
		if !s.ends && !quiet && len(s.buf) < MaxLength {
			return
		}
		n, whole := s.end(quiet)
		switch {
		case !whole && !quiet && len(s.buf) < MaxLength:
			return
		case !whole:
			s.drop(&Error{Line: 1 + bytes.Count(s.buf, []byte{'\n'}), Err: ErrCut})
		case n < 0:
			s.drop(&Error{Line: 1, Err: ErrCut})
		case isRequest(s.buf[:n]):
			s.cut(n, n) // our own words come back: /?!
		default:
			s.judge(n, telegram)
		}
	}
}

// judge yields the telegram in the first n bytes, or drops it.
func (s *Scanner) judge(n int, telegram func([]byte)) {
	t, err := Parse(s.buf[:n])
	if err == nil && !t.Checked && (s.checked || s.Checked) {
		err = &Error{Line: 1, Err: ErrNone}
	}
	if err != nil {
		s.drop(err)
		return
	}
	s.checked = t.Checked
	telegram(s.buf[:n])
	s.cut(n, 0)
}

// drop gives up the telegram that begins here; another one may begin behind.
func (s *Scanner) drop(err error) {
	s.bad++
	s.last = err
	n := len(s.buf)
	if i := bytes.IndexByte(s.buf[1:], '/'); i >= 0 {
		n = 1 + i
	}
	s.cut(n, n)
}

// cut takes n bytes away, skipped of which belonged to no telegram.
func (s *Scanner) cut(n, skipped int) {
	s.skip += uint64(skipped)
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
	if len(s.buf) > 0 && s.buf[0] != '/' {
		i := bytes.IndexByte(s.buf, '/')
		if i < 0 {
			i = len(s.buf)
		}
		s.skip += uint64(i)
		s.buf = s.buf[:copy(s.buf, s.buf[i:])]
	}
	s.ends = bytes.IndexByte(s.buf, '!') >= 0
}

// end returns where the telegram ends, if it is whole. In a block that is
// behind the check, or -1 where another telegram begins before it; else behind the line of the "!", or where the next line
// would begin that cannot belong to it.
func (s *Scanner) end(quiet bool) (n int, whole bool) {
	b := s.buf
	mark := bytes.IndexByte(b, '!')
	if mark < 0 {
		return 0, false
	}
	if block := bytes.IndexByte(b, stx); block >= 0 && block < mark {
		i := bytes.IndexByte(b[mark:], etx)
		switch {
		case i >= 0 && mark+i+2 <= len(b):
			return mark + i + 2, true
		case i < 0 && bytes.IndexByte(b[mark:], '/') > 0:
			return -1, true // the end of the block is lost
		}
		return len(b), quiet
	}
	for i, x := range b[mark+1:] {
		switch {
		case x == '\n':
			return mark + 1 + i + 1, true
		case x == '/', i > 8: // no digits of a check
			return mark + 1, true
		}
	}
	return len(b), quiet
}

// isRequest says whether the bytes are a request of the reading side, such
// as "/?!" or "/?12345678!".
func isRequest(b []byte) bool { return len(b) > 1 && b[1] == '?' }
