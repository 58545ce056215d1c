// Command powercut cuts the power under a buffer, again and again.
//
// The buffer works on ext4 on a loop device whose backing file is served by
// this program. The file logs every write until a flush. At the n-th write
// the power goes: each unsynced sector of 512 bytes stays with probability p,
// and everything after that is an I/O error. Then the file system is mounted
// again, the buffer is opened, and what it holds is compared with what it had
// promised. It exits with 1 on any broken promise.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tidegate/bench/writer"
)

const insideEnv = "TIDEGATE_POWERCUT_INSIDE"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "writer" {
		os.Exit(writer.Main(os.Args[2:]))
	}
	os.Exit(run())
}

func run() int {
	var p plan
	var mode, lags, keeps string
	flag.IntVar(&p.cuts, "cuts", 300, "how many cuts")
	flag.Uint64Var(&p.seed, "seed", uint64(time.Now().UnixNano()), "seed of all that is drawn by lot")
	flag.StringVar(&mode, "mode", "honest", "honest: what was flushed stays; lying: the last flushes do not")
	flag.StringVar(&lags, "lag", "1,4,16", "lying: how many flushes the disk lies about, one after the other")
	flag.StringVar(&keeps, "keep", "0,0.5,1", "probability that an unsynced sector stays, by lot")
	flag.IntVar(&p.life, "life", -1, "only this life of a buffer, to see a violation again")
	flag.IntVar(&p.perLife, "per-life", 20, "cuts in the life of one buffer")
	flag.IntVar(&p.most, "most", 400, "the cut comes at the latest at this write")
	flag.IntVar(&p.stop, "stop", 10, "end after so many lives with a broken promise; a life ends with its first")
	flag.DurationVar(&p.empty, "empty", 0, "let ext4 empty its journal so often; 0: when it wants to")
	flag.StringVar(&p.save, "save", "", "directory for the disk of a violation")
	flag.BoolVar(&p.verbose, "v", false, "one line for each cut")
	flag.Parse()
	if p.save != "" {
		if err := os.MkdirAll(p.save, 0o700); err != nil {
			return usage("-save: %v", err)
		}
	}
	var err error
	switch mode {
	case "honest":
		p.lags = []int{0}
	case "lying":
		if p.lags, err = list(lags, strconv.Atoi); err != nil {
			return usage("-lag: %v", err)
		}
	default:
		return usage("-mode %s: there are honest and lying", mode)
	}
	if p.keeps, err = list(keeps, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) }); err != nil {
		return usage("-keep: %v", err)
	}
	if os.Geteuid() != 0 {
		return usage("cutting the power needs root: it mounts file systems. Run it as root, or not at all.")
	}
	if os.Getenv(insideEnv) == "" {
		return inside(p.seed)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	debug.SetMemoryLimit(512 << 20)
	return p.run(ctx)
}

func usage(format string, args ...any) int {
	fmt.Fprintf(os.Stderr, "powercut: "+format+"\n", args...)
	return 2
}

func list[T any](s string, parse func(string) (T, error)) (all []T, err error) {
	for part := range strings.SplitSeq(s, ",") {
		v, err := parse(part)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// inside runs the program again in a mount namespace of its own: whatever
// ends it, the kernel takes away its mounts and with them the loop devices.
func inside(seed uint64) int {
	self, err := os.Executable()
	if err != nil {
		return usage("%v", err)
	}
	signal.Ignore(os.Interrupt) // the one inside hears it too, and ends
	cmd := exec.Command(self, append(os.Args[1:], "-seed", strconv.FormatUint(seed, 10))...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return usage("no mount namespace: %v", err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		for s := range ended {
			_ = cmd.Process.Signal(s)
		}
	}()
	if err := cmd.Wait(); err != nil {
		if code := cmd.ProcessState.ExitCode(); code > 0 {
			return code
		}
		return usage("%v", err)
	}
	return 0
}
