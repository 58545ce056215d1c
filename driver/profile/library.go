package profile

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"tidegate/internal/document"
)

//go:embed library
var builtin embed.FS

// ErrUnknown is the error of Get for a name that no profile has.
var ErrUnknown = errors.New("no such profile")

// Library is a set of profiles by name. Files are read when they are first
// asked for. A Library is safe for concurrent use.
type Library struct {
	files map[string]source

	mu    sync.Mutex
	ready map[string]*Profile
}

// source is where the file of a profile lies.
type source struct {
	fsys    fs.FS
	path    string
	builtin bool
}

// InvalidError tells that the file of a profile has mistakes.
type InvalidError struct {
	Name     string
	Problems []document.Problem
}

// Error returns the first mistake with its place, and how many more there are.
func (e *InvalidError) Error() string {
	p := e.Problems[0]
	s := fmt.Sprintf("profile %s: %s:%d:%d: %s", e.Name, p.File, p.Line, p.Col, p.Msg)
	if n := len(e.Problems) - 1; n > 0 {
		s += fmt.Sprintf(" (and %d more)", n)
	}
	return s
}

// Load opens the built-in library and lays the files of extra over it, the
// last one on top: a file NAME.yaml anywhere in them replaces the profile
// NAME or adds it. Load looks at the names only; mistakes in a file are
// told by Get. It fails if a folder cannot be listed or has a name twice.
func Load(extra ...fs.FS) (*Library, error) {
	lib := &Library{files: map[string]source{}, ready: map[string]*Profile{}}
	for i, fsys := range append([]fs.FS{builtin}, extra...) {
		seen := map[string]string{}
		err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(p, ".yaml") {
				return err
			}
			name := strings.TrimSuffix(path.Base(p), ".yaml")
			if other, twice := seen[name]; twice {
				return fmt.Errorf("profile %s stands in %s and in %s", name, other, p)
			}
			seen[name] = p
			lib.files[name] = source{fsys, p, i == 0}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("profiles: %w", err)
		}
	}
	return lib, nil
}

// Names returns the names of all profiles, sorted.
func (l *Library) Names() []string {
	out := make([]string, 0, len(l.files))
	for name := range l.files {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Near returns the name of a profile that was probably meant by a name that no
// profile has: one that lacks the maker (sdm630), or is misspelt. It is "" if
// none is near.
func (l *Library) Near(name string) string {
	for _, n := range l.Names() {
		if strings.HasSuffix(n, "-"+strings.ToLower(name)) {
			return n
		}
	}
	return document.Nearest(name, l.Names())
}

// Get returns a profile ready for use. An unknown name is ErrUnknown with
// the nearest known name; a file with mistakes is an *InvalidError.
func (l *Library) Get(name string) (*Profile, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.get(name, nil)
}

// get is Get under the lock. stack holds the names that extend this one.
func (l *Library) get(name string, stack []string) (*Profile, error) {
	if p := l.ready[name]; p != nil {
		return p, nil
	}
	if slices.Contains(stack, name) {
		return nil, fmt.Errorf("profiles extend each other in a circle: %s", strings.Join(append(stack, name), " > "))
	}
	f, ok := l.files[name]
	if !ok {
		err := fmt.Errorf("%w %q", ErrUnknown, name)
		if near := l.Near(name); near != "" {
			err = fmt.Errorf("%w; did you mean %q?", err, near)
		}
		return nil, err
	}
	src, err := fs.ReadFile(f.fsys, f.path)
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", name, err)
	}
	p, problems := parse(l, f.path, src, append(stack, name))
	if p.Name != name && len(problems) == 0 {
		problems = append(problems, document.Problem{File: f.path, Line: 1, Col: 1, Path: "name", Code: document.CodeValue,
			Msg: fmt.Sprintf("the file is called %s.yaml and the profile %s", name, p.Name), Hint: "use one name"})
	}
	problems = slices.DeleteFunc(problems, func(p document.Problem) bool { return p.Warning })
	if len(problems) > 0 {
		return nil, &InvalidError{name, problems}
	}
	l.ready[name] = p
	return p, nil
}

// Parse reads a profile from a file that need not be in the library; lib
// holds the profiles it may extend. The profile is usable if no problem but
// warnings was found.
func Parse(lib *Library, file string, src []byte) (*Profile, []document.Problem) {
	if lib != nil {
		lib.mu.Lock()
		defer lib.mu.Unlock()
	}
	return parse(lib, file, src, nil)
}

func parse(lib *Library, file string, src []byte, stack []string) (*Profile, []document.Problem) {
	doc := document.Parse(file, src)
	p := &Profile{}
	doc.Bind(p)
	if doc.Broken() {
		return p, doc.Problems()
	}
	report := doc.Section("")
	own := len(p.Points)
	if p.Extends != "" {
		if lib == nil {
			report("extends", "there is no library to extend from", "")
		} else if parent, err := lib.get(p.Extends, stack); err != nil {
			report("extends", err.Error(), "")
		} else {
			p.inherit(parent, report)
		}
	}
	if p.Status == "captured" && len(p.Examples) == 0 {
		report("status", "captured means that recorded bytes prove the profile, and there is no example",
			"add examples:, or write status: second-hand")
	}
	if len(p.Sources) == 0 {
		doc.Warn("sources", document.CodeMissing, "nothing says where these facts come from", "add sources: with the manual, the software or the capture")
	}
	if p.Extends == "" || own > 0 || len(p.Points) > 0 {
		p.build(report)
	}
	return p, doc.Problems()
}

// inherit fills what the child does not say with what the parent says.
// A point of the child replaces the parent's point of that name as a whole
// and keeps its place; new points follow. Title, models, status, sources,
// notes, detect and examples are never inherited: they speak of one device.
func (p *Profile) inherit(parent *Profile, r report) {
	set := func(to *string, from string) {
		if *to == "" {
			*to = from
		}
	}
	set(&p.Vendor, parent.Vendor)
	set(&p.Domain, parent.Domain)
	set(&p.Transport, parent.Transport)
	set(&p.Line, parent.Line)
	if p.Unit == 0 {
		p.Unit = parent.Unit
	}
	p.Every = first(p.Every, parent.Every)
	p.Timeout = first(p.Timeout, parent.Timeout)
	p.Gap = first(p.Gap, parent.Gap)
	p.MaxRead = first(p.MaxRead, parent.MaxRead)
	p.MaxBits = first(p.MaxBits, parent.MaxBits)
	p.MaxGap = first(p.MaxGap, parent.MaxGap)
	p.Handshake = first(p.Handshake, parent.Handshake)
	p.Frames = first(p.Frames, parent.Frames)
	p.Talk = first(p.Talk, parent.Talk)
	if p.Atomic == nil {
		for _, names := range parent.Atomic {
			names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(p.Omit, n) })
			if len(names) > 1 {
				p.Atomic = append(p.Atomic, names)
			}
		}
	}
	if p.Forbidden == nil {
		p.Forbidden = slices.Clone(parent.Forbidden)
	}
	for i, name := range p.Omit {
		at := fmt.Sprintf("omit[%d]", i)
		switch {
		case parent.index(name) < 0:
			r(at, fmt.Sprintf("%s has no point %q", parent.Name, name), "")
		case p.index(name) >= 0:
			r(at, fmt.Sprintf("%q is left out and written at once", name), "remove one of the two")
		}
	}
	own := p.Points
	p.Points = nil
	for _, pt := range parent.Points {
		if slices.Contains(p.Omit, pt.Name) {
			continue
		}
		if i := slices.IndexFunc(own, func(o Point) bool { return o.Name == pt.Name }); i >= 0 {
			pt = own[i]
		}
		p.Points = append(p.Points, pt)
	}
	for _, pt := range own {
		if parent.index(pt.Name) < 0 {
			p.Points = append(p.Points, pt)
		}
	}
}

// first returns a, or b where a is the zero value.
func first[T comparable](a, b T) T {
	var zero T
	if a == zero {
		return b
	}
	return a
}

// Info is a profile as lists and pages show it.
type Info struct {
	*Profile
	File     string  `json:"file"`     // path in its folder
	Builtin  bool    `json:"builtin"`  // part of the binary
	Verified bool    `json:"verified"` // it has examples and all of them pass
	Examples int     `json:"examples"` // how many
	Places   []Place `json:"places"`   // one for each of Points
}

// Place says where a point stands, in words of the wire and of the manual.
type Place struct {
	Point   string `json:"point"`
	Table   string `json:"table,omitempty"`  // coil, discrete, holding, input; "" in frames
	Address int    `json:"address"`          // wire address, or offset in a frame
	Manual  int    `json:"manual,omitempty"` // number of the manual, 30001 for input 0
	Field   string `json:"field,omitempty"`  // MWV[3], XDR AIRTEMP, [2]; for text lines
	Type    string `json:"type"`             // with its default
	Kind    string `json:"kind"`             // with its default
}

// Describe returns what `profile list` and `profile show` print.
func (l *Library) Describe(name string) (Info, error) {
	p, err := l.Get(name)
	if err != nil {
		return Info{}, err
	}
	f := l.files[name]
	info := p.Describe()
	info.File, info.Builtin = f.path, f.builtin
	return info, nil
}

// Describe is Library.Describe for a profile that stands in no library.
func (p *Profile) Describe() Info {
	info := Info{Profile: p, Examples: len(p.Examples), Verified: len(p.Examples) > 0}
	for _, r := range p.Test() {
		info.Verified = info.Verified && r.OK()
	}
	for i := range p.Points {
		pt, c := &p.Points[i], &p.codecs[i]
		at := Place{Point: pt.Name, Address: int(c.addr), Type: pt.valueType(), Kind: pt.kind()}
		switch {
		case c.table != 0:
			at.Table, at.Manual = c.table.String(), ManualNumber(c.table, c.addr)
		case pt.MBus != nil:
			at.Field = pt.MBus.String()
		case pt.Modem != "":
			at.Field = strings.ToUpper(pt.Modem)
		case pt.OBIS != "":
			at.Field = pt.OBIS
		case pt.XDR != nil:
			at.Field = "XDR " + pt.XDR.Name
		case pt.Field != nil:
			at.Field = fmt.Sprintf("%s[%d]", pt.NMEA, *pt.Field)
		}
		info.Places = append(info.Places, at)
	}
	return info
}
