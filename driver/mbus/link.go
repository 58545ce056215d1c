// Package mbus reads and writes the frames of the M-Bus (EN 13757-2) and
// decodes what meters send in them (EN 13757-3). It is pure: bytes in,
// records out. No record of a telegram that is damaged, cut off or encrypted
// is given away, and no number is made of digits that are none.
package mbus

import (
	"errors"
	"fmt"
)

// The kinds of failure. Errors of this package wrap one of them.
var (
	ErrShort       = errors.New("the frame is not whole")
	ErrFrame       = errors.New("this is no M-Bus frame")
	ErrChecksum    = errors.New("the checksum is wrong")
	ErrPremature   = errors.New("the telegram ends within a record")
	ErrTooLong     = errors.New("a record has more extension bytes than the standard allows")
	ErrLength      = errors.New("a length that the standard does not know")
	ErrReserved    = errors.New("a data field that the standard reserves")
	ErrCI          = errors.New("an unknown kind of telegram")
	ErrEncrypted   = errors.New("the telegram is encrypted")
	ErrApplication = errors.New("the meter reports an error")
)

// Control fields of the frames a master sends. FCB is the frame count bit,
// which is turned over for each new request.
const (
	SndNke  = 0x40 // begin anew
	SndUd   = 0x53 // send data
	ReqUd2  = 0x5B // ask for data
	FCB     = 0x20
	RspUd   = 0x08 // the meter's answer; bits 4 and 5 are its own
	fromTop = 0x40 // set in everything a master sends
)

// Addresses with a meaning of their own.
const (
	Selected = 253 // the meter that was selected by its secondary address
	Any      = 254 // every meter answers: for a line with a single one
	MaxUnit  = 250 // the highest address of a meter
)

// Ack is the answer of one character.
const Ack = 0xE5

// Frame is one link frame. An acknowledgement has Ack alone, a short frame no
// CI and no data.
type Frame struct {
	Ack     bool
	Long    bool
	Control byte
	Address byte
	CI      byte
	Data    []byte // behind CI; part of the bytes it was cut from
}

// FromMaster says whether a master has sent the frame: an echo, or another
// master.
func (f *Frame) FromMaster() bool { return !f.Ack && f.Control&fromTop != 0 }

// Response says whether the frame is the answer of a meter with data.
func (f *Frame) Response() bool { return f.Long && f.Control&^0x30 == RspUd }

// ParseFrame reads the frame at the start of b; n is its size. ErrShort means
// that what is there may become a frame.
func ParseFrame(b []byte) (f Frame, n int, err error) {
	if len(b) == 0 {
		return f, 0, ErrShort
	}
	switch b[0] {
	case Ack:
		return Frame{Ack: true}, 1, nil
	case 0x10:
		if len(b) < 5 {
			return f, 0, ErrShort
		}
		if b[4] != 0x16 {
			return f, 0, fmt.Errorf("%w: no end character", ErrFrame)
		}
		if sum(b[1:3]) != b[3] {
			return f, 0, ErrChecksum
		}
		return Frame{Control: b[1], Address: b[2]}, 5, nil
	case 0x68:
	default:
		return f, 0, ErrFrame
	}
	switch {
	case len(b) > 1 && b[1] < 3, len(b) > 2 && b[2] != b[1], len(b) > 3 && b[3] != 0x68:
		return f, 0, fmt.Errorf("%w: its two lengths differ, or are below 3", ErrFrame)
	case len(b) < 4:
		return f, 0, ErrShort
	}
	n = int(b[1]) + 6
	switch {
	case len(b) < n:
		return f, 0, ErrShort
	case b[n-1] != 0x16:
		return f, 0, fmt.Errorf("%w: no end character", ErrFrame)
	case sum(b[4:n-2]) != b[n-2]:
		return f, 0, ErrChecksum
	}
	return Frame{Long: true, Control: b[4], Address: b[5], CI: b[6], Data: b[7 : n-2]}, n, nil
}

// Short returns a frame without data.
func Short(control, address byte) []byte {
	return []byte{0x10, control, address, control + address, 0x16}
}

// Long returns a frame with data, at most 252 bytes of it.
func Long(control, address, ci byte, data ...byte) []byte {
	n := byte(len(data) + 3)
	out := append([]byte{0x68, n, n, 0x68, control, address, ci}, data...)
	return append(out, sum(out[4:]), 0x16)
}

func sum(b []byte) (s byte) {
	for _, x := range b {
		s += x
	}
	return s
}
