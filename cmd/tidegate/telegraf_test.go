package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tidegate/driver/profile"
	"tidegate/internal/sim"
)

// TestRecipesTelegraf runs the recipe of docs/recipes.md in Telegraf itself,
// over TLS with certificates, beside the real agent and with messages as large
// as a batch can be. Whatever the broker has comes out of Telegraf, also when
// its output stands still for a while or it is killed meanwhile. It needs
// telegraf on the PATH or in TIDEGATE_TELEGRAF; make proof-recipes builds it.
func TestRecipesTelegraf(t *testing.T) {
	telegraf := os.Getenv("TIDEGATE_TELEGRAF")
	if telegraf == "" {
		var err error
		if telegraf, err = exec.LookPath("telegraf"); err != nil {
			t.Skip("make proof-recipes runs it")
		}
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "recipes.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "## Telegraf")
	_, text, _ = strings.Cut(text, "```toml\n")
	influx, text, _ := strings.Cut(text, "```\n")
	_, text, _ = strings.Cut(text, "```toml\n")
	records, _, ok := strings.Cut(text, "```\n")
	if !ok {
		t.Fatal("docs/recipes.md has no two blocks for Telegraf")
	}
	records = strings.TrimSuffix(influx, "  data_format = \"influx\"\n") + records
	bin := buildBinary(t)
	for _, c := range []struct {
		shape, conf string
		kill        bool
	}{{"influx", influx, false}, {"influx", influx, true}, {"records", records, false}, {"records", records, true}} {
		t.Run(fmt.Sprintf("%s/kill=%v", c.shape, c.kill), func(t *testing.T) {
			t.Parallel()
			recipeTelegraf(t, bin, telegraf, c.shape, c.conf, c.kill)
		})
	}
}

func recipeTelegraf(t *testing.T, bin, telegraf, shape, conf string, kill bool) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	ca, err := sim.NewCA("recipes")
	if err == nil {
		err = errors.Join(ca.WriteServer(dir, "localhost"), ca.WriteIdentity(dir, "telegraf"))
	}
	if err != nil {
		t.Fatal(err)
	}
	tls := freePort(t)
	logged := filepath.Join(dir, "broker.log")
	port := startBroker(t, dir, "user root", "log_type all", "log_dest file "+logged, "listener "+tls+" 127.0.0.1", "require_certificate true",
		"cafile "+dir+"/ca.crt", "certfile "+dir+"/server.crt", "keyfile "+dir+"/server.key")
	broker := func(text string) int {
		b, _ := os.ReadFile(logged)
		return strings.Count(string(b), text)
	}

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()

	// The output is a pipe, which stands still until somebody reads it.
	pipe := filepath.Join(dir, "out")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	conf = strings.ReplaceAll(strings.ReplaceAll(conf, "mqtt.city.example:8883", "localhost:"+tls), "/etc/telegraf/", dir+"/")
	conf += "[[outputs.file]]\n  files = [" + strconv.Quote(pipe) + "]\n  data_format = \"influx\"\n  influx_sort_fields = true\n"
	first := start(t, telegraf, "--config", write("telegraf.conf", conf))
	record := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", port, "-i", "recorder", "-q", "1", "-t", "tg/v1/+/+/up", "-t", "tg/v1/+/+/event", "-F", "%t %x")
	recorded, err := os.Create(filepath.Join(dir, "recorded"))
	if err != nil {
		t.Fatal(err)
	}
	record.Stdout = recorded
	if err := record.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { record.Process.Kill(); record.Wait(); recorded.Close() }()
	waitFor(t, 60*time.Second, "Telegraf and the recorder have subscribed", func() bool {
		return broker("Sending SUBACK to telegraf-city") > 0 && broker("Sending SUBACK to recorder") > 0
	})

	// A meter with a point that it does not have.
	s := sim.NewSlave()
	var polls atomic.Uint32
	s.Unit(1).Live(profile.Holding, 0, 2, func(_ time.Time, regs []uint16) {
		x := math.Float32bits(float32(polls.Add(1)) + 0.5)
		regs[0], regs[1] = uint16(x>>16), uint16(x)
	})
	s.Unit(1).Set(profile.Coils, 0, 1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { s.ServeTCP(ctx, ln) })
	config := write("tidegate.yaml", fmt.Sprintf("gateway: {id: a, site: s}\nbuses:\n  b: {connect: %q, devices: {m: {unit: 1, every: 200ms, points: "+
		"{u: {holding: 0, type: f32}, on: {coil: 0}, no2: {holding: 500}}}}}\nuplink: {url: \"mqtts://localhost:%s\", identity: %[3]s, shape: %[4]s, batch: {max_age: 400ms}}\n"+
		"buffer: {dir: %[3]s/state}\nstatus: {socket: %[3]s/agent.sock}\nlog: {level: warn}\n", "tcp://"+ln.Addr().String(), tls, dir, shape))
	agent := start(t, bin, "run", "--config", config)
	messages := func() (lines []string) {
		b, err := os.ReadFile(recorded.Name())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}
	waitFor(t, 60*time.Second, "the agent's batches", func() bool { return len(messages()) >= 4 })
	agent.Process.Signal(syscall.SIGTERM)
	agent.Wait()

	// 40 batches with as many lines as one can have, what is no batch, and an event.
	publish := func(kind, body string) { mosquittoPub(t, port, "tg/v1/s/big/"+kind, body) }
	if shape == "influx" {
		const envelope = `,gw=big,lane=data v=1i,ep="0000000b",lo=1i,boot=1i,`
		for k := range 40 {
			body := fmt.Sprintf("tidegate_batch%sseq=%di,m=\"2489d7cd\",clk=\"ok\",h=false,n=1000i %d000000\n", envelope, k+1, 1764000000000+k)
			for i := range 1000 {
				body += fmt.Sprintf("tidegate,dev=m%d,gw=big u=%d.5 %d000000\n", k, i, 1764000000000+i)
			}
			publish("up", body)
		}
		publish("up", "{rubbish")
		publish("up", "tidegate_loss"+envelope+`from=41i,to=43i,batches=3i,readings=9i,t0=1764000000000i,t1=1764000000001i,why="full" 1764000000000000000`)
		publish("event", "tidegate,dev=door,gw=big open=true 1764000000001000000")
	} else {
		const envelope = `{"v":1,"gw":"big","ep":"0000000b","lane":"data","lo":1,"boot":1,"sent":1764000000000,"m":"2489d7cd","clk":"ok",`
		for k := range 40 {
			body := fmt.Sprintf(`%s"seq":%d,"records":[`, envelope, k+1)
			for i := range 1000 {
				body += fmt.Sprintf(`{"dev":"m%d","t":%d,"values":{"u":%d.5}},`, k, 1764000000000+i, i)
			}
			publish("up", strings.TrimSuffix(body, ",")+"]}")
		}
		publish("up", "{rubbish")
		publish("up", envelope+`"dropped":{"from":41,"to":43,"batches":3,"readings":9,"t0":1764000000000,"t1":1764000000001,"why":"full"}}`)
		publish("event", envelope+`"seq":1,"records":[{"dev":"door","t":1764000000001,"values":{"open":true}}]}`)
	}
	waitFor(t, 60*time.Second, "as many messages without PUBACK as mosquitto sends", func() bool {
		return broker("Sending PUBLISH to telegraf-city")-broker("Received PUBACK from telegraf-city") >= 20
	})
	time.Sleep(2 * time.Second) // for Telegraf to read them; with less, faults may pass
	if kill {
		first.Process.Kill()
		first.Wait()
	}
	var mu sync.Mutex
	got := map[string]bool{}
	wg.Go(func() {
		in := bufio.NewScanner(out)
		for in.Scan() {
			mu.Lock()
			got[in.Text()] = true
			mu.Unlock()
		}
	})
	if kill {
		out.WriteString("\n") // the line that was cut off
		start(t, telegraf, "--config", filepath.Join(dir, "telegraf.conf"))
	}

	want := map[string]bool{}
	for _, line := range messages() {
		topic, text, _ := strings.Cut(line, " ")
		body, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range telegrafLines(t, shape, topic, body) {
			want[line] = true
		}
	}
	var lacking []string
	defer func() {
		if t.Failed() {
			slices.Sort(lacking)
			t.Logf("of %d lines %d are lacking, the first %q", len(want), len(lacking), lacking[:min(5, len(lacking))])
		}
	}()
	for _, part := range map[string][]string{
		"influx":  {"dev=m,gw=a,topic=tg/v1/s/a/up no2.cause=", " on=true ", " u=", "tidegate_loss,", "topic=tg/v1/s/big/event open=true"},
		"records": {"dev=m,topic=tg/v1/s/a/up cause_no2=", "values_on=true ", "values_u=", "topic=tg/v1/s/big/event values_open=true"},
	}[shape] {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(want)), func(line string) bool { return strings.Contains(line, part) }) {
			t.Errorf("the broker had no %s", part)
		}
	}
	waitFor(t, 120*time.Second, "everything that the broker had", func() bool {
		mu.Lock()
		defer mu.Unlock()
		lacking = slices.DeleteFunc(slices.Collect(maps.Keys(want)), func(line string) bool { return got[line] })
		return len(lacking) == 0
	})
	mu.Lock()
	defer mu.Unlock()
	more := slices.DeleteFunc(slices.Collect(maps.Keys(got)), func(line string) bool { return want[line] })
	if most := map[bool]int{true: 1}[kill]; len(more) > most { // the line that was cut off
		t.Errorf("%d lines that the broker never had, such as %q", len(more), more[0])
	}
}

// telegrafLines is what a message becomes in Telegraf: a tag more, and for
// records the names that the page tells.
func telegrafLines(t *testing.T, shape, topic string, body []byte) (lines []string) {
	if bytes.HasPrefix(body, []byte("{rubbish")) {
		return nil
	}
	add := func(series string, fields []string, at string) {
		slices.SortFunc(fields, func(a, b string) int {
			a, _, _ = strings.Cut(a, "=")
			b, _, _ = strings.Cut(b, "=")
			return strings.Compare(a, b)
		})
		lines = append(lines, series+",topic="+topic+" "+strings.Join(fields, ",")+" "+at)
	}
	if shape == "influx" {
		for line := range strings.Lines(string(body)) {
			part := strings.Split(strings.TrimSpace(line), " ") // no name here has a space or a comma
			add(part[0], strings.Split(part[1], ","), part[2])
		}
		return lines
	}
	var m struct {
		Records []struct {
			Dev              string
			T                int64
			Values, Q, Cause map[string]any
		}
	}
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	for _, r := range m.Records {
		var fields []string
		for prefix, of := range map[string]map[string]any{"values_": r.Values, "q_": r.Q, "cause_": r.Cause} {
			for point, v := range of {
				text, _ := json.Marshal(v)
				fields = append(fields, prefix+point+"="+string(text))
			}
		}
		add("tidegate,dev="+r.Dev, fields, fmt.Sprintf("%d000000", r.T))
	}
	return lines
}
