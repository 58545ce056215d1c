package driver

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidegate/driver/mbus"
	"tidegate/internal/telemetry"
)

// meterBus is the dialogue with a meter on an M-Bus (EN 13757-2): the meter
// is reset, selected where it has no address of its own, and asked for its
// telegrams one after the other. A request that goes without an answer is
// sent again with the same frame count bit, so that the meter repeats what
// was lost and does not pass on.
type meterBus struct {
	unit    byte
	mask    []byte // of the secondary address, as it is sent; nil: the unit is asked
	app     []byte // sub-code of the application reset; nil: none
	fresh   bool   // the meter must be reset before it is asked
	fcb     byte   // frame count bit of the next request
	failing bool   // the last round went wrong
	in      []byte // what has come and is no frame yet
}

const (
	// meterTries is how often a request is sent until the meter counts as silent.
	meterTries = 3
	// meterTelegrams is how many telegrams a meter may send in one round.
	meterTelegrams = 32
	// meterGap is the longest pause within a frame: level converters and
	// serial servers send in pieces.
	meterGap = 300 * time.Millisecond
)

func newMeterBus(d *device) (*meterBus, error) {
	m := &meterBus{unit: byte(d.opt.unit()), app: d.opt.Map.Handshake.Select, fresh: true}
	if d.opt.Address != "" {
		mask, err := meterMask(d.opt.Address)
		if err != nil {
			return nil, err
		}
		m.mask, m.unit = mask, mbus.Selected
	}
	return m, nil
}

// meterMask returns the selection of a secondary address: eight digits of the
// identification number, or those and eight more of maker, version and type.
// F stands for any digit.
func meterMask(address string) ([]byte, error) {
	b, err := mbus.AddressBytes(address)
	if err != nil {
		return nil, fmt.Errorf("%q is no secondary address of an M-Bus meter: write the 8 digits printed on it, or all 16", address)
	}
	return b, nil
}

func (m *meterBus) reset() { m.fresh = true }

func (m *meterBus) poll(c *call) (time.Duration, error) {
	err := m.round(c)
	m.failing = err != nil
	return 0, err
}

func (m *meterBus) round(c *call) error {
	if m.fresh {
		if err := m.begin(c); err != nil {
			return err
		}
	}
	all, err := m.telegram(c, nil)
	if err != nil {
		return err
	}
	m.fresh = all.More || m.mask != nil
	for n, last := 1, all; last.More && n < meterTelegrams; n++ {
		last, err = m.telegram(c, last)
		if errors.Is(err, errRepeats) {
			break // the meter has no more, whatever it says
		}
		if err != nil {
			return err
		}
		all.Records = append(all.Records, last.Records...)
	}
	c.emit(func(base uint32, dst []telemetry.Reading) []telemetry.Reading {
		return c.dev.opt.Map.DecodeTelegram(all, base, dst)
	})
	return nil
}

// errRepeats tells that a meter has sent the telegram before once more.
var errRepeats = errors.New("the meter repeats itself")

// tries is how often a request is sent.
func (m *meterBus) tries() int {
	if m.failing {
		return 1
	}
	return meterTries
}

// begin brings the meter to where it awaits a request with the frame count
// bit set. Not every meter acknowledges a reset.
func (m *meterBus) begin(c *call) error {
	acked := func(f *mbus.Frame) (bool, error) { return f.Ack, nil }
	soft := func(err error) error {
		if errors.Is(err, ErrGone) || c.ctx.Err() != nil {
			return err
		}
		return nil
	}
	if err := soft(m.ask(c, mbus.Short(mbus.SndNke, m.unit), 1, acked)); err != nil {
		return err
	}
	if m.mask != nil {
		if err := m.ask(c, mbus.Long(mbus.SndUd, mbus.Selected, 0x52, m.mask...), m.tries(), acked); err != nil {
			return err
		}
	}
	if m.app != nil {
		if err := soft(m.ask(c, mbus.Long(mbus.SndUd, m.unit, 0x50, m.app...), m.tries(), acked)); err != nil {
			return err
		}
	}
	m.fcb, m.fresh = mbus.FCB, false
	return nil
}

// telegram asks for the next telegram. last is the one before, nil if it is
// the first.
func (m *meterBus) telegram(c *call, last *mbus.Telegram) (*mbus.Telegram, error) {
	var got *mbus.Telegram
	repeats := false
	err := m.ask(c, mbus.Short(mbus.ReqUd2|m.fcb, m.unit), m.tries(), func(f *mbus.Frame) (bool, error) {
		if f.Ack {
			return true, fmt.Errorf("%w: the meter has no data", ErrMismatch)
		}
		if !f.Response() || m.mask == nil && m.unit != mbus.Any && f.Address != m.unit {
			return false, nil
		}
		t, err := mbus.Parse(mbus.Frame{Long: true, Control: f.Control, Address: f.Address, CI: f.CI, Data: slices.Clone(f.Data)})
		if err != nil {
			return true, fmt.Errorf("%w: %w", ErrMismatch, err)
		}
		if !m.chosen(t) {
			return false, nil
		}
		if last != nil && sameTelegram(t, last) {
			repeats = true // late, or a meter that knows of no frame count bit
			return false, nil
		}
		got = t
		return true, nil
	})
	if err != nil && repeats && !errors.Is(err, ErrGone) {
		return nil, errRepeats
	}
	if err == nil {
		m.fcb ^= mbus.FCB
	}
	return got, err
}

// chosen says whether a telegram comes from the meter that was selected.
func (m *meterBus) chosen(t *mbus.Telegram) bool {
	if m.mask == nil || !t.Header && !t.Fixed {
		return true
	}
	b, err := mbus.AddressBytes(t.Address())
	if err != nil {
		return false
	}
	if t.Fixed {
		b = b[:4]
	}
	return mbus.Selects(m.mask, b)
}

// sameTelegram compares two telegrams but for their access numbers.
func sameTelegram(a, b *mbus.Telegram) bool {
	if len(a.Records) != len(b.Records) || a.More != b.More || !bytes.Equal(a.Own, b.Own) || a.ID != b.ID {
		return false
	}
	for i := range a.Records {
		x, y := &a.Records[i], &b.Records[i]
		if !bytes.Equal(x.VIF, y.VIF) || x.Storage != y.Storage || x.Tariff != y.Tariff || x.Subunit != y.Subunit || x.Function != y.Function ||
			fmt.Sprint(x.Value) != fmt.Sprint(y.Value) {
			return false
		}
	}
	return true
}

// ask sends a message until take has taken an answer.
func (m *meterBus) ask(c *call, msg []byte, tries int, take func(f *mbus.Frame) (bool, error)) (err error) {
	for range tries {
		if err = c.write(msg); err != nil {
			return err
		}
		if err = m.await(c, msg, take); err == nil || errors.Is(err, ErrGone) || errors.Is(err, ErrClosed) || c.ctx.Err() != nil {
			return err
		}
		c.line.wire.dirty = true
		if errors.Is(err, ErrMismatch) && !errors.Is(err, errForeign) {
			return err // the meter has spoken; it would say the same again
		}
	}
	return err
}

// errForeign tells that whole frames came, and none from the meter.
var errForeign = fmt.Errorf("%w: another meter answered", ErrMismatch)

// await reads until take has taken a frame, or the time is over.
func (m *meterBus) await(c *call, msg []byte, take func(f *mbus.Frame) (bool, error)) error {
	m.in = m.in[:0]
	count := &c.line.wire.count
	before, echoes, foreign, bad := c.bytes, 0, 0, uint64(0)
	began := time.Now()
	until := began.Add(c.timeout() + c.char()*time.Duration(len(msg)))
	most := until.Add(2*time.Second + 270*c.char())
	for {
		b, err := c.read(until)
		if err != nil {
			switch {
			case !errors.Is(err, ErrTimeout) || c.bytes == before:
				return err
			case bad > 0:
				count.CRC += bad
				return ErrCRC
			case foreign > 0:
				return errForeign
			case len(m.in) > 0:
				return ErrShort
			case echoes > 0:
				return ErrEcho
			}
			return err
		}
		m.in = append(m.in, b...)
		for len(m.in) > 0 {
			f, n, err := mbus.ParseFrame(m.in)
			if errors.Is(err, mbus.ErrShort) {
				break
			}
			if err != nil {
				bad = 1
				count.Garbage++
				m.in = m.in[1:]
				continue
			}
			if f.FromMaster() {
				count.Echoes++
				echoes++
				m.in = m.in[n:]
				continue
			}
			ok, err := take(&f)
			m.in = m.in[n:]
			if ok {
				return err
			}
			count.Stray++
			foreign++
		}
		if until = time.Now().Add(max(meterGap, c.char()*33)); until.After(most) {
			until = most
		} else if rest := began.Add(c.timeout()); len(m.in) == 0 && until.Before(rest) {
			until = rest
		}
	}
}
