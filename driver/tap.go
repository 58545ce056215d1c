package driver

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Traffic is what passed on a line: bytes that were sent or received, or
// that the line was opened or lost. Bytes belongs to the receiver.
type Traffic struct {
	At    time.Time // when sending began, or when the bytes had been received
	Kind  string    // tx, rx, open or gone
	Bytes []byte
	Lost  uint64 // events before this one that the receiver was too slow for
}

// tapRoom is how many events wait for a slow receiver.
const tapRoom = 4096

// tap is one listener to a line.
type tap struct {
	to   chan Traffic
	lost atomic.Uint64
}

// Tap calls take for everything that passes on the line until ctx ends or
// take fails; it returns take's error. The line does not wait for take: what
// is too much is counted in Lost. Run or Exchange do the sending; Tap opens
// nothing.
func (l *Line) Tap(ctx context.Context, take func(Traffic) error) error {
	t := &tap{to: make(chan Traffic, tapRoom)}
	if err := l.setTaps(ctx, func(all []*tap) []*tap { return append(all, t) }); err != nil {
		return err
	}
	defer l.setTaps(context.Background(), func(all []*tap) []*tap {
		for i := range all {
			if all[i] == t {
				return append(append([]*tap(nil), all[:i]...), all[i+1:]...)
			}
		}
		return all
	})
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.done:
			return nil
		case x := <-t.to:
			if err := take(x); err != nil {
				return err
			}
		}
	}
}

// setTaps changes who listens; it waits for the exchange under way.
func (l *Line) setTaps(ctx context.Context, change func([]*tap) []*tap) error {
	if !l.take(ctx) {
		return ctx.Err()
	}
	defer func() { <-l.own }()
	l.taps = change(l.taps)
	l.wire.st = l.tapped(l.wire.st)
	return nil
}

// tapped puts the taps between the line and its stream, and takes them away
// when nobody listens any more. The caller owns the line.
func (l *Line) tapped(st stream) stream {
	if t, ok := st.(*tapStream); ok {
		st = t.stream
	}
	if len(l.taps) == 0 || st == nil {
		return st
	}
	return &tapStream{st, l.taps}
}

// tellTaps gives an event to all who listen.
func tellTaps(taps []*tap, kind string, at time.Time, b []byte) {
	for _, t := range taps {
		x := Traffic{At: at, Kind: kind, Bytes: append([]byte(nil), b...), Lost: t.lost.Load()}
		select {
		case t.to <- x:
			t.lost.Add(^(x.Lost - 1)) // minus what was told
		default:
			t.lost.Add(1)
		}
	}
}

// tapStream is a stream that is listened to.
type tapStream struct {
	stream
	taps []*tap
}

func (s *tapStream) WriteAll(p []byte, deadline time.Time) error {
	at := time.Now()
	err := s.stream.WriteAll(p, deadline)
	tellTaps(s.taps, "tx", at, p)
	return err
}

func (s *tapStream) ReadSome(p []byte, deadline time.Time) (int, error) {
	n, err := s.stream.ReadSome(p, deadline)
	if n > 0 {
		tellTaps(s.taps, "rx", time.Now(), p[:n])
	}
	return n, err
}

// SetMode passes the change on; on networks it does nothing.
func (s *tapStream) SetMode(m lineMode) error {
	if st, ok := s.stream.(modeStream); ok {
		return st.SetMode(m)
	}
	return nil
}

// Overhear opens a serial port for itself alone and only listens: not a byte
// is sent. It calls take for what comes until ctx ends or take fails, and
// fails with an *Error if the port cannot be opened or is lost. connect is
// as in Options; line is speed and format, 9600 8N1 if empty.
func Overhear(ctx context.Context, connect, line string, take func(Traffic) error) error {
	at, err := parseConnect(connect)
	if err != nil {
		return err
	}
	if !at.serial && at.kind != kindListen {
		return fmt.Errorf("%w: %s is silent until somebody asks; run the agent and capture its bus", ErrRequest, connect)
	}
	if line == "" {
		line = "9600 8N1"
	}
	mode, err := parseLine(line)
	if err != nil {
		return err
	}
	var st stream
	if at.serial {
		st, err = openPort(at.addr, mode, nil)
	} else {
		st, err = dialTCP(ctx, at.addr, 10*time.Second)
	}
	if err != nil {
		return err
	}
	defer st.Close()
	if err := take(Traffic{At: time.Now(), Kind: "open"}); err != nil {
		return err
	}
	buf := make([]byte, 1024)
	for ctx.Err() == nil {
		n, err := st.ReadSome(buf, time.Now().Add(listenSlice))
		switch {
		case n > 0:
			if err := take(Traffic{At: time.Now(), Kind: "rx", Bytes: append([]byte(nil), buf[:n]...)}); err != nil {
				return err
			}
		case errors.Is(err, ErrTimeout):
			if err := st.Alive(); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}
