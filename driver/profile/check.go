package profile

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Check is the checksum of a frame. It may be written as its kind alone.
// At, From and To are offsets from the start of the frame, or from its end
// where they are negative.
type Check struct {
	Kind    string `yaml:"kind" required:"true" enum:"none,nmea,sum8,sum16,negated-sum,inverted-sum,xor,crc8,crc16-modbus,crc16-arc,crc16-ccitt" doc:"negated-sum: the sum with the check is 0; inverted-sum: the sum with the check is 0xFF; crc16-modbus and crc16-arc: low byte first."`
	Form    string `yaml:"form" enum:"bytes,hex" doc:"hex: the check is written in hexadecimal digits, as in lines; bytes if not given."`
	After   bool   `yaml:"after" doc:"The check stands behind the tail, and the tail is covered by it (BCC)."`
	At      *int   `yaml:"at" min:"-64" max:"4096" doc:"Where the check stands; before the tail if not given."`
	From    *int   `yaml:"from" min:"-64" max:"4096" doc:"First byte it covers; 0 if not given, in delimited frames and lines the byte after the sync or start."`
	To      *int   `yaml:"to" min:"-64" max:"4096" doc:"The byte after the last one it covers; the check itself if not given."`
	Order   string `yaml:"order" enum:"big,little" doc:"Order of a check of two bytes."`
	Poly    *int   `yaml:"poly" min:"0" max:"65535" doc:"crc8: polynomial, 0x07 if not given; crc16-ccitt: 0x1021 if not given."`
	Init    *int   `yaml:"init" min:"0" max:"65535" doc:"Start value of a CRC; crc16-modbus 0xFFFF, the others 0 if not given."`
	Reflect bool   `yaml:"reflect" doc:"crc8: bits run from the least significant one."`
}

// UnmarshalText takes the kind alone.
func (c *Check) UnmarshalText(b []byte) error {
	if slices.Contains(checkKinds(), string(b)) {
		c.Kind = string(b)
		return nil
	}
	return fmt.Errorf("%q is no check; known are %s", string(b), strings.Join(checkKinds(), ", "))
}

func checkKinds() []string {
	return []string{"none", "nmea", "sum8", "sum16", "negated-sum", "inverted-sum", "xor", "crc8",
		"crc16-modbus", "crc16-arc", "crc16-ccitt"}
}

// bytes returns the size of the check as it is computed.
func (c *Check) bytes() int {
	switch c.Kind {
	case "", "none", "nmea":
		return 0
	case "sum16", "crc16-modbus", "crc16-arc", "crc16-ccitt":
		return 2
	}
	return 1
}

// size returns how many bytes the check takes in the frame.
func (c *Check) size() int {
	if c.Form == "hex" {
		return 2 * c.bytes()
	}
	return c.bytes()
}

// value computes the check over b, in the order of the wire: the first byte
// is the high one.
func (c *Check) value(b []byte) uint16 {
	var sum uint16
	little := c.Order == "little"
	switch c.Kind {
	case "xor":
		for _, x := range b {
			sum ^= uint16(x)
		}
	case "crc8":
		sum = uint16(crc8(b, byte(c.poly(0x07)), byte(c.start(0)), c.Reflect))
	case "crc16-modbus":
		sum, little = crc16(b, uint16(c.start(0xffff))), c.Order != "big"
	case "crc16-arc":
		sum, little = crc16(b, uint16(c.start(0))), c.Order != "big"
	case "crc16-ccitt":
		sum = crcCCITT(b, uint16(c.poly(0x1021)), uint16(c.start(0)))
	default:
		for _, x := range b {
			sum += uint16(x)
		}
		switch c.Kind {
		case "negated-sum":
			sum = -sum
		case "inverted-sum":
			sum = ^sum
		}
	}
	if little {
		sum = sum<<8 | sum>>8
	}
	return sum
}

func (c *Check) poly(def int) int {
	if c.Poly != nil {
		return *c.Poly
	}
	return def
}

func (c *Check) start(def int) int {
	if c.Init != nil {
		return *c.Init
	}
	return def
}

// holds says whether the check of the frame b, which ends with a tail of
// tail bytes, is right. from is the first byte it covers by default.
func (c *Check) holds(b []byte, tail, from int) bool {
	if c.bytes() == 0 {
		return true
	}
	at, lo, hi, ok := c.place(len(b), tail, from)
	if !ok {
		return false
	}
	want := c.value(b[lo:hi])
	var got [2]byte
	n := c.bytes()
	if c.Form == "hex" {
		if _, err := hex.Decode(got[:n], b[at:at+2*n]); err != nil {
			return false
		}
	} else {
		copy(got[:n], b[at:])
	}
	if n == 1 {
		return got[0] == byte(want)
	}
	return got[0] == byte(want>>8) && got[1] == byte(want)
}

// put writes the check that b should have.
func (c *Check) put(b []byte, tail, from int) bool {
	if c.bytes() == 0 {
		return true
	}
	at, lo, hi, ok := c.place(len(b), tail, from)
	if !ok {
		return false
	}
	copy(b[at:], c.written(c.value(b[lo:hi])))
	return true
}

// written returns a computed check as it stands on the wire.
func (c *Check) written(sum uint16) []byte {
	out := []byte{byte(sum >> 8), byte(sum)}
	out = out[2-c.bytes():]
	if c.Form == "hex" {
		return []byte(fmt.Sprintf("%X", out))
	}
	return out
}

// place returns where the check of a frame of n bytes stands and what it covers.
func (c *Check) place(n, tail, from int) (at, lo, hi int, ok bool) {
	at = n - tail - c.size()
	if c.After {
		at = n - c.size()
	}
	if c.At != nil {
		at = fromEnd(*c.At, n)
	}
	lo, hi = from, at
	if c.From != nil {
		lo = fromEnd(*c.From, n)
	}
	if c.To != nil {
		hi = fromEnd(*c.To, n)
	}
	return at, lo, hi, at >= 0 && at+c.size() <= n && lo >= 0 && lo <= hi && hi <= n
}

func fromEnd(at, n int) int {
	if at < 0 {
		return n + at
	}
	return at
}

func crc8(b []byte, poly, crc byte, reflect bool) byte {
	for _, x := range b {
		crc ^= x
		for range 8 {
			switch {
			case reflect && crc&1 != 0:
				crc = crc>>1 ^ poly
			case reflect:
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

// crc16 is the reflected CRC with the polynomial 0x8005: of Modbus RTU with
// the start value 0xFFFF, ARC with 0.
func crc16(b []byte, crc uint16) uint16 {
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

// crcCCITT is the CRC that runs from the most significant bit, as XMODEM
// does with the polynomial 0x1021 and the start value 0.
func crcCCITT(b []byte, poly, crc uint16) uint16 {
	for _, x := range b {
		crc ^= uint16(x) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ poly
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}
