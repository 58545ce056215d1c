package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
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
