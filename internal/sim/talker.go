package sim

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// Talker is a serial device that speaks by itself: it sends recorded frames
// one after the other, for ever. Its fields must not change while it serves.
type Talker struct {
	Frames [][]byte
	Every  time.Duration // from the start of one frame to the start of the next; 0: 1 s
	Wire   Wire          // pace of the bytes
	// Spoil, if set, may change or replace the n-th frame (from 1) before it
	// is sent: noise, missing bytes. It must not write into frame.
	Spoil func(n int64, frame []byte) []byte

	sent atomic.Int64
}

// Sent returns how many frames have been written since start, to all
// connections together.
func (t *Talker) Sent() int64 { return t.sent.Load() }

// Serve speaks on rw, for example the master end of a pty, until ctx ends or
// writing fails; what comes in is read and thrown away. Frames that nobody
// listens to are lost and not counted.
func (t *Talker) Serve(ctx context.Context, rw io.ReadWriter) error {
	if len(t.Frames) == 0 {
		return errors.New("sim: a talker needs at least one frame")
	}
	return converse(ctx, rw, t.speak)
}

// ServeTCP speaks on every connection that ln accepts until ctx ends; it
// closes ln and all connections then. Each connection hears all frames from
// the first.
func (t *Talker) ServeTCP(ctx context.Context, ln net.Listener) error {
	return acceptLoop(ctx, ln, func(ctx context.Context, c net.Conn) {
		// An error ends this connection only.
		_ = t.Serve(ctx, c)
	})
}

func (t *Talker) speak(ctx context.Context, w io.Writer, in <-chan chunk) error {
	every := t.Every
	if every <= 0 {
		every = time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := int64(1); ; n++ {
		frame := t.Frames[int((n-1)%int64(len(t.Frames)))]
		if t.Spoil != nil {
			frame = t.Spoil(n, frame)
		}
		heard := &mouth{w: w}
		if err := paced(ctx, heard, frame, t.Wire.char()); err != nil {
			return err
		}
		if !heard.lost {
			t.sent.Add(1)
		}
		for waiting := true; waiting; {
			select {
			case <-tick.C:
				waiting = false
			case _, ok := <-in:
				if !ok {
					return nil
				}
			case <-ctx.Done():
				return nil
			}
		}
	}
}
