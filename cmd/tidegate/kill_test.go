package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"tidegate/buffer"
	"tidegate/driver/profile"
	"tidegate/internal/account"
	"tidegate/internal/sim"
)

// world is what stands around an agent under test: devices that count every
// answer they give, a broker with TLS, and the cloud's account.
type world struct {
	t      *testing.T
	dir    string
	bin    string
	broker *sim.Broker

	mu       sync.Mutex
	book     *account.Book
	served   [worldDevices]uint32 // answers given, by device
	when     [worldDevices][]time.Time
	received [worldDevices]map[uint32]bool
	dropped  []tombstone
	bad      []string
	starts   []time.Time // of the agent
}

type tombstone struct {
	From, To uint64
	T0, T1   int64
	Why      string
}

const worldDevices = 3

func newWorld(t *testing.T, bin string) *world {
	w := &world{t: t, dir: t.TempDir(), bin: bin, book: account.New()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	var err error
	if w.broker, err = sim.NewBroker(sim.BrokerOptions{OnPublish: w.hear}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.broker.Close() })
	if err := w.broker.CA().WriteIdentity(filepath.Join(w.dir, "pki"), "world"); err != nil {
		t.Fatal(err)
	}
	s := sim.NewSlave()
	for i := range worldDevices {
		w.received[i] = map[uint32]bool{}
		s.Unit(byte(i+1)).Live(profile.Holding, 0, 2, func(now time.Time, regs []uint16) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.served[i]++
			w.when[i] = append(w.when[i], now)
			regs[0], regs[1] = uint16(w.served[i]>>16), uint16(w.served[i])
		})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { s.ServeTCP(ctx, ln) })
	w.write("devices", ln.Addr().String())
	return w
}

func (w *world) write(name, text string) {
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// config writes the agent's configuration.
func (w *world) config(maxLoss, extra string) {
	addr, _ := os.ReadFile(filepath.Join(w.dir, "devices"))
	text := fmt.Sprintf("gateway: {id: world, site: test}\nbuses:\n  plant:\n    connect: tcp://%s\n    timeout: 5s\n    devices:\n", addr)
	for i := range worldDevices {
		text += fmt.Sprintf("      d%d: {unit: %d, every: 50ms, points: {n: {holding: 0, type: u32, kind: counter}}}\n", i, i+1)
	}
	text += fmt.Sprintf("buffer: {dir: %s, max_loss: %s, size: 64MB}\nuplink: {url: %q, identity: %s, keepalive: 2s, batch: {max_age: 200ms}%s}\nstatus: {socket: %s}\nlog: {level: warn}\n",
		filepath.Join(w.dir, "buffer"), maxLoss, w.broker.URL(), filepath.Join(w.dir, "pki"), extra, filepath.Join(w.dir, "agent.sock"))
	w.write("tidegate.yaml", text)
}

// hear is the cloud: the account, and which counter values have come.
func (w *world) hear(topic string, payload []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.book.Add(topic, payload); err != nil {
		w.bad = append(w.bad, err.Error())
	}
	var m struct {
		Records []struct {
			Dev    string `json:"dev"`
			Values struct {
				N *uint32 `json:"n"`
			} `json:"values"`
		} `json:"records"`
		Dropped *tombstone `json:"dropped"`
	}
	if json.Unmarshal(payload, &m) != nil {
		return
	}
	for _, r := range m.Records {
		if i, err := strconv.Atoi(r.Dev[1:]); err == nil && r.Values.N != nil {
			if *r.Values.N > w.served[i] {
				w.bad = append(w.bad, fmt.Sprintf("%s: value %d was never sent by the device", r.Dev, *r.Values.N))
			}
			w.received[i][*r.Values.N] = true
		}
	}
	if m.Dropped != nil {
		w.dropped = append(w.dropped, *m.Dropped)
	}
}

// start runs the agent. The channel tells how it ended.
func (w *world) start() (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.Command(w.bin, "run", "--config", filepath.Join(w.dir, "tidegate.yaml"))
	var log bytes.Buffer
	cmd.Stderr = &log
	w.mu.Lock()
	w.starts = append(w.starts, time.Now())
	w.mu.Unlock()
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cmd.Process.Kill() })
	return cmd, &log
}

// counts is how many polls were served so far, over all devices.
func (w *world) counts() (n uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.served {
		n += s
	}
	return n
}

// polled waits until the devices have served more than n polls and returns
// how long that took.
func (w *world) polled(n uint32) time.Duration {
	start := time.Now()
	for w.counts() <= n {
		if time.Since(start) > 2*time.Minute {
			w.t.Fatal("the agent does not poll")
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

// settle lets the agent drain and stop, and returns the account.
func (w *world) settle(cmd *exec.Cmd, log *bytes.Buffer) account.Report {
	w.t.Helper()
	client := filepath.Join(w.dir, "tidegate.yaml")
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		out, _ := exec.Command(w.bin, "status", "--json", "--config", client).Output()
		var s struct {
			Buffer struct{ Batches, Tombstones int64 }
		}
		if json.Unmarshal(out, &s) == nil && s.Buffer.Batches < 5 && s.Buffer.Tombstones == 0 {
			break
		}
		if time.Now().After(end) {
			w.t.Fatalf("the backlog does not drain: %s\n%s", out, log)
		}
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		w.t.Errorf("clean stop: %v\n%s", err, log)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.bad {
		w.t.Error(b)
	}
	return w.book.Report()
}

// life is which start of the agent an instant follows.
func (w *world) life(at time.Time) (n int) {
	for n < len(w.starts) && !at.Before(w.starts[n]) {
		n++
	}
	return n
}

// missing returns, for each run of polls of one life of the agent that were
// served but never arrived, the time it spans.
func (w *world) missing() (runs []time.Duration, polls int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.served {
		for n := uint32(1); n <= w.served[i]; n++ {
			if w.received[i][n] {
				continue
			}
			first := n
			for n < w.served[i] && !w.received[i][n+1] && w.life(w.when[i][n]) == w.life(w.when[i][n-1]) {
				n++
			}
			polls += int(n - first + 1)
			runs = append(runs, w.when[i][n-1].Sub(w.when[i][first-1]))
		}
	}
	return runs, polls
}

// TestKill kills the agent with SIGKILL at random moments while the broker
// comes and goes. With max_loss 0s every batch that got a number arrives:
// tombstones close only what was reserved and never given. With the default,
// what is missing stands in tombstones, and no run of missing polls is longer
// than max_loss and what a busy machine is late; one round is longer than that.
// TIDEGATE_KILLS sets the number of rounds.
func TestKill(t *testing.T) {
	rounds := 6
	if n, err := strconv.Atoi(os.Getenv("TIDEGATE_KILLS")); err == nil {
		rounds = n
	}
	bin := buildBinary(t)
	for _, maxLoss := range []string{"0s", "2s"} {
		t.Run(maxLoss, func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d, %d rounds", seed, rounds)
			r := rand.New(rand.NewPCG(seed, 0))
			w := newWorld(t, bin)
			w.config(maxLoss, "")
			kills, cuts := 0, 0
			var slowest time.Duration
			for round := range rounds {
				before := w.counts()
				cmd, log := w.start()
				slowest = max(slowest, w.polled(before))
				away := round == rounds/2 // for certain, and for long
				if r.IntN(2) == 0 || away {
					w.broker.Cut()
					cuts++
				}
				time.Sleep(time.Duration(r.IntN(2500)) * time.Millisecond)
				if away {
					time.Sleep(6 * time.Second)
				} else if r.IntN(2) == 0 {
					if err := w.broker.Restore(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatalf("the agent ended by itself: %v\n%s", err, log)
				}
				cmd.Wait()
				kills++
			}
			if err := w.broker.Restore(); err != nil {
				t.Fatal(err)
			}
			cmd, log := w.start()
			report := w.settle(cmd, log)
			runs, polls := w.missing()
			longest := time.Duration(0)
			for _, d := range runs {
				longest = max(longest, d)
			}
			t.Logf("%d kills, %d cuts; %d batches received, %d repeats; %d of %d polls missing, longest run %v; start to first poll at most %v",
				kills, cuts, report.Received, report.Repeats, polls, w.counts(), longest, slowest)
			if kills != rounds || cuts == 0 {
				t.Errorf("%d kills and %d cuts: the fault did not happen", kills, cuts)
			}
			if report.Broken || report.Late > 0 {
				t.Errorf("the account is not complete:\n%s", report.Text())
			}
			const late = 2 * time.Second
			limit := 2*time.Second + late
			if maxLoss == "0s" {
				limit = 200*time.Millisecond + late // the batch that was still open
				for _, lane := range report.Lanes {
					for _, x := range lane.Tombstones {
						if x.Why != buffer.WhyRestart {
							t.Errorf("durable batches are missing:\n%s", report.Text())
						}
					}
				}
			}
			if longest > limit {
				t.Errorf("%v of polls are missing in one run, at most %v may be", longest, limit)
			}
		})
	}
}

// TestBlackHole cuts the link without FIN or RST for three keep-alives while
// polling goes on: nothing is lost.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	w := newWorld(t, buildBinary(t))
	link, err := sim.NewLink(w.broker.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	w.config("2s", ", tls: {server_name: localhost, ca: "+filepath.Join(w.dir, "pki", "ca.crt")+", cert: "+
		filepath.Join(w.dir, "pki", "client.crt")+", key: "+filepath.Join(w.dir, "pki", "client.key")+"}")
	path := filepath.Join(w.dir, "tidegate.yaml")
	src, _ := os.ReadFile(path)
	src = bytes.Replace(src, []byte(w.broker.Addr()), []byte(link.Addr()), 1)
	src = bytes.Replace(src, []byte(", identity: "+filepath.Join(w.dir, "pki")), nil, 1)
	w.write("tidegate.yaml", string(src))
	cmd, log := w.start()
	w.polled(20)
	for end := time.Now().Add(2 * time.Minute); w.broker.Published() < 5; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no session\n%s", log)
		}
	}
	link.BlackHole()
	time.Sleep(6 * time.Second) // three keep-alives of 2 s
	swallowed := link.Stats()
	if err := link.Pass(); err != nil {
		t.Fatal(err)
	}
	report := w.settle(cmd, log)
	_, polls := w.missing()
	t.Logf("link %+v; %d batches received, %d repeats, %d polls missing", swallowed, report.Received, report.Repeats, polls)
	if report.Verdict != account.Complete {
		t.Errorf("the account is not complete:\n%s", report.Text())
	}
	if _, total := w.broker.Connections(); total < 2 {
		t.Error("the connection was never given up: the fault did not happen")
	}
	if polls > 0 {
		t.Errorf("%d polls are missing", polls)
	}
}
