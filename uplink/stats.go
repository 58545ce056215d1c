package uplink

import "time"

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
	CertDays int    // days left of the client certificate, -1 without one
	Cert     string // SHA-256 of the client certificate that the broker accepted last, "" while none
	// CertWarning says why a new certificate on disk is not used, "" when all is well.
	CertWarning string
}

// Stats returns a copy of the counters.
func (u *Uplink) Stats() Stats {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stats
	b := u.broker()
	s.Broker, s.Insecure = b.String(), b.open()
	s.BytesIn, s.BytesOut = u.meter.in.Load(), u.meter.out.Load()
	s.CertDays = -1
	u.id.mu.Lock()
	defer u.id.mu.Unlock()
	if l := u.id.last; l != nil && l.pair != nil {
		s.CertDays = int(l.info.NotAfter.Sub(u.now()).Hours() / 24)
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
