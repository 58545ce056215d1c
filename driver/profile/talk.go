package profile

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Talk says what is sent to a serial device, and when. A device with ask is
// polled; any other talks by itself.
type Talk struct {
	Init []Send `yaml:"init" doc:"Sent once when the line was opened, and again after the device had been silent."`
	Ask  []Send `yaml:"ask" doc:"Sent at each poll, one after the other, each with its answer. A device without it talks by itself."`
}

// Send is one message to a serial device and what is awaited for it.
// {unit} in it stands for the unit address.
type Send struct {
	Hex    string        `yaml:"hex" doc:"Bytes to send: FF 01 86; {unit} is the unit address as one byte, {unit:2} as two."`
	Text   string        `yaml:"text" doc:"Characters to send; \\r and \\n are the line ends; {unit} is the unit address, {unit:4} the same with four digits."`
	Frames *int          `yaml:"frames" min:"0" max:"255" doc:"How many frames answer it; 1 in ask and 0 in the others if not given."`
	Wait   time.Duration `yaml:"wait" doc:"Pause after it."`
}

// Polled says whether the device is asked; else it talks by itself, or it is
// a Modbus device.
func (p *Profile) Polled() bool { return p.Talk != nil && len(p.Talk.Ask) > 0 || p.Handshake.Asks() }

// build checks what is sent.
func (t *Talk) build(r report) {
	for key, list := range map[string][]Send{"init": t.Init, "ask": t.Ask} {
		for i := range list {
			if _, err := list[i].Message(0); err != nil {
				r(key+"["+strconv.Itoa(i)+"]", err.Error(), "write hex: FF 01 86, or text: 'A\\r'")
			}
		}
	}
}

// Message returns the bytes to send to a unit.
func (s *Send) Message(unit int) ([]byte, error) {
	switch {
	case (s.Hex == "") == (s.Text == ""):
		return nil, fmt.Errorf("a message is hex or text, one of the two")
	case s.Text != "":
		text, err := fill(s.Text, func(width int) string { return fmt.Sprintf("%0*d", width, unit) })
		return []byte(strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(text)), err
	}
	text, err := fill(s.Hex, func(width int) string { return fmt.Sprintf("%0*x", 2*max(width, 1), unit) })
	if err != nil {
		return nil, err
	}
	out, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		return nil, fmt.Errorf("%q is not a row of hexadecimal bytes", s.Hex)
	}
	return out, nil
}

// fill puts the unit in the place of {unit} and {unit:width}.
func fill(s string, unit func(width int) string) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(s, "{")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		name, after, closed := strings.Cut(rest, "}")
		name, digits, _ := strings.Cut(name, ":")
		width, err := 0, error(nil)
		if digits != "" {
			width, err = strconv.Atoi(digits)
		}
		if !closed || name != "unit" || err != nil || width < 0 || width > 8 {
			return "", fmt.Errorf("%q has a place for something else than {unit}", s)
		}
		out.WriteString(unit(width))
		s = after
	}
}
