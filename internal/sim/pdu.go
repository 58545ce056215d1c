package sim

import (
	"encoding/binary"
	"time"

	"tidegate/driver/profile"
)

// The exception codes that the model itself gives.
const (
	illegalFunction = 1
	illegalAddress  = 2
	illegalValue    = 3
)

// span says what a request touches; count 0 for functions that touch nothing
// or that are not known.
func span(pdu []byte) (t profile.Table, addr, count int) {
	if len(pdu) < 5 {
		return 0, 0, 0
	}
	addr = int(binary.BigEndian.Uint16(pdu[1:]))
	count = int(binary.BigEndian.Uint16(pdu[3:]))
	switch pdu[0] {
	case 1, 2, 3, 4:
		return profile.Table(pdu[0]), addr, count
	case 5:
		return profile.Coils, addr, 1
	case 6, 22:
		return profile.Holding, addr, 1
	case 15:
		return profile.Coils, addr, count
	case 16, 23:
		return profile.Holding, addr, count
	}
	return 0, 0, 0
}

// answer executes one request as the Modbus application protocol 1.1b3 says,
// in its order: function, then quantity, then address. It returns the answer
// PDU, which is an exception where the request was refused.
func (u *Unit) answer(pdu []byte, now time.Time) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	fc := pdu[0]
	refuse := func(code byte) []byte { return []byte{fc | 0x80, code} }
	word := func(i int) int { return int(binary.BigEndian.Uint16(pdu[i:])) }
	exact := func(n int) bool { return len(pdu) == n }
	switch fc {
	case 1, 2:
		if !exact(5) || word(3) < 1 || word(3) > 2000 {
			return refuse(illegalValue)
		}
		bits := make([]uint16, word(3))
		if over(len(bits), u.limits[1]) || !u.tables[fc].get(word(1), bits, now) {
			return refuse(illegalAddress)
		}
		return append([]byte{fc, byte((len(bits) + 7) / 8)}, packBits(bits)...)
	case 3, 4:
		if !exact(5) || word(3) < 1 || word(3) > 125 {
			return refuse(illegalValue)
		}
		return u.readRegs(fc, profile.Table(fc), word(1), word(3), now)
	case 5:
		if !exact(5) || word(3) != 0 && word(3) != 0xFF00 {
			return refuse(illegalValue)
		}
		return u.store(pdu, profile.Coils, word(1), []uint16{uint16(word(3) >> 15)})
	case 6:
		if !exact(5) {
			return refuse(illegalValue)
		}
		return u.store(pdu, profile.Holding, word(1), []uint16{uint16(word(3))})
	case 15:
		if len(pdu) < 6 || word(3) < 1 || word(3) > 1968 ||
			int(pdu[5]) != (word(3)+7)/8 || !exact(6+int(pdu[5])) {
			return refuse(illegalValue)
		}
		bits := make([]uint16, word(3))
		for i := range bits {
			bits[i] = uint16(pdu[6+i/8] >> (i % 8) & 1)
		}
		return u.store(pdu, profile.Coils, word(1), bits)
	case 16:
		if len(pdu) < 6 || word(3) < 1 || word(3) > 123 ||
			int(pdu[5]) != 2*word(3) || !exact(6+int(pdu[5])) {
			return refuse(illegalValue)
		}
		return u.store(pdu, profile.Holding, word(1), unpackRegs(pdu[6:]))
	case 22:
		if !exact(7) {
			return refuse(illegalValue)
		}
		reg := make([]uint16, 1)
		if !u.tables[profile.Holding].get(word(1), reg, now) {
			return refuse(illegalAddress)
		}
		and, or := uint16(word(3)), uint16(word(5))
		reg[0] = reg[0]&and | or&^and
		u.tables[profile.Holding].write(word(1), reg)
		return append([]byte(nil), pdu...)
	case 23:
		if len(pdu) < 10 || word(3) < 1 || word(3) > 125 || word(7) < 1 || word(7) > 121 ||
			int(pdu[9]) != 2*word(7) || !exact(10+int(pdu[9])) {
			return refuse(illegalValue)
		}
		h := &u.tables[profile.Holding]
		if !h.has(word(1), word(3)) || !h.write(word(5), unpackRegs(pdu[10:])) {
			return refuse(illegalAddress)
		}
		return u.readRegs(fc, profile.Holding, word(1), word(3), now)
	}
	return refuse(illegalFunction)
}

func (u *Unit) readRegs(fc byte, t profile.Table, addr, count int, now time.Time) []byte {
	regs := make([]uint16, count)
	if over(count, u.limits[0]) || !u.tables[t].get(addr, regs, now) {
		return []byte{fc | 0x80, illegalAddress}
	}
	out := make([]byte, 2, 2+2*count)
	out[0], out[1] = fc, byte(2*count)
	for _, r := range regs {
		out = binary.BigEndian.AppendUint16(out, r)
	}
	return out
}

// store executes the writes whose answer repeats the first five bytes.
func (u *Unit) store(pdu []byte, t profile.Table, addr int, values []uint16) []byte {
	if !u.tables[t].write(addr, values) {
		return []byte{pdu[0] | 0x80, illegalAddress}
	}
	return append([]byte(nil), pdu[:5]...)
}

func over(n, limit int) bool { return limit > 0 && n > limit }

func packBits(bits []uint16) []byte {
	out := make([]byte, (len(bits)+7)/8)
	for i, b := range bits {
		if b != 0 {
			out[i/8] |= 1 << (i % 8)
		}
	}
	return out
}

func unpackRegs(b []byte) []uint16 {
	regs := make([]uint16, len(b)/2)
	for i := range regs {
		regs[i] = binary.BigEndian.Uint16(b[2*i:])
	}
	return regs
}

// crc16 is the checksum of Modbus RTU: polynomial 0xA001, start 0xFFFF, sent
// low byte first.
func crc16(b []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

// lrc is the checksum of Modbus ASCII: the two's complement of the sum.
func lrc(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}
