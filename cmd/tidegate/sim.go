package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tidegate/driver"
	"tidegate/driver/mbus"
	"tidegate/driver/profile"
	"tidegate/internal/sim"
)

type simFlags struct {
	at         string
	lines      []string // with @UNIT: of one meter
	faults     []string
	set        []string
	turnaround time.Duration
	seed       uint64
	forTime    time.Duration
}

func (a *app) simCmd() *cobra.Command {
	var f simFlags
	c := &cobra.Command{
		Use:   "sim PROFILE[@UNIT]... --at PLACE",
		Short: "devices that do not exist, from their profiles",
		Long: `Is one device or several of the library, or of files of your own, for tries
without hardware: registers hold values that drift within their range, and can
be written; serial devices talk or answer. Meters on an M-Bus share a line: UNIT
is the primary address, or the 8 or 16 digits of the secondary one. PLACE is
  rtu:PATH, ascii:PATH, serial:PATH    a serial line: a pty is made and PATH is
                     a link to it; an existing port is used as it is
  tcp:HOST:PORT, rtu+tcp:HOST:PORT, serial+tcp:HOST:PORT
--line 9600 8E1 paces the bytes as that line would; on a pty, who asks at
another setting is not understood. --line '300 8E1@5' is for the meter with
this address on an M-Bus alone. --fault KIND[:VALUE][:SHARE][@UNIT] makes
answers go wrong: silent, late:300ms, garble:0.01, exception:2, noise, short,
split, echo, doubled, other-unit, other-function, other-count, wrong-id,
hangup; primary-only@UNIT is of a meter that answers to nothing else than its
primary address. It runs until it is stopped.`,
		Args: atLeast(1, 247, "one or more profiles"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.sim(cmd.Context(), args, &f) },
	}
	c.Flags().StringVar(&f.at, "at", "", "`PLACE` where the devices are, such as rtu:/tmp/meters or tcp:127.0.0.1:1502")
	c.Flags().StringArrayVar(&f.faults, "fault", nil, "what goes wrong, `FAULT` such as late:300ms or garble:0.01@7")
	c.Flags().StringArrayVar(&f.set, "set", nil, "keep a point at a value, `POINT=VALUE` or POINT@UNIT=VALUE")
	c.Flags().StringArrayVar(&f.lines, "line", nil, "`SETTING` of the line, such as \"9600 8N1\", or of a meter: \"300 8E1@5\" (default: bytes are not paced)")
	c.Flags().DurationVar(&f.turnaround, "turnaround", 0, "how long a unit thinks before each answer")
	c.Flags().Uint64Var(&f.seed, "seed", 1, "other values and other faults")
	c.Flags().DurationVar(&f.forTime, "for", 0, "end after this `TIME`")
	return c
}

// simUnit is one device of a simulation, as --json tells it.
type simUnit struct {
	Unit    int    `json:"unit"`
	Profile string `json:"profile"`
	Address string `json:"address,omitempty"` // of a meter on an M-Bus
	p       *profile.Profile
}

// simulation is what answers at a place.
type simulation struct {
	units []simUnit
	slave *sim.Slave    // of Modbus devices
	voice *sim.Voice    // of a serial device
	bus   *sim.MeterBus // of meters
	wire  sim.Wire
	ascii bool
}

func (a *app) sim(ctx context.Context, args []string, f *simFlags) error {
	if _, err := netip.ParseAddrPort(f.at); err == nil {
		f.at = "tcp:" + f.at
	}
	scheme, place, ok := strings.Cut(f.at, ":")
	place = strings.TrimPrefix(place, "//")
	if !ok || place == "" {
		return usage{errors.New("--at says where the devices are: --at rtu:/tmp/meters, or --at tcp:127.0.0.1:1502")}
	}
	s, err := a.simulate(args, f)
	if err != nil {
		return err
	}
	s.ascii = scheme == "ascii"
	if serial := strings.HasPrefix(scheme, "serial"); serial != (s.slave == nil) {
		return usage{fmt.Errorf("%s does not fit --at %s:", s.units[0].Profile, scheme)}
	}
	if f.forTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.forTime)
		defer cancel()
	}
	switch scheme {
	case "rtu", "ascii", "serial":
		return a.simOnLine(ctx, s, place, f)
	case "tcp", "rtu+tcp", "serial+tcp":
		if _, _, err := net.SplitHostPort(place); err != nil {
			return usage{fmt.Errorf("--at %s names no port: write %s:HOST:PORT", f.at, scheme)}
		}
		ln, err := net.Listen("tcp", place)
		if err != nil {
			return err
		}
		defer ln.Close()
		a.simReady(s, scheme+":"+ln.Addr().String(), "")
		switch scheme {
		case "tcp":
			return s.slave.ServeTCP(ctx, ln)
		case "rtu+tcp":
			return s.slave.ServeRTUOverTCP(ctx, ln, s.wire)
		}
		return s.talks().ServeTCP(ctx, ln)
	}
	return usage{fmt.Errorf("--at %s: begins with none of rtu:, ascii:, serial:, tcp:, rtu+tcp:, serial+tcp:", f.at)}
}

// talks is what serves a serial line that is no Modbus line.
func (s *simulation) talks() interface {
	Serve(context.Context, io.ReadWriter) error
	ServeTCP(context.Context, net.Listener) error
} {
	if s.bus != nil {
		return s.bus
	}
	return s.voice
}

// simulate builds the devices.
func (a *app) simulate(args []string, f *simFlags) (*simulation, error) {
	lib, err := a.library()
	if err != nil {
		return nil, err
	}
	s := &simulation{}
	taken := map[int]bool{}
	for _, arg := range args {
		name, unit, given := strings.Cut(arg, "@")
		p, err := a.profileNamed(lib, name)
		if err != nil {
			return nil, err
		}
		n := max(p.Unit, 1)
		address := ""
		if given && p.MBus() && len(unit) >= 8 {
			address, n = unit, 0
		} else if given {
			if n, err = strconv.Atoi(unit); err != nil || n < 0 || n > 255 {
				return nil, usage{fmt.Errorf("%s: %q is no unit of 0 to 255", arg, unit)}
			}
		}
		for ; taken[n] && !given && n < 247; n++ {
		}
		if taken[n] && !(given && p.MBus()) { // meters come with equal ones
			return nil, usage{fmt.Errorf("%s: unit %d is taken", arg, n)}
		}
		taken[n] = address == ""
		s.units = append(s.units, simUnit{n, p.Name, address, p})
	}
	own := map[string]sim.Wire{} // by unit
	for _, text := range f.lines {
		setting, unit, one := strings.Cut(text, "@")
		w, err := wireOf(setting)
		if err != nil {
			return nil, usage{err}
		}
		if !one {
			s.wire = w
			continue
		}
		if !s.units[0].p.MBus() {
			return nil, usage{fmt.Errorf("--line %s: only meters on an M-Bus have a speed each", text)}
		}
		own[unit] = w
	}
	var rules []sim.Rule
	alone := map[int]bool{} // meters that answer to their primary addresses alone; 0: all
	for _, text := range f.faults {
		r, err := sim.ParseRule(text)
		if err != nil {
			return nil, usage{err}
		}
		if r.Kind == sim.PrimaryOnly {
			if alone[r.Unit] = true; !s.units[0].p.MBus() {
				return nil, usage{fmt.Errorf("--fault %s: only meters on an M-Bus have two addresses", text)}
			}
			continue
		}
		rules = append(rules, r)
	}
	plan := sim.Rules(f.seed, rules...)
	if s.units[0].p.MBus() {
		return s, s.meters(f, plan, own, alone)
	}
	if s.units[0].p.Transport == "serial" {
		if len(s.units) > 1 {
			return nil, usage{errors.New("a serial device has its line to itself: name one profile")}
		}
		u := s.units[0]
		if s.voice, err = sim.NewVoice(u.p, u.Unit, f.seed); err != nil {
			return nil, usage{err}
		}
		s.voice.Wire, s.voice.Plan = s.wire, plan
		return s, s.hold(f.set, map[int]func(point, value string) error{u.Unit: s.voice.Hold})
	}
	s.slave = sim.NewSlave()
	s.slave.SetPlan(plan)
	s.slave.SetTurnaround(f.turnaround)
	holds := map[int]func(point, value string) error{}
	var meters []*sim.Meter
	for _, u := range s.units {
		if u.p.Transport == "serial" {
			return nil, usage{fmt.Errorf("%s is no Modbus device: simulate it by itself", u.Profile)}
		}
		m, err := sim.NewMeter(u.p, f.seed+uint64(u.Unit), time.Now())
		if err != nil {
			return nil, err
		}
		holds[u.Unit], meters = m.Hold, append(meters, m)
	}
	if err := s.hold(f.set, holds); err != nil {
		return nil, err
	}
	for i, m := range meters {
		if err := m.Fill(s.slave.Unit(byte(s.units[i].Unit))); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// meters puts meters on an M-Bus.
func (s *simulation) meters(f *simFlags, plan sim.Plan, own map[string]sim.Wire, alone map[int]bool) error {
	s.bus = &sim.MeterBus{Wire: s.wire, Plan: plan}
	holds := map[int]func(point, value string) error{}
	for i := range s.units {
		u := &s.units[i]
		if u.Unit > mbus.MaxUnit {
			return usage{fmt.Errorf("%s: the primary addresses of an M-Bus are 0 to %d", u.Profile, mbus.MaxUnit)}
		}
		m, err := s.bus.Add(u.p, u.Unit, u.Address, f.seed+uint64(i), time.Now())
		if err != nil {
			return usage{err}
		}
		for _, name := range []string{strconv.Itoa(u.Unit), u.Address} {
			if w, ok := own[name]; ok && (name == u.Address || u.Address == "") {
				m.Wire = w
				delete(own, name)
			}
		}
		u.Address, m.PrimaryOnly = m.Address, alone[0] || alone[u.Unit]
		next := holds[u.Unit]
		holds[u.Unit] = func(point, value string) error {
			err := m.Hold(point, value)
			if next != nil && next(point, value) == nil { // several meters may have one unit
				return nil
			}
			return err
		}
	}
	for unit := range own {
		return usage{fmt.Errorf("--line ...@%s: there is no unit %s", unit, unit)}
	}
	return s.hold(f.set, holds)
}

// wireOf is a line with a setting such as 9600 8E1.
func wireOf(setting string) (w sim.Wire, err error) {
	if err := driver.CheckLine(setting); err != nil {
		return w, err
	}
	w.Only = strings.ToUpper(setting)
	baud, format, _ := strings.Cut(w.Only, " ")
	w.Baud, _ = strconv.Atoi(baud) // CheckLine has read it
	if w.CharBits = 1 + int(format[0]-'0') + int(format[2]-'0'); format[1] != 'N' {
		w.CharBits++
	}
	return w, nil
}

// hold keeps points at values: POINT=VALUE for every device that has it,
// POINT@UNIT=VALUE for one.
func (s *simulation) hold(set []string, holds map[int]func(point, value string) error) error {
	for _, text := range set {
		point, value, ok := strings.Cut(text, "=")
		if !ok {
			return usage{fmt.Errorf("--set %s: write POINT=VALUE", text)}
		}
		point, unit, one := strings.Cut(point, "@")
		done := false
		var last error
		for n, hold := range holds {
			if one && unit != strconv.Itoa(n) {
				continue
			}
			if err := hold(point, value); err != nil {
				last = err
			} else {
				done = true
			}
		}
		switch {
		case done:
		case last != nil:
			return usage{fmt.Errorf("--set %s: %w", text, last)}
		default:
			return usage{fmt.Errorf("--set %s: there is no unit %s", text, unit)}
		}
	}
	return nil
}

// simOnLine serves on a port that is there, or on a pty with a link to it.
func (a *app) simOnLine(ctx context.Context, s *simulation, path string, f *simFlags) error {
	var port io.ReadWriter
	shown := ""
	if fi, err := os.Stat(path); err == nil {
		if fi.Mode()&fs.ModeCharDevice == 0 {
			return usage{fmt.Errorf("--at: %s is a file, and neither a port nor free for a link", path)}
		}
		line := s.wire.Only
		if line == "" {
			if line = s.units[0].p.Line; line == "" {
				line = "9600 8N1"
			}
		}
		file, err := sim.OpenPort(path, line)
		if err != nil {
			return err
		}
		defer file.Close()
		s.wire.Only, port = "", file
	} else {
		master, slave, err := sim.OpenPTY()
		if err != nil {
			return err
		}
		defer master.Close()
		if old, err := os.Readlink(path); err == nil && strings.HasPrefix(old, "/dev/pts/") {
			os.Remove(path) // left behind by one that was killed
		}
		if err := os.Symlink(slave, path); err != nil {
			return err
		}
		defer os.Remove(path)
		port, shown = master, slave
	}
	a.simReady(s, path, shown)
	var err error
	switch {
	case s.slave == nil:
		err = s.talks().Serve(ctx, port)
	case s.ascii:
		err = s.slave.ServeASCII(ctx, port, s.wire)
	default:
		err = s.slave.ServeRTU(ctx, port, s.wire)
	}
	if errors.Is(err, syscall.EIO) {
		return fmt.Errorf("the port %s has gone: %w", path, err)
	}
	return err
}

// simReady says that the devices are there.
func (a *app) simReady(s *simulation, place, pty string) {
	if a.json {
		printJSON(a.out, struct {
			Schema string    `json:"schema"`
			At     string    `json:"at"`
			PTY    string    `json:"pty,omitempty"`
			Units  []simUnit `json:"units"`
		}{"tidegate.sim/1", place, pty, s.units})
		return
	}
	if pty != "" {
		pty = " (" + pty + ")"
	}
	fmt.Fprintf(a.out, "at %s%s\n", place, pty)
	rows := [][]string{}
	for _, u := range s.units {
		what := ""
		if s.voice != nil {
			what = "talks by itself"
			if s.voice.Asked() {
				what = "answers when it is asked"
			}
			if s.voice.Replays() {
				what += ", with recorded frames"
			}
			rows = append(rows, []string{"  " + u.Profile, what})
			continue
		}
		rows = append(rows, []string{fmt.Sprintf("  unit %d", u.Unit), u.Profile, u.Address})
	}
	table(a.out, rows)
}
