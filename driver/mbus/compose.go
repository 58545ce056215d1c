package mbus

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// Codes returns what VIF, Unit and Exp a record of this quantity with these
// extensions may have, in the order of the tables.
func Codes(quantity string, with []string) (out []Record) {
	var ext []byte
	for _, w := range with {
		for x := range byte(0x80) {
			if qualifier(x, false) == w {
				ext = append(ext, x)
			} else if qualifier(x, true) == w {
				ext = append(ext, 0x7C, x)
			}
		}
	}
	for _, head := range [...][]byte{nil, {0x7D}, {0x7B}} {
		for x := range byte(0x80) {
			vif := slices.Concat(head, []byte{x}, ext)
			for i := range vif[:len(vif)-1] {
				vif[i] |= 0x80
			}
			if r, ok := Code(vif); ok && r.Quantity == quantity {
				out = append(out, r)
			}
		}
	}
	return out
}

// Code returns a record with this VIF and what it says; false where these
// are not the whole bytes of one.
func Code(vif []byte) (r Record, ok bool) {
	if len(vif) == 0 {
		return r, false
	}
	_, n, err := r.vib(vif, false)
	return r, err == nil && n == len(vif)
}

// Append writes a record as a meter does: Function, Storage, Tariff, Subunit,
// VIF or Label, and Value, which may be a whole number of 32 bits, a text of
// up to 191 characters, or none.
func (r *Record) Append(b []byte) []byte {
	field := byte(4)
	switch r.Value.Form {
	case None:
		field = noData
	case Text:
		field = variable
	}
	b = append(b, field|byte(r.Function)<<4|byte(r.Storage&1)<<6)
	for s, t, u := r.Storage>>1, r.Tariff, r.Subunit; s|uint64(t|u) != 0; s, t, u = s>>4, t>>2, u>>1 {
		b[len(b)-1] |= 0x80
		b = append(b, byte(s&15)|byte(t&3)<<4|byte(u&1)<<6)
	}
	if r.Label != "" {
		b = appendText(append(b, 0x7C), r.Label)
	}
	b = append(b, r.VIF...)
	switch r.Value.Form {
	case None:
		return b
	case Text:
		return appendText(b, r.Value.Str)
	}
	return binary.LittleEndian.AppendUint32(b, uint32(r.Value.Int))
}

// appendText writes a length and a text, last character first.
func appendText(b []byte, s string) []byte {
	b = append(b, byte(len(s)))
	for i := len(s) - 1; i >= 0; i-- {
		b = append(b, s[i])
	}
	return b
}

// Stamp returns a time of day as a meter writes it (type F), as the number of
// a record.
func Stamp(t time.Time) int64 {
	year := byte(t.Year() % 100)
	b := []byte{byte(t.Minute()), byte(t.Hour()) | 1<<5, byte(t.Day()) | year<<5, byte(t.Month()) | year>>3<<4}
	return int64(int32(binary.LittleEndian.Uint32(b)))
}

// Moment says whether the code is one of a point in time.
func (r *Record) Moment() bool {
	c, _, err := new(Record).vib(r.VIF, false)
	return err == nil && c.how == moment
}

// Responses are the answers of a meter with these records, one frame after the
// other: own is its secondary address as AddressBytes returns it, access the
// number of the first.
func Responses(unit byte, own []byte, access byte, records [][]byte) (frames [][]byte) {
	for {
		data := append(slices.Clone(own), access, 0, 0, 0)
		for first := true; len(records) > 0 && (first || len(data)+len(records[0]) < 240); first = false {
			data, records = append(data, records[0]...), records[1:]
		}
		if len(records) == 0 {
			return append(frames, Long(RspUd, unit, 0x72, data...))
		}
		frames = append(frames, Long(RspUd, unit, 0x72, append(data, ownMore)...))
		access++
	}
}

// AddressBytes returns a secondary address as it is sent in a selection or a
// header: eight digits, or those and eight more of maker, version and type of
// device. Of eight alone the rest is FF, any.
func AddressBytes(address string) ([]byte, error) {
	b, err := hex.DecodeString(address)
	if err != nil || len(b) != 4 && len(b) != 8 {
		return nil, ErrLength
	}
	slices.Reverse(b[:4]) // the number goes out with its last digits first
	for len(b) < 8 {
		b = append(b, 0xff)
	}
	return b, nil
}

// Selects says whether the selection mask means the meter with the address,
// both as AddressBytes returns them; F is any digit.
func Selects(mask, address []byte) bool {
	for i, x := range address {
		for _, half := range [...]byte{0xf0, 0x0f} {
			if m := mask[i] & half; m != half && m != x&half {
				return false
			}
		}
	}
	return true
}

// media are the types of devices (EN 13757-3, table of the device type).
var media = map[byte]string{0: "other", 1: "oil", 2: "electricity", 3: "gas", 4: "heat", 5: "steam", 6: "warm water", 7: "water",
	8: "heat cost allocator", 9: "compressed air", 0x0A: "cooling", 0x0B: "cooling", 0x0C: "heat", 0x0D: "heat and cooling",
	0x0E: "bus or system", 0x15: "hot water", 0x16: "cold water", 0x17: "dual water", 0x18: "pressure", 0x19: "A/D converter",
	0x1A: "smoke detector", 0x1B: "room sensor", 0x1C: "gas detector", 0x20: "breaker", 0x21: "valve", 0x28: "waste water"}

// Medium is the word for a type of device, or its number.
func Medium(device byte) string {
	if w, ok := media[device]; ok {
		return w
	}
	return fmt.Sprintf("device type %02X", device)
}
