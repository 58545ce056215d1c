package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// ErrReadback is wrapped when a write was accepted and the device holds
// something else afterwards.
var ErrReadback = errors.New("the device holds another value than was written")

// WriteOptions says how a write is made. The zero value reads back.
type WriteOptions struct {
	DryRun     bool // everything but the write itself
	NoReadback bool // the device's acceptance is enough
}

// Change is what a write did, or would do.
type Change struct {
	Device, Point  string        // "" for bare registers
	Unit           uint8         //
	Table          profile.Table // Coils or Holding
	Address, Count uint16
	Function       uint8             // function code that wrote it: 5, 6, 15, 16, 22 or 23
	Old, Back      telemetry.Reading // of points; Quality tells whether there is a value
	New            telemetry.Value   // of points
	OldData        []byte            // registers as they were, or packed bits; nil if they could not be read
	NewData        []byte            // what was sent: registers, or packed bits
	BackData       []byte            // what the device held afterwards; nil if it was not read back
	Sent           bool              // the request went out
	Verified       bool              // it was read back, and is what was written
	RTT            time.Duration     // of the write itself
}

// WritePoint gives a point of a device a value: between two polls while Run
// runs, and by itself otherwise. The old value is read first; afterwards the
// point is read back and compared, also when the device did not answer the
// write, so that its outcome is known. The points that are read with it are
// polled at once. Change is filled as far as it went, also with an error.
//
// Errors are *Error and wrap profile.ErrReadOnly (code read-only),
// profile.ErrLimits (write-limits), profile.ErrValue (write-value),
// ErrReadback (read-back), ErrRequest (no-such-name, request), an Exception,
// or what Exchange returns.
func (l *Line) WritePoint(ctx context.Context, name, point string, v telemetry.Value, o WriteOptions) (Change, error) {
	c := Change{Device: name, Point: point, New: v}
	fail := func(code string, err error) (Change, error) {
		return c, &Error{Line: l.name, Device: name, Op: "write", Code: code, What: err.Error(), Err: err}
	}
	i := slices.IndexFunc(l.devices, func(d *device) bool { return d.name == name })
	if i < 0 {
		return fail("no-such-name", fmt.Errorf("%w: there is no device %q on this line", ErrRequest, name))
	}
	d := l.devices[i]
	m := d.model()
	p := slices.IndexFunc(m.Points, func(pt profile.Point) bool { return pt.Name == point })
	if p < 0 {
		return fail("no-such-name", fmt.Errorf("%w: %s has no point %q", ErrRequest, name, point))
	}
	if l.at.kind == kindListen {
		return fail("read-only", fmt.Errorf("%w: %s is no Modbus device", profile.ErrReadOnly, name))
	}
	read, err := m.PointRequest(p)
	if err != nil {
		return fail("request", fmt.Errorf("%w: %w", ErrRequest, err))
	}
	c.Unit = d.unit.id
	one := func(data []byte) (r telemetry.Reading) {
		if data != nil {
			r = m.Decode(read, data, 0, nil)[0]
		} else {
			r = telemetry.Reading{Quality: telemetry.Comm, Cause: telemetry.CauseNotYet}
		}
		r.Point = d.opt.Base + uint32(p)
		return r
	}
	err = l.change(ctx, &c, read, o, func(old []byte) (profile.Patch, error) {
		c.Old = one(old)
		return m.Patch(p, v, old)
	}, func(back []byte) bool {
		c.Back = one(back)
		return m.ReadsAs(p, v, c.Back)
	})
	switch {
	case errors.Is(err, profile.ErrReadOnly):
		return fail("read-only", err)
	case errors.Is(err, profile.ErrLimits):
		return fail("write-limits", err)
	case errors.Is(err, profile.ErrValue):
		return fail("write-value", err)
	case errors.Is(err, ErrReadback):
		c, err := fail("read-back", fmt.Errorf("%w: %s instead of %s", ErrReadback, c.Back.Value, v))
		err.(*Error).Likely = "the device limits or rounds the value, is locked, or takes the value over later"
		return c, err
	}
	if c.Sent {
		l.refresh(ctx, d, p)
	}
	return c, err
}

// WriteRegisters writes registers (data in wire order, two bytes each) or, in
// the table Coils, count packed bits of any unit, whatever a profile says. It
// reads the old content first and reads back, as WritePoint does.
func (l *Line) WriteRegisters(ctx context.Context, unit uint8, t profile.Table, addr, count uint16, data []byte, o WriteOptions) (Change, error) {
	c := Change{Unit: unit}
	read := profile.Request{Table: t, Address: addr, Count: count}
	if t != profile.Coils && t != profile.Holding || len(data) != read.Size() || count == 0 {
		return c, &Error{Line: l.name, Op: "write", Code: "request",
			Err: fmt.Errorf("%w: %d bytes for %d of table %v", ErrRequest, len(data), count, t)}
	}
	err := l.change(ctx, &c, read, o, func([]byte) (profile.Patch, error) {
		return profile.Patch{Table: t, Address: addr, Count: count, Data: data}, nil
	}, func(back []byte) bool { return bytes.Equal(back, data) })
	if errors.Is(err, ErrReadback) {
		err = &Error{Line: l.name, Device: fmt.Sprintf("unit %d", unit), Op: "write", Code: "read-back", What: err.Error(),
			Seen: fmt.Sprintf("% x instead of % x", c.BackData, data), Err: err}
	}
	return c, err
}

// change does what both ways of writing share. patch makes the write of the
// old content, which is nil if the device refuses to tell it; same judges
// what is read back.
func (l *Line) change(ctx context.Context, c *Change, read profile.Request, o WriteOptions,
	patch func(old []byte) (profile.Patch, error), same func(back []byte) bool) error {
	look, err := l.askFor(c.Unit, read)
	if err != nil {
		return err
	}
	return l.asTechnician(ctx, func() error {
		var x Exception
		reply, err := l.request(ctx, "write", c.Unit, look)
		if err != nil && !errors.As(err, &x) {
			return err
		} else if err == nil {
			c.OldData = reply.Data
		}
		w, err := patch(c.OldData)
		if err != nil {
			return err
		}
		c.Table, c.Address, c.Count = w.Table, w.Address, w.Count
		ask, err := l.askToWrite(c, read, &w)
		if err != nil || o.DryRun {
			return err
		}
		reply, err = l.request(ctx, "write", c.Unit, ask)
		c.Sent, c.RTT = true, reply.RTT
		if errors.Is(err, Exception(1)) && ask.fc == 22 && c.OldData != nil {
			// It does not know the mask: the whole register, then.
			c.NewData = merge(cutout(read, &w, c.OldData), w.Data, w.Mask)
			if ask, err = newWrite(l.at.kind, c.Unit, 6, c.Address, 1, c.NewData, nil); err != nil {
				return err
			}
			c.Function = 6
			reply, err = l.request(ctx, "write", c.Unit, ask)
			c.RTT = reply.RTT
		}
		if errors.As(err, &x) || errors.Is(err, ErrRequest) || errors.Is(err, ErrClosed) {
			return err
		}
		if err == nil && o.NoReadback {
			return nil
		}
		// Without an answer the device may have done it all the same.
		back, berr := l.request(ctx, "write", c.Unit, look)
		if berr != nil {
			return errors.Join(err, berr)
		}
		c.BackData = back.Data
		switch {
		case same(back.Data):
			c.Verified = true
			return nil
		case err != nil:
			return err
		}
		return ErrReadback
	})
}

// askToWrite makes the request of a patch and says in c what it will do.
func (l *Line) askToWrite(c *Change, read profile.Request, w *profile.Patch) (*ask, error) {
	fc := byte(w.Function)
	var mask []byte
	data := w.Data
	switch {
	case w.Table == profile.Coils:
		if fc == 0 {
			fc = 5
			if w.Count > 1 {
				fc = 15
			}
		}
	case w.Mask != nil && w.Count == 1 && (fc == 0 || fc == 22):
		fc, mask = 22, w.Mask
	case w.Mask != nil:
		if c.OldData == nil {
			return nil, fmt.Errorf("%w: it is a part of registers that the device does not let us read", ErrRequest)
		}
		data = merge(cutout(read, w, c.OldData), w.Data, w.Mask)
	}
	if fc == 0 {
		fc = 6
		if w.Count > 1 {
			fc = 16
		}
	}
	c.Function, c.NewData = fc, data
	return newWrite(l.at.kind, c.Unit, fc, w.Address, w.Count, data, mask)
}

// cutout returns the registers of a patch out of those that were read.
func cutout(read profile.Request, w *profile.Patch, data []byte) []byte {
	at := 2 * int(w.Address-read.Address)
	return data[at : at+2*int(w.Count)]
}

// merge puts the bits of data under mask into old.
func merge(old, data, mask []byte) []byte {
	out := make([]byte, len(old))
	for i := range out {
		out[i] = old[i]&^mask[i] | data[i]&mask[i]
	}
	return out
}

// refresh makes what is read with a point due now.
func (l *Line) refresh(ctx context.Context, d *device, point int) {
	if !l.take(ctx) {
		return
	}
	defer func() { <-l.own }()
	for _, j := range l.jobs {
		if j.dev == d && j.hole == nil && slices.Contains(j.req.Points, point) {
			j.due = time.Now()
		}
	}
	l.stir()
}

// reads says whether a request may be repeated and parted: it changes nothing.
func (a *ask) reads() bool { return a.fc >= 1 && a.fc <= 4 }

// newWrite makes a write of registers or packed bits; mask are the bits of
// one register that function 22 changes. Function 23 reads back the same
// registers in its answer.
func newWrite(k kind, unit, fc byte, addr, count uint16, data, mask []byte) (*ask, error) {
	a := &ask{unit: unit, fc: fc, addr: addr, count: count}
	most := map[byte]uint16{5: 1, 6: 1, 15: 1968, 16: 123, 22: 1, 23: 121}[fc]
	if count < 1 || count > most {
		return nil, fmt.Errorf("%w: function %d writes 1..%d, not %d", ErrRequest, fc, most, count)
	}
	if int(addr)+int(count) > 1<<16 {
		return nil, fmt.Errorf("%w: addresses %d to %d go past 65535", ErrRequest, addr, int(addr)+int(count)-1)
	}
	pdu := words(addr)
	switch fc {
	case 5:
		on := uint16(0)
		if data[0]&1 != 0 {
			on = 0xFF00
		}
		pdu = append(pdu, words(on)...)
	case 6:
		pdu = append(pdu, data...)
	case 22:
		pdu = append(pdu, ^mask[0], ^mask[1], data[0]&mask[0], data[1]&mask[1])
	case 23:
		pdu = append(append(words(addr, count, addr, count), byte(len(data))), data...)
		a.body = len(data)
		return a, a.encode(packager(k, unit), k, pdu, 1+a.body)
	default:
		pdu = append(append(append(pdu, words(count)...), byte(len(data))), data...)
	}
	a.echo = slices.Clone(pdu[:4])
	if fc == 22 {
		a.echo = slices.Clone(pdu)
	}
	a.body, a.mirror = len(a.echo), len(a.echo) == len(pdu)
	return a, a.encode(packager(k, unit), k, pdu, len(a.echo))
}

// Identity is what a device tells of itself.
type Identity struct {
	Objects map[uint8]string // function 43/14: 0 vendor, 1 product code, 2 revision, 3 URL, 4 product, 5 model, 6 application
	ID      []byte           // function 17: unit id, run status and whatever the maker adds; nil if it does not know it
}

// Identify asks a unit who it is: the basic and regular objects of function
// 43/14, and function 17. Devices need not know either; the error is that of
// the last one if neither was answered.
func (l *Line) Identify(ctx context.Context, unit uint8) (id Identity, err error) {
	err = l.asTechnician(ctx, func() (err error) {
		id, err = identify(l.at.kind, unit, func(a *ask) ([]byte, error) {
			r, err := l.request(ctx, "identify", unit, a)
			return r.Data, err
		})
		return err
	})
	return id, err
}

// identify asks with a function that makes one exchange. The error is that of
// the last one if nothing was answered.
func identify(k kind, unit uint8, exchange func(*ask) ([]byte, error)) (Identity, error) {
	id := Identity{Objects: map[uint8]string{}}
	var failed error
	for code := byte(1); code <= 2 && failed == nil; code++ { // basic, regular
		next := byte(0)
		for range 8 { // parts of a long list
			a := &ask{unit: unit, fc: 43, free: true}
			if err := a.encode(packager(k, unit), k, []byte{14, code, next}, 64); err != nil {
				return id, err
			}
			data, err := exchange(a)
			if failed = err; err != nil {
				break
			}
			more := byte(0)
			if more, next = objects(data, id.Objects); more == 0 {
				break
			}
		}
	}
	a := &ask{unit: unit, fc: 17, free: true}
	if err := a.encode(packager(k, unit), k, nil, 64); err != nil {
		return id, err
	}
	data, err := exchange(a)
	if err == nil {
		id.ID = data
	} else {
		failed = err
	}
	if len(id.Objects) == 0 && id.ID == nil {
		return id, failed
	}
	return id, nil
}

// objects takes the objects out of the data of an answer to 43/14: MEI type,
// code, conformity, more follows, next object, count, then number, length and
// text of each.
func objects(d []byte, into map[uint8]string) (more, next byte) {
	if len(d) < 6 {
		return 0, 0
	}
	more, next = d[3], d[4]
	n := d[5]
	d = d[6:]
	for range n {
		if len(d) < 2 || len(d) < 2+int(d[1]) {
			return 0, 0
		}
		into[d[0]] = string(bytes.TrimRight(d[2:2+int(d[1])], "\x00 "))
		d = d[2+int(d[1]):]
	}
	return more, next
}

// askFor encodes a read.
func (l *Line) askFor(unit uint8, r profile.Request) (*ask, error) {
	return newAsk(packager(l.at.kind, unit), l.at.kind, unit, r.Table, r.Address, r.Count)
}
