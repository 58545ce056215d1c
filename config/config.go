// Package config reads the one file an installer writes.
//
// A section of the file is a struct of the package that obeys it, with its
// own defaults and Validate; what only the whole file can tell is checked
// here: names that must be unique, units on a bus, profiles against the kind
// of connection, the time a poll round takes. After Load nothing can be wrong
// but the world.
package config

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"tidegate/buffer"
	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/document"
	"tidegate/internal/rule"
	"tidegate/internal/telemetry"
	"tidegate/uplink"
)

// Problem is one finding in the file; Text prints it with its excerpt.
type Problem = document.Problem

// Config is the whole file. What Load and Parse return is complete: every
// default is filled in, every device has its Map and Base.
type Config struct {
	Gateway Gateway          `yaml:"gateway" doc:"Who this gateway is."`
	Buses   []driver.Options `yaml:"buses,keyed" required:"true" doc:"The lines, by name: serial ports and network endpoints with the devices on them."`
	Writes  string           `yaml:"writes" enum:"deny,allow" doc:"Whether anybody may write to devices through this gateway: tidegate write, and commands from the cloud."`
	Rules   []rule.Rule      `yaml:"rules,keyed" doc:"What makes an event, by name. The state of rule x is the point rules/x, and every change of it travels in the event lane."`
	Buffer  buffer.Options   `yaml:"buffer" doc:"What is kept while the uplink is away."`
	Uplink  uplink.Options   `yaml:"uplink" required:"true" unless:"uplinks" doc:"Where the readings go, such as uplink: {url: mqtts://HOST:8883}."`
	Uplinks []Uplink         `yaml:"uplinks,keyed" doc:"Where the readings go if that is several places, by name: in each the keys of uplink, and required."`
	Status  Status           `yaml:"status" doc:"What the gateway shows locally."`
	Log     Log              `yaml:"log" doc:"What the agent writes to its log."`

	catalog *telemetry.Catalog
	// certificates are the numbers of the first points of CertificateDevice, by uplink; 0 for none.
	certificates []int
	devices      []telemetry.Point // the points of all devices: the catalog without those of the rules
	loads        []BusLoad
}

// Gateway names this gateway.
type Gateway struct {
	ID     string            `yaml:"id" doc:"Name of this gateway: 1 to 64 of A-Z a-z 0-9 . _ -; default: the host name."`
	Site   string            `yaml:"site" doc:"Where it stands; a level of the MQTT topics."`
	Labels map[string]string `yaml:"labels" doc:"Free words that are copied into the metadata message."`
	Clock  string            `yaml:"clock" enum:"kernel,system" doc:"Who vouches for the time: kernel, which knows whether NTP has set it; or system, where something else sets the clock and the kernel does not know."`
}

// Status is what the gateway shows locally.
type Status struct {
	Socket string `yaml:"socket" doc:"Unix socket of the command line tools."`
	Page   string `yaml:"page" doc:"Address of the local page, such as 127.0.0.1:8080; empty: none."`
}

// Log is what the agent writes to its log.
type Log struct {
	Level  string `yaml:"level" enum:"debug,info,warn,error" doc:"Least severity that is written."`
	Format string `yaml:"format" enum:"text,json" doc:"Form of a line."`
}

// Defaults returns the configuration of an empty file. It is not usable: a
// gateway needs buses and an uplink.
func Defaults() *Config {
	return &Config{
		Gateway: Gateway{Site: "site", Clock: "kernel"},
		Writes:  "deny",
		Buffer:  buffer.Defaults(),
		Uplink:  uplink.Defaults(),
		Status:  Status{Socket: "/run/tidegate/agent.sock"},
		Log:     Log{Level: "info", Format: "text"},
	}
}

// Load reads the file at path, "-" for standard input, with the built-in
// profiles and those in the folder "profiles" beside the file. The
// configuration is nil if a problem is more than a warning. The error is not
// nil only if the file or the profiles cannot be read at all.
//
// Besides what Parse checks, Load looks at the certificate files and the free
// space that the file speaks of. It opens no port and no connection.
func Load(path string) (*Config, []Problem, error) {
	var src []byte
	var err error
	if path == "-" {
		src, err = io.ReadAll(io.LimitReader(os.Stdin, document.MaxSize+1))
	} else {
		src, err = readFile(path)
	}
	if err != nil {
		return nil, nil, err
	}
	lib, err := Library(path)
	if err != nil {
		return nil, nil, err
	}
	name := path
	if path == "-" {
		name = "stdin"
	}
	p := parse(name, src, lib)
	if p.cfg != nil {
		p.files()
	}
	cfg, problems := p.result()
	return cfg, problems, nil
}

// Socket returns the agent's socket that a file names, also if the rest of
// the file is wrong, and the default one if it names none or cannot be read.
func Socket(path string) string {
	if src, err := readFile(path); err == nil {
		if s, ok := document.Parse(path, src).Text("status.socket"); ok && s != "" {
			return s
		}
	}
	return Defaults().Status.Socket
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, document.MaxSize+1))
}

// Library loads the built-in profiles and those in the folder "profiles"
// beside a configuration file.
func Library(path string) (*profile.Library, error) {
	if path != "-" {
		dir := filepath.Join(filepath.Dir(path), "profiles")
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return profile.Load(os.DirFS(dir))
		}
	}
	return profile.Load()
}

// Parse checks a file given as bytes; file is the name in the problems. It
// touches nothing but its arguments and the host name. The configuration is
// nil if a problem is more than a warning.
func Parse(file string, src []byte, lib *profile.Library) (*Config, []Problem) {
	return parse(file, src, lib).result()
}

// parser is one run over one file.
type parser struct {
	doc *document.Document
	lib *profile.Library
	cfg *Config // nil as long as the file is broken

	customs []*profile.Profile // of points written at devices, to be shared
}

func parse(file string, src []byte, lib *profile.Library) *parser {
	p := &parser{doc: document.Parse(file, src), lib: lib}
	p.misplaced()
	cfg := Defaults()
	p.doc.Bind(cfg)
	p.cfg = cfg
	p.gateway()
	p.buses()
	p.rules()
	if p.doc.Has("buffer") {
		cfg.Buffer.Validate(p.doc.Section("buffer"))
	}
	p.uplinks()
	p.status()
	return p
}

// result returns what was found; the configuration only without errors.
func (p *parser) result() (*Config, []Problem) {
	problems := p.doc.Problems()
	for _, x := range problems {
		if !x.Warning {
			return nil, problems
		}
	}
	var points []telemetry.Point
	for i := range p.cfg.Buses {
		for k := range p.cfg.Buses[i].Devices {
			d := &p.cfg.Buses[i].Devices[k]
			d.Base = uint32(len(points))
			points = append(points, d.Map.TelemetryPoints(d.Name)...)
		}
	}
	p.cfg.devices = points[:len(points):len(points)]
	points = append(points, p.cfg.RuleSet().Points()...)
	links := p.links()
	p.cfg.certificates = make([]int, len(links))
	for i := range links {
		if !links[i].Secure() {
			continue
		}
		p.cfg.certificates[i] = len(points)
		for _, name := range [...]string{"client", "authority", "broker"} {
			if links[i].Name != "" {
				name = links[i].Name + "-" + name
			}
			points = append(points, telemetry.Point{Device: CertificateDevice, Name: name, Unit: "d", Kind: "gauge", Class: telemetry.ClassAlarm})
		}
	}
	if p.cfg.Commander() != nil {
		points = append(points, telemetry.Point{Device: CommandDevice, Name: "audit", Kind: "text", Class: telemetry.ClassAlarm})
	}
	p.cfg.catalog = telemetry.NewCatalog(points)
	return p.cfg, problems
}

// CertificateDevice is the name under which is told how many days the
// certificates of the uplink are valid, when they are about to end. Its points
// are client, authority and broker; with the name of the uplink and a hyphen
// before them where there are several.
const CertificateDevice = "certificates"

// CertificatePoints returns the number of the first point of
// CertificateDevice for an uplink, by its place in Links; ok is false where
// its broker speaks no TLS.
func (c *Config) CertificatePoints(link int) (first uint32, ok bool) {
	if link >= len(c.certificates) {
		return 0, false
	}
	return uint32(c.certificates[link]), c.certificates[link] > 0
}

// CommandDevice is the name under which the record of commands is sent, line
// by line, as the point audit. It is the last point of the catalog while
// commands are on.
const CommandDevice = "commands"

// Catalog returns the points of all devices in file order and, behind them,
// those of the rules and of the commands; the number of a point is its place.
// The same Catalog is returned each time.
func (c *Config) Catalog() *telemetry.Catalog { return c.catalog }

// RuleSet compiles the rules against the catalog. Each Set has states of its
// own; it is nil without rules.
func (c *Config) RuleSet() *rule.Set {
	set, _ := rule.Compile(c.Rules, c.devices) // Load found no issues
	return set
}

// Hash names the effective configuration by 6 hex digits; comments and the
// order of keys of one device do not count.
func (c *Config) Hash() string {
	sum := sha256.Sum256(Show(c))
	return hex.EncodeToString(sum[:3])
}

// Show returns the effective configuration with its defaults as YAML. It
// holds no secret: the file only names the files that hold them.
func Show(c *Config) []byte { return document.Format(c) }

//go:embed sample.yaml
var sample []byte

// Sample returns a small commented file to start from. It checks clean.
func Sample() []byte { return append([]byte(nil), sample...) }

// Schema returns the JSON Schema (2020-12) of the file.
func Schema() []byte {
	c := Defaults()
	c.Gateway.ID = ""
	return document.Schema(c, "tidegate.yaml")
}

// misplaced tells of what is written in the form of another program.
func (p *parser) misplaced() {
	if p.doc.Has("uplink.url[0]") {
		p.doc.Report("uplink.url", document.CodeValue, "url: this is the one broker to go to first", "name those that stand in for it under fallback: [URL, ...]")
	}
}

var (
	idForm   = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	siteForm = regexp.MustCompile(`^[^/+#\x00-\x1f\x7f]{1,64}$`)
)

func (p *parser) gateway() {
	g := &p.cfg.Gateway
	switch {
	case g.ID == "":
		host, _ := os.Hostname()
		g.ID = host
		if !idForm.MatchString(host) {
			p.doc.Report("gateway.id", document.CodeMissing, `"id" is missing, and the host name cannot stand in for it`,
				"write an id of 1 to 64 of A-Z a-z 0-9 . _ -")
		}
	case !idForm.MatchString(g.ID):
		p.doc.Report("gateway.id", document.CodeValue, "id: this is no gateway id", didYouMean("expected 1 to 64 of A-Z a-z 0-9 . _ -", cleanName(g.ID, idForm)))
	}
	if !siteForm.MatchString(g.Site) {
		p.doc.Report("gateway.site", document.CodeValue, "site: this cannot be a level of a topic", "expected 1 to 64 characters without / + #")
	}
}

func (p *parser) status() {
	s := &p.cfg.Status
	if s.Page != "" {
		p.doc.Report("status.page", document.CodeValue, "the local page is not in this version", `leave it out; tidegate status shows the same`)
	}
	if s.Socket == "" || len(s.Socket) > 107 {
		p.doc.Report("status.socket", document.CodeValue, "socket: the path of a socket has 1 to 107 characters", "the default is /run/tidegate/agent.sock")
	}
}

// name checks the form of a bus, device or rule name, which is the key at path.
func (p *parser) name(path, name, what string) bool {
	if nameForm.MatchString(name) {
		return true
	}
	p.doc.Report(path, document.CodeKey, fmt.Sprintf("%q cannot be the name of %s", name, what),
		didYouMean("expected a lower-case word with - and _", cleanName(strings.ToLower(name), nameForm)))
	return false
}

// cleanName makes a name fit form, "" if it cannot.
func cleanName(s string, form *regexp.Regexp) string {
	s = strings.Map(func(r rune) rune {
		if r == ' ' || r == '/' || r == '.' || r == ':' {
			return '-'
		}
		return r
	}, strings.TrimSpace(s))
	if !form.MatchString(s) {
		return ""
	}
	return s
}

// didYouMean puts a suggestion at the end of a hint, where document looks for it.
func didYouMean(hint, suggest string) string {
	if suggest == "" {
		return hint
	}
	return fmt.Sprintf("%s; did you mean %q?", hint, suggest)
}
