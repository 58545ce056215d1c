package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidegate/driver"
	"tidegate/internal/status"
)

// progress shows how far a scan is: a line that is redrawn on a terminal,
// else a line every ten seconds.
type progress struct {
	w     io.Writer
	live  bool
	began time.Time
	said  time.Time
	step  status.ScanEvent
	drawn bool
}

func (p *progress) show(e status.ScanEvent) {
	if e.Of > 0 {
		p.step.Done, p.step.Of = e.Done, e.Of
		if e.Text != "" {
			p.step.Text = e.Text // what is counted from here on
		}
	}
	if e.Text != "" && (p.live || e.Done == 0 || !strings.HasPrefix(e.Text, "asking ")) {
		p.note(e.Text)
		return
	}
	if e.Of == 0 { // else one of the settings, too: a line every ten seconds is enough
		return
	}
	if p.live {
		fmt.Fprintf(p.w, "\r  [%-30s] %d/%d  %.0f s ", strings.Repeat("#", 30*e.Done/e.Of), e.Done, e.Of, time.Since(p.began).Seconds())
		p.drawn = true
		return
	}
	if now := time.Now(); now.Sub(p.said) >= 10*time.Second {
		p.said = now
		fmt.Fprintf(p.w, "%s: %d of %d after %.0f s\n", p.step.Text, e.Done, e.Of, now.Sub(p.began).Seconds())
	}
}

func (p *progress) note(text string) {
	p.end()
	fmt.Fprintln(p.w, text)
	p.said = time.Now()
}

// end leaves the line that is redrawn.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

// printScan prints what was found in 80 columns.
func printScan(w io.Writer, target string, r *status.Scan) {
	if len(r.Units)+len(r.Talkers) == 0 {
		return
	}
	rows := [][]string{}
	if len(r.Units) > 0 {
		rows = append(rows, []string{"UNIT", "REPLY", "ANSWER", "PROFILE (evidence)"})
	}
	for _, u := range r.Units {
		id := fmt.Sprint(u.ID)
		switch {
		case r.AnyID:
			id = "any"
		case u.ID < 0:
			id = "-"
		}
		what := "unknown (alive; no profile matched)"
		switch {
		case r.MBus && u.Answer == "damaged":
			what = "several meters have this address, or there is noise"
		case r.MBus && u.Profile != "":
			what = fmt.Sprintf("%s (%s)", u.Profile, strings.Join(u.Evidence, ", "))
		case u.Profile != "":
			what = fmt.Sprintf("%s (%d/%d: %s)", u.Profile, len(u.Evidence), len(u.Evidence), strings.Join(u.Evidence, ", "))
		case len(u.Ties) > 0:
			what = fmt.Sprintf("%s (%s)", strings.Join(u.Ties, " or "), strings.Join(u.Evidence, ", "))
		}
		if len(u.Rivals) > 0 {
			what += "; less likely " + strings.Join(u.Rivals, ", ")
		}
		if u.Slow {
			what += "; slow: give it timeout: 1s"
		}
		rows = append(rows, []string{id, fmt.Sprintf("%.0f ms", u.RTTMS), u.Answer, what})
		if len(u.Lines) > 0 {
			rows = append(rows, []string{"", "", "", "line: " + strings.Join(u.Lines, " or ")})
		}
		for _, k := range slices.Sorted(maps.Keys(u.Identity)) {
			rows = append(rows, []string{"", "", "", k + ": " + u.Identity[k]})
		}
	}
	table(w, rows)
	for _, t := range r.Talkers {
		text := fmt.Sprintf("talks by itself at %s: %s (%s)", t.Line, t.Profile+strings.Join(t.Ties, " or "), count(int64(t.Frames), "good frame"))
		fmt.Fprintln(w, status.Wrap(text, 80, "  "))
	}
	line, devices, others := "", 0, otherLine(r)
	for _, u := range r.Units {
		if !r.MBus || u.Answer != "damaged" {
			devices++
		}
	}
	if r.Line.Baud > 0 {
		lines := []string{fmt.Sprintf("%d %s", r.Line.Baud, r.Line.Mode)}
		for _, u := range others {
			if !slices.Contains(lines, u.Lines[0]) {
				lines = append(lines, u.Lines[0])
			}
		}
		line = " at " + strings.Join(lines, ", ")
	}
	fmt.Fprintln(w, status.Wrap(fmt.Sprintf("%s: %s%s, %.0f s, %d reads", target, count(int64(devices+len(r.Talkers)), "device"), line, r.Seconds, r.Requests), 80, "  "))
	if len(others) > 0 {
		text := fmt.Sprintf("%s at another setting than %d %s, and a bus has one: --config says what to do", count(int64(len(others)), "meter"), r.Line.Baud, r.Line.Mode)
		fmt.Fprintln(w, status.Wrap(text, 80, "  "))
	}
	if r.AnyID {
		fmt.Fprintln(w, "it answers to every unit id")
	}
	if r.Cut {
		fmt.Fprintln(w, "the time was over before the scan was: there may be more (--pause 5m)")
	}
	for _, n := range r.NotAsked {
		minutes, pause := math.Ceil(n.Seconds/60), ""
		if r.Bus != "" {
			pause = fmt.Sprintf(" --pause %.0fm", minutes+1)
		}
		baud, mode, _ := strings.Cut(n.Line, " ")
		fmt.Fprintf(w, "not each address was asked at %s, which takes %.0f min:\n  tidegate scan %s --mbus --baud %s --mode %s%s\n", n.Line, minutes, target, baud, mode, pause)
	}
	switch {
	case len(r.Units) > 0 && r.MBus:
		fmt.Fprintln(w, "for tidegate.yaml: the same with --config")
	case len(r.Units) > 0:
		fmt.Fprintln(w, status.Wrap("for tidegate.yaml: the same with --config; or look at registers:\n"+
			fmt.Sprintf("  tidegate read %s --unit %d holding:0+4 --as all%s", strings.Replace(r.Connect, "://", ":", 1), r.Units[0].ID, lineFlags(r)), 80, "      "))
	}
}

// otherLine are the meters that do not answer at the setting of the bus.
func otherLine(r *status.Scan) (out []*status.ScanUnit) {
	line := fmt.Sprintf("%d %s", r.Line.Baud, r.Line.Mode)
	for i := range r.Units {
		if u := &r.Units[i]; u.Answer != "damaged" && len(u.Lines) > 0 && !slices.Contains(u.Lines, line) {
			out = append(out, u)
		}
	}
	return out
}

// lineFlags are the flags of read for the setting that was found.
func lineFlags(r *status.Scan) string {
	if r.Line.Baud == 0 || r.Line.Baud == 9600 && r.Line.Mode == "8N1" {
		return ""
	}
	return fmt.Sprintf(" --baud %d --mode %s", r.Line.Baud, r.Line.Mode)
}

// configBlock gathers what was found as the block `buses:` of a configuration.
type configBlock struct {
	b     strings.Builder
	buses int
	names map[string]bool
}

// name makes a device name that is not taken yet.
func (c *configBlock) name(s string) string {
	if c.names == nil {
		c.names = map[string]bool{}
	}
	out := s
	for n := 2; c.names[out]; n++ {
		out = fmt.Sprintf("%s-%d", s, n)
	}
	c.names[out] = true
	return out
}

func (c *configBlock) add(r *status.Scan) {
	if len(r.Units)+len(r.Talkers) == 0 {
		return
	}
	bus := r.Bus
	if bus == "" {
		bus = "bus-" + string(rune('a'+c.buses%26))
		if c.buses >= 26 {
			bus = fmt.Sprintf("bus-%d", c.buses+1)
		}
	}
	c.buses++
	connect := stableName(r.Connect)
	if scheme, rest, _ := strings.Cut(connect, "://"); len(r.Talkers) > 0 || r.MBus {
		connect = "serial://" + rest
		if strings.HasSuffix(scheme, "tcp") {
			connect = "serial+tcp://" + rest
		}
	}
	p := func(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }
	p("  %s:", bus)
	p("    connect: %s", connect)
	if r.Line.Baud > 0 {
		p("    line: %d %s", r.Line.Baud, r.Line.Mode)
	}
	others := otherLine(r)
	for _, u := range others {
		c.elsewhere(r, u)
	}
	p("    devices:")
	for i := range r.Units {
		u := &r.Units[i]
		if r.MBus {
			if !slices.Contains(others, u) {
				c.meter(r.Units, u)
			}
			continue
		}
		name := "unit"
		if u.Profile != "" {
			name = u.Profile
		}
		p("      %s:", c.name(fmt.Sprintf("%s-%d", name, u.ID)))
		switch {
		case u.Profile != "":
			p("        profile: %s  # %s", u.Profile, strings.Join(u.Evidence, ", "))
		case len(u.Ties) > 0:
			p("        # These answer alike: %s.", strings.Join(u.Evidence, ", "))
			p("        # Keep the line of the model that is printed on the device, and remove points:")
			for _, t := range u.Ties {
				p("        # profile: %s", t)
			}
		default:
			p("        # It answers with %s; no profile matched.", u.Answer)
		}
		if u.Slow {
			p("        timeout: 1s")
		}
		p("        unit: %d", u.ID)
		if u.Profile == "" {
			p("        points: {holding_0: {holding: 0}}  # to be replaced")
		}
	}
	for _, t := range r.Talkers {
		if t.Profile != "" {
			p("      %s: {profile: %s}", c.name(t.Profile), t.Profile)
			continue
		}
		p("      %s:", c.name("talker"))
		p("        # These can read its frames. Keep the line of the model that is printed")
		p("        # on the device, and remove frames: and points:")
		for _, o := range t.Ties {
			p("        # profile: %s", o)
		}
		p("        frames: {kind: line}  # to be replaced")
		p("        points: {field_0: {field: 0}}")
	}
}

// meter adds a meter on an M-Bus: by its primary address if that is set and
// its own, else by its number.
func (c *configBlock) meter(all []status.ScanUnit, u *status.ScanUnit) {
	p := func(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }
	call := fmt.Sprintf("address: %q", u.Address)
	shared := slices.ContainsFunc(all, func(o status.ScanUnit) bool { return o.ID == u.ID && o.Address != u.Address })
	if u.ID > 0 && !shared || u.Address == "" {
		call = fmt.Sprintf("unit: %d", u.ID)
	}
	profiles := append(slices.Clone(u.Ties), u.Rivals...)
	if u.Profile != "" {
		profiles = []string{u.Profile}
	}
	if len(profiles) == 0 {
		p("      # %s: %s %s; no profile of the library fits.", call, u.Answer, u.Identity["medium"])
		return
	}
	p("      %s:", c.name(fmt.Sprintf("%s-%.8s", profiles[0], cmp.Or(u.Address, fmt.Sprint(u.ID)))))
	p("        # %s %s, %s", u.Identity["manufacturer"], u.Identity["version"], u.Identity["medium"])
	p("        profile: %s  # %s", profiles[0], strings.Join(u.Evidence, ", "))
	for _, o := range profiles[1:] {
		p("        # profile: %s", o)
	}
	p("        %s", call)
}

// elsewhere says of a meter why it is not on this bus, and what can be done.
func (c *configBlock) elsewhere(r *status.Scan, u *status.ScanUnit) {
	baud, _, _ := strings.Cut(u.Lines[0], " ")
	text := fmt.Sprintf("Meter %s (%s, %s) answers at %s, not at %d %s: a bus has one setting, so it is not below.",
		cmp.Or(u.Address, fmt.Sprintf("at unit %d", u.ID)), cmp.Or(u.Profile, u.Answer), u.Identity["medium"], u.Lines[0], r.Line.Baud, r.Line.Mode)
	if i := slices.Index(meterSpeeds, r.Line.Baud); i >= 0 && baud != fmt.Sprint(r.Line.Baud) {
		text += fmt.Sprintf(" Its maker's tool can set it to %d baud, if it has that speed (CI field %02X); scan again then.", r.Line.Baud, 0xB8+i)
	}
	text += " Else it needs a converter on another port, and a bus with line: " + u.Lines[0] + "."
	fmt.Fprintf(&c.b, "    # %s\n", strings.ReplaceAll(status.Wrap(text, 76, ""), "\n", "\n    # "))
}

// meterSpeeds are those that EN 13757-3 lets a master switch meters to, with
// the CI fields from B8 on.
var meterSpeeds = []int{300, 600, 1200, 2400, 4800, 9600, 19200, 38400}

func (c *configBlock) text() string {
	if c.b.Len() == 0 {
		return ""
	}
	return "buses:\n" + c.b.String()
}

// stableName writes a port by the name that stays the same when adapters are
// plugged in another order.
func stableName(connect string) string {
	scheme, path, _ := strings.Cut(connect, "://")
	if !strings.HasPrefix(path, "/dev/") || strings.HasPrefix(path, "/dev/serial/") {
		return connect
	}
	ports, err := driver.Ports()
	if err != nil {
		return connect
	}
	real, err := filepath.EvalSymlinks(path)
	for _, p := range ports {
		if err == nil && p.Path == real && p.ByID != "" {
			return scheme + "://" + p.ByID
		}
	}
	return connect
}
