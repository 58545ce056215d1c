package profile

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"tidegate/internal/document"
	"tidegate/internal/telemetry"
)

var update = flag.Bool("update", false, "write the golden files anew")

// alikeAll are Modbus profiles without a fingerprint, and why they have none.
var alikeAll = map[string]string{
	"eastron-sdm72":      "power and energy alone, at the addresses of its siblings",
	"wellpro-wp8024adam": "contacts and relays alone: any pattern of bits is plausible",
	"wellpro-wp8026adam": "contacts alone",
	"wellpro-wp8027adam": "relays alone",
	"wellpro-wp3066":     "eight temperatures, and no reading is too small for one",
	"generic-alarm-word": "a pattern to copy, no device",
}

// TestLibrary runs the examples of all built-in profiles.
func TestLibrary(t *testing.T) {
	lib, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lib.Names() {
		info, err := lib.Describe(name)
		if err != nil {
			var bad *InvalidError
			if errors.As(err, &bad) {
				for _, x := range bad.Problems {
					t.Errorf("%s:%d:%d: %s: %s (%s)", x.File, x.Line, x.Col, x.Path, x.Msg, x.Hint)
				}
			}
			t.Error(err)
			continue
		}
		for _, r := range info.Test() {
			for _, f := range r.Failures {
				t.Errorf("%s: %s: %s", name, r.Name, f)
			}
		}
		if !info.Verified || !info.Builtin || len(info.Sources) == 0 || info.Domain == "" {
			t.Errorf("%s: verified %v, builtin %v, sources %v, domain %q", name, info.Verified, info.Builtin, info.Sources, info.Domain)
		}
		if info.Transport == "modbus" && len(info.Usual().Plan(Limits{})) == 0 {
			t.Errorf("%s asks for nothing", name)
		}
		if why := alikeAll[name]; info.Transport == "modbus" && (len(info.Detect) < 2) != (why != "") {
			t.Errorf("%s: %d reads to detect it; known as one that cannot be told from others: %q", name, len(info.Detect), why)
		}
		src, _ := builtin.ReadFile(info.File)
		if _, problems := Parse(lib, info.File, src); len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
		}
	}
	if len(lib.Names()) < 8 {
		t.Errorf("only %v", lib.Names())
	}
}

func TestGet(t *testing.T) {
	lib, _ := Load()
	for name, want := range map[string]string{"sdm630": "eastron-sdm630", "SDM120": "eastron-sdm120", "eastron-sdm360": "eastron-sdm630", "zebra": ""} {
		if got := lib.Near(name); got != want {
			t.Errorf("near %s is %q, want %q", name, got, want)
		}
	}
	if _, err := lib.Get("eastron-sdm360"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), `did you mean "eastron-sdm630"?`) {
		t.Error(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, name := range lib.Names() {
				if _, err := lib.Get(name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func files(m map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, src := range m {
		out[name] = &fstest.MapFile{Data: []byte(src)}
	}
	return out
}

func TestOverlayAndExtends(t *testing.T) {
	head := "status: community\nsources: [a test]\n"
	lib, err := Load(files(map[string]string{
		"meters/xy-md02.yaml": "name: xy-md02\n" + head + "points:\n  temperature: {input: 9}\n",
		"child.yaml": "name: child\n" + head + `extends: eastron-sdm630
max_read: 30
omit: [current_n, voltage_thd_l1]
points:
  frequency: {input: 70, type: f32, unit: Hz}
  tariff: {holding: 3}
`,
		"grandchild.yaml": "name: grandchild\n" + head + "extends: child\nunit: 9\n",
		"a.yaml":          "name: a\n" + head + "extends: b\n",
		"b.yaml":          "name: b\n" + head + "extends: a\n",
		"other.yaml":      "name: another\n" + head + "points:\n  x: {input: 1}\n",
		"omits.yaml":      "name: omits\n" + head + "extends: xy-md02\nomit: [pressure, temperature]\npoints:\n  temperature: {input: 1}\n",
		"lonely.yaml":     "name: lonely\n" + head + "extends: eastron-sdm631\n",
		"readme.txt":      "no profile",
	}))
	if err != nil {
		t.Fatal(err)
	}
	p, err := lib.Get("xy-md02")
	if err != nil || len(p.Points) != 1 || *p.Points[0].Input != 9 {
		t.Errorf("the overlay did not win: %v", err)
	}
	parent, _ := lib.Get("eastron-sdm630")
	for _, name := range []string{"child", "grandchild"} {
		c, err := lib.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if c.MaxRead != 30 || c.Line != "9600 8N1" || c.Every != parent.Every || len(c.Points) != len(parent.Points)-2+1 {
			t.Errorf("%s: max_read %d, line %q, %d points", name, c.MaxRead, c.Line, len(c.Points))
		}
		if i := c.index("frequency"); i < 0 || c.Points[i].Decimals != nil || i >= c.index("energy_import") {
			t.Errorf("%s: frequency was not replaced in its place", name)
		}
		if c.index("current_n") >= 0 || c.Points[len(c.Points)-1].Name != "tariff" {
			t.Errorf("%s: points %v", name, c.Points)
		}
		if len(c.Examples) != 0 || len(c.Detect) != 0 || c.Title != "" {
			t.Errorf("%s inherited what speaks of the parent alone", name)
		}
		if info, _ := lib.Describe(name); info.Verified || info.Builtin {
			t.Errorf("%s is said to be verified", name)
		}
	}
	if parent.MaxRead != 50 || parent.index("current_n") < 0 {
		t.Error("the child changed its parent")
	}
	for name, want := range map[string]string{"a": "circle: a > b > a", "other": "the profile another", "omits": `has no point "pressure"`, "lonely": `did you mean`} {
		if _, err := lib.Get(name); err == nil || !strings.Contains(err.Error(), want) && !hasHint(err, "eastron-sdm630") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(files(map[string]string{"x/a.yaml": "", "y/a.yaml": ""})); err == nil {
		t.Error("one name twice was taken")
	}
}

func hasHint(err error, word string) bool {
	var bad *InvalidError
	return errors.As(err, &bad) && strings.Contains(fmt.Sprint(bad.Problems), word)
}

func TestDescribe(t *testing.T) {
	lib, _ := Load()
	info, err := lib.Describe("eastron-sdm120")
	if err != nil {
		t.Fatal(err)
	}
	if info.Extends != "eastron-sdm630" || info.Vendor != "Eastron" || info.MaxRead != 50 || info.Examples != 1 {
		t.Errorf("%+v", info)
	}
	if at := info.Places[0]; at != (Place{Point: "voltage_l1", Table: "input", Address: 0, Manual: 30001, Type: "f32", Kind: "gauge"}) {
		t.Errorf("%+v", at)
	}
	points := info.TelemetryPoints("main-meter")
	if want := (telemetry.Point{Device: "main-meter", Name: "voltage_l1", Unit: "V", Kind: "gauge", Decimals: 3}); points[0] != want {
		t.Errorf("%+v", points[0])
	}
	di, _ := lib.Get("wellpro-wp8026adam")
	if p := di.TelemetryPoints("door")[0]; p.Class != telemetry.ClassAlarm || p.Kind != "state" {
		t.Errorf("%+v", p)
	}
}

// TestFailingExamples: an example that is wrong is told.
func TestFailingExamples(t *testing.T) {
	p, problems := Parse(nil, "x.yaml", []byte(`
name: x
status: captured
sources: [a test]
points:
  v: {input: 0, scale: 0.1, range: [0, 100]}
examples:
  - {input: 0, payload: 00 01, expect: {v: 0.1}}
  - {input: 0, payload: 00 01, expect: {v: 0.2}}
  - {input: 0, payload: 00 01, reject: true}
  - {input: 0, payload: ff ff, expect: {v: 6553.5}}
  - {input: 0, payload: ff ff, expect: {v: 6553.5 range}}
  - {input: 1, payload: 00 01, expect: {v: 0.1}}
  - {input: 0, response: 01 84 04 42 c3, exception: 2}
  - {input: 0, response: 01 84 04 42 c3, exception: 4}
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := []bool{true, false, false, false, true, false, false, true}
	for i, r := range p.Test() {
		if r.OK() != want[i] {
			t.Errorf("%s: %v", r.Name, r.Failures)
		}
	}
}

// TestBadProfiles parses testdata/*.bad.yaml: every mistake of a file is
// told, with its place. -update writes the expected texts.
func TestBadProfiles(t *testing.T) {
	lib, _ := Load()
	names, err := filepath.Glob("testdata/*.bad.yaml")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			_, problems := Parse(lib, filepath.Base(name), src)
			var out strings.Builder
			for _, p := range problems {
				fmt.Fprintf(&out, "%d:%d %s %s: %s", p.Line, p.Col, p.Code, p.Path, p.Msg)
				if p.Hint != "" {
					fmt.Fprintf(&out, " (%s)", p.Hint)
				}
				if p.Suggest != "" {
					fmt.Fprintf(&out, " [%s]", p.Suggest)
				}
				if p.Warning {
					out.WriteString(" warning")
				}
				out.WriteString("\n")
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".txt", []byte(out.String()))
		})
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is out of date; run go test ./driver/profile -update\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

// TestManual parses and runs every profile of docs/profiles.md.
func TestManual(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "profiles.md"))
	if err != nil {
		t.Fatal(err)
	}
	lib, _ := Load()
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) < 3 {
		t.Fatalf("only %d profiles in the manual", len(blocks))
	}
	for _, b := range blocks {
		src, _, _ := strings.Cut(b, "```")
		p, problems := Parse(lib, "docs/profiles.md", []byte(src))
		if len(problems) > 0 {
			t.Fatalf("%s: %+v", p.Name, problems)
		}
		for _, r := range p.Test() {
			if !r.OK() {
				t.Errorf("%s: %s: %v", p.Name, r.Name, r.Failures)
			}
		}
	}
}

// TestSchema holds docs/schema/profile.schema.json up to date.
func TestSchema(t *testing.T) {
	golden(t, filepath.Join("..", "..", "docs", "schema", "profile.schema.json"), document.Schema(&Profile{}, "tidegate device profile"))
}

// TestCustom: points of the configuration get the same checks, with paths
// relative to the device.
func TestCustom(t *testing.T) {
	_, issues := Custom("boiler", []Point{
		{Name: "supply", Input: ptr(0), Type: "s16", Scale: dec(t, "0.1")},
		{Name: "Bad Name", Coil: ptr(0)},
		{Name: "nowhere"},
		{Name: "pump", Coil: ptr(3), Scale: dec(t, "0.1")},
		{Name: "number", Register: ptr(20021)},
	}, nil)
	var got []string
	for _, i := range issues {
		got = append(got, i.Path+": "+i.Msg)
	}
	want := []string{`points.Bad Name: "Bad Name" is no name for a point`, "points.nowhere: the point has no place",
		"points.pump.scale: scale is for numbers only", "points.number.register: 20021 is no register number of a manual"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, issues := Custom("mast", []Point{{Name: "x", Field: ptr(1)}}, &Frames{Kind: "blob"}); len(issues) == 0 {
		t.Error("an unknown kind of frame was taken")
	}
	for _, pt := range []Point{{Name: "x", Field: ptr(1)}, {Name: "x", At: ptr(1)}} {
		if _, issues := Custom("x", []Point{pt}, nil); len(issues) != 1 {
			t.Error(issues)
		}
	}
}

// FuzzParse: any file parses without panic, and a profile without problems
// can be used.
func FuzzParse(f *testing.F) {
	lib, _ := Load()
	for _, name := range lib.Names() {
		src, _ := builtin.ReadFile(lib.files[name].path)
		f.Add(src)
	}
	bad, _ := filepath.Glob("testdata/*.bad.yaml")
	for _, name := range bad {
		src, _ := os.ReadFile(name)
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		p, problems := Parse(lib, "fuzz.yaml", src)
		for _, x := range problems {
			if !x.Warning {
				return
			}
		}
		p.Test()
		p.Describe()
		p.TelemetryPoints("x")
		for _, r := range p.Plan(Limits{}) {
			p.Decode(r, make([]byte, r.Size()), 0, nil)
			p.Decode(r, bytes.Repeat([]byte{0xff}, r.Size()), 0, nil)
		}
		if s := p.NewScanner(); s != nil {
			s.Feed(src, func(raw []byte) { p.DecodeFrame(raw, 0, nil) })
		}
		for i := range p.Points {
			b, err := p.Encode(i, telemetry.IntValue(1, 0), 0)
			if r, none := p.PointRequest(i); err == nil && none == nil && p.codecs[i].sf == nil && len(b) != r.Size() {
				t.Fatalf("point %d has %d bytes, and a request for it %d", i, len(b), r.Size())
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	for b.Loop() {
		lib, _ := Load()
		if _, err := lib.Get("eastron-sdm120"); err != nil {
			b.Fatal(err)
		}
	}
}
