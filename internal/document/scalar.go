package document

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// mistake is what is wrong with one scalar.
type mistake struct{ msg, hint, suggest string }

// scalar binds a scalar to a string, bool, number or duration.
func (b *binder) scalar(n *node, v reflect.Value, f *field, path string) *mistake {
	name := last(path)
	if v.Type() == durationType {
		d, bad := parseDuration(n.text)
		if bad != nil && strings.TrimLeft(n.text, "0123456789") == "" && len(n.text) > 2 && short(name) {
			bad.suggest = n.text + "ms"
		}
		if bad == nil {
			bad = inRange(n.text, float64(d), f, func(s string) float64 { x, _ := parseDuration(s); return float64(x) })
		}
		if bad != nil {
			bad.msg = name + ": " + bad.msg
			return bad
		}
		v.SetInt(int64(d))
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		if f.enum != nil && !slices.Contains(f.enum, n.text) && (n.text != "" || v.String() != "") {
			return wrongWord(n.text, f.enum, name)
		}
		v.SetString(n.text)
	case reflect.Bool:
		switch n.text {
		case "true", "false":
			if n.quoted {
				return &mistake{name + ": a truth value is written without quotes", "write " + n.text, ""}
			}
			v.SetBool(n.text == "true")
		default:
			return &mistake{fmt.Sprintf("%s: %s is not true or false", name, quote(n.text)), "expected true or false", truth(n.text)}
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		x, bad := b.integer(n, f, name)
		if bad != nil {
			return bad
		}
		if v.OverflowInt(x) {
			return &mistake{fmt.Sprintf("%s: %s is too large", name, n.text), "", ""}
		}
		v.SetInt(x)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if x, ok := parseUint(n.text); ok && !n.quoted && x > math.MaxInt64 && f.max == "" {
			if v.OverflowUint(x) {
				return &mistake{fmt.Sprintf("%s: %s is too large", name, n.text), "", ""}
			}
			v.SetUint(x)
			return nil
		}
		x, bad := b.integer(n, f, name)
		if bad != nil {
			return bad
		}
		if x < 0 {
			return &mistake{fmt.Sprintf("%s: %s is below 0", name, n.text), "", ""}
		}
		if v.OverflowUint(uint64(x)) {
			return &mistake{fmt.Sprintf("%s: %s is too large", name, n.text), "", ""}
		}
		v.SetUint(uint64(x))
	case reflect.Float32, reflect.Float64:
		x, bad := parseFloat(n, name)
		if bad == nil {
			bad = inRange(n.text, x, f, func(s string) float64 { y, _ := strconv.ParseFloat(s, 64); return y })
			if bad != nil {
				bad.msg = name + ": " + bad.msg
			}
		}
		if bad != nil {
			return bad
		}
		v.SetFloat(x)
	default:
		return &mistake{msg: fmt.Sprintf("%s: the program cannot take a value here (%s)", name, v.Type())}
	}
	return nil
}

func (b *binder) integer(n *node, f *field, name string) (int64, *mistake) {
	var x int64
	if f.bytes {
		var bad *mistake
		if x, bad = parseSize(n.text); bad != nil {
			bad.msg = name + ": " + bad.msg
			return 0, bad
		}
	} else {
		var ok bool
		if x, ok = parseInt(n.text); !ok || n.quoted {
			m := &mistake{msg: fmt.Sprintf("%s: %s is not a whole number", name, quote(n.text)), hint: expected(f)}
			if ok {
				m.msg = name + ": a number is written without quotes"
				m.hint += "; write " + n.text
			} else if y, err := strconv.ParseFloat(n.text, 64); err == nil && y == math.Trunc(y) && math.Abs(y) < 1e15 {
				m.suggest = strconv.FormatInt(int64(y), 10)
			}
			return 0, m
		}
	}
	size := func(s string) float64 {
		if f.bytes {
			y, _ := parseSize(s)
			return float64(y)
		}
		y, _ := parseInt(s)
		return float64(y)
	}
	if bad := inRange(n.text, float64(x), f, size); bad != nil {
		bad.msg = name + ": " + bad.msg
		return 0, bad
	}
	return x, nil
}

// inRange checks min and max of a field; value turns a limit into a number.
func inRange(text string, x float64, f *field, value func(string) float64) *mistake {
	if f.min != "" && x < value(f.min) {
		return &mistake{msg: text + " is below " + f.min, hint: expected(f)}
	}
	if f.max != "" && x > value(f.max) {
		return &mistake{msg: text + " is above " + f.max, hint: expected(f)}
	}
	return nil
}

func expected(f *field) string {
	switch {
	case f.min != "" && f.max != "":
		return "expected " + f.min + " to " + f.max
	case f.min != "":
		return "expected " + f.min + " or more"
	case f.max != "":
		return "expected at most " + f.max
	}
	return ""
}

func wrongWord(word string, enum []string, name string) *mistake {
	words := slices.DeleteFunc(slices.Clone(enum), func(s string) bool { return s == "" })
	m := &mistake{msg: fmt.Sprintf("unknown %s %s", name, quote(word)), suggest: Nearest(word, words)}
	if said := trade[fold(word)]; m.suggest == "" && slices.Contains(words, said) {
		m.suggest = said
	}
	switch len(words) {
	case 0:
	case 1:
		m.hint = "expected " + words[0]
	default:
		m.hint = "expected " + strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
	}
	return m
}

// trade holds what other tools call the words of ours.
var trade = map[string]string{
	"int8": "s8", "i8": "s8", "uint8": "u8", "byte": "u8", "int16": "s16", "i16": "s16", "short": "s16",
	"uint16": "u16", "word": "u16", "int32": "s32", "i32": "s32", "int": "s32", "long": "s32", "uint32": "u32", "dword": "u32",
	"int64": "s64", "i64": "s64", "uint64": "u64", "qword": "u64", "float": "f32", "float32": "f32", "real": "f32",
	"double": "f64", "float64": "f64", "bool": "bit", "boolean": "bit", "text": "string", "str": "string", "ascii": "string",
}

func truth(s string) string {
	switch strings.ToLower(s) {
	case "yes", "on", "y", "1", "true", "enabled":
		return "true"
	case "no", "off", "n", "0", "false", "disabled":
		return "false"
	}
	return ""
}

// parseInt reads a whole number: decimal with _ between digits, 0x, 0o, 0b.
// A leading zero does not make it octal: 017 is 17.
func parseInt(s string) (int64, bool) {
	x, err := strconv.ParseInt(plainDigits(s))
	return x, err == nil
}

func parseUint(s string) (uint64, bool) {
	digits, base, bits := plainDigits(s)
	x, err := strconv.ParseUint(digits, base, bits)
	return x, err == nil
}

func plainDigits(s string) (string, int, int) {
	sign, rest := "", s
	if rest != "" && (rest[0] == '-' || rest[0] == '+') {
		sign, rest = rest[:1], rest[1:]
	}
	if sign == "+" {
		sign = ""
	}
	if len(rest) > 1 && rest[0] == '0' && (rest[1] < '0' || rest[1] > '9') {
		return sign + rest, 0, 64 // prefix and underscores as Go reads them
	}
	if strings.Contains(rest, "_") {
		if strings.HasPrefix(rest, "_") || strings.HasSuffix(rest, "_") || strings.Contains(rest, "__") {
			return "", 10, 64
		}
		rest = strings.ReplaceAll(rest, "_", "")
	}
	if rest == "" || rest[0] < '0' || rest[0] > '9' {
		return "", 10, 64
	}
	return sign + rest, 10, 64
}

func parseFloat(n *node, name string) (float64, *mistake) {
	if x, ok := parseInt(n.text); ok && !n.quoted {
		return float64(x), nil
	}
	x, err := strconv.ParseFloat(n.text, 64)
	switch {
	case err != nil || math.IsNaN(x) || math.IsInf(x, 0) || strings.ContainsAny(n.text, "_xXpP"):
		m := &mistake{msg: fmt.Sprintf("%s: %s is not a number", name, quote(n.text))}
		if y := strings.Replace(n.text, ",", ".", 1); y != n.text {
			if _, err := strconv.ParseFloat(y, 64); err == nil {
				m.hint, m.suggest = "the decimal sign is a point", y
			}
		}
		return 0, m
	case n.quoted:
		return 0, &mistake{name + ": a number is written without quotes", "write " + n.text, ""}
	}
	return x, nil
}

// parseDuration reads 500ms, 5s, 1m30s, 2h, 7d. A bare number is refused.
func parseDuration(s string) (time.Duration, *mistake) {
	if d, ok := duration(s); ok {
		if d < 0 {
			return 0, &mistake{msg: quote(s) + " is a negative time"}
		}
		return d, nil
	}
	m := &mistake{msg: quote(s) + " is not a duration", hint: "expected a number with a unit, such as 500ms, 5s, 1m30s or 2h"}
	digits := strings.TrimLeft(s, "0123456789.")
	number := s[:len(s)-len(digits)]
	word := strings.ToLower(strings.TrimSpace(digits))
	if number == "" {
		return 0, m
	}
	unit := ""
	switch word {
	case "", "sec", "secs", "second", "seconds", "s":
		unit = "s"
	case "min", "mins", "minute", "minutes", "m":
		unit = "m"
	case "ms", "msec", "milli", "millis", "millisecond", "milliseconds":
		unit = "ms"
	case "h", "hr", "hrs", "hour", "hours":
		unit = "h"
	case "d", "day", "days":
		unit = "d"
	}
	if word == "" {
		m.msg = quote(s) + " has no unit"
	}
	if _, ok := duration(number + unit); ok && unit != "" {
		m.suggest = number + unit
	}
	return 0, m
}

// short tells a time that people think of in milliseconds.
func short(name string) bool {
	return slices.ContainsFunc([]string{"timeout", "gap", "turnaround", "delay", "after"}, func(w string) bool { return strings.Contains(name, w) })
}

func duration(s string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		x, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(x) * 24 * time.Hour, err == nil
	}
	if s == "0" || strings.HasPrefix(s, "+") {
		return 0, false
	}
	d, err := time.ParseDuration(s)
	return d, err == nil
}

var sizeUnits = []struct {
	name string
	size int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}

// parseSize reads 512MB (decimal), 4KiB (binary) or 1000 (bytes).
func parseSize(s string) (int64, *mistake) {
	digits := strings.TrimLeft(s, "0123456789._")
	number := s[:len(s)-len(digits)]
	x, err := strconv.ParseFloat(strings.ReplaceAll(number, "_", ""), 64)
	if err == nil && x < 1<<53 {
		for _, u := range sizeUnits {
			if digits == u.name && x*float64(u.size) < 1<<62 {
				return int64(x * float64(u.size)), nil
			}
		}
	}
	m := &mistake{msg: quote(s) + " is not a size", hint: "expected bytes with a unit, such as 100KB, 512MB or 4KiB"}
	word := strings.ToLower(strings.TrimSpace(digits))
	for _, u := range sizeUnits {
		l := strings.ToLower(u.name)
		if err == nil && number != "" && u.name != "" &&
			(word == l || word == strings.TrimSuffix(l, "b") && len(l) > 1 || word == l+"yte" || word == l+"ytes") {
			m.suggest = number + u.name
			break
		}
	}
	return 0, m
}

// natural gives a node the Go value that YAML says it has.
func natural(n *node) any {
	switch n.kind {
	case null, lost:
		return nil
	case mapping:
		m := make(map[string]any, len(n.entries))
		for _, e := range n.entries {
			m[e.key] = natural(e.value)
		}
		return m
	case sequence:
		s := make([]any, len(n.items))
		for i, it := range n.items {
			s[i] = natural(it)
		}
		return s
	}
	if n.quoted {
		return n.text
	}
	switch n.text {
	case "true":
		return true
	case "false":
		return false
	}
	if x, ok := parseInt(n.text); ok {
		return x
	}
	if x, err := strconv.ParseFloat(n.text, 64); err == nil && !strings.ContainsAny(n.text, "xX_nN") {
		return x
	}
	return n.text
}
