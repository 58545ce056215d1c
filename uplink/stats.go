package uplink

import (
	"crypto/x509"
	"time"
)

// The states of an Uplink.
const (
	StateAway       = "away"       // waiting for the next attempt
	StateConnecting = "connecting" // an attempt is under way
	StateOnline     = "online"
	StateStopped    = "stopped" // Run has returned
)

// Stats is what an Uplink counts since start.
type Stats struct {
	State  string
	Since  time.Time // of the state; away and connecting are one
	Broker string    // mqtts://host:port: the one in use, or tried
	// Insecure tells that everything travels unencrypted to another machine.
	Insecure bool

	Sessions  uint64 // connections that the broker accepted
	Published uint64 // batches and tombstones sent, repeats included
	Acked     uint64 // batches and tombstones acknowledged
	Repeats   uint64 // batches sent again
	SetAside  uint64 // batches given up as unreadable or poison
	Readings  uint64 // readings in acknowledged batches

	InFlight int       // batches waiting for the acknowledgement
	Awaiting int       // batches acknowledged by the broker that wait for the cloud's receipt
	Received uint64    // batches with a receipt
	LastAck  time.Time // zero before the first
	RTT      time.Duration
	BytesIn  int64 // on the wire, TLS included
	BytesOut int64

	Held     string // why batches wait though the broker is there, "" when they do not
	Deaf     *Error // the broker refused to let us listen, nil when it did not
	Err      *Error // the last one, nil while none; it stays after recovery
	ErrAt    time.Time
	CertDays int // days left of the client certificate, 0 when it has expired, -1 without one
	// BrokerDays and CADays are the same of the broker's certificate, or what
	// it rests upon, and of its authority, as of the last handshake.
	BrokerDays, CADays int
	Cert               string // SHA-256 of the client certificate that the broker accepted last, "" while none
	// CertWarning says why a new certificate on disk is not used, "" when all is well.
	CertWarning string

	brokerEnds, caEnds time.Time
}

// left is how many whole days are left until t, -1 where there is no t.
func (u *Uplink) left(t time.Time) int {
	if t.IsZero() {
		return -1
	}
	return max(0, int(t.Sub(u.now()).Hours()/24))
}

// shown keeps when the chain of certificates that the broker has shown ends:
// that of several which serves longest.
func (u *Uplink) shown(chains [][]*x509.Certificate) {
	var broker, ca, least time.Time
	for _, chain := range chains {
		last := len(chain) - 1
		end, root := chain[0].NotAfter, chain[last].NotAfter
		for _, c := range chain[:last] {
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		first := end
		if root.Before(first) {
			first = root
		}
		if first.After(least) {
			broker, ca, least = end, root, first
		}
	}
	u.count(func(s *Stats) { s.brokerEnds, s.caEnds = broker, ca })
}

// ending tells whether what the broker has shown ends so soon that it has to be looked at anew.
func (u *Uplink) ending() bool {
	s := u.Stats()
	return s.BrokerDays >= 0 && min(s.BrokerDays, s.CADays) <= endingDays
}

// endingDays is a day before the first announcement.
const endingDays = 31

// Stats returns a copy of the counters.
func (u *Uplink) Stats() Stats {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stats
	b := u.broker()
	s.Broker, s.Insecure = b.String(), b.open()
	s.BytesIn, s.BytesOut = u.meter.in.Load(), u.meter.out.Load()
	s.BrokerDays, s.CADays, s.CertDays = u.left(s.brokerEnds), u.left(s.caEnds), -1
	u.id.mu.Lock()
	defer u.id.mu.Unlock()
	if l := u.id.last; l != nil && l.pair != nil {
		s.CertDays = u.left(l.info.NotAfter)
	}
	if l := u.id.good; l != nil && l.pair != nil {
		s.Cert = fingerprint(l.pair.Leaf)
	}
	return s
}

func (u *Uplink) setState(state string, err *Error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	// The attempts of one outage do not begin it anew.
	if outage := u.stats.State == StateAway || u.stats.State == StateConnecting; u.stats.State != state &&
		!(outage && (state == StateAway || state == StateConnecting)) {
		u.stats.Since = time.Now()
	}
	u.stats.State = state
	if err != nil {
		u.stats.Err, u.stats.ErrAt = err, time.Now()
	}
	if state != StateOnline {
		u.stats.InFlight, u.stats.Held = 0, ""
		u.current = nil
	}
}

// count changes the counters under the lock.
func (u *Uplink) count(change func(*Stats)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change(&u.stats)
}
