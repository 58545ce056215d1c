package driver

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidegate/internal/telemetry"
)

// wired is a port with modem lines and a device that talks.
type wired struct {
	mu    sync.Mutex
	lines byte
	err   error
	in    []byte
}

func (s *wired) WriteAll([]byte, time.Time) error { return nil }
func (s *wired) Alive() error                     { return nil }
func (s *wired) Close() error                     { return nil }

func (s *wired) ReadSome(p []byte, until time.Time) (int, error) {
	s.mu.Lock()
	n := copy(p, s.in)
	s.in = s.in[n:]
	s.mu.Unlock()
	if n > 0 {
		return n, nil
	}
	time.Sleep(min(time.Until(until), 10*time.Millisecond))
	return 0, ErrTimeout
}

func (s *wired) Lines() (byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lines, s.err
}

func (s *wired) set(lines byte, err error, in ...byte) {
	s.mu.Lock()
	s.lines, s.err, s.in = lines, err, append(s.in, in...)
	s.mu.Unlock()
}

// TestContacts: four contacts beside a device that talks on the same port.
func TestContacts(t *testing.T) {
	t.Parallel()
	a, b := ready(t, "modem-contacts"), parse(t, talks)
	l := open(t, Options{Name: "port", Connect: "serial:///dev/none", Devices: []Device{
		{Name: "doors", Map: a, Every: 10 * time.Millisecond, Base: 0}, {Name: "talks", Map: b, Every: time.Second, Base: 4}}})
	st, s := &wired{lines: lineCTS}, &sink{}
	l.wire.attach(st, time.Now())
	run(t, l, s.emit)
	is := func(want string) func() bool {
		return func() bool {
			got := s.readings(a, 0)
			return strings.Join([]string{got["contact_1"], got["contact_2"], got["contact_3"], got["contact_4"]}, " ") == want
		}
	}
	until(t, 3*time.Second, "the first look", is("true false false false"))
	st.set(lineCTS|lineDSR|lineRI|lineDCD, nil)
	until(t, 3*time.Second, "all on", is("true true true true"))
	st.set(lineDCD, nil, 0x42, 0x4d, 0, 1, 0x90)
	until(t, 3*time.Second, "one on, and a frame", func() bool {
		return is("false false true false")() && s.count(4, telemetry.Good, 0) == 1
	})
	if n := s.count(0, telemetry.Good, 0); n > 9 {
		t.Errorf("%d groups for three changes of up to four lines", n)
	}
	st.set(0, ErrNoLines)
	until(t, 3*time.Second, "none", is("comm/absent comm/absent comm/absent comm/absent"))
	until(t, 3*time.Second, "the reason", func() bool {
		var e *Error
		return errors.As(l.Stats().Devices[0].LastErr, &e) && e.Code == "no-modem-lines"
	})
	st.set(lineRI, nil)
	until(t, 3*time.Second, "back", is("false false false true"))
}

// TestDebounce: a change counts when it has lasted, each line by itself.
func TestDebounce(t *testing.T) {
	k := &contacts{debounce: 100 * time.Millisecond}
	now := time.Now()
	for i, c := range []struct {
		after time.Duration
		lines byte
		tell  bool
		want  byte
	}{
		{0, 0b0001, true, 0b0001},                         // as it is found
		{50, 0b0001, false, 0b0001},                       // nothing new
		{50, 0b0011, false, 0b0001},                       // it begins to change
		{50, 0b0001, false, 0b0001},                       // a bounce
		{50, 0b0011, false, 0b0001},                       // again
		{99, 0b0011, false, 0b0001},                       // not long enough
		{1, 0b0111, true, 0b0011},                         // long enough, and the next begins
		{100, 0b0111, true, 0b0111},                       //
		{10, 0b0000, false, 0b0111},                       // all off
		{100, 0b0000, true, 0b0000},                       // together
		{heartbeat / time.Millisecond, 0, true, 0},        // said again
		{heartbeat/time.Millisecond - 1, 0, false, 0},     //
		{1, 0, true, 0},                                   //
		{1000, 0b1000, false, 0}, {1000, 0b1000, true, 8}, // as seldom as it is looked at
	} {
		now = now.Add(c.after * time.Millisecond)
		if tell := k.look(c.lines, now); tell != c.tell || k.stable != c.want {
			t.Errorf("%d: %04b told %v, want %04b told %v", i, k.stable, tell, c.want, c.tell)
		}
	}
	k.reset()
	if !k.look(0b0010, now) || k.stable != 0b0010 {
		t.Error("a fresh line is not looked at anew")
	}
}

// TestNoModemLines: a pty has none, and says so.
func TestNoModemLines(t *testing.T) {
	t.Parallel()
	_, path := openPTY(t)
	l := open(t, Options{Name: "port", Connect: "serial://" + path, Devices: []Device{{Name: "doors", Map: ready(t, "modem-contacts"), Every: 10 * time.Millisecond}}})
	s := &sink{}
	run(t, l, s.emit)
	until(t, 3*time.Second, "the reason", func() bool {
		var e *Error
		return errors.As(l.Stats().Devices[0].LastErr, &e) && e.Code == "no-modem-lines" && strings.Contains(e.Hint(), "CTS")
	})
	if n := s.count(0, telemetry.Comm, telemetry.CauseAbsent); n != 1 || s.count(0, telemetry.Good, 0) > 0 {
		t.Errorf("%d groups without lines", n)
	}
	if st := l.Stats(); st.State != "open" {
		t.Errorf("the line is %s", st.State)
	}
	m, _ := parseLine("9600 8N1")
	_, path = openPTY(t)
	port, err := openPort(path, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := port.(*portStream).outputs("", ""); err != nil {
		t.Errorf("nothing to set: %v", err)
	}
	if err := port.(*portStream).outputs("", "low"); !errors.As(err, &e) || e.Code != "no-modem-lines" || !strings.Contains(e.What, "RTS") {
		t.Errorf("RTS of a pty: %v", err)
	}
	port.Close()
	if _, err := port.(*portStream).Lines(); !errors.Is(err, ErrGone) {
		t.Errorf("lines of a closed port: %v", err)
	}
	for err, want := range map[error]error{unix.ENOTTY: ErrNoLines, unix.EINVAL: ErrNoLines, unix.EIO: ErrGone, unix.ENODEV: ErrGone} {
		if got := linesError(err); !errors.Is(got, want) {
			t.Errorf("%v: %v", err, got)
		}
	}
	l = open(t, Options{Name: "head", Connect: "serial://" + path, RTS: "low", Devices: []Device{{Name: "m", Map: ready(t, "dsmr-p1")}}})
	run(t, l, s.emit)
	until(t, 3*time.Second, "the reason", func() bool { return errors.As(l.Stats().Err, &e) && e.Code == "no-modem-lines" })
}

// TestContactsNeedAPort: a network has no modem lines.
func TestContactsNeedAPort(t *testing.T) {
	for _, o := range []Options{
		{Connect: "serial+tcp://h:1", Devices: []Device{{Name: "doors", Profile: "x", Map: ready(t, "modem-contacts")}}},
		{Connect: "tcp://h:1", DTR: "low", Devices: []Device{{Name: "m", Unit: 1, Map: custom(t, 1), Profile: "x"}}},
		{Connect: "serial:///dev/x", Devices: []Device{{Name: "m", Profile: "x", Map: ready(t, "dsmr-p1"), Address: "1"}}},
		{Connect: "serial:///dev/x", Devices: []Device{{Name: "m", Profile: "x", Map: ready(t, "dsmr-p1"), MaxBaud: 300}}},
		{Connect: "serial:///dev/x", Devices: []Device{{Name: "m", Profile: "x", Map: ready(t, "iec62056-21"), MaxBaud: 301}}},
		{Connect: "serial:///dev/x", Devices: []Device{{Name: "m", Profile: "x", Map: ready(t, "iec62056-21"), Address: "1!"}}},
	} {
		var got []string
		o.Validate(func(path, msg, _ string) { got = append(got, path+": "+msg) })
		if len(got) != 1 {
			t.Errorf("%s: %q", o.Connect, got)
		}
	}
}
