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

// ScanStep tells how far a scan is: a text when something new begins or was
// found, or a count.
type ScanStep struct {
	Text     string
	Done, Of int
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

// likelyCount is how many units are asked at each line setting.
const likelyCount = 16

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
	s := &scan{at: at, o: o, say: say, walk: meterWalk, late: map[byte]bool{}}
	s.res.Connect = connect
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

// setIDs chooses the units to ask, and those that are asked first.
func (s *scan) setIDs() error {
	lo, hi := 1, 247
	if s.at.kind == kindTCP {
		lo, hi = 0, 255
	}
	for _, id := range slices.Concat(s.o.IDs, s.o.Likely) {
		if id < lo || id > hi {
			return fmt.Errorf("unit %d is outside %d..%d", id, lo, hi)
		}
	}
	if len(s.o.IDs) == 0 {
		if s.at.kind == kindTCP {
			s.o.IDs = []int{1, 255, 0}
		} else {
			for id := lo; id <= hi; id++ {
				s.o.IDs = append(s.o.IDs, id)
			}
		}
	}
	likely := slices.DeleteFunc(slices.Clone(s.o.Likely), func(id int) bool { return !slices.Contains(s.o.IDs, id) })
	for _, id := range s.o.IDs {
		if len(likely) < likelyCount && !slices.Contains(likely, id) {
			likely = append(likely, id)
		}
	}
	s.o.Likely = likely
	if s.o.Deep {
		s.o.Likely = s.o.IDs
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
		s.res.Requests, s.res.Took = s.w.count.Requests, time.Since(s.began)
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

// ask sends one read and waits until wait after the end of the request for
// the answer to begin. answered tells whether the unit is there, whatever it
// said; a gateway that speaks for a unit that is not there does not count.
func (s *scan) ask(ctx context.Context, id int, t profile.Table, addr, count uint16, wait time.Duration) (r result, answered bool, err error) {
	if ctx.Err() != nil {
		return r, false, ctx.Err()
	}
	a, err := newAsk(packager(s.at.kind, byte(id)), s.at.kind, byte(id), t, addr, count)
	if err != nil {
		return r, false, err
	}
	return s.send(ctx, a, wait)
}

// send is ask for any request that changes nothing.
func (s *scan) send(ctx context.Context, a *ask, wait time.Duration) (r result, answered bool, err error) {
	for try := 0; ; try++ {
		timeout := wait
		if try == 0 { // the wire adds the time of the whole answer, which is not over when it begins
			timeout = max(wait-s.w.char*time.Duration(a.expect), 0)
		}
		r, err = s.w.do(a, timeout, 0)
		var x Exception
		switch {
		case err == nil:
			return r, true, nil
		case errors.As(err, &x):
			if !s.at.serial && (x == 10 || x == 11) {
				s.res.Gateway = true
				return r, false, err
			}
			return r, true, err
		case errors.Is(err, ErrGone):
			if !s.at.serial && try == 0 && ctx.Err() == nil { // many devices hang up on what they do not like
				if err := s.redial(ctx); err != nil {
					return r, false, err
				}
				continue
			}
			return r, false, err
		case r.bytes == 0 && !r.sent.IsZero():
			// Nothing stirred: there is nothing to wait for, and an answer
			// that comes yet is told apart by its unit.
			s.w.dirty = false
			s.owed = append(s.owed, owed{a, r.sent})
			return r, false, err
		case r.answered && try < 2 && a.fc <= 4:
			wait = max(wait, scanSlow)
			continue
		}
		s.owed = append(s.owed, owed{a, r.sent})
		return r, r.answered, err
	}
}

// redial opens a connection that the other side has closed.
func (s *scan) redial(ctx context.Context) error {
	s.w.st.Close()
	st, err := s.open(ctx, s.mode)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	s.w.attach(st, time.Now())
	return nil
}

// alive asks whether a unit is there and takes it down if it is.
func (s *scan) alive(ctx context.Context, id int, t profile.Table, wait time.Duration) (bool, error) {
	r, answered, err := s.ask(ctx, id, t, 0, 1, wait)
	if answered {
		u := ScanUnit{ID: id, Answer: "registers", RTT: r.got.Sub(r.sent)}
		var x Exception
		if errors.As(err, &x) {
			u.Answer = fmt.Sprintf("exception %d", uint8(x))
		} else if err != nil {
			u.Answer = "damaged"
		}
		delete(s.late, byte(id))
		u.Slow = u.RTT > s.o.Timeout+s.w.char*20
		s.res.Units = append(s.res.Units, u)
		for all, i := s.res.Units, len(s.res.Units)-1; i > 0 && all[i].ID < all[i-1].ID; i-- {
			all[i], all[i-1] = all[i-1], all[i] // in order
		}
		return true, nil
	}
	if err != nil && (ctx.Err() != nil || errors.Is(err, ErrGone)) {
		return false, err
	}
	return false, nil
}

func (s *scan) has(id int) bool {
	return slices.ContainsFunc(s.res.Units, func(u ScanUnit) bool { return u.ID == id })
}

// belated asks those units again that have answered after their time.
func (s *scan) belated(ctx context.Context) (found bool, err error) {
	for id := range s.late {
		delete(s.late, id)
		if s.has(int(id)) || !slices.Contains(s.o.IDs, int(id)) {
			continue
		}
		ok, err := s.alive(ctx, int(id), profile.Holding, scanSlow)
		if err != nil {
			return found, err
		}
		found = found || ok
	}
	return found, nil
}

// find tries the line settings until a unit answers. On a network there is
// nothing to try.
func (s *scan) find(ctx context.Context) (bool, error) {
	s.res.Asked = len(s.o.Likely)
	if len(s.modes) == 0 {
		s.res.Asked = len(s.o.IDs)
		return true, nil
	}
	for i, m := range s.modes {
		s.say(ScanStep{Text: "asking " + number(len(s.o.Likely), "unit") + " at " + s.names[i], Done: i, Of: len(s.modes)})
		if err := s.set(m); err != nil {
			return false, err
		}
		s.res.Tried = i + 1
		found, err := s.anyone(ctx)
		if err != nil {
			return false, err
		}
		if found {
			s.res.Line, s.res.Asked = s.names[i], len(s.o.IDs)
			s.say(ScanStep{Text: fmt.Sprintf("valid answer from unit %d at %s", s.res.Units[0].ID, s.names[i])})
			return true, nil
		}
	}
	if err := s.set(s.modes[0]); err != nil {
		return false, err
	}
	found, err := s.again(ctx, true)
	if found {
		s.res.Line, s.res.Asked = s.names[0], len(s.o.IDs)
	}
	return found, err
}

// Some devices (those built on libmodbus) take a request that another unit
// leaves unanswered for the beginning of an exchange, and the next request for
// its answer; after half a second of silence they know better.
const (
	scanHush = 600 * time.Millisecond
	// againUntil is until when a scan takes the time for that.
	againUntil = time.Minute
)

// again asks the likely units that were silent once more, each after a long
// silence, and for input registers: some devices know nothing else. one ends
// it with the first that answers.
func (s *scan) again(ctx context.Context, one bool) (found bool, err error) {
	if s.at.kind == kindTCP {
		return false, nil
	}
	for _, id := range s.o.Likely[:min(len(s.o.Likely), likelyCount)] {
		if s.has(id) || time.Since(s.began) > againUntil {
			continue
		}
		if err := s.hush(ctx, time.Now().Add(scanHush)); err != nil {
			return found, err
		}
		ok, err := s.alive(ctx, id, profile.Input, s.o.Timeout)
		if found = found || ok; err != nil || ok && one {
			return found, err
		}
	}
	return found, nil
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

// anyone asks the likely units at one setting until one answers.
func (s *scan) anyone(ctx context.Context) (bool, error) {
	for _, id := range s.o.Likely {
		found, err := s.alive(ctx, id, profile.Holding, s.o.Timeout)
		if !found && err == nil && len(s.late) > 0 {
			found, err = s.belated(ctx)
		}
		if found || err != nil {
			return found, err
		}
	}
	return s.alive(ctx, s.o.Likely[0], profile.Input, s.o.Timeout)
}

// oddIDs are units that nobody sets: an endpoint that answers to all of them
// does not look at the unit.
var oddIDs = []int{113, 37, 211}

// sweep asks all units at the setting that was found.
func (s *scan) sweep(ctx context.Context) error {
	if any, err := s.anyID(ctx); any || err != nil {
		return err
	}
	s.say(ScanStep{Text: fmt.Sprintf("asking %s", span(s.o.IDs)), Of: len(s.o.IDs)})
	for i, id := range s.o.IDs {
		s.say(ScanStep{Done: i, Of: len(s.o.IDs)})
		if s.has(id) {
			continue
		}
		if _, err := s.alive(ctx, id, profile.Holding, s.o.Timeout); err != nil {
			return err
		}
	}
	if _, err := s.again(ctx, false); err != nil {
		return err
	}
	if _, err := s.belated(ctx); err != nil {
		return err
	}
	s.say(ScanStep{Done: len(s.o.IDs), Of: len(s.o.IDs)})
	return nil
}

// anyID finds out whether a network endpoint answers to every unit id; then
// one unit stands for all.
func (s *scan) anyID(ctx context.Context) (bool, error) {
	if s.at.serial {
		return false, nil
	}
	for _, id := range oddIDs {
		_, answered, err := s.ask(ctx, id, profile.Holding, 0, 1, s.o.Timeout)
		if err != nil && (ctx.Err() != nil || errors.Is(err, ErrGone)) {
			return false, err
		}
		if !answered {
			return false, nil
		}
	}
	for _, id := range s.o.IDs {
		if ok, err := s.alive(ctx, id, profile.Holding, s.o.Timeout); ok || err != nil {
			s.res.AnyID = ok
			return ok, err
		}
	}
	return false, nil
}

// span writes units as people do: "units 1 to 247", "units 1, 3, 7".
func span(ids []int) string {
	if len(ids) > 2 && ids[len(ids)-1]-ids[0] == len(ids)-1 {
		return fmt.Sprintf("units %d to %d", ids[0], ids[len(ids)-1])
	}
	if len(ids) == 1 {
		return fmt.Sprintf("unit %d", ids[0])
	}
	return "units " + list(ids)
}

// settle listens until no answer of the scan can come any more: whoever has
// the line next must not take one for his.
func (s *scan) settle(ctx context.Context) error {
	if s.at.kind == kindTCP || len(s.owed) == 0 {
		return nil
	}
	return s.hush(ctx, s.owed[len(s.owed)-1].sent.Add(scanSlow/2))
}
