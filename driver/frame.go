package driver

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/goburrow/modbus"

	"tidegate/driver/profile"
)

// ask is one request, encoded once and sent often.
type ask struct {
	unit, fc    byte
	addr, count uint16
	body        int    // bytes of data that a right answer carries; of a write, of its whole PDU
	echo        []byte // of a write: what the answer repeats of the request; else nil
	free        bool   // the length of the answer is the device's choice
	mirror      bool   // the right answer looks just like the request
	expect      int    // bytes of a right answer on the wire
	adu         []byte // the request as sent; on TCP wire.do writes the transaction number into it
}

// newAsk encodes a read with the packager of the framing.
func newAsk(pk modbus.Packager, k kind, unit byte, t profile.Table, addr, count uint16) (*ask, error) {
	a := &ask{unit: unit, fc: byte(t), addr: addr, count: count}
	most := uint16(125)
	switch {
	case t < profile.Coils || t > profile.Input:
		return nil, fmt.Errorf("%w: there is no table %d", ErrRequest, uint8(t))
	case t.Bits():
		most, a.body = 2000, (int(count)+7)/8
	default:
		a.body = 2 * int(count)
	}
	if count < 1 || count > most {
		return nil, fmt.Errorf("%w: count %d is outside 1..%d", ErrRequest, count, most)
	}
	if int(addr)+int(count) > 1<<16 {
		return nil, fmt.Errorf("%w: addresses %d to %d go past 65535", ErrRequest, addr, int(addr)+int(count)-1)
	}
	return a, a.encode(pk, k, words(addr, count), 1+a.body)
}

// encode makes the bytes of the request; answer is how many bytes the data
// of the answer's PDU have.
func (a *ask) encode(pk modbus.Packager, k kind, data []byte, answer int) error {
	adu, err := pk.Encode(&modbus.ProtocolDataUnit{FunctionCode: a.fc, Data: data})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	a.adu = adu
	switch k {
	case kindTCP:
		a.expect = 8 + answer
	case kindASCII:
		a.expect = 9 + 2*answer
	default:
		a.expect = 4 + answer
	}
	return nil
}

// words appends registers to nothing.
func words(w ...uint16) []byte {
	var b []byte
	for _, x := range w {
		b = binary.BigEndian.AppendUint16(b, x)
	}
	return b
}

// packager returns the framing of a unit. The handlers of the library are
// used as packagers alone: they never open anything.
func packager(k kind, unit byte) modbus.Packager {
	switch k {
	case kindTCP:
		h := modbus.NewTCPClientHandler("")
		h.SlaveId = unit
		return h
	case kindASCII:
		h := modbus.NewASCIIClientHandler("")
		h.SlaveId = unit
		return h
	}
	h := modbus.NewRTUClientHandler("")
	h.SlaveId = unit
	return h
}

// frame is a whole frame whose check holds.
type frame struct {
	unit byte
	pdu  modbus.ProtocolDataUnit // Data lies in the bytes the frame was cut from (not for ASCII)
}

// cut finds the first whole frame in b. skip bytes before it are garbage, n
// bytes are the frame; n is 0 if there is none yet. What stands first is cut
// first: a frame that may still become whole holds back what stands behind
// its beginning, because that may be its content. With quiet, nothing more
// comes for now, and such beginnings are passed over.
func cut(k kind, pk modbus.Packager, b []byte, quiet bool) (f frame, skip, n int) {
	for i := range b {
		var more bool
		switch k {
		case kindTCP:
			f, n, more = headTCP(b[i:])
		case kindASCII:
			f, n, more = headASCII(pk, b[i:])
		default:
			f, n, more = headRTU(pk, b[i:])
		}
		if n > 0 || more && !quiet {
			return f, i, n
		}
	}
	return f, len(b), 0
}

// headRTU says whether b begins with a whole RTU frame of n bytes, or with
// what may become one.
func headRTU(pk modbus.Packager, b []byte) (f frame, n int, more bool) {
	if b[0] > 247 {
		return f, 0, false // no unit address
	}
	lens, known, more := lengthsRTU(b)
	if !known {
		return f, 0, more
	}
	for _, l := range lens {
		switch {
		case l == 0 || l > 256:
		case len(b) < l:
			more = true
		default:
			if pdu, err := pk.Decode(b[:l:l]); err == nil {
				return frame{b[0], *pdu}, l, false
			}
		}
	}
	return f, 0, more
}

// lengthsRTU returns how long a frame that begins with b may be, as an answer
// and as a request; 0 where that cannot be. more: it depends on bytes that
// have not come yet.
func lengthsRTU(b []byte) (lens [2]int, known, more bool) {
	if len(b) < 2 {
		return lens, false, true
	}
	at := func(i, base int) int { // base + the count that stands at i
		if i >= len(b) {
			more = true
			return 0
		}
		return base + int(b[i])
	}
	switch fc := b[1]; {
	case fc&0x80 != 0:
		lens[0] = 5
	case fc >= 1 && fc <= 4:
		lens = [2]int{at(2, 5), 8}
	case fc == 5 || fc == 6 || fc == 8:
		lens[0] = 8
	case fc == 7:
		lens = [2]int{5, 4}
	case fc == 11:
		lens = [2]int{8, 4}
	case fc == 12 || fc == 17:
		lens = [2]int{at(2, 5), 4}
	case fc == 15 || fc == 16:
		lens = [2]int{8, at(6, 9)}
	case fc == 20 || fc == 21:
		lens[0] = at(2, 5)
	case fc == 22:
		lens[0] = 10
	case fc == 23:
		lens = [2]int{at(2, 5), at(10, 13)}
	case fc == 43:
		if n, m := lengthMEI(b); m {
			more = true
		} else {
			lens[0] = n
		}
		lens[1] = 7
	case fc == 24:
		lens[1] = 6
		if len(b) >= 4 {
			lens[0] = 6 + int(binary.BigEndian.Uint16(b[2:]))
		} else {
			more = true
		}
	default:
		return lens, false, false
	}
	return lens, true, more
}

// lengthMEI returns how long the answer to a read of the identification
// (function 43, MEI type 14) is that begins with b: its objects say so. It is
// 0 if b is none; more: that depends on bytes that have not come yet.
func lengthMEI(b []byte) (n int, more bool) {
	if len(b) < 8 {
		return 0, len(b) < 3 || b[2] == 14
	}
	if b[2] != 14 {
		return 0, false
	}
	n = 8
	for range b[7] {
		if len(b) < n+2 {
			return 0, true
		}
		if n += 2 + int(b[n+1]); n > 254 {
			return 0, false
		}
	}
	return n + 2, false
}

func headASCII(pk modbus.Packager, b []byte) (f frame, n int, more bool) {
	if b[0] != ':' {
		return f, 0, false
	}
	end := bytes.IndexByte(b, '\n')
	if again := bytes.IndexByte(b[1:], ':'); again >= 0 && (end < 0 || again+1 < end) {
		return f, 0, false // cut off by a new beginning
	}
	if end < 0 {
		return f, 0, len(b) < 513
	}
	l := end + 1
	if l < 9 || l%2 != 1 || l > 513 || b[end-1] != '\r' {
		return f, 0, false
	}
	pdu, err := pk.Decode(b[:l:l])
	if err != nil {
		return f, 0, false
	}
	unit, ok := hexByte(b[1], b[2])
	if !ok {
		return f, 0, false
	}
	return frame{unit, *pdu}, l, false
}

func hexByte(hi, lo byte) (byte, bool) {
	digit := func(c byte) (byte, bool) {
		switch {
		case c >= '0' && c <= '9':
			return c - '0', true
		case c >= 'A' && c <= 'F':
			return c - 'A' + 10, true
		case c >= 'a' && c <= 'f':
			return c - 'a' + 10, true
		}
		return 0, false
	}
	h, ok1 := digit(hi)
	l, ok2 := digit(lo)
	return h<<4 | l, ok1 && ok2
}

func headTCP(b []byte) (f frame, n int, more bool) {
	if len(b) > 2 && b[2] != 0 || len(b) > 3 && b[3] != 0 || len(b) > 4 && b[4] != 0 {
		return f, 0, false // protocol 0, at most 254 bytes
	}
	if len(b) < 6 {
		return f, 0, true
	}
	l := int(binary.BigEndian.Uint16(b[4:]))
	if l < 3 || l > 254 {
		return f, 0, false
	}
	if len(b) < 6+l {
		return f, 0, true
	}
	return frame{b[6], modbus.ProtocolDataUnit{FunctionCode: b[7], Data: b[8 : 6+l : 6+l]}}, 6 + l, false
}

// answer says what a frame is to a request: the data of a right answer, the
// code of a refusal, or neither.
func (a *ask) answer(f frame) (data []byte, refused Exception, ok bool) {
	if f.unit != a.unit {
		return nil, 0, false
	}
	d := f.pdu.Data
	switch {
	case f.pdu.FunctionCode == a.fc|0x80 && len(d) == 1 && d[0] != 0: // there is no exception 0
		return nil, Exception(d[0]), true
	case f.pdu.FunctionCode != a.fc:
	case a.echo != nil:
		return d, 0, bytes.Equal(d, a.echo)
	case a.free && a.fc == 43:
		return d, 0, len(d) > 1 && d[0] == 14
	case a.free:
		return d[min(1, len(d)):], 0, len(d) > 0 && len(d) == 1+int(d[0])
	default:
		return d[min(1, len(d)):], 0, len(d) == 1+a.body && int(d[0]) == a.body
	}
	return nil, 0, false
}

// shape returns what tells answers of one function apart: the byte count, or
// of a write the length.
func (f frame) shape() int {
	d := f.pdu.Data
	switch fc := f.pdu.FunctionCode; {
	case len(d) == 0:
		return 0
	case fc == 5, fc == 6, fc == 15, fc == 16, fc == 22, fc == 43:
		return len(d)
	}
	return int(d[0])
}

// bare says whether b is a refusal that came without its check, as some
// devices send it, and nothing else: unit, function with the high bit, code.
func (a *ask) bare(k kind, b []byte) (Exception, bool) {
	if k != kindRTU || len(b) != 3 || b[0] != a.unit || b[1] != a.fc|0x80 || b[2] < 1 || b[2] > 11 || b[2] == 9 {
		return 0, false
	}
	return Exception(b[2]), true
}

// damage looks for what is left of our answer in bytes that hold no whole
// frame: full is an answer of the right length whose check fails, part the
// beginning of one.
func (a *ask) damage(k kind, b []byte) (full, part bool) {
	third := byte(a.body)
	switch {
	case a.echo != nil:
		third = a.echo[0]
	case a.fc == 43:
		third = 14
	case a.free:
		return false, false
	}
	if k == kindASCII {
		want := []byte(fmt.Sprintf(":%02X%02X%02X", a.unit, a.fc, third))
		i := bytes.Index(b, want)
		if i < 0 {
			return false, false
		}
		return len(b)-i >= a.expect, true
	}
	if k == kindTCP {
		return false, len(b) >= 2 && bytes.Equal(b[:2], a.adu[:2])
	}
	for i := 0; i+2 < len(b); i++ {
		if b[i] != a.unit {
			continue
		}
		switch {
		case b[i+1] == a.fc && b[i+2] == third:
			part = true
			if len(b)-i >= a.expect {
				return true, true
			}
		case b[i+1] == a.fc|0x80 && len(b)-i == 5 && b[i+2] < 12:
			return true, true
		}
	}
	return false, part
}
