package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidegate/driver/profile"
)

// ScanOptions say where a scan looks. The zero values mean the defaults.
type ScanOptions struct {
	Lines   []string // line settings to try, such as 9600 8E1; none: UsualLines, the line's own first
	IDs     []int    // units to ask: 1 to 247, on Modbus TCP 1, 255 and 0
	Likely  []int    // units that are asked at every line setting until one answers: 16 of IDs
	Deep    bool     // ask all IDs at every line setting, and try unusual settings as well
	Timeout time.Duration
	// Identify asks every unit that was found for its identification, too
	// (functions 43/14 and 17, which also only read).
	Identify bool
	MBus     bool // look for meters on an M-Bus instead; IDs are 0 to 250 then
	// Profiles are what the units found are compared with, and what is
	// listened for.
	Profiles []*profile.Profile
	TLS      *TLS   // of a tls:// line
	RS485    *RS485 // of a port whose direction the kernel switches
}

// ScanStep tells how far a scan is: a text with what is to be done when
// something new begins, a text alone when something was found, or a count.
type ScanStep struct {
	Text     string
	Done, Of int
	Found    *ScanResult // until now; the scan goes on with it when say returns
}

// ScanResult is what a scan has found.
type ScanResult struct {
	Connect  string
	Line     string // the setting at which an answer came, of meters on an M-Bus the one at which most do; "" on a network, or if none came
	MBus     bool   // the units are meters on an M-Bus
	Units    []ScanUnit
	Talkers  []ScanTalker // devices that talk by themselves
	AnyID    bool         // the endpoint answers to every unit id: the one unit listed stands for all
	Gateway  bool         // a gateway answered for units that are not there
	Noise    ScanNoise
	Tried    int           // line settings that were tried
	Asked    int           // units that were asked at Line, or at each setting if nothing answered
	Requests uint64        // reads that were sent
	Took     time.Duration // in all
	Cut      bool          // the time was over before the scan was
	// NotAsked are the settings at which meters on an M-Bus were called all at
	// once, and not at each of their primary addresses.
	NotAsked []ScanRest
}

// ScanRest is what a scan has left out, and how long it would take.
type ScanRest struct {
	Line  string
	Takes time.Duration
}

// ScanUnit is a unit that answered.
type ScanUnit struct {
	ID      int      // of a meter on an M-Bus -1: it has answered to its secondary address alone
	Address string   // secondary address of a meter; its number where that is all that is known
	Lines   []string // settings at which a meter on an M-Bus answers: several if it follows its master
	Answer  string   // registers, exception N, telegram, damaged
	RTT     time.Duration
	Slow    bool // it answered later than the timeout
	// Matches are the profiles all of whose reads fit, two or more of them.
	// The first Best of them are the answer: one if it is plain, several if
	// nothing that was read parts them, 0 if no profile fits.
	Matches []ScanMatch
	Best    int
	// Identity is what it says of itself, if asked: vendor, product, model ...
	Identity map[string]string
}

// ScanMatch is a profile that fits, and why.
type ScanMatch struct {
	Profile  string
	Evidence []string // what each read said, such as "voltage_l1 230.9 V"
}

// usualLines are the line settings that devices come with, in the order in
// which they are tried: those met most often first, slow ones early enough
// for a sweep at 1200 baud to be in time.
var usualLines = []string{
	"9600 8N1", "9600 8E1", "19200 8E1", "19200 8N1", "115200 8N1", "38400 8N1",
	"4800 8N1", "9600 8O1", "1200 8N1", "9600 8N2", "2400 8E1", "2400 8N1",
	"38400 8E1", "57600 8N1", "19200 8O1", "19200 8N2", "4800 8E1", "115200 8E1",
}

// UsualLines returns the line settings that a scan tries.
func UsualLines() []string { return slices.Clone(usualLines) }

// CheckLine returns why one of the line settings is none.
func CheckLine(settings ...string) error {
	for _, s := range settings {
		if _, err := parseLine(s); err != nil {
			return err
		}
	}
	return nil
}

// settings are the line settings to try where none is named.
func (o *ScanOptions) settings() []string {
	switch {
	case o.MBus:
		return meterLines
	case o.Deep:
		return deepLines()
	}
	return usualLines
}

// deepLines are the usual settings, then all others of the usual speeds.
func deepLines() []string {
	out := UsualLines()
	for _, baud := range []int{9600, 19200, 38400, 57600, 115200, 4800, 2400, 1200} {
		for _, format := range []string{"8N1", "8E1", "8O1", "8N2"} {
			if s := fmt.Sprintf("%d %s", baud, format); !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// How long a scan waits for an answer to begin where nothing else is said.
const (
	scanWait    = 100 * time.Millisecond
	scanWaitNet = 500 * time.Millisecond
	// scanSlow is how long a unit gets that has shown that it is slow.
	scanSlow = time.Second
)

// scan is one scan under way. It has the line to itself.
type scan struct {
	at          endpoint
	o           ScanOptions
	modes       []lineMode // settings to try; none on a network
	names       []string   // of modes
	open        func(context.Context, lineMode) (stream, error)
	say         func(ScanStep)
	w           wire
	mode        lineMode
	sent, heard time.Time     // the last message to meters, and its answer
	most        time.Duration // after which the line is taken back; 0: never
	walk        time.Duration // how long asking all primary addresses of an M-Bus may take at a setting at which nobody was heard
	late        map[byte]bool // units whose answer came after its time
	owed        []owed        // requests without an answer, the newest last
	began       time.Time
	res         ScanResult
}

// owed is a request that was not answered.
type owed struct {
	ask  *ask
	sent time.Time
}

// Scan looks for devices on a port or behind an address that no Line of this
// process has: connect is a connect string as in Options. It sends reads
// (function codes 1 to 4, with Identify also 17 and 43/14) to single units and nothing else. say is told what
// goes on; it may be nil.
//
// The error is that of opening, ErrGone when the line vanished, code
// other-master when somebody else asks on this line, or ctx's; the result
// holds what was found until then.
func Scan(ctx context.Context, connect string, o ScanOptions, say func(ScanStep)) (*ScanResult, error) {
	at, err := parseConnect(connect)
	if err != nil {
		return &ScanResult{Connect: connect}, &Error{Op: "scan", Code: "request", Err: fmt.Errorf("%w: %w", ErrRequest, err)}
	}
	s, err := newScan(at, connect, o, say)
	if err != nil {
		return &ScanResult{Connect: connect}, &Error{Op: "scan", Code: "request", Err: fmt.Errorf("%w: %w", ErrRequest, err)}
	}
	err = s.run(ctx)
	return &s.res, err
}

func newScan(at endpoint, connect string, o ScanOptions, say func(ScanStep)) (*scan, error) {
	if say == nil {
		say = func(ScanStep) {}
	}
	if at.secure && o.TLS == nil {
		return nil, errors.New("a tls:// line needs its certificates: scan it by the name it has in the configuration")
	}
	if at.kind == kindListen {
		at.kind = kindRTU // whoever is on it is looked for
	}
	s := &scan{at: at, o: o, walk: meterWalk, late: map[byte]bool{}}
	s.res.Connect = connect
	s.say = func(x ScanStep) {
		if s.measure(); o.MBus {
			s.meterLine()
		}
		x.Found = &s.res
		say(x)
	}
	s.w = wire{kind: at.kind, pk: packager(at.kind, 1), stray: func(f frame, _ time.Time) { s.late[f.unit] = true }}
	s.open = func(ctx context.Context, m lineMode) (stream, error) {
		if at.serial {
			return openPort(at.addr, m, o.RS485)
		}
		if at.secure {
			return dialTLS(ctx, at.addr, o.TLS, 3*time.Second)
		}
		return dialTCP(ctx, at.addr, 3*time.Second)
	}
	if s.res.MBus = o.MBus; o.MBus {
		if err := s.setLines(); err != nil {
			return nil, err
		}
		return s, s.meterIDs()
	}
	if s.o.Timeout == 0 {
		s.o.Timeout = scanWait
		if !at.serial {
			s.o.Timeout = scanWaitNet
		}
	}
	if err := s.setLines(); err != nil {
		return nil, err
	}
	return s, s.setIDs()
}

// setLines chooses the line settings to try.
func (s *scan) setLines() error {
	if !s.at.serial {
		if s.at.kind == kindRTU {
			s.w.gap = 1750 * time.Microsecond
		}
		return nil
	}
	names := s.o.Lines
	if len(names) == 0 {
		names = s.o.settings()
	}
	for _, n := range names {
		m, err := parseLine(n)
		if err != nil {
			return err
		}
		if !slices.Contains(s.names, n) {
			s.modes, s.names = append(s.modes, m), append(s.names, n)
		}
	}
	return nil
}

// run does the whole scan and closes the stream.
func (s *scan) run(ctx context.Context) (err error) {
	s.began = time.Now()
	defer func() {
		if s.w.st != nil {
			s.w.st.Close()
			s.w.st = nil
		}
		s.measure()
		if err != nil && errors.Is(context.Cause(ctx), errLeaseOver) {
			s.res.Cut, err = true, nil
		}
	}()
	if len(s.modes) > 0 {
		s.mode = s.modes[0]
	}
	st, err := s.open(ctx, s.mode)
	if err != nil {
		return err
	}
	s.w.attach(st, time.Now())
	if s.at.serial {
		if done, err := s.overhear(ctx); done || err != nil {
			return err
		}
	}
	if s.o.MBus {
		return s.scanMeters(ctx)
	}
	found, err := s.find(ctx)
	if err != nil || !found {
		return err
	}
	if err := s.sweep(ctx); err != nil {
		return err
	}
	if err := s.recognise(ctx); err != nil {
		return err
	}
	if s.o.Identify {
		if err := s.identify(ctx); err != nil {
			return err
		}
	}
	return s.settle(ctx)
}

// measure brings what the scan has cost up to date.
func (s *scan) measure() { s.res.Requests, s.res.Took = s.w.count.Requests, time.Since(s.began) }

// set changes the line setting.
func (s *scan) set(m lineMode) error {
	if m == s.mode && s.w.char == m.char() {
		return nil
	}
	if st, ok := s.w.st.(interface{ SetMode(lineMode) error }); ok && m != s.mode {
		if err := st.SetMode(m); err != nil {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
	s.mode = m
	s.w.char, s.w.gap = m.char(), m.silence()
	s.w.attach(s.w.st, time.Now())
	return nil
}

// hush listens without asking.
func (s *scan) hush(ctx context.Context, until time.Time) error {
	for time.Now().Before(until) && ctx.Err() == nil {
		if err := s.w.hear(until); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// settle listens until no answer of the scan can come any more: whoever has
// the line next must not take one for his.
func (s *scan) settle(ctx context.Context) error {
	if s.at.kind == kindTCP || len(s.owed) == 0 {
		return nil
	}
	return s.hush(ctx, s.owed[len(s.owed)-1].sent.Add(scanSlow/2))
}
