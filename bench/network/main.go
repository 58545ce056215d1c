// Command network puts a gateway and a broker into network namespaces of
// their own and breaks what is between them: loss, black hole, resets, a
// half-open connection, a slow line, a link that goes down. After each fault
// is gone, everything must have arrived within two keep-alives and five
// seconds, each number at least once. Root only; nothing leaves the machine.
//
//	go run ./network [-only NAME] [-keepalive 10s] [-dead 10m]
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const (
	gatewayNS = "tidegate-gw"
	brokerNS  = "tidegate-br"
	brokerIP  = "10.213.7.2"
	port      = "1883"
)

func main() {
	role := flag.String("role", "", "used by the program itself")
	only := flag.String("only", "", "one fault")
	keepalive := flag.Duration("keepalive", 10*time.Second, "of the uplink")
	dead := flag.Duration("dead", 0, "count the attempts over this time without a network too, with a keep-alive of 60 s")
	flag.Parse()
	var err error
	switch *role {
	case "gateway":
		err = gateway("mqtt://"+brokerIP+":"+port, *keepalive)
	case "broker":
		err = broker(brokerIP + ":" + port)
	default:
		err = prove(*only, *keepalive, *dead)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "network:", err)
		os.Exit(1)
	}
}

// fault breaks the network for a time.
type fault struct {
	name   string
	inject func(w *world) error
	heal   func(w *world) error
	lasts  time.Duration
	every  func(w *world, since time.Duration) error // while it lasts, each 100 ms; may be nil
	fired  func(w *world) bool                       // the fault was felt
}

func both(do string, rule ...string) func(*world) error {
	return func(*world) error {
		var err error
		for _, chain := range []string{"INPUT", "OUTPUT"} {
			err = errors.Join(err, in(brokerNS, "iptables", append([]string{do, chain}, rule...)...))
		}
		return err
	}
}

func dropped(w *world) bool { return w.packets("DROP") > 0 }

// reset makes the broker's kernel answer with RST for a moment.
func reset(do string) error {
	return in(brokerNS, "iptables", do, "INPUT", "-p", "tcp", "--dport", port, "-j", "REJECT", "--reject-with", "tcp-reset")
}

func loss(p string) fault {
	rule := []string{"-m", "statistic", "--mode", "random", "--probability", p, "-j", "DROP"}
	return fault{"loss " + p, both("-A", rule...), both("-D", rule...), 40 * time.Second, nil, dropped}
}

func faults() []fault {
	hole := []string{"-j", "DROP"}
	resetting := false
	return []fault{
		loss("0.1"), loss("0.3"),
		{"black hole", both("-A", hole...), both("-D", hole...), 45 * time.Second, nil, dropped},
		{"black hole of a second", both("-A", hole...), both("-D", hole...), time.Second, nil, dropped},
		{"reset every 10 s", func(*world) error { return nil },
			func(*world) error {
				if resetting {
					return reset("-D")
				}
				return nil
			}, 45 * time.Second,
			func(w *world, since time.Duration) error {
				now := since%(10*time.Second) > 9*time.Second
				if now == resetting {
					return nil
				}
				resetting = now
				if now {
					w.sawReset = true
					return reset("-A")
				}
				return reset("-D")
			}, func(w *world) bool { return w.sawReset }},
		// The broker's machine is gone and another one has its address: our
		// connection hangs in the air, without FIN or RST.
		{"half open", func(w *world) error {
			err := both("-A", hole...)(w)
			w.stopBroker()
			time.Sleep(time.Second)
			return errors.Join(err, w.startBroker())
		}, both("-D", hole...), 5 * time.Second, nil, dropped},
		// A NAT has forgotten our connection and never hears of it again, while
		// a new one works: nothing but our own patience ends it. Nothing is healed.
		{"forgotten by a NAT", forget, func(*world) error { return nil }, time.Second, nil, dropped},
		{"9.6 kbit/s", func(*world) error {
			err := in(gatewayNS, "tc", "qdisc", "add", "dev", "vgw", "root", "tbf", "rate", "9600bit", "burst", "1600", "latency", "3s")
			return errors.Join(err, in(brokerNS, "tc", "qdisc", "add", "dev", "vbr", "root", "tbf", "rate", "9600bit", "burst", "1600", "latency", "3s"))
		}, func(*world) error {
			return errors.Join(in(gatewayNS, "tc", "qdisc", "del", "dev", "vgw", "root"), in(brokerNS, "tc", "qdisc", "del", "dev", "vbr", "root"))
		}, 45 * time.Second, func(w *world, _ time.Duration) error {
			out, err := exec.Command("ip", "netns", "exec", gatewayNS, "tc", "-s", "qdisc", "show", "dev", "vgw").Output()
			w.slowed = w.slowed || err == nil && strings.Contains(string(out), "tbf") && !strings.Contains(string(out), "Sent 0 bytes")
			return err
		}, func(w *world) bool { return w.slowed }},
		{"link down", func(*world) error { return in(brokerNS, "ip", "link", "set", "vbr", "down") },
			func(*world) error { return in(brokerNS, "ip", "link", "set", "vbr", "up") }, 30 * time.Second, nil, func(*world) bool { return true }},
		{"broker killed", func(w *world) error { w.stopBroker(); return nil }, func(w *world) error { return w.startBroker() },
			20 * time.Second, nil, func(*world) bool { return true }},
	}
}

// forget drops what belongs to the connections that the broker has now.
func forget(*world) error {
	out, err := exec.Command("ip", "netns", "exec", brokerNS, "ss", "-Htn", "state", "established", "sport", "=", port).Output()
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		_, from, e := net.SplitHostPort(f[len(f)-1])
		err = errors.Join(err, e,
			in(brokerNS, "iptables", "-A", "INPUT", "-p", "tcp", "--sport", from, "-j", "DROP"),
			in(brokerNS, "iptables", "-A", "OUTPUT", "-p", "tcp", "--dport", from, "-j", "DROP"))
	}
	return err
}

// broken says that a promise was, which is not the same as a rig that fails.
func broken(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	fmt.Println("BROKEN:", err)
	return err
}

func in(ns, name string, args ...string) error {
	return sh("ip", append([]string{"netns", "exec", ns, name}, args...)...)
}

func sh(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func prove(only string, keepalive, dead time.Duration) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("only root can make network namespaces")
	}
	w := &world{got: map[uint64]int{}, keepalive: keepalive}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.open(); err != nil {
		return err
	}
	limit := 2*keepalive + 5*time.Second
	fmt.Printf("%-24s %8s %8s %9s %9s %8s  heals within %s\n", "fault", "lasts", "heals", "batches", "repeats", "sessions", limit)
	tried := 0
	for _, f := range faults() {
		if only != "" && f.name != only {
			continue
		}
		tried++
		if err := w.try(f, limit); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if tried == 0 {
		return fmt.Errorf("there is no fault %q", only)
	}
	if dead > 0 {
		return w.dead(dead)
	}
	return nil
}

// world is the two namespaces and what runs in them.
type world struct {
	keepalive time.Duration
	sawReset  bool
	slowed    bool

	mu       sync.Mutex
	got      map[uint64]int // arrivals by number
	given    uint64
	sessions int
	failed   error
	gw, br   *process
}

// process is this program in a namespace, in another role.
type process struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	done chan struct{}
}

func (w *world) start(ns, role string, keepalive time.Duration, line func(string)) (*process, error) {
	cmd := exec.Command("ip", "netns", "exec", ns, "/proc/self/exe", "-role", role, "-keepalive", keepalive.String())
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd.Args[4] = self
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe() // its end is the sign to end
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd, in, make(chan struct{})}
	ready := make(chan struct{})
	go func() {
		defer close(p.done)
		first := true
		for s := bufio.NewScanner(out); s.Scan(); {
			if first {
				first = false
				close(ready)
			}
			w.mu.Lock()
			line(s.Text())
			w.mu.Unlock()
		}
		cmd.Wait()
	}()
	select {
	case <-ready:
	case <-p.done:
		return nil, fmt.Errorf("the %s does not start", role)
	}
	return p, nil
}

func (p *process) stop() {
	if p != nil {
		p.in.Close()
		<-p.done
	}
}

func (w *world) open() error {
	w.clean()
	for _, c := range []string{
		"ip netns add " + gatewayNS, "ip netns add " + brokerNS,
		"ip link add vgw netns " + gatewayNS + " type veth peer name vbr netns " + brokerNS,
		"ip netns exec " + gatewayNS + " ip addr add 10.213.7.1/24 dev vgw", "ip netns exec " + brokerNS + " ip addr add " + brokerIP + "/24 dev vbr",
		"ip netns exec " + gatewayNS + " ip link set vgw up", "ip netns exec " + brokerNS + " ip link set vbr up",
		"ip netns exec " + gatewayNS + " ip link set lo up", "ip netns exec " + brokerNS + " ip link set lo up",
	} {
		f := strings.Fields(c)
		if err := sh(f[0], f[1:]...); err != nil {
			return err
		}
	}
	if err := w.startBroker(); err != nil {
		return err
	}
	return w.startGateway(w.keepalive)
}

func (w *world) startBroker() (err error) {
	w.br, err = w.start(brokerNS, "broker", w.keepalive, func(s string) {
		var n uint64
		if k, _ := fmt.Sscanf(s, "got %d", &n); k == 1 {
			w.got[n]++
		}
	})
	return err
}

func (w *world) stopBroker() { w.br.stop() }

func (w *world) startGateway(keepalive time.Duration) (err error) {
	w.given, w.got = 0, map[uint64]int{}
	w.gw, err = w.start(gatewayNS, "gateway", keepalive, func(s string) {
		fmt.Sscanf(s, "given %d sessions %d", &w.given, &w.sessions)
	})
	return err
}

func (w *world) close() error {
	w.gw.stop()
	w.br.stop()
	return w.clean()
}

func (w *world) clean() error {
	var err error
	list, _ := exec.Command("ip", "netns", "list").Output() // an empty list if it fails
	for _, ns := range []string{gatewayNS, brokerNS} {
		if strings.Contains(string(list), ns) {
			err = errors.Join(err, sh("ip", "netns", "del", ns))
		}
	}
	return err
}

// packets counts what a target of iptables took in the broker's namespace.
func (w *world) packets(target string) (n int) {
	out, _ := exec.Command("ip", "netns", "exec", brokerNS, "iptables", "-nvxL").Output() // no packets if it fails
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == target {
			k := 0
			fmt.Sscan(f[0], &k)
			n += k
		}
	}
	return n
}

// complete tells whether every number up to n arrived.
func (w *world) complete(n uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := uint64(1); i <= n; i++ {
		if w.got[i] == 0 {
			return false
		}
	}
	return true
}

func (w *world) state() (given uint64, repeats, sessions int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.got {
		repeats += n - 1
	}
	return w.given, repeats, w.sessions
}

func (w *world) within(limit time.Duration) (time.Duration, error) {
	given, _, _ := w.state()
	began := time.Now()
	for !w.complete(given) {
		if time.Since(began) > limit {
			return 0, broken("not everything up to number %d arrived within %s", given, limit)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(began), nil
}

func (w *world) try(f fault, limit time.Duration) error {
	time.Sleep(3 * time.Second)
	if _, err := w.within(limit); err != nil {
		return fmt.Errorf("before the fault: %w", err)
	}
	_, repeats0, sessions0 := w.state()
	given0, _, _ := w.state()
	if err := f.inject(w); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < f.lasts; time.Sleep(100 * time.Millisecond) {
		if f.every != nil {
			if err := f.every(w, time.Since(began)); err != nil {
				return err
			}
		}
	}
	fired := f.fired(w)
	if err := f.heal(w); err != nil {
		return err
	}
	if !fired {
		return errors.New("the fault did not fire")
	}
	took, err := w.within(limit)
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // for the gateway to say how many sessions there were
	given, repeats, sessions := w.state()
	fmt.Printf("%-24s %8s %8s %9d %9d %8d\n", f.name, f.lasts, took.Round(100*time.Millisecond), given-given0, repeats-repeats0, sessions-sessions0)
	if repeats-repeats0 > 20*(sessions-sessions0+1) {
		return broken("more repeats than a window for each lost connection")
	}
	return nil
}

// dead counts the attempts at a network that takes nothing.
func (w *world) dead(lasts time.Duration) error {
	w.gw.stop()
	if err := w.startGateway(time.Minute); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	// A SYN is one attempt; those that the kernel repeats are not counted:
	// REJECT answers the first.
	count := []string{"INPUT", "-p", "tcp", "--syn", "--dport", port, "-j", "REJECT", "--reject-with", "tcp-reset"}
	if err := in(brokerNS, "iptables", append([]string{"-A"}, count...)...); err != nil {
		return err
	}
	w.stopBroker()
	ctx, cancel := context.WithTimeout(context.Background(), lasts)
	defer cancel()
	<-ctx.Done()
	n := w.packets("REJECT")
	err := errors.Join(in(brokerNS, "iptables", append([]string{"-D"}, count...)...), w.startBroker())
	most := int(60*lasts.Hours()) + 6 // the first minute is quicker
	fmt.Printf("dead for %s: %d attempts (at most %d)\n", lasts, n, most)
	switch {
	case err != nil:
		return err
	case n == 0:
		return errors.New("the fault did not fire")
	case n > most:
		return broken("too many attempts")
	}
	_, err = w.within(2*time.Minute + 5*time.Second)
	return err
}
