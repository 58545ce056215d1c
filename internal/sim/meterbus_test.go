package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"tidegate/driver/mbus"
	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// say asks a bus and returns what is on the wires.
func say(b *MeterBus, now time.Time, msg []byte) []byte {
	f, _, err := mbus.ParseFrame(msg)
	if err != nil {
		panic(err)
	}
	out, _, _ := b.answer(f, now, func(Wire) bool { return false })
	return out
}

// telegrams reads a meter out, with all of its telegrams.
func telegrams(t *testing.T, b *MeterBus, now time.Time, unit byte) *mbus.Telegram {
	t.Helper()
	var all *mbus.Telegram
	if got := say(b, now, mbus.Short(mbus.SndNke, unit)); len(got) != 1 || got[0] != mbus.Ack {
		t.Fatalf("a reset is answered with % x", got)
	}
	for fcb := byte(mbus.FCB); ; fcb ^= mbus.FCB {
		raw := say(b, now, mbus.Short(mbus.ReqUd2|fcb, unit))
		f, n, err := mbus.ParseFrame(raw)
		if err != nil || n != len(raw) {
			t.Fatalf("% x: %v", raw, err)
		}
		one, err := mbus.Parse(f)
		if err != nil {
			t.Fatalf("% x: %v", raw, err)
		}
		if all == nil {
			all = one
		} else {
			all.Records = append(all.Records, one.Records...)
		}
		if !one.More {
			return all
		}
	}
}

// TestMeterBusTellsTheTruth: what a meter from a profile of the library sends,
// the profile reads: every point that is not for another type of device, and
// values that are held exactly.
func TestMeterBusTellsTheTruth(t *testing.T) {
	lib := library(t)
	var all []*profile.Profile
	for _, name := range lib.Names() {
		if p, err := lib.Get(name); err == nil && p.MBus() {
			all = append(all, p)
		}
	}
	many := "name: many\nstatus: community\ntransport: serial\nhandshake: mbus\npoints:\n"
	for i := range 60 {
		many += fmt.Sprintf("  v%d: {mbus: {quantity: volume, storage: %d, tariff: %d, subunit: %d}, unit: m3, kind: counter}\n", i, i*7, i%4, i%3)
	}
	p, problems := profile.Parse(lib, "many.yaml", []byte(many))
	if p == nil {
		t.Fatal(problems)
	}
	long := 0
	for _, p := range append(all, p) {
		name := p.Name
		b := &MeterBus{}
		start := time.Unix(1764000000, 0)
		m, err := b.Add(p, 7, "", 3, start)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		held := map[string]string{}
		for i := range p.Points {
			if pt := &p.Points[i]; pt.Unit != "" && pt.Unit != "var" && pt.MBus != nil && pt.MBus.Quantity != "" && i%2 == 0 {
				if err := m.Hold(pt.Name, "42.5"); err != nil {
					t.Errorf("%s: %s: %v", name, pt.Name, err)
				}
				held[pt.Name] = "42.5"
			}
		}
		first := telegrams(t, b, start, 7)
		if again := telegrams(t, b, start, 7); again.Access == first.Access {
			t.Errorf("%s: the access number stands still", name)
		}
		if all, _ := m.answers(start); len(all) > 1 {
			long++
		}
		readings := p.DecodeTelegram(first, 0, nil)
		for i := range p.Points {
			pt := &p.Points[i]
			if len(pt.Device) > 0 && !slices.Contains(pt.Device, int(first.Device)) {
				continue
			}
			k := slices.IndexFunc(readings, func(r telemetry.Reading) bool { return int(r.Point) == i })
			if k < 0 || readings[k].Quality != telemetry.Good {
				t.Errorf("%s: %s: %+v", name, pt.Name, readings[max(k, 0)])
			} else if want, ok := held[pt.Name]; ok && readings[k].Value.Float() != 42.5 {
				t.Errorf("%s: %s: %s, want %s", name, pt.Name, readings[k].Value, want)
			}
		}
		later := p.DecodeTelegram(telegrams(t, b, start.Add(time.Hour), 7), 0, nil)
		changed := 0
		for i := range readings {
			if readings[i].Value != later[i].Value {
				changed++
			}
		}
		if changed < 2 {
			t.Errorf("%s: %d values move in an hour", name, changed)
		}
	}
	if len(all) < 4 || long == 0 {
		t.Errorf("%d profiles, %d with more than one telegram", len(all), long)
	}
}

// TestMeterBusSelects: meters are called by unit and by a mask, two that are
// called at once disturb each other, and a request with the same frame count
// bit is answered with the same telegram.
func TestMeterBusSelects(t *testing.T) {
	p, err := library(t).Get("mbus-water")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	b := &MeterBus{}
	for _, c := range []struct {
		unit   int
		number string
	}{{1, "11223344"}, {2, "11225566"}, {0, "9876543277040107"}} {
		if _, err := b.Add(p, c.unit, c.number, 1, now); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"1234", "1122334A", "11223344770401070", "xxxxxxxx"} {
		if _, err := b.Add(p, 3, bad, 1, now); err == nil {
			t.Errorf("%s is a number", bad)
		}
	}
	pick := func(address string) []byte {
		mask, err := mbus.AddressBytes(address)
		if err != nil {
			t.Fatal(err)
		}
		return say(b, now, mbus.Long(mbus.SndUd, mbus.Selected, 0x52, mask...))
	}
	ask := func(unit, fcb byte) []byte { return say(b, now, mbus.Short(mbus.ReqUd2|fcb, unit)) }
	whole := func(raw []byte) string {
		f, n, err := mbus.ParseFrame(raw)
		if err != nil || n != len(raw) {
			return ""
		}
		tg, err := mbus.Parse(f)
		if err != nil {
			return ""
		}
		return tg.Address()
	}
	if got := ask(3, 0); got != nil {
		t.Errorf("nobody answers % x", got)
	}
	if got := ask(mbus.Selected, 0); got != nil {
		t.Errorf("nobody is selected, and % x", got)
	}
	if got := pick("FFFFFFFF"); len(got) != 1 || got[0] != mbus.Ack {
		t.Errorf("all acknowledge: % x", got)
	}
	if got := whole(ask(mbus.Selected, 0)); got != "" {
		t.Errorf("three at once are %s", got)
	}
	if got := pick("11FFFFFF"); len(got) != 1 {
		t.Errorf("two acknowledge: % x", got)
	}
	if got := whole(ask(mbus.Selected, 0)); got != "" {
		t.Errorf("two at once are %s", got)
	}
	if pick("112255FF"); whole(ask(mbus.Selected, 0))[:8] != "11225566" {
		t.Error("one by a mask")
	}
	if pick("9876543277040107"); whole(ask(mbus.Selected, mbus.FCB)) != "9876543277040107" {
		t.Error("one by its whole address")
	}
	if one, two, three := ask(1, mbus.FCB), ask(1, mbus.FCB), ask(1, 0); !bytes.Equal(one, two) || bytes.Equal(two, three) {
		t.Error("the frame count bit is not obeyed")
	}
	if pick("55FFFFFF") != nil || ask(mbus.Selected, 0) != nil {
		t.Error("a selection of nobody leaves somebody selected")
	}
	b.Plan = func(Request) Fault { return Fault{Kind: Garbled} }
	if got := whole(ask(1, mbus.FCB)); got != "" {
		t.Error("a fault changes nothing")
	}
	if _, err := NewVoice(p, 1, 1); err == nil {
		t.Error("a meter of a bus is a device with a line of its own")
	}
}

// TestReadoutVoice: a meter is read out after IEC 62056-21, at the speed that
// is agreed or without one, and only under its number.
func TestReadoutVoice(t *testing.T) {
	p, err := library(t).Get("iec62056-21")
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVoice(p, 1, 7)
	if err != nil || !v.Asked() || v.Replays() {
		t.Fatalf("%v, %+v", err, v)
	}
	for point, value := range map[string]string{"energy_import": "1846.5", "power": "-412", "meter_id": "31415926"} {
		if err := v.Hold(point, value); err != nil {
			t.Fatal(err)
		}
	}
	here, there := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Serve(ctx, there) }()
	defer func() {
		cancel()
		here.Close()
		<-done
	}()
	read := func(end string) string {
		var got []byte
		one := make([]byte, 1)
		here.SetReadDeadline(time.Now().Add(20 * time.Second))
		for !bytes.HasSuffix(got, []byte(end)) {
			if _, err := io.ReadFull(here, one); err != nil {
				t.Fatalf("%v after %q", err, got)
			}
			got = append(got, one[0])
		}
		return string(got)
	}
	for _, agree := range []bool{true, false} {
		here.Write([]byte("/?00000001!\r\n")) // another meter
		here.Write([]byte("/?31415926!\r\n"))
		ident := read("\r\n")
		if agree {
			here.Write([]byte("\x060" + ident[4:5] + "0\r\n"))
		}
		raw := ident + read("!\r\n\x03")
		raw += string(func() []byte { b := make([]byte, 1); io.ReadFull(here, b); return b }())
		want := map[string]string{"energy_import": "1846.500", "power": "-412.000", "meter_id": "31415926"}
		for _, r := range p.DecodeFrame([]byte(raw), 0, nil) {
			name := p.Points[r.Point].Name
			if r.Quality != telemetry.Good {
				t.Errorf("%s: %v", name, r)
			}
			if w, ok := want[name]; ok && r.Value.String() == w {
				delete(want, name)
			}
		}
		if len(want) > 0 {
			t.Errorf("agreed %v: missing %v in %q", agree, want, raw)
		}
	}
}

// TestReadoutGarbled: what spoils a readout spoils the data block, where the
// check is, and never the identification, which has none. No value comes of it.
func TestReadoutGarbled(t *testing.T) {
	p, err := library(t).Get("iec62056-21")
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVoice(p, 1, 7)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := v.frame(1)
	if len(decodedAll(p, good)) == 0 {
		t.Fatalf("nothing is read in %q", good)
	}
	ident, data, _ := bytes.Cut(good, []byte("\r\n"))
	rule, err := ParseRule("garble")
	if err != nil {
		t.Fatal(err)
	}
	v.Plan = Rules(1, rule)
	for n := range int64(len(data)) {
		b, _ := v.frame(n + 1)
		if head, _, _ := bytes.Cut(b, []byte("\r\n")); !bytes.Equal(head, ident) {
			t.Fatalf("%d: the identification became %q", n, head)
		}
		for _, r := range decodedAll(p, b) {
			if r.Quality == telemetry.Good {
				t.Fatalf("%d: %s is read in %q", n, p.Points[r.Point].Name, b)
			}
		}
	}
}

// TestTelegramVoices: a telegram of a P1 port is built with its check, the
// devices behind it, and values that are held.
func TestTelegramVoices(t *testing.T) {
	lib := library(t)
	for _, name := range []string{"dsmr-p1", "dsmr-p1-v3", "fluvius-p1", "hager-ehz", "iec62056-21-push"} {
		p, err := lib.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		v, err := NewVoice(p, 1, 7)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if v.Replays() {
			t.Errorf("%s: recordings", name)
			continue
		}
		b, _ := v.frame(1)
		got := decodedAll(p, b)
		for i := range p.Points {
			k := slices.IndexFunc(got, func(r telemetry.Reading) bool { return int(r.Point) == i })
			if k < 0 || got[k].Quality != telemetry.Good {
				t.Errorf("%s: %s is not in it, or not good: %q", name, p.Points[i].Name, b)
				break
			}
		}
	}
}

// decodedAll returns all readings in bytes of a serial device.
func decodedAll(p *profile.Profile, b []byte) (out []telemetry.Reading) {
	s := p.NewScanner()
	take := func(raw []byte) { out = p.DecodeFrame(raw, 0, out) }
	s.Feed(b, take)
	s.Flush(take)
	return out
}
