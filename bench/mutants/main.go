// Command mutants breaks the code on purpose and looks whether the tests see
// it.
//
// It works on a temporary copy of the tree. Each mutant is a patch and the
// test that must fail; the same test must pass without the patch. It exits
// with 1 when a mutant lives, and also when a patch does not fit any more or
// a test did not run.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() { os.Exit(run()) }

func run() int {
	var tree, only string
	flag.StringVar(&tree, "tree", "..", "root of the repository")
	flag.StringVar(&only, "only", "", "only mutants whose name has these words")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "tidegate-mutants-")
	if err != nil {
		return failed(err)
	}
	defer os.RemoveAll(dir)
	if err := copyTree(tree, dir); err != nil {
		return failed(err)
	}
	m := &lab{dir: dir, sound: make(map[string]error)}
	var chosen []mutant
	for _, x := range list() {
		if strings.Contains(x.name, only) {
			chosen = append(chosen, x)
		}
	}
	caught := 0
	for _, x := range chosen {
		began := time.Now()
		verdict, err := m.try(ctx, x)
		if ctx.Err() != nil {
			fmt.Println("mutants: interrupted")
			return 130
		}
		if err != nil {
			verdict = "NOT CAUGHT: " + err.Error()
		} else {
			caught++
		}
		fmt.Printf("%-62s %s (%.0f s)\n", x.name, verdict, time.Since(began).Seconds())
	}
	fmt.Printf("mutants: caught %d of %d\n", caught, len(chosen))
	if caught < len(chosen) || caught == 0 {
		return 1
	}
	return 0
}

func failed(err error) int {
	fmt.Fprintln(os.Stderr, "mutants:", err)
	return 1
}

// copyTree copies what the tests need, as it stands in the working tree.
func copyTree(from, to string) error {
	from, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(from, "bench", "go.mod")); err != nil {
		return fmt.Errorf("%s is not the root of the repository: %w", from, err)
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && (d.Name() == ".git" || rel == "dist" || rel == ".cache"):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case !d.Type().IsRegular() || rel == "tidegate":
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o644)
	})
}

// lab is where mutants live.
type lab struct {
	dir   string
	sound map[string]error // tests that were run on the code as it is
}

// try makes a mutant and runs its test. No error means that it was caught.
func (m *lab) try(ctx context.Context, x mutant) (string, error) {
	if x.root && os.Geteuid() != 0 {
		return "", fmt.Errorf("its test needs root")
	}
	path := filepath.Join(m.dir, x.file)
	code, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if n := bytes.Count(code, []byte(x.old)); n != 1 {
		return "", fmt.Errorf("the patch does not fit any more: what it replaces stands %d times in %s; write it anew", n, x.file)
	}
	name := strings.Join(x.test.cmd, " ")
	if _, known := m.sound[name]; !known {
		m.sound[name] = m.passes(ctx, x.test)
	}
	if err := m.sound[name]; err != nil {
		return "", fmt.Errorf("its test does not pass on the code as it is: %w", err)
	}
	if err := os.WriteFile(path, bytes.Replace(code, []byte(x.old), []byte(x.new), 1), 0o644); err != nil {
		return "", err
	}
	defer os.WriteFile(path, code, 0o644)
	if out, err := m.command(ctx, ".", []string{"go", "vet", "./" + filepath.Dir(x.file)}); err != nil {
		return "", fmt.Errorf("the mutant does not build: %s", tail(out))
	}
	out, err := m.command(ctx, x.test.dir, x.test.cmd)
	if err == nil {
		return "", fmt.Errorf("%s passes", name)
	}
	sign, found := symptom(out)
	if !found {
		return "", fmt.Errorf("the test failed for another reason: %s", tail(out))
	}
	return "caught: " + sign, nil
}

// passes runs a test on the code as it is. It must pass, and it must have run.
func (m *lab) passes(ctx context.Context, t test) error {
	out, err := m.command(ctx, t.dir, t.cmd)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s", err, tail(out))
	case t.cmd[1] == "test" && !strings.Contains(out, "\n--- PASS: "):
		return fmt.Errorf("it did not run: %s", tail(out))
	}
	return nil
}

func (m *lab) command(ctx context.Context, dir string, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = filepath.Join(m.dir, dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// symptom is the first line that says what was wrong.
func symptom(out string) (string, bool) {
	lines := strings.Split(out, "\n")
	for i, l := range lines {
		l = strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, "BROKEN: "), strings.HasPrefix(l, "panic: "), strings.HasPrefix(l, "fatal error: "):
			return short(l), true
		case strings.HasPrefix(l, "--- FAIL: "):
			near := slices.Clone(lines[max(0, i-3):i])
			slices.Reverse(near)
			for _, near := range append(near, lines[i+1:min(len(lines), i+4)]...) {
				if strings.Contains(near, "_test.go:") {
					return short(strings.TrimSpace(near)), true
				}
			}
			return short(l), true
		}
	}
	return "", false
}

func short(s string) string { return s[:min(len(s), 150)] }

func tail(out string) string { return out[max(0, len(out)-400):] }
