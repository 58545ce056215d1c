package agent

import (
	"context"
	"fmt"
	"time"

	"tidegate/internal/telemetry"
	"tidegate/uplink"
)

// The end of a certificate is announced at these, in days; at the last it is
// tomorrow. It is a reason not to be well from the second on.
const (
	expirySoon   = 30
	expiryUrgent = 7
)

// lookEvery is how often the dates are looked at.
const lookEvery = 10 * time.Second

// expiry announces the end of the certificates that an uplink depends on, in
// the log and as events, each step once.
type expiry struct {
	a     *Agent
	link  int    // of the configuration
	steps [3]int // by certificate: the step announced last, 0 for none
}

// lives are the days left, in the order of the points of config; -1: not known.
func lives(s *uplink.Stats) [3]int { return [3]int{s.CertDays, s.CADays, s.BrokerDays} }

var certificateNames = [3]string{"the client certificate", "the certificate of the broker's authority", "the broker's certificate"}

func expiryText(which, days int) string {
	name := certificateNames[which]
	switch days {
	case 0:
		return name + " expires today, or has expired"
	case 1:
		return name + " expires tomorrow"
	}
	return fmt.Sprintf("%s expires in %d days", name, days)
}

// run looks until ctx ends.
func (e *expiry) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s := e.a.ways[e.link].up.Stats()
			e.look(lives(&s))
		}
	}
}

// look tells of steps that have been reached, and of certificates that were
// renewed since.
func (e *expiry) look(lives [3]int) {
	var g telemetry.Group
	log := e.a.log
	if name := e.a.cfg.Links()[e.link].Name; name != "" {
		log = log.With("name", name)
	}
	for i, days := range lives {
		if days < 0 {
			continue
		}
		step := 0
		for _, limit := range [...]int{expirySoon, expiryUrgent, 1} {
			if days <= limit {
				step = limit
			}
		}
		if step == e.steps[i] {
			continue
		}
		e.steps[i] = step
		if step != 0 {
			log.Warn(expiryText(i, days), "code", "cert-expiry", "days", days)
		}
		if first, ok := e.a.cfg.CertificatePoints(e.link); ok {
			g.Readings = append(g.Readings, telemetry.Reading{Point: first + uint32(i), Value: telemetry.IntValue(int64(days), 0)})
		}
	}
	if len(g.Readings) > 0 {
		g.At = e.a.clock.Stamp()
		e.a.collect.emit(&g)
	}
}
