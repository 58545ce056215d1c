// Package agent wires the house: lines, collector, queue, uplink, socket. It
// starts them, watches them, and stops them in the order of the water, so
// that nothing is lost on the way.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/driver"
	"tidegate/internal/clock"
	"tidegate/internal/status"
	"tidegate/internal/telemetry"
	"tidegate/uplink"
	"tidegate/uplink/payload"
)

// grace is how long a stop waits for the broker to take what is in the buffer.
const grace = 5 * time.Second

// lockPatience is how long a start waits for the buffer: a technician may
// just be looking into it, or the agent before this one is still stopping.
const lockPatience = 2 * time.Second

// clockFile is the clock's memory, in the directory of the buffer.
const clockFile = "clock.json"

// Options are what the door knows and the configuration does not say.
type Options struct {
	File    string // the configuration's file, for status
	Version string
	Built   time.Time // when this binary was built
	Logger  *slog.Logger
}

// Agent is the whole gateway.
type Agent struct {
	cfg     *config.Config
	opt     Options
	log     *slog.Logger
	clock   *clock.Clock
	catalog *telemetry.Catalog
	queue   *buffer.Queue
	lines   []*driver.Line
	collect *collector
	ways    []*way
	share   *share // nil with a single uplink
	reader  *Reader
	desk    *desk // nil while commands are off
	health  *health
}

// New opens the buffer and builds everything from a configuration that
// config.Load found right. It touches no port and no network. The errors
// are those of the disk: buffer.ErrLocked when another agent has the buffer.
func New(cfg *config.Config, opt Options) (*Agent, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{cfg: cfg, opt: opt, log: opt.Logger, catalog: cfg.Catalog()}
	o := cfg.Buffer
	o.Logger, o.Thin, o.Shared = a.log, telemetry.Thin, len(cfg.Links()) > 1
	q, err := buffer.Open(o)
	for end := time.Now().Add(lockPatience); errors.Is(err, buffer.ErrLocked) && time.Now().Before(end); q, err = buffer.Open(o) {
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return nil, err
	}
	a.queue = q
	// The clock's boot numbers belong to this store's stamps: they stay together.
	if a.clock, err = clock.Open(a.beside(clockFile)); err != nil {
		a.log.Warn("the clock's memory is not usable", "error", err)
	}
	if cfg.Gateway.Clock == "system" {
		if err := a.clock.Trust(); err != nil {
			a.log.Warn("the clock's memory is not usable", "error", err)
		}
	}
	if err := a.build(); err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return a, nil
}

// beside is the path of a file of ours in the directory of the buffer.
func (a *Agent) beside(name string) string { return filepath.Join(a.cfg.Buffer.Dir, name) }

func (a *Agent) build() error {
	cfg := a.cfg
	a.reader = &Reader{cfg: cfg, catalog: a.catalog, lines: map[string]*driver.Line{}, latest: a.latest}
	batch := cfg.Links()[0].Batch // the same for all
	l := limits{maxAge: batch.MaxAge, maxReadings: batch.MaxReadings, maxBytes: batch.MaxBytes, maxLoss: cfg.Buffer.MaxLoss}
	if l.maxLoss > 0 {
		l.maxAge = min(l.maxAge, l.maxLoss/2)
	}
	a.collect = newCollector(a.queue, a.catalog, cfg.RuleSet(), l, a.log)
	for i := range cfg.Buses {
		l, err := driver.Open(cfg.Buses[i], driver.Env{Clock: a.clock, Logger: a.log, Groups: a.collect.pool})
		if err != nil {
			return fmt.Errorf("bus %s: %w", cfg.Buses[i].Name, err)
		}
		a.lines = append(a.lines, l)
		a.reader.lines[cfg.Buses[i].Name] = l
	}
	key := catalogKey + a.catalog.Hash()
	if _, known, err := a.queue.Meta(key); err == nil && !known {
		if err := a.queue.SaveMeta(key, a.catalog.Encode()); err != nil {
			a.log.Error("the catalog of points could not be kept; batches on disk could not be named after a change of configuration", "error", err)
		}
	}
	a.health = newHealth(a)
	env := uplink.Env{
		Gateway: cfg.Gateway.ID, Site: cfg.Gateway.Site, Version: a.opt.Version, Labels: cfg.Gateway.Labels,
		Epoch: a.queue.Epoch(), Boot: a.queue.Boot(), Stopped: a.queue.Stopped(), Catalog: a.catalog,
		Devices: a.devices(), Built: a.opt.Built, Clock: a.clock, Logger: a.log, Health: a.health.word,
		Memory: a.queue, Latest: func(tell func(int, telemetry.Reading, clock.Stamp)) {
			a.collect.latest(func(point int, l *last) { tell(point, l.Reading, l.at) })
		},
	}
	if cfg.Commander() != nil {
		a.desk = newDesk(a)
	}
	return a.open(env)
}

// devices is what the metadata message says of them.
func (a *Agent) devices() []payload.Device {
	var out []payload.Device
	for i := range a.cfg.Buses {
		b := &a.cfg.Buses[i]
		for k := range b.Devices {
			out = append(out, payload.Device{Name: b.Devices[k].Name, Profile: b.Devices[k].Profile,
				Driver: b.Connect, Every: b.Devices[k].Every})
		}
	}
	return out
}

// Run runs until ctx ends, then stops everything in order: lines, collector,
// the queue's last batches (to brokers that are there), uplinks, socket, queue.
func (a *Agent) Run(ctx context.Context) error {
	back := context.WithoutCancel(ctx)
	notify := newNotifier()
	defer notify.close()
	a.hello()

	upCtx, stopUp := context.WithCancel(back)
	socketCtx, stopSocket := context.WithCancel(back)
	defer stopUp()
	defer stopSocket()
	var lines, collect, up, cursors, socket, watch sync.WaitGroup
	for _, l := range a.lines {
		lines.Go(func() {
			if err := l.Run(ctx, a.collect.emit); err != nil {
				a.log.Error("a line has ended", "error", err)
			}
		})
	}
	if a.desk != nil {
		lines.Go(func() { a.desk.run(ctx) })
	}
	for i := range a.ways {
		lines.Go(func() { (&expiry{a: a, link: i}).run(ctx) })
	}
	collect.Go(a.collect.run)
	for _, w := range a.ways {
		up.Go(func() {
			if err := w.up.Run(upCtx, w.src); err != nil {
				w.log.Error("the uplink has ended", "error", err)
			}
		})
	}
	if a.share != nil {
		cursors.Go(func() { a.share.run(socketCtx) })
	}
	socket.Go(func() {
		if err := status.Serve(socketCtx, a.cfg.Status.Socket, a); err != nil {
			a.log.Error("the agent's socket does not work; status, read and watch cannot reach this agent", "error", err)
		}
	})
	watch.Go(func() { a.health.run(socketCtx, notify) })
	notify.say("READY=1")

	<-ctx.Done()
	notify.say("STOPPING=1")
	a.log.Info("stopping")
	lines.Wait()
	close(a.collect.in)
	collect.Wait()
	a.drain()
	stopUp()
	up.Wait()
	stopSocket()
	socket.Wait()
	watch.Wait()
	cursors.Wait()
	if a.share != nil {
		a.share.close()
	}
	var err error
	for _, l := range a.lines {
		err = errors.Join(err, l.Close())
	}
	err = errors.Join(err, a.clock.Close(), a.queue.Close())
	s := a.queue.Stats()
	a.log.Info("stopped", "waiting", s.Waiting[buffer.Data]+s.Waiting[buffer.Event])
	return err
}

// drain waits until each broker that is there has everything, at most for the
// grace.
func (a *Agent) drain() {
	for end := time.Now().Add(grace); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !slices.ContainsFunc(a.ways, (*way).busy) {
			return
		}
	}
}

func (a *Agent) hello() {
	devices := 0
	for i := range a.cfg.Buses {
		devices += len(a.cfg.Buses[i].Devices)
	}
	s := a.queue.Stats()
	a.log.Info("tidegate "+a.opt.Version, "gateway", a.cfg.Gateway.ID, "config", a.cfg.Hash(),
		"devices", devices, "buses", len(a.cfg.Buses), "buffer", a.cfg.Buffer.Dir, "boot", a.queue.Boot(),
		"waiting", s.Waiting[buffer.Data]+s.Waiting[buffer.Event], "stopped", a.queue.Stopped(), "pid", os.Getpid())
}
