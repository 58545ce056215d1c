package document

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

const (
	maxDepth  = 64 // nested brackets, or list marks on one line
	maxErrors = 8  // syntax errors reported for one file
	// maxKeys is how many keys a mapping may have, one a line: the parser
	// copies all that follow for each of them, and needs stack for each.
	maxKeys = 10_000
)

// parse fills d from src: checks what the parser cannot take, then parses;
// after a syntax error the top-level section that holds it is blanked and
// the rest is parsed again.
func (d *Document) parse(src []byte) {
	src = bytes.TrimPrefix(src, []byte("\ufeff"))
	src = bytes.ReplaceAll(src, []byte("\r\n"), []byte("\n"))
	d.src.lines = strings.Split(string(src), "\n")
	if len(src) > MaxSize {
		d.src.lines = nil
		d.syntax(0, 0, 0, fmt.Sprintf("the file is larger than %d KiB", MaxSize>>10),
			"this does not look like a tidegate file")
		return
	}
	for i, line := range d.src.lines {
		if at, what := badText(line); at >= 0 {
			d.syntax(i+1, utf8.RuneCountInString(line[:at])+1, 1, what, "is this a text file? save it as UTF-8")
			return
		}
	}
	lines := append([]string(nil), d.src.lines...)
	for range maxErrors {
		root, bad := parseNodes(strings.Join(lines, "\n"))
		if bad == nil {
			d.root = root
			d.refuse(root)
			return
		}
		d.explain(bad)
		if bad.msg == tooManyKeys || !blank(lines, bad.line) {
			return
		}
	}
}

// badText finds the first byte of a line that no text file holds.
func badText(line string) (at int, what string) {
	for i := 0; i < len(line); {
		r, size := utf8.DecodeRuneInString(line[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return i, fmt.Sprintf("byte 0x%02x is not UTF-8 text", line[i])
		case r < ' ' && r != '\t', r == 0x7f:
			return i, fmt.Sprintf("control character 0x%02x", r)
		case r == '\ufeff', r == '\u0085', r == '\u2028', r == '\u2029':
			return i, fmt.Sprintf("invisible character U+%04X", r)
		}
		i += size
	}
	return -1, ""
}

// syntaxError is a place the parser refused, with its words.
type syntaxError struct {
	msg       string
	line, col int
	origin    string // the text of the token, as it stands in the file
}

var tooManyKeys = fmt.Sprintf("more than %d keys in one mapping", maxKeys)

// parseNodes runs the parser; a panic of it is a syntax error.
func parseNodes(src string) (root *node, bad *syntaxError) {
	defer func() {
		if p := recover(); p != nil {
			root, bad = nil, &syntaxError{msg: "this cannot be read as YAML", line: 1, col: 1}
		}
	}()
	tokens := lexer.Tokenize(src)
	if bad := tooDeep(tokens); bad != nil {
		return nil, bad
	}
	if bad := tooMany(tokens); bad != nil {
		return nil, bad
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		bad := asSyntaxError(err)
		if strings.Contains(bad.msg, "flow m") || strings.Contains(bad.msg, "',' or '") || strings.Contains(bad.msg, "sequence end") {
			bad.open(tokens)
		}
		return nil, bad
	}
	var body ast.Node
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if body != nil {
			t := doc.Body.GetToken()
			return nil, &syntaxError{msg: "a second document", line: t.Position.Line, col: 1}
		}
		body = doc.Body
	}
	if body == nil {
		return nil, nil
	}
	return convert(body), nil
}

func asSyntaxError(err error) *syntaxError {
	var e interface {
		error
		GetToken() *token.Token
		GetMessage() string
	}
	if !errors.As(err, &e) || e.GetToken() == nil || e.GetToken().Position == nil {
		return &syntaxError{msg: err.Error(), line: 1, col: 1}
	}
	t := e.GetToken()
	return &syntaxError{msg: e.GetMessage(), line: max(t.Position.Line, 1), col: max(t.Position.Column, 1), origin: t.Origin}
}

// open moves an error about a bracket to the bracket, if that is on an
// earlier line than the place where the parser noticed.
func (e *syntaxError) open(tokens token.Tokens) {
	var stack []*token.Token
	for _, t := range tokens {
		if t.Position == nil {
			continue
		}
		if t.Position.Line > e.line || t.Position.Line == e.line && t.Position.Column >= e.col {
			break
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			stack = append(stack, t)
		case token.SequenceEndType, token.MappingEndType:
			stack = stack[:max(len(stack)-1, 0)]
		}
	}
	if len(stack) == 0 {
		return
	}
	if t := stack[len(stack)-1]; t.Position.Line < e.line {
		e.line, e.col, e.msg = t.Position.Line, t.Position.Column, "',' or '}' expected"
		if t.Type == token.SequenceStartType {
			e.msg = "',' or ']' expected"
		}
	}
}

// tooDeep guards the recursive parser: its stack grows with the depth.
func tooDeep(tokens token.Tokens) *syntaxError {
	depth, line, marks := 0, 0, 0
	for _, t := range tokens {
		if t.Position == nil {
			continue
		}
		if t.Position.Line != line {
			line, marks = t.Position.Line, 0
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth = max(depth-1, 0)
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType, token.MappingValueType:
			marks++
		}
		if depth > maxDepth || marks > 16*maxDepth || t.Position.Column > 1<<16 {
			return &syntaxError{msg: "nested too deeply", line: t.Position.Line, col: 1}
		}
		if t.Position.IndentNum > 4*maxDepth {
			return &syntaxError{msg: "nested too deeply", line: t.Position.Line, col: t.Position.Column}
		}
	}
	return nil
}

// tooMany guards the parser against mappings that cost it more than a file may.
func tooMany(tokens token.Tokens) *syntaxError {
	type mapping struct{ col, keys int }
	var open []mapping
	brackets := 0
	for i, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			brackets++
		case token.SequenceEndType, token.MappingEndType:
			brackets--
		}
		key := t
		if t.Type == token.MappingValueType && i > 0 {
			key = tokens[i-1]
		} else if t.Type != token.SequenceEntryType {
			continue
		}
		if brackets > 0 || key.Position == nil {
			continue
		}
		for len(open) > 0 && open[len(open)-1].col > key.Position.Column {
			open = open[:len(open)-1]
		}
		if t.Type == token.SequenceEntryType {
			continue // what stands in the next item is another mapping
		}
		if len(open) == 0 || open[len(open)-1].col < key.Position.Column {
			open = append(open, mapping{col: key.Position.Column})
		}
		if last := &open[len(open)-1]; last.keys < maxKeys {
			last.keys++
			continue
		}
		return &syntaxError{msg: tooManyKeys, line: key.Position.Line, col: key.Position.Column}
	}
	return nil
}

// blank empties the top-level section that holds line, so that the rest can
// be parsed; false if nothing is left to try.
func blank(lines []string, line int) bool {
	i := min(line, len(lines)) - 1
	top := func(s string) bool {
		return s != "" && s[0] != ' ' && s[0] != '\t' && s[0] != '#' && s[0] != '}' && s[0] != ']'
	}
	from := i
	for from > 0 && !top(lines[from]) {
		from--
	}
	to := i + 1
	for to < len(lines) && !top(lines[to]) {
		to++
	}
	some := false
	for k := from; k < to; k++ {
		some = some || strings.TrimSpace(lines[k]) != ""
		lines[k] = ""
	}
	for _, l := range lines {
		if some && strings.TrimSpace(l) != "" {
			return true
		}
	}
	return false
}

func (d *Document) syntax(line, col, length int, msg, hint string) {
	d.broken = true
	d.at(Problem{Code: CodeSyntax, Msg: msg, Hint: hint}, line, col, length)
}

// explain says a syntax error in the words of someone who wrote the file.
func (d *Document) explain(e *syntaxError) {
	line := d.lineText(e.line)
	trimmed := strings.TrimLeft(line, " \t")
	indent := line[:len(line)-len(trimmed)]
	first := len([]rune(indent)) + 1
	key, rest, colon := strings.Cut(trimmed, ":")
	switch {
	case strings.Contains(indent, "\t"):
		d.syntax(e.line, strings.IndexByte(indent, '\t')+1, 1, "a tab in the indentation",
			"YAML takes only spaces here; replace each tab by two spaces")
	case e.msg == "a second document":
		at := e.line
		for at > 1 && !strings.HasPrefix(d.lineText(at), "---") {
			at--
		}
		d.syntax(at, 1, 3, "a second document starts here", `one file holds one document; remove the "---"`)
	case e.msg == tooManyKeys:
		d.syntax(e.line, e.col, max(1, runes(key)), e.msg, "this does not look like a tidegate file")
	case e.msg == "nested too deeply":
		d.syntax(e.line, e.col, 1, "nested too deeply", "")
	case strings.HasPrefix(e.msg, "mapping value is not allowed") && strings.Contains(strings.TrimSpace(e.origin), "\n"):
		lines := strings.Split(strings.TrimLeft(e.origin, " \n"), "\n")
		at := e.line
		for _, l := range lines[1:] {
			at++
			if strings.TrimSpace(l) != "" && strings.Contains(d.lineText(at), ":") {
				break
			}
		}
		text := d.lineText(at)
		d.syntax(at, len(text)-len(strings.TrimLeft(text, " "))+1, 1, "this line is indented deeper than its neighbours",
			"keys of one section start in the same column")
	case strings.HasPrefix(e.msg, "mapping value is not allowed"):
		d.syntax(e.line, e.col, max(1, runes(strings.TrimSpace(e.origin))), `": " inside a value`,
			`if it is text, put the value in quotes; else one key a line`)
	case colon && rest != "" && rest[0] != ' ' && !strings.ContainsAny(key, " \"'{["):
		d.syntax(e.line, first, runes(key)+1, fmt.Sprintf("no space after %q", key+":"), fmt.Sprintf("write %q", key+": "+rest))
	case strings.Contains(e.msg, "quoted text"):
		d.syntax(e.line, e.col, 1, "this quote is never closed", "")
	case strings.Contains(e.msg, "mapping end token"), strings.Contains(e.msg, "',' or '}'"):
		d.syntax(e.line, e.col, 1, `a "{" is not closed, or a comma is missing`, "close it with }, and put commas between the keys")
	case strings.Contains(e.msg, "sequence end token"), strings.Contains(e.msg, "',' or ']'"):
		d.syntax(e.line, e.col, 1, `a "[" is not closed, or a comma is missing`, "close it with ], and put commas between the values")
	case strings.Contains(e.msg, "reserved character"):
		d.syntax(e.line, e.col, 1, "a value cannot start with this character", "put the value in quotes")
	case strings.Contains(e.msg, "not allowed in this context"), strings.Contains(e.msg, "non-map value"):
		d.syntax(e.line, first, max(1, runes(strings.TrimRight(key, " "))), "this line does not fit the lines above",
			"check its indentation: keys of one section start in the same column")
	case strings.Contains(e.msg, "unexpected key name") && !colon:
		d.syntax(e.line, first, runes(trimmed), "a key without a colon", `write "key: value"`)
	case strings.Contains(line, "\t"):
		d.syntax(e.line, e.col, 1, "a tab where it is not allowed", "replace tabs by spaces")
	default:
		d.syntax(e.line, e.col, 1, strings.ReplaceAll(e.msg, "\n", " "), "")
	}
}

func (d *Document) lineText(n int) string {
	if n < 1 || n > len(d.src.lines) {
		return ""
	}
	return d.src.lines[n-1]
}

func runes(s string) int { return utf8.RuneCountInString(s) }

// refused marks what convert met and tidegate does not take.
const refused = "\x00refused"

// refuse reports anchors, aliases, merge keys, tags and odd keys, which
// convert has left in the tree with a marker, and repeated keys.
func (d *Document) refuse(n *node) {
	if n == nil {
		return
	}
	if what, ok := strings.CutPrefix(n.text, refused); ok {
		d.syntax(n.line, n.col, n.length, what+" is not used in this file",
			"write the value out; if it is text, put it in quotes")
		n.kind = lost
		return
	}
	if line := d.lineText(n.line); n.kind == scalar && !n.quoted && strings.Contains(n.text, ": ") && n.col <= runes(line) {
		d.syntax(n.line, n.col, n.length, `": " inside a value`, "is a comma missing before the next key? if it is text, put it in quotes")
		n.kind = lost
		return
	}
	if n.kind == scalar && !n.quoted && !d.written(n.text, n.line, n.col) {
		d.syntax(n.line, n.col, n.length, "this value cannot be read as it stands", "put it in quotes; is there a tab in it?")
		n.kind = lost
		return
	}
	if len(n.entries) > 0 {
		n.keys = make(map[string]*entry, len(n.entries))
	}
	kept := n.entries[:0]
	for _, e := range n.entries {
		if what, ok := strings.CutPrefix(e.key, refused); ok {
			d.syntax(e.line, e.col, e.length, what+" is not used in this file", `write "key: value"`)
			continue
		}
		if line := d.lineText(e.line); strings.Contains(line, "\t") && !strings.Contains(line, e.key) {
			d.syntax(e.line, e.col, e.length, "this key cannot be read as it stands", "is there a tab in it?")
			continue
		}
		if first, ok := n.keys[e.key]; ok {
			d.at(Problem{Code: CodeKey, Path: e.key, Msg: fmt.Sprintf("key %q is here twice", e.key),
				Hint: fmt.Sprintf("the first one is in line %d; remove one", first.line)}, e.line, e.col, e.length)
			d.refuse(e.value)
			continue
		}
		n.keys[e.key] = e
		kept = append(kept, e)
		d.refuse(e.value)
	}
	n.entries = kept
	for _, it := range n.items {
		d.refuse(it)
	}
}

// written reports whether a plain scalar stands in the file as the parser
// gave it. The parser drops tabs inside words, for one.
func (d *Document) written(text string, line, col int) bool {
	if l := d.lineText(line); col <= len(l) && strings.HasPrefix(l[col-1:], text) {
		return true // col counts characters, so this holds for ASCII before it
	}
	words := strings.Fields(text)
	for len(words) > 0 && line <= len(d.src.lines) {
		l := []rune(d.src.lines[line-1])
		for _, w := range strings.Fields(string(l[min(col-1, len(l)):])) {
			if len(words) == 0 {
				return true
			}
			if !strings.HasPrefix(w, words[0]) {
				return false
			}
			if len(w) > len(words[0]) { // what follows is "," or "}" or the like
				return len(words) == 1
			}
			words = words[1:]
		}
		line, col = line+1, 1
	}
	return len(words) == 0
}

// convert turns the parser's tree into nodes.
func convert(n ast.Node) *node {
	out := &node{}
	if n == nil {
		return out
	}
	t := n.GetToken()
	if t == nil {
		return out
	}
	out.place(t)
	switch n := n.(type) {
	case *ast.NullNode:
	case *ast.MappingNode:
		out.kind, out.length = mapping, 1
		for _, v := range n.Values {
			e := convertEntry(v)
			if k := len(out.entries); n.IsFlowStyle && k > 0 && decimalComma(out.entries[k-1].value, e) {
				out.entries[k-1].value.text += "," + e.key
				out.entries[k-1].value.length += 1 + e.length
				continue
			}
			out.entries = append(out.entries, e)
		}
		if !n.IsFlowStyle && len(out.entries) > 0 {
			out.line, out.col, out.length = out.entries[0].line, out.entries[0].col, out.entries[0].length
		}
	case *ast.MappingValueNode:
		e := convertEntry(n)
		out.kind, out.entries = mapping, []*entry{e}
		out.line, out.col, out.length = e.line, e.col, e.length
	case *ast.SequenceNode:
		out.kind, out.length = sequence, 1
		for _, v := range n.Values {
			out.items = append(out.items, convert(v))
		}
	case *ast.StringNode:
		out.kind, out.text = scalar, n.Value
		out.quoted = t.Type == token.SingleQuoteType || t.Type == token.DoubleQuoteType
	case *ast.LiteralNode:
		out.kind, out.quoted = scalar, true
		if n.Value != nil {
			out.text = n.Value.Value
		}
	case *ast.AnchorNode:
		out.kind, out.text = scalar, refused+"an anchor (&name)"
	case *ast.AliasNode:
		out.kind, out.text = scalar, refused+"an alias (*name)"
	case *ast.TagNode:
		out.kind, out.text = scalar, refused+"a tag (!name)"
	case *ast.DirectiveNode, *ast.MergeKeyNode, *ast.MappingKeyNode:
		out.kind, out.text = scalar, refused+"this"
	default:
		out.kind, out.text = scalar, t.Value
	}
	if strings.ContainsRune(out.text, 0) && !strings.HasPrefix(out.text, refused) {
		out.text = refused + `the character "\0"`
	}
	return out
}

// decimalComma reports whether e is the rest of a number: {scale: 0,1} is
// the keys scale and 1 to YAML.
func decimalComma(before *node, e *entry) bool {
	digits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	return before.kind == scalar && !before.quoted && digits(strings.TrimPrefix(before.text, "-")) &&
		e.value.kind == null && digits(e.key) && e.line == before.line && e.col == before.col+before.length+1
}

func convertEntry(v *ast.MappingValueNode) *entry {
	e := &entry{value: convert(v.Value)}
	key := &node{kind: scalar, text: refused + "this kind of key"}
	if v.Key != nil && v.Key.GetToken() != nil {
		switch k := v.Key.(type) {
		case *ast.MappingKeyNode:
			key.place(k.GetToken())
			key.text = refused + `a key with "?"`
		case *ast.MergeKeyNode:
			key.place(k.GetToken())
			key.text = refused + `a merge key (<<)`
		default:
			key = convert(v.Key.(ast.Node))
			if key.kind == null {
				key.text = v.Key.GetToken().Value
			}
		}
	}
	if key.text == "" {
		key.text = refused + "an empty key"
	}
	e.key, e.line, e.col, e.length = key.text, key.line, key.col, key.length
	return e
}

// place sets line, column and length from a token.
func (n *node) place(t *token.Token) {
	if t.Position == nil {
		n.line, n.col, n.length = 1, 1, 1
		return
	}
	n.line, n.col = max(t.Position.Line, 1), max(t.Position.Column, 1)
	text := t.Value
	if t.Type == token.SingleQuoteType || t.Type == token.DoubleQuoteType {
		text = strings.TrimSpace(t.Origin)
	}
	first, _, _ := strings.Cut(text, "\n")
	n.length = max(runes(first), 1)
}
