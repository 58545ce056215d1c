package profile

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// Frames says how the bytes of a serial device are cut into frames.
type Frames struct {
	Kind string `yaml:"kind" required:"true" enum:"line,counted,fixed,delimited,sequence,obis,modem-lines,mbus" doc:"line: text up to a line end; counted: binary with sync bytes and a length; fixed: always of one size; delimited: between a first and a last byte; sequence: a number of fixed frames that belong together; obis: telegrams of P1 ports and IEC 62056-21; modem-lines: the input lines of a serial port as contacts; mbus: frames of an M-Bus, which handshake: mbus brings along."`

	Start string `yaml:"start" doc:"Line: first character of every line, one character or STX; $ or ! with check: nmea."`
	End   string `yaml:"end" doc:"Line: what ends it: CR, LF, CRLF, LFLF (an empty line ends a block of lines), or one character; CRLF if not given. LF and CRLF take each other."`
	Max   int    `yaml:"max" min:"0" max:"4096" doc:"Longest line or frame in bytes; 256 if not given."`

	Sync   Hex     `yaml:"sync" doc:"Bytes every frame starts with, such as 42 4D."`
	Length *Count  `yaml:"length" doc:"Counted: the field that holds the length."`
	Size   int     `yaml:"size" min:"0" max:"4096" doc:"Size of the whole frame, or of one frame of a sequence. With length both must agree."`
	Tail   Hex     `yaml:"tail" doc:"Bytes every frame ends with; in lines what stands between the text and its check, such as 03."`
	Escape *Escape `yaml:"escape" doc:"Delimited: how the first and last byte are written inside a frame."`

	LeadBit *int    `yaml:"lead_bit" min:"0" max:"7" doc:"Fixed: this bit is set in the first byte of a frame and in no other."`
	Set     []BitAt `yaml:"set" doc:"Bits that are set in every frame, or in every frame of a sequence."`
	Parts   int     `yaml:"parts" min:"0" max:"255" doc:"Sequence: number of frames that belong together."`
	First   *BitAt  `yaml:"first" doc:"Sequence: the bit that is set in its first frame only."`

	Check Check  `yaml:"check" doc:"How damage is found."`
	Head  *Check `yaml:"head" doc:"A second check, of the head of the frame; with at and to."`

	Split    string        `yaml:"split" doc:"Text: the character between two fields, or blanks; a comma if not given."`
	Pairs    string        `yaml:"pairs" doc:"Text: the character between key and value, for points with key; = if not given."`
	Patterns []string      `yaml:"patterns" doc:"Text: regular expressions with named groups, for points with group; the first that fits counts."`
	Records  *Records      `yaml:"records" doc:"The frame holds a number of records of one form."`
	Unit     *Many         `yaml:"unit" doc:"Where the unit address of the device stands; frames of others are not taken."`
	Debounce time.Duration `yaml:"debounce" doc:"Modem lines: a change counts when it lasts so long; 0 if not given."`
	Once     []string      `yaml:"once" doc:"Points that name a record, such as its time: a record with the same content is told once."`

	Thin time.Duration `yaml:"thin" doc:"Of frames that come faster, one in this time is told."`
}

// Count is the length field of a counted frame.
type Count struct {
	At    int    `yaml:"at" min:"0" max:"64" doc:"Offset of the field."`
	Type  string `yaml:"type" enum:"u8,u16" doc:"u8 if not given."`
	Order string `yaml:"order" enum:"big,little" doc:"big if not given."`
	Adds  int    `yaml:"adds" min:"-64" max:"4096" doc:"Bytes of the frame that the field does not count."`
}

// Escape says how bytes that have a meaning of their own are written inside
// a delimited frame: the escape byte, then the byte with some bits turned.
type Escape struct {
	Byte Hex `yaml:"byte" required:"true" doc:"The escape byte, such as 7D."`
	Xor  Hex `yaml:"xor" required:"true" doc:"Bits turned in the byte behind it: 20; F0 where only the low half is sent."`
}

// BitAt is one bit of a frame.
type BitAt struct {
	At  int `yaml:"at" min:"0" max:"4095" doc:"Offset of the byte."`
	Bit int `yaml:"bit" min:"0" max:"7" doc:"The bit, 0 = least significant."`
}

func (x *BitAt) isSet(b []byte) bool { return b[x.At]>>x.Bit&1 != 0 }

const defaultMax = 256

// rawFrames is Frames prepared for use.
type rawFrames struct {
	line      bool
	obis      bool
	delimited bool
	guarded   bool   // a check protects the content
	start     []byte // characters a line may start with; empty = any
	end       byte   // of a line
	block     bool   // an empty line ends the frame
	max       int
	least     int // bytes that must be there before the size is known
	sync      []byte
	tail      []byte
	size      int // of the whole frame; 0 = it varies
	part      int // of one frame of a sequence; 0 = no sequence
	count     *Count
	esc, xor  byte
	escapes   bool
	lead      int // bit of the first byte only; -1 = none
	set       []BitAt
	first     *BitAt
	check     Check
	head      *Check
	split     byte // 0 = blanks
	pairs     byte
	patterns  []*regexp.Regexp
	records   *Records
	unit      *Many
	mbus      bool
}

// build checks the frames and prepares them.
func (f *Frames) build(r report) rawFrames {
	out := rawFrames{max: f.Max, check: f.Check, head: f.Head, sync: f.Sync, tail: f.Tail, size: f.Size,
		count: f.Length, set: f.Set, first: f.First, unit: f.Unit, lead: -1}
	if out.max == 0 {
		out.max = max(defaultMax, f.Size*max(f.Parts, 1))
	}
	if out.check.Kind == "" {
		out.check.Kind = "none"
	}
	switch f.Kind {
	case "line":
		f.buildLine(&out, r)
	case "counted":
		f.buildCounted(&out, r)
	case "fixed", "sequence":
		f.buildFixed(&out, r)
	case "delimited":
		f.buildDelimited(&out, r)
	case "modem-lines":
		out.size, out.least, out.max = 1, 1, 1
		if out.check.Kind != "none" || f.Max != 0 || len(f.Tail) > 0 || f.Records != nil || f.Thin != 0 || f.Debounce < 0 || f.Debounce > time.Minute {
			r("", "modem lines have at most a time of debounce, 0 to 1m", "write frames: {kind: modem-lines, debounce: 100ms}")
		}
	case "mbus":
		out.mbus, out.sync, out.least, out.max = true, []byte{0x68}, 9, 261
		if out.check.Kind != "none" || f.Max != 0 || len(f.Tail) > 0 || f.Records != nil || f.Thin != 0 {
			r("", "a frame of the M-Bus has its own form and check", "write frames: {kind: mbus}")
		}
	case "obis":
		out.obis = true
		if c := out.check; c.Kind != "none" && c != (Check{Kind: "crc16-arc"}) && c != (Check{Kind: "xor"}) || f.Max != 0 || len(f.Tail) > 0 || f.Records != nil {
			r("", "a telegram has its own form and check", "write frames: {kind: obis}, with check: crc16-arc or check: xor if every telegram must have one")
		}
	default:
		r("kind", fmt.Sprintf("%q is no kind of frame", f.Kind), "write kind: line, counted, fixed, delimited, sequence, obis, mbus or modem-lines")
	}
	f.foreign(r)
	if f.Unit != nil {
		f.Unit.check(sub(r, "unit"))
	}
	if f.Thin != 0 && (f.Thin < 0 || out.line || f.Records != nil) {
		r("thin", "thin is for binary frames of one kind", "remove it, or set a sampling rule in the configuration")
	}
	out.guarded = out.check.bytes() > 0
	f.buildText(&out, r)
	f.buildRecords(&out, r)
	return out
}

// foreign finds keys that belong to another kind.
func (f *Frames) foreign(r report) {
	for _, k := range []struct {
		key   string
		given bool
		kinds string
	}{
		{"start", f.Start != "", "line"}, {"end", f.End != "", "line"}, {"sync", len(f.Sync) > 0, "counted fixed sequence delimited"},
		{"length", f.Length != nil, "counted"}, {"size", f.Size != 0, "counted fixed sequence"},
		{"escape", f.Escape != nil, "delimited"}, {"lead_bit", f.LeadBit != nil, "fixed"},
		{"set", f.Set != nil, "counted fixed sequence"}, {"parts", f.Parts != 0, "sequence"}, {"first", f.First != nil, "sequence"},
		{"split", f.Split != "", "line delimited"}, {"pairs", f.Pairs != "", "line delimited"},
		{"debounce", f.Debounce != 0, "modem-lines"},
		{"patterns", f.Patterns != nil, "line delimited"}, {"head", f.Head != nil, "counted fixed delimited"},
	} {
		if k.given && !containsWord(k.kinds, f.Kind) {
			r(k.key, k.key+" does not belong to frames of the kind "+f.Kind, "remove it, or choose the kind: "+k.kinds)
		}
	}
	if f.Check.Kind == "nmea" && f.Kind != "line" {
		r("check", "nmea is for lines", "")
	}
}

func containsWord(words, w string) bool {
	for _, x := range bytes.Fields([]byte(words)) {
		if string(x) == w {
			return true
		}
	}
	return false
}

func (f *Frames) buildLine(out *rawFrames, r report) {
	out.line = true
	switch {
	case f.End == "" || f.End == "CRLF" || f.End == "LF":
		out.end = '\n'
	case f.End == "LFLF":
		out.end, out.block = '\n', true
	case f.End == "CR":
		out.end = '\r'
	case len(f.End) == 1 && f.End[0] > ' ' && f.End[0] < 0x7f:
		out.end = f.End[0]
	default:
		r("end", fmt.Sprintf("%q ends no line", f.End), "write CR, LF, CRLF, LFLF or one character")
	}
	switch {
	case f.Start == "STX":
		out.start = []byte{2}
	case len(f.Start) == 1 && f.Start != "\r" && f.Start != "\n":
		out.start = []byte(f.Start)
	case f.Start != "":
		r("start", fmt.Sprintf("%q is no start character", f.Start), `write one character such as "$", or STX`)
	}
	switch {
	case out.check.Kind == "nmea":
		// The XOR of what stands between $ and *.
		out.check.Kind, out.check.Form, out.tail = "xor", "hex", []byte{'*'}
		if out.start == nil {
			out.start = []byte("$!")
		}
	case out.check.bytes() > 0:
		out.check.Form = "hex" // a line has no room for bytes of any content
	}
	if c := &out.check; c.bytes() > 0 {
		// It stands at the end and covers the text, with the tail if it says so.
		from, to := min(len(out.start), 1), -c.size()
		if !c.After {
			to -= len(out.tail)
		}
		c.From, c.To = first(c.From, &from), first(c.To, &to)
	}
}

func (f *Frames) buildCounted(out *rawFrames, r report) {
	if len(f.Sync) == 0 {
		r("sync", "a counted frame needs sync bytes", "write the bytes that every frame starts with, such as sync: 42 4D")
	}
	if f.Length == nil && f.Size == 0 {
		r("length", "the size of a frame is not known", "write size: 32, or length: {at: 2, type: u16, adds: 4}")
	}
	out.least = len(f.Sync)
	if f.Length != nil {
		out.least = max(out.least, f.Length.At+f.Length.bytes())
	}
	f.room(out, r)
}

// room checks that the parts of a frame fit into it.
func (f *Frames) room(out *rawFrames, r report) {
	smallest := out.least + out.check.size() + len(f.Tail)
	if f.Size != 0 && f.Size < smallest {
		r("size", fmt.Sprintf("a frame of %d bytes has no room for its own sync, length, check and tail", f.Size), "")
	}
	for i, b := range f.Set {
		if b.At >= out.max || f.Size != 0 && b.At >= f.Size {
			r("set["+strconv.Itoa(i)+"]", "the bit stands behind the end of the frame", "")
		}
		out.least = max(out.least, b.At+1)
	}
	out.least = max(out.least, 1)
	if smallest > out.max || f.Size > out.max {
		r("max", "the longest frame is shorter than one frame", "")
	}
}

func (f *Frames) buildFixed(out *rawFrames, r report) {
	out.least = max(len(f.Sync), 1)
	if f.Size == 0 {
		r("size", "the size of a frame is not known", "write size: 5")
		return
	}
	if f.LeadBit != nil {
		out.lead = *f.LeadBit
	}
	if len(f.Sync) == 0 && f.LeadBit == nil && f.First == nil && f.Check.bytes() == 0 {
		r("sync", "nothing says where a frame begins", "write sync bytes, lead_bit or a check")
	}
	f.room(out, r)
	if f.Kind != "sequence" {
		return
	}
	if f.Parts < 2 || f.First == nil || f.First.At >= f.Size {
		r("parts", "a sequence is two or more frames, the first of which has a mark", "write parts: 25 and first: {at: 1, bit: 0}")
		return
	}
	out.part, out.size = f.Size, f.Size*f.Parts
	if out.size > out.max {
		r("max", "the longest frame is shorter than the sequence", "")
	}
}

func (f *Frames) buildDelimited(out *rawFrames, r report) {
	out.delimited = true
	if len(f.Sync) == 0 || len(f.Tail) == 0 {
		r("sync", "a delimited frame has a first and a last byte", "write sync: 7E and tail: 7E")
	}
	out.least = len(f.Sync)
	if e := f.Escape; e != nil {
		if len(e.Byte) != 1 || len(e.Xor) != 1 || e.Xor[0] == 0 {
			r("escape", "an escape is one byte and the bits it turns", "write escape: {byte: 7D, xor: 20}")
			return
		}
		out.esc, out.xor, out.escapes = e.Byte[0], e.Xor[0], true
	}
}

// buildText prepares how the text of a frame is taken apart.
func (f *Frames) buildText(out *rawFrames, r report) {
	char := func(key, s, def string) byte {
		switch {
		case s == "":
			s = def
		case s == "tab":
			s = "\t"
		case s == "blanks" && key == "split":
			return 0
		}
		if len(s) != 1 {
			r(key, fmt.Sprintf("%q is not one character", s), `write one character such as ";", or tab`)
			return ','
		}
		return s[0]
	}
	out.split, out.pairs = char("split", f.Split, ","), char("pairs", f.Pairs, "=")
	for i, p := range f.Patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			r("patterns["+strconv.Itoa(i)+"]", err.Error(), "")
			continue
		}
		out.patterns = append(out.patterns, re)
	}
}

func (c *Count) bytes() int {
	if c.Type == "u16" {
		return 2
	}
	return 1
}

// value returns what the length field says.
func (c *Count) value(b []byte) int {
	switch {
	case c.bytes() == 1:
		return int(b[c.At])
	case c.Order == "little":
		return int(b[c.At+1])<<8 | int(b[c.At])
	}
	return int(b[c.At])<<8 | int(b[c.At+1])
}

// put is the inverse of value.
func (c *Count) put(b []byte, n int) {
	switch {
	case c.bytes() == 1:
		b[c.At] = byte(n)
	case c.Order == "little":
		b[c.At], b[c.At+1] = byte(n), byte(n>>8)
	default:
		b[c.At], b[c.At+1] = byte(n>>8), byte(n)
	}
}
