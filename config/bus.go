package config

import (
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/document"
)

// Codes of the checks that only the whole file allows.
const (
	codeProfile  = "profile"      // unknown profile, or one that does not fit
	codeOverload = "bus-overload" // the polls do not fit into their periods
	codeTiming   = "timing"       // a period shorter than a timeout
	codeTwice    = "config-twice" // two things that must differ
	codeMixed    = "framing-mixed"
	codeAddress  = "address" // an address that is probably meant otherwise
)

// buses resolves every device and checks what concerns more than one section.
func (p *parser) buses() {
	owner := map[string]string{} // device -> bus
	ends := map[string]end{}     // endpoint -> the bus that has it
	if p.doc.Has("buses") && len(p.cfg.Buses) == 0 && !p.doc.Failed("buses") {
		p.doc.Report("buses", document.CodeValue, "there is no bus, so nothing would be read",
			"write a name, and under it connect: and devices:")
	}
	for i := range p.cfg.Buses {
		b := &p.cfg.Buses[i]
		path := "buses." + b.Name
		p.name(path, b.Name, "a bus")
		at := parseEnd(b.Connect)
		at.bus = b.Name
		for k := range b.Devices {
			d := &b.Devices[k]
			dpath := path + ".devices." + d.Name
			if p.name(dpath, d.Name, "a device") {
				if other, ok := owner[d.Name]; ok {
					p.doc.Report(dpath, codeTwice, fmt.Sprintf("device %q is on bus %q already", d.Name, other),
						"a device name is unique in the gateway")
				}
				owner[d.Name] = b.Name
				if d.Name == CommandDevice && p.cfg.Commander() != nil {
					p.doc.Report(dpath, document.CodeKey, fmt.Sprintf("%q cannot be the name of a device", d.Name),
						"the record of the commands is sent under this name; choose another one")
				}
				if d.Name == CertificateDevice && slices.ContainsFunc(p.links(), func(u Uplink) bool { return u.Secure() }) {
					p.doc.Report(dpath, document.CodeKey, fmt.Sprintf("%q cannot be the name of a device", d.Name),
						"the end of certificates is told under this name; choose another one")
				}
			}
			p.resolve(d, dpath, at)
		}
		p.line(b, path, at)
		p.units(b, path, at)
		p.connect(path, b.Connect)
		p.mode(path, b.Line)
		b.Validate(p.doc.Section(path))
		p.endpoint(at, ends, path)
		p.times(b, path, at)
	}
}

// resolve gives a device its map of points.
func (p *parser) resolve(d *driver.Device, path string, at end) {
	switch {
	case d.Profile != "":
		if !slices.Contains(p.lib.Names(), d.Profile) {
			hint := "tidegate profile list shows all"
			near := p.lib.Near(d.Profile)
			if near != "" {
				hint = ""
			}
			p.doc.Report(path+".profile", codeProfile, fmt.Sprintf("unknown profile %q", d.Profile), didYouMean(hint, near))
			return
		}
		m, err := p.lib.Get(d.Profile)
		if err != nil {
			p.doc.Report(path+".profile", codeProfile, fmt.Sprintf("profile %q cannot be used: %v", d.Profile, err), "tidegate profile test "+d.Profile)
			return
		}
		if p.transport(d, m, path+".profile", at) {
			d.Map = m
		}
	case len(d.Points) > 0:
		if at.listens() && d.Frames == nil {
			if !p.doc.Failed(path + ".frames") {
				p.doc.Report(path+".frames", document.CodeMissing, fmt.Sprintf(`"frames" is missing in %s`, path),
					"say how the bytes are cut, such as frames: {kind: line, end: CRLF, check: nmea}")
			}
			return
		}
		if p.doc.Failed(path + ".frames") {
			return // what the points may be depends on the frames
		}
		p.manualNumbers(d, path)
		m, issues := p.custom(d)
		issues = slices.DeleteFunc(issues, func(is profile.Issue) bool {
			parts := strings.SplitN(is.Path, ".", 3)
			return len(parts) > 1 && parts[0] == "points" && p.doc.Failed(path+".points."+parts[1])
		})
		if len(issues) == 0 && p.doc.Failed(path+".points") {
			return
		}
		for _, is := range issues {
			full := path + "." + is.Path
			code := document.CodeValue
			if !p.doc.Has(full) {
				code = document.CodeMissing
			}
			p.doc.Report(full, code, is.Msg, is.Hint)
		}
		if len(issues) == 0 && p.transport(d, m, path+".points", at) {
			d.Map = m
		}
	}
}

// custom makes a profile of the points written at a device. Devices with the
// same points share one: a hundred copies of a block cost the memory of one.
func (p *parser) custom(d *driver.Device) (*profile.Profile, []profile.Issue) {
	for _, m := range p.customs {
		if reflect.DeepEqual(m.Points, d.Points) && reflect.DeepEqual(m.Frames, d.Frames) {
			d.Points, d.Frames = m.Points, m.Frames
			return m, nil
		}
	}
	m, issues := profile.Custom(d.Name, d.Points, d.Frames)
	if len(issues) == 0 {
		p.customs = append(p.customs, m)
	}
	return m, issues
}

// manualNumbers warns of wire addresses that look like the numbers of a
// manual, which count from 1 and begin with the digit of the table.
func (p *parser) manualNumbers(d *driver.Device, path string) {
	for _, pt := range d.Points {
		for _, c := range []struct {
			key   string
			addr  *int
			first int
		}{{"holding", pt.Holding, 40001}, {"input", pt.Input, 30001}, {"discrete", pt.Discrete, 10001}} {
			if c.addr != nil && *c.addr >= c.first && *c.addr < c.first+9999 {
				p.doc.Warn(path+".points."+pt.Name+"."+c.key, codeAddress,
					fmt.Sprintf("%s: %d is a wire address, counted from 0", c.key, *c.addr),
					fmt.Sprintf("if it is the number of the manual, write register: %d", *c.addr))
			}
		}
	}
}

// transport checks a device against the kind of its connection; false if
// they do not go together.
func (p *parser) transport(d *driver.Device, m *profile.Profile, path string, at end) bool {
	if at.scheme == "" {
		return true
	}
	listens := at.listens()
	what := fmt.Sprintf("profile %q", d.Profile)
	if d.Profile == "" {
		what = fmt.Sprintf("device %q", d.Name)
	}
	switch {
	case m.Transport == "serial" && !listens:
		scheme := "serial"
		if at.host != "" {
			scheme = "serial+tcp"
		}
		p.doc.Report(path, codeProfile, fmt.Sprintf("%s talks by itself; %s:// asks with Modbus", what, at.scheme),
			fmt.Sprintf("connect: %s://%s", scheme, at.rest))
	case m.Transport != "serial" && listens:
		scheme := "rtu"
		if at.host != "" {
			scheme = "rtu+tcp"
		}
		p.doc.Report(path, codeProfile, fmt.Sprintf("%s speaks Modbus; %s:// only listens", what, at.scheme),
			fmt.Sprintf("connect: %s://%s", scheme, at.rest))
	default:
		return true
	}
	return false
}

// line fills in the line setting from the profiles of the devices.
func (p *parser) line(b *driver.Options, path string, at end) {
	if b.Line != "" || at.scheme == "" || at.host != "" {
		return
	}
	var lines, says []string
	open, still := false, false
	for _, d := range b.Devices {
		switch {
		case d.Map == nil:
			open = true
		case d.Map.Contacts(): // no character comes from them
			still = true
		case d.Map.Line != "" && !slices.Contains(lines, d.Map.Line):
			lines = append(lines, d.Map.Line)
			says = append(says, fmt.Sprintf("%s wants %s", d.Name, d.Map.Line))
		}
	}
	switch {
	case len(lines) == 1:
		b.Line = lines[0]
	case len(lines) > 1:
		p.doc.Report(path+".line", document.CodeMissing, fmt.Sprintf(`"line" is missing in %s, and its devices differ`, path),
			strings.Join(says, ", ")+"; set all to one and write it here")
	case still && len(b.Devices) == 1:
		b.Line = "9600 8N1"
	case !open && len(b.Devices) > 0:
		p.doc.Report(path+".line", document.CodeMissing, fmt.Sprintf(`"line" is missing in %s`, path),
			"write speed and format as the devices are set, such as line: 9600 8N1")
	}
}

// units checks the unit addresses of one bus and fills in defaults.
func (p *parser) units(b *driver.Options, path string, at end) {
	if at.scheme == "" {
		return
	}
	network := at.numbered()
	listens := at.listens()
	first := map[int]string{}
	for k := range b.Devices {
		d := &b.Devices[k]
		key := path + ".devices." + d.Name + ".unit"
		given := p.doc.Has(key)
		if listens && !(d.Map != nil && d.Map.Addressed()) {
			if given {
				p.doc.Report(key, document.CodeValue, "unit: this device has no unit address", "remove it")
			}
			continue
		}
		if d.Map == nil && d.Profile != "" || p.doc.Failed(path+".devices."+d.Name+".profile") {
			continue // the profile is the mistake
		}
		if !given && d.Map != nil {
			d.Unit = d.Map.Unit
		}
		own := d.Map != nil && d.Unit == d.Map.Unit // some devices answer to 254 or 255 whatever they are set to
		meter := d.Map != nil && d.Map.MBus()
		switch {
		case meter && d.Address != "":
			if given {
				p.doc.Report(key, document.CodeValue, "unit: a meter is called by its unit or by its address, not by both", "remove one of them")
			}
			continue
		case meter && !given && d.Unit == 0:
			p.doc.Report(key, document.CodeMissing, fmt.Sprintf(`"unit" is missing in %s.devices.%s`, path, d.Name),
				"write the primary address that is set in the meter, or address: with the 8 digits printed on it")
			continue
		case !given && d.Unit == 0:
			p.doc.Report(key, document.CodeMissing, fmt.Sprintf(`"unit" is missing in %s.devices.%s`, path, d.Name),
				"write the address that is set in the device, 1 to 247")
			continue
		case listens:
		case network && (d.Unit > 255 || d.Unit > 247 && d.Unit != 255 && !own):
			p.doc.Report(key, document.CodeValue, fmt.Sprintf("unit: %d is reserved", d.Unit), "expected 1 to 247; 255 or 0 for the endpoint itself")
			continue
		case !network && (d.Unit < 1 || d.Unit > 247 && !own):
			p.doc.Report(key, document.CodeValue, fmt.Sprintf("unit: %d is outside 1 to 247", d.Unit), "0 is for broadcasts, and from 248 on all is reserved")
			continue
		}
		if other, ok := first[d.Unit]; ok {
			p.doc.Report(key, codeTwice, fmt.Sprintf("unit %d is %s already", d.Unit, other), "two devices with one unit on a bus answer at the same time")
			continue
		}
		first[d.Unit] = d.Name
	}
}

// end is a connect string taken apart; scheme is "" if it is not valid.
type end struct {
	scheme, host, port, rest, bus string
}

// numbered tells Modbus TCP, with or without TLS, from lines with RTU frames.
func (e end) numbered() bool { return e.scheme == "tcp" || e.scheme == "tls" }

// listens tells lines whose devices talk by themselves.
func (e end) listens() bool { return e.scheme == "serial" || e.scheme == "serial+tcp" }

func parseEnd(connect string) end {
	u, err := url.Parse(connect)
	if err != nil {
		return end{}
	}
	e := end{scheme: u.Scheme, host: u.Hostname(), port: u.Port(), rest: u.Host + u.Path}
	switch u.Scheme {
	case "tcp", "tls", "rtu+tcp", "serial+tcp":
		if e.host == "" {
			return end{}
		}
		if ports := map[string]string{"tcp": "502", "tls": "802"}; e.port == "" {
			e.port = ports[u.Scheme] // the ports of Modbus
		}
	case "rtu", "ascii", "serial":
		if e.host != "" || u.Path == "" {
			return end{}
		}
	default:
		return end{}
	}
	return e
}

// endpoint checks that no two buses share a port or mix framings on a host.
func (p *parser) endpoint(at end, ends map[string]end, path string) {
	if at.scheme == "" {
		return
	}
	key := at.rest
	if at.host != "" {
		key = at.host + ":" + at.port
	}
	if other, ok := ends[key]; ok {
		if other.scheme != at.scheme {
			p.doc.Report(path+".connect", codeMixed, fmt.Sprintf("bus %q has this endpoint as %s://", other.bus, other.scheme),
				"one endpoint speaks one framing; find out which and keep one bus")
		} else {
			p.doc.Report(path+".connect", codeTwice, fmt.Sprintf("bus %q has this connection already", other.bus),
				"put all devices of one line under one bus")
		}
		return
	}
	ends[key] = at
	if at.host == "" || at.listens() {
		return // a serial server may have a talking device beside Modbus ones
	}
	if other, ok := ends[at.host]; ok && other.numbered() != at.numbered() {
		p.doc.Warn(path+".connect", codeMixed, fmt.Sprintf("%s is %s:// here and %s:// on bus %q", at.host, at.scheme, other.scheme, other.bus),
			"RTU frames and Modbus TCP differ; is that what both ports speak?")
	} else if !ok {
		ends[at.host] = at
	}
}

// BusLoad is the computed plan of one bus.
type BusLoad struct {
	Name string
	Line string // as it is set; "" on a network
	driver.Load
}

// Loads returns the plan of each bus that is polled, in file order.
func (c *Config) Loads() []BusLoad { return c.loads }

// times fills in periods and timeouts and computes the load of the bus.
func (p *parser) times(b *driver.Options, path string, at end) {
	if at.scheme == "" {
		return
	}
	serialPort := at.host == ""
	if b.Timeout == 0 {
		b.Timeout = time.Second
		if serialPort {
			b.Timeout = 500 * time.Millisecond
		}
	}
	for k := range b.Devices {
		if d := &b.Devices[k]; d.Map != nil {
			if d.Every == 0 {
				d.Every = d.Map.Every
			}
			if d.Every == 0 {
				d.Every = 10 * time.Second
			}
		}
	}
	var periods []time.Duration
	fastest := &driver.Device{}
	for k := range b.Devices {
		d := &b.Devices[k]
		if d.Map == nil || at.listens() && !d.Map.Handshake.Asks() {
			continue
		}
		if d.Timeout == 0 && d.Map.Timeout > b.Timeout {
			d.Timeout = d.Map.Timeout
		}
		if d.Every > 0 && d.Every < waits(b, d) {
			p.doc.Warn(path+".devices."+d.Name+".every", codeTiming,
				fmt.Sprintf("every %s is shorter than the timeout of %s", document.FormatDuration(d.Every), document.FormatDuration(waits(b, d))),
				"one answer that stays out makes the next polls late")
		}
		if periods = append(periods, d.Every); fastest.Every == 0 || d.Every < fastest.Every {
			fastest = d
		}
	}
	load := BusLoad{Name: b.Name, Line: b.Line, Load: b.Load()}
	if load.Devices == 0 {
		return
	}
	p.cfg.loads = append(p.cfg.loads, load)
	says := fmt.Sprintf("%s needs %s per round, interval is %s", b.Name, seconds(load.Round), seconds(periods[0]))
	if slices.Max(periods) != slices.Min(periods) {
		says = fmt.Sprintf("%s needs %s per round, and would be busy %.0f %% of the time", b.Name, seconds(load.Round), 100*load.Share)
	}
	fits := fmt.Sprintf("every: %s for all its devices fits", document.FormatDuration(load.Fits()))
	switch {
	case load.Least > 1:
		p.doc.Report(path, codeOverload, says+": this cannot fit", fits+"; or raise the speed of the line, or split the bus")
	case load.Share > 1:
		p.doc.Warn(path, codeOverload, says, fits)
	case load.Crowded() && load.Devices > 1:
		p.doc.Warn(path, codeOverload, fmt.Sprintf("%s would be busy %.0f %% of the time: while one device is absent, the others are late", b.Name, 100*load.Share), fits)
	}
	p.absent(b, path, fastest, at)
}

// absent warns of a device that would cost another one polls if it did not
// answer: the line waits for it longer than the other's period.
func (p *parser) absent(b *driver.Options, path string, fastest *driver.Device, at end) {
	for k := range b.Devices {
		d := &b.Devices[k]
		if d.Map == nil || at.listens() && !d.Map.Handshake.Asks() || d == fastest || fastest.Every < waits(b, fastest) || waits(b, d) <= fastest.Every {
			continue // of two devices with one period the other warning has told
		}
		p.doc.Warn(path+".devices."+d.Name, codeTiming,
			fmt.Sprintf("while %s does not answer, each try takes %s, and %s (every %s) misses polls", d.Name,
				document.FormatDuration(waits(b, d)), fastest.Name, document.FormatDuration(fastest.Every)),
			fmt.Sprintf("write timeout: %s for %s if it can answer in that time", document.FormatDuration(fastest.Every/2), d.Name))
	}
}

// waits is how long the line waits for a device.
func waits(b *driver.Options, d *driver.Device) time.Duration {
	if d.Timeout > 0 {
		return d.Timeout
	}
	return b.Timeout
}

// seconds writes a time the way people say it: 14.2 s.
func seconds(d time.Duration) string {
	if d >= 10*time.Second && d%time.Second == 0 {
		return strconv.Itoa(int(d/time.Second)) + " s"
	}
	s := strconv.FormatFloat(d.Seconds(), 'f', 2, 64)
	if d >= 10*time.Second {
		s = strconv.FormatFloat(d.Seconds(), 'f', 1, 64)
	}
	return strings.TrimRight(strings.TrimRight(s, "0"), ".") + " s"
}
