package driver

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// d0Meter is a meter of IEC 62056-21 on the master's side of a pty. It looks
// at the speed of the line whenever it hears or says something.
type d0Meter struct {
	t      testing.TB
	port   *os.File
	ident  string // behind the slash
	number string // address it answers to, beside none
	body   string // between STX and ETX
	plain  bool   // no STX, no ETX

	mu     sync.Mutex
	fault  func(round int) string
	rounds int
	heard  []string // request or acknowledgement and the speed it came at
	zeros  int
	wrong  []string
}

// reply is how long the meter takes: the acknowledgement is 200 ms on its way
// at 300 baud, the standard lets the meter take up to 1500 ms, and the
// machine may be busy.
const reply = 900 * time.Millisecond

const table = "F.F(00000000)\r\n1.8.0(001846.5*kWh)\r\n32.7.0(231*V)\r\n!\r\n"

// speed returns the baud rate and format of the port as they are now.
func (m *d0Meter) speed() string {
	var tio *unix.Termios
	conn, err := m.port.SyscallConn()
	if err == nil {
		conn.Control(func(fd uintptr) { tio, err = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	}
	if err != nil {
		return err.Error()
	}
	baud := map[uint32]int{unix.B300: 300, unix.B600: 600, unix.B1200: 1200, unix.B2400: 2400, unix.B4800: 4800, unix.B9600: 9600, unix.B19200: 19200}[tio.Cflag&unix.CBAUD]
	if tio.Iflag&unix.INPCK == 0 { // a pty has no characters of 7 bits and no parity; that it is looked at is seen
		return fmt.Sprintf("%d 8N1", baud)
	}
	return fmt.Sprintf("%d 7E1", baud)
}

func (m *d0Meter) readout() []byte {
	if m.plain {
		return []byte(m.body)
	}
	b := append([]byte{2}, m.body...)
	b = append(b, 3)
	sum := byte(0)
	for _, x := range b[1:] {
		sum ^= x
	}
	return append(b, sum)
}

// serve answers until the port is closed.
func (m *d0Meter) serve() {
	var in []byte
	buf := make([]byte, 256)
	round, fault := 0, ""
	for {
		n, err := m.port.Read(buf)
		if err != nil {
			return
		}
		for in = append(in, buf[:n]...); len(in) > 0; {
			if in[0] == 0 {
				m.mu.Lock()
				m.zeros++
				m.mu.Unlock()
				in = in[1:]
				continue
			}
			i := bytes.IndexByte(in, '\n')
			if i < 0 {
				break
			}
			line := string(in[:i+1])
			in = in[i+1:]
			at := m.speed()
			m.mu.Lock()
			if line[0] == 6 {
				at = "" // a busy machine may look too late; see TestSpeedChange
			}
			m.heard = append(m.heard, strings.TrimSpace(fmt.Sprintf("%q %s", line, at)))
			switch {
			case line == "/?!\r\n" || line == "/?"+m.number+"!\r\n":
				round++
				m.rounds = round
				fault = ""
				if m.fault != nil {
					fault = m.fault(round)
				}
				m.mu.Unlock()
				m.signOn(line, fault)
			case len(line) == 6 && line[0] == 6:
				m.mu.Unlock()
				m.acknowledged(line, fault)
			default:
				m.mu.Unlock()
			}
		}
	}
}

func (m *d0Meter) signOn(line, fault string) {
	switch fault {
	case "silent":
		return
	case "echo":
		m.port.WriteString(line)
		return
	case "noise":
		m.port.WriteString("\x00\xffx")
		return
	case "half":
		m.port.WriteString("/LG")
		return
	case "echo first":
		m.port.WriteString(line)
	}
	m.port.WriteString("/" + m.ident + "\r\n")
	switch letter := m.ident[3]; {
	case letter >= 'A' && letter <= 'F':
		time.Sleep(reply)
		m.send(600<<(letter-'A'), fault)
	case letter < '0' || letter > '9':
		m.send(300, fault)
	}
}

func (m *d0Meter) acknowledged(line, fault string) {
	if fault == "deaf" || fault == "no change" && line[2] != '0' {
		return
	}
	if fault == "echo first" {
		m.port.WriteString(line)
	}
	time.Sleep(reply)
	m.send(300<<(line[2]-'0'), fault)
}

// send sends the readout, and notes if the line does not have the speed.
func (m *d0Meter) send(baud int, fault string) {
	if at, want := m.speed(), fmt.Sprintf("%d 7E1", baud); at != want {
		m.mu.Lock()
		m.wrong = append(m.wrong, fmt.Sprintf("the line has %s while the meter sends at %s", at, want))
		m.mu.Unlock()
		m.port.WriteString("\xf8\x00\x80\xf8")
		return
	}
	b := m.readout()
	switch fault {
	case "damaged":
		b[10] ^= 1
	case "cut":
		b = b[:len(b)/2]
	case "no end":
		b = b[:len(b)-2]
	case "no start":
		b = b[1:]
	case "garbage":
		b = append([]byte{0, 0xff, 0x7f}, b...)
	}
	for len(b) > 0 { // in pieces
		n := min(7, len(b))
		m.port.Write(b[:n])
		b = b[n:]
	}
}

func (m *d0Meter) start(t testing.TB) (path string) {
	t.Helper()
	m.t = t
	m.port, path = openPTY(t)
	go m.serve()
	return path
}

// result is what a line with one meter says until a quality comes.
func readMeter(t *testing.T, m *d0Meter, o Options, every time.Duration) (*Line, *sink) {
	t.Helper()
	o.Name, o.Connect = "head", "serial://"+m.start(t)
	if o.Timeout == 0 {
		o.Timeout = 1500 * time.Millisecond
	}
	if len(o.Devices) == 0 {
		o.Devices = []Device{{Name: "meter"}}
	}
	for i := range o.Devices {
		d := &o.Devices[i]
		if d.Map == nil {
			d.Map = ready(t, "iec62056-21")
		}
		d.Every = every
		d.Base = uint32(1000 * i)
	}
	l := open(t, o)
	s := &sink{}
	run(t, l, s.emit)
	return l, s
}

func ready(t testing.TB, name string) *profile.Profile {
	t.Helper()
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	p, err := lib.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	// Tests are quick where a meter is not.
	fast := *p
	fast.Timeout = 0
	return &fast
}

// values returns the last reading of each point by name.
func (s *sink) readings(p *profile.Profile, base uint32) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for _, g := range s.groups {
		for _, r := range g.Readings {
			if i := int(r.Point) - int(base); i >= 0 && i < len(p.Points) {
				out[p.Points[i].Name] = profile.ReadingText(r)
			}
		}
	}
	return out
}

func (m *d0Meter) said() (heard, wrong string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.heard, "\n"), strings.Join(m.wrong, "\n")
}

// askedFor returns how often the meter was called.
func (m *d0Meter) askedFor() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rounds
}

// TestReadout: the speeds of the dialogue in every mode, and what is read.
func TestReadout(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ident, number string
		opt           Device
		line          string
		plain         bool
		fault         string
		heard         string // at the end of the first good readout
	}{
		"mode C":            {ident: "LGz5ZMD", heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06050\\r\\n\""},
		"19200":             {ident: "LGz6ZMD", heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06060\\r\\n\""},
		"300":               {ident: "LGz0ZMD", heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06000\\r\\n\""},
		"a slow meter":      {ident: "LGZ5ZMD", heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06050\\r\\n\""},
		"mode E":            {ident: "LGz5\\2ZMD", heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06050\\r\\n\""},
		"kept for later":    {ident: "LGz9ZMD", heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06000\\r\\n\""},
		"mode B":            {ident: "LGzEZMD", heard: "\"/?!\\r\\n\" 300 7E1"},
		"mode A":            {ident: "LGz@ZMD", heard: "\"/?!\\r\\n\" 300 7E1"},
		"an address":        {ident: "LGz5ZMD", number: "12345678", opt: Device{Address: "12345678"}, heard: "\"/?12345678!\\r\\n\" 300 7E1\n\"\\x06050\\r\\n\""},
		"a highest speed":   {ident: "LGz5ZMD", opt: Device{MaxBaud: 2400}, heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06030\\r\\n\""},
		"another beginning": {ident: "LGz5ZMD", line: "9600 7E1", heard: "\"/?!\\r\\n\" 9600 7E1\n\"\\x06050\\r\\n\""},
		"no block check":    {ident: "LGz5ZMD", plain: true, heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06050\\r\\n\""},
		"echoes":            {ident: "LGz5ZMD", fault: "echo first", heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06050\\r\\n\""},
		"garbage":           {ident: "LGz5ZMD", fault: "garbage", heard: "\"/?!\\r\\n\" 300 7E1\n\"\\x06050\\r\\n\""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &d0Meter{ident: c.ident, number: c.number, body: table, plain: c.plain, fault: func(int) string { return c.fault }}
			c.opt.Name, c.opt.Map = "meter", ready(t, "iec62056-21")
			l, s := readMeter(t, m, Options{Line: c.line, Timeout: 3 * time.Second, Devices: []Device{c.opt}}, time.Hour)
			until(t, 30*time.Second, "a readout", func() bool { return l.Stats().Devices[0].Polls > 0 })
			heard, wrong := m.said()
			if got := s.readings(c.opt.Map, 0); got["energy_import"] != "1846.5" || got["voltage_l1"] != "231" || got["error_code"] != "00000000" {
				t.Errorf("%v; %v", got, l.Stats().Devices[0].LastErr)
			}
			if heard != c.heard || wrong != "" {
				t.Errorf("the meter heard\n%s\nwant\n%s\n%s", heard, c.heard, wrong)
			}
			if st := l.Stats(); st.Devices[0].State != "ok" || st.Devices[0].Failed != 0 {
				t.Errorf("%+v", st.Devices[0])
			}
			want := "300 7E1"
			if c.line != "" {
				want = c.line
			}
			if at := m.speed(); at != want {
				t.Errorf("the line stays at %s", at)
			}
		})
	}
}

func TestReaction(t *testing.T) {
	if reaction([]byte("/LGZ5")) != 200*time.Millisecond || reaction([]byte("/LGz5")) != 20*time.Millisecond {
		t.Error("the reaction time")
	}
}

// TestReadoutFaults: what goes wrong is told by its name and costs a try; no
// value comes of it, and the line begins at its own speed again.
func TestReadoutFaults(t *testing.T) {
	t.Parallel()
	for fault, c := range map[string]struct {
		cause telemetry.Cause
		tries int
	}{
		"silent":   {telemetry.CauseTimeout, 2},
		"echo":     {telemetry.CauseMismatch, 2},
		"noise":    {telemetry.CauseCRC, 2},
		"half":     {telemetry.CauseShort, 2},
		"deaf":     {telemetry.CauseTimeout, 2},
		"damaged":  {telemetry.CauseCRC, 2},
		"cut":      {telemetry.CauseShort, 2},
		"no start": {telemetry.CauseCRC, 2},
		"no end":   {telemetry.CauseShort, 2},
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			var fired atomic.Int64
			m := &d0Meter{ident: "LGz5ZMD", body: table, fault: func(int) string { fired.Add(1); return fault }}
			l, s := readMeter(t, m, Options{}, time.Hour)
			until(t, 20*time.Second, "a failed round", func() bool { return l.Stats().Devices[0].Failed > 0 })
			if n := s.count(0, telemetry.Comm, c.cause); n != 1 {
				t.Errorf("%d groups with the cause %v; %v", n, c.cause, l.Stats().Devices[0].LastErr)
			}
			if n := s.count(0, telemetry.Good, 0); n > 0 {
				t.Errorf("%d groups of values", n)
			}
			heard, wrong := m.said()
			if n := strings.Count(heard, "/?!"); n != c.tries || strings.Contains(heard, "9600 7E1") || wrong != "" {
				t.Errorf("the meter heard\n%s\n%s", heard, wrong)
			}
			if n := m.askedFor(); n != c.tries || fired.Load() != int64(n) || m.speed() != "300 7E1" {
				t.Errorf("%d faults in %d tries, the line is at %s", fired.Load(), n, m.speed())
			}
		})
	}
}

// TestReadoutRecovers: one damaged readout costs a second try, not the round.
func TestReadoutRecovers(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"silent", "damaged", "cut", "deaf"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			m := &d0Meter{ident: "LGz5ZMD", body: table, fault: func(round int) string {
				if round == 1 {
					return fault
				}
				return ""
			}}
			l, s := readMeter(t, m, Options{}, time.Hour)
			until(t, 20*time.Second, "a readout", func() bool { return l.Stats().Devices[0].Good > 0 })
			if d := l.Stats().Devices[0]; d.Failed != 0 || s.count(0, telemetry.Comm, telemetry.CauseTimeout) > 0 || m.askedFor() != 2 {
				t.Errorf("%+v after %d rounds", d, m.askedFor())
			}
		})
	}
}

// TestReadoutStaysSlow: a meter or head that never speaks at the higher
// speed is read at the first one.
func TestReadoutStaysSlow(t *testing.T) {
	t.Parallel()
	m := &d0Meter{ident: "LGz5ZMD", body: table, fault: func(int) string { return "no change" }}
	l, _ := readMeter(t, m, Options{}, 100*time.Millisecond)
	until(t, 30*time.Second, "a readout", func() bool { return l.Stats().Devices[0].Good > 1 })
	heard, wrong := m.said()
	if n := strings.Count(heard, `\x06050`); n != slowAfter || !strings.Contains(heard, `\x06000`) || wrong != "" {
		t.Errorf("the meter heard\n%s\n%s", heard, wrong)
	}
}

// changing is a stream with a meter behind it that notes when the speed is
// changed.
type changing struct {
	in      bytes.Buffer
	acked   time.Time
	changed []string
	early   bool
}

func (s *changing) Alive() error { return nil }
func (s *changing) Close() error { return nil }
func (s *changing) WriteAll(p []byte, _ time.Time) error {
	switch {
	case p[0] == '/':
		s.in.WriteString("/LGz5ZMD\r\n")
	case p[0] == 6:
		s.acked = time.Now()
	}
	return nil
}

func (s *changing) ReadSome(p []byte, until time.Time) (int, error) {
	if n, _ := s.in.Read(p); n > 0 {
		return n, nil
	}
	time.Sleep(time.Until(until))
	return 0, ErrTimeout
}

func (s *changing) SetMode(m lineMode) error {
	s.changed = append(s.changed, fmt.Sprint(m.mode.BaudRate))
	if len(s.changed) == 1 {
		// Six characters of 10 bits at 300 baud are on the wire for 200 ms.
		s.early = time.Since(s.acked) < 200*time.Millisecond
		s.in.Write((&d0Meter{body: table}).readout())
	}
	return nil
}

// TestSpeedChange: the speed is changed when the acknowledgement has left,
// and changed back at the end.
func TestSpeedChange(t *testing.T) {
	t.Parallel()
	p := ready(t, "iec62056-21")
	l := open(t, Options{Name: "head", Connect: "serial:///dev/null", Timeout: 100 * time.Millisecond, Devices: []Device{{Name: "meter", Map: p}}})
	st, s := &changing{}, &sink{}
	l.wire.attach(st, time.Now())
	l.open.seen = time.Now()
	l.serve(t.Context(), l.jobs[0], time.Now(), s.emit)
	if got := s.readings(p, 0)["energy_import"]; got != "1846.5" || st.early || strings.Join(st.changed, " ") != "9600 300" {
		t.Errorf("%s; too early %v; speeds %v", got, st.early, st.changed)
	}
}

// TestReadoutOverNetwork: the speed of a serial server is not ours to change,
// so the meter is asked to stay where it is.
func TestReadoutOverNetwork(t *testing.T) {
	t.Parallel()
	p := ready(t, "iec62056-21")
	l := open(t, Options{Name: "head", Connect: "serial+tcp://h:1", Timeout: 100 * time.Millisecond, Devices: []Device{{Name: "meter", Map: p}}})
	st, s := &answering{answers: [][]byte{[]byte("/LGz5ZMD\r\n"), (&d0Meter{body: table}).readout()}, piece: 9}, &sink{}
	l.wire.attach(&struct{ stream }{st}, time.Now()) // without SetMode
	l.serve(t.Context(), l.jobs[0], time.Now(), s.emit)
	if got := s.readings(p, 0)["energy_import"]; got != "1846.5" || st.told.String() != "/?!\r\n\x06000\r\n" {
		t.Errorf("%s after %q", got, st.told.String())
	}
}

// TestReadoutWakes: a meter with a battery gets its zero bytes first.
func TestReadoutWakes(t *testing.T) {
	t.Parallel()
	p := *ready(t, "iec62056-21")
	p.Handshake = &profile.Handshake{Kind: "iec62056-21", Wake: 2200 * time.Millisecond}
	m := &d0Meter{ident: "LGz5ZMD", body: table}
	l, _ := readMeter(t, m, Options{Devices: []Device{{Name: "meter", Map: &p}}}, time.Hour)
	until(t, 20*time.Second, "a readout", func() bool { return l.Stats().Devices[0].Good > 0 })
	if m.mu.Lock(); m.zeros < 60 || m.zeros > 70 {
		t.Errorf("%d zero bytes", m.zeros)
	}
	m.mu.Unlock()
}

// TestReadoutStops: a meter that takes a minute does not hold up the end.
func TestReadoutStops(t *testing.T) {
	t.Parallel()
	m := &d0Meter{ident: "LGz5ZMD", body: table, fault: func(int) string { return "deaf" }}
	o := Options{Timeout: 30 * time.Second}
	o.Devices = []Device{{Name: "meter", Map: ready(t, "iec62056-21"), Every: time.Hour}}
	o.Name, o.Connect = "head", "serial://"+m.start(t)
	l := open(t, o)
	stop := run(t, l, (&sink{}).emit)
	until(t, 5*time.Second, "the wait for the readout", func() bool { return m.speed() == "9600 7E1" })
	began := time.Now()
	stop()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the line was given up after %v", d)
	}
}

// TestTwoMeters: two meters on one line are called by their numbers.
func TestTwoMeters(t *testing.T) {
	t.Parallel()
	m := &d0Meter{ident: "LGz5ZMD", number: "1", body: table}
	a, b := ready(t, "iec62056-21"), ready(t, "iec62056-21")
	l, s := readMeter(t, m, Options{Devices: []Device{{Name: "here", Map: a, Address: "1"}, {Name: "gone", Map: b, Address: "2"}}}, time.Hour)
	until(t, 20*time.Second, "both", func() bool { d := l.Stats().Devices; return d[0].Good > 0 && d[1].Failed > 0 })
	if s.readings(a, 0)["energy_import"] != "1846.5" || s.readings(b, 1000)["energy_import"] != "comm/timeout" {
		t.Errorf("%v %v", s.readings(a, 0), s.readings(b, 1000))
	}
}
