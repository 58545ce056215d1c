package driver

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// script is a stream that plays given bytes in pieces and then is silent.
type script struct {
	left  []byte
	piece int
}

func (s *script) WriteAll([]byte, time.Time) error { return nil }
func (s *script) Alive() error                     { return nil }
func (s *script) Close() error                     { return nil }
func (s *script) ReadSome(p []byte, until time.Time) (int, error) {
	if len(s.left) == 0 {
		time.Sleep(time.Until(until))
		return 0, ErrTimeout
	}
	n := copy(p, s.left[:min(s.piece, len(s.left))])
	s.left = s.left[n:]
	return n, nil
}

// FuzzRTU, FuzzASCII and FuzzTCP give any bytes as an answer: no panic, and
// what is taken as the answer stands whole and checked in the bytes.
func FuzzRTU(f *testing.F)   { fuzzReply(f, kindRTU) }
func FuzzASCII(f *testing.F) { fuzzReply(f, kindASCII) }
func FuzzTCP(f *testing.F)   { fuzzReply(f, kindTCP) }

// fuzzAsks are the requests whose answers are fuzzed: reads, writes,
// identification.
func fuzzAsks(t testing.TB, k kind) []*ask {
	var asks []*ask
	add := func(a *ask, err error) {
		if err != nil {
			t.Fatal(err)
		}
		asks = append(asks, a)
	}
	add(newAsk(packager(k, 1), k, 1, profile.Holding, 0, 2))
	add(newAsk(packager(k, 1), k, 1, profile.Coils, 3, 20))
	add(newWrite(k, 1, 5, 3, 1, []byte{1}, nil))
	add(newWrite(k, 1, 6, 3, 1, []byte{1, 2}, nil))
	add(newWrite(k, 1, 16, 3, 2, []byte{1, 2, 3, 4}, nil))
	add(newWrite(k, 1, 22, 3, 1, []byte{1, 2}, []byte{0, 15}))
	add(newWrite(k, 1, 23, 3, 2, []byte{1, 2, 3, 4}, nil))
	for _, fc := range []byte{43, 17} {
		a := &ask{unit: 1, fc: fc, free: true}
		add(a, a.encode(packager(k, 1), k, map[byte][]byte{43: {14, 1, 0}}[fc], 64))
	}
	return asks
}

func fuzzReply(f *testing.F, k kind) {
	s := newSlave(k, 1)
	for i, a := range fuzzAsks(f, k) {
		f.Add(uint8(i), uint8(3), a.adu)
		data := append([]byte{byte(a.body)}, make([]byte, a.body)...)
		switch {
		case a.echo != nil:
			data = a.echo
		case a.fc == 43:
			data = []byte("\x0e\x01\x82\x00\x00\x02\x00\x03abc\x01\x01d")
		case a.fc == 17:
			data = []byte{3, 7, 0xFF, 1}
		}
		good := s.encode(1, a.fc, data, []byte{0, 1})
		f.Add(uint8(i), uint8(1), good)
		f.Add(uint8(i), uint8(7), append([]byte{0, 1, 3, 0xff}, good...))
		f.Add(uint8(i), uint8(2), s.encode(1, a.fc|0x80, []byte{2}, []byte{0, 1}))
		f.Add(uint8(i), uint8(200), append(s.encode(2, a.fc, data, []byte{0, 9}), good[:len(good)/2]...))
	}
	f.Fuzz(func(t *testing.T, which, piece uint8, in []byte) {
		if len(in) > 2000 {
			return
		}
		asks := fuzzAsks(t, k)
		a := asks[int(which)%len(asks)]
		w := &wire{kind: k, pk: packager(k, 1)}
		w.attach(&script{piece: 1}, time.Now()) // settle finds silence
		w.dirty, w.last = false, time.Now().Add(-time.Second)
		if err := w.settle(0); err != nil {
			t.Fatal(err)
		}
		w.st = &script{left: in, piece: int(piece) + 1}
		w.last = time.Now().Add(-time.Second)
		r, err := w.ask(a, time.Millisecond)
		if err != nil {
			return
		}
		data := r.data
		switch {
		case a.fc == 43:
			objects(r.data, map[uint8]string{})
		case a.free:
			data = append([]byte{byte(len(r.data))}, r.data...)
		case a.echo != nil:
			if !bytes.Equal(r.data, a.echo) {
				t.Fatalf("% x was taken for the answer to a write", r.data)
			}
		default:
			if len(r.data) != a.body {
				t.Fatalf("%d bytes of data", len(r.data))
			}
			data = append([]byte{byte(a.body)}, r.data...)
		}
		ans := newSlave(k, 1).encode(1, a.fc, data, a.adu)
		if k == kindASCII {
			in, ans = bytes.ToUpper(in), bytes.ToUpper(ans)
		}
		if !bytes.Contains(in, ans) {
			t.Fatalf("% x was taken out of % x", r.data, in)
		}
	})
}

// TestValidate: each mistake is reported at its place.
func TestValidate(t *testing.T) {
	t.Parallel()
	o := Options{Connect: "rtu://x", Line: "9 8N1", Timeout: time.Millisecond, Gap: 2 * time.Second, AfterConnect: time.Hour, Turnaround: time.Minute,
		Devices: []Device{{Name: "a", Every: time.Millisecond, Timeout: time.Hour}, {Name: "b", Profile: "x", Points: make([]profile.Point, 1)}}}
	got := map[string]bool{}
	o.Validate(func(path, _, _ string) { got[path] = true })
	for _, path := range []string{"connect", "line", "timeout", "gap", "after_connect", "turnaround", "devices.a", "devices.a.every", "devices.a.timeout", "devices.b.points"} {
		if !got[path] {
			t.Errorf("no problem at %s", path)
		}
	}
	o = Options{Connect: "rtu:///dev/x", Devices: []Device{{Name: "a", Unit: 248, Points: make([]profile.Point, 1)}, {Name: "b", Points: make([]profile.Point, 1)}}}
	clear(got)
	o.Validate(func(path, _, _ string) { got[path] = true })
	if !got["devices.a.unit"] || !got["devices.b.unit"] || len(got) != 2 {
		t.Errorf("units: %v", got)
	}
	if _, err := Open(Options{Name: "n", Connect: "tcp://h:1"}, Env{}); err == nil {
		t.Error("a line without devices was opened")
	}
}

// TestCloseEndsRun: Run waits an hour for its next poll and yet ends at once;
// the line cannot be used again.
func TestCloseEndsRun(t *testing.T) {
	t.Parallel()
	s := newSlave(kindTCP, 1)
	l := open(t, Options{Name: "b", Connect: "tcp://" + s.onTCP(t),
		Devices: []Device{{Name: "d", Unit: 1, Every: time.Hour, Map: custom(t, 2)}}})
	first := make(chan bool, 1)
	done := make(chan error)
	go func() { done <- l.Run(context.Background(), func(*telemetry.Group) { first <- true }) }()
	<-first
	if err := l.Run(context.Background(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a second Run: %v", err)
	}
	began := time.Now()
	l.Close()
	if err := <-done; err != nil || time.Since(began) > time.Second {
		t.Errorf("Run ended with %v after %v", err, time.Since(began))
	}
	if _, err := l.Exchange(context.Background(), 1, profile.Holding, 0, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Exchange after Close: %v", err)
	}
}

// TestExchangeErrors: requests that cannot be asked, and a ctx that ends.
func TestExchangeErrors(t *testing.T) {
	t.Parallel()
	s := newSlave(kindRTU, 1)
	s.plan = func(int, byte, uint16) fault { return fault{silent: true} }
	l := bus(t, s, "rtu", 50*time.Millisecond)
	for _, c := range []struct {
		unit        uint8
		tab         profile.Table
		addr, count uint16
	}{{0, 3, 0, 1}, {248, 3, 0, 1}, {1, 5, 0, 1}, {1, 0, 0, 1}, {1, 3, 0, 0}, {1, 3, 0, 126}, {1, 1, 0, 2001}, {1, 3, 65535, 2}} {
		if _, err := l.Exchange(context.Background(), c.unit, c.tab, c.addr, c.count); !errors.Is(err, ErrRequest) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	var e *Error
	if _, err := l.Exchange(context.Background(), 1, profile.Holding, 0, 1); !errors.As(err, &e) || e.Code != "bus-silent" || !strings.HasPrefix(e.Seen, "1 request, 0 bytes back;") || e.Try != "tidegate scan "+l.name {
		t.Errorf("got %v\n%s", err, e.Hint())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := l.Exchange(ctx, 1, profile.Holding, 8, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a unit that owes an answer was asked: %v", err)
	}
}
