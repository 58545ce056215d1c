// Package obis reads the telegrams of electricity meters: P1 ports (DSMR 2.2
// to 5 and its Belgian, Luxembourgish, Swedish and Hungarian kin) and the
// readouts of IEC 62056-21.
//
// A telegram is a line "/" with the identification, data lines of the form
// A-B:C.D.E*F(value*unit), and "!". Behind the "!" of a P1 telegram from
// version 4 on stand up to four hexadecimal digits: CRC-16/ARC over
// everything from "/" to "!". A readout may stand between STX and ETX with a
// block check, the exclusive or of everything behind the STX up to and with
// the ETX.
//
// A telegram is right as a whole or it is an [Error]: one bracket that does
// not close, one character that cannot stand where it stands, a wrong or a
// missing check, and nothing of it is used.
package obis

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Telegram is a sound telegram. Its texts lie in the bytes it was parsed from.
type Telegram struct {
	Ident   string   // behind the "/": maker (3), speed (1), name
	Objects []Object // in the order of the meter
	Checked bool     // a CRC or a block check protected it
}

// Object is one data set: a code, and the contents of its brackets.
type Object struct {
	ID     string // as the meter writes it
	Code   Code   // zero if the ID is no OBIS code, see Known
	Known  bool
	Groups []string // contents of the brackets, at least one
}

// The kinds of damage. An [Error] wraps one of them.
var (
	ErrIdent  = errors.New("the identification line is wrong")
	ErrCut    = errors.New("the telegram is cut off")
	ErrCheck  = errors.New("the check sum is wrong")
	ErrNone   = errors.New("the check sum is missing")
	ErrObject = errors.New("a data line is wrong")
	ErrByte   = errors.New("a character cannot stand there")
	ErrLong   = errors.New("the telegram is too long")
)

// Error says what is wrong with a telegram and where.
type Error struct {
	Line int    // from 1; the identification is line 1
	Text string // the piece that is wrong, at most 40 characters of it
	Err  error  // the kind of damage
}

// Error returns `line 7: a data line is wrong: "1-0:1.8.1(0000"`.
func (e *Error) Error() string {
	s := fmt.Sprintf("line %d: %v", e.Line, e.Err)
	if e.Text != "" {
		s += fmt.Sprintf(": %q", e.Text)
	}
	return s
}

// Unwrap returns the kind of damage.
func (e *Error) Unwrap() error { return e.Err }

const (
	soh = 0x01
	stx = 0x02
	etx = 0x03
	ack = 0x06
	del = 0x7f // what some meters send while they have nothing to say
)

// MaxLength is the longest telegram that is taken, in bytes.
const MaxLength = 16384

// Parse reads one telegram, from its "/" to its end: "!", the CRC where
// there is one, or ETX and the block check. Whatever is wrong with it is an
// *Error. The telegram shares no memory with b.
func Parse(b []byte) (*Telegram, error) {
	p := parser{line: 1}
	if len(b) > MaxLength {
		return nil, p.fail(ErrLong, nil)
	}
	ident, rest, err := p.ident(b)
	if err != nil {
		return nil, err
	}
	t := &Telegram{Ident: ident}
	body := p.skip(rest)
	if len(body) > 0 && body[0] == ack { // our own acknowledgement comes back
		body = p.skip(body[min(len(body), bytes.IndexByte(body, '\n')+1):])
	}
	switch {
	case len(body) > 0 && body[0] == stx:
		body, t.Checked, err = p.block(body)
	case bytes.IndexByte(body, stx) >= 0 || bytes.IndexByte(body, etx) >= 0:
		err = p.fail(ErrByte, nil) // half a block
	default:
		body, t.Checked, err = p.crc(b, body)
	}
	if err != nil {
		return nil, err
	}
	p.strict = !t.Checked
	if t.Objects, err = p.objects(body); err != nil {
		return nil, err
	}
	if !t.Checked && mustHaveCRC(t.Objects) {
		return nil, p.fail(ErrNone, nil)
	}
	return t, nil
}

// parser knows where it is.
type parser struct {
	line   int
	strict bool // nothing but the form protects the content
}

func (p *parser) fail(kind error, text []byte) *Error {
	return &Error{Line: p.line, Text: string(text[:min(len(text), 40)]), Err: kind}
}

// skip passes line ends and padding.
func (p *parser) skip(b []byte) []byte {
	for len(b) > 0 && (b[0] == '\r' || b[0] == '\n' || b[0] == del) {
		if b[0] == '\n' {
			p.line++
		}
		b = b[1:]
	}
	return b
}

// ident takes the first line: "/", three letters of the maker, a character
// for the speed, the name.
func (p *parser) ident(b []byte) (ident string, rest []byte, err error) {
	end := bytes.IndexAny(b, "\r\n")
	if end < 0 {
		return "", nil, p.fail(ErrCut, b)
	}
	line := b[:end]
	if len(line) < 5 || line[0] != '/' {
		return "", nil, p.fail(ErrIdent, line)
	}
	for i, x := range line[1:] {
		letter := x|0x20 >= 'a' && x|0x20 <= 'z'
		if i < 3 && !letter || x < ' ' || x > '~' || x == '!' || x == '/' {
			return "", nil, p.fail(ErrIdent, line)
		}
	}
	return string(line[1:]), b[end:], nil
}

// block takes a readout between STX and ETX and tests its check. Some meters
// send an STX and end with the "!", or with an ETX that no check follows:
// that is a readout without a check.
func (p *parser) block(b []byte) (body []byte, checked bool, err error) {
	end := bytes.IndexByte(b, etx)
	switch {
	case end < 0:
		end = len(b)
	case end+2 < len(b):
		return nil, false, p.fail(ErrByte, b[end+2:])
	case end+2 == len(b):
		if checked = true; BlockCheck(b[:end+1]) != b[end+1] {
			return nil, false, p.fail(ErrCheck, nil)
		}
	}
	body = b[1:end]
	i := bytes.IndexByte(body, '!')
	if i < 0 || len(bytes.Trim(body[i+1:], "\r\n\x7f")) > 0 {
		return nil, false, p.fail(ErrCut, nil) // cut, or a block that goes on in the next one
	}
	return body[:i], checked, nil
}

// BlockCheck is the block check character of IEC 62056-21 for a block that
// begins with SOH or STX and ends with ETX: the exclusive or of its bytes,
// without the first.
func BlockCheck(b []byte) (sum byte) {
	for i, x := range b {
		if i > 0 || x != soh && x != stx {
			sum ^= x
		}
	}
	return sum
}

// crc takes a telegram that ends with "!" and tests the CRC behind it.
func (p *parser) crc(whole, b []byte) (body []byte, checked bool, err error) {
	i := bytes.IndexByte(b, '!')
	if i < 0 {
		return nil, false, p.fail(ErrCut, nil)
	}
	digits := bytes.Trim(b[i+1:], "\r\n\x7f")
	if len(digits) == 0 {
		return b[:i], false, nil
	}
	want, err := strconv.ParseUint(string(digits), 16, 16)
	if err != nil || len(digits) > 4 {
		return nil, false, p.fail(ErrCheck, digits)
	}
	if CRC(whole[:len(whole)-len(b)+i+1]) != uint16(want) {
		return nil, false, p.fail(ErrCheck, digits)
	}
	return b[:i], true, nil
}

// CRC is the CRC-16/ARC of P1 telegrams: polynomial 0x8005 reflected, start
// value 0, from "/" to "!" with both.
func CRC(b []byte) (crc uint16) {
	for _, x := range b {
		crc ^= uint16(x)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xa001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

// mustHaveCRC says whether the version of a P1 telegram demands a CRC: from
// DSMR 4 on, where the telegram names its version (0.2.8, Belgium 96.1.4).
// Without it the digits were lost on the way.
func mustHaveCRC(objects []Object) bool {
	for i := range objects {
		c := objects[i].Code
		if c.A == 1 && c.B == 3 && c.C == 0 && c.D == 2 && c.E == 8 || c.A == 0 && c.B == 0 && c.C == 96 && c.D == 1 && c.E == 4 {
			return true
		}
	}
	return false
}

// objects takes the data lines apart. A line that begins with a bracket goes
// on with the data set of the line before; a line may hold several data sets.
func (p *parser) objects(text []byte) ([]Object, error) {
	s := string(p.skip(text))
	var out []Object
	var open []int // where the groups of each object begin in groups
	var groups []string
	for s != "" {
		i := strings.IndexAny(s, "\r\n")
		line := s
		if i >= 0 {
			line, s = s[:i], s[i:]
		} else {
			s = ""
		}
		for line != "" {
			id, rest, found := strings.Cut(line, "(")
			if !found || id == "" && len(out) == 0 {
				return nil, p.fail(ErrObject, []byte(line))
			}
			if id != "" {
				o, err := p.object(id)
				if err != nil {
					return nil, err
				}
				out, open = append(out, o), append(open, len(groups))
			}
			content, after, closed := strings.Cut(rest, ")")
			if !closed || strings.Contains(content, "(") {
				return nil, p.fail(ErrObject, []byte(line))
			}
			if err := p.printable(content); err != nil {
				return nil, err
			}
			groups = append(groups, content)
			line = after
		}
		for s != "" && (s[0] == '\r' || s[0] == '\n' || s[0] == del) {
			if s[0] == '\n' {
				p.line++
			}
			s = s[1:]
		}
	}
	if len(out) == 0 {
		return nil, p.fail(ErrCut, nil)
	}
	if i := p.twice(out); i >= 0 {
		return nil, p.fail(ErrObject, []byte(out[i].ID))
	}
	for i := range out {
		end := len(groups)
		if i+1 < len(out) {
			end = open[i+1]
		}
		out[i].Groups = groups[open[i]:end:end]
	}
	return out, nil
}

// twice returns a data set of a measured value that comes a second time, -1
// if there is none. In a telegram without a check that is two telegrams run
// into one.
func (p *parser) twice(out []Object) int {
	if !p.strict {
		return -1
	}
	seen := make(map[Code]bool, len(out))
	for i := range out {
		if c := out[i].Code; c.C < 96 {
			if seen[c] {
				return i
			}
			seen[c] = true
		}
	}
	return -1
}

// object begins a data set. A code that is none is taken where a check
// protects it: some makers have names of their own.
func (p *parser) object(id string) (Object, error) {
	o := Object{ID: id}
	if err := p.printable(id); err != nil {
		return o, err
	}
	code, err := ParseCode(id)
	if err != nil && (p.strict || len(id) > 16 || strings.ContainsAny(id, ")/*! ")) {
		return o, p.fail(ErrObject, []byte(id))
	}
	o.Code, o.Known = code, err == nil
	return o, nil
}

func (p *parser) printable(s string) error {
	for i := range len(s) {
		if x := s[i]; x < ' ' || x == 0x7f || x > 0x7f && p.strict {
			return p.fail(ErrByte, []byte(s))
		}
	}
	return nil
}
