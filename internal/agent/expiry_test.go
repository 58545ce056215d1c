package agent

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"tidegate/config"
	"tidegate/driver/profile"
	"tidegate/internal/clock"
)

// TestExpirySteps: each step is told once, a renewed certificate too, and what
// is not known is not told.
func TestExpirySteps(t *testing.T) {
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	read := func(url string) *config.Config {
		cfg, problems := config.Parse("test", []byte("gateway: {id: gw}\nbuses:\n  plant: {connect: \"tcp://127.0.0.1:1\", devices: {m: {unit: 1, points: {a: {holding: 1}}}}}\n"+
			"uplink: {url: \""+url+"\", commands: true}\n"), lib)
		if cfg == nil {
			t.Fatal(problems)
		}
		return cfg
	}
	clk, err := clock.Open("")
	if err != nil {
		t.Fatal(err)
	}
	said := func(cfg *config.Config) func(days ...int) string {
		c := newCollector(nil, cfg.Catalog(), nil, limits{}, slog.New(slog.DiscardHandler))
		e := &expiry{a: &Agent{cfg: cfg, collect: c, clock: clk, log: slog.New(slog.DiscardHandler)}}
		return func(days ...int) string {
			e.look([3]int(days))
			var all []string
			for len(c.in) > 0 {
				for _, r := range (<-c.in).Readings {
					p := cfg.Catalog().Points[r.Point]
					all = append(all, fmt.Sprint(p.Device, "/", p.Name, " ", r.Value))
				}
			}
			return strings.Join(all, ", ")
		}
	}
	say := said(read("mqtts://broker.example"))
	for i, x := range []struct {
		days [3]int
		want string
	}{
		{[3]int{-1, -1, -1}, ""},
		{[3]int{90, 900, 31}, ""},
		{[3]int{90, 900, 30}, "certificates/broker 30"},
		{[3]int{90, 900, 29}, ""},
		{[3]int{30, 900, 7}, "certificates/client 30, certificates/broker 7"},
		{[3]int{30, 900, -1}, ""},
		{[3]int{30, 900, 6}, ""},
		{[3]int{30, 900, 1}, "certificates/broker 1"},
		{[3]int{30, 900, 0}, ""},
		{[3]int{30, 900, 90}, "certificates/broker 90"},
		{[3]int{5, 1, 90}, "certificates/client 5, certificates/authority 1"},
	} {
		if got := say(x.days[:]...); got != x.want {
			t.Errorf("%d: %v days: %q and not %q", i, x.days, got, x.want)
		}
	}
	if got := said(read("mqtt://127.0.0.1"))(5, 5, 5); got != "" {
		t.Errorf("without TLS %q", got)
	}
}
