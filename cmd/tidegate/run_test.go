package main

import (
	"testing"

	"tidegate/config"
	"tidegate/driver"
)

func TestProcessors(t *testing.T) {
	bus := func(connect ...string) *config.Config {
		c := &config.Config{}
		for _, s := range connect {
			c.Buses = append(c.Buses, driver.Options{Connect: s})
		}
		return c
	}
	for _, c := range []struct {
		cfg         *config.Config
		there, want int
	}{
		{bus(), 4, 1},
		{bus("tcp://10.0.0.1:502", "rtu+tcp://10.0.0.1:4001"), 4, 1},
		{bus("tcp://10.0.0.1:502", "rtu:///dev/ttyUSB0"), 4, 2},
		{bus("rtu:///dev/ttyUSB0", "serial:///dev/ttyUSB1"), 4, 3},
		{bus("rtu:///dev/ttyUSB0", "serial:///dev/ttyUSB1"), 1, 1},
	} {
		if n := processors(c.cfg, c.there); n != c.want {
			t.Errorf("%d of %d processors, want %d", n, c.there, c.want)
		}
	}
}
