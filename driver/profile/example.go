package profile

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"tidegate/internal/telemetry"
)

// Example is recorded bytes and what they mean: the proof of a profile.
// It holds one of: a Modbus exchange (response, with its request or the
// place it was asked from), the payload of one, a binary frame, or a line.
type Example struct {
	Title  string `yaml:"title" doc:"What the bytes show."`
	Source string `yaml:"source" doc:"Where they come from."`

	Framing  string `yaml:"framing" enum:"rtu,tcp" doc:"Form of request and response; rtu if not given."`
	Request  Hex    `yaml:"request" doc:"The whole request as sent, unit to CRC or with the MBAP header."`
	Response Hex    `yaml:"response" doc:"The whole answer."`
	Payload  Hex    `yaml:"payload" doc:"The data bytes of the answer alone."`
	Coil     *int   `yaml:"coil" min:"0" max:"65535" doc:"First coil of an answer without its request."`
	Discrete *int   `yaml:"discrete" min:"0" max:"65535" doc:"First discrete input of an answer without its request."`
	Holding  *int   `yaml:"holding" min:"0" max:"65535" doc:"First holding register of an answer without its request."`
	Input    *int   `yaml:"input" min:"0" max:"65535" doc:"First input register of an answer without its request."`

	Model int `yaml:"model" min:"0" max:"65535" doc:"SunSpec model that the answer holds, from behind its length on."`

	Frame Hex    `yaml:"frame" doc:"Bytes of a serial device, one frame or several."`
	Text  string `yaml:"text" doc:"One line of a serial device, without its end; a telegram with its line ends."`

	Reject    bool            `yaml:"reject" doc:"The bytes must give no reading."`
	Exception int             `yaml:"exception" min:"0" max:"255" doc:"The answer refuses with this exception code."`
	Expect    map[string]Want `yaml:"expect" doc:"Value of each point: 231.68, true, open, \"320.0 range\", or fault/marker where there must be none."`
}

// Want is what an example expects of one point: a value, a value and the
// word range, or a quality with or without its cause.
type Want string

// UnmarshalText takes the scalar as it is written.
func (w *Want) UnmarshalText(b []byte) error {
	*w = Want(strings.TrimSpace(string(b)))
	return nil
}

// MarshalText writes it as it was read.
func (w Want) MarshalText() ([]byte, error) { return []byte(w), nil }

// Result is the outcome of one example.
type Result struct {
	Name     string              // title, or "example 2"
	Source   string              // where the bytes come from
	Readings []telemetry.Reading // what the bytes decode to; Point = index into Profile.Points
	Failures []string            // what was not as expected; empty = passed
}

// OK says whether the example passed.
func (r Result) OK() bool { return len(r.Failures) == 0 }

// Test runs the examples of the profile.
func (p *Profile) Test() []Result {
	out := make([]Result, len(p.Examples))
	for i := range p.Examples {
		out[i] = p.Examples[i].run(p)
		if out[i].Name == "" {
			out[i].Name = "example " + strconv.Itoa(i+1)
		}
	}
	return out
}

// check finds mistakes in the writing of an example.
func (e *Example) check(p *Profile, r report) {
	n := 0
	for _, b := range []bool{e.Response != nil, e.Payload != nil, e.Frame != nil, e.Text != ""} {
		if b {
			n++
		}
	}
	if n != 1 {
		r("", "an example holds one recording", "write response: (with request:), payload:, frame: or text:")
		return
	}
	if (e.Frame != nil || e.Text != "") != (p.Transport == "serial") {
		r("", "the recording does not fit the transport of the profile", "response and payload are Modbus, frame and text are serial")
		return
	}
	if p.SunSpec() != (e.Model != 0) {
		r("model", "an answer of a SunSpec device is that of a model, and of no other device", "write model: 103, and the answer from behind the length of the model on")
	}
	for _, name := range slices.Sorted(maps.Keys(e.Expect)) {
		if p.index(name) < 0 {
			r("expect."+name, fmt.Sprintf("there is no point %q", name), "")
		}
	}
	if (e.Reject || e.Exception != 0) == (len(e.Expect) > 0) {
		r("expect", "an example expects values, or that there are none", "write expect: {voltage_l1: 231.68}, or reject: true")
	}
	if e.Response != nil || e.Payload != nil {
		var refused exception
		if _, _, err := e.exchange(); err != nil && !e.Reject && !(errors.As(err, &refused) && e.Exception != 0) {
			r("", err.Error(), "")
		}
	}
}

// index returns the place of a point in Points, -1 if there is none.
func (p *Profile) index(name string) int {
	return slices.IndexFunc(p.Points, func(pt Point) bool { return pt.Name == name })
}

func (e *Example) run(p *Profile) Result {
	res := Result{Name: e.Title, Source: e.Source}
	fail := func(format string, args ...any) { res.Failures = append(res.Failures, fmt.Sprintf(format, args...)) }
	switch {
	case p.Frames != nil:
		res.Readings = e.decodeSerial(p)
	default:
		req, data, err := e.exchange()
		var refused exception
		switch {
		case errors.As(err, &refused):
			if int(refused) != e.Exception {
				fail("exception %d, want %d", int(refused), e.Exception)
			}
			return res
		case err != nil:
			if !e.Reject {
				fail("%s", err)
			}
			return res
		case e.Exception != 0:
			fail("an answer with values, want exception %d", e.Exception)
		}
		q := p
		if p.SunSpec() {
			q, _ = p.Locate([]Model{{ID: e.Model, At: int(req.Address) - 2, Length: int(req.Count)}})
		}
		req.Points = q.within(req)
		res.Readings = q.Decode(req, data, 0, nil)
	}
	if e.Reject {
		if len(res.Readings) > 0 {
			fail("%d readings from bytes that must give none", len(res.Readings))
		}
		return res
	}
	for _, name := range slices.Sorted(maps.Keys(e.Expect)) {
		want, i := e.Expect[name], p.index(name)
		k := -1
		for j, rd := range res.Readings {
			if int(rd.Point) == i {
				k = j // the last one counts
			}
		}
		if k < 0 {
			fail("%s: no reading, want %s", name, want)
		} else if got := res.Readings[k]; !want.fits(got) {
			fail("%s: got %s, want %s", name, ReadingText(got), want)
		}
	}
	return res
}

// within returns the points that stand wholly in r.
func (p *Profile) within(r Request) (points []int) {
	for i := range p.codecs {
		c := &p.codecs[i]
		if lo, hi := c.span(); c.table == r.Table && lo >= int(r.Address) && hi <= int(r.Address)+int(r.Count) {
			points = append(points, i)
		}
	}
	return points
}

func (e *Example) decodeSerial(p *Profile) (out []telemetry.Reading) {
	frame := func(raw []byte) { out = p.DecodeFrame(raw, 0, out) }
	s := p.NewScanner()
	s.Feed(e.stream(p), frame)
	s.Flush(frame)
	return out
}

// Recordings returns the bytes of the examples of a serial device that hold
// readings, as they come over the line.
func (p *Profile) Recordings() (out [][]byte) {
	for i := range p.Examples {
		if e := &p.Examples[i]; p.Frames != nil && !e.Reject && len(e.decodeSerial(p)) > 0 {
			out = append(out, e.stream(p))
		}
	}
	return out
}

// stream is a serial example as it comes over the line.
func (e *Example) stream(p *Profile) []byte {
	stream := []byte(e.Frame)
	if e.Text != "" && p.raw.obis {
		stream = []byte(strings.ReplaceAll(e.Text, "\n", "\r\n"))
	} else if e.Text != "" {
		end := string(p.raw.end)
		if end == "\n" {
			end = "\r\n"
		}
		if p.raw.block {
			end += end
		}
		stream = []byte(end + e.Text + end)
	}
	return stream
}

// exception is the code of an exception answer.
type exception int

// ErrRefused is what errors of refusals are.
var ErrRefused = errors.New("the device refuses")

func (e exception) Is(target error) bool { return target == ErrRefused }

func (e exception) Error() string { return "the answer is exception " + strconv.Itoa(int(e)) }

// exchange takes the recording apart: what was asked, and the data bytes.
func (e *Example) exchange() (Request, []byte, error) {
	var r Request
	for t, a := range map[Table]*int{Coils: e.Coil, Discrete: e.Discrete, Holding: e.Holding, Input: e.Input} {
		if a != nil {
			if r.Table != 0 {
				return r, nil, errors.New("an answer comes from one table")
			}
			r.Table, r.Address = t, uint16(*a)
		}
	}
	if e.Payload != nil {
		if r.Table == 0 {
			return r, nil, errors.New("a payload needs its place, such as input: 0")
		}
		r.Count = dataCount(r.Table, e.Payload)
		return r, e.Payload, nil
	}
	answer, err := e.pdu(e.Response)
	if err != nil {
		return r, nil, fmt.Errorf("response: %w", err)
	}
	if e.Request != nil {
		ask, err := e.pdu(e.Request)
		if err != nil {
			return r, nil, fmt.Errorf("request: %w", err)
		}
		if len(ask) != 6 || ask[1] < 1 || ask[1] > 4 {
			return r, nil, errors.New("request: not a read of registers, coils or inputs")
		}
		if ask[0] != answer[0] || ask[1] != answer[1]&0x7f {
			return r, nil, errors.New("the answer is from another unit or for another function")
		}
		if e.Framing == "tcp" && (e.Request[0] != e.Response[0] || e.Request[1] != e.Response[1]) {
			return r, nil, errors.New("the answer has another transaction number")
		}
		r = Request{Table: Table(ask[1]), Address: binary.BigEndian.Uint16(ask[2:]), Count: binary.BigEndian.Uint16(ask[4:])}
	}
	switch {
	case answer[1]&0x80 != 0 && len(answer) == 3:
		return r, nil, exception(answer[2])
	case len(answer) < 3 || int(answer[2]) != len(answer)-3:
		return r, nil, errors.New("response: the byte count is wrong")
	}
	data := answer[3:]
	switch {
	case e.Request == nil && r.Table == 0:
		return r, nil, errors.New("an answer without its request needs its place, such as input: 0")
	case e.Request == nil && answer[1] != byte(r.Table):
		return r, nil, errors.New("the answer is for another function")
	case e.Request == nil:
		r.Count = dataCount(r.Table, data)
	case len(data) != r.Size():
		return r, nil, errors.New("response: not as many bytes as were asked for")
	}
	return r, data, nil
}

func dataCount(t Table, data []byte) uint16 {
	if t.Bits() {
		return uint16(8 * len(data))
	}
	return uint16(len(data) / 2)
}

// ErrFrame tells that bytes are no sound frame.
var ErrFrame = errors.New("damaged frames")

// Unwrap returns unit, function and data of a whole Modbus frame whose CRC or
// MBAP header is right. framing is rtu, ascii or tcp.
func Unwrap(framing string, frame []byte) ([]byte, error) {
	return (&Example{Framing: framing}).pdu(frame)
}

// DecodeExchange returns the readings of a recorded Modbus read: of the
// points that stand wholly in what was asked. It fails if the frames are
// damaged, do not belong together, or if the answer refuses.
func (p *Profile) DecodeExchange(framing string, request, response []byte) ([]telemetry.Reading, error) {
	req, data, err := (&Example{Framing: framing, Request: request, Response: response}).exchange()
	if err != nil {
		return nil, err
	}
	req.Points = p.within(req)
	return p.Decode(req, data, 0, nil), nil
}

// pdu returns unit, function and data of a whole frame whose CRC or MBAP
// header is right.
func (e *Example) pdu(b []byte) ([]byte, error) {
	if e.Framing == "tcp" {
		if len(b) < 9 || b[2] != 0 || b[3] != 0 || int(binary.BigEndian.Uint16(b[4:])) != len(b)-6 {
			return nil, errors.New("no Modbus TCP frame")
		}
		return b[6:], nil
	}
	if e.Framing == "ascii" {
		text := strings.TrimRight(string(b), "\r\n")
		raw, err := hex.DecodeString(strings.TrimPrefix(text, ":"))
		if err != nil || !strings.HasPrefix(text, ":") || len(raw) < 4 {
			return nil, errors.New("no Modbus ASCII frame")
		}
		if sum := (&Check{Kind: "negated-sum"}).value(raw); byte(sum) != 0 {
			return nil, errors.New("the LRC is wrong")
		}
		return raw[:len(raw)-1], nil
	}
	if len(b) < 5 {
		return nil, errors.New("too short for a Modbus RTU frame")
	}
	if n := len(b) - 2; crc16(b[:n], 0xffff) != binary.LittleEndian.Uint16(b[n:]) {
		return nil, errors.New("the CRC is wrong")
	}
	return b[:len(b)-2], nil
}

// ReadingText writes a reading as an example expects it: "231.68", "320.0
// range" or "fault/marker".
func ReadingText(r telemetry.Reading) string {
	s := r.Quality.String()
	if c := r.Cause.String(); c != "" {
		s += "/" + c
	}
	switch {
	case r.Value.Kind() == telemetry.None:
		return s
	case r.Quality == telemetry.Good:
		return r.Value.String()
	}
	return r.Value.String() + " " + s
}

// fits compares a reading with what is wanted; numbers by their value.
func (w Want) fits(r telemetry.Reading) bool {
	s := string(w)
	if r.Value.Kind() == telemetry.None {
		return s == ReadingText(r) || s == r.Quality.String()
	}
	if r.Quality != telemetry.Good {
		var word string
		if s, word, _ = strings.Cut(s, " "); word != r.Quality.String() {
			return false
		}
	}
	if s == r.Value.String() {
		return true
	}
	if r.Value.Kind() == telemetry.Text || r.Value.Kind() == telemetry.Bool {
		return false
	}
	a, ok1 := new(big.Rat).SetString(r.Value.String())
	b, err := parseRat(s)
	return ok1 && err == nil && a.Cmp(b) == 0
}
