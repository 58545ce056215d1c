package profile

import "bytes"

// verdict is what a look at the start of a buffer says.
type verdict uint8

const (
	wait  verdict = iota // more bytes are needed
	noise                // no frame starts here
	idle                 // a delimiter that closes a frame and opens none
	bad                  // a frame starts here, but it is damaged
	whole
)

// look judges a binary frame at the start of b; n is its size on the wire if
// it is whole.
func (f *rawFrames) look(b []byte) (v verdict, n int) {
	k := min(len(b), len(f.sync))
	if !bytes.Equal(b[:k], f.sync[:k]) {
		return noise, 0
	}
	switch {
	case f.mbus:
		return lookMBus(b)
	case f.delimited:
		return f.lookDelimited(b)
	case f.part > 0:
		return f.lookSequence(b)
	case f.lead >= 0:
		if v := f.leads(b); v != wait {
			return v, 0
		}
	}
	if len(b) < f.least {
		return wait, 0
	}
	for i := range f.set {
		if !f.set[i].isSet(b) {
			return noise, 0
		}
	}
	n = f.size
	if c := f.count; c != nil {
		n = c.value(b) + c.Adds
		if f.size != 0 && n != f.size {
			return bad, 0
		}
	}
	if n > f.max || n < f.least+f.check.size()+len(f.tail) {
		return bad, 0
	}
	if len(b) < n {
		return wait, 0
	}
	if !bytes.HasSuffix(b[:n], f.tail) || !f.holds(b[:n]) {
		return bad, 0
	}
	return whole, n
}

// holds says whether the checks of a whole frame are right, and its tail
// where a check stands behind it. b is without escapes.
func (f *rawFrames) holds(b []byte) bool {
	return f.check.holds(b, len(f.tail), f.covered()) && (f.head == nil || f.head.holds(b, len(f.tail), 0))
}

// covered is the first byte that a check covers by default.
func (f *rawFrames) covered() int {
	if f.delimited {
		return len(f.sync)
	}
	return 0
}

// leads looks for a bit that only the first byte has; wait means that
// nothing speaks against a frame.
func (f *rawFrames) leads(b []byte) verdict {
	for i, x := range b[:min(len(b), f.size)] {
		if set := x>>f.lead&1 != 0; set != (i == 0) {
			if i == 0 {
				return noise
			}
			return bad
		}
	}
	return wait
}

// lookSequence judges frames that belong together: each must be sound, and
// the mark of the first stands in the first alone.
func (f *rawFrames) lookSequence(b []byte) (verdict, int) {
	for i := 0; i < f.size; i += f.part {
		if len(b) < i+f.part {
			return wait, 0
		}
		p := b[i : i+f.part]
		fits := bytes.HasPrefix(p, f.sync) && bytes.HasSuffix(p, f.tail) && f.holds(p)
		for k := range f.set {
			fits = fits && f.set[k].isSet(p)
		}
		switch {
		case i == 0 && (!fits || !f.first.isSet(p)):
			return noise, 0
		case !fits, i > 0 && f.first.isSet(p):
			return bad, 0
		}
	}
	return whole, f.size
}

// lookDelimited finds the last byte of a frame.
func (f *rawFrames) lookDelimited(b []byte) (verdict, int) {
	one := bytes.Equal(f.sync, f.tail)
	for i := len(f.sync); i < len(b); i++ {
		switch {
		case i >= f.max:
			return bad, 0
		case f.escapes && b[i] == f.esc:
			if i++; i < len(b) && (b[i] == f.sync[0] || b[i] == f.tail[0] || b[i] == f.esc) {
				return bad, 0 // it is never escaped into itself
			}
		case bytes.HasPrefix(b[i:], f.tail):
			n := i + len(f.tail)
			if f.check.After {
				n += f.check.size()
			}
			switch {
			case i == len(f.sync) && one:
				return idle, len(f.sync)
			case n > f.max:
				return bad, 0
			case n > len(b):
				return wait, 0
			case i == len(f.sync), !f.holds(f.unescape(b[:n])):
				return bad, 0
			}
			return whole, n
		case !one && bytes.HasPrefix(b[i:], f.sync):
			return bad, 0 // the frame before it lost its end
		}
	}
	if len(b) >= f.max {
		return bad, 0
	}
	return wait, 0
}

// unescape returns a delimited frame with the bytes that are meant; it is b
// itself where there are no escapes.
func (f *rawFrames) unescape(b []byte) []byte {
	if !f.escapes || bytes.IndexByte(b, f.esc) < 0 {
		return b
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == f.esc && i+1 < len(b) {
			i++
			out = append(out, b[i]^f.xor)
			continue
		}
		out = append(out, b[i])
	}
	return out
}

// escape is the inverse of unescape: the first and last bytes stay.
func (f *rawFrames) escape(b []byte) []byte {
	if !f.escapes {
		return b
	}
	out := append([]byte(nil), f.sync...)
	for _, x := range b[len(f.sync) : len(b)-len(f.tail)] {
		if x == f.esc || x == f.sync[0] || x == f.tail[0] {
			out = append(out, f.esc, x^f.xor)
			continue
		}
		out = append(out, x)
	}
	return append(out, f.tail...)
}

// dataEnd returns the offset after the last byte of data of a frame of n bytes.
func (f *rawFrames) dataEnd(n int) int {
	switch {
	case f.part > 0:
		return n
	case f.check.At == nil:
		return n - len(f.tail) - f.check.size()
	}
	return n - len(f.tail)
}

// lineHolds says whether a line without its end is sound: its start
// character, no control characters in its text, and a check that fits.
func (f *rawFrames) lineHolds(b []byte) bool {
	if len(f.start) > 0 && (len(b) == 0 || bytes.IndexByte(f.start, b[0]) < 0) {
		return false
	}
	lo, hi := f.text(len(b))
	if hi < lo || !bytes.HasPrefix(b[hi:], f.tail) {
		return false
	}
	for _, x := range b[lo:hi] {
		if x < ' ' && x != '\t' && !(f.block && x == '\n') || x == 0x7f {
			return false
		}
	}
	return f.check.holds(b, 0, 0)
}

// text returns where the text of a line of n bytes stands: behind the start
// character and before tail and check.
func (f *rawFrames) text(n int) (lo, hi int) {
	return min(len(f.start), 1), n - len(f.tail) - f.check.size()
}

// body returns the text of a sound line.
func (f *rawFrames) body(b []byte) []byte {
	lo, hi := f.text(len(b))
	return b[lo:hi]
}
