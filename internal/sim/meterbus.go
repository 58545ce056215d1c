package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"tidegate/driver/mbus"
	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// MeterBus is an M-Bus with meters made from their profiles. Their values
// drift like those of real ones. Where several answer at once, their answers
// are laid over each other, bit by bit, as on the two wires: a 0 wins.
type MeterBus struct {
	Wire Wire
	// Plan decides what goes wrong with an answer, as for a Voice. Nil:
	// nothing does.
	Plan Plan

	mu     sync.Mutex
	meters []*BusMeter
	n      int64
}

// BusMeter is one of the meters of a MeterBus.
type BusMeter struct {
	Unit    int    // primary address
	Address string // secondary address, 16 digits
	Wire    Wire   // of this meter, if it has another speed than the bus
	// PrimaryOnly is of a meter that answers neither when all are called nor
	// when it is selected, but to its primary address.
	PrimaryOnly bool

	p        *profile.Profile
	own      []byte // Address as it is sent
	points   []signal
	access   byte // number of the next telegram
	selected bool
	fcb      byte // frame count bit of the last request; noFCB: there was none
	round    [][]byte
	at       int
}

const noFCB = 0xFF

// Add puts a meter on the bus: unit is its primary address, 0 to 250, and
// number the eight digits of its identification, or the sixteen of its whole
// secondary address. With "", seed makes a number. Maker, version and type of
// device are those of the first recording of the profile.
func (b *MeterBus) Add(p *profile.Profile, unit int, number string, seed uint64, start time.Time) (*BusMeter, error) {
	if !p.MBus() {
		return nil, fmt.Errorf("sim: profile %s is no meter on an M-Bus", p.Name)
	}
	m := &BusMeter{Unit: unit, Address: strings.ToUpper(number), p: p, fcb: noFCB}
	head := &mbus.Telegram{Maker: "TDG", Version: 1, Device: 2}
	for _, raw := range p.Recordings() {
		if f, _, err := mbus.ParseFrame(raw); err == nil {
			if t, err := mbus.Parse(f); err == nil && t.Header {
				head = t
				break
			}
		}
	}
	if len(number) != 16 {
		if head.ID = number; number == "" {
			head.ID = fmt.Sprintf("%08d", mix(seed, 99)%1e8)
		}
		m.Address = head.Address()
	}
	own, err := mbus.AddressBytes(m.Address)
	if err != nil || len(m.Address) != 16 || slices.ContainsFunc([]byte(m.Address[:8]), func(x byte) bool { return x > '9' }) {
		return nil, fmt.Errorf("sim: %q is no number of a meter: write 8 digits, or 16", number)
	}
	m.own = own
	for i, tp := range p.TelemetryPoints("") {
		s := newSignal(&p.Points[i], tp.Decimals, seed)
		s.middle -= s.rate * float64(start.Unix())
		m.points = append(m.points, s)
	}
	if _, err := m.answers(start); err != nil {
		return nil, fmt.Errorf("sim: profile %s: %w", p.Name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.meters = append(b.meters, m)
	return m, nil
}

// Hold keeps a point at a value, which is written as a person writes it. It
// is for points that stand in records.
func (m *BusMeter) Hold(point, value string) error {
	i, v, err := heldValue(m.p, point, value)
	if err != nil {
		return err
	}
	values := make([]telemetry.Value, len(m.points))
	values[i] = v
	if records, err := m.p.EncodeTelegram(values); err != nil {
		return err
	} else if len(records) == 0 {
		return fmt.Errorf("%s stands in the header of the telegram: it cannot be set", point)
	}
	m.points[i].held = v
	return nil
}

// answers are the telegrams that the meter sends now.
func (m *BusMeter) answers(now time.Time) ([][]byte, error) {
	values := make([]telemetry.Value, len(m.points))
	for i := range m.points {
		pt, s := &m.p.Points[i], &m.points[i]
		switch {
		case s.held.Kind() != telemetry.None:
			values[i] = s.held
		case len(pt.Device) > 0 && !slices.Contains(pt.Device, int(m.own[7])):
		case pt.Type == "string" && pt.MBus.Quantity != "" && mbus.Codes(pt.MBus.Quantity, pt.MBus.With)[0].Moment():
			values[i] = telemetry.IntValue(mbus.Stamp(now), 0)
		default:
			values[i] = plainValue(pt, s, now)
		}
	}
	records, err := m.p.EncodeTelegram(values)
	if err != nil {
		return nil, err
	}
	out := mbus.Responses(byte(m.Unit), m.own, m.access, records)
	m.access += byte(len(out))
	return out, nil
}

// hear takes what the master sends; nil is no answer.
func (m *BusMeter) hear(f mbus.Frame, now time.Time) []byte {
	switch {
	case m.PrimaryOnly && int(f.Address) != m.Unit:
		return nil
	case f.Long && f.CI == 0x52 && f.Address == mbus.Selected:
		m.selected = len(f.Data) == 8 && mbus.Selects(f.Data, m.own)
		if m.fcb, m.round = noFCB, nil; !m.selected {
			return nil
		}
	case !f.Long && f.Address == mbus.Selected && f.Control == mbus.SndNke:
		if !m.selected {
			return nil
		}
		m.selected, m.fcb, m.round = false, noFCB, nil
	case int(f.Address) != m.Unit && f.Address != mbus.Any && !(f.Address == mbus.Selected && m.selected):
		return nil
	case f.Long || f.Control == mbus.SndNke:
		m.fcb, m.round = noFCB, nil
	case f.Control&^mbus.FCB == mbus.ReqUd2:
		if bit := f.Control & mbus.FCB; bit != m.fcb {
			if m.fcb, m.at = bit, m.at+1; m.at >= len(m.round) {
				m.round, _ = m.answers(now) // Add has tried it
				m.at = 0
			}
		}
		return slices.Clone(m.round[m.at])
	default:
		return nil
	}
	return []byte{mbus.Ack}
}

// answer is what is on the wires after a frame of the master, and how fast it
// comes. Meters that are deaf hear nothing: their line has another setting.
func (b *MeterBus) answer(f mbus.Frame, now time.Time, deaf func(Wire) bool) (out []byte, late, char time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var who byte
	for _, m := range b.meters {
		w := m.Wire
		if w == (Wire{}) {
			w = b.Wire
		}
		if deaf(w) {
			continue
		}
		said := m.hear(f, now)
		for i, x := range said {
			if i < len(out) {
				out[i] &= x
			} else {
				out = append(out, x)
			}
		}
		if said != nil {
			who, char = byte(m.Unit), w.char()
		}
	}
	if out == nil || b.Plan == nil {
		return out, 0, char
	}
	b.n++
	out, late = fail(b.Plan(Request{N: int(b.n), Unit: who}), b.n, out)
	return out, late, char
}

// Serve answers on rw until ctx ends or writing fails.
func (b *MeterBus) Serve(ctx context.Context, rw io.ReadWriter) error {
	return converse(ctx, rw, b.listen)
}

func (b *MeterBus) listen(ctx context.Context, w io.Writer, in <-chan chunk) error {
	var heard []byte
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-in:
			if !ok {
				return nil
			}
			if c.at.Sub(last) > 300*time.Millisecond {
				heard = nil // what was no frame by now will be none
			}
			last = c.at
			heard = append(heard, c.b...)
		}
		for len(heard) > 0 {
			f, n, err := mbus.ParseFrame(heard)
			if errors.Is(err, mbus.ErrShort) {
				break
			}
			if err != nil {
				heard = heard[1:]
				continue
			}
			said, late, char := b.answer(f, time.Now(), func(on Wire) bool { return on.deaf(w) })
			heard = heard[n:]
			sleep(ctx, late+time.Duration(n)*char) // it comes over a wire
			if err := paced(ctx, &mouth{w: w}, said, char); err != nil {
				return err
			}
		}
	}
}

// ServeTCP answers on every connection that ln accepts until ctx ends; it
// closes ln and all connections then.
func (b *MeterBus) ServeTCP(ctx context.Context, ln net.Listener) error {
	return acceptLoop(ctx, ln, func(ctx context.Context, c net.Conn) {
		// An error ends this connection only.
		_ = b.Serve(ctx, c)
	})
}
