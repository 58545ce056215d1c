package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidegate/driver/mbus"
	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// meterLines are the settings that meters on an M-Bus come with, in the order
// in which they are tried.
var meterLines = []string{"2400 8E1", "300 8E1", "9600 8E1"}

// What a meter said to one message.
type meterAnswer uint8

const (
	meterSilent  meterAnswer = iota
	meterAcks                // E5
	meterSpeaks              // a sound telegram
	meterDamaged             // bytes that are neither: several at once, or noise
	meterRefuses             // a sound frame without data that can be read
)

// meterWalk is how long asking all primary addresses may take at a setting at
// which nobody answered a call to all: 2400 and 9600 baud take a minute, 300
// baud six.
const meterWalk = 2 * time.Minute

// scanMeters looks for meters on an M-Bus: at which settings anything answers
// when all are called, a segment may have several; at each of them by primary
// address, then by secondary address, digit for digit where several answer at
// once. Not every meter answers to 254, so the primary addresses are asked at
// the other settings as well, after those, where that is no matter of many
// minutes. It sends what initialises the link, selects and asks for data, and
// nothing that changes a meter.
func (s *scan) scanMeters(ctx context.Context) error {
	settings := max(len(s.modes), 1)
	s.res.Tried, s.res.Asked = len(s.modes), len(s.o.IDs)
	var heard, rest []int
	for i := range settings {
		if err := s.setMeterLine(i, settings); err != nil {
			return err
		}
		there, err := s.anyMeter(ctx)
		if err != nil {
			return err
		}
		if there {
			heard = append(heard, i)
		} else {
			rest = append(rest, i)
		}
		if len(s.modes) > 0 {
			s.res.NotAsked = append(s.res.NotAsked, ScanRest{s.names[i], s.walkTime(s.modes[i].char())})
		}
	}
	defer s.meterLine()
	for _, i := range heard {
		if err := s.metersAt(ctx, i); err != nil {
			return err
		}
	}
	asked := len(heard)
	for _, i := range rest {
		if !s.o.Deep && !s.affords(i) {
			continue
		}
		if err := s.metersAt(ctx, i); err != nil {
			return err
		}
		asked++
	}
	if asked == 0 {
		return s.metersAt(ctx, 0)
	}
	return nil
}

// metersAt looks for meters at one of the settings.
func (s *scan) metersAt(ctx context.Context, i int) error {
	at := ""
	if len(s.modes) > 0 {
		if err := s.set(s.modes[i]); err != nil {
			return err
		}
		at = s.names[i]
	}
	if err := s.primary(ctx, at); err != nil {
		return err
	}
	s.res.NotAsked = slices.DeleteFunc(s.res.NotAsked, func(r ScanRest) bool { return r.Line == at })
	return s.secondary(ctx, at)
}

// walkTime is how long it takes to ask all primary addresses if none answers,
// at this time for a character.
func (s *scan) walkTime(char time.Duration) time.Duration {
	quiet, wait := s.meterTimes(char)
	return time.Duration(len(s.o.IDs)) * (quiet + 5*char + wait)
}

// affords says whether there is the time to ask all primary addresses at a
// setting at which nobody was heard.
func (s *scan) affords(i int) bool {
	if len(s.modes) == 0 {
		return true
	}
	d := s.walkTime(s.modes[i].char())
	return d <= s.walk && (s.most == 0 || time.Since(s.began)+d <= s.most)
}

// meterLine chooses the setting at which most meters answer, the one tried
// first of several. Inlined it would be in the binary three times.
//
//go:noinline
func (s *scan) meterLine() {
	s.res.Line = ""
	n := map[string]int{}
	for _, u := range s.res.Units {
		for _, l := range u.Lines {
			if n[l] += 2; u.Answer == "damaged" {
				n[l]-- // of several meters, or none at all
			}
		}
	}
	for _, l := range s.names {
		if n[l] > n[s.res.Line] {
			s.res.Line = l
		}
	}
}

func (s *scan) setMeterLine(i, of int) error {
	if len(s.modes) == 0 {
		return nil
	}
	s.say(ScanStep{Text: "calling all meters at " + s.names[i], Done: i, Of: of})
	return s.set(s.modes[i])
}

// anyMeter calls all meters at once, by both ways.
func (s *scan) anyMeter(ctx context.Context) (bool, error) {
	for _, msg := range [][]byte{mbus.Short(mbus.SndNke, mbus.Any), selectMeters(bytes.Repeat([]byte{0xff}, 8))} {
		what, _, err := s.meterSays(ctx, msg)
		if what != meterSilent || err != nil {
			return err == nil, err
		}
	}
	return false, nil
}

func selectMeters(mask []byte) []byte { return mbus.Long(mbus.SndUd, mbus.Selected, 0x52, mask...) }

// primary asks all primary addresses.
func (s *scan) primary(ctx context.Context, at string) error {
	text := meterStep("asking primary addresses", at)
	if s.w.char > 0 {
		text += fmt.Sprintf(", %.0f s", math.Ceil(s.walkTime(s.w.char).Seconds()))
	}
	s.say(ScanStep{Text: text, Of: len(s.o.IDs)})
	for i, id := range s.o.IDs {
		s.say(ScanStep{Done: i, Of: len(s.o.IDs)})
		what, _, err := s.meterSays(ctx, mbus.Short(mbus.SndNke, byte(id)))
		if err != nil {
			return err
		}
		if what == meterSilent {
			continue
		}
		what, t, err := s.meterSays(ctx, mbus.Short(mbus.ReqUd2|mbus.FCB, byte(id)))
		if err != nil {
			return err
		}
		s.meterFound(id, "", at, what, t)
	}
	s.say(ScanStep{Done: len(s.o.IDs), Of: len(s.o.IDs)})
	return nil
}

func meterStep(what, at string) string {
	if at != "" {
		what += " at " + at
	}
	return what
}

// secondary looks for the meters whose address begins as the digits do.
func (s *scan) secondary(ctx context.Context, at string) error {
	s.say(ScanStep{Text: meterStep("looking for secondary addresses", at), Of: 1})
	if err := s.branch(ctx, "", at); err != nil {
		return err
	}
	_, _, err := s.meterSays(ctx, mbus.Short(mbus.SndNke, mbus.Selected)) // nobody stays selected
	return err
}

func (s *scan) branch(ctx context.Context, digits, at string) error {
	mask, err := mbus.AddressBytes(digits + strings.Repeat("F", 8-len(digits)))
	if err != nil {
		return err
	}
	what, t, err := s.meterSays(ctx, selectMeters(mask))
	if err != nil || what == meterSilent {
		return err
	}
	if what, t, err = s.meterSays(ctx, mbus.Short(mbus.ReqUd2|mbus.FCB, mbus.Selected)); err != nil {
		return err
	}
	several := what != meterSpeaks && what != meterRefuses
	if several && len(digits) < 8 {
		for d := range 10 {
			if err := s.branch(ctx, digits+strconv.Itoa(d), at); err != nil {
				return err
			}
		}
		return nil
	}
	if what == meterSpeaks && (t.Header || t.Fixed) {
		digits = t.ID
	}
	if what != meterSilent {
		s.meterFound(-1, digits, at, what, t)
	}
	return nil
}

// meterSays sends a message, twice where nothing sound comes back, and tells
// what was heard.
func (s *scan) meterSays(ctx context.Context, msg []byte) (what meterAnswer, t *mbus.Telegram, err error) {
	for range 2 {
		if ctx.Err() != nil {
			return 0, nil, ctx.Err()
		}
		var in []byte
		if in, err = s.meterBytes(msg); err != nil {
			return 0, nil, err
		}
		if what, t = judgeMeter(in); what != meterDamaged {
			break
		}
	}
	return what, t, nil
}

func judgeMeter(in []byte) (meterAnswer, *mbus.Telegram) {
	what := meterSilent
	for len(in) > 0 {
		f, n, err := mbus.ParseFrame(in)
		switch {
		case err != nil:
			what, in = meterDamaged, in[1:]
			continue
		case f.Ack && what == meterSilent && n == len(in):
			return meterAcks, nil
		case f.Response() && what == meterSilent && n == len(in):
			if t, err := mbus.Parse(f); err == nil {
				return meterSpeaks, t
			}
			return meterRefuses, nil
		case f.FromMaster(): // our own
		default:
			what = meterDamaged
		}
		in = in[n:]
	}
	return what, nil
}

// meterTimes are the silence before a message, and how long an answer may take
// to begin: meters need 11 to 330 bit times and 50 ms (EN 13757-2).
func (s *scan) meterTimes(char time.Duration) (quiet, wait time.Duration) {
	if wait = s.o.Timeout; wait == 0 {
		wait = 100*time.Millisecond + 30*char
		if len(s.modes) == 0 {
			wait = scanWaitNet + 400*time.Millisecond // a serial server of unknown speed
		}
	}
	return max(30*time.Millisecond, 3*char), wait
}

// meterBytes sends a message and returns what is heard until it is quiet
// again.
func (s *scan) meterBytes(msg []byte) (in []byte, err error) {
	var buf [512]byte
	quiet, wait := s.meterTimes(s.w.char)
	for until := time.Now().Add(quiet); time.Now().Before(until); {
		if _, err := s.w.st.ReadSome(buf[:], until); err != nil && !errors.Is(err, ErrTimeout) {
			return nil, err
		}
	}
	now := time.Now()
	sending := s.w.char * time.Duration(len(msg))
	if err := s.w.st.WriteAll(msg, now.Add(time.Second+2*sending)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	s.w.count.Requests++
	s.sent = time.Now()
	until := s.sent.Add(sending + wait)
	most := until.Add(2*time.Second + 270*s.w.char)
	for time.Now().Before(most) {
		n, err := s.w.st.ReadSome(buf[:], until)
		if errors.Is(err, ErrTimeout) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(in) == 0 {
			s.heard = time.Now()
		}
		in = append(in, buf[:n]...)
		if bytes.Equal(in, msg) { // our own bytes come back
			in = nil
			continue
		}
		until = time.Now().Add(max(60*time.Millisecond, 33*s.w.char))
	}
	return in, nil
}

// meterFound takes down a meter; digits are of a number that is called by
// several, or whose telegram says nothing of it.
func (s *scan) meterFound(id int, digits, at string, what meterAnswer, t *mbus.Telegram) {
	u := ScanUnit{ID: id, Answer: "telegram", Address: digits, RTT: s.heard.Sub(s.sent)}
	switch {
	case what == meterSpeaks && (t.Header || t.Fixed):
		if u.Address = t.Address(); t.Fixed {
			u.Address = t.ID
		}
		u.Identity = map[string]string{"number": t.ID, "medium": mbus.Medium(t.Device)}
		if t.Header {
			u.Identity["manufacturer"], u.Identity["version"] = t.Maker, strconv.Itoa(int(t.Version))
		}
	case what == meterDamaged:
		u.Answer = "damaged"
	case what != meterSpeaks:
		u.Answer = "no data"
	}
	if what == meterSpeaks {
		u.Matches, u.Best = s.meterMatches(t)
	}
	if at != "" {
		u.Lines = []string{at}
	}
	for i := range s.res.Units {
		o := &s.res.Units[i]
		if u.Address == "" || o.Address != u.Address || id >= 0 && o.ID >= 0 && o.ID != id {
			continue
		}
		if at != "" && !slices.Contains(o.Lines, at) {
			o.Lines = append(o.Lines, at) // a meter that follows the speed of the master
		}
		return // by its other address
	}
	s.res.Units = append(s.res.Units, u)
	name := "meter " + u.Address
	if id >= 0 {
		name = fmt.Sprintf("meter at %d", id)
	}
	s.say(ScanStep{Text: "answer from " + name})
}

// meterMatches compares a telegram with the profiles of meters: one that was
// made from a meter of this medium, and then one that reads more of it, comes
// first.
func (s *scan) meterMatches(t *mbus.Telegram) (out []ScanMatch, best int) {
	type fit struct {
		m      ScanMatch
		medium bool
		n      int
	}
	var fits []*fit
	for _, p := range s.o.Profiles {
		if !p.MBus() {
			continue
		}
		f := &fit{m: ScanMatch{Profile: p.Name}, medium: slices.Contains(p.Media(), t.Device)}
		for _, r := range p.DecodeTelegram(t, 0, nil) {
			pt := &p.Points[r.Point]
			if r.Quality != telemetry.Good || pt.MBus == nil || pt.MBus.Header != "" {
				continue
			}
			if f.n++; f.n <= 3 {
				f.m.Evidence = append(f.m.Evidence, strings.TrimSpace(pt.Name+" "+profile.ReadingText(r)+" "+pt.Unit))
			}
		}
		if f.n > 0 {
			fits = append(fits, f)
		}
	}
	slices.SortStableFunc(fits, func(a, b *fit) int {
		if a.medium != b.medium {
			if a.medium {
				return -1
			}
			return 1
		}
		return b.n - a.n
	})
	for _, f := range fits {
		if fits[0].medium && !f.medium {
			continue
		}
		if f.medium == fits[0].medium && f.n == fits[0].n {
			best++
		}
		f.m.Evidence = append(f.m.Evidence, fmt.Sprintf("%d of %d records", f.n, len(t.Records)))
		out = append(out, f.m)
	}
	if len(out) > 0 && !fits[0].medium {
		best = len(out) // none was made for such a meter
	}
	return out, best
}

// meterIDs are the primary addresses to ask.
func (s *scan) meterIDs() error {
	for _, id := range s.o.IDs {
		if id < 0 || id > mbus.MaxUnit {
			return fmt.Errorf("unit %d is outside 0..%d", id, mbus.MaxUnit)
		}
	}
	if len(s.o.IDs) == 0 {
		for id := range mbus.MaxUnit + 1 {
			s.o.IDs = append(s.o.IDs, id)
		}
	}
	return nil
}
