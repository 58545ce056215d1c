package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidegate/internal/sim"
)

// TestCertRollsBack: a certificate that TLS takes and the login does not is
// tried, placed, and put back.
func TestCertRollsBack(t *testing.T) {
	ca, err := sim.NewCA("ca")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ca.WriteServer(filepath.Join(dir, "server"), "localhost", "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server", "server.crt"), filepath.Join(dir, "server", "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	pki := filepath.Join(dir, "pki")
	for _, name := range []string{"first", "second"} {
		if err := ca.WriteIdentity(filepath.Join(dir, name), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(pki, os.DirFS(filepath.Join(dir, "first"))); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(dir, "second", "client.key"), filepath.Join(pki, "client.key.new"))
	os.Chmod(filepath.Join(pki, "client.key"), 0o600)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var last string
	judged := 0
	b := sim.NewScript(tls.NewListener(tcp, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(),
		VerifyPeerCertificate: func(_ [][]byte, chains [][]*x509.Certificate) error {
			last = chains[0][0].Subject.CommonName
			return nil
		}}), sim.ScriptOptions{Echo: true, Judge: func(sim.Hello) byte {
		judged++
		if last == "second" {
			return 5
		}
		return 0
	}})
	defer b.Close()
	file := filepath.Join(dir, "tidegate.yaml")
	config := fmt.Sprintf(`gateway: {id: gw-1}
buses:
  plant: {connect: "tcp://127.0.0.1:1", devices: {meter-1: {profile: eastron-sdm630}}}
uplink: {url: "mqtts://%s", identity: %s}
buffer: {dir: %s}
status: {socket: %s}
`, b.Addr(), pki, filepath.Join(dir, "state"), filepath.Join(dir, "none.sock"))
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	for _, name := range []string{"client.crt", "client.key", "client.key.new"} {
		before[name] = content(t, filepath.Join(pki, name))
	}
	var out, errs bytes.Buffer
	code := execute([]string{"uplink", "cert", "--config", file, filepath.Join(dir, "second", "client.crt")}, strings.NewReader(""), &out, &errs)
	b.Close() // now nobody else looks at judged
	if code == exitOK || !strings.Contains(errs.String(), "placed") || !strings.Contains(errs.String(), "the old pair is in place again") || judged == 0 {
		t.Errorf("exit code %d after %d logins\n%s%s", code, judged, out.String(), errs.String())
	}
	for name, want := range before {
		if content(t, filepath.Join(pki, name)) != want {
			t.Errorf("%s is not what it was", name)
		}
	}
	if code := execute([]string{"uplink", "cert", "--config", file}, strings.NewReader(""), &out, &errs); code != exitOK || !strings.Contains(out.String(), "subject  CN=first") {
		t.Errorf("exit code %d\n%s", code, out.String())
	}
}

func content(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.WriteFile(to, []byte(content(t, from)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCertificateEvents: a broker of mosquitto and a client whose certificates
// end soon. The cloud gets it as events, and the status says it, too.
func TestCertificateEvents(t *testing.T) {
	t.Parallel()
	for _, p := range []string{"mosquitto", "mosquitto_sub", "openssl"} {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, p)
		}
	}
	dir := t.TempDir()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(tcp.Addr().(*net.TCPAddr).Port)
	tcp.Close()
	make := exec.Command("bash", "-euc", `
mkdir pki
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj "/CN=CA" -keyout ca.key -out pki/ca.crt
printf "subjectAltName=IP:127.0.0.1\n" > ext
for x in server:5 client:20; do
    who=${x%:*}
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$who" -keyout pki/$who.key -out $who.csr
    openssl x509 -req -in $who.csr -CA pki/ca.crt -CAkey ca.key -CAcreateserial -days ${x#*:} -extfile ext -out pki/$who.crt
done
chmod 600 pki/client.key
printf "user root\nlistener %s 127.0.0.1\ncafile $PWD/pki/ca.crt\ncertfile $PWD/pki/server.crt\nkeyfile $PWD/pki/server.key\nrequire_certificate true\nuse_identity_as_username true\n" $0 > mosquitto.conf
`, port)
	make.Dir = dir
	if out, err := make.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	start(t, "mosquitto", "-c", filepath.Join(dir, "mosquitto.conf"))
	config := fmt.Sprintf("gateway: {id: gw}\nbuses:\n  plant: {connect: \"tcp://127.0.0.1:1\", devices: {m: {unit: 1, points: {a: {holding: 1}}}}}\n"+
		"uplink: {url: \"mqtts://127.0.0.1:%s\", identity: %s/pki}\nbuffer: {dir: %s/state}\nstatus: {socket: %s/agent.sock}\n", port, dir, dir, dir)
	file := filepath.Join(dir, "tidegate.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := buildBinary(t)
	var events bytes.Buffer
	sub := exec.Command("mosquitto_sub", "-h", "127.0.0.1", "-p", port, "--cafile", "pki/ca.crt", "--cert", "pki/client.crt", "--key", "pki/client.key",
		"-q", "1", "-t", "tg/v1/+/+/event", "-C", "1", "-W", "60")
	sub.Dir, sub.Stdout = dir, &events
	waitFor(t, 10*time.Second, "the broker", func() bool { return exec.Command("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/"+port).Run() == nil })
	if err := sub.Start(); err != nil {
		t.Fatal(err)
	}
	start(t, bin, "run", "--config", file)
	sub.Wait()
	// A day has begun since they were made, and what is left is told in whole days.
	if !strings.Contains(events.String(), `"dev":"certificates"`) || !strings.Contains(events.String(), `"values":{"client":19,"broker":4}`) {
		t.Errorf("the event lane brought %q", events.String())
	}
	_, out, _ := runVerb("status", "--json", "--config", file)
	for _, want := range []string{"the broker's certificate expires in 4 days", "the client certificate expires in 19 days"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
}
