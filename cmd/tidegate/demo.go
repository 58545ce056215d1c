package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"tidegate/config"
	"tidegate/driver/profile"
	"tidegate/internal/account"
	"tidegate/internal/agent"
	"tidegate/internal/sim"
	"tidegate/internal/status"
)

func (a *app) demoCmd() *cobra.Command {
	var outage time.Duration
	var keep bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "everything without hardware: devices, TLS broker, outage, account",
		Long: `Starts simulated meters on ptys (RTU) and on Modbus TCP, a serial air sensor, an
MQTT broker with TLS, a throw-away CA and client certificates, and the real
agent; cuts the uplink for a while, and keeps the receiving side's account. Ends
by itself. Exit code 0 only if every batch arrived and none was lost.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if outage < 0 || outage > time.Hour {
				return usage{fmt.Errorf("--outage %v: 0s to 1h", outage)}
			}
			return a.demo(cmd.Context(), outage, keep)
		},
	}
	c.Flags().DurationVar(&outage, "outage", 20*time.Second, "how long the uplink is cut, 0s for not at all")
	c.Flags().BoolVar(&keep, "keep", false, "keep the folder with configuration, certificates and buffer")
	return c
}

// The calm before and after the outage. The agent tries again within two
// keep-alives, which are 5 s here.
const (
	calmBefore = 8 * time.Second
	calmAfter  = 14 * time.Second
)

// demo is the stage: what stands around the agent.
type demo struct {
	a      *app
	dir    string
	start  time.Time
	broker *sim.Broker
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the devices

	mu      sync.Mutex
	book    *account.Book
	refused error // the first message that the account could not read
	shown   int
}

func (a *app) demo(ctx context.Context, outage time.Duration, keep bool) error {
	dir, err := os.MkdirTemp("", "tidegate-demo-")
	if err != nil {
		return err
	}
	if !keep {
		defer os.RemoveAll(dir)
	}
	d := &demo{a: a, dir: dir, start: time.Now(), book: account.New()}
	stage, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	defer d.close()
	cfg, err := d.build(stage)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelError}))
	ag, err := agent.New(cfg, agent.Options{File: filepath.Join(dir, "tidegate.yaml"), Version: version, Logger: log})
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- ag.Run(run) }()
	held, err := d.play(ctx, ag, outage)
	stop()
	if e := <-done; err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if keep {
		fmt.Fprintf(a.err, "kept %s\n", dir)
	}
	return d.verdict(ag.Snapshot(), held, outage)
}

// say prints one line with the time since the start.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.a.out, "t+%02ds    %s\n", int(time.Since(d.start).Seconds()), fmt.Sprintf(format, args...))
}

// play lets the time pass: calm, outage, calm. It returns how many readings
// waited when the uplink came back.
func (d *demo) play(ctx context.Context, ag *agent.Agent, outage time.Duration) (held int64, err error) {
	wait := func(t time.Duration) bool {
		select {
		case <-ctx.Done():
			err = exit(exitInterrupted)
			return false
		case <-time.After(t):
			return true
		}
	}
	if !wait(calmBefore) {
		return 0, err
	}
	s := ag.Snapshot()
	d.say("uplink %s, %d messages acknowledged, %d bytes written to disk since start", s.Uplink.State, s.Uplink.Acked, s.Buffer.BytesWritten)
	if outage > 0 {
		d.broker.Cut()
		d.say("uplink cut for %v", outage)
		if !wait(outage) {
			return 0, err
		}
		held = ag.Snapshot().Buffer.Records
		if err := d.broker.Restore(); err != nil {
			return 0, err
		}
		d.say("uplink back, %d readings waited (nothing lost)", held)
	}
	if !wait(calmAfter) {
		return 0, err
	}
	s = ag.Snapshot()
	d.say("%d readings wait, the last PUBACK is %s old", s.Buffer.Records, age(s.Uplink.LastAckMS))
	for _, b := range s.Buses {
		for _, dev := range b.Devices {
			d.say("%-8s %-10s %-5s %4d polls, %d failed", b.Name, dev.Name, dev.State, dev.Polls, dev.Failed)
		}
	}
	return held, nil
}

// verdict draws up the account of the receiving side.
func (d *demo) verdict(s status.Snapshot, held int64, outage time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.book.Report()
	given := int64(s.Buffer.Seq + s.Buffer.EventSeq)
	fmt.Fprintf(d.a.out, "delivered %d of %d batches, %d lost, %d repeats dropped by number\n",
		r.Received, given, given-r.Received, r.Repeats)
	fail := func(text string) error {
		return &status.Failure{Code: "demo", What: text, Seen: r.Text(), Exit: exitFindings}
	}
	switch {
	case d.refused != nil:
		return fail("a message could not be read: " + d.refused.Error())
	case given == 0:
		return fail("the agent made no batch")
	case r.Verdict != account.Complete || r.Received != given:
		return fail("the account is not complete")
	case outage > 0 && held == 0:
		return fail("nothing was held back during the outage: it did not happen")
	}
	for _, b := range s.Buses {
		for _, dev := range b.Devices {
			if dev.Polls == dev.Failed {
				return fail("device " + dev.Name + " never answered")
			}
		}
	}
	return nil
}

func (d *demo) heard(topic string, payload []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.book.Add(topic, payload); err != nil && d.refused == nil {
		d.refused = err
	}
	if strings.HasSuffix(topic, "/up") && d.shown < 2 {
		d.shown++
		fmt.Fprintf(d.a.out, "cloud <- %s %.200s...\n", topic, payload)
	}
}

func (d *demo) close() {
	d.cancel()
	d.wg.Wait()
	if d.broker != nil {
		d.broker.Close()
	}
}

// demoBuses is the configuration of the demo's devices; %s are places.
const demoBuses = `gateway: {id: demo, site: demo}
buses:
  meters:
    connect: rtu://%s
    line: 19200 8N1
    devices:
      main:   {profile: eastron-sdm630, unit: 1, every: 1s}
      flat-2: {profile: eastron-sdm120, unit: 2, every: 1s}
      room:   {profile: xy-md02, unit: 3, every: 2s}
      doors:  {profile: wellpro-wp8026adam, unit: 4, every: 1s}
  plant:
    connect: tcp://%s
    devices:
      feeder-a: {profile: carlo-gavazzi-em340, unit: 1, every: 500ms}
      feeder-b: {profile: carlo-gavazzi-em340, unit: 2, every: 500ms}
  air:
    connect: serial://%s
    line: 9600 8N1
    devices:
      roof: {profile: plantower-pms5003}
buffer: {dir: %s}
uplink:
  url: %s
  identity: %s
  keepalive: 5s
status: {socket: %s}
`

// build starts broker and devices and returns the agent's configuration.
func (d *demo) build(ctx context.Context) (*config.Config, error) {
	broker, err := sim.NewBroker(sim.BrokerOptions{OnPublish: d.heard})
	if err != nil {
		return nil, err
	}
	d.broker = broker
	pki := filepath.Join(d.dir, "pki")
	if err := broker.CA().WriteIdentity(pki, "demo"); err != nil {
		return nil, err
	}
	lib, err := profile.Load()
	if err != nil {
		return nil, err
	}
	meters, err := d.serveRTU(ctx, lib, map[byte]string{1: "eastron-sdm630", 2: "eastron-sdm120", 3: "xy-md02", 4: "wellpro-wp8026adam"})
	if err != nil {
		return nil, err
	}
	plant, err := d.serveTCP(ctx, lib, map[byte]string{1: "carlo-gavazzi-em340", 2: "carlo-gavazzi-em340"})
	if err != nil {
		return nil, err
	}
	air, err := d.talk(ctx, lib, "plantower-pms5003")
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf(demoBuses, meters, plant, air, filepath.Join(d.dir, "buffer"), broker.URL(), pki, filepath.Join(d.dir, "agent.sock"))
	file := filepath.Join(d.dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cfg, problems, err := config.Load(file)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		report, _ := config.Report(file, problems, nil)
		return nil, errors.New("the demo's own configuration is wrong:\n" + report)
	}
	fmt.Fprintf(d.a.out, "broker   %s (throw-away CA, client certificates demanded)\n", broker.URL())
	fmt.Fprintf(d.a.out, "devices  4 on %s, 2 on %s, 1 talking on %s\n", meters, plant, air)
	return cfg, nil
}

// slave makes a Modbus slave with a meter for each unit.
func slave(lib *profile.Library, units map[byte]string) (*sim.Slave, error) {
	s := sim.NewSlave()
	for unit, name := range units {
		p, err := lib.Get(name)
		if err != nil {
			return nil, err
		}
		m, err := sim.NewMeter(p, uint64(unit), time.Now())
		if err != nil {
			return nil, err
		}
		if err := m.Fill(s.Unit(unit)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (d *demo) serveRTU(ctx context.Context, lib *profile.Library, units map[byte]string) (path string, err error) {
	s, err := slave(lib, units)
	if err != nil {
		return "", err
	}
	master, path, err := sim.OpenPTY()
	if err != nil {
		return "", err
	}
	s.SetTurnaround(5 * time.Millisecond)
	d.wg.Go(func() {
		defer master.Close()
		s.ServeRTU(ctx, master, sim.Wire{Baud: 19200})
	})
	return path, nil
}

func (d *demo) serveTCP(ctx context.Context, lib *profile.Library, units map[byte]string) (addr string, err error) {
	s, err := slave(lib, units)
	if err != nil {
		return "", err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	d.wg.Go(func() { s.ServeTCP(ctx, ln) })
	return ln.Addr().String(), nil
}

// talk replays the recorded frames of a profile once a second.
func (d *demo) talk(ctx context.Context, lib *profile.Library, name string) (path string, err error) {
	p, err := lib.Get(name)
	if err != nil {
		return "", err
	}
	t := &sim.Talker{Every: time.Second, Wire: sim.Wire{Baud: 9600}}
	for _, e := range p.Examples {
		if len(e.Frame) > 0 && !e.Reject {
			t.Frames = append(t.Frames, e.Frame)
		}
	}
	master, path, err := sim.OpenPTY()
	if err != nil {
		return "", err
	}
	d.wg.Go(func() {
		defer master.Close()
		t.Serve(ctx, master)
	})
	return path, nil
}
