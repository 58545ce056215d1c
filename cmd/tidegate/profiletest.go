package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/agent"
	"tidegate/internal/capture"
	"tidegate/internal/status"
	"tidegate/internal/telemetry"
)

type profileTestFlags struct {
	against string
	all     bool
	read    readFlags
}

func (a *app) profileTestCmd() *cobra.Command {
	var f profileTestFlags
	c := &cobra.Command{
		Use:   "test [NAME|FILE...] | NAME|FILE TARGET [--unit N]",
		Short: "try profiles: on their examples, on a device, on a capture",
		Long: `Decodes the examples of the named profiles, of files of your own (NAME.yaml),
or of the whole library, and compares each value.

With a TARGET it tries a profile on a device: each point is read once and
printed with its plausible range. TARGET is a device or a bus of the
configuration, or an address such as /dev/ttyUSB0 or tcp:10.0.0.20:502. Points
that the device does not have are listed and are no failure; a value outside its
range is one, and so is a device without values.

--against CAPTURE decodes a recording with the profile. Exit code 1 when
something differs or fails.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case f.against != "" && len(args) == 1:
				return a.profileAgainst(args[0], f.against, max(f.read.unit, 0))
			case f.against != "" || f.all && len(args) > 0:
				return usage{errors.New("name one profile, for example: tidegate profile test xy-md02 --against site7.tgcap")}
			case len(args) == 2 && a.isTarget(args[1]):
				return a.profileTry(c.Context(), args[0], args[1], &f.read)
			}
			return a.profileTest(args)
		},
	}
	c.Flags().StringVar(&f.against, "against", "", "decode this `CAPTURE` with the profile")
	c.Flags().BoolVar(&f.all, "all", false, "the examples of the whole library, as without a name")
	c.Flags().IntVarP(&f.read.unit, "unit", "u", -1, "unit id of the device; the profile's if not given")
	c.Flags().IntVar(&f.read.baud, "baud", 0, "speed of a serial line given as an address; the profile's if not given")
	c.Flags().StringVar(&f.read.mode, "mode", "8N1", "`FORMAT` of its characters, with --baud")
	c.Flags().DurationVar(&f.read.timeout, "timeout", 0, "how long the device may take")
	tlsFlags(c, &f.read.tls)
	return c
}

func (a *app) profileTest(names []string) error {
	lib, err := a.library()
	if err != nil {
		return err
	}
	if len(names) == 0 {
		names = lib.Names()
	}
	passed, failed, unverified := 0, 0, 0
	for _, name := range names {
		p, err := a.profileNamed(lib, name)
		if err != nil {
			return err
		}
		if isFile(name) && !a.json {
			for _, s := range p.Unusual() {
				fmt.Fprintf(a.out, "%-24s note  %s\n", p.Name, s)
			}
		}
		results := p.Test()
		if len(results) == 0 {
			unverified++
			if !a.json {
				fmt.Fprintf(a.out, "%-24s unverified: no example\n", p.Name)
			}
		}
		good := 0
		for _, r := range results {
			if r.OK() {
				good++
			} else if !a.json {
				fmt.Fprintf(a.out, "%-24s FAIL  %s\n    %s\n", p.Name, r.Name, strings.Join(r.Failures, "\n    "))
			}
		}
		passed, failed = passed+good, failed+len(results)-good
		if a.json {
			printJSON(a.out, struct {
				Schema string           `json:"schema"`
				Name   string           `json:"name"`
				Passed int              `json:"passed"`
				Failed int              `json:"failed"`
				Result []profile.Result `json:"results"`
			}{"tidegate.profile-test/1", p.Name, good, len(results) - good, results})
		} else if good > 0 {
			fmt.Fprintf(a.out, "%-24s ok    %d examples\n", p.Name, good)
		}
	}
	if !a.json {
		fmt.Fprintf(a.out, "%d examples passed, %d failed, %d profiles unverified\n", passed, failed, unverified)
	}
	if failed > 0 {
		return exit(exitFindings)
	}
	return nil
}

// isTarget says whether a word is a device, a bus or an address, and not the
// name of a profile.
func (a *app) isTarget(word string) bool {
	if _, ok := address(word); ok {
		return true
	}
	lib, err := a.library()
	return err == nil && !isFile(word) && !slices.Contains(lib.Names(), word)
}

// profileAgainst decodes a capture with a profile.
func (a *app) profileAgainst(name, file string, unit int) error {
	lib, err := a.library()
	if err != nil {
		return err
	}
	p, err := a.profileNamed(lib, name)
	if err != nil {
		return err
	}
	h, events, err := a.openCapture(file)
	if err != nil {
		return err
	}
	good, bad, refused := 0, 0, 0
	for _, t := range capture.Against(&h, events, p, unit) {
		at, text := t.At.Local().Format("15:04:05.000"), t.Readings
		switch {
		case errors.Is(t.Err, profile.ErrRefused): // the device's word, and no fault of the profile
			text = t.Err.Error()
			refused++
		case t.Err != nil:
			text = t.Err.Error()
			bad++
		default:
			good++
		}
		if a.json {
			printJSON(a.out, struct {
				Schema   string `json:"schema"`
				At       string `json:"at"`
				Readings string `json:"readings,omitempty"`
				Error    string `json:"error,omitempty"`
			}{"tidegate.profile-against/1", t.At.UTC().Format(time.RFC3339Nano), t.Readings, errText(t.Err)})
		} else {
			fmt.Fprintf(a.out, "%s  %s\n", at, text)
		}
	}
	if !a.json {
		fmt.Fprintf(a.out, "%d answers decoded, %d failed, %d refused\n", good, bad, refused)
	}
	if good == 0 || bad > 0 {
		return exit(exitFindings)
	}
	return nil
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// triedPoint is one point of `profile test NAME TARGET`.
type triedPoint struct {
	Schema  string `json:"schema"`
	Point   string `json:"point"`
	Value   string `json:"value,omitempty"`
	Unit    string `json:"unit,omitempty"`
	Quality string `json:"quality"`
	Range   string `json:"range,omitempty"`
	Result  string `json:"result"` // pass, FAIL, absent, no value
}

// profileTry reads every point of a profile from a device.
func (a *app) profileTry(ctx context.Context, name, target string, f *readFlags) error {
	lib, err := a.library()
	if err != nil {
		return err
	}
	p, err := a.profileNamed(lib, name)
	if err != nil {
		return err
	}
	var got []telemetry.Reading
	if p.Transport == "serial" {
		got, err = a.hearOnce(ctx, p, target, f)
	} else {
		got, err = a.readAll(ctx, p, target, f)
	}
	if err != nil {
		return err
	}
	rows := [][]string{{"POINT", "VALUE", "PLAUSIBLE", "RESULT"}}
	passed, failed := 0, 0
	for i := range p.Points {
		t := judged(p, i, got)
		switch t.Result {
		case "pass":
			passed++
		case "FAIL":
			failed++
		}
		if a.json {
			printJSON(a.out, t)
			continue
		}
		value := strings.TrimSpace(t.Value + " " + t.Unit)
		if t.Value == "" {
			value = t.Quality
		}
		rows = append(rows, []string{t.Point, value, t.Range, t.Result})
	}
	if !a.json {
		table(a.out, rows)
		fmt.Fprintf(a.out, "%d of %s pass, %d failed\n", passed, count(int64(len(p.Points)), "point"), failed)
	}
	if passed == 0 || failed > 0 {
		return exit(exitFindings)
	}
	return nil
}

// judged is what is thought of the reading of point i: the last one counts.
func judged(p *profile.Profile, i int, got []telemetry.Reading) triedPoint {
	pt := &p.Points[i]
	t := triedPoint{Schema: "tidegate.profile-try/1", Point: pt.Name, Unit: pt.Unit, Quality: "nothing came", Result: "absent"}
	if len(pt.Range) == 2 {
		t.Range = pt.Range[0].String() + ".." + pt.Range[1].String()
	}
	for _, r := range got {
		if int(r.Point) != i {
			continue
		}
		t.Quality = r.Quality.String()
		if c := r.Cause.String(); c != "" {
			t.Quality += "/" + c
		}
		t.Value, t.Result = "", "no value"
		if r.Value.Kind() != telemetry.None {
			t.Value = r.Value.String()
		}
		switch {
		case r.Quality == telemetry.Good:
			t.Result = "pass"
		case r.Quality == telemetry.Range:
			t.Result = "FAIL"
		case r.Cause == telemetry.CauseIllegalAddress:
			t.Result = "absent"
		case r.Quality == telemetry.Comm:
			t.Result = "FAIL"
		}
	}
	return t
}

// readAll reads the points of a Modbus profile, block by block, and one by
// one where the device refuses a block.
func (a *app) readAll(ctx context.Context, p *profile.Profile, target string, f *readFlags) (got []telemetry.Reading, err error) {
	if f.unit < 0 {
		f.unit = p.Unit
	}
	if f.baud == 0 {
		f.baud = 9600
		if speed, mode, ok := strings.Cut(p.Line, " "); ok {
			fmt.Sscan(speed, &f.baud)
			f.mode = mode
		}
	}
	f.timeout = max(f.timeout, p.Timeout)
	ask := func(r profile.Request) error {
		q := status.ReadRequest{Bus: target, Unit: f.unit, Table: int(r.Table), Addr: int(r.Address), Count: int(r.Count)}
		reply, _, err := a.readOnce(ctx, []string{target, ""}, q, f)
		if err != nil {
			return err
		}
		data, err := hex.DecodeString(reply.Hex)
		if err != nil {
			return err
		}
		got = p.Decode(r, data, 0, got)
		return nil
	}
	for _, r := range p.Plan(profile.Limits{}) {
		err := ask(r)
		if !refused(err) {
			if err != nil {
				return got, err
			}
			continue
		}
		for _, i := range r.Points {
			one, err := p.PointRequest(i)
			if err == nil {
				err = ask(one)
			}
			switch {
			case refused(err):
				got = append(got, telemetry.Reading{Point: uint32(i), Quality: telemetry.Comm, Cause: telemetry.CauseIllegalAddress})
			case err != nil:
				return got, err
			}
		}
	}
	return got, nil
}

// refused says whether the device does not have what was asked for.
func refused(err error) bool {
	var f *status.Failure
	return errors.As(err, &f) && f.Code == "address"
}

// hearOnce runs a line with the device alone until all its points have come,
// or for two periods and ten seconds. Where the agent has the line, its newest values
// are taken.
func (a *app) hearOnce(ctx context.Context, p *profile.Profile, target string, f *readFlags) ([]telemetry.Reading, error) {
	connect, raw := address(target)
	if isPort(target) { // that these devices speak no Modbus says the profile
		connect = "serial" + strings.TrimPrefix(connect, "rtu")
	}
	if !raw {
		return nil, usage{fmt.Errorf("%s is read by the agent: tidegate read %s shows its values; for a port of its own give its address, such as serial:/dev/ttyUSB0", target, target)}
	}
	o := driver.Options{Name: target, Connect: connect, Line: p.Line, Timeout: max(f.timeout, p.Timeout),
		Devices: []driver.Device{{Name: p.Name, Profile: p.Name, Unit: max(f.unit, 0), Every: time.Second, Map: p}}}
	if f.baud > 0 {
		o.Line = fmt.Sprintf("%d %s", f.baud, strings.ToUpper(f.mode))
	}
	var bad error
	o.Validate(func(_, msg, _ string) {
		if bad == nil {
			bad = usage{errors.New(msg)}
		}
	})
	if bad != nil {
		return nil, bad
	}
	l, err := driver.Open(o, driver.Env{})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	ctx, stop := context.WithTimeout(ctx, 2*p.Every+10*time.Second)
	defer stop()
	newest := map[uint32]telemetry.Reading{}
	good := 0
	err = l.Run(ctx, func(g *telemetry.Group) {
		for _, r := range g.Readings {
			if r.Quality == telemetry.Init {
				continue
			}
			if old, ok := newest[r.Point]; r.Value.Kind() != telemetry.None && (!ok || old.Value.Kind() == telemetry.None) {
				good++
			}
			newest[r.Point] = r
		}
		if good == len(p.Points) {
			stop()
		}
	})
	if err != nil {
		return nil, agent.Explain(err)
	}
	var got []telemetry.Reading
	for _, r := range newest {
		got = append(got, r)
	}
	if s := l.Stats(); len(got) == 0 && s.Err != nil {
		return nil, agent.Explain(s.Err)
	}
	return got, nil
}
