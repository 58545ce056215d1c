package profile

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
)

// Frames says how the bytes of a serial device are cut into frames.
type Frames struct {
	Kind string `yaml:"kind" required:"true" enum:"line,counted" doc:"line: text up to a line end; counted: binary with sync bytes and a length."`

	Start string `yaml:"start" doc:"Line: first character of every line, one character or STX; $ or ! with check: nmea."`
	End   string `yaml:"end" enum:"CR,LF,CRLF" doc:"Line: what ends it; CRLF if not given. LF and CRLF take each other."`
	Max   int    `yaml:"max" min:"0" max:"4096" doc:"Longest line or frame in bytes; 256 if not given."`

	Sync   Hex    `yaml:"sync" doc:"Counted: bytes every frame starts with, such as 42 4D."`
	Length *Count `yaml:"length" doc:"Counted: the field that holds the length."`
	Size   int    `yaml:"size" min:"0" max:"4096" doc:"Counted: size of the whole frame, where it is always the same. With length both must agree."`
	Tail   Hex    `yaml:"tail" doc:"Counted: bytes every frame ends with."`

	Check Check `yaml:"check" doc:"How damage is found."`
}

// Count is the length field of a counted frame.
type Count struct {
	At    int    `yaml:"at" min:"0" max:"64" doc:"Offset of the field."`
	Type  string `yaml:"type" enum:"u8,u16" doc:"u8 if not given."`
	Order string `yaml:"order" enum:"big,little" doc:"big if not given."`
	Adds  int    `yaml:"adds" min:"-64" max:"4096" doc:"Bytes of the frame that the field does not count."`
}

// Check is the checksum of a frame. It may be written as its kind alone.
// At, From and To are offsets from the start of the frame, or from its end
// where they are negative.
type Check struct {
	Kind    string `yaml:"kind" required:"true" enum:"none,nmea,sum8,sum16,negated-sum,inverted-sum,xor,crc8,crc16-modbus" doc:"negated-sum: the sum with the check is 0; inverted-sum: the sum with the check is 0xFF; crc16-modbus: low byte first."`
	At      *int   `yaml:"at" min:"-64" max:"4096" doc:"Where the check stands; before the tail if not given."`
	From    *int   `yaml:"from" min:"-64" max:"4096" doc:"First byte it covers; 0 if not given."`
	To      *int   `yaml:"to" min:"-64" max:"4096" doc:"The byte after the last one it covers; the check itself if not given."`
	Order   string `yaml:"order" enum:"big,little" doc:"Order of a check of two bytes."`
	Poly    *int   `yaml:"poly" min:"0" max:"255" doc:"crc8: polynomial, 0x07 if not given."`
	Init    int    `yaml:"init" min:"0" max:"255" doc:"crc8: start value."`
	Reflect bool   `yaml:"reflect" doc:"crc8: bits run from the least significant one."`
}

// UnmarshalText takes the kind alone.
func (c *Check) UnmarshalText(b []byte) error {
	for _, k := range checkKinds() {
		if string(b) == k {
			c.Kind = k
			return nil
		}
	}
	return fmt.Errorf("%q is no check; known are %s", string(b), strings.Join(checkKinds(), ", "))
}

func checkKinds() []string {
	return []string{"none", "nmea", "sum8", "sum16", "negated-sum", "inverted-sum", "xor", "crc8", "crc16-modbus"}
}

const defaultMax = 256

// rawFrames is Frames prepared for use.
type rawFrames struct {
	line      bool
	nmea      bool
	start     []byte // characters a line may start with; empty = any
	cr        bool   // lines end with CR
	max       int
	least     int // bytes that must be there before the size is known
	sync      []byte
	tail      []byte
	size      int
	count     *Count
	check     Check
	checkSize int
}

// build checks the frames and prepares them.
func (f *Frames) build(r report) rawFrames {
	out := rawFrames{line: f.Kind == "line", max: f.Max, check: f.Check}
	if out.max == 0 {
		out.max = max(defaultMax, f.Size)
	}
	if out.check.Kind == "" {
		out.check.Kind = "none"
	}
	switch f.Kind {
	case "line":
		f.buildLine(&out, r)
	case "counted":
		f.buildCounted(&out, r)
	default:
		r("kind", fmt.Sprintf("%q is no kind of frame", f.Kind), "write kind: line or kind: counted")
	}
	return out
}

func (f *Frames) buildLine(out *rawFrames, r report) {
	if len(f.Sync) > 0 || f.Length != nil || f.Size != 0 || len(f.Tail) > 0 {
		r("", "sync, length, size and tail belong to counted frames", "remove them, or write kind: counted")
	}
	out.cr = f.End == "CR"
	switch {
	case f.Start == "STX":
		out.start = []byte{2}
	case len(f.Start) == 1 && f.Start != "\r" && f.Start != "\n":
		out.start = []byte(f.Start)
	case f.Start != "":
		r("start", fmt.Sprintf("%q is no start character", f.Start), `write one character such as "$", or STX`)
	}
	switch out.check.Kind {
	case "nmea":
		out.nmea = true
		if out.start == nil {
			out.start = []byte("$!")
		}
	case "none":
	default:
		r("check", out.check.Kind+" is for counted frames", "lines take check: nmea or none")
	}
}

func (f *Frames) buildCounted(out *rawFrames, r report) {
	if f.Start != "" || f.End != "" {
		r("", "start and end belong to lines", "write sync and tail, or kind: line")
	}
	if len(f.Sync) == 0 {
		r("sync", "a counted frame needs sync bytes", "write the bytes that every frame starts with, such as sync: 42 4D")
	}
	if f.Length == nil && f.Size == 0 {
		r("length", "the size of a frame is not known", "write size: 32, or length: {at: 2, type: u16, adds: 4}")
	}
	out.sync, out.tail, out.size, out.count = f.Sync, f.Tail, f.Size, f.Length
	switch out.check.Kind {
	case "sum8", "negated-sum", "inverted-sum", "xor", "crc8":
		out.checkSize = 1
	case "sum16", "crc16-modbus":
		out.checkSize = 2
	case "nmea":
		r("check", "nmea is for lines", "")
	}
	out.least = len(f.Sync)
	if f.Length != nil {
		out.least = max(out.least, f.Length.At+f.Length.bytes())
	}
	smallest := out.least + out.checkSize + len(f.Tail)
	if f.Size != 0 && f.Size < smallest {
		r("size", fmt.Sprintf("a frame of %d bytes has no room for its own sync, length, check and tail", f.Size), "")
	}
	out.least = max(out.least, 1)
	if smallest > out.max || f.Size > out.max {
		r("max", "the longest frame is shorter than one frame", "")
	}
}

func (c *Count) bytes() int {
	if c.Type == "u16" {
		return 2
	}
	return 1
}

// verdict is what a look at the start of a buffer says.
type verdict uint8

const (
	wait  verdict = iota // more bytes are needed
	noise                // no frame starts here
	bad                  // a frame starts here, but it is damaged
	whole
)

// look judges a counted frame at the start of b; n is its size if it is whole.
func (f *rawFrames) look(b []byte) (v verdict, n int) {
	k := min(len(b), len(f.sync))
	if !bytes.Equal(b[:k], f.sync[:k]) {
		return noise, 0
	}
	if len(b) < f.least {
		return wait, 0
	}
	n = f.size
	if c := f.count; c != nil {
		l := int(b[c.At])
		if c.bytes() == 2 {
			l = l<<8 | int(b[c.At+1])
			if c.Order == "little" {
				l = int(b[c.At+1])<<8 | int(b[c.At])
			}
		}
		n = l + c.Adds
		if f.size != 0 && n != f.size {
			return bad, 0
		}
	}
	if n > f.max || n < f.least+f.checkSize+len(f.tail) {
		return bad, 0
	}
	if len(b) < n {
		return wait, 0
	}
	if !bytes.HasSuffix(b[:n], f.tail) || !f.checkHolds(b[:n]) {
		return bad, 0
	}
	return whole, n
}

// checkAt returns where the check of a frame of n bytes stands.
func (f *rawFrames) checkAt(n int) int {
	if f.check.At != nil {
		return fromEnd(*f.check.At, n)
	}
	return n - len(f.tail) - f.checkSize
}

// dataEnd returns the offset after the last byte of data.
func (f *rawFrames) dataEnd(n int) int {
	if f.check.At == nil {
		return f.checkAt(n)
	}
	return n - len(f.tail)
}

func fromEnd(at, n int) int {
	if at < 0 {
		return n + at
	}
	return at
}

// checkHolds says whether the check of a whole counted frame is right.
func (f *rawFrames) checkHolds(b []byte) bool {
	want, at, ok := f.sum(b)
	if !ok {
		return false
	}
	switch f.checkSize {
	case 0:
		return true
	case 1:
		return b[at] == byte(want)
	}
	return b[at] == byte(want>>8) && b[at+1] == byte(want)
}

// sum returns the check that b should have, in wire order, and its place.
func (f *rawFrames) sum(b []byte) (sum uint16, at int, ok bool) {
	if f.checkSize == 0 {
		return 0, 0, true
	}
	at = f.checkAt(len(b))
	from, to := 0, at
	if f.check.From != nil {
		from = fromEnd(*f.check.From, len(b))
	}
	if f.check.To != nil {
		to = fromEnd(*f.check.To, len(b))
	}
	if at < 0 || at+f.checkSize > len(b) || from < 0 || from > to || to > len(b) {
		return 0, 0, false
	}
	little := f.check.Order == "little"
	for _, x := range b[from:to] {
		if f.check.Kind == "xor" {
			sum ^= uint16(x)
		} else {
			sum += uint16(x)
		}
	}
	switch f.check.Kind {
	case "negated-sum":
		sum = -sum
	case "inverted-sum":
		sum = ^sum
	case "crc8":
		sum = uint16(f.check.crc8(b[from:to]))
	case "crc16-modbus":
		sum = crc16(b[from:to])
		little = f.check.Order != "big"
	}
	if little {
		sum = sum<<8 | sum>>8
	}
	return sum, at, true
}

func (c *Check) crc8(b []byte) byte {
	poly, crc := byte(0x07), byte(c.Init)
	if c.Poly != nil {
		poly = byte(*c.Poly)
	}
	for _, x := range b {
		crc ^= x
		for range 8 {
			switch {
			case c.Reflect && crc&1 != 0:
				crc = crc>>1 ^ poly
			case c.Reflect:
				crc >>= 1
			case crc&0x80 != 0:
				crc = crc<<1 ^ poly
			default:
				crc <<= 1
			}
		}
	}
	return crc
}

// crc16 is the CRC of Modbus RTU; on the wire its low byte comes first.
func crc16(b []byte) uint16 {
	crc := uint16(0xffff)
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

// lineHolds says whether a line without its end is sound: no control
// characters, and for NMEA a start character and a checksum that fits.
func (f *rawFrames) lineHolds(b []byte) bool {
	if len(f.start) > 0 {
		if len(b) == 0 || bytes.IndexByte(f.start, b[0]) < 0 {
			return false
		}
		b = b[1:]
	}
	for _, x := range b {
		if x < ' ' && x != '\t' || x == 0x7f {
			return false
		}
	}
	if !f.nmea {
		return true
	}
	if len(b) < 4 || b[len(b)-3] != '*' {
		return false
	}
	var want [1]byte
	if _, err := hex.Decode(want[:], b[len(b)-2:]); err != nil {
		return false
	}
	var xor byte
	for _, x := range b[:len(b)-3] {
		xor ^= x
	}
	return xor == want[0]
}

// body returns a sound line without start character and checksum.
func (f *rawFrames) body(b []byte) []byte {
	if len(f.start) > 0 {
		b = b[1:]
	}
	if f.nmea {
		b = b[:len(b)-3]
	}
	return b
}
