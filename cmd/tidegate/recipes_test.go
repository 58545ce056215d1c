package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
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
	"os/user"
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

// npm is the folder of the packages that `make peers` has put in place.
func npm(t *testing.T, name string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	modules := filepath.Join(cache, "tidegate-peers", "node_modules")
	if _, none := os.Stat(filepath.Join(modules, name)); err != nil || none != nil {
		missing(t, "npm "+name)
	}
	return modules
}

// psycopg2 ends a test where the consumer in Python cannot run.
func psycopg2(t *testing.T) {
	t.Helper()
	if exec.Command("/usr/bin/python3", "-c", "import psycopg2, paho.mqtt.client").Run() != nil {
		missing(t, "psycopg2 or paho-mqtt")
	}
}

// postgres starts a server of its own on a socket in a folder of its own, and
// returns the environment in which psql finds it. PostgreSQL refuses root: then
// it runs as nobody.
func postgres(t *testing.T) []string {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // Debian keeps them off the PATH
	initdb, err := exec.LookPath("initdb")
	if len(bins) > 0 {
		initdb, err = slices.Max(bins), nil
	}
	if err != nil {
		missing(t, "initdb of postgresql")
	}
	if _, err := exec.LookPath("psql"); err != nil {
		missing(t, "psql")
	}
	dir, err := os.MkdirTemp("/tmp", "pg") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	as := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(nobody.Uid)
		gid, _ := strconv.Atoi(nobody.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(dir, "db")
	command := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(name, args...)
		c.Dir, c.SysProcAttr = dir, as
		return c
	}
	if out, err := command(initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	server := command(filepath.Join(filepath.Dir(initdb), "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-F")
	var said strings.Builder
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGQUIT) // at once, its children too
		server.Wait()
		if t.Failed() {
			t.Logf("postgres: %s", said.String())
		}
	})
	env := []string{"PGHOST=" + dir, "PGUSER=postgres", "PGDATABASE=postgres"}
	waitFor(t, 30*time.Second, "postgres answers", func() bool {
		c := exec.Command("psql", "-qAtc", "SELECT 1")
		c.Env = append(os.Environ(), env...)
		return c.Run() == nil
	})
	return env
}

// recipe writes a file of docs/recipes.md, as it stands there, into dir.
func recipe(t *testing.T, dir, name string) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "recipes.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "cat > "+name+" <<'END'\n")
	text, _, ok := strings.Cut(text, "\nEND\n")
	if !ok {
		t.Fatalf("docs/recipes.md has no file %s", name)
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// startBroker starts a mosquitto on loopback that takes everybody, and returns
// its port. Lines of more follow in its configuration.
func startBroker(t *testing.T, dir string, more ...string) (port string) {
	t.Helper()
	port = freePort(t)
	conf := filepath.Join(dir, "mosquitto.conf")
	lines := append([]string{"listener " + port + " 127.0.0.1", "allow_anonymous true", "max_queued_messages 0"}, more...)
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "mosquitto", "-c", conf)
	waitFor(t, 10*time.Second, "the broker", func() bool {
		return exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-t", "x", "-n").Run() == nil
	})
	return port
}

// mosquittoPub publishes body, compressed for a topic that ends in /gz, and returns what it sent.
func mosquittoPub(t *testing.T, port, topic, body string) []byte {
	t.Helper()
	payload := []byte(body)
	if strings.HasSuffix(topic, "/gz") {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(payload)
		z.Close()
		payload = b.Bytes()
	}
	c := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-q", "1", "-t", topic, "-s")
	c.Stdin = bytes.NewReader(payload)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_pub: %v %s", err, out)
	}
	return payload
}

// TestRecipesAccount gives the consumers of docs/recipes.md messages with
// gaps, tombstones, repeats and rubbish. What they say is missing is what
// `tidegate verify` says, also after a database that failed, a consumer that
// was killed and a line that was cut off; a repeat changes no table.
func TestRecipesAccount(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"mosquitto", "mosquitto_pub", "node"} {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, p)
		}
	}
	psycopg2(t)
	env := append(os.Environ(), "NODE_PATH="+npm(t, "mqtt"))
	env = append(env, postgres(t)...)
	dir := t.TempDir()
	port := startBroker(t, dir)
	var recorded strings.Builder // as mosquitto_sub -F '%t %x' writes it
	publish := func(topic, body string) {
		t.Helper()
		fmt.Fprintf(&recorded, "%s %x\n", topic, mosquittoPub(t, port, topic, body))
	}
	psql := func(args ...string) string {
		t.Helper()
		c := exec.Command("psql", append([]string{"-qAt", "-v", "ON_ERROR_STOP=1"}, args...)...)
		c.Env = env
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("psql %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	schema, missingSQL := recipe(t, dir, "schema.sql"), recipe(t, dir, "missing.sql")
	psql("-f", schema)
	psql("-f", schema) // again does no harm
	consume := func(out *bytes.Buffer, name string, args ...string) *exec.Cmd {
		t.Helper()
		c := exec.Command(name, args...)
		c.Dir, c.Env = dir, env
		c.Stdout, c.Stderr = out, out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		return c
	}
	table, script := recipe(t, dir, "table.py"), recipe(t, dir, "consumer.js")
	stored := filepath.Join(dir, "stored.jsonl")
	has := func(text string) func() bool {
		return func() bool {
			b, _ := os.ReadFile(stored)
			return strings.Contains(string(b), text)
		}
	}

	var said, errs bytes.Buffer
	python := consume(&errs, "/usr/bin/python3", table, "127.0.0.1", port)
	js := consume(&said, "node", script, "mqtt://127.0.0.1:"+port)
	// Their sessions stand when a retained message has come to both.
	publishRetained := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-q", "1", "-r", "-t", "tg/v1/s/first/up", "-m",
		`{"v":1,"gw":"first","ep":"00000000","lane":"data","seq":1,"lo":1,"sent":1764000000000,"records":[]}`)
	if err := publishRetained.Run(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 30*time.Second, "both have subscribed", func() bool {
		return has(`"gw":"first"`)() && psql("-c", "SELECT count(*) FROM batches WHERE gateway = 'first'") == "1"
	})

	up := "tg/v1/s/a/up"
	batch := func(seq, lo, sent int) string {
		return fmt.Sprintf(`{"v":1,"gw":"a","ep":"0000000a","lane":"data","seq":%d,"lo":%d,"sent":%d,"m":"2489d7cd","clk":"ok","records":[`+
			`{"dev":"m","t":1764000000%03d,"values":{"u":%d.5,"on":true,"name":"x"},"q":{"no2":"comm"}}]}`, seq, lo, sent, seq, seq)
	}
	publish(up, batch(1, 1, 1764000000000))
	publish(up, batch(2, 1, 1764000000000))
	publish(up, "{rubbish")
	publish(up+"/gz", "{rubbish")
	publish(up, batch(3, 1, 1764000000000))
	publish(up, batch(3, 2, 1764000009999)) // a repeat
	publish(up+"/gz", `{"v":1,"gw":"a","ep":"0000000a","lane":"data","seq":5,"lo":5,"sent":1764000000000,"m":"2489d7cd","clk":"ok","columns":[`+
		`{"dev":"m","t0":1764000001000,"dt":[0,1000,-500],"values":{"u":[1,null,3.25]},"q":{"u":[null,"comm","range"]}}]}`)
	lost := `{"v":1,"gw":"a","ep":"0000000a","lane":"data","lo":5,"boot":1,"sent":1764000000000,"m":"2489d7cd","clk":"ok",` +
		`"dropped":{"from":6,"to":8,"batches":3,"readings":30,"t0":1764000000000,"t1":1764000000000,"why":"full"}}`
	publish(up, lost)
	publish(up, lost)
	publish(up, batch(12, 10, 1764000000000))
	publish("tg/v1/s/a/event", `{"v":1,"gw":"a","ep":"0000000a","lane":"event","seq":1,"lo":1,"sent":1764000000000,"m":"2489d7cd","clk":"ok","records":[]}`)
	publish("tg/v1/s/a/status", `{"v":1,"gw":"a","ep":"0000000a","state":"online","boot":1,"sent":1764000000000,"lo":{"data":10,"event":2},"seq":{"data":14,"event":1},"backlog":{"batches":0}}`)

	waitFor(t, 30*time.Second, "both have the last of them", func() bool {
		return has(`"lane":"event"`)() && psql("-c", "SELECT count(*) FROM numbers WHERE gateway = 'a' AND high = 14") == "1"
	})
	want := "a|0000000a|data|lost|4|4\na|0000000a|data|lost|9|9\na|0000000a|data|late|10|11\na|0000000a|data|late|13|14"
	if got := psql("-f", missingSQL); got != want {
		t.Errorf("missing.sql says\n%s\nand not\n%s", got, want)
	}
	if got := psql("-c", "SELECT first, last, why, readings FROM tombstones"); got != "6|8|full|30" {
		t.Errorf("tombstones: %s", got)
	}
	cells := "SELECT seq, extract(epoch FROM at)::numeric(14,3), point, value, text, quality FROM readings WHERE seq IN (3, 5) ORDER BY seq, at, point"
	wantCells := "3|1764000000.003|name||x|good\n3|1764000000.003|no2|||comm\n3|1764000000.003|on|1||good\n3|1764000000.003|u|3.5||good\n" +
		"5|1764000001.000|u|1||good\n5|1764000001.500|u|3.25||range\n5|1764000002.000|u|||comm"
	if got := psql("-c", cells); got != wantCells {
		t.Errorf("readings:\n%s\nand not\n%s", got, wantCells)
	}
	if !has(`{"dev":"m","point":"u","t":1764000001500,"value":3.25,"q":"range"}`)() {
		t.Error("stored.jsonl lacks a reading of the columns")
	}

	// The database fails: what was not stored is not acknowledged.
	psql("-c", "ALTER TABLE readings RENAME TO away")
	publish(up, batch(10, 10, 1764000000000))
	if err := python.Wait(); err == nil || !strings.Contains(errs.String(), "readings") {
		t.Errorf("the database failed, and table.py ended with %v\n%s", err, errs.String())
	}
	// The other is killed, and had begun a line.
	waitFor(t, 10*time.Second, "number 10 in stored.jsonl", has(`"seq":10,`))
	js.Process.Kill()
	js.Wait()
	f, err := os.OpenFile(stored, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(`{"gw":"a","ep":"0000000a","lane":"data","seq":13,"re`)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	publish(up, batch(11, 10, 1764000000000)) // for nobody who is there
	psql("-c", "ALTER TABLE away RENAME TO readings")
	python = consume(&errs, "/usr/bin/python3", table, "127.0.0.1", port)
	js = consume(&said, "node", script, "mqtt://127.0.0.1:"+port)
	want = "a|0000000a|data|lost|4|4\na|0000000a|data|lost|9|9\na|0000000a|data|late|13|14"
	waitFor(t, 30*time.Second, "10 and 11 in the table, and in stored.jsonl", func() bool { return psql("-f", missingSQL) == want && has(`"seq":11,`)() })
	if got := psql("-c", "SELECT count(*) FROM readings WHERE seq = 10"); got != "4" {
		t.Errorf("batch 10 has %s readings", got)
	}

	js.Process.Signal(syscall.SIGTERM)
	js.Wait()
	file := filepath.Join(dir, "messages")
	if err := os.WriteFile(file, []byte(recorded.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	_, out, stderr := runVerb("verify", "--json", file)
	var account struct {
		Lanes []struct {
			GW, EP, Lane                  string
			Received, Dropped, Late, Lost int
		}
	}
	if err := json.Unmarshal([]byte(out), &account); err != nil || len(account.Lanes) != 2 {
		t.Fatalf("verify: %v\n%s%s", err, out, stderr)
	}
	for _, l := range account.Lanes {
		line := fmt.Sprintf("%s %s %s received %d dropped %d late %d lost %d\n", l.GW, l.EP, l.Lane, l.Received, l.Dropped, l.Late, l.Lost)
		if !strings.Contains(said.String(), line) {
			t.Errorf("verify says %q, and consumer.js\n%s", line, said.String())
		}
	}
	if !strings.Contains(said.String(), "a 0000000a data received 7 dropped 3 late 2 lost 2\n") {
		t.Errorf("consumer.js says\n%s", said.String())
	}
}

// TestRecipesNodeRED runs the function of docs/recipes.md in Node-RED itself:
// readings come out once, repeats do not, tombstones take the second output.
// It needs TIDEGATE_NODE_RED, the folder that `make proof-recipes` fills.
func TestRecipesNodeRED(t *testing.T) {
	modules := os.Getenv("TIDEGATE_NODE_RED")
	if modules == "" {
		t.Skip("make proof-recipes runs it")
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "recipes.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "## Node-RED")
	_, text, _ = strings.Cut(text, "```javascript\n")
	text, _, _ = strings.Cut(text, "```\n")
	dir := t.TempDir()
	port := startBroker(t, dir)
	out := filepath.Join(dir, "out")
	flow := []map[string]any{
		{"id": "tab", "type": "tab", "label": "tidegate"},
		{"id": "broker", "type": "mqtt-broker", "broker": "127.0.0.1", "port": port, "clientid": "node-red", "cleansession": false, "protocolVersion": "4", "keepalive": "60", "autoConnect": true},
		{"id": "in", "type": "mqtt in", "z": "tab", "x": 1, "y": 1, "topic": "tg/v1/+/+/#", "qos": "1", "datatype": "buffer", "broker": "broker", "wires": [][]string{{"f"}}},
		{"id": "f", "type": "function", "z": "tab", "x": 1, "y": 1, "func": text, "outputs": 2, "libs": []map[string]string{{"var": "zlib", "module": "zlib"}}, "wires": [][]string{{"line1"}, {"line2"}}},
		{"id": "line1", "type": "function", "z": "tab", "x": 1, "y": 1, "func": "return {payload: '1 ' + [msg.topic, msg.timestamp, msg.payload, msg.quality].join(' ')};", "outputs": 1, "wires": [][]string{{"file"}}},
		{"id": "line2", "type": "function", "z": "tab", "x": 1, "y": 1, "func": "return {payload: '2 ' + JSON.stringify(msg.payload)};", "outputs": 1, "wires": [][]string{{"file"}}},
		{"id": "file", "type": "file", "z": "tab", "x": 1, "y": 1, "filename": out, "filenameType": "str", "appendNewline": true, "overwriteFile": "false", "wires": [][]string{{}}},
	}
	b, _ := json.Marshal(flow)
	for name, body := range map[string]string{"flows.json": string(b),
		"settings.js": `module.exports = {flowFile: "flows.json", userDir: ` + strconv.Quote(dir) + `, uiHost: "127.0.0.1", uiPort: 0, httpAdminRoot: false, httpNodeRoot: false,` +
			` contextStorage: {default: {module: "localfilesystem"}}}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start(t, "node", filepath.Join(modules, "node_modules", "node-red", "red.js"), "--settings", filepath.Join(dir, "settings.js"))
	has := func(text string) bool {
		b, _ := os.ReadFile(out)
		return strings.Contains(string(b), text)
	}
	waitFor(t, 120*time.Second, "Node-RED has subscribed", func() bool {
		mosquittoPub(t, port, "tg/v1/s/a/meta", `{"v":1,"ready":true}`)
		return has(`"ready":true`)
	})
	rows := func(seq int) string {
		return fmt.Sprintf(`{"v":1,"gw":"a","ep":"0000000a","lane":"data","seq":%d,"lo":1,"sent":1,"records":[{"dev":"m","t":%d,"values":{"u":%d.5,"on":true},"q":{"no2":"comm"}}]}`, seq, seq, seq)
	}
	for _, seq := range []int{1, 2, 2, 5, 4, 1} {
		mosquittoPub(t, port, "tg/v1/s/a/up", rows(seq))
	}
	mosquittoPub(t, port, "tg/v1/s/a/up/gz", `{"v":1,"gw":"a","ep":"0000000a","lane":"data","seq":6,"lo":1,"sent":1,"columns":[{"dev":"m","t0":60,"dt":[0,10,-5],"values":{"u":[1,null,3.25]},"q":{"u":[null,"comm","range"]}}]}`)
	mosquittoPub(t, port, "tg/v1/s/a/up", "{rubbish")
	mosquittoPub(t, port, "tg/v1/s/a/up", `{"v":1,"gw":"a","ep":"0000000a","lane":"data","lo":1,"sent":1,"dropped":{"from":3,"to":3,"why":"full"}}`)
	waitFor(t, 30*time.Second, "the tombstone", func() bool { return has(`2 {"v":1,"gw":"a","ep":"0000000a","lane":"data","lo":1,"sent":1,"dropped"`) })
	got, _ := os.ReadFile(out)
	var readings []string
	for line := range strings.Lines(string(got)) {
		if strings.HasPrefix(line, "1 ") {
			readings = append(readings, strings.TrimSpace(line[2:]))
		}
	}
	want := []string{"m/u 1 1.5 good", "m/on 1 true good", "m/u 2 2.5 good", "m/on 2 true good", "m/u 5 5.5 good", "m/on 5 true good",
		"m/u 4 4.5 good", "m/on 4 true good", "m/u 60 1 good", "m/u 65 3.25 range"}
	if !slices.Equal(readings, want) {
		t.Errorf("readings\n%s\nand not\n%s", strings.Join(readings, "\n"), strings.Join(want, "\n"))
	}
	waitFor(t, 60*time.Second, "the spans on disk", func() bool { // the context is written every 30 s
		files, _ := filepath.Glob(filepath.Join(dir, "context", "tab", "flow.json"))
		if len(files) == 0 {
			return false
		}
		b, _ := os.ReadFile(files[0])
		var kept map[string][][2]int
		return json.Unmarshal(b, &kept) == nil && slices.Equal(kept["tg_a_0000000a_data"], [][2]int{{1, 2}, {4, 6}})
	})
}

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
