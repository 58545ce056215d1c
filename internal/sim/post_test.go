package sim

import (
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMatches holds the examples of MQTT 3.1.1, section 4.7.
func TestMatches(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/#", "sport", true},
		{"#", "sport/tennis", true},
		{"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false},
		{"sport/+", "sport/", true},
		{"+/+", "/finance", true},
		{"/+", "/finance", true},
		{"+", "/finance", false},
		{"#", "$SYS/uptime", false},
		{"+/monitor/Clients", "$SYS/monitor/Clients", false},
		{"$SYS/#", "$SYS/uptime", true},
		{"a/b", "a/b/c", false},
		{"a/b/c", "a/b", false},
		{"a/b", "a/b", true},
		{"a/B", "a/b", false},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("filter %q, topic %q: %v, want %v", c.filter, c.topic, got, c.want)
		}
	}
}

// TestBrokerWillAndTakeover: mosquitto's clients see the will of one that
// was killed, none of one that said goodbye, and a second client with the
// same id throws the first one out.
func TestBrokerWillAndTakeover(t *testing.T) {
	pub, sub := need(t, "mosquitto_pub"), need(t, "mosquitto_sub")
	var got book
	b, err := NewBroker(BrokerOptions{OnPublish: got.add})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dir := t.TempDir()
	if err := b.CA().WriteIdentity(dir, "gw-1"); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(b.Addr())
	args := func(more ...string) []string {
		return append([]string{"-h", "127.0.0.1", "-p", port, "--cafile", filepath.Join(dir, "ca.crt"), "-q", "1",
			"--cert", filepath.Join(dir, "client.crt"), "--key", filepath.Join(dir, "client.key")}, more...)
	}
	run(t, pub, args("-t", "will/clean", "-m", "said goodbye", "--will-topic", "will/none", "--will-payload", "no")...)
	first := exec.Command(sub, args("-i", "twin", "-t", "x", "--will-topic", "will/first", "--will-payload", "gone")...)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the first twin", func() bool { open, _ := b.Connections(); return open == 1 })
	second := exec.Command(sub, args("-i", "twin", "-t", "x", "-C", "1", "--will-topic", "will/second", "--will-payload", "gone")...)
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the will of the twin that was thrown out", func() bool { return got.count("will/first gone") >= 1 })
	first.Process.Kill()
	first.Wait()
	second.Process.Kill()
	second.Wait()
	wait(t, "the will of the twin that was killed", func() bool { return got.count("will/second gone") == 1 })
	got.mu.Lock()
	defer got.mu.Unlock()
	if all := strings.Join(got.got, "\n"); strings.Contains(all, "will/none") || !strings.Contains(all, "will/clean said goodbye") {
		t.Errorf("the broker took\n%s", all)
	}
}
