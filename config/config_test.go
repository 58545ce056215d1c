package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidegate/driver/profile"
)

var update = flag.Bool("update", false, "write the golden files anew")

const cases = "../testdata/config"

func loadLibrary(t testing.TB, dir string) *profile.Library {
	t.Helper()
	var lib *profile.Library
	var err error
	if st, e := os.Stat(filepath.Join(dir, "profiles")); e == nil && st.IsDir() {
		lib, err = profile.Load(os.DirFS(filepath.Join(dir, "profiles")))
	} else {
		lib, err = profile.Load()
	}
	if err != nil {
		t.Fatal(err)
	}
	return lib
}

// TestCases prints what `tidegate check` says about each file and compares.
func TestCases(t *testing.T) {
	files, err := filepath.Glob(cases + "/*/tidegate.yaml")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	for _, file := range files {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			cfg, problems := Parse("tidegate.yaml", src, loadLibrary(t, dir))
			text, js := Report("tidegate.yaml", problems, cfg)
			golden(t, filepath.Join(dir, "expected.txt"), text)
			form(t, text)
			var r struct {
				Schema           string
				OK               bool
				Errors, Warnings []struct{ Code, Msg, Path string }
			}
			if err := json.Unmarshal(js, &r); err != nil || r.Schema != "tidegate.check/1" {
				t.Fatalf("%v: %s", err, js)
			}
			if r.OK != (cfg != nil) || len(r.Errors)+len(r.Warnings) != len(problems) || bytes.Count(js, []byte("\n")) != 1 {
				t.Errorf("JSON does not say what the text says: %s", js)
			}
			if strings.Contains(text+string(js), "hunter2") || strings.Contains(text+string(js), "secret123") {
				t.Error("a password is printed")
			}
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

// form checks what holds for all output: ASCII, and 80 columns unless one
// word is longer.
func form(t *testing.T, text string) {
	t.Helper()
	for _, l := range strings.Split(text, "\n") {
		if len(l) > 80 {
			t.Errorf("%d columns: %s", len(l), l)
		}
		for _, r := range l {
			if r < ' ' || r > '~' {
				t.Errorf("%q in: %s", r, l)
			}
		}
	}
}
