package buffer

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const childEnv = "TIDEGATE_BUFFER_CHILD"

func TestMain(m *testing.M) {
	if v := os.Getenv(childEnv); v != "" {
		if err := child(v); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child appends, delivers and commits until it is killed. What it says on
// stdout has happened ("A lane number": Append returned; "S lane number":
// everything up to it is durable) or is about to happen ("K lane number": it
// is going to be acknowledged). "E 0 epoch" comes first.
func child(args string) error {
	var dir string
	var maxLoss time.Duration
	var seed uint64
	f := strings.Split(args, "|")
	dir = f[0]
	if _, err := fmt.Sscan(f[1], &seed); err != nil {
		return err
	}
	maxLoss, err := time.ParseDuration(f[2])
	if err != nil {
		return err
	}
	tune := defaultTuning()
	faulty := f[3] == "faulty" // the disk fails now and then: go on, and end soon without Close
	if faulty {
		tune.retry = 0
		time.AfterFunc(150*time.Millisecond, func() { os.Exit(0) })
	}
	q, err := open(Options{Dir: dir, Size: 24 << 20, Segment: 256 << 10, MaxLoss: maxLoss}, tune)
	if err != nil {
		if faulty {
			return nil
		}
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 9))
	began := time.Now()
	say := func(what string, l Lane, n uint64) {
		fmt.Fprintf(os.Stdout, "%s %d %d %d\n", what, l, n, time.Since(began).Milliseconds())
	}
	say("E", Data, uint64(q.epoch))
	for {
		l := Data
		if rng.IntN(10) == 0 {
			l = Event
		}
		switch r := rng.IntN(20); {
		case r < 12:
			seq, err := q.Append(l, batch(l, q.Given(l)+1))
			if faulty && errors.Is(err, ErrNotDurable) {
				say("F", l, seq)
				break
			}
			if err != nil {
				return err
			}
			say("A", l, seq)
		case r < 17:
			it, ok, err := q.Next(l, q.Lowest(l)+uint64(rng.IntN(3)))
			if rng.IntN(3) == 0 {
				it, ok, err = q.Prev(l, 1<<60)
			}
			if err != nil {
				return err
			}
			if ok {
				say("K", l, it.Seq)
				q.Ack(l, it.Seq)
			}
		case r < 18 && rng.IntN(10) == 0: // drain, so that segments go
			for {
				it, ok, err := q.Next(l, 1)
				if err != nil {
					return err
				}
				if !ok {
					break
				}
				say("K", l, it.Seq)
				q.Ack(l, it.Seq)
			}
		case r < 19:
			if err := q.Sync(maxLoss); err != nil && !faulty {
				return err
			}
		default:
			upto := [laneCount]uint64{q.Given(Data), q.Given(Event)}
			if err := q.Sync(0); err != nil {
				if faulty {
					break
				}
				return err
			}
			for i, n := range upto {
				say("S", Lane(i), n)
			}
		}
	}
}

type key struct {
	l Lane
	n uint64
}

// TestKill kills a child again and again. Nothing that was durable is
// missing, no number is given twice, and what is missing is in a tombstone.
func TestKill(t *testing.T) {
	for _, maxLoss := range []time.Duration{0, 20 * time.Millisecond} {
		t.Run("max_loss "+maxLoss.String(), func(t *testing.T) {
			t.Parallel()
			killRounds(t, maxLoss, rounds(t, "BUFFER_KILLS", 15), nil)
		})
	}
}

// TestFaultySyscalls makes the n-th system call of a kind fail or kill, for
// every n up to BUFFER_SYSCALLS, else for a random one: the same must hold as
// for kills.
func TestFaultySyscalls(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("NOT TESTED: failing system calls. strace is not installed")
	}
	n := rounds(t, "BUFFER_SYSCALLS", 1)
	for i, fault := range []string{"fdatasync:error=EIO", "fdatasync:signal=KILL", "pwrite64:error=ENOSPC", "pwrite64:signal=KILL",
		"fallocate:error=ENOSPC", "fsync:error=EIO", "renameat:error=EIO", "renameat:signal=KILL", "unlinkat:signal=KILL"} {
		for j, maxLoss := range []time.Duration{0, 20 * time.Millisecond} {
			if n == 1 && i%2 != j { // one run of each, every other with 0s
				continue
			}
			t.Run(fmt.Sprintf("%s max_loss %s", fault, maxLoss), func(t *testing.T) {
				rng, _ := seed(t)
				at := 0
				killRounds(t, maxLoss, n, func() []string {
					if at++; n <= 2 {
						at = 1 + rng.IntN(40)
					}
					what, _, _ := strings.Cut(fault, ":")
					return []string{strace, "-f", "-o", "/dev/null", "-e", "trace=" + what, "-e", fmt.Sprintf("inject=%s:when=%d", fault, at)}
				})
			})
		}
	}
}

// killRounds runs and ends a child again and again. under, when set, is the
// command that it runs under: the child ends by itself then.
func killRounds(t *testing.T, maxLoss time.Duration, rounds int, under func() []string) {
	rng, _ := seed(t)
	dir := filepath.Join(fastDir(t), "buffer")
	var given, durable [laneCount]uint64
	var acked, told, appended [laneCount]ranges
	kills, inMemory, missing, repeats := 0, 0, 0, 0
	for range rounds {
		args, how := []string{os.Args[0]}, "sound"
		if under != nil {
			args, how = append(under(), args...), "faulty"
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d|%s|%s", childEnv, dir, rng.Uint64(), maxLoss, how))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var complaint strings.Builder
		cmd.Stderr = &complaint
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wait := time.Duration(rng.Int64N(int64(40 * time.Millisecond)))
		if rng.IntN(4) > 0 { // else it is killed while it starts
			wait += 15 * time.Millisecond
		}
		if under == nil {
			time.AfterFunc(wait, func() { cmd.Process.Kill() })
		}
		var last int64
		var epoch uint32 // 0: the child was not yet open
		synced := false
		was, ackedWas := given, acked
		for l := range acked {
			ackedWas[l] = acked[l].clone()
		}
		var its [laneCount]ranges // what the child appended
		when := make(map[key]int64)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			var what string
			var l Lane
			var n uint64
			if _, err := fmt.Sscan(sc.Text(), &what, &l, &n, &last); err != nil {
				continue // the line that the kill cut
			}
			switch what {
			case "E":
				epoch = uint32(n)
			case "F": // a number that was not promised; it is not to be another batch's
				if n <= given[l] {
					t.Fatalf("%s %d was given after %d", l, n, given[l])
				}
			case "A":
				if n <= given[l] {
					t.Fatalf("%s %d was given after %d", l, n, given[l])
				}
				given[l] = n
				its[l].add(n, n)
				when[key{l, n}] = last
			case "K":
				acked[l].add(n, n)
			case "S":
				durable[l], synced = n, true
			}
		}
		if err := cmd.Wait(); err == nil && under == nil || complaint.Len() > 0 {
			t.Fatalf("the child ended by itself: %v %s", err, complaint.String())
		}
		kills++

		func() {
			// A process that another test starts would keep the lock of this directory until it runs.
			syscall.ForkLock.RLock()
			defer syscall.ForkLock.RUnlock()
			q := mustOpen(t, Options{Dir: dir, Size: 24 << 20, Segment: 256 << 10, MaxLoss: maxLoss})
			if epoch != 0 && epoch != q.epoch {
				// It could not write when it was opened, and worked in memory, in an epoch that was never stored.
				if synced || under == nil {
					t.Fatalf("epoch %d of what was durable is gone, there is %d", epoch, q.epoch)
				}
				given, acked, its = was, ackedWas, [laneCount]ranges{}
				inMemory++
			}
			for l := range Lane(laneCount) {
				appended[l].union(&its[l])
				here := set(all(t, q, l))
				told[l].union(lost(q, l))
				for _, s := range appended[l].s {
					for n := s.a; n <= s.b; n++ {
						switch {
						case here.has(n):
							if acked[l].has(n) {
								repeats++
							}
						case acked[l].has(n):
						case maxLoss == 0 || n <= durable[l]:
							t.Fatalf("%s %d was durable and is gone", l, n)
						case !told[l].has(n):
							t.Fatalf("%s %d is missing silently", l, n)
						case last-when[key{l, n}] > (maxLoss + 2*time.Second).Milliseconds():
							t.Fatalf("%s %d had waited for %d ms and is gone", l, n, last-when[key{l, n}])
						default:
							missing++
						}
					}
				}
				appended[l] = *here // the others are accounted for
				if q.Given(l) < given[l] {
					t.Fatalf("%s: given %d after %d", l, q.Given(l), given[l])
				}
				given[l] = q.Given(l)
			}
			if n := q.Stats().Quarantined; n > 0 && under == nil {
				t.Fatal("a kill looked like damage")
			}
			for _, x := range q.Losses() {
				if err := q.AckLoss(x); err != nil {
					t.Fatal(err)
				}
			}
			crash(q)
		}()
	}
	t.Logf("%d kills, %d of what worked in memory, given data %d event %d: 0 durable lost, %d missing and all in tombstones, %d to be repeated", kills, inMemory, given[Data], given[Event], missing, repeats)
}
