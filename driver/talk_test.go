package driver

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// child makes a profile of a profile of the library, with what more says.
func child(t testing.TB, of, more string) *profile.Profile {
	t.Helper()
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	p, problems := profile.Parse(lib, "test.yaml", []byte("name: test\nstatus: community\nextends: "+of+"\n"+more))
	for _, x := range problems {
		if !x.Warning {
			t.Fatalf("%d: %s: %s", x.Line, x.Path, x.Msg)
		}
	}
	return p
}

// played is a device on the master's side of a pty: it hears requests of
// fixed forms and answers.
type played struct {
	mu    sync.Mutex
	heard []string // what came, by the names of answer
}

// play cuts what comes into the messages of known and calls answer with the
// name of each; what it returns is sent.
func (d *played) play(rw io.ReadWriter, known map[string]string, answer func(name string) []byte) {
	var in []byte
	buf := make([]byte, 256)
	for {
		n, err := rw.Read(buf)
		if err != nil {
			return
		}
		in = append(in, buf[:n]...)
		for again := true; again; {
			again = false
			for name, msg := range known {
				b := raw(msg)
				if bytes.HasPrefix(in, b) {
					in, again = in[len(b):], true
					d.mu.Lock()
					d.heard = append(d.heard, name)
					out := answer(name)
					d.mu.Unlock()
					rw.Write(out)
				}
			}
		}
	}
}

func (d *played) told() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.heard, " ")
}

func raw(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// values returns the good values of a point, in the order they came.
func (s *sink) values(point uint32) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		for _, r := range g.Readings {
			if r.Point == point && r.Quality == telemetry.Good {
				out = append(out, r.Value.String())
			}
		}
	}
	return out
}

// TestToldToTalk: an oximeter sends only after it was told to, stops without
// a sign of life, and is told to stop before the line is closed.
func TestToldToTalk(t *testing.T) {
	t.Parallel()
	const start, keep, stop = "7D 81 A1 80 80 80 80 80 80", "7D 81 AF 80 80 80 80 80 80", "7D 81 A2 80 80 80 80 80 80"
	p := child(t, "contec-cms50d-plus", fmt.Sprintf(`
frames: {kind: fixed, sync: "01", size: 9, set: [{at: 1, bit: 7}, {at: 8, bit: 7}], thin: 60ms}
talk: {init: [{hex: %s}], keep: [{hex: %s}], keep_every: 50ms, stop: [{hex: %s}]}
`, start, keep, stop))
	master, path := openPTY(t)
	var dev played
	var until9 time.Time // it talks until then
	go dev.play(master, map[string]string{"start": start, "keep": keep, "stop": stop}, func(name string) []byte {
		if name == "stop" {
			until9 = time.Time{}
		} else if name == "start" || !until9.IsZero() {
			until9 = time.Now().Add(200 * time.Millisecond)
		}
		return nil
	})
	done := make(chan int)
	frames := 0
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			dev.mu.Lock()
			if time.Now().Before(until9) {
				frames++
				master.Write(raw("01 80 86 aa 85 c8 e1 80 80"))
			}
			dev.mu.Unlock()
		}
	}()
	defer close(done)
	l := open(t, Options{Name: "ox", Connect: "serial://" + path, Devices: []Device{{Name: "ox", Map: p, Every: time.Second}}})
	var got sink
	end := run(t, l, got.emit)
	until(t, 10*time.Second, "fifteen readings", func() bool { return len(got.values(0)) >= 15 })
	end()
	until(t, 2*time.Second, "told to stop", func() bool { return strings.HasSuffix(dev.told(), "stop") })
	told := dev.told()
	if !strings.HasPrefix(told, "start keep") || strings.Count(told, "start") != 1 {
		t.Errorf("the device heard %s", told)
	}
	if v := got.values(0); v[0] != "97" {
		t.Errorf("spo2 %v", v)
	}
	dev.mu.Lock()
	if n := len(got.values(0)); n > frames/2 {
		t.Errorf("%d of %d frames were told: they are not thinned", n, frames)
	}
	dev.mu.Unlock()
}

// TestStartedAnew: a particle sensor is told to measure; when it has lost its
// power it answers without values, and is told again.
func TestStartedAnew(t *testing.T) {
	t.Parallel()
	p := child(t, "sensirion-sps30", "")
	master, path := openPTY(t)
	var dev played
	measuring := false
	go dev.play(master, map[string]string{"start": "7E 00 00 02 01 03 F9 7E", "read": "7E 00 03 00 FC 7E", "stop": "7E 00 01 00 FE 7E"}, func(name string) []byte {
		switch {
		case name == "start":
			measuring = true
			return raw("7E 00 00 00 00 FF 7E")
		case name == "stop":
			measuring = false
			return nil
		case measuring:
			return raw("7e 00 03 00 28 40 a7 83 20 41 17 77 bb 41 4a 5f 83 41 54 8d dd 41 d2 83 3e 42 7d 33 fc 85 42 26 17 22 42 29 a4 d9 42 2a 29 bc 3f 55 b7 e7 9e 7e")
		}
		return raw("7E 00 03 43 00 B9 7E")
	})
	l := open(t, Options{Name: "pm", Connect: "serial://" + path, Timeout: 2 * time.Second, Devices: []Device{{Name: "pm", Map: p, Every: 20 * time.Millisecond}}})
	var got sink
	end := run(t, l, got.emit)
	until(t, 5*time.Second, "five values", func() bool { return len(got.values(1)) >= 5 })
	dev.mu.Lock()
	measuring = false // the power was away for a moment
	dev.mu.Unlock()
	n := len(got.values(1))
	until(t, 5*time.Second, "values again", func() bool { return len(got.values(1)) >= n+5 })
	end()
	until(t, 2*time.Second, "told to stop", func() bool { return strings.HasSuffix(dev.told(), "stop") })
	if told := dev.told(); strings.Count(told, "start") != 2 || got.values(1)[0] != "9.47" {
		t.Errorf("the device heard %s; pm2_5 %v", told, got.values(1)[0])
	}
	if c := got.count(0, telemetry.Comm, telemetry.CauseMismatch); c != 1 {
		t.Errorf("%d times without values", c)
	}
}

// TestWakeAndSleep: a sensor is woken, read after a pause and put to sleep;
// another one on the line is read meanwhile.
func TestWakeAndSleep(t *testing.T) {
	t.Parallel()
	const wake, query, sleep = "AA B4 06 01 01 00 00 00 00 00 00 00 00 00 00 FF FF 06 AB",
		"AA B4 04 00 00 00 00 00 00 00 00 00 00 00 00 FF FF 02 AB", "AA B4 06 01 00 00 00 00 00 00 00 00 00 00 00 FF FF 05 AB"
	p := child(t, "nova-sds011-sleep", fmt.Sprintf(`
talk: {ask: [{hex: %s, frames: 0, wait: 500ms}, {hex: %s}, {hex: %s, frames: 0}]}
`, wake, query, sleep))
	co2 := child(t, "winsen-mhz19b", "")
	master, path := openPTY(t)
	var dev played
	go dev.play(master, map[string]string{"wake": wake, "query": query, "sleep": sleep, "co2": "FF 01 86 00 00 00 00 00 79"}, func(name string) []byte {
		return map[string][]byte{"query": raw("aa c0 09 00 0c 00 58 d9 46 ab"), "co2": raw("ff 86 02 7c 42 00 00 00 ba")}[name]
	})
	l := open(t, Options{Name: "air", Connect: "serial://" + path, Timeout: time.Second, Devices: []Device{
		{Name: "pm", Map: p, Every: 5 * time.Second}, {Name: "co2", Map: co2, Every: 50 * time.Millisecond, Base: 2}}})
	var got sink
	end := run(t, l, got.emit)
	until(t, 10*time.Second, "a value of both", func() bool { return len(got.values(1)) >= 1 })
	until(t, 2*time.Second, "asleep", func() bool { return strings.Contains(dev.told(), "sleep") })
	end()
	told := dev.told()
	between := told[strings.Index(told, "wake"):strings.Index(told, "query")]
	if n := strings.Count(between, "co2"); n < 3 || got.values(2)[0] != "636" || got.values(1)[0] != "1.2" {
		t.Errorf("while one warmed up, the other was asked %d times: %s", n, told)
	}
	if strings.Index(told, "sleep") < strings.Index(told, "query") {
		t.Errorf("the device heard %s", told)
	}
}

// TestMemory reads the memory of a blood pressure meter record by record, as
// it counts them; what was told is not told again.
func TestMemory(t *testing.T) {
	t.Parallel()
	p := child(t, "beurer-bm58", "")
	master, path := openPTY(t)
	var dev played
	records := 3
	known := map[string]string{"hello": "AA", "name": "A4", "count": "A2"}
	for n := 1; n <= 4; n++ {
		known[fmt.Sprint(n)] = fmt.Sprintf("A3 %02x", n)
	}
	go dev.play(master, known, func(name string) []byte {
		switch name {
		case "hello":
			return raw("55")
		case "name":
			return []byte("Andon Blood Pressure Meter KD001")
		case "count":
			return []byte{byte(records)}
		}
		return raw("ac 60 37 48 03 0c 0b 0" + name + " 0d")
	})
	l := open(t, Options{Name: "bp", Connect: "serial://" + path, Timeout: 2 * time.Second, Devices: []Device{{Name: "bp", Map: p, Every: 150 * time.Millisecond}}})
	var got sink
	run(t, l, got.emit)
	until(t, 5*time.Second, "two rounds", func() bool { return strings.Count(dev.told(), "count") >= 3 })
	if v := got.values(6); fmt.Sprint(v) != "[1 2 3]" {
		t.Errorf("minutes of the records: %v", v)
	}
	dev.mu.Lock()
	records = 4
	dev.mu.Unlock()
	until(t, 5*time.Second, "the new record", func() bool { return fmt.Sprint(got.values(6)) == "[1 2 3 4]" })
}

// TestForeignFrames: two sensors with addresses share a line, and one answers
// to the question for the other. No value is taken from the wrong one, and
// all packets of an answer are read.
func TestForeignFrames(t *testing.T) {
	t.Parallel()
	p := child(t, "rtms-g4", "")
	ask := p.Talk.Ask[0]
	ask.More = 30 * time.Millisecond
	p.Talk.Ask[0] = ask
	frame := func(unit, kind, v byte) []byte {
		b := []byte{0xff, 0xaa, kind, 4, 0, unit, 0, v, 0, unit + v}
		return b
	}
	master, path := openPTY(t)
	var dev played
	message := func(unit int) string {
		b, err := p.Message(&ask, unit, 1)
		if err != nil {
			t.Fatal(err)
		}
		return hex.EncodeToString(b)
	}
	if m := message(0x0102); m != "ffaa5303010200"+"0003" {
		t.Fatalf("the question is %s", m)
	}
	later := func(b []byte) { time.AfterFunc(10*time.Millisecond, func() { master.Write(b) }) }
	go dev.play(master, map[string]string{"one": message(1), "two": message(2)}, func(name string) []byte {
		if name == "two" { // a late answer of the other first
			later(frame(2, 0x12, 80))
			return append(frame(1, 0x10, 99), frame(2, 0x10, 22)...)
		}
		later(frame(1, 0x12, 70))
		return frame(1, 0x10, 11)
	})
	l := open(t, Options{Name: "road", Connect: "serial://" + path, Timeout: time.Second, Devices: []Device{
		{Name: "one", Map: p, Unit: 1, Every: 100 * time.Millisecond}, {Name: "two", Map: p, Unit: 2, Every: 100 * time.Millisecond, Base: 100}}})
	var got sink
	run(t, l, got.emit)
	until(t, 10*time.Second, "five rounds", func() bool { return len(got.values(101)) >= 5 && len(got.values(1)) >= 5 })
	for _, v := range got.values(0) {
		if v != "11" {
			t.Errorf("unit 1 counts %s", v)
		}
	}
	for _, v := range got.values(100) {
		if v != "22" {
			t.Errorf("unit 2 counts %s", v)
		}
	}
	if l.Stats().Stray == 0 {
		t.Error("the foreign frames were not counted")
	}
}
