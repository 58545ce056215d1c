package capture

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/driver/profile"
)

// Replay answers as the recorded devices did: to each request that stands in
// the recording with its answers in turn, after the time the device took;
// where it was silent, with silence. What devices said by themselves is said
// again, for ever, at the same pace.
type Replay struct {
	framing string
	answers map[string][]reply
	talk    []said
	known   [][]byte // requests, the longest first found

	mu       sync.Mutex
	next     map[string]int
	Answered atomic.Uint64 // requests that were answered, if only with silence
	Unknown  atomic.Uint64 // requests that are not in the recording
}

type reply struct {
	bytes []byte
	after time.Duration
}

type said struct {
	bytes  []byte
	before time.Duration // pause before it
}

// NewReplay prepares a recording.
func NewReplay(h *Header, events []Event) *Replay {
	p := &Replay{framing: h.Framing(), answers: map[string][]reply{}, next: map[string]int{}}
	var last time.Time
	for _, x := range Exchanges(h, events) {
		switch {
		case x.Mark != "":
		case x.Request != nil:
			key := p.key(x.Request)
			if p.answers[key] == nil {
				p.known = append(p.known, x.Request)
			}
			p.answers[key] = append(p.answers[key], reply{x.Answer, x.Answered.Sub(x.At)})
		default:
			pause := time.Second
			if !last.IsZero() {
				pause = x.At.Sub(last)
			}
			p.talk = append(p.talk, said{x.Answer, min(pause, 10*time.Second)})
			last = x.At
		}
	}
	return p
}

// Requests returns how many different requests the recording holds, and how
// many things devices said by themselves.
func (p *Replay) Requests() (asked, spoken int) { return len(p.answers), len(p.talk) }

// key is what makes two requests the same: on TCP all but the number.
func (p *Replay) key(b []byte) string {
	if p.framing == "tcp" && len(b) > 6 {
		b = b[6:]
	}
	return string(b)
}

// Serve plays on rw, for example the master end of a pty, until ctx ends or
// reading fails. The caller closes rw to end it.
func (p *Replay) Serve(ctx context.Context, rw io.ReadWriter) error {
	ctx, cancel := context.WithCancel(ctx)
	var talker sync.WaitGroup
	defer talker.Wait()
	defer cancel()
	var out sync.Mutex
	say := func(b []byte) {
		out.Lock()
		defer out.Unlock()
		rw.Write(b)
	}
	if len(p.talk) > 0 {
		talker.Go(func() {
			for i := 0; ctx.Err() == nil; i = (i + 1) % len(p.talk) {
				wait(ctx, max(p.talk[i].before, time.Millisecond))
				if ctx.Err() == nil {
					say(p.talk[i].bytes)
				}
			}
		})
	}
	var in []byte
	buf := make([]byte, 1024)
	for {
		n, err := rw.Read(buf)
		if err != nil {
			if ctx.Err() != nil || err == io.EOF {
				return nil
			}
			return err
		}
		for in = append(in, buf[:n]...); ; {
			request, skip := p.cut(in)
			if in = in[skip:]; request == nil {
				break
			}
			in = in[len(request):]
			if r, ok := p.answer(request); ok && len(r.bytes) > 0 {
				wait(ctx, r.after)
				say(r.bytes)
			}
		}
	}
}

// ServeTCP plays on every connection that ln accepts until ctx ends; it
// closes ln and all connections then.
func (p *Replay) ServeTCP(ctx context.Context, ln net.Listener) error {
	var all sync.WaitGroup
	defer all.Wait()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		all.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			p.Serve(ctx, c) // its error ends this connection only
		})
	}
}

// cut returns the request at the start of what came, nil if it is not whole
// yet, and how many bytes before it are none.
func (p *Replay) cut(in []byte) (request []byte, skip int) {
	for skip < len(in) {
		b := in[skip:]
		if p.framing == "tcp" {
			if len(b) < 7 || len(b) < 6+wordAt(b, 4) {
				return nil, skip
			}
			return b[:6+wordAt(b, 4)], skip
		}
		part := false
		for _, k := range p.known {
			if bytes.HasPrefix(b, k) {
				return k, skip
			}
			part = part || bytes.HasPrefix(k, b)
		}
		if part {
			return nil, skip
		}
		if p.framing == "rtu" && len(b) >= 8 && sound(b[:8]) {
			return b[:8], skip
		}
		skip++
	}
	return nil, skip
}

// answer returns the next recorded answer to a request.
func (p *Replay) answer(request []byte) (reply, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := p.key(request)
	all := p.answers[key]
	if len(all) == 0 {
		p.Unknown.Add(1)
		return reply{}, false
	}
	r := all[p.next[key]%len(all)]
	p.next[key]++
	p.Answered.Add(1)
	if p.framing == "tcp" && len(r.bytes) > 2 {
		r.bytes = bytes.Clone(r.bytes)
		copy(r.bytes, request[:2])
	}
	return r, true
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Try is one exchange of a recording as a profile reads it.
type Try struct {
	At       time.Time
	Readings string // empty if there are none
	Err      error  // why the answer is none
}

// Against decodes a recording with a profile: the exchanges of its unit, or
// what a serial device said. unit 0 takes all units.
func Against(h *Header, events []Event, p *profile.Profile, unit int) (out []Try) {
	f := h.Framing()
	var scan *profile.Scanner
	if p.Frames != nil {
		scan = p.NewScanner()
	}
	for _, x := range Exchanges(h, events) {
		if len(x.Answer) == 0 {
			continue
		}
		t := Try{At: x.Answered}
		if scan != nil {
			if x.Request != nil {
				scan.Begin()
			}
			bad := scan.Bad()
			scan.Feed(x.Answer, func(raw []byte) {
				if got := p.DecodeFrame(raw, 0, nil); len(got) > 0 {
					out = append(out, Try{At: x.Answered, Readings: Readings(p, got, len(got))})
				}
			})
			if scan.Bad() > bad {
				t.Err = profile.ErrFrame
				out = append(out, t)
			}
			continue
		}
		if x.Request == nil {
			continue
		}
		if ask, err := profile.Unwrap(f, x.Request); err != nil || unit != 0 && int(ask[0]) != unit || len(ask) != 6 || ask[1] > 4 {
			continue
		}
		got, err := p.DecodeExchange(f, x.Request, x.Answer)
		if t.Err = err; len(got) > 0 {
			t.Readings = Readings(p, got, len(got))
		}
		if err != nil || len(got) > 0 {
			out = append(out, t)
		}
	}
	return out
}
