package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"tidegate/internal/document"
	"tidegate/internal/telemetry"
)

func parseCase(t *testing.T, name string) *Config {
	t.Helper()
	dir := filepath.Join(cases, name)
	src, err := os.ReadFile(filepath.Join(dir, "tidegate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, problems := Parse("tidegate.yaml", src, loadLibrary(t, dir))
	for _, p := range problems {
		t.Error(p.Text())
	}
	if t.Failed() {
		t.FailNow()
	}
	return cfg
}

// TestComplete: the example of the design page means what it says.
func TestComplete(t *testing.T) {
	c := parseCase(t, "complete")
	if c.Gateway.ID != "hanyang-017" || c.Gateway.Labels["district"] != "hanyang" || c.Buffer.Size != 512e6 ||
		c.Uplink.Batch.MaxBytes != 100_000 || c.Uplink.Keepalive != time.Minute || len(c.Rules) != 1 || c.Rules[0].For != 10*time.Second {
		t.Errorf("%+v", c)
	}
	// Catalog numbers stand in file order, without holes.
	next, points := uint32(0), c.Catalog().Points
	var names []string
	for _, b := range c.Buses {
		for _, d := range b.Devices {
			names = append(names, b.Name+"/"+d.Name)
			if d.Map == nil || d.Base != next {
				t.Errorf("%s: base %d, want %d", d.Name, d.Base, next)
			}
			for i, pt := range d.Map.TelemetryPoints(d.Name) {
				if points[int(d.Base)+i] != pt {
					t.Errorf("%s: point %d differs", d.Name, i)
				}
			}
			next += uint32(len(d.Map.Points))
		}
	}
	// The points of the rules follow, and the set speaks of them by number.
	var own []string
	for _, pt := range points[next:] {
		own = append(own, pt.Device+"/"+pt.Name)
	}
	if got := strings.Join(own, " "); got != "rules/over-voltage rules/over-voltage_severity rules/over-voltage_value certificates/client certificates/authority certificates/broker" {
		t.Error(got)
	}
	set := c.RuleSet()
	events := set.Apply(&telemetry.Group{Readings: []telemetry.Reading{{Point: 0, Value: telemetry.IntValue(230, 0)}}})
	if points[0].Name != "voltage_l1" || len(events) != 1 || events[0].Points[0].Point != next || events[0].Points[2].Point != next+2 {
		t.Errorf("%+v %+v", points[0], events)
	}
	if got := strings.Join(names, " "); got != "meters/main-meter meters/boiler plant/inverter air/roof-air wind/mast" {
		t.Error(got)
	}
	// Defaults are filled in.
	if air := c.Buses[2].Devices[0]; c.Buses[1].Timeout != time.Second || air.Map.Transport != "serial" || air.Every == 0 {
		t.Errorf("%+v", air)
	}
}

// TestDefaultsFromProfile: what the file leaves out comes from the profile.
func TestDefaultsFromProfile(t *testing.T) {
	src := `gateway: {id: g}
buses:
  a: {connect: rtu:///dev/ttyUSB0, devices: {m: {profile: eastron-sdm630}}}
uplink: {url: mqtts://h}
`
	lib := loadLibrary(t, "")
	c, problems := Parse("f", []byte(src), lib)
	if c == nil {
		t.Fatal(problems)
	}
	p, _ := lib.Get("eastron-sdm630")
	d := c.Buses[0].Devices[0]
	if c.Buses[0].Line != p.Line || d.Unit != p.Unit || d.Every == 0 || c.Buses[0].Timeout != 500*time.Millisecond {
		t.Errorf("%+v %+v", c.Buses[0], d)
	}
}

// TestShow: the effective configuration can be read back and is the same.
func TestShow(t *testing.T) {
	for _, name := range []string{"complete", "minimal", "uplinks"} {
		c := parseCase(t, name)
		text := Show(c)
		again, problems := Parse("shown.yaml", text, loadLibrary(t, filepath.Join(cases, name)))
		for _, p := range problems {
			t.Error(p.Text())
		}
		if again == nil {
			t.Fatalf("%s", text)
		}
		if string(Show(again)) != string(text) || again.Hash() != c.Hash() || again.Catalog().Hash() != c.Catalog().Hash() {
			t.Errorf("%s: got\n%s\nwant\n%s", name, Show(again), text)
		}
		golden(t, filepath.Join(cases, name, "show.txt"), string(text))
	}
}

func TestHash(t *testing.T) {
	c := parseCase(t, "minimal")
	src, _ := os.ReadFile(filepath.Join(cases, "minimal", "tidegate.yaml"))
	lib := loadLibrary(t, "")
	same, _ := Parse("x", append([]byte("# a comment\n"), src...), lib)
	other, _ := Parse("x", []byte(strings.Replace(string(src), "5s", "6s", 1)), lib)
	if c.Hash() != same.Hash() || c.Hash() == other.Hash() || len(c.Hash()) != 6 {
		t.Error(c.Hash(), same.Hash(), other.Hash())
	}
}

func TestSample(t *testing.T) {
	c, problems := Parse("sample.yaml", Sample(), loadLibrary(t, ""))
	for _, p := range problems {
		t.Error(p.Text())
	}
	if c == nil || len(c.Catalog().Points) < 10 {
		t.Error("the sample does not check clean")
	}
}

func TestSchema(t *testing.T) {
	golden(t, "../docs/schema/tidegate.schema.json", string(Schema()))
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(Schema())))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("tidegate.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("tidegate.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	validate := func(src []byte) error {
		var v struct {
			Gateway any `yaml:"gateway"`
			Buses   any `yaml:"buses"`
			Rules   any `yaml:"rules"`
			Buffer  any `yaml:"buffer"`
			Uplink  any `yaml:"uplink"`
			Uplinks any `yaml:"uplinks"`
			Status  any `yaml:"status"`
			Log     any `yaml:"log"`
		}
		d := document.Parse("x", src)
		d.Bind(&v)
		m := map[string]any{}
		for k, x := range map[string]any{"gateway": v.Gateway, "buses": v.Buses, "rules": v.Rules, "buffer": v.Buffer,
			"uplink": v.Uplink, "uplinks": v.Uplinks, "status": v.Status, "log": v.Log} {
			if d.Has(k) {
				m[k] = x
			}
		}
		js, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		inst, err := jsonschema.UnmarshalJSON(strings.NewReader(string(js)))
		if err != nil {
			t.Fatal(err)
		}
		return schema.Validate(inst)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(cases, name, "tidegate.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := map[string][]byte{"sample": Sample(), "complete": read("complete"), "minimal": read("minimal"), "uplinks": read("uplinks"),
		"shown": Show(parseCase(t, "complete")), "uplinks shown": Show(parseCase(t, "uplinks"))}
	for name, src := range good {
		if err := validate(src); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"install-adress", "install-units", "install-durations", "install-list", "install-wrong-section",
		"install-everything", "preset-unknown", "log", "wrong-shapes", "no-uplink", "no-buses", "install-no-url", "frames", "rules", "uplinks-both", "uplinks-list"} {
		if validate(read(name)) == nil {
			t.Errorf("%s: the schema takes it", name)
		}
	}
}

// writePair makes a certificate and its key in dir.
func writePair(t *testing.T, dir, name string, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file, kind string, b []byte, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(name+".crt", "CERTIFICATE", der, 0o644)
	write(name+".key", "PRIVATE KEY", kb, 0o600)
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	pki := filepath.Join(dir, "pki")
	if err := os.Mkdir(pki, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "tidegate.yaml")
	src := fmt.Sprintf(`gateway: {id: g}
buses:
  a: {connect: tcp://10.0.0.5, devices: {m: {profile: eastron-sdm630}}}
buffer: {dir: %s, size: 16MB}
uplink: {url: mqtts://h, identity: %s, username: u, password_file: %s}
`, filepath.Join(dir, "buffer"), pki, filepath.Join(dir, "password"))
	if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	// says loads the file and returns the codes found.
	says := func() (codes string, ok bool) {
		t.Helper()
		cfg, problems, err := Load(file)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, p := range problems {
			word := p.Code
			if p.Warning {
				word += "?"
			}
			out = append(out, word)
			form(t, strings.ReplaceAll(p.Text(), dir, "DIR"))
		}
		return strings.Join(out, " "), cfg != nil
	}
	expect := func(what, codes string, ok bool) {
		t.Helper()
		if c, o := says(); c != codes || o != ok {
			t.Errorf("%s: got %q, %v, want %q, %v", what, c, o, codes, ok)
		}
	}
	expect("nothing there", "cert-file? cert-file? cert-file? cert-file?", true)
	year := time.Now().AddDate(1, 0, 0)
	writePair(t, pki, "ca", year)
	writePair(t, pki, "client", year)
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("all there", "", true)
	os.Chmod(filepath.Join(pki, "client.key"), 0o644)
	expect("open key", "key-mode", false)
	os.Chmod(filepath.Join(pki, "client.key"), 0o600)
	os.Chmod(filepath.Join(dir, "password"), 0o604)
	expect("open password", "key-mode", false)
	os.Chmod(filepath.Join(dir, "password"), 0o600)
	writePair(t, pki, "client", time.Now().Add(5*24*time.Hour))
	expect("expires soon", "cert-file?", true)
	writePair(t, pki, "client", time.Now().Add(-time.Minute))
	expect("expired", "cert-file?", true)
	writePair(t, pki, "client", year)
	writePair(t, pki, "ca", year)
	os.Rename(filepath.Join(pki, "ca.key"), filepath.Join(pki, "client.key"))
	expect("key of another", "key-mismatch?", true)
	os.WriteFile(filepath.Join(pki, "ca.crt"), []byte("hello"), 0o644)
	expect("no certificate", "cert-file? key-mismatch?", true)
	src = strings.Replace(src, "16MB", "900000GB", 1)
	os.WriteFile(file, []byte(src), 0o600)
	expect("disk", "disk-space? cert-file? key-mismatch?", true)
}

func TestLoad(t *testing.T) {
	if _, _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
	// A folder "profiles" beside the file is laid over the library.
	cfg, problems, err := Load(filepath.Join(cases, "complete", "tidegate.yaml"))
	if err != nil || cfg == nil {
		t.Fatal(err, problems)
	}
	in, err := os.Open(filepath.Join(cases, "minimal", "tidegate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	old := os.Stdin
	os.Stdin = in
	defer func() { os.Stdin = old }()
	if cfg, _, err := Load("-"); err != nil || cfg == nil || cfg.Gateway.ID != "hanyang-017" {
		t.Error(cfg, err)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob(cases + "/*/tidegate.yaml")
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	lib := loadLibrary(f, "")
	f.Fuzz(func(t *testing.T, src []byte) {
		cfg, problems := Parse("f.yaml", src, lib)
		text, js := Report("f.yaml", problems, cfg)
		if !json.Valid(js) || text == "" {
			t.Errorf("%q", js)
		}
		if cfg == nil {
			return
		}
		shown := Show(cfg)
		again, problems := Parse("shown.yaml", shown, lib)
		if again == nil {
			t.Fatalf("%s\n%v", shown, problems)
		}
		if again.Hash() != cfg.Hash() {
			t.Errorf("%s\n%s", shown, Show(again))
		}
	})
}

// BenchmarkParse checks a large gateway: 100 endpoints, 50 points each.
func BenchmarkParse(b *testing.B) {
	var s strings.Builder
	s.WriteString("gateway: {id: g}\nuplink: {url: mqtts://h}\nbuses:\n")
	for i := range 100 {
		fmt.Fprintf(&s, "  bus-%d:\n    connect: tcp://10.0.%d.1\n    devices:\n      dev-%d:\n        unit: 1\n        points:\n", i, i, i)
		for k := range 50 {
			fmt.Fprintf(&s, "          p%d: {input: %d, type: f32, unit: V, range: [0, 500]}\n", k, 2*k)
		}
	}
	lib := loadLibrary(b, "")
	b.SetBytes(int64(s.Len()))
	for b.Loop() {
		if cfg, problems := Parse("f", []byte(s.String()), lib); cfg == nil || len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}

// TestSocket: the command line finds the running agent also while the file
// is being changed.
func TestSocket(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tidegate.yaml")
	for _, c := range []struct{ text, want string }{
		{"status: {socket: /tmp/a.sock}", "/tmp/a.sock"},
		{"buses: {m: {conect: x}}\nstatus:\n  socket: /tmp/a.sock\n", "/tmp/a.sock"},
		{"gateway: {id: g}", Defaults().Status.Socket},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := Socket(file); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
	if got := Socket(filepath.Join(t.TempDir(), "nothing")); got != Defaults().Status.Socket {
		t.Errorf("no file: %s", got)
	}
}
