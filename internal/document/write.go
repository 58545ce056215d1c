package document

import (
	"crypto/sha256"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Format writes v, a struct or a pointer to one, as YAML that Bind takes
// back. Outside keyed elements every field is written, zero or not, so that
// defaults can be seen; inside them only what is set. Nested structs,
// lists and maps that are empty are left out. A string field with the tag
// secret:"true" is written as <redacted sha256:1f3a...>.
func Format(v any) []byte {
	rv := reflect.ValueOf(v)
	for rv.Kind() == reflect.Pointer {
		rv = rv.Elem()
	}
	var w writer
	w.fields(rv, 0, true)
	return []byte(w.b.String())
}

type writer struct{ b strings.Builder }

// fields writes the keys of a struct as a block.
func (w *writer) fields(v reflect.Value, depth int, zeros bool) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		tag, ok := f.Tag.Lookup("yaml")
		name, opts, _ := strings.Cut(tag, ",")
		if !ok || name == "-" || !f.IsExported() {
			continue
		}
		x := v.Field(i)
		if opts == "inline" {
			w.fields(x, depth, zeros)
			continue
		}
		if opts == "keyed" {
			w.keyed(name, x, depth)
			continue
		}
		if skip(x, zeros) {
			continue
		}
		pad := strings.Repeat("  ", depth)
		for x.Kind() == reflect.Pointer {
			x = x.Elem()
		}
		if x.Kind() == reflect.Struct && !textual(x) && depth < 1 {
			w.b.WriteString(pad + name + ":\n")
			w.fields(x, depth+1, zeros)
			if depth == 0 {
				w.b.WriteByte('\n')
			}
			continue
		}
		fmt.Fprintf(&w.b, "%s%s: %s\n", pad, name, w.flow(x, f, zeros))
	}
}

// keyed writes a slice of named structs: each as a block, but on one line if
// it holds nothing keyed itself.
func (w *writer) keyed(name string, v reflect.Value, depth int) {
	if v.Len() == 0 {
		return
	}
	pad := strings.Repeat("  ", depth)
	w.b.WriteString(pad + name + ":\n")
	for i := range v.Len() {
		x := v.Index(i)
		for x.Kind() == reflect.Pointer {
			x = x.Elem()
		}
		key := plain(x.FieldByName("Name").String())
		_, whole := x.Addr().Interface().(interface{ Default() })
		if whole || hasKeyed(x) {
			w.b.WriteString(pad + "  " + key + ":\n")
			w.fields(x, depth+2, whole)
			continue
		}
		w.b.WriteString(pad + "  " + key + ": " + w.flow(x, reflect.StructField{}, false) + "\n")
	}
	if depth == 0 {
		w.b.WriteByte('\n')
	}
}

func hasKeyed(v reflect.Value) bool {
	for i := range v.NumField() {
		if strings.HasSuffix(v.Type().Field(i).Tag.Get("yaml"), ",keyed") && v.Field(i).Len() > 0 {
			return true
		}
	}
	return false
}

func skip(v reflect.Value, zeros bool) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return v.IsNil()
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Struct:
		return v.IsZero()
	}
	return !zeros && v.IsZero()
}

func textual(v reflect.Value) bool {
	_, ok := v.Interface().(encoding.TextMarshaler)
	return ok
}

// flow writes a value on one line.
func (w *writer) flow(v reflect.Value, f reflect.StructField, zeros bool) string {
	if v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		return w.flow(v.Elem(), f, zeros)
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return "null"
		}
		return plain(string(text))
	}
	if v.Type() == durationType {
		return FormatDuration(time.Duration(v.Int()))
	}
	switch v.Kind() {
	case reflect.String:
		if f.Tag.Get("secret") == "true" && v.String() != "" {
			return `"` + redacted(v.String()) + `"`
		}
		return plain(v.String())
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if f.Tag.Get("unit") == "bytes" {
			return FormatSize(v.Int())
		}
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.FormatUint(v.Uint(), 10)
	case reflect.Float32, reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	case reflect.Slice, reflect.Array:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = w.flow(v.Index(i), f, zeros)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case reflect.Map:
		var parts []string
		for _, k := range v.MapKeys() {
			parts = append(parts, plain(fmt.Sprint(k.Interface()))+": "+w.flow(v.MapIndex(k), f, zeros))
		}
		slices.Sort(parts)
		return "{" + strings.Join(parts, ", ") + "}"
	case reflect.Struct:
		var parts []string
		t := v.Type()
		for i := range t.NumField() {
			f := t.Field(i)
			tag, ok := f.Tag.Lookup("yaml")
			name, opts, _ := strings.Cut(tag, ",")
			if !ok || name == "-" || !f.IsExported() || skip(v.Field(i), zeros) {
				continue
			}
			if opts == "inline" {
				if in := strings.Trim(w.flow(v.Field(i), f, zeros), "{}"); in != "" {
					parts = append(parts, in)
				}
				continue
			}
			parts = append(parts, name+": "+w.flow(v.Field(i), f, zeros))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return "null"
}

// plain writes a string so that it is read back as the same string, with
// quotes only where YAML wants them.
func plain(s string) string {
	ok := s != "" && s != "~" && s != "null"
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/_.+", r)
		inner := i > 0 && (strings.ContainsRune("-:{}", r) || r == ' ' && i < len(s)-1)
		ok = ok && (letter || inner || r == '-' && len(s) > 1 && i == 0 && s[1] >= '0' && s[1] <= '9')
	}
	if ok && !strings.Contains(s, ": ") && !strings.HasSuffix(s, ":") && !strings.ContainsAny(s, "{}") {
		return s
	}
	return quoted(s)
}

// quoted writes a double-quoted YAML scalar.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// redacted stands for a secret: it shows whether two are the same, not what
// they are.
func redacted(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return fmt.Sprintf("<redacted sha256:%x>", sum[:2])
}
