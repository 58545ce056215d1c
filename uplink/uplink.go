// Package uplink carries batches to an MQTT broker, at least once each.
//
// One connection is one new client of the MQTT library: no reconnecting, no
// memory of its own. All that is not acknowledged stays in the Source and is
// sent again after a loss. A batch is acknowledged to the Source only after
// the broker's PUBACK for that very message came on that very connection;
// docs/delivery.md says what that proves and what it does not.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
	"tidegate/uplink/payload"
)

// The lanes.
const (
	laneData  = "data"
	laneEvent = "event"
)

// Item is a numbered batch of a lane.
type Item struct {
	Lane     string // "data" or "event"
	Seq      uint64 // from 1
	Bytes    []byte // as telemetry.AppendBatch wrote it
	Count    int    // readings
	From, To int64  // Unix ms as stamped
}

// Loss is a range of numbers that will never be sent, and why.
type Loss struct {
	Lane     string
	From, To uint64
	Batches  int64 // -1: unknown
	Readings int64 // -1: unknown
	T0, T1   int64 // Unix ms
	Why      string
}

// Source is the queue that an Uplink drains. It is called by the goroutine
// of Run only. An error is transient: the Uplink tries again later.
type Source interface {
	// Next returns the lowest undelivered batch with a number >= from; false
	// if there is none. It removes nothing.
	Next(lane string, from uint64) (Item, bool, error)
	// Prev returns the highest undelivered batch with a number <= upto.
	Prev(lane string, upto uint64) (Item, bool, error)
	// Ack tells that the broker has these batches.
	Ack(lane string, seqs ...uint64)
	// Given returns the last number given to a batch, 0 before the first.
	Given(lane string) uint64
	// Lowest returns the lowest number still held, or Given+1.
	Lowest(lane string) uint64
	// Losses returns the losses that are not yet told.
	Losses() []Loss
	// AckLoss tells that the broker has the tombstone of a loss.
	AckLoss(Loss) error
	// SetAside gives up a batch: a loss takes its place.
	SetAside(lane string, seq uint64, why string) error
	// Catalog returns the catalog of a hash.
	Catalog(hash string) (*telemetry.Catalog, error)
	// Changed is signalled after a new batch or loss.
	Changed() <-chan struct{}
}

// Env is what an Uplink needs to know of the gateway.
type Env struct {
	Gateway, Site, Version string
	Labels                 map[string]string
	Epoch                  string // of the store
	Boot                   uint32 // start counter
	Stopped                string // how the run before this one ended: first, clean, power
	Catalog                *telemetry.Catalog
	Devices                []payload.Device // for the metadata message
	Built                  time.Time        // when this binary was built: no certificate is checked against an earlier time
	Clock                  *clock.Clock
	Logger                 *slog.Logger
	Health                 func() string // the agent's word on itself, for the status message; may be nil
	Desk                   Desk          // where commands go; nil while they are not taken
	// Latest tells the last reading of each point, and when it was taken; may be nil.
	Latest func(tell func(point int, r telemetry.Reading, at clock.Stamp))
	Memory Memory // may be nil: nothing is kept then
}

// Memory keeps small things on disk. SaveMeta returns when they are durable.
type Memory interface {
	Meta(key string) (val []byte, known bool, err error)
	SaveMeta(key string, val []byte) error
}

// Uplink is one broker. Run drives it; Stats and Test may be called at any
// time from other goroutines.
type Uplink struct {
	opts     Options
	env      Env
	brokers  []broker      // the one of url, then those that stand in
	at       atomic.Int32  // which one is in use, or tried
	proxy    broker        // without a host: none
	resolver *net.Resolver // of Test; nil: the system's
	id       identity
	speaker  speaker
	log      *slog.Logger
	tune     tuning
	meter    meter

	// of the goroutine of Run
	paced   time.Time    // no message before, by publish_rate
	until   time.Time    // the credentials of the connection serve no longer; zero: for ever
	unacked map[key]bool // sent on an earlier connection without a PUBACK
	// With receipts: what has its PUBACK and waits for its receipt, since when.
	awaiting     map[key]time.Time
	awaitingLoss map[Loss]time.Time
	rate         int64 // of the backlog, bytes per second, 0 for no limit
	poison       suspicion
	thrown       int         // young connections in a row that the broker closed while nothing was under way
	unread       map[key]int // failed attempts to read a batch's catalog

	mu      sync.Mutex
	stats   Stats
	current *link // the connection that Test may use, nil without one
}

// key is a batch.
type key struct {
	lane string
	seq  uint64
}

// tuning are the times that tests shorten.
type tuning struct {
	connect    time.Duration // TCP, TLS and CONNACK together
	write      time.Duration // one write of at most 16 KB
	ack        time.Duration // from the last progress to the next acknowledgement
	grace      time.Duration // for acknowledgements at the end
	backoff    time.Duration // first delay
	backoffMax time.Duration
	stable     time.Duration // a session this long resets the backoff
	status     time.Duration // period of the status message
	meta       time.Duration // period of the metadata message
	retry      time.Duration // after an error of the Source
	token      time.Duration // life of a token that is made of a device key; 0 is a day
	receipt    time.Duration // how long a receipt is waited for before the batch is sent again
	spread     time.Duration // over this, those come back whom the broker closed on after a long session
	look       time.Duration // between two looks at the certificate files
	verdict    time.Duration // for a broker's word on our certificate after the handshake
	glance     time.Duration // between two looks at the broker's certificate when it is about to end
	home       time.Duration // between two attempts to reach the first broker from another one
}

func defaultTuning() tuning {
	return tuning{connect: 30 * time.Second, write: 30 * time.Second, ack: 30 * time.Second,
		grace: 5 * time.Second, backoff: time.Second, backoffMax: 5 * time.Minute, stable: time.Minute,
		status: time.Minute, meta: 24 * time.Hour, retry: time.Second, receipt: 5 * time.Minute,
		spread: time.Minute, look: 3 * time.Second, verdict: time.Second, glance: 24 * time.Hour, home: 10 * time.Minute}
}

// tuning is the default one as far as the keep-alive allows: a link that is
// back is used within two keep-alives, as a dead one is noticed within two.
func (u *Uplink) tuning() tuning {
	t, twice := defaultTuning(), 2*u.opts.Keepalive
	t.backoffMax = min(t.backoffMax, twice)
	t.spread = min(t.spread, twice)
	t.connect = min(t.connect, max(twice, 10*time.Second))
	t.status = u.opts.StatusEvery
	return t
}

// New checks the options and returns an Uplink that has done nothing yet: no
// file is read and no name resolved before Run or Test.
func New(o Options, env Env) (*Uplink, error) {
	var problems []error
	o.Validate(func(path, msg, hint string) {
		problems = append(problems, fmt.Errorf("uplink.%s: %s", path, msg))
	})
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	if env.Clock == nil {
		return nil, errors.New("uplink: no clock")
	}
	if env.Gateway == "" {
		return nil, errors.New("uplink: no gateway id")
	}
	if env.Catalog == nil {
		env.Catalog = telemetry.NewCatalog(nil)
	}
	if env.Logger == nil {
		env.Logger = slog.New(slog.DiscardHandler)
	}
	var err error
	u := &Uplink{opts: o, env: env,
		log: env.Logger, rate: o.Backlog.Rate,
		unacked: map[key]bool{}, awaiting: map[key]time.Time{}, awaitingLoss: map[Loss]time.Time{}, unread: map[key]int{}}
	for _, s := range append([]string{o.URL}, o.Fallback...) {
		b, err := parseURL(s)
		if err != nil {
			return nil, err
		}
		u.brokers = append(u.brokers, b)
	}
	if o.Proxy != "" {
		if u.proxy, err = parseProxy(o.Proxy); err != nil {
			return nil, err
		}
	}
	u.tune = u.tuning()
	u.id.opts = &u.opts
	if u.speaker, err = u.newSpeaker(); err != nil {
		return nil, err
	}
	u.stats.State = StateAway
	u.stats.Since = time.Now()
	return u, nil
}

// Run drains the source until ctx ends; then it waits a moment for
// acknowledgements under way, says goodbye, and returns nil. Whatever the
// broker or the network does, Run goes on trying.
func (u *Uplink) Run(ctx context.Context, src Source) error {
	attempt := 0
	told := "" // code of the trouble that was logged last
	for {
		began, tried := time.Now(), u.broker()
		err := u.session(ctx, src)
		if ctx.Err() != nil {
			u.setState(StateStopped, nil)
			return nil
		}
		if err == nil { // left to come back
			attempt = 0
			continue
		}
		stable := time.Since(began) >= u.tune.stable
		if stable {
			attempt = 0
		}
		delay := u.wait(attempt, began, u.Stats().LastAck, time.Now())
		attempt++
		switch {
		case !stable:
			u.at.Store((u.at.Load() + 1) % int32(len(u.brokers)))
		case err.Code == "closed":
			// It closed on everybody, most likely: whoever comes back at
			// once meets all the others. Whoever finds it still away tries
			// the next broker soon, or meets those who had to wait longer.
			delay, attempt = rand.N(max(u.tune.spread, 1)), 3
			if len(u.brokers) == 1 {
				attempt = 6
			}
		}
		u.setState(StateAway, err)
		// The same trouble again is no news.
		level := slog.LevelDebug
		if attempt == 1 || err.Code != told {
			level, told = slog.LevelWarn, err.Code
		}
		u.log.Log(ctx, level, "the uplink is away", "uplink", tried.String(), "code", err.Code, "error", err.Error(), "retry", delay.Round(time.Millisecond))
		t := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			t.Stop()
			u.setState(StateStopped, nil)
			return nil
		case <-t.C:
		}
	}
}

// delay is the wait before the next attempt: at random from the upper half of
// a doubling limit. While the blame for a lost connection lies with one batch, and
// others do get through, the limit stays low.
func (u *Uplink) delay(attempt int) time.Duration {
	limit := u.tune.backoffMax
	if attempt < 30 {
		limit = min(limit, u.tune.backoff<<attempt)
	}
	if u.poison.proven {
		limit = min(limit, 10*u.tune.backoff)
	}
	return limit/2 + rand.N(limit/2+1)
}

// wait is the delay, counted from the last acknowledgement if there was one on
// the connection that was tried at began: what it took to notice a silence is
// part of it, so that also a link that is lost again and again is tried within
// two keep-alives. Attempts are no closer for it.
func (u *Uplink) wait(attempt int, began, acked, now time.Time) time.Duration {
	d := u.delay(attempt)
	if acked.After(began) {
		d = max(d-now.Sub(acked), u.delay(0))
	}
	return d
}

// now is the time against which certificates are checked: never earlier
// than the build, nor than a time known to have passed.
func (u *Uplink) now() time.Time {
	t := time.Now()
	for _, floor := range []time.Time{u.env.Built, u.env.Clock.Floor()} {
		if floor.After(t) {
			t = floor
		}
	}
	return t
}

// broker is the one in use, or tried.
func (u *Uplink) broker() broker { return u.brokers[u.at.Load()] }

// situation collects what the explanation of an error with a broker needs.
func (u *Uplink) situation(b broker) situation {
	ca, cert, _ := u.opts.files()
	folder := ""
	if _, err := os.Stat(cert); errors.Is(err, fs.ErrNotExist) {
		cert, folder = "", u.opts.Identity // an identity folder need not have one
	}
	return situation{broker: b, ca: ca, cert: cert, folder: folder, now: u.now(), wall: time.Now(),
		synced: u.env.Clock.Synced(), built: u.env.Built, timeout: u.tune.connect}
}

// clientID is the configured one, or the gateway's.
func (u *Uplink) clientID() string {
	if u.opts.ClientID != "" {
		return u.opts.ClientID
	}
	return u.env.Gateway
}

// about is what the metadata message says beside the points.
func (u *Uplink) about() payload.About {
	e := &u.env
	return payload.About{Gateway: e.Gateway, Site: e.Site, Version: e.Version, Labels: e.Labels, Devices: e.Devices,
		Sent: time.Now().UnixMilli()}
}
