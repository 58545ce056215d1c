package account

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPythonExample runs the example of docs/verify.md, as it stands there,
// on random files of messages and compares its account with the Book's.
func TestPythonExample(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("python3 is missing")
		}
		t.Skip("NOT RUN: python3 is missing, the example of docs/verify.md was not tried")
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "verify.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```python\n")
	code, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("docs/verify.md holds no python block")
	}
	script := filepath.Join(t.TempDir(), "account.py")
	if err := os.WriteFile(script, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var file []string
		for seq := uint64(1); seq < 60; seq++ {
			m := msg(seq, rng.Uint64N(seq+1))
			if rng.IntN(3) == 0 {
				m = strings.Replace(m, `"lane":"data"`, `"lane":"event"`, 1)
			}
			switch rng.IntN(8) {
			case 0:
			case 1:
				file = append(file, m, m)
			case 2:
				file = append(file, tomb(seq, seq+rng.Uint64N(3), rng.Uint64N(seq), "full"))
			case 3:
				file = append(file, m, state(seq+rng.Uint64N(3), rng.Uint64N(seq+1)))
			case 4:
				file = append(file, m, tomb(0, 0, 1, "full"), `{"v":1,"gw":"g","m":"b","points":[]}`)
			default:
				file = append(file, m)
			}
		}
		rng.Shuffle(len(file), func(i, j int) { file[i], file[j] = file[j], file[i] })
		for i := range file {
			file[i] = "tg/v1/s/g/up" + []string{" ", "\t"}[rng.IntN(2)] + file[i] + "\n"
		}
		in := strings.Join(file, "")

		b := New()
		if err := b.AddLines(strings.NewReader(in), func(n int, err error) { t.Errorf("line %d: %v", n, err) }); err != nil {
			t.Fatal(err)
		}
		r := b.Report()
		var want strings.Builder
		for _, l := range r.Lanes {
			fmt.Fprintf(&want, "%s %s %s received %d dropped %d late %d lost %d\n", l.Gateway, l.Epoch, l.Lane, l.Received, l.Dropped, l.Late, l.Lost)
		}
		fmt.Fprintf(&want, "repeats %d\n", r.Repeats)

		cmd := exec.Command(python, script)
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != want.String() {
			t.Fatalf("seed %d: %v\npython:\n%s\nbook:\n%s\n%s", seed, err, out, want.String(), in)
		}
	}
}
