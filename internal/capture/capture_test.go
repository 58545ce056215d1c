package capture

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidegate/driver/profile"
)

var update = flag.Bool("update", false, "write the golden files anew")

var base = time.Date(2026, 3, 14, 9, 0, 0, 0, time.UTC)

// make builds events of "ms dir hex" rows.
func events(rows ...string) (out []Event) {
	for _, r := range rows {
		f := strings.SplitN(r, " ", 3)
		var ms float64
		fmt.Sscan(f[0], &ms)
		e := Event{T: Time{base.Add(time.Duration(ms * 1e6))}, Bus: "b", Dir: f[1]}
		if len(f) == 3 {
			e.Hex = f[2]
		}
		out = append(out, e)
	}
	return out
}

func library(t testing.TB) func(string) *profile.Profile {
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	return func(name string) *profile.Profile {
		p, err := lib.Get(name)
		if err != nil {
			return nil
		}
		return p
	}
}

// TestFile writes and reads a file; what is damaged is told with its line,
// and a last line that was cut off costs nothing else.
func TestFile(t *testing.T) {
	h := Header{Schema: Schema, Bus: "b", Connect: "rtu:///dev/ttyUSB0", Line: "9600 8N1", Mode: "tap", Started: Time{base}, Version: "v",
		Devices: []Device{{"m", 1, "xy-md02"}}}
	all := events("0 open", "0.001 tx 01 04 00 01 00 02 20 0b", "21.8 rx 01 04")
	file := Encode(h)
	for i := range all {
		file = append(file, Encode(all[i])...)
	}
	if !strings.Contains(string(file), `"t":"2026-03-14T09:00:00.021800Z"`) {
		t.Errorf("%s", file)
	}
	got, back, err := Read(bytes.NewReader(file))
	if err != nil || got.Cut || got.Devices[0] != h.Devices[0] || len(back) != 3 || !back[2].T.Equal(all[2].T.Time) || back[1].Hex != all[1].Hex {
		t.Errorf("%+v %+v %v", got, back, err)
	}
	for cut := 1; cut < 20; cut++ {
		h, back, err := Read(bytes.NewReader(file[:len(file)-cut]))
		if err != nil || len(back) < 2 || h.Cut != (len(back) == 2) {
			t.Errorf("%d bytes cut off: %d events, cut %v, %v", cut, len(back), h.Cut, err)
		}
	}
	for name, bad := range map[string]string{"line 1: ": "{}\n", "empty": "", "line 2: ": string(Encode(h)) + "{\"dir\":\"up\"}\n" + string(Encode(all[0])),
		"line 3: ": string(Encode(h)) + string(Encode(all[0])) + "{\"dir\":\"rx\",\"hex\":\"0\"}\n" + string(Encode(all[0]))} {
		if _, _, err := Read(strings.NewReader(bad)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestShow compares what is said of each kind of line with testdata.
func TestShow(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	defer func() { time.Local = local }()
	find := library(t)
	for name, c := range map[string]struct {
		h      Header
		events []Event
	}{
		"tapped rtu": {Header{Connect: "rtu:///dev/x", Devices: []Device{{"room", 1, "xy-md02"}}}, events(
			"0 open", "0.1 tx 01 04 00 01 00 02 20 0b", "21.9 rx 01 04 04 01 22", "22.4 rx 01 89 9a 44",
			"40 tx 01 04 00 02 00 02 d0 0b", "60 rx 01 84 02 c2 c1", "80 tx 05 04 00 00 00 01 30 4e", "580 tx 01 04 00 01 00 02 20 0b",
			"600 rx 01 04 04 01 22 01 89 9a 00", "700 tx 01 06 00 07 00 2a b9 d4", "720 rx 01 06 00 07 00 2a b9 d4", "900 gone")},
		"heard rtu": {Header{Connect: "rtu:///dev/x", Devices: []Device{{"room", 1, "xy-md02"}}}, events(
			"0 rx ff 01 04 00 01 00 02 20", "1 rx 0b", "20 rx 01 04 04 01 22 01 89 9a 44", "200 rx 09 04 00 01 00 02 21 43", "400 rx 55 55")},
		"tcp": {Header{Connect: "tcp://h:502", Devices: []Device{{"room", 1, "xy-md02"}}}, events(
			"0 tx 00 01 00 00 00 06 01 04 00 01 00 02", "21 rx 00 01 00 00 00 07 01 04 04 01 22 01 89")},
		"ascii": {Header{Connect: "ascii:///dev/x", Devices: []Device{{"room", 1, "xy-md02"}}}, events(
			"0 tx "+Hex([]byte(":010400010002F8\r\n")), "30 rx "+Hex([]byte(":01040401220189"+"4A\r\n")))},
		"serial": {Header{Connect: "serial:///dev/x", Devices: []Device{{"co2", 0, "winsen-mhz19b"}, {"pm", 0, "nova-sds011"}}}, events(
			"0 tx ff 01 86 00 00 00 00 00 79", "12 rx ff 86 02 7c 42", "14 rx 00 00 00 ba", "600 rx aa c0 06 00 06 00 58 d9 3d ab",
			"700 rx 41 42 0d 0a", "900 rx aa c0 06 00 07 00 58 d9 3d ab")},
	} {
		var b strings.Builder
		if err := Show(&b, &c.h, c.events, find); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".txt")
		if *update {
			os.MkdirAll("testdata", 0o755)
			os.WriteFile(file, []byte(b.String()), 0o644)
		}
		want, err := os.ReadFile(file)
		if err != nil || b.String() != string(want) {
			t.Errorf("%s (-update writes %s): %v\n%s", name, file, err, b.String())
		}
		for line := range strings.Lines(b.String()) {
			if len([]rune(line)) > 120 {
				t.Errorf("%s: a line of %d characters", name, len(line))
			}
		}
	}
}

// TestReplay: what is asked as in the recording is answered as in it, in
// turn; other requests are met with silence and counted.
func TestReplay(t *testing.T) {
	h := Header{Connect: "rtu:///dev/x"}
	ask, other := "01 04 00 01 00 02 20 0b", "01 04 00 02 00 01 90 0a"
	first, second := "01 04 04 01 22 01 89 9a 44", "01 04 04 01 23 01 88 0a 44"
	p := NewReplay(&h, events("0 tx "+ask, "5 rx "+first, "100 tx "+ask, "105 rx "+second, "200 tx 07 03 00 00 00 01 84 6c", "900 open"))
	here, there := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, there) }()
	say := func(hexes string) string {
		here.Write(unhex(hexes))
		here.SetReadDeadline(time.Now().Add(time.Second))
		b := make([]byte, 64)
		n, _ := io.ReadAtLeast(here, b, 9)
		return Hex(b[:n])
	}
	for i, want := range []string{first, second, first} {
		if got := say(ask); got != want {
			t.Errorf("answer %d: %s", i, got)
		}
	}
	if got := say("07 03 00 00 00 01 84 6c"); got != "" {
		t.Errorf("the silent unit says %s", got)
	}
	if got := say(other); got != "" || p.Unknown.Load() != 1 {
		t.Errorf("an unknown request: %s, %d counted", got, p.Unknown.Load())
	}
	if got := say("ff ff " + ask); got != second {
		t.Errorf("behind noise: %s", got)
	}
	cancel()
	here.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func unhex(s string) []byte {
	e := Event{Hex: s}
	return e.Bytes()
}

// TestReplayTCP: the number of the request comes back in the answer.
func TestReplayTCP(t *testing.T) {
	h := Header{Connect: "tcp://h:502"}
	p := NewReplay(&h, events("0 tx 00 01 00 00 00 06 01 04 00 01 00 02", "2 rx 00 01 00 00 00 07 01 04 04 01 22 01 89"))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.ServeTCP(ctx, ln) }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write(unhex("ab cd 00 00 00 06 01 04 00 01 00 02"))
	b := make([]byte, 13)
	if _, err := io.ReadFull(c, b); err != nil || Hex(b) != "ab cd 00 00 00 07 01 04 04 01 22 01 89" {
		t.Errorf("%s, %v", Hex(b), err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestReplayTalk: what a device said by itself is said again and again.
func TestReplayTalk(t *testing.T) {
	h := Header{Connect: "serial:///dev/x"}
	p := NewReplay(&h, events("0 rx aa c0 06 00 06 00", "2 rx 58 d9 3d ab", "60 rx aa c0 09 00 09 00 58 d9 43 ab"))
	p.talk[0].before = 10 * time.Millisecond
	here, there := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	var heard atomic.Int64
	go func() {
		b := make([]byte, 64)
		for {
			n, err := here.Read(b)
			if err != nil {
				return
			}
			heard.Add(int64(n))
		}
	}()
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, there) }()
	for end := time.Now().Add(5 * time.Second); heard.Load() < 60 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	here.Close()
	there.Close()
	<-done
	if heard.Load() < 60 {
		t.Errorf("%d bytes", heard.Load())
	}
}

// TestAgainst decodes recordings with a profile.
func TestAgainst(t *testing.T) {
	find := library(t)
	h := Header{Connect: "rtu:///dev/x"}
	got := Against(&h, events("0 tx 01 04 00 01 00 02 20 0b", "20 rx 01 04 04 01 22 01 89 9a 44", "40 tx 01 04 00 02 00 02 d0 0b", "60 rx 01 84 02 c2 c1",
		"80 tx 02 04 00 01 00 02 20 38", "99 rx 02 04 04 01 22 01 89 a9 44", "200 tx 01 04 00 01 00 02 20 0b", "220 rx 01 04 04 01 22 01 89 9a 00"), find("xy-md02"), 1)
	if len(got) != 3 || got[0].Readings != "temperature 29.0 Cel, humidity 39.3 %RH" || !errors.Is(got[1].Err, profile.ErrRefused) || got[2].Err == nil {
		t.Errorf("%+v", got)
	}
	h.Connect = "serial:///dev/x"
	got = Against(&h, events("0 rx aa c0 06 00 06 00 58 d9 3d ab", "500 rx aa c0 06 00 07 00 58 d9 3d ab", "900 rx aa c0 09 00", "901 rx 09 00 58 d9 43 ab"), find("nova-sds011"), 0)
	if len(got) != 3 || got[0].Readings != "pm2_5 0.6 ug/m3, pm10 0.6 ug/m3" || got[1].Err == nil || got[2].Readings != "pm2_5 0.9 ug/m3, pm10 0.9 ug/m3" {
		t.Errorf("%+v", got)
	}
}

// FuzzRead: any file is read, shown and replayed without a panic.
func FuzzRead(f *testing.F) {
	for _, connect := range []string{"rtu:///dev/x", "tcp://h:1", "ascii:///dev/x", "serial:///dev/x"} {
		h := Header{Schema: Schema, Bus: "b", Connect: connect, Devices: []Device{{"m", 1, "xy-md02"}, {"n", 0, "nova-sds011"}}}
		file := Encode(h)
		for _, e := range events("0 open", "1 tx 01 04 00 01 00 02 20 0b", "9 rx 01 04 04 01 22 01 89 9a 44", "99 rx aa c0 06 00 06 00 58 d9 3d ab") {
			file = append(file, Encode(e)...)
		}
		f.Add(file)
	}
	find := library(f)
	f.Fuzz(func(t *testing.T, file []byte) {
		h, events, err := Read(bytes.NewReader(file))
		if err != nil {
			return
		}
		Show(io.Discard, &h, events, find)
		p := NewReplay(&h, events)
		p.cut(file)
		Against(&h, events, find("xy-md02"), 0)
		Against(&h, events, find("nova-sds011"), 0)
	})
}
