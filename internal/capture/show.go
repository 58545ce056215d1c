package capture

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"tidegate/driver/profile"
	"tidegate/internal/telemetry"
)

// Show writes what passed, a line for each request and each answer: the time,
// the bytes, and what they mean. find returns the profile of a name, nil if
// there is none.
func Show(w io.Writer, h *Header, events []Event, find func(name string) *profile.Profile) error {
	s := shower{h: h, find: find}
	for _, x := range Exchanges(h, events) {
		if x.Lost > 0 {
			s.line(x.At, "--", nil, fmt.Sprintf("%d events before this were not recorded: the receiver was too slow", x.Lost))
		}
		if x.Mark != "" {
			s.line(x.At, "--", nil, map[string]string{"open": "the line is open", "gone": "the line is gone"}[x.Mark])
			continue
		}
		if x.Request != nil {
			s.line(x.At, "tx", x.Request, s.request(x.Request))
		}
		switch {
		case len(x.Answer) > 0:
			text := s.answer(&x)
			if x.Request != nil {
				text += fmt.Sprintf("  %.1f ms", float64(x.Answered.Sub(x.At).Microseconds())/1000)
			}
			s.line(x.Answered, "rx", x.Answer, text)
		case x.Request != nil && !x.Ended.IsZero():
			s.line(x.Ended, "--", nil, fmt.Sprintf("no answer within %d ms, 0 bytes", x.Ended.Sub(x.At).Milliseconds()))
		case x.Request != nil:
			s.line(x.At, "--", nil, "no answer, and the recording ends")
		}
	}
	_, err := io.WriteString(w, s.b.String())
	return err
}

type shower struct {
	h    *Header
	find func(string) *profile.Profile
	b    strings.Builder
}

// shown is how many bytes of a frame are written out.
const shown = 24

func (s *shower) line(at time.Time, dir string, b []byte, text string) {
	h := Hex(b[:min(len(b), shown)])
	if len(b) > shown {
		h += fmt.Sprintf(" +%d", len(b)-shown)
	}
	if len(h) > 36 && text != "" {
		text = "\n" + strings.Repeat(" ", 19) + text
	}
	out := fmt.Sprintf("%s %s %-36s  %s", at.Local().Format("15:04:05.000000"), dir, h, text)
	for line := range strings.Lines(out) {
		s.b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

// request says what is asked.
func (s *shower) request(b []byte) string {
	f := s.h.Framing()
	if f == "serial" {
		return printable(b)
	}
	p, err := profile.Unwrap(f, b)
	if err != nil || len(p) < 2 {
		return "no whole request"
	}
	what := fmt.Sprintf("unit %d function %d", p[0], p[1])
	switch fn := p[1]; {
	case fn >= 1 && fn <= 4 && len(p) == 6:
		first, n := wordAt(p, 2), wordAt(p, 4)
		what = fmt.Sprintf("unit %d read %v %s", p[0], profile.Table(fn), span(first, n))
	case (fn == 5 || fn == 6) && len(p) == 6:
		what = fmt.Sprintf("unit %d write %v %d = %d", p[0], map[byte]profile.Table{5: profile.Coils, 6: profile.Holding}[fn], wordAt(p, 2), wordAt(p, 4))
	case (fn == 15 || fn == 16) && len(p) > 6:
		what = fmt.Sprintf("unit %d write %v %s", p[0], map[byte]profile.Table{15: profile.Coils, 16: profile.Holding}[fn], span(wordAt(p, 2), wordAt(p, 4)))
	}
	return what
}

func span(first, n int) string {
	if n == 1 {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d..%d", first, first+n-1)
}

// answer says what came.
func (s *shower) answer(x *Exchange) string {
	f := s.h.Framing()
	if f == "serial" {
		return s.spoken(x.Answer)
	}
	p, err := profile.Unwrap(f, x.Answer)
	switch {
	case err != nil:
		return fmt.Sprintf("%d bytes, no valid frame: %v", len(x.Answer), err)
	case len(p) == 3 && p[1]&0x80 != 0:
		return fmt.Sprintf("refused: exception %d%s", p[2], map[byte]string{1: ", illegal function", 2: ", illegal data address",
			3: ", illegal data value", 4: ", device failure", 6: ", busy", 10: ", gateway path", 11: ", gateway target silent"}[p[2]])
	case x.Request == nil:
		return fmt.Sprintf("unit %d function %d, to whom is not known", p[0], p[1])
	}
	for i := range s.h.Devices {
		d := &s.h.Devices[i]
		m := s.find(d.Profile)
		if d.Unit != int(p[0]) || m == nil || m.Frames != nil {
			continue
		}
		if got, err := m.DecodeExchange(f, x.Request, x.Answer); err == nil && len(got) > 0 {
			return "ok  " + d.Name + ": " + Readings(m, got, 4)
		}
	}
	if p[1] > 4 {
		return "ok"
	}
	return fmt.Sprintf("ok  %d bytes of data", len(p)-3)
}

// spoken says what a serial device has said, by the profiles of the line.
func (s *shower) spoken(b []byte) string {
	var said []string
	for i := range s.h.Devices {
		d := &s.h.Devices[i]
		m := s.find(d.Profile)
		if m == nil || m.Frames == nil {
			continue
		}
		frames := 0
		sc := m.NewScanner()
		take := func(raw []byte) {
			if unit, ok := m.Sender(raw); ok && d.Unit > 0 && unit != d.Unit {
				return
			}
			frames++
			if got := m.DecodeFrame(raw, 0, nil); len(got) > 0 {
				said = append(said, d.Name+": "+Readings(m, got, 4))
			}
		}
		sc.Feed(b, take)
		sc.Flush(take)
		if frames > 0 && len(said) == 0 {
			said = append(said, d.Name+": a frame without values")
		}
	}
	if len(said) == 0 {
		return printable(b)
	}
	return "ok  " + strings.Join(said, "; ")
}

// Readings writes readings in a line, at most most of them.
func Readings(p *profile.Profile, got []telemetry.Reading, most int) string {
	var out []string
	for i, r := range got {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(got)-i))
			break
		}
		pt := &p.Points[r.Point]
		out = append(out, strings.TrimSpace(pt.Name+" "+profile.ReadingText(r)+" "+unit(r, pt.Unit)))
	}
	return strings.Join(out, ", ")
}

func unit(r telemetry.Reading, u string) string {
	if r.Value.Kind() == telemetry.None {
		return ""
	}
	return u
}

// printable returns bytes as text where they are one.
func printable(b []byte) string {
	t := strings.TrimRight(string(b), "\r\n")
	if t == "" || !utf8.ValidString(t) || strings.ContainsFunc(t, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return fmt.Sprintf("%d bytes", len(b))
	}
	return fmt.Sprintf("%q", t)
}
