package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/driver"
	"tidegate/internal/agent"
	"tidegate/internal/status"
)

type scanFlags struct {
	bauds    string
	modes    string
	ids      string
	timeout  time.Duration
	fast     bool
	deep     bool
	identify bool
	mbus     bool
	config   int // how often --config stands alone
	pause    time.Duration
}

// scanTargets is how many hosts and ports one scan takes: it is no search of
// a network.
const scanTargets = 256

func (a *app) scanCmd() *cobra.Command {
	var f scanFlags
	c := &cobra.Command{
		Use:   "scan [TARGET...]",
		Short: "what is there: ports, line settings, units, device models",
		Long: `Without a target it lists the serial ports and sends nothing. TARGET is
  a port            /dev/ttyUSB0, rtu:/dev/serial/by-id/... or ascii:/dev/...
  a network device  tcp:10.0.0.20, 10.0.0.20:502 or rtu+tcp:10.0.0.21:4001
  a bus             meters, of the configuration

A port is listened to for 2 s, then the usual line settings are tried with
the likely units until one answers, all units are asked at that setting, and
what answers is compared with the device profiles. A network device is asked
as unit 1, 255 and 0, then as --ids. Only reads are sent, each to one unit. A
profile is named when two or more reads fit and nothing else explains them;
profiles that nothing parts are listed together.

With --mbus all meters are called at 2400, 300 and 9600 baud (8E1); at each
speed where one answers, the primary addresses are asked, then the secondary
ones are found digit for digit. A meter may not answer to such a call: the
primary addresses are asked at the other speeds, too, except where that takes
more than two minutes, which is said. Meters are initialised, selected and
asked, never set.

While the agent has the port, it does the scan: its polls of that bus pause,
for --pause at most, and go on when the scan ends or is broken off. Ctrl-C
tells what was found until then and what was under way.
--config alone prints what was found as YAML for tidegate.yaml.
Exit code 0 something found, 1 nothing, 75 the port is in use, 130 Ctrl-C.`,
		Args: atLeast(0, scanTargets, "ports, addresses or buses"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.scan(cmd.Context(), a.configAmong(args, &f.config), &f)
		},
	}
	c.Flags().StringVar(&f.bauds, "baud", "", "speeds to try, `LIST` such as 9600,19200 (default: the usual 18 settings)")
	c.Flags().StringVar(&f.modes, "mode", "", "formats to try, `LIST` such as 8N1,8E1")
	c.Flags().StringVar(&f.ids, "ids", "", "units to ask, `LIST` such as 1-247 or 1,5,10-20")
	c.Flags().DurationVar(&f.timeout, "timeout", 0, "how long a unit may take to begin its answer (default 100ms, network 500ms)")
	c.Flags().BoolVar(&f.fast, "fast", false, "only units 1 to 16 and those that profiles come with")
	c.Flags().BoolVar(&f.deep, "deep", false, "all units at all settings, unusual ones too (minutes)")
	c.Flags().BoolVar(&f.identify, "identify", false, "also ask for the identification (functions 43/14 and 17)")
	c.Flags().BoolVar(&f.mbus, "mbus", false, "look for meters on an M-Bus: addresses 0 to 250, and secondary ones")
	c.Flags().VarP(&blockOrFile{a: a, block: &f.config}, "config", "c", "alone: print the block for tidegate.yaml; with a `FILE`: the configuration")
	c.Flags().Lookup("config").NoOptDefVal = "true"
	c.Flags().DurationVar(&f.pause, "pause", 2*time.Minute, "longest pause of the running agent's polls")
	return c
}

// scanResult is what `scan TARGET --json` prints, one for each target.
type scanResult struct {
	Schema string `json:"schema"`
	*status.Scan
	Via string `json:"via"` // agent or direct
}

func (a *app) scan(ctx context.Context, targets []string, f *scanFlags) error {
	q := status.ScanRequest{TimeoutMS: f.timeout.Milliseconds(), Fast: f.fast, Deep: f.deep, Identify: f.identify, MBus: f.mbus, PauseMS: f.pause.Milliseconds()}
	var err error
	if q.IDs, err = parseIDs(f.ids); err != nil {
		return err
	}
	if q.Lines, err = scanLines(f.bauds, f.modes, f.mbus); err != nil {
		return err
	}
	if len(targets) == 0 {
		return a.scanPorts()
	}
	if f.timeout != 0 && (f.timeout < 10*time.Millisecond || f.timeout > time.Minute) {
		return usage{fmt.Errorf("--timeout %v is outside 10ms..1m", f.timeout)}
	}
	var block configBlock
	found, w := false, a.out
	if f.config > 0 {
		w = a.err
	}
	var last error
	for i, t := range targets {
		r, via, err := a.scanOne(ctx, t, q)
		if r != nil {
			found = found || len(r.Units)+len(r.Talkers) > 0
			block.add(r)
			if a.json {
				printJSON(a.out, scanResult{"tidegate.scan/1", r, via})
			} else if printScan(w, t, r); r.Interrupted != nil {
				s := r.Interrupted
				fmt.Fprintln(w, status.Wrap(fmt.Sprintf("%s: interrupted at %q, %d of %d done: there may be more", t, s.Text, s.Done, s.Of), 80, "  "))
			}
		}
		if ctx.Err() != nil {
			if rest := targets[i+1:]; len(rest) > 0 {
				fmt.Fprintln(a.err, "not scanned: "+strings.Join(rest, " "))
			}
			break
		}
		var e exit
		if errors.As(err, &e) {
			return err
		}
		if err != nil {
			if len(targets) > 1 {
				a.report(err, "tidegate scan")
			}
			last = err
		}
	}
	if f.config > 0 && !a.json && (found || ctx.Err() == nil) {
		fmt.Fprint(a.out, block.text())
	}
	switch {
	case ctx.Err() != nil:
		return exit(exitInterrupted)
	case last != nil && len(targets) == 1:
		return last
	case !found:
		return exit(exitFindings)
	}
	return nil
}

// scanOne scans a target through the agent if it has it, else directly.
func (a *app) scanOne(ctx context.Context, target string, q status.ScanRequest) (r *status.Scan, via string, err error) {
	connect, raw := address(target)
	if !raw && strings.Contains(target, "/") && !strings.Contains(target, ":") { // no bus has such a name
		connect, raw = address("./" + target)
	}
	p := &progress{w: a.err, live: a.liveStderr(), began: time.Now()}
	var found *status.Scan // until now
	tell := func(e status.ScanEvent) {
		p.show(e)
		if e.Found != nil {
			found = e.Found
		}
		if e.Result != nil {
			r = e.Result
		}
	}
	defer func() {
		p.end()
		if r == nil && found != nil && p.step.Of > 0 {
			r, found.Interrupted = found, &p.step
		}
	}()
	bus, err := a.busOf(ctx, target, connect)
	switch {
	case err != nil:
		return nil, "", err
	case bus != "":
		q.Bus = bus
		p.note(fmt.Sprintf("through the agent: polling of %s pauses", bus))
		err = a.client().Scan(ctx, q, tell)
		return r, "agent", err
	}
	if raw {
		lib, err := a.library()
		if err != nil {
			return nil, "", err
		}
		err = agent.ScanAddress(ctx, connect, q, lib, tell)
		return r, "direct", err
	}
	cfg, err := a.configOf(target)
	if err != nil {
		return nil, "", err
	}
	rd, err := agent.OpenReader(cfg)
	if err != nil {
		return nil, "", err
	}
	defer rd.Close()
	lib, err := a.library()
	if err != nil {
		return nil, "", err
	}
	q.Bus = target
	err = rd.Scan(ctx, q, lib, tell)
	return r, "direct", err
}

// parseIDs reads 1-247, or 1,5,10-20.
func parseIDs(s string) ([]int, error) {
	var out []int
	for _, part := range fields(s) {
		lo, hi, span := strings.Cut(part, "-")
		if !span {
			hi = lo
		}
		a, err1 := strconv.Atoi(lo)
		b, err2 := strconv.Atoi(hi)
		if err1 != nil || err2 != nil || a > b || a < 0 || b > 255 {
			return nil, usage{fmt.Errorf("--ids %q: write 1-247, or 1,5,10-20", s)}
		}
		for ; a <= b; a++ {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// fields takes a list with commas apart.
func fields(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// scanLines makes line settings of speeds and formats; none if neither is
// given. What is not given is what devices come with: meters on an M-Bus have
// 8E1 (EN 13757-2).
func scanLines(speeds, formats string, mbus bool) ([]string, error) {
	usual := driver.UsualLines()
	allBauds, allModes := []int{9600, 19200, 38400, 57600, 115200, 4800, 2400, 1200}, []string{"8N1", "8E1", "8O1", "8N2"}
	if mbus {
		usual, allBauds, allModes = nil, []int{2400, 300, 9600}, []string{"8E1"}
	}
	var bauds []int
	for _, s := range fields(speeds) {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, usage{fmt.Errorf("--baud %q: write speeds such as 9600,19200", speeds)}
		}
		bauds = append(bauds, n)
	}
	modes := fields(formats)
	if len(bauds) == 0 && len(modes) == 0 {
		return nil, nil
	}
	var out []string
	for _, line := range usual { // likely ones first
		baud, mode, _ := strings.Cut(line, " ")
		n, _ := strconv.Atoi(baud)
		if (len(bauds) == 0 || slices.Contains(bauds, n)) && (len(modes) == 0 || slices.ContainsFunc(modes, func(m string) bool { return strings.EqualFold(m, mode) })) {
			out = append(out, line)
		}
	}
	if len(bauds) == 0 {
		bauds = allBauds
	}
	if len(modes) == 0 {
		modes = allModes
	}
	for _, b := range bauds {
		for _, m := range modes {
			if s := fmt.Sprintf("%d %s", b, strings.ToUpper(m)); !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	if err := driver.CheckLine(out...); err != nil {
		return nil, usage{err}
	}
	return out, nil
}

// portInfo is one port in `scan --json`.
type portInfo struct {
	driver.Port
	Mine    string `json:"rights"`         // yes, or why not
	Service string `json:"service_rights"` // of the user tidegate
	Holder  string `json:"holder,omitempty"`
}

// serviceUser is who the packages run the agent as.
const serviceUser = "tidegate"

func (a *app) scanPorts() error {
	ports, err := driver.Ports()
	if err != nil {
		return err
	}
	infos := make([]portInfo, 0, len(ports))
	for _, p := range ports {
		infos = append(infos, portInfo{p, p.Rights(""), p.Rights(serviceUser), p.Holder()})
	}
	if a.json {
		printJSON(a.out, struct {
			Schema string     `json:"schema"`
			Ports  []portInfo `json:"ports"`
		}{"tidegate.scan/1", infos})
	} else {
		for _, p := range infos {
			what := strings.TrimSpace(p.Driver + "  " + p.Vendor)
			fmt.Fprintln(a.out, status.Wrap(p.Path+"  "+what, 80, "    "))
			rows := [][]string{}
			if p.ByID != "" {
				rows = append(rows, []string{"  name", p.ByID})
			}
			if p.ByPath != "" && p.Serial == "" { // equal adapters without a number share the name
				rows = append(rows, []string{"  socket", p.ByPath})
			}
			rows = append(rows, []string{"  group", p.Group}, []string{"  you", p.Mine}, []string{"  " + serviceUser, p.Service})
			if p.Holder != "" {
				rows = append(rows, []string{"  in use", p.Holder})
			}
			table(a.out, rows)
		}
	}
	if len(infos) == 0 {
		if !a.json {
			fmt.Fprintln(a.err, "this machine has no serial ports")
		}
		return exit(exitFindings)
	}
	return nil
}

// liveStderr tells whether progress can be redrawn.
func (a *app) liveStderr() bool {
	f, ok := a.err.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// blockOrFile is the flag --config of scan: alone it asks for the block to
// paste, with a file it names the configuration as everywhere else.
type blockOrFile struct {
	a     *app
	block *int
}

func (b *blockOrFile) String() string { return "" }
func (b *blockOrFile) Type() string   { return "bool" }
func (b *blockOrFile) Set(s string) error {
	if s == "true" {
		*b.block++
	} else {
		b.a.configFile = s
	}
	return nil
}

// configAmong finds the file of "--config FILE" among the targets, where the
// flag left it: no target is a regular file.
func (a *app) configAmong(args []string, block *int) (targets []string) {
	for _, arg := range args {
		if fi, err := os.Stat(arg); *block > 0 && a.configFile == "" && err == nil && fi.Mode().IsRegular() {
			a.configFile = arg
			*block--
			continue
		}
		targets = append(targets, arg)
	}
	return targets
}
