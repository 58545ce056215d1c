package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidegate/config"
	"tidegate/driver/profile"
)

// block is a fenced block of a page.
type block struct {
	page, lang, text string
	line             int
}

func pages(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil || len(docs) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	return append(docs, filepath.Join("..", "..", "README.md"), filepath.Join("..", "..", "CONTRIBUTING.md"))
}

func blocks(t *testing.T, page string) []block {
	t.Helper()
	src, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var out []block
	var in *block
	n := 0
	for line := range strings.Lines(string(src)) {
		n++
		switch {
		case in == nil && strings.HasPrefix(line, "```"):
			in = &block{page: page, lang: strings.TrimSpace(line[3:]), line: n}
		case in != nil && strings.HasPrefix(line, "```"):
			out = append(out, *in)
			in = nil
		case in != nil:
			in.text += line
		}
	}
	if in != nil {
		t.Errorf("%s:%d: the block is not closed", page, in.line)
	}
	return out
}

// TestPagesRun runs every command block of README and docs: the blocks of a
// page are one shell script, run in an empty folder with tidegate on the
// PATH and the project's folder in $TIDEGATE. A block whose lines all stand
// in .ci/run is run by that.
func TestPagesRun(t *testing.T) {
	t.Parallel()
	ci, err := os.ReadFile(filepath.Join("..", "..", ".ci", "run"))
	if err != nil {
		t.Fatal(err)
	}
	bin := ""
	for _, page := range pages(t) {
		script := ""
		for _, b := range blocks(t, page) {
			if b.lang != "sh" && b.lang != "bash" && b.lang != "console" || inCI(b.text, string(ci)) {
				continue
			}
			script += fmt.Sprintf("# line %d\n%s", b.line, b.text)
		}
		if script == "" {
			continue
		}
		if bin == "" {
			bin = buildBinary(t)
		}
		t.Run(filepath.Base(page), func(t *testing.T) {
			t.Parallel()
			runPage(t, bin, script, need(t, page)...)
		})
	}
}

func inCI(block, ci string) bool {
	for line := range strings.Lines(block) {
		if !strings.Contains(ci, "\n"+strings.TrimSpace(line)+"\n") {
			return false
		}
	}
	return true
}

// need skips the page loudly when a program it names in
// <!-- needs: a b c --> is not here; with CI=true that is a failure. What it
// returns belongs into the environment of the page.
func need(t *testing.T, page string) (env []string) {
	t.Helper()
	src, _ := os.ReadFile(page)
	m := regexp.MustCompile(`<!-- needs: (.*) -->`).FindSubmatch(src)
	if m == nil {
		return nil
	}
	for _, p := range strings.Fields(string(m[1])) {
		switch p {
		case "postgres":
			env = append(env, postgres(t)...)
		case "psycopg2":
			psycopg2(t)
		case "mqtt.js":
			env = append(env, "NODE_PATH="+npm(t, "mqtt"))
		default:
			if _, err := exec.LookPath(p); err != nil {
				missing(t, p)
			}
		}
	}
	return env
}

// missing ends a test for want of a program: a failure with CI=true.
func missing(t *testing.T, program string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not here, and with CI=true it must be", program)
	}
	t.Skipf("NOT RUN: %s is not here", program)
}

// buildBinary builds the program as make build does.
func buildBinary(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "tidegate")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func runPage(t *testing.T, bin, script string, env ...string) {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-x", "-c", script)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(bin)+":"+os.Getenv("PATH"), "TIDEGATE="+root)
	cmd.Env = append(cmd.Env, env...)
	// The whole group ends with the page: what it left in the background, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if testing.Verbose() {
		t.Logf("%s", out)
	}
}

// TestPageConfigs: every complete configuration in README and docs checks
// clean.
func TestPageConfigs(t *testing.T) {
	lib, err := profile.Load()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, page := range pages(t) {
		for _, b := range blocks(t, page) {
			if b.lang != "yaml" || !strings.Contains(b.text, "\nuplink:") || !strings.Contains(b.text, "buses:") {
				continue
			}
			n++
			if cfg, problems := config.Parse(page, []byte(b.text), lib); cfg == nil {
				t.Errorf("%s:%d: %+v", page, b.line, problems)
			}
		}
	}
	if n == 0 {
		t.Error("no configuration found in the pages")
	}
}
