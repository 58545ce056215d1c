// Package document reads a strict YAML file and keeps the place of every key
// and value, so that each problem can be shown with file, line, column, an
// excerpt and a caret.
//
// The syntax is parsed by goccy/go-yaml; binding to structs is done here, and
// it does not stop at the first problem: an unknown key, a repeated key, a
// wrong type, a bad duration and a missing key of one file are all found in
// one pass. Anchors, aliases, merge keys and tags are refused: what a file
// says can be read on the line where it says it.
package document

import (
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// MaxSize is the largest file Parse reads, in bytes.
const MaxSize = 1 << 20

// The codes of problems that this package reports itself.
const (
	CodeSyntax  = "config-syntax"  // not YAML, or YAML that tidegate does not take
	CodeKey     = "config-key"     // unknown or repeated key
	CodeValue   = "config-value"   // wrong type, form or range of a value
	CodeMissing = "config-missing" // a key or value that must be there is not
)

// Problem is one finding in a file.
type Problem struct {
	File    string // as given to Parse
	Line    int    // from 1; 0 if the problem has no place in the file
	Col     int    // from 1, in characters
	Len     int    // characters the caret covers; 0 for none
	Path    string // such as "buses.meters.devices.boiler.unit"
	Code    string // stable word such as "config-value"
	Msg     string // what is wrong, without a full stop
	Hint    string // what was expected or what to do; may be empty
	Suggest string // the one word that was probably meant; may be empty
	Warning bool   // true if the file can be used all the same

	src *source
}

// Document is one parsed file and the problems found in it so far.
// It is not safe for concurrent use.
type Document struct {
	file     string
	src      *source
	root     *node
	problems []Problem
	left     int     // problems behind the first maxProblems
	rest     Problem // what stands for them
	broken   bool    // a syntax error: some sections may be lost
}

// Parse reads a file. It never returns nil and never panics: what is not
// YAML is a problem with the code config-syntax. After a syntax error the
// sections (top-level keys) that are not touched by it are still there.
func Parse(file string, src []byte) *Document {
	d := &Document{file: file, src: &source{}}
	d.parse(src)
	return d
}

// Broken reports whether the file has a syntax error, so that sections may
// be lost and a missing key proves nothing.
func (d *Document) Broken() bool { return d.broken }

// Problems returns what was found so far, sorted by position: the first 500,
// then one that says how many there are more.
func (d *Document) Problems() []Problem {
	out := slices.Clone(d.problems)
	sort.SliceStable(out, func(i, k int) bool {
		a, b := &out[i], &out[k]
		return a.Line < b.Line || a.Line == b.Line && a.Col < b.Col
	})
	if d.left > 0 {
		d.rest.Msg = fmt.Sprintf("and %d more", d.left)
		out = append(out, d.rest)
	}
	return out
}

// Has reports whether the file holds a value at path.
func (d *Document) Has(path string) bool {
	n, _, rest := d.find(path)
	return rest == "" && n != nil
}

// Keys returns the keys of the mapping at path in file order; nil if there is
// no mapping. The empty path is the whole file.
func (d *Document) Keys(path string) []string {
	n, _, rest := d.find(path)
	if n == nil || rest != "" {
		return nil
	}
	var out []string
	for _, e := range n.entries {
		out = append(out, e.key)
	}
	return out
}

// Text returns the scalar at path as it is written, without quotes; ok is
// false if there is none.
func (d *Document) Text(path string) (text string, ok bool) {
	n, _, rest := d.find(path)
	if n == nil || rest != "" || n.kind != scalar {
		return "", false
	}
	return n.text, true
}

// Failed reports whether an error stands at path or below it.
func (d *Document) Failed(path string) bool {
	return slices.ContainsFunc(d.problems, func(p Problem) bool {
		after, ok := strings.CutPrefix(p.Path, path)
		return ok && !p.Warning && (after == "" || after[0] == '.' || after[0] == '[')
	})
}

// Report adds an error at the value of path, or at its nearest parent that
// is in the file. It says nothing if an error stands at the same path
// already, or if the error only follows from another: the value was refused
// or has the wrong shape, or the missing key is there under another name. A hint may end in `did you mean "x"?`: x becomes Suggest.
func (d *Document) Report(path, code, msg, hint string) { d.report(path, code, msg, hint, false) }

// Warn is Report for what does not stop the file from being used.
func (d *Document) Warn(path, code, msg, hint string) { d.report(path, code, msg, hint, true) }

// Section returns the report function that the Validate method of a section
// takes: paths are relative to prefix. The code is config-missing where the
// path is not in the file, else config-value.
func (d *Document) Section(prefix string) func(path, msg, hint string) {
	return func(path, msg, hint string) {
		full := join(prefix, path)
		code := CodeValue
		if path != "" && !d.Has(full) {
			code = CodeMissing
		}
		d.Report(full, code, msg, hint)
	}
}

var didYouMean = regexp.MustCompile(`;? *did you mean "([^"]*)"\?$`)

func (d *Document) report(path, code, msg, hint string, warning bool) {
	n, e, rest := d.find(path)
	for _, p := range d.problems {
		if p.Path == path && !p.Warning && !warning {
			return
		}
	}
	if !warning && (code == CodeValue || code == CodeMissing) && n.explains(rest) {
		return
	}
	p := Problem{Path: path, Code: code, Msg: msg, Hint: hint, Warning: warning}
	if m := didYouMean.FindStringSubmatchIndex(hint); m != nil {
		p.Suggest, p.Hint = hint[m[2]:m[3]], hint[:m[0]]
	}
	switch {
	case n != nil && n.kind == scalar && rest == "":
		d.at(p, n.line, n.col, n.length)
	case e != nil:
		d.at(p, e.line, e.col, e.length)
	case n != nil && rest == "" && n.line > 0:
		d.at(p, n.line, n.col, n.length)
	default:
		d.at(p, 0, 0, 0)
	}
}

// maxProblems is how many problems of a file are told one by one.
const maxProblems = 500

// at places a problem and keeps it.
func (d *Document) at(p Problem, line, col, length int) {
	if len(d.problems) >= maxProblems {
		if d.left++; d.left == 1 || d.rest.Warning && !p.Warning {
			d.rest = Problem{File: d.file, Code: p.Code, Warning: p.Warning}
		}
		return
	}
	p.File, p.src = d.file, d.src
	p.Line, p.Col, p.Len = line, col, length
	d.problems = append(d.problems, p)
}

// find walks path as far as the file goes: the last node reached, the entry
// that holds it (nil for the root), and the part of path that is not there.
func (d *Document) find(path string) (n *node, e *entry, rest string) {
	n, rest = d.root, path
	for rest != "" && n != nil {
		end := len(rest) // keys may hold dots: the longest counts
		for end > 0 && (end < len(rest) && rest[end] != '.' && rest[end] != '[' || n.keys[rest[:end]] == nil) {
			end--
		}
		if end > 0 {
			e = n.keys[rest[:end]]
			n, rest = e.value, strings.TrimPrefix(rest[end:], ".")
			continue
		}
		i, after, ok := index(rest)
		if !ok || n.kind != sequence || i >= len(n.items) {
			return n, e, rest
		}
		n, rest = n.items[i], after
		e = &entry{line: n.line, col: n.col, length: n.length, value: n}
	}
	return n, e, rest
}

// index takes "[3].x" or "3.x" apart.
func index(path string) (i int, rest string, ok bool) {
	s := strings.TrimPrefix(path, "[")
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	i, err := strconv.Atoi(s[:end])
	rest = strings.TrimPrefix(s[end:], "]")
	return i, strings.TrimPrefix(rest, "."), err == nil
}

func join(prefix, path string) string {
	switch {
	case prefix == "" || path == "":
		return prefix + path
	case path[0] == '[':
		return prefix + path
	}
	return prefix + "." + path
}

// kind of a node.
type kind uint8

const (
	null kind = iota
	scalar
	mapping
	sequence
	lost // refused by Parse, which has said so
)

func (k kind) String() string {
	return [...]string{"nothing", "a single value", "a mapping", "a list", "nothing"}[k]
}

// node is one value of the file.
type node struct {
	kind    kind
	text    string // of a scalar, as written; without quotes
	quoted  bool   // the scalar stood in quotes or in a block
	line    int
	col     int
	length  int
	entries []*entry          // of a mapping, in file order
	keys    map[string]*entry // of them, also by what they meant
	items   []*node           // of a sequence
}

// entry is one key of a mapping and its value.
type entry struct {
	key    string
	hinted string // the known key that an unknown key was said to be
	line   int
	col    int
	length int
	value  *node
}

// claims reports whether the mapping n has an unknown key that was already
// said to stand for the missing key of rest.
func (n *node) claims(rest string) bool {
	return n != nil && slices.ContainsFunc(n.entries, func(c *entry) bool { return c.hinted != "" && c.hinted == rest })
}

// explains reports whether an error at rest under n follows from one that
// was said already: the value was refused, it has the wrong shape, or one of
// its keys is not understood.
func (n *node) explains(rest string) bool {
	switch {
	case n == nil:
		return false
	case n.kind == lost, rest != "" && (n.kind == scalar || n.kind == sequence):
		return true
	case slices.ContainsFunc(n.entries, func(c *entry) bool { return c.value.kind == lost }):
		return true
	case rest == "":
		return slices.ContainsFunc(n.entries, func(c *entry) bool { return c.hinted != "" })
	}
	return n.claims(rest)
}
