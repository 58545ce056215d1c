package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// askThenRead is the dialogue that a profile describes with talk.
type askThenRead struct {
	dev    *device
	talk   *profile.Talk
	scan   *profile.Scanner
	inited bool
	step   int // the next message of ask
	count  int // how often messages with {n} are sent
	frames int // good frames of this round
	values int // readings in them
	hollow int // rounds in a row with frames but without readings
}

func newAskThenRead(d *device) (*askThenRead, error) {
	return &askThenRead{dev: d, talk: d.opt.Map.Talk, scan: d.opt.Map.NewScanner()}, nil
}

func (a *askThenRead) reset() { a.inited, a.step = false, 0 }

// longPause is how long a pause must be that the line is given away for.
const longPause = 200 * time.Millisecond

// mostHollow is how many rounds may pass without a value, although the
// device answers, until it is started anew: it may have lost its power.
const mostHollow = 3

func (a *askThenRead) poll(c *call) (time.Duration, error) {
	if !a.inited {
		for i := range a.talk.Init {
			s := &a.talk.Init[i]
			if err := a.send(c, s, 0, 1); err != nil {
				return 0, err
			}
			if err := c.pause(s.Wait); err != nil {
				return 0, err
			}
		}
		a.inited = true
	}
	if a.step == 0 {
		a.count, a.frames, a.values = 0, 0, 0
	}
	for a.step < len(a.talk.Ask) {
		s := &a.talk.Ask[a.step]
		times := 1
		if s.Repeats() {
			times = a.count
		}
		for n := 1; n <= times; n++ {
			if err := a.send(c, s, 1, n); err != nil {
				return 0, err
			}
		}
		a.step++
		if s.Wait >= longPause {
			return s.Wait, nil
		}
		if err := c.pause(s.Wait); err != nil {
			return 0, err
		}
	}
	a.step = 0
	if a.frames == 0 || a.values > 0 || len(a.talk.Init) == 0 {
		a.hollow = 0
	} else if a.hollow++; a.hollow >= mostHollow {
		a.hollow = 0
		return 0, fmt.Errorf("%w: the answers hold no values", ErrMismatch)
	}
	return 0, nil
}

// send sends one message and reads what answers it; frames is how many
// frames do if the profile does not say.
func (a *askThenRead) send(c *call, s *profile.Send, frames, n int) error {
	msg, err := a.dev.opt.Map.Message(s, a.dev.opt.unit(), n)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := c.write(msg); err != nil {
		return err
	}
	if s.Bytes > 0 {
		return a.bytes(c, msg, s)
	}
	if s.Frames != nil {
		frames = *s.Frames
	}
	return a.await(c, msg, frames, s.More)
}

// bytes reads an answer that is no frame.
func (a *askThenRead) bytes(c *call, msg []byte, s *profile.Send) error {
	until := time.Now().Add(c.timeout() + c.char()*time.Duration(len(msg)+s.Bytes))
	var got []byte
	for len(got) < s.Bytes {
		b, err := c.read(until)
		switch {
		case errors.Is(err, ErrTimeout) && len(got) > 0:
			return ErrShort
		case err != nil:
			return err
		}
		if got = append(got, b...); len(got) >= len(msg) && len(got) > s.Bytes && bytes.HasPrefix(got, msg) {
			c.line.wire.count.Echoes++
			got = got[len(msg):]
		}
	}
	c.line.wire.count.Answers++
	if s.Count != nil {
		a.count = int(got[*s.Count])
	}
	return nil
}

// await reads until frames good frames have come, and with more > 0 until
// the device is silent for so long.
func (a *askThenRead) await(c *call, msg []byte, frames int, more time.Duration) error {
	a.scan.Begin()
	m := a.dev.opt.Map
	before, got, bad, echoed := c.bytes, 0, a.scan.Bad(), false
	until := time.Now().Add(c.timeout() + c.char()*time.Duration(len(msg)))
	take := func(raw []byte) {
		if bytes.Equal(raw, bytes.TrimRight(msg, "\r\n")) || bytes.Equal(raw, msg) {
			c.line.wire.count.Echoes++
			echoed = true
			return
		}
		if a.dev.foreign(raw) {
			c.line.wire.count.Stray++
			return
		}
		if got++; got > frames && more == 0 {
			return
		}
		a.frames++
		c.emit(func(base uint32, dst []telemetry.Reading) []telemetry.Reading {
			out := m.DecodeFrame(raw, base, dst)
			a.values += len(out) - len(dst)
			return out
		})
	}
	for got < frames || more > 0 {
		b, err := c.read(until)
		begun := a.scan.Begun()
		if errors.Is(err, ErrTimeout) && begun {
			a.scan.Flush(take) // what began was no frame; behind it may be one
		}
		switch {
		case errors.Is(err, ErrTimeout) && got >= frames:
			return nil
		case errors.Is(err, ErrTimeout) && echoed && c.bytes-before == len(msg):
			return ErrEcho
		case errors.Is(err, ErrTimeout) && a.scan.Bad() > bad:
			c.line.wire.count.CRC += a.scan.Bad() - bad
			return ErrCRC
		case errors.Is(err, ErrTimeout) && c.bytes > before && (!c.line.talkers || begun):
			return ErrShort
		case err != nil:
			return err
		}
		a.scan.Feed(b, take)
		switch min := time.Now().Add(c.timeout()); {
		case got >= frames && more > 0:
			until = time.Now().Add(more)
		case got > 0 && until.Before(min):
			until = min // each frame has its own time
		}
	}
	return nil
}

// foreign says whether a frame comes from another unit than the device.
func (d *device) foreign(raw []byte) bool {
	unit, ok := d.opt.Map.Sender(raw)
	return ok && d.opt.unit() > 0 && unit != d.opt.unit()
}

// prompt sends what a device wants to hear to go on talking: init when the
// line is fresh and whenever it has been silent for long, keep at its period.
// It returns when to come again. The caller owns the line.
func (l *Line) prompt(ctx context.Context, now time.Time) time.Time {
	next := now.Add(time.Hour)
	for _, d := range l.devices {
		t := d.talker
		if t == nil || d.opt.Map.Talk == nil || l.wire.st == nil {
			continue
		}
		talk := d.opt.Map.Talk
		if t.kept.IsZero() || now.Sub(t.heard) > t.patience() && now.Sub(t.started) > t.patience() {
			l.say(ctx, d, talk.Init)
			t.started, t.kept = now, now
		} else if len(talk.Keep) > 0 && now.Sub(t.kept) >= talk.KeepEvery() {
			l.say(ctx, d, talk.Keep)
			t.kept = now
		}
		if len(talk.Keep) > 0 && t.kept.Add(talk.KeepEvery()).Before(next) {
			next = t.kept.Add(talk.KeepEvery())
		}
	}
	return next
}

// patience is how long a device that must be told to talk may be silent
// until it is told again.
func (t *talker) patience() time.Duration { return max(t.deadline()/3, 5*time.Second) }

// farewell tells the devices that the line is about to be closed.
func (l *Line) farewell() {
	for _, d := range l.devices {
		if l.wire.st != nil && d.opt.Map.Talk != nil {
			l.say(context.Background(), d, d.opt.Map.Talk.Stop)
		}
	}
}

// say sends messages whose answers nobody waits for.
func (l *Line) say(ctx context.Context, d *device, list []profile.Send) {
	for i := range list {
		msg, err := d.opt.Map.Message(&list[i], d.opt.unit(), 1)
		if err != nil {
			l.log.Error("a message of the profile is wrong", "device", d.name, "err", err)
			return
		}
		now := time.Now()
		if wait := l.wire.last.Add(l.wire.gap).Sub(now); wait > 0 && !l.talkers {
			pause(ctx, wait)
		}
		if err := l.wire.st.WriteAll(msg, now.Add(time.Second+l.wire.char*time.Duration(len(msg)))); err != nil {
			l.hangUp(fmt.Errorf("%w: %w", ErrGone, err))
			return
		}
		l.wire.last = time.Now()
		l.wire.count.Requests++
		l.wire.count.BytesOut += uint64(len(msg))
		if list[i].Wait > 0 {
			pause(ctx, list[i].Wait)
		}
	}
}
