package document

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

const width = 80 // columns of a serial console

// source is the text of a file by lines, shared by its problems.
type source struct{ lines []string }

// Excerpt is p.Text().
func (d *Document) Excerpt(p Problem) string { return p.Text() }

// Text returns the problem as `tidegate check` prints it: a line with file,
// line, column, message and code, then the line of the file with a caret and
// the hint. It is ASCII, ends in a line feed, and keeps to 80 columns where
// the words allow it.
//
//	tidegate.yaml:14:13: error: unknown parity "EVN"                [config-value]
//	   13 |   bus-a:
//	   14 |     parity: EVN
//	      |             ^^^ expected none, even or odd; did you mean "even"?
func (p Problem) Text() string {
	var b strings.Builder
	word := "error"
	if p.Warning {
		word = "warn"
	}
	place := p.File
	if p.Line > 0 {
		place = fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
	}
	head(&b, ascii(place+": "+word+": "+p.Msg), "["+p.Code+"]")
	p.excerpt(&b)
	return b.String()
}

// Advice returns the hint and the suggestion as one line; may be empty.
func (p Problem) Advice() string {
	s := p.Hint
	if p.Suggest != "" {
		if s != "" {
			s += "; "
		}
		s += fmt.Sprintf("did you mean %q?", p.Suggest)
	}
	return s
}

func head(b *strings.Builder, text, code string) {
	lines := wrap(text, width, width, "    ")
	last := lines[len(lines)-1]
	if pad := width - len(last) - len(code); pad >= 2 {
		lines[len(lines)-1] = last + strings.Repeat(" ", pad) + code
	} else {
		lines = append(lines, strings.Repeat(" ", max(4, width-len(code)))+code)
	}
	for _, l := range lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
}

const gutter = "      | "

func (p Problem) excerpt(b *strings.Builder) {
	advice := ascii(p.Advice())
	if p.Warning && advice == "" {
		return
	}
	if p.src == nil || p.Line < 1 || p.Line > len(p.src.lines) {
		for _, l := range wrap(advice, width-len(gutter), width-len(gutter), "") {
			if l != "" {
				b.WriteString(gutter + l + "\n")
			}
		}
		return
	}
	if n := p.src.parent(p.Line); n > 0 {
		text, _, _ := show(p.src.lines[n-1], 1, 0)
		fmt.Fprintf(b, "%5d | %s\n", n, text)
	}
	text, from, carets := show(p.src.lines[p.Line-1], p.Col, p.Len)
	fmt.Fprintf(b, "%5d | %s\n", p.Line, text)
	if carets == 0 {
		from, carets = 0, 0
	}
	mark := strings.Repeat(" ", from) + strings.Repeat("^", carets)
	room := width - len(gutter)
	if advice == "" {
		if carets > 0 {
			b.WriteString(gutter + mark + "\n")
		}
		return
	}
	if carets > 0 && len(mark)+1+len(advice) <= room {
		b.WriteString(gutter + mark + " " + advice + "\n")
		return
	}
	indent := ""
	if carets > 0 {
		b.WriteString(gutter + mark + "\n")
		if from+len(advice) <= room {
			indent = strings.Repeat(" ", from)
		} else if from >= 4 {
			indent = "    "
		}
	}
	for _, l := range wrap(advice, room-len(indent), room-len(indent), "") {
		b.WriteString(gutter + indent + l + "\n")
	}
}

// parent returns the number of the line of the key that holds line n, 0 if
// there is none or it is far away.
func (s *source) parent(n int) int {
	depth := func(l string) int { return len(l) - len(strings.TrimLeft(l, " ")) }
	own := depth(s.lines[n-1])
	for k := n - 1; k >= 1 && own > 0; k-- {
		l := s.lines[k-1]
		t := strings.TrimSpace(l)
		if t == "" || t[0] == '#' {
			continue
		}
		if depth(l) < own && strings.Contains(t, ":") {
			return k
		}
	}
	return 0
}

// show prints one line of the file in at most 72 columns of ASCII: tabs as
// \t, other characters as ?, and a window around the place col..col+length.
// It returns the text, and where the carets stand in it.
func show(line string, col, length int) (text string, from, carets int) {
	var cells []string
	for _, r := range mask(strings.TrimRight(line, " \t\r")) {
		switch {
		case r == '\t':
			cells = append(cells, `\t`)
		case r < ' ' || r >= 0x7f:
			cells = append(cells, "?")
		default:
			cells = append(cells, string(r))
		}
	}
	const room = width - len(gutter)
	lo := min(max(col-1, 0), len(cells))
	hi := min(lo+length, len(cells))
	if length > 0 && hi == lo {
		hi = lo + 1 // just behind the end of the line
	}
	total := 0
	for _, c := range cells {
		total += len(c)
	}
	first, last := 0, len(cells)
	if total > room {
		if lo > room-24 {
			first = lo - 24
		}
		used := 0
		for last = first; last < len(cells) && used+len(cells[last]) <= room-6; last++ {
			used += len(cells[last])
		}
	}
	if first > 0 {
		text = "..."
	}
	for i := first; i < last; i++ {
		if i == lo {
			from = len(text)
		}
		if i >= lo && i < hi {
			carets += len(cells[i])
		}
		text += cells[i]
	}
	if lo >= last {
		from = len(text)
		if length > 0 {
			carets = 1
		}
	}
	if last < len(cells) {
		text += "..."
	}
	return text, from, carets
}

var secrets = regexp.MustCompile(`(?i)(?:password|passwd|secret|token|passphrase)["']?\s*:\s*([^\s,}][^,}]*)|://([^/\s"'@]*:[^/\s"'@]*)@`)

// mask hides what may be a password: `check` may run where its output is kept.
func mask(line string) string {
	for _, m := range secrets.FindAllStringSubmatchIndex(line, -1) {
		for g := 2; g < len(m); g += 2 {
			if m[g] >= 0 {
				stars := strings.Repeat("*", utf8.RuneCountInString(line[m[g]:m[g+1]]))
				return line[:m[g]] + stars + mask(line[m[g+1]:])
			}
		}
	}
	return line
}

// wrap breaks text between words; the first line holds at most first
// columns, the others rest, each with indent before it. At least one line.
func wrap(text string, first, rest int, indent string) []string {
	if len(text) <= first {
		return []string{text}
	}
	var lines []string
	line, room := "", first
	for _, w := range words(text) {
		switch {
		case line == "":
			line = w
		case len(line)+1+len(w) <= room:
			line += " " + w
		default:
			lines = append(lines, line)
			line, room = indent+w, rest
		}
	}
	return append(lines, line)
}

// words splits at spaces, but not inside quotes.
func words(text string) []string {
	var out []string
	for _, w := range strings.Split(text, " ") {
		if n := len(out); n > 0 && strings.Count(out[n-1], `"`)%2 == 1 && strings.Count(text, `"`)%2 == 0 && len(out[n-1])+len(w) < 60 {
			out[n-1] += " " + w
			continue
		}
		out = append(out, w)
	}
	return out
}

// ascii replaces what a serial console cannot show by "?".
func ascii(s string) string {
	ok := true
	for i := 0; i < len(s); i++ {
		ok = ok && s[i] >= ' ' && s[i] < utf8.RuneSelf && s[i] != 0x7f
	}
	if ok {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}
