package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/command"
	"tidegate/internal/sim"
)

// cloud is the other side of the commands: a broker that an agent talks to,
// with a device behind the agent.
type cloud struct {
	t      *testing.T
	dir    string
	config string
	broker *sim.Broker
	unit   *sim.Unit
	bin    string
	agent  *exec.Cmd

	form func(id string, f map[string]any) []byte // of a good command

	mu    sync.Mutex
	acks  map[string][]string // by id: state and code
	audit []string            // lines that came as events
	wake  chan struct{}
}

func newCloud(t *testing.T, uplink string, form func(id string, f map[string]any) []byte) *cloud {
	if _, err := exec.LookPath("mosquitto_pub"); err != nil {
		missing(t, "mosquitto_pub")
	}
	c := &cloud{t: t, dir: t.TempDir(), bin: buildBinary(t), form: form, acks: map[string][]string{}, wake: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	var err error
	if c.broker, err = sim.NewBroker(sim.BrokerOptions{OnPublish: c.hear}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.broker.Close() })
	if err := c.broker.CA().WriteIdentity(filepath.Join(c.dir, "pki"), "gw"); err != nil {
		t.Fatal(err)
	}
	slave := sim.NewSlave()
	c.unit = slave.Unit(1)
	c.unit.Set(profile.Holding, 0, 300)
	c.unit.Set(profile.Holding, 1, 0)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { slave.ServeTCP(ctx, ln) })
	c.config = filepath.Join(c.dir, "tidegate.yaml")
	text := fmt.Sprintf(`gateway: {id: gw, clock: system}
writes: allow
buses:
  plant:
    connect: tcp://%s
    devices:
      boiler:
        unit: 1
        every: 1s
        points:
          setpoint: {holding: 0, scale: 0.1, unit: Cel, write: {min: 30, max: 80, step: 0.5, every: 10ms}}
          locked: {holding: 1}
buffer: {dir: %s, size: 64MB}
uplink: {url: %q, identity: %s, %s}
status: {socket: %s}
`, ln.Addr(), filepath.Join(c.dir, "buffer"), c.broker.URL(), filepath.Join(c.dir, "pki"), uplink, filepath.Join(c.dir, "agent.sock"))
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start()
	return c
}

func (c *cloud) start() {
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	c.agent = exec.Command(c.bin, "run", "--config", c.config)
	c.agent.Stderr = log
	if err := c.agent.Start(); err != nil {
		c.t.Fatal(err)
	}
	agent := c.agent
	c.t.Cleanup(func() {
		agent.Process.Signal(syscall.SIGTERM)
		agent.Wait()
		log.Close()
		if c.t.Failed() {
			b, _ := os.ReadFile(log.Name())
			c.t.Logf("%s", b)
		}
	})
	if c.form == nil {
		return // Sparkplug: nobody answers a ping
	}
	c.until("the agent", func() bool { return len(c.acksOf("hello")) > 0 }, func() {
		c.send(c.form("hello", map[string]any{"op": "ping"}), false)
	})
}

func (c *cloud) hear(topic string, payload []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case strings.HasSuffix(topic, "/ack"):
		var a struct{ ID, State, Code string }
		json.Unmarshal(payload, &a)
		c.acks[a.ID] = append(c.acks[a.ID], strings.TrimSpace(a.State+" "+a.Code))
	case strings.HasSuffix(topic, "/event"):
		var m struct {
			Records []struct {
				Dev    string
				Values struct{ Audit string }
			}
		}
		json.Unmarshal(payload, &m)
		for _, r := range m.Records {
			if r.Dev == "commands" {
				c.audit = append(c.audit, r.Values.Audit)
			}
		}
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// held is what the setpoint's register holds.
func (c *cloud) held() uint16 {
	v, ok := c.unit.Get(profile.Holding, 0, 1)
	if !ok {
		c.t.Fatal("the register is gone")
	}
	return v[0]
}

func (c *cloud) acksOf(id string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.acks[id]...)
}

// until waits for something, and does again what may have been too early.
func (c *cloud) until(what string, ok func() bool, again func()) {
	c.t.Helper()
	for end := time.Now().Add(90 * time.Second); !ok(); {
		if time.Now().After(end) {
			c.t.Fatalf("waited 90 s for %s", what)
		}
		if again != nil {
			again()
		}
		select {
		case <-c.wake:
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// plain is a command without a signature.
func plain(id string, f map[string]any) []byte {
	m := map[string]any{"id": id, "op": "write", "exp": time.Now().Add(time.Minute).UnixMilli(), "by": "ops@city"}
	if f["op"] == nil {
		m["dev"], m["point"] = "boiler", "setpoint"
	}
	for k, v := range f {
		m[k] = v
	}
	b, _ := json.Marshal(m)
	return b
}

// send publishes commands, one a line, with mosquitto's client.
func (c *cloud) send(body []byte, retained bool) {
	c.t.Helper()
	_, port, _ := net.SplitHostPort(c.broker.Addr())
	pki := filepath.Join(c.dir, "pki")
	args := []string{"-h", "127.0.0.1", "-p", port, "--cafile", filepath.Join(pki, "ca.crt"), "--cert", filepath.Join(pki, "client.crt"),
		"--key", filepath.Join(pki, "client.key"), "-q", "1", "-t", "tg/v1/site/gw/cmd", "-l"}
	if retained {
		args = append(args, "-r")
	}
	pub := exec.Command("mosquitto_pub", args...)
	pub.Stdin = strings.NewReader(string(body) + "\n")
	if out, err := pub.CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
}

// ask sends a command and returns what it was told.
func (c *cloud) ask(id string, f map[string]any) string {
	c.t.Helper()
	n := len(c.acksOf(id))
	c.send(c.form(id, f), false)
	c.until("the answer to "+id, func() bool { return len(c.acksOf(id)) > n }, nil)
	return c.acksOf(id)[n]
}

// TestCommands: what a cloud asks is done or refused, once, and written down,
// also over a kill -9.
func TestCommands(t *testing.T) {
	c := newCloud(t, "commands: true, command_lockout: "+filepath.Join(t.TempDir(), "no-commands"), plain)
	for _, x := range []struct {
		id   string
		f    map[string]any
		want string
		held uint16
	}{
		{"w1", map[string]any{"value": 33.5}, "done", 335},
		{"w1", map[string]any{"value": 44}, "done", 335}, // the answer of the first, and nothing is done
		{"w2", map[string]any{"value": 90}, "failed write-limits", 335},
		{"w3", map[string]any{"value": 33.7}, "failed write-limits", 335},
		{"w4", map[string]any{"value": "hot"}, "failed write-value", 335},
		{"w5", map[string]any{"value": 40, "point": "locked"}, "failed read-only", 335},
		{"w6", map[string]any{"value": 40, "dev": "kettle"}, "failed no-such-name", 335},
		{"w7", map[string]any{"value": 40, "exp": 1}, "refused expired", 335},
		{"w8", map[string]any{"value": 40, "gw": "another"}, "refused foreign", 335},
		{"w9", map[string]any{"value": 41}, "done", 410},
		{"r1", map[string]any{"op": "read", "dev": "boiler", "point": "setpoint"}, "done", 410},
		{"m1", map[string]any{"op": "meta"}, "done", 410},
		{"x1", map[string]any{"op": "rate", "rate": 1000}, "done", 410},
		{"s1", map[string]any{"op": "resend", "from": 1, "to": 5}, "done", 410},
	} {
		if got := c.ask(x.id, x.f); got != x.want || c.held() != x.held {
			t.Errorf("%s %v: %q and the device holds %d, want %q and %d", x.id, x.f, got, c.held(), x.want, x.held)
		}
	}
	// Killed: what was taken is not taken again.
	c.agent.Process.Kill()
	c.agent.Wait()
	c.mu.Lock()
	c.acks = map[string][]string{}
	c.mu.Unlock()
	c.start()
	if got := c.ask("w9", map[string]any{"value": 55}); got != "refused replayed" || c.held() != 410 {
		t.Errorf("after kill -9: %q, the device holds %d", got, c.held())
	}
	n, err := command.Check(filepath.Join(c.dir, "buffer", "audit.log"))
	if err != nil || n < 20 {
		t.Errorf("the record has %d lines: %v", n, err)
	}
	c.until("the record as events", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.audit) >= n
	}, nil)
}

// TestCommandFlood: a thousand commands of the wrong kinds reach an agent
// that wants them signed: none is carried out, all are in the record, and a
// good one still works.
func TestCommandFlood(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "command.pub")
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	count := 0
	sign := func(gateway string, cmd []byte) []byte {
		b, _ := json.Marshal(map[string]string{"cmd": string(cmd),
			"sig": base64.StdEncoding.EncodeToString(ed25519.Sign(private, command.Signed(gateway, string(cmd))))})
		return b
	}
	good := func(id string, f map[string]any) []byte {
		count++
		f["gw"], f["n"] = "gw", count
		return sign("gw", plain(id, f))
	}
	c := newCloud(t, "commands: true, command_key: "+key, good)
	first := good("first", map[string]any{"value": 50})
	c.send(first, false)
	c.until("the first answer", func() bool { return len(c.acksOf("first")) == 1 }, nil)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	var bad []string
	for i := range 900 {
		id := fmt.Sprint("bad-", i)
		f := map[string]any{"value": 70, "gw": "gw", "n": count + 1000 + i}
		switch rng.IntN(6) {
		case 0:
			bad = append(bad, string(first))
		case 1:
			f["exp"] = time.Now().Add(-time.Second).UnixMilli()
			bad = append(bad, string(sign("gw", plain(id, f))))
		case 2:
			f["gw"] = "another"
			bad = append(bad, string(sign("another", plain(id, f))))
		case 3:
			f["n"] = 1
			bad = append(bad, string(sign("gw", plain(id, f))))
		case 4:
			bad = append(bad, string(plain(id, f)))
		case 5:
			b := sign("gw", plain(id, f))
			b[rng.IntN(len(b)/2)] ^= 2
			bad = append(bad, strings.ReplaceAll(string(b), "\n", " "))
		}
	}
	c.send([]byte(strings.Join(bad, "\n")), false)
	var limits []string
	for i := range 100 { // signed well, and out of range
		limits = append(limits, string(good(fmt.Sprint("hot-", i), map[string]any{"value": 81 + i})))
	}
	c.send([]byte(strings.Join(limits, "\n")), false)
	c.until("the answers to what is out of range", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := 0
		for id := range c.acks {
			if strings.HasPrefix(id, "hot-") {
				n++
			}
		}
		return n == len(limits)
	}, nil)
	c.send(good("kept", map[string]any{"value": 70}), true) // live for this one, retained for the next start
	c.until("the end", func() bool { return len(c.acksOf("kept")) == 1 }, nil)
	if got := c.acksOf("kept")[0]; got != "done" {
		t.Fatalf("a good command after the flood: %s", got)
	}
	if v := c.held(); v != 700 {
		t.Errorf("the device holds %d", v)
	}
	c.mu.Lock()
	for id, states := range c.acks {
		for _, s := range states {
			if s == "done" && id != "first" && id != "kept" && id != "hello" {
				t.Errorf("%s was done", id)
			}
		}
	}
	c.mu.Unlock()
	log := filepath.Join(c.dir, "buffer", "audit.log")
	n, err := command.Check(log)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := os.ReadFile(log + ".1")
	tail, _ := os.ReadFile(log)
	all := string(raw) + string(tail)
	if refused, hot := strings.Count(all, `"what":"refused"`), strings.Count(all, `"code":"write-limits"`)+strings.Count(all, `"code":"busy"`); refused < 900 || hot < 100 {
		t.Errorf("%d lines: %d refusals, %d out of range", n, refused, hot)
	}
	c.unit.Set(profile.Holding, 0, 333)
	c.agent.Process.Signal(syscall.SIGTERM)
	c.agent.Wait()
	c.mu.Lock()
	c.acks = map[string][]string{}
	c.mu.Unlock()
	c.start()
	if got := c.held(); got != 333 {
		t.Errorf("the retained command was carried out by the next start: %d", got)
	}
	if got := c.acksOf("kept"); len(got) != 1 || got[0] == "done" {
		t.Errorf("the retained command was told %q", got)
	}
}

// TestSparkplugWrites: a host on npm sparkplug-payload writes points by DCMD.
// What is not refused is written, read back and comes as data; what is late,
// repeated, reordered, retained, of a clock that runs ahead, out of range or
// for a point that nobody may write changes nothing. The record has them all.
func TestSparkplugWrites(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		missing(t, "node")
	}
	modules := npm(t, "sparkplug-payload")
	c := newCloud(t, "shape: sparkplug, commands: true, sparkplug: {writes: true, datatypes: true}, batch: {max_age: 100ms}", nil)
	host := exec.Command("node", filepath.Join("..", "..", "testdata", "peer", "npm", "host.js"), c.broker.URL(), filepath.Join(c.dir, "pki"), "site", "scada")
	host.Env = append(os.Environ(), "NODE_PATH="+modules)
	host.Stderr = os.Stderr
	in, err := host.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[string]bool{} // "DDATA boiler setpoint 33.5"
	var audit []string
	var wg sync.WaitGroup
	wg.Go(func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var w struct {
				Kind, Device string
				Ready        bool
				Metrics      []struct {
					Name  string
					Value any
				}
			}
			json.Unmarshal(lines.Bytes(), &w)
			mu.Lock()
			seen["ready"] = seen["ready"] || w.Ready
			for _, m := range w.Metrics {
				seen[strings.Join([]string{w.Kind, w.Device, m.Name, fmt.Sprint(m.Value)}, " ")] = true
				if m.Name == "audit" && m.Value != nil {
					audit = append(audit, fmt.Sprint(m.Value))
				}
			}
			mu.Unlock()
		}
	})
	t.Cleanup(func() { in.Close(); wg.Wait(); host.Wait() })
	has := func(what string) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return seen[what] }
	}
	waitFor(t, 30*time.Second, "the host", has("ready"))
	waitFor(t, 30*time.Second, "the device's birth", func() bool {
		fmt.Fprintln(in, "rebirth gw")
		time.Sleep(time.Second)
		return has("DBIRTH boiler setpoint 30")()
	})
	at := time.Now().UnixMilli()
	fmt.Fprintf(in, "write gw boiler setpoint 33.5 %d\n", at)
	waitFor(t, 20*time.Second, "the value as data", has("DDATA boiler setpoint 33.5"))
	holds := func(want uint16) {
		t.Helper()
		if got, _ := c.unit.Get(profile.Holding, 0, 1); len(got) != 1 || got[0] != want {
			t.Errorf("the register holds %d, and not %d", got, want)
		}
	}
	holds(335)
	for _, w := range []string{
		fmt.Sprintf("setpoint 44.0 %d", at),        // the same again, with another value
		fmt.Sprintf("setpoint 45.0 %d", at-5000),   // overtaken
		fmt.Sprintf("setpoint 46.0 %d", at-90000),  // from the store of a broker
		fmt.Sprintf("setpoint 47.0 %d", at+600000), // from a host whose clock runs ahead
		fmt.Sprintf("setpoint 48.0 %d retain", at+1),
		fmt.Sprintf("setpoint 99.0 %d", at+2),
		fmt.Sprintf("setpoint 33.7 %d", at+3), // no step
		fmt.Sprintf("locked 1 %d", at+4),
		fmt.Sprintf("nothing 1 %d", at+5),
	} {
		fmt.Fprintln(in, "write gw boiler", w)
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Fprintf(in, "write gw elsewhere setpoint 40 %d\n", at+6)
	codes := func() (all []string) {
		b, _ := os.ReadFile(filepath.Join(c.dir, "buffer", "audit.log"))
		for line := range strings.Lines(string(b)) {
			var e struct{ What, On, Code string }
			if json.Unmarshal([]byte(line), &e) == nil && e.What != "taken" {
				all = append(all, strings.TrimSpace(e.On+" "+e.What+" "+e.Code))
			}
		}
		return all
	}
	want := []string{"boiler/setpoint done", "boiler/setpoint refused replayed", "boiler/setpoint refused reordered", "boiler/setpoint refused expired",
		"boiler/setpoint refused exp-too-far", "boiler/setpoint failed write-limits", "boiler/setpoint failed write-limits", "boiler/locked failed read-only",
		"boiler/nothing failed no-such-name", "elsewhere/setpoint failed no-such-name"}
	// A broker gives a retained message to who is there as any other: taken. Only who comes later sees that it was kept.
	var got []string
	waitFor(t, 20*time.Second, "the record", func() bool { got = codes(); return len(got) == len(want)+1 })
	for _, w := range want {
		i := slices.Index(got, w)
		if i < 0 {
			t.Errorf("the record lacks %q: %q", w, got)
			continue
		}
		got = slices.Delete(got, i, i+1)
	}
	if len(got) != 1 || got[0] != "boiler/setpoint done" {
		t.Errorf("besides, the record says %q", got)
	}
	holds(480)
	if len(c.acks) != 0 {
		t.Errorf("answers on a topic of ours: %v", c.acks)
	}
	waitFor(t, 20*time.Second, "the record at the host", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.ContainsFunc(audit, func(s string) bool { return strings.Contains(s, `"code":"reordered"`) })
	})
	// The broker goes; the session that follows gets what it has kept, and refuses it.
	c.broker.Cut()
	time.Sleep(100 * time.Millisecond)
	if err := c.broker.Restore(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 60*time.Second, "the refusal of what was retained", func() bool { return slices.Contains(codes(), "boiler/setpoint refused retained") })
	if code, out, errs := runVerb("verify", "--audit", filepath.Join(c.dir, "buffer", "audit.log")); code != 0 {
		t.Errorf("the record: %d %s%s", code, out, errs)
	}
}
