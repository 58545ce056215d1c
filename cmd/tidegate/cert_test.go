package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
