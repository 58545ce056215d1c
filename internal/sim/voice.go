package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

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
}

// NewVoice returns a device for a serial profile under a unit address. It
// fails for profiles whose frames can neither be built nor were recorded, and
// for those that hold a dialogue of their own.
func NewVoice(p *profile.Profile, unit int, seed uint64) (*Voice, error) {
	v := &Voice{Every: time.Second, p: p, unit: unit}
	switch {
	case p.Frames == nil:
		return nil, fmt.Errorf("sim: profile %s is no serial device", p.Name)
	case p.Polled() && (p.Talk == nil || len(p.Talk.Ask) == 0):
		return nil, fmt.Errorf("sim: profile %s holds a dialogue of its own, which is not simulated", p.Name)
	}
	for i, tp := range p.TelemetryPoints("") {
		v.points = append(v.points, newSignal(&p.Points[i], tp.Decimals, seed))
	}
	if b, err := v.build(time.Now()); err != nil || !v.understood(b) {
		if v.records = p.Recordings(); len(v.records) == 0 {
			return nil, fmt.Errorf("sim: profile %s: its frames cannot be built, and none was recorded", p.Name)
		}
	}
	if !p.Polled() {
		return v, nil
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
func (v *Voice) Asked() bool { return v.asks != nil }

// Hold keeps a point at a value, where frames are built.
func (v *Voice) Hold(point, value string) error {
	i, x, err := heldValue(v.p, point, value)
	switch {
	case err != nil:
		return err
	case v.records != nil:
		return fmt.Errorf("the frames of %s are recordings: %s cannot be set", v.p.Name, point)
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

func (v *Voice) build(now time.Time) ([]byte, error) {
	values := make([]telemetry.Value, len(v.points))
	for i := range v.points {
		s := &v.points[i]
		if values[i] = s.held; s.held.Kind() == telemetry.None {
			values[i] = telemetry.Float64Value(roundTo(s.at(now.Unix()), s.decimals))
		}
		if _, err := v.p.Encode(i, values[i], 0); err != nil {
			values[i] = telemetry.Value{} // words, flags: 0
		}
	}
	return v.p.EncodeFrame(values)
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
	switch f := v.Plan(Request{N: int(n), Unit: byte(v.unit)}); f.Kind {
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

// Serve speaks on rw until ctx ends or writing fails.
func (v *Voice) Serve(ctx context.Context, rw io.ReadWriter) error {
	if v.asks == nil {
		t := &Talker{Frames: [][]byte{nil}, Every: v.Every, Wire: v.Wire, Spoil: func(n int64, _ []byte) []byte {
			b, late := v.frame(n)
			sleep(ctx, late)
			return b
		}}
		return t.Serve(ctx, rw)
	}
	in, end := readAll(ctx, rw)
	err := v.answer(ctx, rw, in)
	if rerr := end(); err == nil {
		err = rerr
	}
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	return err
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

// ServeTCP speaks on every connection that ln accepts until ctx ends; it
// closes ln and all connections then.
func (v *Voice) ServeTCP(ctx context.Context, ln net.Listener) error {
	return acceptLoop(ctx, ln, func(ctx context.Context, c net.Conn) {
		// An error ends this connection only.
		_ = v.Serve(ctx, c)
	})
}
