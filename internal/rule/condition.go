package rule

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"tidegate/internal/telemetry"
)

// truth of a condition; unknown where the value is of another kind than the
// condition compares with.
type truth uint8

const (
	unknown truth = iota
	no
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

// op is an operator.
type op uint8

const (
	above op = iota
	atLeast
	below
	atMost
	equal
	differs
)

// operators in the order in which they are looked for: the longer first.
var operators = [...]struct {
	text string
	op   op
}{{">=", atLeast}, {"<=", atMost}, {"==", equal}, {"!=", differs}, {">", above}, {"<", below}}

// mistaken are the operators of other trades and what is meant.
var mistaken = [...]struct{ text, meant string }{
	{"=>", ">="}, {"=<", "<="}, {"<>", "!="}, {"===", "=="}, {"=", "=="}, {"\u2265", ">="}, {"\u2264", "<="}, {"\u2260", "!="}, {"!", "!="}}

// orders tells whether the operator needs numbers.
func (o op) orders() bool { return o != equal && o != differs }

// operandKind is what is written at the right.
type operandKind uint8

const (
	word operandKind = iota
	number
	truthValue
)

// condition is one comparison of a point with a constant.
type condition struct {
	point uint32
	op    op
	kind  operandKind
	text  string  // as written, without quotes
	num   float64 // of a number
	num32 float32 // the same, as a device with singles sends it
	whole int64   // the same, exactly, if exact
	exact bool    // it was written as an integer
	truth bool    // of a truthValue
}

// holds compares. Numbers are compared as they print: a single that prints
// as 0.1 equals 0.1. Booleans are 1 and 0 to a number.
func (c *condition) holds(v *telemetry.Value) truth {
	switch k := v.Kind(); {
	case k == telemetry.None:
		return unknown
	case k == telemetry.Text:
		if c.op.orders() {
			return unknown
		}
		return truthOf((v.Text() == c.text) == (c.op == equal))
	case c.kind == truthValue:
		return truthOf((v.Bool() == c.truth) == (c.op == equal))
	case c.kind == word:
		return unknown
	case k == telemetry.Int && v.Decimals() == 0 && c.exact:
		return c.by(compare(v.Mantissa(), c.whole))
	case k == telemetry.Float32:
		f := v.Float()
		if f != f {
			return unknown
		}
		return c.by(compare(float32(f), c.num32))
	default:
		f := v.Float()
		if f != f {
			return unknown
		}
		return c.by(compare(f, c.num))
	}
}

func compare[T int64 | float32 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// by tells whether the operator takes the order of value and constant.
func (c *condition) by(order int) truth {
	switch c.op {
	case above:
		return truthOf(order > 0)
	case atLeast:
		return truthOf(order >= 0)
	case below:
		return truthOf(order < 0)
	case atMost:
		return truthOf(order <= 0)
	case equal:
		return truthOf(order == 0)
	}
	return truthOf(order != 0)
}

// overlap finds a value at which both conditions hold, if they look at one
// point: the constants themselves, what lies beside them and between them
// stand for all others.
func (c *condition) overlap(o *condition) (at string, found bool) {
	if c.point != o.point || c.kind != o.kind {
		return "", false
	}
	var values []telemetry.Value
	switch c.kind {
	case number:
		for _, x := range [...]float64{(c.num + o.num) / 2, c.num, o.num, c.num - 1, c.num + 1, o.num - 1, o.num + 1} {
			values = append(values, telemetry.Float64Value(x))
		}
	case truthValue:
		values = append(values, telemetry.BoolValue(true), telemetry.BoolValue(false))
	default:
		values = append(values, telemetry.TextValue(c.text), telemetry.TextValue(o.text), telemetry.TextValue(c.text+o.text+" and all others"))
	}
	for i := range values {
		if c.holds(&values[i]) == yes && o.holds(&values[i]) == yes {
			if c.kind == word && i == 2 {
				return "any other word", true
			}
			return values[i].String(), true
		}
	}
	return "", false
}

// compiler collects the issues of all rules.
type compiler struct {
	numbers map[string]uint32
	points  []telemetry.Point
	rule    string
	issues  []Issue
}

func (c *compiler) report(path, msg, hint string) {
	c.issues = append(c.issues, Issue{Rule: c.rule, Path: path, Msg: msg, Hint: hint})
}

func quoted(s string) string { return `"` + s + `"` }

// meant is a hint with a suggestion; one that holds a quote is not put in quotes.
func meant(hint, suggest string) string {
	if strings.Contains(suggest, `"`) {
		return strings.TrimPrefix(hint+"; did you mean "+suggest, "; ")
	}
	return strings.TrimPrefix(hint+"; did you mean "+quoted(suggest)+"?", "; ")
}

const form = "expected device/point, an operator and a value, such as main-meter/voltage_l1 > 253"

// condition reads `main-meter/voltage_l1 > 253`. What it cannot read is an issue.
func (c *compiler) condition(path, text string) (condition, bool) {
	text = strings.TrimSpace(text)
	at := strings.IndexAny(text, "<>=!\u2265\u2264\u2260")
	if at < 0 {
		c.report(path, fmt.Sprintf("%s: %q has no operator", path, text), form)
		return condition{}, false
	}
	left, rest := strings.TrimSpace(text[:at]), text[at:]
	var cond condition
	sign := ""
	for _, o := range operators {
		if strings.HasPrefix(rest, o.text) && rest[:min(2, len(rest))] != "<>" && !strings.HasPrefix(rest, "===") {
			cond.op, sign = o.op, o.text
			break
		}
	}
	right := strings.TrimSpace(rest[len(sign):])
	if sign == "" {
		for _, m := range mistaken {
			if strings.HasPrefix(rest, m.text) {
				right = strings.TrimSpace(strings.TrimPrefix(rest, m.text))
				c.report(path, fmt.Sprintf("%s: unknown operator %q", path, m.text),
					meant("expected > >= < <= == or !=", left+" "+m.meant+" "+right))
				return condition{}, false
			}
		}
	}
	switch {
	case left == "" || right == "":
		c.report(path, fmt.Sprintf("%s: %q is not a whole comparison", path, text), form)
		return condition{}, false
	case isNumber(left) && strings.Contains(right, "/"):
		flipped := map[string]string{">": "<", ">=": "<=", "<": ">", "<=": ">=", "==": "==", "!=": "!="}[sign]
		c.report(path, path+": the point stands at the left", meant("", right+" "+flipped+" "+left))
		return condition{}, false
	}
	if !c.operand(path, left+" "+sign, right, &cond) {
		return condition{}, false
	}
	if cond.op.orders() && cond.kind != number {
		c.report(path, fmt.Sprintf("%s: %s compares numbers, and %q is none", path, sign, cond.text), "words, true and false have == and !=")
		return condition{}, false
	}
	return cond, c.resolve(path, left, sign, &cond)
}

// resolve finds the point, and refuses what its values could never meet.
func (c *compiler) resolve(path, name, sign string, cond *condition) bool {
	point, ok := c.numbers[name]
	if !ok {
		c.issues = append(c.issues, Issue{Rule: c.rule, Path: path, Unknown: name,
			Msg: fmt.Sprintf("%s: there is no point %q", path, name), Hint: "expected device/point"})
		return false
	}
	cond.point = point
	switch kind := c.points[point].Kind; {
	case (kind == "gauge" || kind == "counter") && cond.kind != number:
		c.report(path, fmt.Sprintf("%s: %s is a number, %q is none", path, name, cond.text), "")
		return false
	case kind == "text" && cond.op.orders():
		c.report(path, fmt.Sprintf("%s: %s is a text; %s compares numbers", path, name, sign), "texts have == and !=")
		return false
	}
	return true
}

// operand reads the right side; left is what stands before it.
func (c *compiler) operand(path, left, s string, cond *condition) bool {
	cond.text = s
	lower := strings.ToLower(s)
	first, after, several := strings.Cut(s, " ")
	switch {
	case len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] && strings.IndexByte(s[1:len(s)-1], s[0]) < 0:
		cond.text = s[1 : len(s)-1]
	case isNumber(s):
		cond.kind = number
		var err error
		if cond.num, err = strconv.ParseFloat(s, 64); err != nil {
			c.report(path, fmt.Sprintf("%s: %s is too large", path, s), "")
			return false
		}
		cond.num32 = float32(cond.num)
		if cond.whole, err = strconv.ParseInt(s, 10, 64); err == nil {
			cond.exact = true
		}
	case lower == "true" || lower == "false":
		cond.kind, cond.truth, cond.text = truthValue, lower == "true", lower
	case lower == "on" || lower == "yes":
		c.report(path, fmt.Sprintf("%s: %s can mean two things", path, s), meant("a contact or coil is true or false; a word that a device says stands in quotes", left+" true"))
		return false
	case lower == "off" || lower == "no":
		c.report(path, fmt.Sprintf("%s: %s can mean two things", path, s), meant("a contact or coil is true or false; a word that a device says stands in quotes", left+" false"))
		return false
	case isNumber(strings.Replace(s, ",", ".", 1)):
		c.report(path, fmt.Sprintf("%s: %q is no number", path, s), meant("", left+" "+strings.Replace(s, ",", ".", 1)))
		return false
	case strings.ContainsAny(s, "&|") || several && strings.Contains(" "+lower+" ", " and ") || several && strings.Contains(" "+lower+" ", " or "):
		c.report(path, path+": a rule has one comparison", "write a rule for each")
		return false
	case isNumber(first) && several:
		c.report(path, fmt.Sprintf("%s: %q behind the number is not understood", path, strings.TrimSpace(after)), meant("numbers are in the unit of the point", left+" "+first))
		return false
	case strings.ContainsAny(s, " \t\"'<>=!"):
		c.report(path, fmt.Sprintf("%s: %q is no value", path, s), "expected a number, true, false, or a word; several words stand in quotes")
		return false
	}
	return true
}

// isNumber tells whether s is a decimal number, as JSON writes it or with a plus sign.
func isNumber(s string) bool {
	if strings.Trim(s, "0123456789+-.eE") != "" || strings.Trim(s, "+-.eE") == "" {
		return false
	}
	_, err := strconv.ParseFloat(s, 64)
	return err == nil || errors.Is(err, strconv.ErrRange)
}
