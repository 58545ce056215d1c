package document

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	durationType = reflect.TypeFor[time.Duration]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// Bind decodes the file into v, a pointer to a struct that already holds the
// defaults. It collects all problems and goes on: a value that is wrong
// leaves its default. The struct tags are:
//
//	yaml:"name"         the key; "-" for none; ",inline" for the keys of a struct field
//	yaml:"name,keyed"   a mapping into a slice of structs in file order; the
//	                    field Name of each element gets the key
//	unit:"bytes"        an integer written as 512MB, 100KB, 4KiB or 1000
//	enum:"a,b"          the words a string may have; "" is allowed only if
//	                    listed ("a,,b") or already the default
//	min:"0" max:"247"   limits of a number or duration, also for each element of a list
//	required:"true"     the key must be there
//	unless:"name"       it need not, if the key name is there
//	doc:"..."           one sentence for the schema
//
// Any type with UnmarshalText takes a scalar of any kind as it is written; if
// it is a struct, a mapping is bound to its fields instead. A []string takes
// one scalar as a list of one. An empty section (`rules:` and nothing more)
// counts as absent. An element with a method Default begins with that. Validate methods are not called: see Section.
//
// A path that already has an error when Bind begins gets no second one.
//
// Bind panics if v is not a pointer to a struct: that is a mistake of the program.
func (d *Document) Bind(v any) {
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.Elem().Kind() != reflect.Struct {
		panic("document: Bind needs a pointer to a struct")
	}
	b := binder{d: d, top: rv.Elem().Type(), fields: map[reflect.Type][]field{}, before: len(d.problems)}
	if d.root == nil {
		d.root = &node{kind: mapping}
	}
	b.structure(d.root, nil, rv.Elem(), "")
}

// field is one key that a struct knows.
type field struct {
	name     string
	index    []int
	typ      reflect.Type
	keyed    bool
	bytes    bool
	required bool
	unless   string
	enum     []string
	min, max string
	doc      string
}

// fieldsOf lists the keys of a struct type, those of inlined structs included.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		tag, ok := f.Tag.Lookup("yaml")
		name, opts, _ := strings.Cut(tag, ",")
		if !ok || name == "-" || !f.IsExported() {
			continue
		}
		if opts == "inline" {
			for _, in := range fieldsOf(f.Type) {
				in.index = append([]int{i}, in.index...)
				out = append(out, in)
			}
			continue
		}
		x := field{name: name, index: []int{i}, typ: f.Type, keyed: opts == "keyed",
			bytes: f.Tag.Get("unit") == "bytes", required: f.Tag.Get("required") == "true", unless: f.Tag.Get("unless"),
			min: f.Tag.Get("min"), max: f.Tag.Get("max"), doc: f.Tag.Get("doc")}
		if e, ok := f.Tag.Lookup("enum"); ok {
			x.enum = strings.Split(e, ",")
		}
		out = append(out, x)
	}
	return out
}

type binder struct {
	d      *Document
	top    reflect.Type
	fields map[reflect.Type][]field
	before int // problems that were there before Bind
}

func (b *binder) known(t reflect.Type) []field {
	fs, ok := b.fields[t]
	if !ok {
		fs = fieldsOf(t)
		b.fields[t] = fs
	}
	return fs
}

// fail adds a problem at n; a mapping or list is marked at the key that holds it.
func (b *binder) fail(n *node, e *entry, path, msg, hint, suggest string) {
	for _, p := range b.d.problems[:b.before] {
		if p.Path == path && !p.Warning {
			return // the caller has said it better
		}
	}
	p := Problem{Path: path, Code: CodeValue, Msg: msg, Hint: hint, Suggest: suggest}
	if e != nil && n.kind != scalar {
		b.d.at(p, e.line, e.col, e.length)
		return
	}
	b.d.at(p, n.line, n.col, n.length)
}

// structure binds a mapping to the fields of a struct.
func (b *binder) structure(n *node, e *entry, v reflect.Value, path string) {
	fs := b.known(v.Type())
	names := make([]string, len(fs))
	for i, f := range fs {
		names[i] = f.name
	}
	if n.kind == lost {
		return
	}
	if n.kind == null {
		n = &node{kind: mapping, line: n.line, col: n.col}
	}
	if n.kind != mapping {
		b.notMapping(n, e, path, names)
		return
	}
	for _, c := range n.entries {
		i := slices.Index(names, c.key)
		if i < 0 {
			i = b.unknown(n, c, names, path)
		}
		if i >= 0 {
			b.value(c.value, c, v.FieldByIndex(fs[i].index), &fs[i], join(path, c.key))
		}
	}
	for _, f := range fs {
		if f.required && !n.has(f.name) && !(f.unless != "" && n.has(f.unless)) && !(n == b.d.root && b.d.broken) && !n.claims(f.name) {
			p := Problem{Path: join(path, f.name), Code: CodeMissing, Msg: fmt.Sprintf("%q is missing", f.name), Hint: f.doc}
			if path != "" {
				p.Msg += " in " + path
			}
			switch {
			case e != nil:
				b.d.at(p, e.line, e.col, e.length)
			case n.line > 0:
				b.d.at(p, n.line, n.col, n.length)
			default:
				b.d.at(p, 0, 0, 0)
			}
		}
	}
}

func (n *node) has(key string) bool { return n.keys[key] != nil }

func (b *binder) notMapping(n *node, e *entry, path string, names []string) {
	hint := ""
	if len(names) > 0 {
		hint = "expected keys: " + list(names, 8)
	}
	name := strconv.Quote(last(path))
	if path == "" {
		name = "the file"
	}
	if n.kind == sequence {
		hint = `write the keys without "- "`
	}
	if key, value, ok := strings.Cut(n.text, ":"); n.kind == scalar && !n.quoted && ok && slices.Contains(names, key) {
		hint = fmt.Sprintf("a space is missing: write %q", key+": "+value)
	}
	b.fail(n, e, path, name+" must be a mapping of keys, not "+n.say(), hint, "")
}

// unknown reports the key c and returns the field it was taken for, -1 if
// none: a misspelt key is bound all the same, so that what it holds is checked.
func (b *binder) unknown(n *node, c *entry, names []string, path string) int {
	if len(b.d.problems) >= maxProblems {
		b.d.at(Problem{Code: CodeKey}, 0, 0, 0)
		return -1 // nobody would hear what it may have meant
	}
	p := Problem{Path: join(path, c.key), Code: CodeKey, Msg: fmt.Sprintf("unknown key %q", c.key)}
	free := slices.DeleteFunc(slices.Clone(names), n.has)
	take := -1
	if s := synonym(c.key, free); s != "" && fold(s) != fold(c.key) {
		p.Suggest, c.hinted = s, s
	} else if s := synonym(c.key, names); s != "" && fold(s) != fold(c.key) {
		p.Hint = fmt.Sprintf("%q says this already", s)
	} else if s, home := Nearest(c.key, free), b.home(c.key); home != "" && (s == "" || s != c.key+"s" && c.key != s+"s") {
		p.Hint = fmt.Sprintf("%q belongs under %s", c.key, home)
	} else if s != "" {
		p.Suggest, n.keys[s] = s, c
		take = slices.Index(names, s)
	} else if s := Nearest(c.key, names); s != "" {
		p.Hint = fmt.Sprintf("%q is here already", s)
	} else if len(names) > 0 {
		p.Hint = "known here: " + list(names, 12)
	}
	b.d.at(p, c.line, c.col, c.length)
	return take
}

// home returns the section of the whole file where a key is known, such as
// "uplink" or "buses.NAME"; "" if nowhere.
func (b *binder) home(key string) string {
	type place struct {
		t    reflect.Type
		path string
	}
	queue := []place{{b.top, ""}}
	seen := map[reflect.Type]bool{}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for at.t.Kind() == reflect.Pointer {
			at.t = at.t.Elem()
		}
		if at.t.Kind() != reflect.Struct || seen[at.t] {
			continue
		}
		seen[at.t] = true
		for _, f := range b.known(at.t) {
			if f.name == key {
				if at.path == "" {
					return "the top level of the file"
				}
				return at.path
			}
			next := join(at.path, f.name)
			switch {
			case f.keyed, f.typ.Kind() == reflect.Map:
				queue = append(queue, place{f.typ.Elem(), next + ".NAME"})
			case f.typ.Kind() == reflect.Slice:
				queue = append(queue, place{f.typ.Elem(), next})
			default:
				queue = append(queue, place{f.typ, next})
			}
		}
	}
	return ""
}

// value binds one node to one field, element or pointer target.
func (b *binder) value(n *node, e *entry, v reflect.Value, f *field, path string) {
	if n.kind == lost {
		return
	}
	t := v.Type()
	if t.Kind() == reflect.Pointer {
		if n.kind == null {
			return
		}
		p := reflect.New(t.Elem())
		b.value(n, e, p.Elem(), f, path)
		v.Set(p)
		return
	}
	if reflect.PointerTo(t).Implements(textType) && !(t.Kind() == reflect.Struct && n.kind == mapping) {
		b.text(n, e, v, path)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		b.structure(n, e, v, path)
		return
	case reflect.Map:
		b.mapping(n, e, v, f, path)
		return
	case reflect.Slice:
		if f.keyed {
			b.keyed(n, e, v, path)
			return
		}
		b.list(n, e, v, f, path)
		return
	case reflect.Array:
		b.array(n, e, v, f, path)
		return
	case reflect.Interface:
		if x := natural(n); x != nil {
			v.Set(reflect.ValueOf(x))
		}
		return
	}
	if n.kind == null {
		b.fail(n, e, path, fmt.Sprintf("%q has no value", last(path)), "write one, or remove the line to get the default", "")
		return
	}
	if n.kind != scalar {
		b.fail(n, e, path, fmt.Sprintf("%q must be a single value, not %s", last(path), n.kind), "", "")
		return
	}
	if bad := b.scalar(n, v, f, path); bad != nil {
		b.fail(n, e, path, bad.msg, bad.hint, bad.suggest)
	}
}

// text hands a scalar to UnmarshalText.
func (b *binder) text(n *node, e *entry, v reflect.Value, path string) {
	switch n.kind {
	case null:
		b.fail(n, e, path, fmt.Sprintf("%q has no value", last(path)), "write one, or remove the line", "")
	case scalar:
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.text)); err != nil {
			hint := ""
			if h, ok := err.(interface{ Hint() string }); ok {
				hint = h.Hint()
			}
			p := Problem{Hint: hint}
			if point := strings.Replace(n.text, ",", ".", 1); point != n.text {
				_, bad := strconv.ParseFloat(point, 64)
				again := reflect.New(v.Type()).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(point))
				if bad == nil && again == nil {
					p.Hint, p.Suggest = "the decimal sign is a point", point
				}
			}
			if m := didYouMean.FindStringSubmatchIndex(hint); m != nil {
				p.Suggest, p.Hint = hint[m[2]:m[3]], hint[:m[0]]
			}
			b.fail(n, e, path, last(path)+": "+err.Error(), p.Hint, p.Suggest)
		}
	default:
		b.fail(n, e, path, fmt.Sprintf("%q must be a single value, not %s", last(path), n.kind), "", "")
	}
}

// keyed binds a mapping to a slice of structs with a Name.
func (b *binder) keyed(n *node, e *entry, v reflect.Value, path string) {
	elem := v.Type().Elem()
	base := elem
	if elem.Kind() == reflect.Pointer {
		base = elem.Elem()
	}
	switch n.kind {
	case null:
		return
	case sequence:
		hint := ""
		if len(n.items) > 0 {
			hint = `write "NAME:" and the keys under it, without "- "`
		}
		b.fail(n, e, path, fmt.Sprintf("%q must be a mapping of names, not a list", last(path)), hint, "")
		return
	case scalar:
		b.fail(n, e, path, fmt.Sprintf("%q must be a mapping of names, not %s", last(path), n.say()), "", "")
		return
	}
	out := reflect.MakeSlice(v.Type(), 0, len(n.entries))
	for _, c := range n.entries {
		x := fresh(base)
		if name := x.Elem().FieldByName("Name"); name.IsValid() && name.Kind() == reflect.String {
			name.SetString(c.key)
		}
		at := join(path, c.key)
		if c.value.kind == scalar && !reflect.PointerTo(base).Implements(textType) &&
			slices.ContainsFunc(b.known(base), func(f field) bool { return f.name == c.key }) {
			c.hinted = c.key
			b.d.at(Problem{Path: at, Code: CodeValue, Msg: fmt.Sprintf("a name is missing above %q", c.key),
				Hint: fmt.Sprintf("%s: holds names, and the keys stand under a name", last(path))}, c.line, c.col, c.length)
			continue
		}
		b.value(c.value, c, x.Elem(), &field{name: c.key}, at)
		if elem.Kind() == reflect.Pointer {
			out = reflect.Append(out, x)
		} else {
			out = reflect.Append(out, x.Elem())
		}
	}
	v.Set(out)
}

// fresh returns a pointer to a new element with its defaults.
func fresh(t reflect.Type) reflect.Value {
	x := reflect.New(t)
	if d, ok := x.Interface().(interface{ Default() }); ok {
		d.Default()
	}
	return x
}

func (b *binder) list(n *node, e *entry, v reflect.Value, f *field, path string) {
	elem := *f
	elem.enum = f.enum
	switch n.kind {
	case null:
		return
	case mapping:
		b.fail(n, e, path, fmt.Sprintf("%q must be a list, not a mapping", last(path)), "write [a, b] or one \"- \" line each", "")
		return
	case scalar:
		if v.Type().Elem().Kind() != reflect.String {
			b.fail(n, e, path, fmt.Sprintf("%q must be a list, not a single value", last(path)),
				"write ["+strings.ReplaceAll(n.text, "..", ", ")+"]", "")
			return
		}
		n = &node{kind: sequence, items: []*node{n}}
	}
	out := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
	for i, it := range n.items {
		b.value(it, nil, out.Index(i), &elem, fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(out)
}

func (b *binder) array(n *node, e *entry, v reflect.Value, f *field, path string) {
	if n.kind == null {
		return
	}
	if n.kind != sequence || len(n.items) != v.Len() {
		b.fail(n, e, path, fmt.Sprintf("%q must be a list of %d values", last(path), v.Len()), "", "")
		return
	}
	for i, it := range n.items {
		b.value(it, nil, v.Index(i), f, fmt.Sprintf("%s[%d]", path, i))
	}
}

// mapping binds to a Go map with string or integer keys.
func (b *binder) mapping(n *node, e *entry, v reflect.Value, f *field, path string) {
	if n.kind == null {
		return
	}
	if n.kind != mapping {
		b.fail(n, e, path, fmt.Sprintf("%q must be a mapping, not %s", last(path), n.say()), "write {name: value}", "")
		return
	}
	t := v.Type()
	out := reflect.MakeMapWithSize(t, len(n.entries))
	for _, c := range n.entries {
		at := join(path, c.key)
		k := reflect.New(t.Key()).Elem()
		if bad := b.scalar(&node{kind: scalar, text: c.key}, k, &field{name: c.key}, at); bad != nil {
			b.d.at(Problem{Path: at, Code: CodeKey, Msg: fmt.Sprintf("key %q is not a whole number", c.key),
				Hint: fmt.Sprintf("the keys of %s are numbers", last(path))}, c.line, c.col, c.length)
			continue
		}
		x := reflect.New(t.Elem()).Elem()
		b.value(c.value, c, x, &field{name: c.key, enum: f.enum, min: f.min, max: f.max, bytes: f.bytes}, at)
		out.SetMapIndex(k, x)
	}
	v.Set(out)
}

// say names a node in a message.
func (n *node) say() string {
	if n.kind == scalar {
		return quote(n.text)
	}
	return n.kind.String()
}

// last returns the last part of a path: the key the user wrote.
func last(path string) string {
	return path[strings.LastIndexByte(path, '.')+1:]
}

// list joins words for a message, at most n of them.
func list(words []string, n int) string {
	if len(words) > n {
		return strings.Join(words[:n], ", ") + ", ..."
	}
	return strings.Join(words, ", ")
}

// quote quotes a text of the file for a message, cut to a readable length.
func quote(s string) string {
	if r := []rune(s); len(r) > 40 {
		s = string(r[:37]) + "..."
	}
	return strconv.Quote(s)
}
