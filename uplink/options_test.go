package uplink

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	for _, x := range []struct {
		path   string
		change func(*Options)
	}{
		{"url", func(o *Options) { o.URL = "" }},
		{"url", func(o *Options) { o.URL = "broker" }},
		{"url", func(o *Options) { o.URL = "http://broker" }},
		{"url", func(o *Options) { o.URL = "mqtt://192.0.2.1" }},
		{"url", func(o *Options) { o.URL = "mqtts://user:secret@broker" }},
		{"url", func(o *Options) { o.URL = "mqtts://broker/path" }},
		{"url", func(o *Options) { o.URL = "mqtts://broker:0" }},
		{"url", func(o *Options) { o.URL = "ws://192.0.2.1/mqtt" }},
		{"url", func(o *Options) { o.URL = "wss://broker/mqtt#x" }},
		{"fallback[1]", func(o *Options) { o.Fallback = []string{"wss://b", "mqtt://b"} }},
		{"proxy", func(o *Options) { o.Proxy = "https://proxy" }},
		{"proxy", func(o *Options) { o.Proxy = "http://someone:secret@proxy" }},
		{"proxy", func(o *Options) { o.ProxyUser = "x" }},
		{"proxy_password_file", func(o *Options) { o.Proxy, o.ProxyFile = "socks5://p", "x" }},
		{"token_file", func(o *Options) { o.TokenFile = "x" }},
		{"shape", func(o *Options) { o.Fallback = []string{"https://h/x"}; o.Shape = "sparkplug" }},
		{"tls.alpn", func(o *Options) { o.TLS.ALPN = []string{""} }},
		{"tls", func(o *Options) { o.TLS.Cert = "x" }},
		{"tls", func(o *Options) { o.Identity = "x"; o.TLS.CA = "y" }},
		{"password_file", func(o *Options) { o.PasswordFile = "x" }},
		{"topic", func(o *Options) { o.Topic = "tg/{gateway}" }},
		{"topic", func(o *Options) { o.Topic = "tg/{gatway}/{kind}" }},
		{"topic", func(o *Options) { o.Topic = "tg/#/{kind}" }},
		{"shape", func(o *Options) { o.Shape = "xml" }},
		{"compress", func(o *Options) { o.Compress = "zip" }},
		{"preset", func(o *Options) { o.Preset = "aws" }},
		{"publish_rate", func(o *Options) { o.PublishRate = -1 }},
		{"publish_rate", func(o *Options) { o.PublishRate = 10_001 }},
		{"batch.max_age", func(o *Options) { o.Batch.MaxAge = 0 }},
		{"batch.max_readings", func(o *Options) { o.Batch.MaxReadings = 0 }},
		{"batch.max_bytes", func(o *Options) { o.Batch.MaxBytes = 1 }},
		{"inflight", func(o *Options) { o.Inflight = 0 }},
		{"inflight", func(o *Options) { o.Inflight = 101 }},
		{"keepalive", func(o *Options) { o.Keepalive = time.Second }},
		{"backlog.order", func(o *Options) { o.Backlog.Order = "random" }},
		{"backlog.rate", func(o *Options) { o.Backlog.Rate = -1 }},
		{"receipts", func(o *Options) { o.Receipts, o.Shape = true, "sparkplug" }},
		{"receipts", func(o *Options) { o.Receipts, o.Fallback = true, []string{"https://receiver.example/in"} }},
		{"commands", func(o *Options) { o.Commands, o.Shape = true, "homeassistant" }},
		{"command_key", func(o *Options) { o.CommandKey = "/etc/tidegate/command.pub" }},
		{"insecure", func(o *Options) { o.Insecure = "yes" }},
	} {
		o := Defaults()
		o.URL = "mqtts://broker"
		x.change(&o)
		var got []string
		o.Validate(func(path, msg, hint string) {
			if strings.Contains(msg+hint, "secret") {
				t.Errorf("%q tells the password", msg)
			}
			got = append(got, path)
		})
		if len(got) != 1 || got[0] != x.path {
			t.Errorf("want %s, got %v", x.path, got)
		}
	}
	for _, url := range []string{"mqtts://broker", "mqtts://broker:443", "mqtt://127.0.0.1", "mqtt://localhost:1884", "mqtt://[::1]"} {
		o := Defaults()
		o.URL = url
		o.Validate(func(path, msg, _ string) { t.Errorf("%s: %s: %s", url, path, msg) })
	}
	o := Defaults()
	o.URL, o.Insecure = "mqtt://192.0.2.1", "plain-text"
	o.Validate(func(path, msg, _ string) { t.Errorf("%s: %s", path, msg) })
	u, err := New(o, Env{Gateway: "g", Clock: testClock(t)})
	if err != nil {
		t.Fatal(err)
	}
	if !u.Stats().Insecure || u.state("online", nil).Insecure != "plain-text" {
		t.Error("a plain link is not called so")
	}
}

// TestNoWayAroundTLS: there is no switch that turns verification off.
func TestNoWayAroundTLS(t *testing.T) {
	_, file, _, _ := runtime.Caller(0)
	files, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*.go"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "Insecure"+"SkipVerify") {
			t.Errorf("%s can switch verification off", f)
		}
	}
}
