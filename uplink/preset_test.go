package uplink

import (
	"encoding/base64"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidegate/internal/sim"
)

// TestSAS: the token is that of an independent computation (Python's hmac,
// hashlib and urllib).
func TestSAS(t *testing.T) {
	const want = "SharedAccessSignature sr=hub-7.azure-devices.net%2Fdevices%2Fpump-7&sig=xImu3Ii7wxhoxjYoF7%2Bjqz7wxQCbAQE4kfE%2BxDcZRAQ%3D&se=1764000000"
	if got := sas("hub-7.azure-devices.net/devices/pump-7", []byte("0123456789abcdef0123456789abcdef"), time.Unix(1764000000, 0)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// azure is an uplink to a script broker as if that were an IoT Hub.
func azure(t *testing.T, b *sim.Script, change func(*Options)) *Uplink {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	write(t, 0o600, file, []byte(base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))+"\n"))
	u := newUplink(t, "mqtt://"+b.Addr(), change)
	o := &u.opts
	o.Preset, o.KeyFile = presetAzure, file
	o.Complete("gw-1", func(string) bool { return false })
	return u
}

// TestAzure: one topic for everything, nothing retained, a token that is
// renewed before it ends, and no batch lost or repeated on the way.
func TestAzure(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	up := azure(t, b, nil)
	up.tune.token = 600 * time.Millisecond
	src := newStore(t).add(laneData, 3).add(laneEvent, 1)
	u := start(t, up, src)
	renewed := func() bool { n, _ := b.Connections(); return n >= 3 }
	for end := time.Now().Add(time.Minute); !renewed(); {
		if time.Now().After(end) {
			t.Fatal("the token is not renewed")
		}
		src.add(laneData, 1)
		time.Sleep(10 * time.Millisecond)
	}
	eventually(t, 5*time.Second, "all delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	given := src.Given(laneData)
	seen := map[string]bool{}
	kinds := map[string]int{}
	for _, a := range b.Received() {
		rest, ok := strings.CutPrefix(a.Topic, "devices/gw-1/messages/events/")
		bag, err := url.ParseQuery(rest)
		if !ok || err != nil || a.Retained || a.QoS != 1 {
			t.Fatalf("%+v", a)
		}
		if bag.Get("$.ct") != "application/json;charset=utf-8" || bag.Get("$.ce") != "utf-8" {
			t.Errorf("properties %v", bag)
		}
		kinds[bag.Get("kind")]++
		if bag.Get("kind") == "up" {
			if body := string(a.Payload[:strings.Index(string(a.Payload), ",\"sent\"")]); seen[body] {
				t.Errorf("repeated: %s", body)
			} else {
				seen[body] = true
			}
		}
	}
	if len(seen) != int(given) || kinds["event"] != 1 || kinds["status"] < 3 || kinds["meta"] < 2 {
		t.Errorf("%d batches of %d; kinds %v", len(seen), given, kinds)
	}
	ends := map[string]bool{}
	for i, h := range b.Hellos() {
		if h.ClientID != "gw-1" || !strings.HasSuffix(h.Username, "/gw-1/?api-version=2021-04-12") {
			t.Errorf("CONNECT %+v", h)
		}
		token, err := url.ParseQuery(strings.TrimPrefix(h.Password, "SharedAccessSignature "))
		if err != nil || token.Get("sr") != "127.0.0.1/devices/gw-1" || token.Get("sig") == "" {
			t.Errorf("password %q", h.Password)
		}
		se, _ := strconv.ParseInt(token.Get("se"), 10, 64)
		if d := time.Until(time.Unix(se, 0)); d > 2*time.Second || d < -30*time.Second {
			t.Errorf("token %d ends in %s", i, d)
		}
		ends[token.Get("se")] = true
		if v := b.Promises()[i]; v.Retained || !strings.HasPrefix(v.Topic, "devices/gw-1/messages/events/kind=status") {
			t.Errorf("will %+v", v)
		}
	}
	accepted, clean := b.Connections()
	if clean < accepted-1 {
		t.Errorf("%d of %d connections ended in order", clean, accepted)
	}
	if len(ends) < 2 {
		t.Errorf("the token was never made anew: %v", ends)
	}
	if st := u.Stats(); st.Err != nil {
		t.Errorf("renewing is no trouble: %v", st.Err)
	}
}

func TestAzureBags(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	for shape, want := range map[string]string{"records": "application/json;charset=utf-8", "senml-cbor": "application/senml+cbor",
		"packed": "application/octet-stream", "influx": "text/plain;charset=utf-8"} {
		u := azure(t, b, func(o *Options) { o.Shape = shape })
		topic := u.topicOf("up")
		bag, _ := url.ParseQuery(topic[strings.LastIndex(topic, "/")+1:])
		if bag.Get("$.ct") != want {
			t.Errorf("%s: %s", shape, topic)
		}
		if z, _ := url.ParseQuery(u.zipped(topic)); z.Get("$.ce") != "gzip" {
			t.Errorf("%s: compressed: %s", shape, u.zipped(topic))
		}
	}
}

// TestDeviceKey: what is wrong with the file is told by its name.
func TestDeviceKey(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	u := azure(t, b, nil)
	for text, code := range map[string]string{"no base64!": "device-key", "": "device-key", "gone": "password-file"} {
		write(t, 0o600, u.opts.KeyFile, []byte(text))
		if text == "gone" {
			os.Remove(u.opts.KeyFile)
		}
		if _, _, _, err := u.credentials(u.broker()); err == nil || err.Code != code {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestThingsBoardToken: the access token is the user name, read from a file.
func TestThingsBoardToken(t *testing.T) {
	b := newScript(t, sim.ScriptOptions{})
	file := filepath.Join(t.TempDir(), "token")
	write(t, 0o600, file, []byte("A1_TEST_TOKEN\n"))
	u := newUplink(t, "mqtt://"+b.Addr(), func(o *Options) {
		o.Preset, o.TokenFile = presetTB, file
		o.Complete("gw-1", func(string) bool { return false })
	})
	start(t, u, newStore(t))
	eventually(t, 5*time.Second, "a CONNECT", func() bool { return len(b.Hellos()) == 1 })
	if h := b.Hellos()[0]; h.Username != "A1_TEST_TOKEN" || h.Password != "" {
		t.Errorf("%+v", h)
	}
}
