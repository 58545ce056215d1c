package document

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

type decimal string

func (d *decimal) UnmarshalText(b []byte) error {
	if strings.Trim(string(b), "+-0123456789.e") != "" {
		return fmt.Errorf("%q is not a number", b)
	}
	*d = decimal(b)
	return nil
}

// pair is a struct that may also be written as one word "lo..hi".
type pair struct {
	Lo int `yaml:"lo"`
	Hi int `yaml:"hi"`
}

func (p *pair) UnmarshalText(b []byte) error {
	_, err := fmt.Sscanf(string(b), "%d..%d", &p.Lo, &p.Hi)
	return err
}

type point struct {
	Name  string           `yaml:"-"`
	Input *int             `yaml:"input" min:"0" max:"65535"`
	Scale decimal          `yaml:"scale"`
	Range [2]decimal       `yaml:"range"`
	NA    []int64          `yaml:"na"`
	Enum  map[int64]string `yaml:"enum"`
	Span  pair             `yaml:"span"`
	Label string           `yaml:"label"`
}

type device struct {
	Name   string        `yaml:"-"`
	Unit   int           `yaml:"unit" min:"0" max:"255"`
	Every  time.Duration `yaml:"every" min:"10ms"`
	Points []point       `yaml:"points,keyed"`
}

type common struct {
	Level string `yaml:"level" enum:"debug,info,warn"`
}

type file struct {
	ID      string            `yaml:"id" required:"true" doc:"Name of the gateway."`
	Labels  map[string]string `yaml:"labels"`
	Devices []*device         `yaml:"devices,keyed"`
	Size    int64             `yaml:"size" unit:"bytes" min:"1MB"`
	Ratio   float64           `yaml:"ratio" max:"10"`
	On      bool              `yaml:"on"`
	CA      []string          `yaml:"ca"`
	Extra   any               `yaml:"extra"`
	Log     *common           `yaml:"log"`
	common  `yaml:",inline"`
	Mode    struct {
		common `yaml:",inline"`
		U8     uint8 `yaml:"u8"`
	} `yaml:"mode"`
}

type okFile struct {
	ID     string            `yaml:"id" required:"true"`
	Labels map[string]string `yaml:"labels"`
	Size   int64             `yaml:"size" unit:"bytes"`
	Hold   time.Duration     `yaml:"hold"`
	Ratio  float64           `yaml:"ratio"`
	On     bool              `yaml:"on"`
	CA     []string          `yaml:"ca"`
	Extra  any               `yaml:"extra"`
	Big    uint64            `yaml:"big"`
	Devs   []device          `yaml:"devs,keyed"`
	Rules  []point           `yaml:"rules,keyed"`
}

func TestBind(t *testing.T) {
	src := "\ufeff# a file from an editor under Windows\r\n" + strings.ReplaceAll(`---
id: 017
labels: {district: NO, "n": 1_0}
size: 512MB
hold: 1m30s
ratio: 1e3
on: true
ca: one.crt
extra: {a: [1, 2.5, x, ~], b: "1"}
big: 0xFFFFFFFFFFFFFFFF
rules:
devs:
  boiler:
    unit: 0x10
    every: 500ms
    points:
      z: {input: 0, scale: 0.10, range: [-20, 150], na: [0x7FFF, -1], enum: {0: off, 1: on}, span: 3..5}
      a: {input: 1, span: {lo: 1, hi: 2}}
  pump: {unit: 7}
`, "\n", "\r\n")
	v := okFile{Hold: time.Hour}
	d := Parse("x.yaml", []byte(src))
	d.Bind(&v)
	for _, p := range d.Problems() {
		t.Error(p.Text())
	}
	if t.Failed() {
		return
	}
	want := []any{"017", "NO", "1_0", int64(512e6), 90 * time.Second, 1000.0, true, []string{"one.crt"}, uint64(1<<64 - 1),
		map[string]any{"a": []any{int64(1), 2.5, "x", nil}, "b": "1"}}
	got := []any{v.ID, v.Labels["district"], v.Labels["n"], v.Size, v.Hold, v.Ratio, v.On, v.CA, v.Big, v.Extra}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("got %#v, want %#v", got[i], want[i])
		}
	}
	if len(v.Devs) != 2 || v.Devs[0].Name != "boiler" || v.Devs[1].Name != "pump" || v.Devs[0].Unit != 16 {
		t.Fatalf("devices: %+v", v.Devs)
	}
	p := v.Devs[0].Points
	if p[0].Name != "z" || p[1].Name != "a" || *p[0].Input != 0 || p[0].Scale != "0.10" || p[0].Range[0] != "-20" ||
		p[0].NA[0] != 0x7fff || p[0].Enum[1] != "on" || p[0].Span.Hi != 5 || p[1].Span.Hi != 2 {
		t.Errorf("points: %+v", p)
	}
	if !d.Has("devs.boiler.points.z.range[1]") || d.Has("devs.boiler.points.y") || d.Has("id.x") {
		t.Error("Has is wrong")
	}
	if k := d.Keys("devs"); len(k) != 2 || k[1] != "pump" {
		t.Errorf("Keys: %q", k)
	}
}

// TestMessages pins what a user reads for one mistake each: code, message,
// advice and place.
func TestMessages(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"", `0:0 config-missing "id" is missing | Name of the gateway.`},
		{"id: x\nsiize: 2MB", `2:1 config-key unknown key "siize" | did you mean "size"?`},
		{"id: x\nid: y", `2:1 config-key key "id" is here twice | the first one is in line 1; remove one`},
		{"id: x\nsize: 2mb", `2:7 config-value size: "2mb" is not a size | expected bytes with a unit, such as 100KB, 512MB or 4KiB; did you mean "2MB"?`},
		{"id: x\nsize: 100KB", `2:7 config-value size: 100KB is below 1MB | expected 1MB or more`},
		{"id: x\ndevices: {a: {every: 5}}", `2:22 config-value every: "5" has no unit | expected a number with a unit, such as 500ms, 5s, 1m30s or 2h; did you mean "5s"?`},
		{"id: x\ndevices: {a: {every: 5 sec}}", `2:22 config-value every: "5 sec" is not a duration | expected a number with a unit, such as 500ms, 5s, 1m30s or 2h; did you mean "5s"?`},
		{"id: x\ndevices: {a: {every: 1ms}}", `2:22 config-value every: 1ms is below 10ms | expected 10ms or more`},
		{"id: x\ndevices: {a: {slave: 5}}", `2:15 config-key unknown key "slave" | did you mean "unit"?`},
		{"id: x\ndevices: {a: {unit: 300}}", `2:21 config-value unit: 300 is above 255 | expected 0 to 255`},
		{"id: x\ndevices: {a: {unit: '3'}}", `2:21 config-value unit: a number is written without quotes | expected 0 to 255; write 3`},
		{"id: x\ndevices: {a: {unit: 3.0}}", `2:21 config-value unit: "3.0" is not a whole number | expected 0 to 255; did you mean "3"?`},
		{"id: x\ndevices: {unit: 3}", `2:11 config-value a name is missing above "unit" | devices: holds names, and the keys stand under a name`},
		{"id: x\ndevices:\n  - unit: 3", `2:1 config-value "devices" must be a mapping of names, not a list | write "NAME:" and the keys under it, without "- "`},
		{"id: x\nunit: 3", `2:1 config-key unknown key "unit" | "unit" belongs under devices.NAME`},
		{"id: x\nlabel: {a: b}", `2:1 config-key unknown key "label" | did you mean "labels"?`},
		{"id: x\nlog: {levle: info}", `2:7 config-key unknown key "levle" | did you mean "level"?`},
		{"id: x\nlog: {level: information}", `2:14 config-value unknown level "information" | expected debug, info or warn; did you mean "info"?`},
		{"id: x\nlog: {level: INFO}", `2:14 config-value unknown level "INFO" | expected debug, info or warn; did you mean "info"?`},
		{"id: x\ndevices: {a: {points: {p: {scale: 0,1, input: 2}}}}", `2:35 config-value scale: "0,1" is not a number | the decimal sign is a point; did you mean "0.1"?`},
		{"id: x\ndevices: {a: {unit: 3 every: 5s}}", `2:21 config-syntax ": " inside a value | is a comma missing before the next key? if it is text, put it in quotes`},
		{"id: x\nlog:\n  level:info", `3:3 config-value "log" must be a mapping of keys, not "level:info" | a space is missing: write "level: info"`},
		{"id: x\non: yes", `2:5 config-value on: "yes" is not true or false | expected true or false; did you mean "true"?`},
		{"id: x\nratio: 1,5", `2:8 config-value ratio: "1,5" is not a number | the decimal sign is a point; did you mean "1.5"?`},
		{"id: x\nratio: .nan", `2:8 config-value ratio: ".nan" is not a number | `},
		{"id:", `1:1 config-value "id" has no value | write one, or remove the line to get the default`},
		{"id: [x]", `1:1 config-value "id" must be a single value, not a list | `},
		{"- id: x", `1:1 config-value the file must be a mapping of keys, not a list | write the keys without "- "`},
		{"hello", `1:1 config-value the file must be a mapping of keys, not "hello" | expected keys: id, labels, devices, size, ratio, on, ca, extra, ...`},
		{"id: x\nmode: {u8: 256}", `2:12 config-value u8: 256 is too large | `},
		{"id: x\ndevices: {a: {points: {p: {scale: one}}}}", `2:35 config-value scale: "one" is not a number | `},
		{"id: x\ndevices: {a: {points: {p: {range: [1]}}}}", `2:28 config-value "range" must be a list of 2 values | `},
		{"id: x\ndevices: {a: {points: {p: {range: [1, x]}}}}", `2:39 config-value range[1]: "x" is not a number | `},
		{"id: x\ndevices: {a: {points: {p: {enum: {on: 1}}}}}", `2:35 config-key key "on" is not a whole number | the keys of enum are numbers`},
		{"id: x\nsize: *y", `2:7 config-syntax an alias (*name) is not used in this file | write the value out; if it is text, put it in quotes`},
		{"id: x\nsize: !!int 5", `2:7 config-syntax a tag (!name) is not used in this file | write the value out; if it is text, put it in quotes`},
		{"id: x\n<<: {a: 1}", `2:1 config-syntax a merge key (<<) is not used in this file | write "key: value"`},
		{"id: x\n\tsize: 5", `2:1 config-syntax a tab in the indentation | YAML takes only spaces here; replace each tab by two spaces`},
		{"id: x\n  size: 5", `2:3 config-syntax this line is indented deeper than its neighbours | keys of one section start in the same column`},
		{"id:x\non: true", `1:1 config-syntax no space after "id:" | write "id: x"`},
		{"on: true\nid:x", `2:1 config-syntax no space after "id:" | write "id: x"`},
		{"id: x: y", `1:5 config-syntax ": " inside a value | if it is text, put the value in quotes; else one key a line`},
		{"id: 'x\non: true", `1:5 config-syntax this quote is never closed | `},
		{"id: x\nlog: {level: info\non: true", `2:6 config-syntax a "{" is not closed, or a comma is missing | close it with }, and put commas between the keys`},
		{"id: x\nca: [a, b", `2:5 config-syntax a "[" is not closed, or a comma is missing | close it with ], and put commas between the values`},
		{"id: x\nca: @a", `2:5 config-syntax a value cannot start with this character | put the value in quotes`},
		{"id: x\n---\nid: y", `2:1 config-syntax a second document starts here | one file holds one document; remove the "---"`},
		{"id: x\nca: a\tb", `2:5 config-syntax this value cannot be read as it stands | put it in quotes; is there a tab in it?`},
		{"id: x\xff", `1:6 config-syntax byte 0xff is not UTF-8 text | is this a text file? save it as UTF-8`},
		{"id: x\x00", `1:6 config-syntax control character 0x00 | is this a text file? save it as UTF-8`},
		{"id: x\nlog:\n    level: info\n  u8: 3", `4:3 config-syntax this line does not fit the lines above | check its indentation: keys of one section start in the same column`},
	} {
		d := Parse("f", []byte(c.src))
		d.Bind(&file{})
		var got []string
		for _, p := range d.Problems() {
			got = append(got, fmt.Sprintf("%d:%d %s %s | %s", p.Line, p.Col, p.Code, p.Msg, p.Advice()))
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.src, strings.Join(got, "\n     "), c.want)
		}
	}
}

// TestAllAtOnce: a file with many mistakes, also in its syntax, tells of all.
func TestAllAtOnce(t *testing.T) {
	src := `id: x
size: 5XB
log:
	level: info
devices:
  a: {unit: 900, evry: 5}
mode: {u8: 1
ratio: many
`
	d := Parse("f", []byte(src))
	d.Bind(&file{})
	var got []string
	for _, p := range d.Problems() {
		got = append(got, fmt.Sprint(p.Line))
	}
	if s := strings.Join(got, " "); s != "2 4 6 6 6 7 8" {
		t.Errorf("lines with problems: %s", s)
		for _, p := range d.Problems() {
			t.Log(p.Text())
		}
	}
	if !d.Broken() {
		t.Error("not broken")
	}
}

func TestReport(t *testing.T) {
	d := Parse("/etc/x.yaml", []byte("id: x\ndevices:\n  a:\n    unitt: 3\n    points: {p: {input: 1}}\n"))
	d.Bind(&file{})
	report := d.Section("devices.a")
	report("unit", "3 is taken", "")
	report("every", "\"every\" is missing", "")
	report("points.p", "a point needs more", "")
	d.Report("devices.a.points.p.input", "address", "bad", `look; did you mean "2"?`)
	d.Report("devices.a.points.p.input", "address", "bad again", "")
	d.Warn("id", "soft", "a warning", "")
	d.Report("nothing.here", "lost", "no place", "")
	want := `lost no place 0:0 0 ""
soft a warning 1:5 1 ""
config-missing "every" is missing 3:3 1 ""
config-key unknown key "unitt" 4:5 5 "unit"
config-value 3 is taken 4:12 1 ""
config-value a point needs more 5:14 1 ""
address bad 5:25 1 "2"
`
	var got string
	for _, p := range d.Problems() {
		got += fmt.Sprintf("%s %s %d:%d %d %q\n", p.Code, p.Msg, p.Line, p.Col, p.Len, p.Suggest)
	}
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestExcerpt(t *testing.T) {
	src := "id: x\nlog:\n  # a comment\n  level: verbose\nmode:\n  ext\tra: 1\nlabels: {a: \"" + strings.Repeat("x", 80) + "\", b: [1]}\nca: {\"\u6e29\": 1}\n"
	d := Parse("/etc/tidegate/tidegate.yaml", []byte(src))
	d.Bind(&file{})
	want := `/etc/tidegate/tidegate.yaml:4:10: error: unknown level "verbose"  [config-value]
    2 | log:
    4 |   level: verbose
      |          ^^^^^^^ expected debug, info or warn
/etc/tidegate/tidegate.yaml:6:3: error: this key cannot be read as it stands
                                                                 [config-syntax]
    5 | mode:
    6 |   ext\tra: 1
      |   ^^^^^^ is there a tab in it?
/etc/tidegate/tidegate.yaml:7:97: error: "b" must be a single value, not a list
                                                                  [config-value]
    7 | ...xxxxxxxxxxxxxxxxxxxxx", b: [1]}
      |                            ^
/etc/tidegate/tidegate.yaml:8:1: error: "ca" must be a list, not a mapping
                                                                  [config-value]
    8 | ca: {"?": 1}
      | ^^ write [a, b] or one "- " line each
`
	var got string
	for _, p := range d.Problems() {
		got += d.Excerpt(p)
	}
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, l := range strings.Split(got, "\n") {
		if len(l) > 80 {
			t.Errorf("%d columns: %s", len(l), l)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"connect", "line", "timeout", "unit", "max_loss"}
	for word, want := range map[string]string{"conect": "connect", "Line": "line", "max-loss": "max_loss", "maxLoss": "max_loss",
		"tiemout": "timeout", "unti": "unit", "": "", "xyz": "", "un": "", "a": "", "tim": "", "time": "timeout", "connection": "connect"} {
		if got := Nearest(word, known); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

func TestSchemaIsJSON(t *testing.T) {
	var m map[string]any
	if err := json.Unmarshal(Schema(&okFile{Size: 512e6, Hold: time.Minute}, "x"), &m); err != nil {
		t.Fatal(err)
	}
	p := m["properties"].(map[string]any)
	if p["size"].(map[string]any)["default"] != "512MB" || p["hold"].(map[string]any)["default"] != "1m" {
		t.Errorf("defaults: %v", p)
	}
}

func TestFormat(t *testing.T) {
	for d, want := range map[time.Duration]string{90 * time.Second: "1m30s", time.Hour: "1h", 0: "0s", 500 * time.Millisecond: "500ms", 61 * time.Minute: "1h1m"} {
		if got := FormatDuration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{512e6: "512MB", 4096: "4KiB", 1000: "1KB", 1001: "1001", 0: "0"} {
		if got := FormatSize(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestFormatRoundTrip(t *testing.T) {
	in := 3
	v := okFile{ID: "a: b", Labels: map[string]string{"x": "- y", "k": "017", "n": "null", "q": "it's \"q\" \\ \u6e29\n"}, Size: 512e6, Hold: 90 * time.Second, CA: []string{"a", "*b", ""},
		Devs: []device{{Name: "d", Unit: 3, Points: []point{{Name: "p", Input: &in, Scale: "0.10", NA: []int64{-1}, Enum: map[int64]string{0: "off"}}}}, {Name: "e", Every: time.Second}}}
	text := Format(&v)
	d := Parse("f", text)
	var w okFile
	d.Bind(&w)
	for _, p := range d.Problems() {
		t.Error(p.Text())
	}
	if again := Format(&w); string(again) != string(text) {
		t.Errorf("got\n%s\nwant\n%s", again, text)
	}
	if w.ID != v.ID || !reflect.DeepEqual(w.Labels, v.Labels) || !reflect.DeepEqual(w.CA, v.CA) || w.Devs[0].Points[0].Scale != "0.10" || w.Devs[1].Every != time.Second {
		t.Errorf("got %+v", w)
	}
	t.Logf("\n%s", text)
}

func TestSecretsAreMasked(t *testing.T) {
	d := Parse("f", []byte("password: hunter2\nurl: mqtts://u:hunter2@h:1\nx: {token: \"hunter2\", a: 1}\npassword_file: /etc/pw\n"))
	d.Bind(&file{})
	all := ""
	for _, p := range d.Problems() {
		all += p.Text()
	}
	if strings.Contains(all, "hunter2") || !strings.Contains(all, "/etc/pw") {
		t.Error(all)
	}
}

func TestDepthAndSize(t *testing.T) {
	for name, src := range map[string]string{
		"brackets": "a: " + strings.Repeat("[", 500000),
		"braces":   strings.Repeat("{a: ", 80000),
		"marks":    strings.Repeat("- ", 150000),
		"keys":     strings.Repeat("? ", 500000),
		"colons":   strings.Repeat("a: ", 100000),
		"anchors":  strings.Repeat("&a ", 80000),
		"tags":     strings.Repeat("! ", 300000),
		"stairs":   stairs(1400),
		"large":    strings.Repeat("a", MaxSize+1),
		"quotes":   strings.Repeat("'", 500001),
	} {
		start := time.Now()
		d := Parse("f", []byte(src))
		d.Bind(&file{})
		if len(d.Problems()) == 0 {
			t.Errorf("%s: no problem found", name)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: %v", name, took)
		} else {
			t.Logf("%s: %v", name, took)
		}
	}
}

func stairs(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "id: x", "a: {b: [1, 2}", "\ufeffid: x\r\n", "a:\n\t- b", "? a\n: b", "<<: *x", "a: &x [*x]", "a: !!b c",
		"id: |\n x\n", "id: >-\n x\n\n y", "- - - a", "{a: b, }", "'a\n b': c", "%YAML 1.2\n---\na: b", "a: ~\nb: null\nc:", "a: 0x\nb: 1__0\nc: 1e999",
		"devices: {a: {every: 5, points: {p: {input: -1, range: [a, b], enum: {1: x}}}}}", "id: x\n---\n...\nid: y", "a: \"\\x00\"", "...", "---", "\x00", "a: 'x",
		": a", "\"\": a", "[a: b, c]", "a: [b\n]", "a:\n  b: c\n d: e", "a: b #c\n#d", "log: {level: \xe2\x82\xac}", "a: -", "-", "?", "&", "*", "!", "|", ">", "@", "`", "size: 99999999999999GB"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		d := Parse("f.yaml", src)
		var v file
		d.Bind(&v)
		d.Report("devices.a.unit", "x", "y", "z")
		d.Warn("devices[3].a", "x", "y", "")
		var w okFile
		d.Bind(&w)
		for _, p := range d.Problems() {
			if p.Line < 0 || p.Line > strings.Count(string(src), "\n")+1 || p.Col < 0 {
				t.Errorf("place %d:%d is outside the file", p.Line, p.Col)
			}
			for _, r := range d.Excerpt(p) {
				if r != '\n' && (r < ' ' || r > '~') {
					t.Errorf("%q in the text of a problem", r)
				}
			}
		}
	})
}

// TestManyKeys: what reading a file allocates grows with its size, and not
// with its square.
func TestManyKeys(t *testing.T) { // not in parallel: what other tests allocate would count
	keys := func(n int, indent string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%sk%d: 1\n", indent, i)
		}
		return b.String()
	}
	const many = "more than 10000 keys in one mapping"
	for _, c := range []struct{ name, src, want string }{
		{"the whole file", keys(30_000, ""), many},
		{"one more", keys(maxKeys+1, ""), many},
		{"a section", "name: x\nitems:\n" + keys(30_000, "  "), many},
		{"in a list", "items:\n  a:\n    - x: 1\n      b:\n" + keys(30_000, "        "), many},
		{"in brackets", "items: {" + strings.ReplaceAll(keys(30_000, ""), "\n", ",\n ") + "}\n", "must be a mapping"},
		{"a long list", "items:\n  a:\n" + strings.Repeat("    - k: 1\n", 30_000), "must be a mapping"},
		{"many sections", sections(200, keys(100, "  ")), `unknown key "s0"`},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d := Parse("x.yaml", []byte(c.src))
		var v struct {
			Items []struct {
				Name string `yaml:"-"`
			} `yaml:"items,keyed"`
		}
		d.Bind(&v)
		runtime.ReadMemStats(&after)
		if per := (after.TotalAlloc - before.TotalAlloc) / uint64(len(c.src)); per > 1000 {
			t.Errorf("%s: %d bytes for each byte of the file", c.name, per)
		}
		if p := d.Problems(); len(p) == 0 || !strings.Contains(p[0].Msg, c.want) {
			t.Errorf("%s: %+v", c.name, p[:min(len(p), 3)])
		}
	}
	if d := Parse("x.yaml", []byte(keys(maxKeys, ""))); d.Broken() {
		t.Errorf("%d keys: %+v", maxKeys, d.Problems())
	}
}

func sections(n int, keys string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "s%d:\n%s", i, keys)
	}
	return b.String()
}

// TestManyProblems: those behind the first 500 are counted, and one error among
// them is one, whatever stands before it.
func TestManyProblems(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range 700 {
		fmt.Fprintf(&b, "k%d: 1\n", i)
	}
	last := func(d *Document) string {
		p := d.Problems()
		return fmt.Sprintf("%d %s %s %v", len(p), p[len(p)-1].Code, p[len(p)-1].Msg, p[len(p)-1].Warning)
	}
	d := Parse("x.yaml", []byte(b.String()))
	var v struct {
		Name string `yaml:"name"`
	}
	d.Bind(&v)
	if got := last(d); got != "501 config-key and 200 more false" {
		t.Error(got)
	}
	d = Parse("x.yaml", []byte(b.String()))
	for i := range 600 {
		d.Warn(fmt.Sprintf("k%d", i), CodeValue, "odd", "")
	}
	if got := last(d); got != "501 config-value and 100 more true" {
		t.Error(got)
	}
	d.Report("k650", CodeMissing, "wrong", "")
	if got := last(d); got != "501 config-missing and 101 more false" {
		t.Error(got)
	}
	if text := d.Problems()[500].Text(); text != "x.yaml: error: and 101 more                                     [config-missing]\n" {
		t.Errorf("%q", text)
	}
}
