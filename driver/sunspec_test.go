package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// inverter is a line with a SunSpec inverter.
func inverter(t *testing.T, connect string) (*Line, *profile.Profile) {
	t.Helper()
	p, err := library(t).Get("sunspec-inverter")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Name: "pv", Connect: connect, Timeout: 2 * time.Second,
		Devices: []Device{{Name: "inverter", Unit: 1, Every: 100 * time.Millisecond, Map: p}}}
	return open(t, o), p
}

// newest keeps the last reading of each point.
type newest struct {
	mu sync.Mutex
	of map[uint32]telemetry.Reading
}

func (n *newest) emit(g *telemetry.Group) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range g.Readings {
		n.of[r.Point] = r
	}
}

func (n *newest) text(p *profile.Profile, name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range p.Points {
		if p.Points[i].Name == name {
			r, ok := n.of[uint32(i)]
			if !ok {
				return ""
			}
			return profile.ReadingText(r)
		}
	}
	return "no such point"
}

// TestSunSpecPeers: a device on pymodbus, at two bases, with and without the
// pad register, with whole numbers and with floats.
func TestSunSpecPeers(t *testing.T) {
	for i, c := range []struct{ base, pad, kind string }{{"40000", "0", "int"}, {"40000", "1", "float"}, {"0", "1", "int"}, {"50000", "0", "float"}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := ln.Addr().(*net.TCPAddr)
			ln.Close()
			peer(t, "/usr/bin/python3", "testdata/peer/pymodbus_sunspec.py", fmt.Sprint(addr.Port), c.base, c.pad, c.kind)
			l, p := inverter(t, "tcp://"+addr.String())
			got := &newest{of: map[uint32]telemetry.Reading{}}
			run(t, l, got.emit)
			until(t, 10*time.Second, "the power", func() bool { return got.text(p, "power_export") != "" && got.text(p, "voltage_l1") != "" })
			until(t, 10*time.Second, "a value of the power", func() bool { return got.text(p, "power_export") == "5520" })
			want := map[string]string{"power_export": "5520", "voltage_l1": "231.5", "voltage_l3": "233.7", "frequency": "49.96",
				"reactive_power": "-315", "power_factor": "-0.998", "dc_current": "fault/marker", "temperature_cabinet": "fault/marker",
				"dc_voltage_1": "fault/marker", "device_status": "mppt", "current": "23.7", "temperature_heat_sink": "52.0", "energy_export": "33319.778"}
			if c.kind == "float" {
				want["temperature_heat_sink"], want["dc_current"], want["temperature_cabinet"] = "52", "fault/nan", "fault/nan"
				want["energy_export"] = "33319.777" // a float has 24 bits
			}
			for name, w := range want {
				if g := got.text(p, name); g != w {
					t.Errorf("%d: %s: %s, want %s", i, name, g, w)
				}
			}
			// A technician reads while it runs, and on a line of his own.
			for _, line := range []*Line{l, func() *Line { o, _ := inverter(t, "tcp://"+addr.String()); return o }()} {
				if m, err := line.Located(context.Background(), "inverter"); err != nil || len(m.Plan(profile.Limits{})) == 0 {
					t.Errorf("located: %v", err)
				}
			}
		})
	}
}

// TestSunSpecReplaced: another inverter takes the place of one, with its
// models elsewhere. It is looked through anew.
func TestSunSpecReplaced(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().(*net.TCPAddr)
	ln.Close()
	l, p := inverter(t, "tcp://"+addr.String())
	got := &newest{of: map[uint32]telemetry.Reading{}}
	run(t, l, got.emit)
	t.Run("first", func(t *testing.T) {
		peer(t, "/usr/bin/python3", "testdata/peer/pymodbus_sunspec.py", fmt.Sprint(addr.Port), "40000", "1", "int")
		until(t, 10*time.Second, "the first", func() bool { return got.text(p, "temperature_heat_sink") == "52.0" })
	})
	until(t, 10*time.Second, "it is gone", func() bool { return got.text(p, "power_export") != "5520" })
	l.own <- struct{}{}
	l.devices[0].walked = time.Now().Add(-refusedAfter)
	<-l.own
	peer(t, "/usr/bin/python3", "testdata/peer/pymodbus_sunspec.py", fmt.Sprint(addr.Port), "0", "0", "float")
	until(t, 20*time.Second, "the second", func() bool { return got.text(p, "temperature_heat_sink") == "52" })
}

// TestSunSpecFaults: a device that has no models.
func TestSunSpecFaults(t *testing.T) {
	t.Parallel()
	s := newSlave(kindTCP, 1)
	l, p := inverter(t, "tcp://"+s.onTCP(t))
	got := &newest{of: map[uint32]telemetry.Reading{}}
	run(t, l, got.emit)
	until(t, 5*time.Second, "all points are told", func() bool { return got.text(p, "power_export") == "comm/mismatch" })
	if g := got.text(p, "device_status"); g != "comm/mismatch" {
		t.Errorf("device_status: %s", g)
	}
	var e *Error
	if _, err := l.Located(context.Background(), "inverter"); !errors.As(err, &e) || e.Code != "no-sunspec" || !errors.Is(err, profile.ErrNoSunSpec) {
		t.Errorf("got %v", err)
	}
}
