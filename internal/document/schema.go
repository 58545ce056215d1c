package document

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Schema returns a JSON Schema (2020-12) of the file that Bind would take
// into v, a struct or a pointer to one, made from the same tags. Values that
// v holds are given as defaults. A type may say more about its scalar form by
// a method JSONSchema() string that returns a schema as JSON.
func Schema(v any, title string) []byte {
	s := schemer{stack: map[reflect.Type]bool{}}
	rv := reflect.ValueOf(v)
	for rv.Kind() == reflect.Pointer {
		rv = rv.Elem()
	}
	m := s.structure(rv.Type(), rv)
	m["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	m["title"] = title
	out, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		panic("document: a schema tag cannot be written as JSON: " + err.Error())
	}
	return append(out, '\n')
}

type object = map[string]any

type schemer struct{ stack map[reflect.Type]bool }

const (
	durationPattern = `^([0-9]+d|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+)$`
	sizePattern     = `^[0-9][0-9_.]*(B|KB|MB|GB|KiB|MiB|GiB)?$`
)

func (s *schemer) structure(t reflect.Type, v reflect.Value) object {
	if s.stack[t] {
		return object{"type": "object"}
	}
	s.stack[t] = true
	defer delete(s.stack, t)
	props := object{}
	var required []string
	var either []object
	for _, f := range fieldsOf(t) {
		var fv reflect.Value
		if v.IsValid() {
			fv = v.FieldByIndex(f.index)
		}
		p := s.value(f.typ, fv, &f)
		if f.doc != "" {
			p["description"] = f.doc
		}
		props[f.name] = p
		if f.unless != "" {
			either = append(either, object{"required": []string{f.name}}, object{"required": []string{f.unless}})
		} else if f.required {
			required = append(required, f.name)
		}
	}
	m := object{"type": "object", "properties": props, "additionalProperties": false}
	if required != nil {
		m["required"] = required
	}
	if either != nil {
		m["oneOf"] = either
	}
	return m
}

func (s *schemer) value(t reflect.Type, v reflect.Value, f *field) object {
	if t.Kind() == reflect.Pointer {
		return s.value(t.Elem(), reflect.Value{}, f)
	}
	if said, ok := reflect.New(t).Interface().(interface{ JSONSchema() string }); ok {
		m := object{}
		if err := json.Unmarshal([]byte(said.JSONSchema()), &m); err != nil {
			panic("document: JSONSchema of " + t.String() + ": " + err.Error())
		}
		return m
	}
	if reflect.PointerTo(t).Implements(textType) {
		text := object{"type": []string{"string", "number", "boolean"}}
		if t.Kind() == reflect.Struct && len(fieldsOf(t)) > 0 {
			return object{"anyOf": []object{text, s.structure(t, reflect.Value{})}}
		}
		return text
	}
	if t == durationType {
		m := object{"type": "string", "pattern": durationPattern}
		if v.IsValid() {
			m["default"] = FormatDuration(time.Duration(v.Int()))
		}
		return m
	}
	var m object
	switch t.Kind() {
	case reflect.Struct:
		return s.structure(t, v)
	case reflect.String:
		// A name such as 017 is text to us and a number to a JSON schema.
		m = object{"type": []string{"string", "number", "boolean"}}
		if f.enum != nil {
			m = object{"type": "string", "enum": f.enum}
		}
		if v.IsValid() && v.String() != "" {
			m["default"] = v.String()
		}
	case reflect.Bool:
		m = object{"type": "boolean"}
		if v.IsValid() {
			m["default"] = v.Bool()
		}
	case reflect.Float32, reflect.Float64:
		m = limits(object{"type": "number"}, f)
		if v.IsValid() && v.Float() != 0 {
			m["default"] = v.Float()
		}
	case reflect.Map:
		m = object{"type": "object", "additionalProperties": s.value(t.Elem(), reflect.Value{}, &field{})}
		if t.Key().Kind() != reflect.String {
			m["propertyNames"] = object{"pattern": "^[-+]?[0-9]"}
		}
	case reflect.Slice:
		if f.keyed {
			v := reflect.Value{}
			if _, ok := reflect.New(t.Elem()).Interface().(interface{ Default() }); ok {
				v = fresh(t.Elem()).Elem()
			}
			return object{"type": "object", "additionalProperties": s.value(t.Elem(), v, &field{})}
		}
		m = object{"type": "array", "items": s.value(t.Elem(), reflect.Value{}, f)}
		if t.Elem().Kind() == reflect.String {
			m = object{"anyOf": []object{m, s.value(t.Elem(), reflect.Value{}, f)}}
		}
	case reflect.Array:
		m = object{"type": "array", "items": s.value(t.Elem(), reflect.Value{}, f), "minItems": t.Len(), "maxItems": t.Len()}
	case reflect.Interface:
		m = object{}
	default:
		m = object{"type": "integer"}
		if f.bytes {
			m = object{"anyOf": []object{{"type": "integer", "minimum": 0}, {"type": "string", "pattern": sizePattern}}}
			if v.IsValid() && v.CanInt() && v.Int() != 0 {
				m["default"] = FormatSize(v.Int())
			}
			break
		}
		m = limits(m, f)
		if v.IsValid() && v.CanInt() && v.Int() != 0 {
			m["default"] = v.Int()
		}
	}
	return m
}

func limits(m object, f *field) object {
	for _, l := range []struct{ key, text string }{{"minimum", f.min}, {"maximum", f.max}} {
		if x, err := strconv.ParseFloat(l.text, 64); err == nil {
			m[l.key] = x
		}
	}
	return m
}

// FormatDuration writes a duration the way the file takes it: 500ms, 1m30s, 0s.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// FormatSize writes a number of bytes the way the file takes it: with the
// largest unit that divides it.
func FormatSize(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GB", 1e9}, {"GiB", 1 << 30}, {"MB", 1e6}, {"MiB", 1 << 20}, {"KB", 1e3}, {"KiB", 1 << 10}} {
		if n > 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
