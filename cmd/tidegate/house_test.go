package main

import (
	"bytes"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// floors are the floors of the house. A package may import those below its
// own floor, never those beside or above it.
var floors = map[string]int{
	"internal/clock": 0, "internal/document": 0, "internal/tcp": 0, "internal/status": 0, "internal/trial": 0, "buffer": 0,
	"internal/telemetry": 1, "internal/account": 1, "internal/command": 1, "driver/obis": 1, "driver/mbus": 1,
	"driver/profile": 2, "uplink/payload": 2, "uplink/sparkplug": 2, "internal/rule": 2,
	"driver": 3, "uplink": 3, "internal/sim": 3, "internal/capture": 3,
	"config":         4,
	"internal/agent": 5,
	"cmd/tidegate":   6,
}

// doors are the rooms where a foreign module may enter.
var doors = map[string][]string{
	"github.com/eclipse/paho.mqtt.golang": {"uplink", "internal/sim"},
	"github.com/gorilla/websocket":        {"uplink"},
	"github.com/goburrow/modbus":          {"driver"},
	"go.bug.st/serial":                    {"driver"},
	"go.etcd.io/bbolt":                    {"buffer"},
	"golang.org/x/sys":                    {"buffer", "driver", "internal/clock"},
	"github.com/goccy/go-yaml":            {"internal/document"},
	"github.com/spf13/cobra":              {"cmd/tidegate"},
}

func TestImportsPointDown(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bench" || name == "dist") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		rel, _ := filepath.Rel(root, filepath.Dir(path))
		floor, known := floors[rel]
		if !known {
			t.Errorf("%s: package %s stands on no floor", path, rel)
			return nil
		}
		seen[rel] = true
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			name, _ := strconv.Unquote(i.Path.Value)
			if ours, ok := strings.CutPrefix(name, "tidegate/"); ok {
				if below, known := floors[ours]; !known || below >= floor {
					t.Errorf("%s (floor %d) imports %s (floor %d)", path, floor, ours, below)
				}
			} else if first, _, _ := strings.Cut(name, "/"); strings.Contains(first, ".") && !mayEnter(name, rel) {
				t.Errorf("%s: %s may not enter here", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for p := range floors {
		if !seen[p] {
			t.Errorf("package %s is gone; take it off its floor", p)
		}
	}
}

func mayEnter(module, room string) bool {
	for prefix, rooms := range doors {
		if module == prefix || strings.HasPrefix(module, prefix+"/") {
			for _, r := range rooms {
				if r == room {
					return true
				}
			}
		}
	}
	return false
}

// TestDependenciesAreNamed: every module that go.mod requires directly
// stands in docs/dependencies.md with its reason.
func TestDependenciesAreNamed(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		f := strings.Fields(line)
		if len(f) >= 2 && strings.Contains(f[0], ".") && strings.HasPrefix(f[1], "v") {
			if !strings.Contains(string(doc), f[0]+" "+f[1]) {
				t.Errorf("docs/dependencies.md does not name %s %s", f[0], f[1])
			}
		}
	}
}

// TestHelpFits: the help of every verb fits a serial console, and a topic
// that is not there is an error.
func TestHelpFits(t *testing.T) {
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		var out bytes.Buffer
		if code := execute(append([]string{"help"}, path...), strings.NewReader(""), &out, io.Discard); code != 0 || out.Len() == 0 {
			t.Errorf("help %v: exit code %d, %d bytes", path, code, out.Len())
		}
		for line := range strings.Lines(out.String()) {
			if len(line) > 81 {
				t.Errorf("help %v: more than 80 columns: %s", path, line)
			}
		}
		for line := range strings.Lines(c.Long) {
			if len(strings.TrimRight(line, "\n")) > 80 { // it would be broken where nobody wants it
				t.Errorf("help %v: a line of more than 80 columns: %s", path, line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub, append(path[:len(path):len(path)], sub.Name()))
		}
	}
	walk((&app{}).root(), nil)
	if code := execute([]string{"help", "buffer", "stta"}, strings.NewReader(""), io.Discard, io.Discard); code != exitUsage {
		t.Errorf("help on what is not there: exit code %d", code)
	}
}
