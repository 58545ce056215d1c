package profile

import (
	"strconv"

	"tidegate/internal/telemetry"
)

// Records says how a frame is divided into records of one form. The offsets
// of points are then counted from the start of their record, or of the block
// or the frame where they say so.
type Records struct {
	At    int   `yaml:"at" min:"0" max:"4095" doc:"Where the first block or record begins in the frame."`
	Size  int   `yaml:"size" required:"true" min:"1" max:"4095" doc:"Size of a record."`
	Block int   `yaml:"block" min:"0" max:"4095" doc:"Size of the head of a block of records; 0 if there are no blocks."`
	Count *Many `yaml:"count" doc:"How many records follow; as many as there is room for if not given."`
	Empty int   `yaml:"empty" min:"0" max:"4095" doc:"Bytes that follow the head of a block without records."`
}

// Many is a whole number in a frame: how many records there are (in the head
// of their block, or in the frame if there are no blocks), or a unit address.
type Many struct {
	At     int    `yaml:"at" min:"0" max:"4095" doc:"Offset of the field."`
	Type   string `yaml:"type" enum:"u8,u16,number,hex" doc:"u8 if not given; number and hex are digits."`
	Length int    `yaml:"length" min:"0" max:"8" doc:"How many digits."`
}

// buildRecords checks the records.
func (f *Frames) buildRecords(out *rawFrames, r report) {
	c := f.Records
	if c == nil {
		return
	}
	if f.Kind == "sequence" {
		r("records", "a sequence has no records", "")
		return
	}
	if c.Block > 0 && c.Count == nil {
		r("records.count", "nothing says how many records a block has", "write count: {at: 2, type: number, length: 2}")
		return
	}
	if c.Count != nil && !c.Count.check(sub(r, "records.count")) {
		return
	}
	out.records = c
}

// check finds a width where none belongs.
func (m *Many) check(r report) bool {
	if (m.Type == "number" || m.Type == "hex") == (m.Length == 0) {
		r("length", "digits have a number, bytes have not", "write type: number with length: 2, or type: u8")
		return false
	}
	return true
}

// size returns how many bytes the field takes.
func (m *Many) size() int {
	switch m.Type {
	case "number", "hex":
		return m.Length
	case "u16":
		return 2
	}
	return 1
}

// value reads the field; -1 if it is not there or no number.
func (m *Many) value(b []byte) int {
	if m.At+m.size() > len(b) {
		return -1
	}
	b = b[m.At : m.At+m.size()]
	switch m.Type {
	case "number", "hex":
		base := 10
		if m.Type == "hex" {
			base = 16
		}
		n, err := strconv.ParseUint(string(b), base, 31)
		if err != nil {
			return -1
		}
		return int(n)
	case "u16":
		return int(b[0])<<8 | int(b[1])
	}
	return int(b[0])
}

// decodeRecords appends the readings of all records. A frame whose counts do
// not fit its size says nothing.
func (p *Profile) decodeRecords(frame []byte, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	began := len(dst)
	c := p.raw.records
	dst = p.decodePart(ofFrame, frame, base, dst)
	at, count := c.At, -1
	if c.Count != nil && c.Block == 0 {
		if count = c.Count.value(frame); count < 0 {
			return dst[:began]
		}
	}
	for blocks := true; blocks && at <= len(frame); blocks = c.Block > 0 && at < len(frame) {
		var head []byte
		if c.Block > 0 {
			if at+c.Block > len(frame) {
				return dst[:began]
			}
			head = frame[at : at+c.Block]
			at += c.Block
			switch count = c.Count.value(head); count {
			case -1:
				return dst[:began]
			case 0:
				at += c.Empty
			}
		}
		for n := 0; n != count && (count >= 0 || at+c.Size <= len(frame)); n++ {
			if at+c.Size > len(frame) {
				return dst[:began]
			}
			dst = p.decodePart(ofBlock, head, base, dst)
			dst = p.decodePart(ofRecord, frame[at:at+c.Size], base, dst)
			at += c.Size
		}
	}
	if at != len(frame) {
		return dst[:began] // something is left over: the form is another one
	}
	return dst
}

// decodePart appends the readings of the points that stand in a part.
func (p *Profile) decodePart(of part, b []byte, base uint32, dst []telemetry.Reading) []telemetry.Reading {
	if b == nil {
		return dst
	}
	t := textLine{f: &p.raw, body: b, columns: b}
	for i := range p.codecs {
		if s := p.codecs[i].spot; s != nil && s.of == of {
			dst = p.decodePoint(i, b, &t, base, dst)
		}
	}
	return dst
}

// Groups parts the readings of one frame into those that belong together: a
// new group begins where a point comes for the second time. What the head of
// the frame says goes with the first one.
func Groups(all []telemetry.Reading, group func([]telemetry.Reading)) {
	from := 0
	for i := range all {
		for k := from; k < i; k++ {
			if all[k].Point == all[i].Point {
				group(all[from:i])
				from = i
				break
			}
		}
	}
	if from < len(all) {
		group(all[from:])
	}
}

// Memory knows which records of a device were told already.
type Memory struct {
	points []uint32
	known  map[string]struct{}
	order  []string
}

// memorySize is how many records are remembered.
const memorySize = 2000

// NewMemory returns a memory for the frames' `once`; nil if they have none.
func (p *Profile) NewMemory() *Memory {
	if p.Frames == nil || len(p.Frames.Once) == 0 {
		return nil
	}
	m := &Memory{known: map[string]struct{}{}}
	for _, name := range p.Frames.Once {
		m.points = append(m.points, uint32(p.index(name)))
	}
	return m
}

// New says whether a group of readings is a record that was not told
// before, and remembers it. A record without its name is always new; so is
// everything to a nil Memory.
func (m *Memory) New(group []telemetry.Reading, base uint32) bool {
	if m == nil {
		return true
	}
	var key []byte
	named := false
	for _, point := range m.points {
		for i := range group {
			if group[i].Point == base+point && group[i].Value.Kind() != telemetry.None {
				key = group[i].Value.AppendText(key)
				named = true
			}
		}
		key = append(key, 0)
	}
	if !named {
		return true
	}
	if _, ok := m.known[string(key)]; ok {
		return false
	}
	if len(m.order) >= memorySize {
		delete(m.known, m.order[0])
		m.order = m.order[1:]
	}
	m.known[string(key)] = struct{}{}
	m.order = append(m.order, string(key))
	return true
}
