package main

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "3") // they wait more than they work; not parsed here, for this may be tidegate itself
	testscript.Main(m, map[string]func(){"tidegate": main})
}

// TestScripts runs the scripts of testdata/script with the real main.
// Beside the usual commands there are:
//
//	exits CODE command...        the command ends with this exit code
//	until SECONDS TEXT command...  the output of the command holds TEXT at last
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("..", "..", "testdata", "script"),
		Setup: func(e *testscript.Env) error {
			root, err := filepath.Abs(filepath.Join("..", ".."))
			e.Setenv("ROOT", root)
			return err
		},
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				got := 0
				if err := ts.Exec(args[1], args[2:]...); err != nil {
					var e *exec.ExitError
					if !errors.As(err, &e) {
						ts.Fatalf("%v", err)
					}
					got = e.ExitCode()
				}
				if got != want || neg {
					ts.Fatalf("exit code %d, want %d", got, want)
				}
			},
			"until": func(ts *testscript.TestScript, neg bool, args []string) {
				seconds, err := strconv.Atoi(args[0])
				ts.Check(err)
				if !neg {
					seconds *= 4 // the machine may be busy with other tests
				}
				for end := time.Now().Add(time.Duration(seconds) * time.Second); ; time.Sleep(100 * time.Millisecond) {
					err := ts.Exec(args[2], args[3:]...)
					out := ts.ReadFile("stdout") + ts.ReadFile("stderr")
					if strings.Contains(out, args[1]) != neg {
						return
					}
					if time.Now().After(end) {
						ts.Fatalf("not within %d s: %v\n%s", seconds, err, out)
					}
				}
			},
		},
	})
}
