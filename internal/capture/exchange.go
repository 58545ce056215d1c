package capture

import (
	"bytes"
	"encoding/binary"
	"time"

	"tidegate/driver/profile"
)

// Exchange is a request and what came for it. Without a request it is what a
// device said by itself; without bytes at all it is a mark (open, gone).
type Exchange struct {
	At       time.Time // of the request, or of the first byte that came
	Request  []byte
	Answer   []byte
	Answered time.Time // when the first bytes of the answer had come
	Ended    time.Time // when the last had come, or the next request went out
	Mark     string
	Lost     uint64

	pieces []piece // when each part of the answer had come
}

type piece struct {
	at  time.Time
	end int // offset behind it
}

// cameAt returns when byte i of the answer had come.
func (x *Exchange) cameAt(i int) time.Time {
	for _, p := range x.pieces {
		if i < p.end {
			return p.at
		}
	}
	return x.Ended
}

// breath is the longest pause within what a device says by itself.
const breath = 50 * time.Millisecond

// late is how long after its last byte an answer is over.
const late = 500 * time.Millisecond

// Exchanges puts requests and answers together. What was heard of another
// master is told apart by its checksums.
func Exchanges(h *Header, events []Event) (out []Exchange) {
	var last time.Time
	for i := range events {
		e := &events[i]
		b, now := e.Bytes(), e.T.Time
		var cur *Exchange
		if len(out) > 0 && out[len(out)-1].Mark == "" {
			cur = &out[len(out)-1]
		}
		switch {
		case e.Dir == "tx":
			if cur != nil && cur.Ended.IsZero() {
				cur.Ended = now
			}
			out = append(out, Exchange{At: now, Request: b, Lost: e.Lost})
		case e.Dir != "rx":
			out = append(out, Exchange{At: now, Mark: e.Dir, Lost: e.Lost})
		case cur == nil, cur.Request == nil && now.Sub(last) > breath, len(cur.Answer) > 0 && now.Sub(last) > late:
			out = append(out, Exchange{At: now, Answer: b, Answered: now, Ended: now, Lost: e.Lost, pieces: []piece{{now, len(b)}}})
		default:
			if len(cur.Answer) == 0 {
				cur.Answered = now
			}
			cur.Answer = append(cur.Answer, b...)
			cur.pieces = append(cur.pieces, piece{now, len(cur.Answer)})
			cur.Ended = now
			cur.Lost += e.Lost
		}
		last = now
	}
	if h.Framing() == "rtu" {
		out = overheard(out)
	}
	return out
}

// overheard splits what was heard on a Modbus line into the requests of
// another master and their answers.
func overheard(in []Exchange) (out []Exchange) {
	for _, x := range in {
		if x.Request != nil || x.Mark != "" {
			out = append(out, x)
			continue
		}
		at := 0
		for _, f := range framesRTU(x.Answer) {
			began, ended := x.cameAt(at), x.cameAt(at+len(f)-1)
			at += len(f)
			prev := len(out) - 1
			if prev >= 0 && out[prev].Request != nil && out[prev].Ended.IsZero() {
				if out[prev].Ended = ended; answers(f, out[prev].Request) {
					out[prev].Answer, out[prev].Answered = f, began
					continue
				}
			}
			y := Exchange{At: began, Answer: f, Answered: began, Ended: ended, Lost: x.Lost}
			if len(f) == 8 && f[1] >= 1 && f[1] <= 6 && sound(f) {
				y = Exchange{At: began, Request: f, Lost: x.Lost}
			}
			out = append(out, y)
		}
	}
	return out
}

// framesRTU cuts bytes into sound frames, and what lies between them.
func framesRTU(b []byte) (out [][]byte) {
	from := 0
	for i := 0; i < len(b); {
		n := 0
		for _, size := range [...]int{8, 5, sizeOf(b[i:])} {
			if size >= 5 && i+size <= len(b) && sound(b[i:i+size]) {
				n = size
				break
			}
		}
		if n == 0 {
			i++
			continue
		}
		if i > from {
			out = append(out, b[from:i])
		}
		out = append(out, b[i:i+n])
		i += n
		from = i
	}
	if from < len(b) {
		out = append(out, b[from:])
	}
	return out
}

// sizeOf returns the size that a read's answer at the start of b has.
func sizeOf(b []byte) int {
	if len(b) < 3 {
		return 0
	}
	return int(b[2]) + 5
}

func sound(b []byte) bool {
	_, err := profile.Unwrap("rtu", b)
	return err == nil
}

func answers(answer, request []byte) bool {
	a, err := profile.Unwrap("rtu", answer)
	return err == nil && a[0] == request[0] && a[1]&0x7f == request[1] && (a[1]&0x80 != 0 || a[1] > 4 || !bytes.Equal(answer, request))
}

// wordAt reads two bytes.
func wordAt(b []byte, i int) int { return int(binary.BigEndian.Uint16(b[i:])) }
