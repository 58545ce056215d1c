package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"tidegate/buffer"
	"tidegate/config"
	"tidegate/internal/clock"
	"tidegate/internal/status"
	"tidegate/uplink"
)

// way is one uplink and its view of the queue.
type way struct {
	config.Uplink // Name is empty where it is the only one
	up            *uplink.Uplink
	src           uplink.Source
	waits         func() (batches int64, tombstones int) // what it has yet to deliver
	log           *slog.Logger
}

// open makes the uplinks. A single one drains the queue itself.
func (a *Agent) open(env uplink.Env) error {
	src := newSource(a.queue, a.catalog)
	links := a.cfg.Links()
	if len(links) > 1 {
		a.share = newShare(a.queue, src, a.beside(cursorsFile), a.cfg.Buffer.MaxLoss, a.log)
	}
	for _, l := range links {
		w := &way{Uplink: l, src: src, log: a.log, waits: func() (int64, int) {
			s := a.queue.Stats()
			return s.Waiting[buffer.Data] + s.Waiting[buffer.Event], s.Losses
		}}
		env := env
		var m *member
		if a.share != nil {
			m = a.share.add(l.Name, l.Required)
			w.src, w.waits, w.log = m, m.waits, a.log.With("name", l.Name)
			env.Memory = named{a.queue, l.Name + "/"}
		}
		if env.Logger = w.log; l.Commands {
			env.Desk = a.desk
		}
		var err error
		if w.up, err = uplink.New(l.Options, env); err != nil {
			return fmt.Errorf("%s%w", w.prefix(), err)
		}
		if m != nil {
			m.online = w.online
		}
		a.ways = append(a.ways, w)
	}
	if a.share != nil {
		a.share.open()
	}
	return nil
}

// named keeps what an uplink remembers apart from what the others do.
type named struct {
	uplink.Memory
	prefix string
}

func (n named) Meta(key string) ([]byte, bool, error) { return n.Memory.Meta(n.prefix + key) }
func (n named) SaveMeta(key string, val []byte) error { return n.Memory.SaveMeta(n.prefix+key, val) }

func (w *way) online() bool { return w.up.Stats().State == uplink.StateOnline }

// busy tells whether the broker is there and lacks something.
func (w *way) busy() bool {
	batches, tombstones := w.waits()
	return batches+int64(tombstones) > 0 && w.online()
}

// subject is what a reason is about.
func (w *way) subject() string { return strings.TrimSpace("uplink " + w.Name) }

func (w *way) prefix() string {
	if w.Name == "" {
		return ""
	}
	return "uplink " + w.Name + ": "
}

// commander is the way on which commands come.
func (a *Agent) commander() *way {
	for _, w := range a.ways {
		if w.Commands {
			return w
		}
	}
	return nil
}

// snapshot is the state of one of several uplinks.
func (w *way) snapshot(now time.Time) status.NamedUplink {
	batches, tombstones := w.waits()
	return status.NamedUplink{Name: w.Name, Required: w.Required, Batches: batches, Tombstones: tombstones, Uplink: uplinkOf(w.up.Stats(), now)}
}

// TestUplink runs the steps of `uplink test` for the uplink of a name, for
// all one after the other without a name; through the session if there is one.
func (a *Agent) TestUplink(ctx context.Context, name string) ([]status.Step, error) {
	if _, err := PickUplinks(a.cfg, name); err != nil {
		return nil, err
	}
	var steps []status.Step
	for _, w := range a.ways {
		if name == "" || w.Name == name {
			steps = append(steps, stepsOf(w.Name, w.up.Test(ctx))...)
		}
	}
	for _, s := range steps {
		if s.State == status.Fail && s.Failure != nil && s.Failure.Note == "" {
			b := bufferOf(a.queue, time.Now())
			s.Failure.Note = fmt.Sprintf("%d readings are safe here; the buffer is %d %% full", b.Records, 100*b.Bytes/max(1, b.LimitBytes))
		}
	}
	return steps, nil
}

// TestUplink runs the steps where no agent runs.
func TestUplink(ctx context.Context, cfg *config.Config, name string, o Options) ([]status.Step, error) {
	links, err := PickUplinks(cfg, name)
	if err != nil {
		return nil, err
	}
	var steps []status.Step
	for i := range links {
		u, err := OpenUplink(cfg, &links[i], o)
		if err != nil {
			return nil, err
		}
		steps = append(steps, stepsOf(links[i].Name, u.Test(ctx))...)
	}
	return steps, nil
}

// OpenUplink returns an uplink of a configuration, for trying it.
func OpenUplink(cfg *config.Config, l *config.Uplink, o Options) (*uplink.Uplink, error) {
	c, err := clock.Open("")
	if err != nil {
		return nil, err
	}
	return uplink.New(l.Options, uplink.Env{Gateway: cfg.Gateway.ID, Site: cfg.Gateway.Site, Version: o.Version,
		Built: o.Built, Clock: c})
}

// PickUplinks returns the uplink of a name, all without a name. The error
// lists the names.
func PickUplinks(cfg *config.Config, name string) ([]config.Uplink, error) {
	links := cfg.Links()
	if name == "" {
		return links, nil
	}
	var names []string
	for i := range links {
		if links[i].Name == name {
			return links[i : i+1], nil
		}
		names = append(names, links[i].Name)
	}
	f := &status.Failure{Code: "usage", What: fmt.Sprintf("there is no uplink %q", name), Try: "one of: " + strings.Join(names, ", "), Exit: 64}
	if len(cfg.Uplinks) == 0 {
		f.Try = "leave --uplink out: there is one uplink, and it has no name"
	}
	return nil, f
}
