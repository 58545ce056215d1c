package driver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"tidegate/internal/telemetry"
)

// TestTap: who listens hears every byte in order and in both directions, on
// a line that is polled at its usual pace, over a line that is lost and
// opened again; when nobody listens any more nothing is left of it.
func TestTap(t *testing.T) {
	t.Parallel()
	p := child(t, "winsen-mhz19b", "")
	master, path := openPTY(t)
	var dev played
	answers := 0
	go dev.play(master, map[string]string{"co2": "FF 01 86 00 00 00 00 00 79"}, func(string) []byte {
		answers++
		return raw("ff 86 02 7c 42 00 00 00 ba")
	})
	l := open(t, Options{Name: "air", Connect: "serial://" + path, Timeout: 2 * time.Second, Devices: []Device{{Name: "co2", Map: p, Every: 20 * time.Millisecond}}})
	var got sink
	run(t, l, got.emit)
	until(t, 5*time.Second, "a first value", func() bool { return len(got.values(0)) > 0 })
	var mu sync.Mutex
	var tx, rx int
	var last time.Time
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	listen := func(take func(Traffic) error) {
		go func() { done <- l.Tap(ctx, take) }()
	}
	listen(func(x Traffic) error {
		mu.Lock()
		defer mu.Unlock()
		if x.At.Before(last) || x.Lost > 0 {
			t.Errorf("%+v after %v", x, last)
		}
		last = x.At
		switch x.Kind {
		case "tx":
			tx += len(x.Bytes)
		case "rx":
			rx += len(x.Bytes)
		}
		return nil
	})
	stop := errors.New("enough")
	listen(func(x Traffic) error { return stop })
	if err := <-done; !errors.Is(err, stop) {
		t.Error(err)
	}
	until(t, 5*time.Second, "twenty polls heard", func() bool { mu.Lock(); defer mu.Unlock(); return rx >= 9*20 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	mu.Lock()
	if tx != rx && tx != rx+9 {
		t.Errorf("%d bytes out, %d in", tx, rx)
	}
	mu.Unlock()
	l.own <- struct{}{}
	if _, tapped := l.wire.st.(*tapStream); tapped || len(l.taps) != 0 {
		t.Error("the tap is still there")
	}
	<-l.own
	n := len(got.values(0))
	until(t, 5*time.Second, "polling goes on", func() bool { return len(got.values(0)) > n+3 })
	if c := got.count(0, telemetry.Comm, telemetry.CauseTimeout); c != 0 {
		t.Errorf("%d polls were lost", c)
	}
}

// TestSlowTap: a receiver that does not keep up loses events and learns how
// many; the line does not wait for it.
func TestSlowTap(t *testing.T) {
	line := &tap{to: make(chan Traffic, 4)}
	for i := range 10 {
		tellTaps([]*tap{line}, "rx", time.Now(), []byte{byte(i)})
	}
	for range 4 {
		if x := <-line.to; x.Lost != 0 {
			t.Errorf("%+v", x)
		}
	}
	tellTaps([]*tap{line}, "rx", time.Now(), []byte{10})
	tellTaps([]*tap{line}, "rx", time.Now(), []byte{11})
	if x := <-line.to; x.Lost != 6 || x.Bytes[0] != 10 {
		t.Errorf("%+v", x)
	}
	if x := <-line.to; x.Lost != 0 {
		t.Errorf("%+v", x)
	}
}

// TestOverhear only listens: not a byte goes out.
func TestOverhear(t *testing.T) {
	t.Parallel()
	master, path := openPTY(t)
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- Overhear(ctx, "serial://"+path, "9600 8N1", func(x Traffic) error {
			heard <- fmt.Sprintf("%s %x", x.Kind, x.Bytes)
			return nil
		})
	}()
	if x := <-heard; x != "open " {
		t.Fatal(x)
	}
	master.Write([]byte{0xaa, 0xc0})
	if x := <-heard; x != "rx aac0" {
		t.Error(x)
	}
	master.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _ := master.Read(make([]byte, 1)); n != 0 {
		t.Error("a byte was sent")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := Overhear(t.Context(), "tcp://127.0.0.1:1", "", nil); !errors.Is(err, ErrRequest) {
		t.Error(err)
	}
}
