package profile

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Talk says what is sent to a serial device, and when. A device with ask is
// polled; any other talks by itself, perhaps only after it was told to.
type Talk struct {
	Init  []Send        `yaml:"init" doc:"Sent when the line was opened, and again after the device had been silent or its answers held no values."`
	Ask   []Send        `yaml:"ask" doc:"Sent at each poll, one after the other, each with its answer. A device without it talks by itself."`
	Keep  []Send        `yaml:"keep" doc:"Sent again and again while a device talks by itself, or it would stop."`
	Every time.Duration `yaml:"keep_every" doc:"Period of keep; 10s if not given."`
	Stop  []Send        `yaml:"stop" doc:"Sent before the line is closed."`
}

// Send is one message to a serial device and what is awaited for it. Its
// places in braces are filled in by Message.
type Send struct {
	Hex    string        `yaml:"hex" doc:"Bytes to send: FF 01 86. {unit} is the unit address as one byte, {unit:2} as two; {check} and {head} are the checks of the frames over what stands before."`
	Text   string        `yaml:"text" doc:"Characters to send; \\r and \\n are the line ends; {unit} is the unit address, {unit:4} the same with four digits; {check} and {head} as in hex."`
	Frames *int          `yaml:"frames" min:"0" max:"255" doc:"How many frames answer it; 1 in ask and 0 in the others if not given."`
	More   time.Duration `yaml:"more" doc:"More frames may follow: they are taken until the device is silent for so long."`
	Bytes  int           `yaml:"bytes" min:"0" max:"255" doc:"The answer is so many bytes that are no frame."`
	Count  *int          `yaml:"count" min:"0" max:"254" doc:"With bytes: the byte of the answer that says how often the messages with {n} are sent; {n} runs from 1."`
	Wait   time.Duration `yaml:"wait" doc:"Pause after it; the line serves other devices meanwhile."`
}

// Polled says whether the device is asked; else it talks by itself, or it is
// a Modbus device.
func (p *Profile) Polled() bool {
	return p.Talk != nil && len(p.Talk.Ask) > 0 || p.Handshake.Asks() || p.Contacts()
}

// Contacts says whether the points are the input lines of a serial port.
func (p *Profile) Contacts() bool { return p.Frames != nil && p.Frames.Kind == "modem-lines" }

// Addressed says whether a serial device has a unit address: one that is
// sent to it, or that stands in its frames.
func (p *Profile) Addressed() bool {
	if p.Frames != nil && p.Frames.Unit != nil || p.MBus() {
		return true
	}
	for _, list := range p.Talk.lists() {
		for i := range list {
			if strings.Contains(list[i].Hex+list[i].Text, "{unit") {
				return true
			}
		}
	}
	return false
}

// lists returns all messages by their key.
func (t *Talk) lists() map[string][]Send {
	if t == nil {
		return nil
	}
	return map[string][]Send{"init": t.Init, "ask": t.Ask, "keep": t.Keep, "stop": t.Stop}
}

// Repeats says whether the message is sent once for each thing that an
// answer before it has counted.
func (s *Send) Repeats() bool { return strings.Contains(s.Hex+s.Text, "{n") }

// KeepEvery returns the period of keep.
func (t *Talk) KeepEvery() time.Duration { return first(t.Every, 10*time.Second) }

// buildTalk checks what is sent.
func (p *Profile) buildTalk(r report) {
	t := p.Talk
	for key, list := range t.lists() {
		counted := false
		for i := range list {
			s, at := &list[i], key+"["+strconv.Itoa(i)+"]"
			if _, err := p.Message(s, 0, 1); err != nil {
				r(at, err.Error(), "write hex: FF 01 86, or text: 'A\\r'")
			}
			switch {
			case s.Count != nil && *s.Count >= s.Bytes:
				r(at+".count", "the byte is not in the answer", "write bytes: 1 and count: 0")
			case s.Bytes > 0 && (s.Frames != nil || s.More > 0):
				r(at+".bytes", "an answer is bytes or frames, not both", "")
			case s.Repeats() && !counted:
				r(at, "nothing says how often {n} is sent", "let a message before it have bytes: 1 and count: 0")
			}
			counted = counted || s.Count != nil
		}
	}
	if len(t.Keep) > 0 && len(t.Ask) > 0 {
		r("keep", "a device that is asked needs no other sign of life", "remove keep, or ask")
	}
	if t.Every != 0 && len(t.Keep) == 0 || t.Every < 0 {
		r("keep_every", "there is nothing to send", "write keep:")
	}
}

// Message returns the bytes to send to a unit. n is the number that {n}
// stands for.
func (p *Profile) Message(s *Send, unit, n int) ([]byte, error) {
	if (s.Hex == "") == (s.Text == "") {
		return nil, fmt.Errorf("a message is hex or text, one of the two")
	}
	var out []byte
	computed := false
	for rest := s.Hex + s.Text; ; {
		before, place, found := strings.Cut(rest, "{")
		if s.Text != "" {
			out = append(out, lineEnds.Replace(before)...)
		} else {
			b, err := hex.DecodeString(strings.Join(strings.Fields(before), ""))
			if err != nil {
				return nil, fmt.Errorf("%q is not a row of hexadecimal bytes", s.Hex)
			}
			out = append(out, b...)
		}
		if !found {
			break
		}
		name, after, closed := strings.Cut(place, "}")
		name, digits, _ := strings.Cut(name, ":")
		width, err := strconv.Atoi(first(digits, "0"))
		ok := closed && err == nil && width >= 0 && width <= 8
		number := unit
		switch {
		case ok && (name == "unit" || name == "n"):
			if name == "n" {
				number = n
			}
			if s.Text != "" {
				out = fmt.Appendf(out, "%0*d", width, number)
			} else {
				width = max(width, 1)
				for i := width - 1; i >= 0; i-- {
					out = append(out, byte(number>>(8*i)))
				}
			}
			computed = true
		case ok && (name == "check" || name == "head") && p.Frames != nil:
			c := &p.raw.check
			if name == "head" {
				c = p.raw.head
			}
			from := p.raw.covered()
			if c != nil && c.From != nil {
				from = *c.From
			}
			if c == nil || c.bytes() == 0 || from < 0 || from > len(out) {
				return nil, fmt.Errorf("%q has no room for {%s}: the frames have none, or it covers what follows", s.Hex+s.Text, name)
			}
			out = append(out, c.written(c.value(out[from:]))...)
			computed = true
		default:
			return nil, fmt.Errorf("%q has a place for something else than {unit}, {n}, {check} and {head}", s.Hex+s.Text)
		}
		rest = after
	}
	if f := &p.raw; computed && f.escapes && len(out) >= len(f.sync)+len(f.tail) {
		out = f.escape(out)
	}
	return out, nil
}

var lineEnds = strings.NewReplacer(`\r`, "\r", `\n`, "\n")

// Sender returns the unit address that stands in a frame; ok is false where
// none stands in it. raw is a frame as the scanner yields it.
func (p *Profile) Sender(raw []byte) (unit int, ok bool) {
	if p.raw.unit == nil {
		return 0, false
	}
	b := raw
	if p.raw.line {
		b = p.raw.body(raw)
	} else {
		b = p.raw.unescape(raw)
	}
	unit = p.raw.unit.value(b)
	return unit, unit >= 0
}
