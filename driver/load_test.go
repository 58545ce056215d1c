package driver

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tidegate/driver/profile"
)

// TestLoad: the plan that is computed has the requests that the line sends,
// grows with everything that takes time, and fits at the period it names.
func TestLoad(t *testing.T) {
	lib := library(t)
	names := []string{"eastron-sdm630", "eastron-sdm120", "abb-b-series", "xy-md02", "pzem-016", "wb-msw-v3", "wellpro-wp8026adam"}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 60 {
		o := Options{Name: "bus", Connect: []string{"rtu:///dev/x", "ascii:///dev/x", "tcp://h:502", "rtu+tcp://h:4001"}[rng.IntN(4)]}
		if o.Connect[0] != 't' && o.Connect != "rtu+tcp://h:4001" {
			o.Line = usualLines[rng.IntN(len(usualLines))]
		}
		for i := range 1 + rng.IntN(12) {
			p, err := lib.Get(names[rng.IntN(len(names))])
			if err != nil {
				t.Fatal(err)
			}
			o.Devices = append(o.Devices, Device{Name: fmt.Sprintf("d%d", i), Unit: i + 1, Map: p, Profile: p.Name,
				Every: time.Duration(1+rng.IntN(20)) * 100 * time.Millisecond})
		}
		l, err := Open(o, Env{})
		if err != nil {
			t.Fatal(err)
		}
		jobs := len(l.jobs)
		l.Close()
		load := o.Load()
		if load.Requests != jobs || load.Devices != len(o.Devices) {
			t.Errorf("seed %d: %d requests of %d devices, the line sends %d", seed, load.Requests, load.Devices, jobs)
		}
		if load.Least > load.Share || load.Round <= 0 || load.Absent < 10*time.Millisecond {
			t.Errorf("seed %d: %+v", seed, load)
		}
		for _, slower := range []func(*Options){
			func(o *Options) { o.Gap = 50 * time.Millisecond },
			func(o *Options) { o.Turnaround = 80 * time.Millisecond },
			func(o *Options) {
				o.Devices[0].Wake = &profile.Wake{Bytes: []byte{0}, Pause: 40 * time.Millisecond}
			},
		} {
			c := o
			c.Devices = append([]Device(nil), o.Devices...)
			slower(&c)
			if more := c.Load(); more.Round < load.Round || more.Round == load.Round && (c.Devices[0].Wake == nil || c.Connect[0] != 't') {
				t.Errorf("seed %d: %s: %v a round, %v before", seed, c.Connect, more.Round, load.Round)
			}
		}
		period := load.Fits()
		for i := range o.Devices {
			o.Devices[i].Every = period
		}
		if fit := o.Load(); fit.Share > 1 || fit.Crowded() {
			t.Errorf("seed %d: every %v was to fit, %.3f busy", seed, period, fit.Share)
		}
		if period > 3*load.Round && period > 50*time.Millisecond {
			t.Errorf("seed %d: every %v for a round of %v", seed, period, load.Round)
		}
	}
	if l := (&Options{Connect: "serial:///dev/x", Line: "9600 8N1"}).Load(); l != (Load{}) {
		t.Errorf("a line of devices that talk: %+v", l)
	}
}

// TestDialogueLoad: a readout counts with its telegram, at the speed of the
// line or the one that is agreed, and with what comes before it.
func TestDialogueLoad(t *testing.T) {
	lib := library(t)
	load := func(line string, edit func(o *Options), devices ...Device) Load {
		o := Options{Connect: "serial:///dev/x", Line: line}
		for _, d := range devices {
			p, err := lib.Get(d.Profile)
			if err != nil {
				t.Fatal(err)
			}
			d.Map = p
			o.Devices = append(o.Devices, d)
		}
		if edit != nil {
			edit(&o)
		}
		return o.Load()
	}
	heat := Device{Profile: "mbus-heat", Unit: 5, Every: 10 * time.Second}
	one := load("2400 8E1", nil, heat)
	// The longest telegram has 261 bytes at most, so its 11 bits each are 1.2 s.
	if one.Devices != 1 || one.Requests != 1 || one.Round < 800*time.Millisecond || one.Round > 1500*time.Millisecond || one.Least <= 0 || one.Least >= one.Share {
		t.Errorf("one meter: %+v", one)
	}
	if slow := load("300 8E1", nil, heat); slow.Round < 6*one.Round {
		t.Errorf("at 300 baud: %v, at 2400 %v", slow.Round, one.Round)
	}
	named := heat
	named.Address = "12345678"
	if called := load("2400 8E1", nil, named); called.Round < one.Round+200*time.Millisecond || called.Requests != 3 {
		t.Errorf("by its number: %+v, by its unit %+v", called, one)
	}
	if lazy := load("2400 8E1", func(o *Options) { o.Turnaround = time.Second }, heat); lazy.Round < one.Round+700*time.Millisecond {
		t.Errorf("a slow meter: %v", lazy.Round)
	}
	var street []Device
	for i := range 100 {
		d := heat
		d.Unit = i + 1
		street = append(street, d)
	}
	full := load("2400 8E1", nil, street...)
	if full.Least < 1 {
		t.Errorf("100 meters every 10 s: %+v", full)
	}
	for i := range street {
		street[i].Every = full.Fits()
	}
	if fits := load("2400 8E1", nil, street...); fits.Share > 1 || fits.Crowded() {
		t.Errorf("every %v: %+v", full.Fits(), fits)
	}
	power := Device{Profile: "iec62056-21", Every: time.Minute}
	fast := load("300 7E1", nil, power)
	power.MaxBaud = 300
	slow := load("300 7E1", nil, power)
	if fast.Devices != 1 || fast.Round < time.Second || slow.Round < 2*fast.Round {
		t.Errorf("offered speed %v, 300 baud alone %v", fast.Round, slow.Round)
	}
	if l := load("115200 8N1", nil, Device{Profile: "dsmr-p1"}); l.Devices != 0 {
		t.Errorf("a meter that talks by itself: %+v", l)
	}
}
