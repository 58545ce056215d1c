package uplink

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidegate/uplink/payload"
)

// Options is the section `uplink` of the configuration.
type Options struct {
	URL           string        `yaml:"url" required:"true" doc:"Where the broker is: mqtts://HOST[:8883], wss://HOST[:443][/PATH] or https://HOST[:443]/PATH, or to loopback mqtt://HOST[:1883], ws:// or http://."`
	Identity      string        `yaml:"identity" doc:"Folder with ca.crt, client.crt and client.key."`
	TLS           TLS           `yaml:"tls" doc:"Single files instead of an identity folder."`
	ClientID      string        `yaml:"client_id" doc:"MQTT client id; default: the gateway id."`
	Username      string        `yaml:"username" doc:"User name at the broker."`
	PasswordFile  string        `yaml:"password_file" doc:"File whose first line is the password."`
	TokenFile     string        `yaml:"token_file" doc:"File whose first line is the bearer token for https://, or ThingsBoard's access token."`
	KeyFile       string        `yaml:"device_key_file" doc:"File whose first line is the key of the device at an Azure IoT Hub; tokens are made of it."`
	Fallback      []string      `yaml:"fallback" doc:"Brokers to go to, in this order, while the one of url cannot be reached; the uplink goes back to url when it can."`
	Proxy         string        `yaml:"proxy" doc:"Proxy on the way to the broker: http://HOST[:3128] or socks5://HOST[:1080]. It resolves the broker's name."`
	ProxyUser     string        `yaml:"proxy_username" doc:"User name at the proxy."`
	ProxyFile     string        `yaml:"proxy_password_file" doc:"File whose first line is the password at the proxy."`
	Preset        string        `yaml:"preset" enum:"none,aws-iot-core,azure-iot-hub,thingsboard,homeassistant" doc:"Settings and rules of a known cloud; docs/presets.md."`
	Topic         string        `yaml:"topic" doc:"Topic template with {kind} and, as needed, {site}, {gateway} and {client}, the client id."`
	Shape         string        `yaml:"shape" enum:"records,columns,packed,influx,senml-json,senml-cbor,sparkplug,thingsboard,homeassistant" doc:"How batches are written; docs/payloads.md shows each."`
	Sparkplug     Sparkplug     `yaml:"sparkplug" doc:"How shape sparkplug is spoken."`
	HomeAssistant HomeAssistant `yaml:"homeassistant" doc:"How shape homeassistant is spoken."`
	Compress      string        `yaml:"compress" enum:"none,gzip" doc:"gzip sends messages from 500 bytes on compressed, to a topic ending in /gz."`
	Batch         Batch         `yaml:"batch" doc:"When a batch is complete."`
	Inflight      int           `yaml:"inflight" min:"1" max:"100" doc:"How many batches may wait for the broker's acknowledgement at most; a slow link is given fewer."`
	PublishRate   int           `yaml:"publish_rate" min:"0" max:"10000" doc:"Messages per second, all kinds together, 0 for no limit."`
	StatusEvery   time.Duration `yaml:"status_every" doc:"Period of the status message; 10s to 24h. Longer on a metered link."`
	Keepalive     time.Duration `yaml:"keepalive" doc:"A silent link is asked after this time; 2s to 18h."`
	Backlog       Backlog       `yaml:"backlog" doc:"How what was kept during an outage is sent."`
	Receipts      bool          `yaml:"receipts" doc:"Delete a batch only after the cloud's own receipt, not after the broker's acknowledgement; docs/commands.md."`
	Commands      bool          `yaml:"commands" doc:"Take commands from the cloud; docs/commands.md."`
	CommandKey    string        `yaml:"command_key" doc:"PEM file with the Ed25519 public key of who may give commands; then only signed ones are taken."`
	Lockout       string        `yaml:"command_lockout" doc:"While this file is there, every command is refused."`
	Insecure      string        `yaml:"insecure" enum:",plain-text" doc:"plain-text allows mqtt:// to other hosts than loopback."`
}

// TLS names single files. An empty CA means the system's own list of
// authorities.
type TLS struct {
	CA         string   `yaml:"ca" doc:"PEM file with the authorities that may sign the broker's certificate."`
	Cert       string   `yaml:"cert" doc:"PEM file with the client certificate and what leads to its authority."`
	Key        string   `yaml:"key" doc:"PEM file with the key of the client certificate; mode 0600."`
	CRL        string   `yaml:"crl" doc:"File with the certificates that the authority revoked, PEM or DER: a broker that is on it, or of which it cannot tell, is refused."`
	ServerName string   `yaml:"server_name" doc:"Name that the broker's certificate must carry; default: the host of the url."`
	ALPN       []string `yaml:"alpn" doc:"Protocol names to offer in the TLS handshake."`
}

// Batch says when readings become a batch. The collector obeys it.
type Batch struct {
	MaxAge      time.Duration `yaml:"max_age" doc:"A batch is complete when its first reading is this old, up to a quarter of a second before, or when earlier ones are written to the buffer and it has half that age."`
	MaxReadings int           `yaml:"max_readings" min:"1" max:"100000" doc:"A batch is complete with this many readings."`
	MaxBytes    int64         `yaml:"max_bytes" unit:"bytes" doc:"About how large the message of a batch may become."`
}

// Backlog says how what was kept during an outage is sent. Live data always
// goes first.
type Backlog struct {
	Order string `yaml:"order" enum:"oldest-first,newest-first" doc:"Which end of the backlog goes first."`
	Rate  int64  `yaml:"rate" unit:"bytes" doc:"Bytes per second for the backlog, 0 for no limit."`
}

// Defaults returns the options of a configuration that sets only the url.
func Defaults() Options {
	return Options{
		Preset: "none", Topic: "tg/v1/{site}/{gateway}/{kind}", Shape: "records", Compress: "none",
		Batch:     Batch{MaxAge: time.Second, MaxReadings: 1000, MaxBytes: 100_000},
		Sparkplug: Sparkplug{Aliases: true}, HomeAssistant: HomeAssistant{Prefix: "homeassistant"},
		Inflight: 20, Keepalive: time.Minute, StatusEvery: time.Minute,
		Backlog: Backlog{Order: "oldest-first"},
	}
}

// Validate reports everything that is wrong with the options by themselves;
// it reads no file. Paths are relative to the section.
func (o *Options) Validate(report func(path, msg, hint string)) {
	o.validateURL("url", o.URL, report)
	for i, s := range o.Fallback {
		o.validateURL(fmt.Sprintf("fallback[%d]", i), s, report)
	}
	posts := false
	for _, s := range append([]string{o.URL}, o.Fallback...) {
		b, err := parseURL(s)
		posts = posts || err == nil && b.posts()
	}
	if posts && slices.Contains(Shapes(), o.Shape) && !slices.Contains(payload.Shapes(), o.Shape) {
		report("shape", fmt.Sprintf("%s is a dialogue over MQTT and cannot go over https://", o.Shape), "expected one of "+strings.Join(payload.Shapes(), ", "))
	}
	if o.TokenFile != "" && !posts && o.Preset != presetTB {
		report("token_file", "a bearer token is for https://, and no url has that", "use username and password_file with MQTT")
	}
	if len(o.Fallback) > 8 {
		report("fallback", "at most 8 brokers can stand in", "")
	}
	o.validateProxy(report)
	for _, p := range o.TLS.ALPN {
		if p == "" || len(p) > 255 {
			report("tls.alpn", "the name of a protocol has 1 to 255 bytes", "such as x-amzn-mqtt-ca")
		}
	}
	if o.Identity != "" && (o.TLS.CA != "" || o.TLS.Cert != "" || o.TLS.Key != "") {
		report("tls", "identity and tls both name certificate files", "keep one of them")
	}
	if (o.TLS.Cert == "") != (o.TLS.Key == "") {
		report("tls", "cert and key belong together: one of them is missing", "name both files, or neither")
	}
	if o.PasswordFile != "" && o.Username == "" {
		report("password_file", "a password without a username is not sent by MQTT 3.1.1", "set username")
	}
	if strings.ContainsRune(o.ClientID, 0) || len(o.ClientID) > 128 {
		report("client_id", "a client id has at most 128 bytes and no zero byte", "")
	}
	o.validatePreset(report)
	validateTopic(o.Topic, report)
	if !slices.Contains(Shapes(), o.Shape) {
		report("shape", fmt.Sprintf("unknown shape %q", o.Shape), "expected one of "+strings.Join(Shapes(), ", "))
	}
	o.validateSpeaker(report)
	if o.Compress != "none" && o.Compress != "gzip" {
		report("compress", fmt.Sprintf("unknown compression %q", o.Compress), "expected none or gzip")
	}
	if o.Batch.MaxAge < 10*time.Millisecond || o.Batch.MaxAge > time.Hour {
		report("batch.max_age", "max_age must be from 10ms to 1h", "1s suits most uplinks")
	}
	if o.Batch.MaxReadings < 1 || o.Batch.MaxReadings > 100_000 {
		report("batch.max_readings", "max_readings must be from 1 to 100000", "")
	}
	if o.Batch.MaxBytes < 1000 || o.Batch.MaxBytes > 16<<20 {
		report("batch.max_bytes", "max_bytes must be from 1KB to 16MB", "many brokers refuse messages above 128KB")
	}
	if o.Inflight < 1 || o.Inflight > 100 {
		report("inflight", "inflight must be from 1 to 100", "")
	}
	if o.PublishRate < 0 || o.PublishRate > 10_000 {
		report("publish_rate", "publish_rate must be from 0 to 10000", "0 is no limit")
	}
	if o.StatusEvery < 10*time.Second || o.StatusEvery > 24*time.Hour {
		report("status_every", "status_every must be from 10s to 24h", "60s suits most links; 15m where each byte costs")
	}
	// With 1s mosquitto, which counts whole seconds, may close before the ping comes.
	if o.Keepalive < 2*time.Second || o.Keepalive > 18*time.Hour {
		report("keepalive", "keepalive must be from 2s to 18h", "60s suits most links; cellular routers forget idle links after 5 min")
	}
	if o.Backlog.Order != "oldest-first" && o.Backlog.Order != "newest-first" {
		report("backlog.order", fmt.Sprintf("unknown order %q", o.Backlog.Order), "expected oldest-first or newest-first")
	}
	if o.Backlog.Rate < 0 {
		report("backlog.rate", "rate cannot be negative", "0 is no limit")
	}
	enveloped := slices.Contains(payload.Shapes(), o.Shape)
	if o.Receipts && !enveloped {
		report("receipts", "receipts are of tidegate's own messages; shape "+o.Shape+" has none", "leave it out, or choose another shape")
	}
	edge := o.Shape == "sparkplug"
	switch {
	case o.Commands && edge && !o.Sparkplug.Writes:
		report("commands", "a host of Sparkplug gives no commands but writes, and those are off", "leave it out, or set sparkplug: {writes: true}")
	case o.Commands && !edge && !enveloped:
		report("commands", "commands are of tidegate's own messages; shape "+o.Shape+" has none", "leave it out, or choose another shape")
	case edge && o.Sparkplug.Writes && !o.Commands:
		report("sparkplug.writes", "commands are off, so nobody writes", "set commands: true")
	case edge && o.Sparkplug.Writes && o.CommandKey != "":
		report("sparkplug.writes", "a DCMD cannot be signed, and command_key demands it", "leave out one of them")
	}
	down := true
	for _, s := range append([]string{o.URL}, o.Fallback...) {
		if u, err := parseURL(s); err == nil && u.posts() {
			down = false
		}
	}
	if !down {
		for _, w := range []struct {
			on   bool
			path string
		}{{o.Receipts, "receipts"}, {o.Commands, "commands"}} {
			if w.on {
				report(w.path, "nothing comes down over HTTPS", "use MQTT, or leave it out")
			}
		}
	}
	if o.CommandKey != "" && !o.Commands {
		report("command_key", "commands are off, so nobody signs any", "set commands: true")
	}
	if o.Insecure != "" && o.Insecure != "plain-text" {
		report("insecure", fmt.Sprintf("unknown value %q", o.Insecure), "expected plain-text")
	}
}

func (o *Options) validateURL(path, s string, report func(path, msg, hint string)) {
	b, err := parseURL(s)
	switch {
	case err != nil:
		report(path, err.Error(), "write mqtts://mqtt.city.example:8883")
	case b.open() && o.Insecure != "plain-text":
		report(path, fmt.Sprintf("%s:// to %s would send everything unencrypted", b.scheme, b.host),
			fmt.Sprintf("use %ss://, or write insecure: plain-text beside it if the line itself is protected", b.scheme))
	}
}

func (o *Options) validateProxy(report func(path, msg, hint string)) {
	if o.Proxy == "" {
		if o.ProxyUser != "" || o.ProxyFile != "" {
			report("proxy", "proxy_username and proxy_password_file are for a proxy, and none is named", "write proxy: http://HOST:3128")
		}
		return
	}
	if _, err := parseProxy(o.Proxy); err != nil {
		report("proxy", err.Error(), "write http://proxy.site.example:3128 or socks5://HOST:1080")
	}
	if o.ProxyFile != "" && o.ProxyUser == "" {
		report("proxy_password_file", "a password without a user name", "set proxy_username")
	}
}

func validateTopic(t string, report func(path, msg, hint string)) {
	const hint = "such as tg/v1/{site}/{gateway}/{kind}"
	if !strings.Contains(t, "{kind}") {
		report("topic", "the topic template has no {kind}: batches and status would share a topic", hint)
	}
	rest := strings.NewReplacer("{site}", "", "{gateway}", "", "{kind}", "", "{client}", "").Replace(t)
	if strings.ContainsAny(rest, "{}") {
		report("topic", "the topic template has a placeholder that is not known", "known: {site}, {gateway}, {client}, {kind}")
	}
	if strings.ContainsAny(rest, "+#\x00") || strings.HasPrefix(t, "$") || len(t) > 1024 {
		report("topic", "a topic to publish to has no +, # or zero byte, does not begin with $, and has at most 1024 bytes", hint)
	}
}

// topic fills the template for a kind: up, event, meta, status, test.
func (o *Options) topic(site, gateway, kind string) string {
	client := o.ClientID
	if client == "" {
		client = gateway
	}
	return strings.NewReplacer("{site}", site, "{gateway}", gateway, "{client}", client, "{kind}", kind).Replace(o.Topic)
}

// Secure tells whether a broker of these options is reached over TLS.
func (o *Options) Secure() bool {
	for _, s := range append([]string{o.URL}, o.Fallback...) {
		if b, err := parseURL(s); err == nil && b.secure {
			return true
		}
	}
	return false
}

// Clashes returns a broker to which both go with the same client id, ""
// without one.
func (o *Options) Clashes(with *Options, gateway string) string {
	if cmp.Or(o.ClientID, gateway) != cmp.Or(with.ClientID, gateway) {
		return ""
	}
	for _, s := range append([]string{o.URL}, o.Fallback...) {
		for _, t := range append([]string{with.URL}, with.Fallback...) {
			a, e1 := parseURL(s)
			b, e2 := parseURL(t)
			if e1 == nil && e2 == nil && !a.posts() && !b.posts() && a.addr() == b.addr() {
				return a.String()
			}
		}
	}
	return ""
}

// files returns the certificate files that the options name; "" for none.
func (o *Options) files() (ca, cert, key string) {
	if o.Identity != "" {
		return filepath.Join(o.Identity, "ca.crt"), filepath.Join(o.Identity, "client.crt"), filepath.Join(o.Identity, "client.key")
	}
	return o.TLS.CA, o.TLS.Cert, o.TLS.Key
}
