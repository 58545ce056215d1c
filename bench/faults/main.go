// Command faults hits a buffer with every fault of the disk at every place.
//
// A writer does a run of 30 commits, always the same. strace counts its calls
// of a kind, and then the run is done again for each of them: the process is
// killed at the n-th call, or the n-th call fails. Then the buffer is opened,
// and what it holds is compared with what it had promised. It exits with 1 on
// any broken promise, and if a fault did not fire.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"tidegate/bench/writer"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "writer" {
		os.Exit(writer.Main(os.Args[2:]))
	}
	os.Exit(run())
}

func run() int {
	var s sweeps
	flag.IntVar(&s.commits, "commits", 30, "commits of a run")
	flag.IntVar(&s.step, "step", 1, "only every so many places")
	flag.IntVar(&s.jobs, "jobs", 6, "runs at a time")
	flag.Uint64Var(&s.seed, "seed", 1, "seed of the contents")
	flag.StringVar(&s.base, "dir", memory(), "where the buffers lie; only on ext4 does a buffer write zeros ahead")
	flag.StringVar(&s.only, "only", "", "only the sweeps with this in their name, such as kill@fdatasync")
	flag.IntVar(&s.point, "point", 0, "only this place, to see a violation again")
	flag.Parse()
	if _, err := exec.LookPath("strace"); err != nil {
		fmt.Fprintln(os.Stderr, "faults: strace is not here; as root: apt-get install strace")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	code := s.run(ctx)
	fmt.Printf("faults: %.0f s\n", time.Since(began).Seconds())
	return code
}
