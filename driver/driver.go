// Package driver owns the lines: serial ports and network endpoints with the
// instruments on them. It polls or listens, and yields readings.
//
// A [Line] is one serial port or one TCP endpoint. At any moment one
// goroutine owns it, whoever that is: [Line.Run] between two polls hands it
// to a technician's [Line.Exchange] and takes it back. Nothing else touches
// the port.
//
// The promise of the package is that no wrong value leaves it. An answer
// counts only if unit, function, byte count and, on Modbus TCP, the
// transaction number fit the request under way. What Modbus RTU cannot tell
// apart by content, an answer that comes too late, is kept apart by time and
// by order: see quarantine. Everything else is an error with its cause.
//
// From the bottom up: stream (bytes in and out of a port or a socket), frame
// (cutting frames from bytes), wire (one request and its answer), quarantine
// and breaker (what a unit may be asked and when), timetable (what is due),
// line (who owns what, open and gone, polls and readings).
package driver

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"tidegate/driver/mbus"
	"tidegate/driver/profile"
	"tidegate/internal/clock"
)

// Options is one entry of `buses:` in the configuration: a line and its
// devices. The zero values mean the defaults given with each field.
type Options struct {
	Name string `yaml:"-"`
	// Connect names the port and the manner of speaking:
	// rtu:///dev/..., ascii:///dev/..., serial:///dev/..., tcp://HOST:PORT,
	// tls://HOST:PORT, rtu+tcp://HOST:PORT, serial+tcp://HOST:PORT.
	Connect string `yaml:"connect" required:"true" doc:"Where the line is: rtu:///dev/..., ascii:///dev/..., serial:///dev/..., tcp://HOST:PORT, tls://HOST:PORT, rtu+tcp://HOST:PORT or serial+tcp://HOST:PORT."`
	// Line is speed and character format, such as 9600 8E1. Default: what
	// the profile of the first device says, else 9600 8N1.
	Line string `yaml:"line" doc:"Speed and format of the serial line, such as 9600 8E1."`
	// Timeout is how long a device may take to begin its answer (10 ms..1 min).
	// Default 500 ms on serial lines, 1 s on networks; a profile may ask for more.
	Timeout time.Duration `yaml:"timeout" doc:"How long a device may take to answer."`
	// Gap is the least silence before each request (0..1 s), if more than
	// the 3.5 characters of the standard.
	Gap time.Duration `yaml:"gap" doc:"Least silence before each request, if more than 3.5 characters."`
	// AfterConnect is a pause after the port or connection was opened (0..1 min).
	AfterConnect time.Duration `yaml:"after_connect" doc:"Pause after the port or connection was opened."`
	// Turnaround is how long the devices usually take to answer; it only
	// helps to plan the blocks (0..1 s, default 5 ms).
	Turnaround time.Duration `yaml:"turnaround" doc:"How long devices usually take to answer; helps to plan the blocks."`
	// DTR and RTS are the levels of these lines while the port is open, for
	// heads and contacts that are supplied by them. Default: high.
	DTR string `yaml:"dtr" enum:"high,low" doc:"Level of the line DTR while the port is open; the system makes it high if not given."`
	RTS string `yaml:"rts" enum:"high,low" doc:"Level of the line RTS while the port is open; the system makes it high if not given."`
	// TLS names the certificates of a tls:// line.
	TLS *TLS `yaml:"tls" doc:"Certificates of a tls:// line; all three files are needed."`
	// RS485 lets the kernel switch the direction of an RS-485 port; nil
	// leaves that to the adapter.
	RS485   *RS485   `yaml:"rs485" doc:"The kernel switches the direction of the RS-485 port (TIOCSRS485). Only for ports whose driver can; most USB adapters switch by themselves."`
	Devices []Device `yaml:"devices,keyed" doc:"The devices on this line, by name."`
}

// Device is one instrument on a line.
type Device struct {
	Name    string          `yaml:"-"`
	Profile string          `yaml:"profile" doc:"Name of the device profile; tidegate profile list shows them."`
	Unit    int             `yaml:"unit" min:"0" max:"65535" doc:"Unit address: for Modbus 1 to 247 (0 to 255 on TCP), for serial devices that have one what is set in them; M-Bus: the primary address, 0 to 250, or 254 for the only meter on a line; default: the profile's."`
	Every   time.Duration   `yaml:"every" doc:"Period of polling; default: the profile's, else 10s."`
	Timeout time.Duration   `yaml:"timeout" doc:"How long this device may take to answer, if not as the line says."`
	Address string          `yaml:"address" doc:"Number by which a meter is called on a line with several: IEC 62056-21, where any meter answers if none is given; M-Bus: the secondary address, 8 digits or all 16, in the place of a unit."`
	MaxBaud int             `yaml:"max_baud" min:"0" max:"19200" doc:"Highest speed that a meter is asked to go to (IEC 62056-21); default: what it offers."`
	Gap     time.Duration   `yaml:"gap" doc:"Silence this device wants before a request, if more than the line's and the profile's."`
	Wake    *profile.Wake   `yaml:"wake" doc:"What wakes this device before a request, if not as the profile says."`
	Points  []profile.Point `yaml:"points,keyed" doc:"Points of a device without a profile."`
	Frames  *profile.Frames `yaml:"frames" doc:"Frames of a serial device without a profile."`

	Map  *profile.Profile `yaml:"-"` // resolved by config: what the device can say
	Base uint32           `yaml:"-"` // number of its first point in the catalog
}

// Env is what a line needs from the house.
type Env struct {
	Clock  *clock.Clock // nil: a clock that keeps nothing on disk
	Logger *slog.Logger // nil: no log
	Groups *sync.Pool   // of *telemetry.Group: what lines fill, and receivers have done with; nil: each line has its own
}

// kind is the manner of speaking on a line.
type kind uint8

const (
	kindRTU kind = iota
	kindASCII
	kindTCP
	kindListen
)

// endpoint is a connect string taken apart.
type endpoint struct {
	kind   kind
	serial bool   // a port; else a network address
	secure bool   // TLS
	addr   string // path of the port, or HOST:PORT
}

func parseConnect(s string) (endpoint, error) {
	const forms = "rtu:///dev/..., ascii:///dev/..., serial:///dev/..., tcp://HOST:PORT, tls://HOST:PORT, rtu+tcp://HOST:PORT or serial+tcp://HOST:PORT"
	u, err := url.Parse(s)
	if err != nil || s == "" {
		return endpoint{}, fmt.Errorf("%q is no connect string: write %s", s, forms)
	}
	e := endpoint{}
	switch u.Scheme {
	case "rtu":
		e.kind, e.serial = kindRTU, true
	case "ascii":
		e.kind, e.serial = kindASCII, true
	case "serial":
		e.kind, e.serial = kindListen, true
	case "tcp":
		e.kind = kindTCP
	case "tls":
		e.kind, e.secure = kindTCP, true
	case "rtu+tcp":
		e.kind = kindRTU
	case "serial+tcp":
		e.kind = kindListen
	default:
		return endpoint{}, fmt.Errorf("%q does not begin with a known scheme: write %s", s, forms)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return endpoint{}, fmt.Errorf("%q has more than a scheme and a place: write %s", s, forms)
	}
	if e.serial {
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return endpoint{}, fmt.Errorf("%q names no port: write three slashes and the whole path, such as %s:///dev/ttyUSB0", s, u.Scheme)
		}
		e.addr = u.Path
		return e, nil
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil && u.Host != "" && u.Port() == "" && e.kind == kindTCP {
		host, port, err = u.Hostname(), "502", nil // the ports of Modbus
		if e.secure {
			port = "802"
		}
	}
	n, perr := strconv.Atoi(port)
	if err == nil && perr == nil && (n < 1 || n > 65535) {
		return endpoint{}, fmt.Errorf("%q: port %d is outside 1 to 65535", s, n)
	}
	if err != nil || host == "" || perr != nil || n < 1 || n > 65535 || strings.Trim(u.Path, "/") != "" {
		return endpoint{}, fmt.Errorf("%q names no host and port: write %s://HOST:PORT", s, u.Scheme)
	}
	e.addr = net.JoinHostPort(host, port)
	return e, nil
}

// Validate reports every mistake of the section: path is relative to it,
// hint says what to write instead.
func (o *Options) Validate(report func(path, msg, hint string)) {
	e, err := parseConnect(o.Connect)
	if err != nil {
		report("connect", err.Error(), "")
	}
	if o.Line != "" {
		if _, err := parseLine(o.Line); err != nil {
			report("line", err.Error(), "write speed, data bits, parity and stop bits: 9600 8N1")
		} else if e.addr != "" && !e.serial && e.kind == kindTCP {
			report("line", "a Modbus TCP line has no speed", "leave it out")
		}
	}
	between := func(path string, d, lo, hi time.Duration) {
		if d != 0 && (d < lo || d > hi) {
			report(path, fmt.Sprintf("%v is outside %v..%v", d, lo, hi), "")
		}
	}
	if err == nil && !e.serial && o.DTR+o.RTS != "" {
		report("dtr", "a network line has no DTR and no RTS", "remove dtr and rts")
	}
	between("timeout", o.Timeout, 10*time.Millisecond, time.Minute)
	between("gap", o.Gap, 0, time.Second)
	between("after_connect", o.AfterConnect, 0, time.Minute)
	between("turnaround", o.Turnaround, 0, time.Second)
	if err == nil {
		o.TLS.validate(e.secure, report)
		o.RS485.validate(e.serial, report)
	}
	if len(o.Devices) == 0 {
		report("devices", "a line needs at least one device", "")
	}
	for i := range o.Devices {
		d := &o.Devices[i]
		path := "devices." + d.Name
		between(path+".timeout", d.Timeout, 10*time.Millisecond, time.Minute)
		between(path+".gap", d.Gap, 0, time.Second)
		d.Wake.Validate(func(p, msg, hint string) { report(path+".wake."+p, msg, hint) })
		between(path+".every", d.Every, 10*time.Millisecond, 24*time.Hour)
		if d.Profile != "" && len(d.Points) > 0 {
			report(path+".points", "a device has a profile or points of its own, not both", "remove one; for more points than "+d.Profile+" has, write a profile that extends it (docs/profiles.md)")
		}
		if d.Profile == "" && len(d.Points) == 0 {
			report(path, "this device has neither a profile nor points", "write profile: NAME, or points:")
		}
		asks := d.Map != nil && d.Map.Handshake.Asks()
		meter := d.Map != nil && d.Map.MBus()
		if err := checkAddress(d.Address); err != nil {
			report(path+".address", err.Error(), "")
		} else if d.Address != "" && !asks && d.Map != nil {
			report(path+".address", "this device is not called by a number", "remove it")
		}
		if meter {
			if _, err := meterMask(d.Address); err != nil && d.Address != "" {
				report(path+".address", err.Error(), "")
			}
			if u := d.unit(); u > mbus.MaxUnit && u != mbus.Any {
				report(path+".unit", fmt.Sprintf("unit %d is no primary address of an M-Bus meter", u), "write 0 to 250, or 254 for the only meter on a line")
			}
		}
		if d.MaxBaud != 0 && d.Map != nil && (!asks || meter || !profile.IsBaud(d.MaxBaud)) {
			report(path+".max_baud", fmt.Sprintf("%d is no speed that this device can be asked for", d.MaxBaud), "for a meter that is read out by IEC 62056-21 write 300, 600, 1200, 2400, 4800, 9600 or 19200")
		}
		if err == nil && d.Map != nil && d.Map.Contacts() && !e.serial {
			report(path, "a network line has no modem lines", "write connect: serial:///dev/... for a port of this gateway")
		}
		if err == nil && d.Map != nil {
			switch listens := e.kind == kindListen; {
			case listens && d.Map.Frames == nil:
				report(path, "a Modbus device cannot be on a line of devices that talk by themselves", "write connect: rtu:///dev/... for this bus")
			case !listens && d.Map.Frames != nil:
				report(path, "a device that talks by itself cannot be on a Modbus line", "give it a bus of its own with connect: serial:///dev/...")
			}
		}
		if err != nil || e.kind == kindListen {
			continue
		}
		u, own := d.unit(), d.Map != nil && d.unit() == d.Map.Unit && d.unit() <= 255
		if e.kind == kindTCP {
			if u > 255 {
				report(path+".unit", fmt.Sprintf("unit %d is outside 0..255", u), "")
			}
			continue
		}
		if u == 0 && (d.Map != nil || d.Profile == "") || u > 247 && !own {
			report(path+".unit", fmt.Sprintf("unit %d is outside 1..247", u), "0 is the broadcast address, which no device answers")
		}
	}
}

// mode returns the settings of the serial line: configured, else those of
// the first profile that names some.
func (o *Options) mode() (lineMode, error) {
	s := o.Line
	for i := range o.Devices {
		if m := o.Devices[i].Map; s == "" && m != nil {
			s = m.Line
		}
	}
	if s == "" {
		s = "9600 8N1"
	}
	return parseLine(s)
}

// Limits returns what the blocks of this line are planned with; of options
// that are not valid, as far as they go.
func (o *Options) Limits() profile.Limits {
	lim := profile.Limits{MaxRegisters: 125, MaxBits: 2000, Turnaround: o.Turnaround}
	if lim.Turnaround == 0 {
		lim.Turnaround = 5 * time.Millisecond
	}
	at, err := parseConnect(o.Connect)
	if err != nil || !at.serial {
		return lim
	}
	if m, err := o.mode(); err == nil {
		lim.Char, lim.Silence, lim.ASCII = m.char(), max(m.silence(), o.Gap), at.kind == kindASCII
	}
	return lim
}

// Serial says whether the line is a port of this machine, not a network address.
func (o *Options) Serial() bool {
	e, err := parseConnect(o.Connect)
	return err == nil && e.serial
}

// unit returns the unit address with the profile's as default.
func (d *Device) unit() int {
	if d.Unit == 0 && d.Map != nil {
		return d.Map.Unit
	}
	return d.Unit
}

// wake returns what wakes the device: its own setting, else the profile's.
func (d *Device) wake() *profile.Wake {
	if d.Wake == nil && d.Map != nil {
		return d.Map.Wake
	}
	return d.Wake
}

// every returns the period with its default.
func (d *Device) every() time.Duration {
	switch {
	case d.Every > 0:
		return d.Every
	case d.Map != nil && d.Map.Every > 0:
		return d.Map.Every
	}
	return 10 * time.Second
}

// timeout returns how long the device may take: its own setting, else the
// longer of what the line and the profile say.
func (d *Device) timeout(line time.Duration) time.Duration {
	if d.Timeout > 0 {
		return d.Timeout
	}
	if d.Map != nil && d.Map.Timeout > line {
		return d.Map.Timeout
	}
	return line
}
