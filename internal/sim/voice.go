package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"time"

	"tidegate/driver/obis"
	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// Voice is a serial device made from its profile: it talks by itself, or
// answers what the profile asks. Frames that can be built hold values that
// drift like those of a real device; of others, the recordings of the profile
// are said again and again.
type Voice struct {
	Every time.Duration // of a device that talks by itself; 1 s
	Wire  Wire
	// Plan decides what goes wrong with a frame; of the kinds of fault, those
	// that change bytes, Silent and Late have a meaning. Nil: nothing does.
	Plan Plan

	p       *profile.Profile
	unit    int
	points  []signal
	records [][]byte // nil: frames are built
	asks    [][]byte // what is answered, in the order of the profile
	frames  []int    // how many frames answer it
	signsOn bool     // it is read out after IEC 62056-21
}

// NewVoice returns a device for a serial profile under a unit address. It
// fails for profiles whose frames can neither be built nor were recorded, and
// for those that hold a dialogue of their own.
func NewVoice(p *profile.Profile, unit int, seed uint64) (*Voice, error) {
	v := &Voice{Every: time.Second, p: p, unit: unit}
	switch {
	case p.Frames == nil:
		return nil, fmt.Errorf("sim: profile %s is no serial device", p.Name)
	case p.MBus():
		return nil, fmt.Errorf("sim: profile %s is a meter on an M-Bus, which shares its line", p.Name)
	}
	for i, tp := range p.TelemetryPoints("") {
		s := newSignal(&p.Points[i], tp.Decimals, seed)
		s.middle -= s.rate * float64(time.Now().Unix())
		v.points = append(v.points, s)
	}
	if b, err := v.build(time.Now()); err != nil || !v.understood(b) {
		if v.records = p.Recordings(); len(v.records) == 0 {
			return nil, fmt.Errorf("sim: profile %s: its frames cannot be built, and none was recorded", p.Name)
		}
	}
	if !p.Polled() {
		return v, nil
	}
	if v.signsOn = p.Handshake.Asks(); v.signsOn {
		return v, nil
	}
	if p.Talk == nil || len(p.Talk.Ask) == 0 {
		return nil, fmt.Errorf("sim: profile %s holds a dialogue of its own, which is not simulated", p.Name)
	}
	for i := range p.Talk.Ask {
		s := &p.Talk.Ask[i]
		if s.Repeats() || s.Bytes > 0 {
			return nil, fmt.Errorf("sim: profile %s asks in more than one step, which is not simulated", p.Name)
		}
		m, err := p.Message(s, unit, 1)
		if err != nil {
			return nil, fmt.Errorf("sim: profile %s: %w", p.Name, err)
		}
		n := 1
		if s.Frames != nil {
			n = *s.Frames
		}
		v.asks, v.frames = append(v.asks, m), append(v.frames, n)
	}
	return v, nil
}

// Replays says whether the frames are recordings.
func (v *Voice) Replays() bool { return v.records != nil }

// Asked says whether the device speaks only when it is asked.
func (v *Voice) Asked() bool { return v.asks != nil || v.signsOn }

// Hold keeps a point at a value, where frames are built.
func (v *Voice) Hold(point, value string) error {
	i, x, err := heldValue(v.p, point, value)
	switch {
	case err != nil:
		return err
	case v.records != nil:
		return fmt.Errorf("the frames of %s are recordings: %s cannot be set", v.p.Name, point)
	case v.p.Frames.Kind == "obis":
		v.points[i].held = x
		return nil
	}
	if _, err := v.p.Encode(i, x, 0); err != nil {
		return err
	}
	v.points[i].held = x
	return nil
}

// understood says whether the profile reads a value from a frame that was built.
func (v *Voice) understood(b []byte) (good bool) {
	s := v.p.NewScanner()
	take := func(raw []byte) {
		for _, r := range v.p.DecodeFrame(raw, 0, nil) {
			good = good || r.Quality == telemetry.Good
		}
	}
	s.Feed(b, take)
	s.Flush(take)
	return good
}

// fail damages bytes as the plan says, and tells how late they are. Nil: they
// are not said.
func fail(f Fault, n int64, b []byte) ([]byte, time.Duration) {
	switch f.Kind {
	case None:
	case Silent, Hangup:
		return nil, 0
	case Late:
		return b, f.Delay
	case Short:
		return b[:len(b)/2], 0
	case NoiseBefore:
		return append([]byte{0xFF, 0x00, 0x55}, b...), 0
	case NoiseAfter:
		return append(b, 0xFF, 0x00, 0x55), 0
	case Doubled:
		return append(b, b...), 0
	default:
		if len(b) > 0 {
			b[int(n*7)%len(b)] ^= 0x5A
		}
	}
	return b, 0
}

func (v *Voice) build(now time.Time) ([]byte, error) {
	values := make([]telemetry.Value, len(v.points))
	for i := range v.points {
		s := &v.points[i]
		if values[i] = s.held; s.held.Kind() == telemetry.None {
			values[i] = telemetry.Float64Value(roundTo(s.at(now.Unix()), s.decimals))
			if v.p.Frames.Kind == "obis" {
				values[i] = plainValue(&v.p.Points[i], s, now)
			}
		}
		if v.p.Frames.Kind == "obis" {
			continue
		}
		if _, err := v.p.Encode(i, values[i], 0); err != nil {
			values[i] = telemetry.Value{} // words, flags: 0
		}
	}
	if v.p.Frames.Kind == "obis" {
		return obis.Compose(simIdent, v.p.TelegramLines(values, now), v.p.Handshake == nil || v.p.Handshake.Kind != "dsmr"), nil
	}
	return v.p.EncodeFrame(values)
}

// simIdent is what a simulated meter calls itself; 5 offers 9600 baud.
const simIdent = "TDG5sim"

// plainValue is the value of a point at a time, as a meter writes it: numbers
// with three decimals, and nothing wrong.
func plainValue(pt *profile.Point, s *signal, now time.Time) telemetry.Value {
	switch {
	case pt.Name == "meter_id":
		return telemetry.TextValue(fmt.Sprintf("%08d", s.seed%1e8))
	case pt.Type == "string" || pt.Type == "hextext":
		return telemetry.TextValue("00000000")
	case len(pt.Enum) > 0:
		for _, k := range slices.Sorted(maps.Keys(pt.Enum)) {
			return telemetry.TextValue(pt.Enum[k])
		}
	case len(pt.Flags) > 0 || pt.Type == "bit" || pt.Unit == "" && pt.Kind != "counter":
		return telemetry.IntValue(0, 0)
	}
	x := s.at(now.Unix())
	if pt.Unit == "" {
		return telemetry.IntValue(int64(x), 0)
	}
	return telemetry.IntValue(int64(math.Round(x*1000)), 3)
}

// frame is the n-th frame, from 1, and how late it is.
func (v *Voice) frame(n int64) (b []byte, late time.Duration) {
	if v.records != nil {
		b = slices.Clone(v.records[int((n-1)%int64(len(v.records)))])
	} else if made, err := v.build(time.Now()); err == nil {
		b = made
	}
	if v.Plan == nil {
		return b, 0
	}
	f := v.Plan(Request{N: int(n), Unit: byte(v.unit)})
	if head := bytes.Index(b, []byte("\r\n")); f.Kind == Garbled && head >= 0 && v.p.Handshake.Asks() {
		fail(f, n, b[head+2:]) // in place: nothing checks the identification before it
		return b, 0
	}
	return fail(f, n, b)
}

// Serve speaks on rw until ctx ends or writing fails.
func (v *Voice) Serve(ctx context.Context, rw io.ReadWriter) error {
	if !v.Asked() {
		t := &Talker{Frames: [][]byte{nil}, Every: v.Every, Wire: v.Wire, Spoil: func(n int64, _ []byte) []byte {
			b, late := v.frame(n)
			sleep(ctx, late)
			return b
		}}
		return t.Serve(ctx, rw)
	}
	if v.signsOn {
		return converse(ctx, rw, v.readout)
	}
	return converse(ctx, rw, v.answer)
}

// answer waits for the messages of the profile.
func (v *Voice) answer(ctx context.Context, w io.Writer, in <-chan chunk) error {
	var heard []byte
	for n := int64(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-in:
			if !ok {
				return nil
			}
			heard = append(heard, c.b...)
		}
		for i, m := range v.asks {
			at := bytes.Index(heard, m)
			if at < 0 {
				continue
			}
			heard = heard[at+len(m):]
			for range v.frames[i] {
				n++
				b, late := v.frame(n)
				sleep(ctx, late)
				if err := paced(ctx, &mouth{w: w}, b, v.Wire.char()); err != nil {
					return err
				}
			}
		}
		if len(heard) > 1024 {
			heard = heard[len(heard)-256:]
		}
	}
}

// readout is the meter's side of IEC 62056-21, mode C: it offers 9600 baud,
// and sends its data at the speed that is agreed, or at the first one to
// whoever agrees on none.
func (v *Voice) readout(ctx context.Context, w io.Writer, in <-chan chunk) error {
	const patience, reaction = 1500 * time.Millisecond, 200 * time.Millisecond
	var heard, data []byte
	var waiting <-chan time.Time // for the acknowledgement
	say := func(b []byte, wire Wire) error {
		b = slices.Clone(b)
		if wire.deaf(w) {
			garble(b)
		}
		return paced(ctx, &mouth{w: w}, b, wire.char())
	}
	for n := int64(0); ; {
		wire, agreed := v.Wire, false
		select {
		case <-ctx.Done():
			return nil
		case <-waiting:
			agreed = true
		case c, ok := <-in:
			if !ok {
				return nil
			}
			if waiting == nil && v.Wire.deaf(w) {
				garble(c.b)
			}
			heard = append(heard, c.b...)
			if i := bytes.Index(heard, []byte{0x06, '0'}); waiting != nil && i >= 0 && bytes.HasSuffix(heard[i:], []byte("\r\n")) {
				if z := heard[i+2]; z >= '0' && z <= '6' && wire.Baud > 0 {
					format := strings.Fields(wire.Only)
					wire.Baud = 300 << (z - '0')
					wire.Only = fmt.Sprint(wire.Baud, " ", format[len(format)-1])
				}
				agreed = sleep(ctx, reaction+6*v.Wire.char()) // it comes over a wire
			}
		}
		if agreed {
			heard, waiting = nil, nil
			if err := say(data, wire); err != nil {
				return err
			}
			continue
		}
		at := bytes.Index(heard, []byte("/?"))
		if at < 0 || !bytes.HasSuffix(heard, []byte("!\r\n")) {
			if len(heard) > 1024 {
				heard = nil
			}
			continue
		}
		address := string(heard[at+2 : len(heard)-3])
		heard = nil
		if n++; address != "" && address != v.number() {
			continue
		}
		whole, late := v.frame(n)
		ident, rest, ok := bytes.Cut(whole, []byte("\r\n"))
		if !ok || !sleep(ctx, max(late, reaction)+time.Duration(len(address)+5)*v.Wire.char()) {
			continue
		}
		data = rest
		if err := say(append(ident, "\r\n"...), wire); err != nil {
			return err
		}
		waiting = time.After(patience)
	}
}

// number is what a meter is called by on its line: the value of the point
// meter_id, "" if it has none.
func (v *Voice) number() string {
	for i := range v.p.Points {
		if s := &v.points[i]; v.p.Points[i].Name == "meter_id" {
			if s.held.Kind() == telemetry.Text {
				return s.held.Text()
			}
			return plainValue(&v.p.Points[i], s, time.Time{}).Text()
		}
	}
	return ""
}

// ServeTCP speaks on every connection that ln accepts until ctx ends; it
// closes ln and all connections then.
func (v *Voice) ServeTCP(ctx context.Context, ln net.Listener) error {
	return acceptLoop(ctx, ln, func(ctx context.Context, c net.Conn) {
		// An error ends this connection only.
		_ = v.Serve(ctx, c)
	})
}
