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
