package uplink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The presets.
const (
	presetAWS   = "aws-iot-core"
	presetAzure = "azure-iot-hub"
	presetTB    = "thingsboard"
	presetHA    = "homeassistant"
)

// Presets returns the names that `preset` may have.
func Presets() []string { return []string{"none", presetAWS, presetAzure, presetTB, presetHA} }

const (
	// azureTopic is the only topic that an IoT Hub takes; what kind of
	// message it is travels as a property.
	azureTopic = "devices/{client}/messages/events/kind={kind}"
	azureAPI   = "2021-04-12"
	// azureSocket is the path of MQTT over WebSocket.
	azureSocket = "/$iothub/websocket?iothub-no-client-cert=true"
	awsALPN     = "x-amzn-mqtt-ca" // MQTT with client certificates on port 443
	awsAuthALPN = "mqtt"           // MQTT with a custom authoriser on port 443
)

// Limits of the platforms, from their documentation.
const (
	awsMessage     = 128 << 10 // bytes of a message
	awsSlashes     = 7         // in a topic
	awsTopic       = 256       // bytes of a topic
	awsKeepalive   = 1200 * time.Second
	awsRate        = 100 // publishes a second on a connection
	azureMessage   = 256 << 10
	azureKeepalive = 1177 * time.Second
	tbMessage      = 64 << 10
)

// Complete fills in what the preset says and the file does not: set tells
// whether the file has a key of the section.
func (o *Options) Complete(gateway string, set func(key string) bool) {
	bytes := func(n int64) {
		if !set("batch.max_bytes") {
			o.Batch.MaxBytes = n
		}
	}
	shape := func(s string) {
		if !set("shape") {
			o.Shape = s
		}
	}
	switch o.Preset {
	case presetAWS:
		b, err := parseURL(o.URL)
		if err == nil && b.scheme == "mqtts" && b.port == "443" && !set("tls.alpn") {
			o.TLS.ALPN = []string{awsALPN}
			if o.Username != "" {
				o.TLS.ALPN = []string{awsAuthALPN}
			}
		}
		bytes(100_000)
		if !set("publish_rate") {
			o.PublishRate = awsRate
		}
	case presetAzure:
		if o.ClientID == "" {
			o.ClientID = gateway
		}
		b, err := parseURL(o.URL)
		if err == nil && o.Username == "" {
			o.Username = b.host + "/" + o.ClientID + "/?api-version=" + azureAPI
		}
		if u, bad := url.Parse(o.URL); err == nil && bad == nil && b.scheme == "wss" && u.Path == "" {
			o.URL += azureSocket
		}
		if !set("topic") {
			o.Topic = azureTopic
		}
		bytes(200_000)
	case presetTB:
		shape("thingsboard")
		bytes(8_000)
	case presetHA:
		shape("homeassistant")
	}
}

// validatePreset checks the options against the platform's rules.
func (o *Options) validatePreset(report func(path, msg, hint string)) {
	if !slices.Contains(Presets(), o.Preset) && o.Preset != "" {
		report("preset", fmt.Sprintf("unknown preset %q", o.Preset), "expected one of "+strings.Join(Presets(), ", "))
		return
	}
	if o.KeyFile != "" && o.Preset != presetAzure {
		report("device_key_file", "a device key is for preset azure-iot-hub", "leave it out")
	}
	b, err := parseURL(o.URL)
	if err != nil {
		return // it is told
	}
	if o.Preset != "" && o.Preset != "none" && b.posts() {
		report("url", fmt.Sprintf("preset %s speaks MQTT, not HTTP", o.Preset), "write mqtts://")
		return
	}
	cert := o.Identity != "" || o.TLS.Cert != ""
	switch o.Preset {
	case presetAWS:
		o.validateAWS(b, cert, report)
	case presetAzure:
		o.validateAzure(b, cert, report)
	case presetTB:
		switch {
		case o.Shape != "thingsboard":
			report("shape", "ThingsBoard reads shape thingsboard, and the shape is "+o.Shape, "leave shape out")
		case o.TokenFile == "" && o.Username == "" && !cert:
			report("preset", "ThingsBoard knows a gateway by its access token, user name or certificate: none is named", "write token_file: FILE with the access token")
		case o.TokenFile != "" && o.Username != "":
			report("token_file", "the access token travels as the user name, and there is one already", "keep token_file or username")
		}
		o.most(tbMessage, "ThingsBoard takes messages of 64 KB", report)
	case presetHA:
		if o.Shape != "homeassistant" {
			report("shape", "Home Assistant reads shape homeassistant, and the shape is "+o.Shape, "leave shape out")
		}
	}
}

// most bounds the size of a batch, with a tenth of room for what the estimate
// of the collector does not see.
func (o *Options) most(limit int64, why string, report func(path, msg, hint string)) {
	if o.Batch.MaxBytes > limit*9/10 {
		report("batch.max_bytes", fmt.Sprintf("%s, and max_bytes is a rough measure", why), fmt.Sprintf("write at most %dKB, or leave it out", limit*9/10/1000))
	}
}

func (o *Options) validateAWS(b broker, cert bool, report func(path, msg, hint string)) {
	alpn := strings.Join(o.TLS.ALPN, ",")
	switch {
	case b.scheme != "mqtts":
		report("url", "preset aws-iot-core speaks MQTT over TLS", "write mqtts://NAME-ats.iot.REGION.amazonaws.com:443")
	case b.port != "443" && b.port != "8883":
		report("url", fmt.Sprintf("AWS IoT Core listens on 8883 and 443, not %s", b.port), "leave the port out, or write :443")
	case b.port == "443" && !slices.Contains(o.TLS.ALPN, awsALPN) && !slices.Contains(o.TLS.ALPN, awsAuthALPN):
		report("tls.alpn", "on port 443 AWS IoT Core wants the ALPN name "+awsALPN+" (with a client certificate) or "+awsAuthALPN+" (with a custom authoriser)", "leave alpn out")
	case slices.Contains(o.TLS.ALPN, awsALPN) && !cert:
		report("tls.alpn", alpn+" is for client certificates, and none is named", "set identity")
	}
	if !cert && o.Username == "" {
		report("identity", "AWS IoT Core knows a thing by its client certificate, and none is named", "write identity: FOLDER with ca.crt, client.crt and client.key")
	}
	if len(o.ClientID) > 128 {
		report("client_id", "AWS IoT Core takes client ids of at most 128 bytes", "use the name of the thing")
	}
	o.most(awsMessage, "AWS IoT Core takes messages of 128 KB", report)
	if o.Keepalive > awsKeepalive {
		report("keepalive", "AWS IoT Core takes a keepalive of at most 1200s", "60s suits most links")
	}
	if o.PublishRate == 0 || o.PublishRate > awsRate {
		report("publish_rate", "AWS IoT Core takes 100 messages a second on a connection", "leave publish_rate out, or write at most 100")
	}
	slashes := strings.Count(o.Topic, "/")
	if o.Compress == "gzip" {
		slashes++ // up/gz
	}
	if slashes > awsSlashes {
		report("topic", fmt.Sprintf("the topic has %d slashes, AWS IoT Core takes %d", slashes, awsSlashes), "such as tg/v1/{site}/{gateway}/{kind}")
	}
}

func (o *Options) validateAzure(b broker, cert bool, report func(path, msg, hint string)) {
	if !strings.Contains(b.host, ".azure-devices.") {
		report("url", fmt.Sprintf("%s is not the name of an IoT Hub", b.host), "write mqtts://HUB.azure-devices.net")
	}
	if b.scheme == "mqtts" && b.port != "8883" || b.scheme == "wss" && b.port != "443" || !b.secure {
		report("url", "an IoT Hub listens on mqtts:// port 8883 and wss:// port 443", "leave the port out")
	}
	switch {
	case o.KeyFile == "" && !cert:
		report("device_key_file", "an IoT Hub knows a device by its key or its certificate, and none is named", "write device_key_file: FILE with the device's primary key, or identity: FOLDER")
	case o.KeyFile != "" && cert:
		report("device_key_file", "a device has a key or a certificate, not both", "keep one of them")
	}
	if o.PasswordFile != "" {
		report("password_file", "a ready-made token expires, and then the gateway is out", "write device_key_file: tokens are made and renewed from it")
	}
	if id := b.host + "/" + o.ClientID + "/"; !strings.HasPrefix(o.Username, id) {
		report("username", "the user name at an IoT Hub is "+id+"?api-version="+azureAPI, "leave username out")
	}
	if o.Topic != azureTopic {
		report("topic", "an IoT Hub takes messages on one topic only", "leave topic out: the kind of a message is its property kind")
	}
	if slices.Contains([]string{"sparkplug", "thingsboard", "homeassistant"}, o.Shape) {
		report("shape", "shape "+o.Shape+" needs topics of its own, and an IoT Hub has none", "expected records, columns, packed, influx, senml-json or senml-cbor")
	}
	o.most(azureMessage, "an IoT Hub takes messages of 256 KB", report)
	if o.Keepalive > azureKeepalive {
		report("keepalive", "an IoT Hub takes a keepalive of at most 1177s", "60s suits most links")
	}
	if len(o.Fallback) > 0 {
		report("fallback", "a device belongs to one IoT Hub", "leave fallback out")
	}
}

// ValidateNames checks what only the names of site and gateway tell.
func (o *Options) ValidateNames(site, gateway string, report func(path, msg, hint string)) {
	longest := o.topic(site, gateway, "receipt")
	if o.Preset == presetAWS && len(longest) > awsTopic {
		report("topic", fmt.Sprintf("with these names a topic has %d bytes, AWS IoT Core takes %d", len(longest), awsTopic), "shorten the template, gateway.site or gateway.id")
	}
}

// retains tells whether the broker keeps messages. An IoT Hub does not, and
// takes the mark for a property.
func (u *Uplink) retains() bool { return u.opts.Preset != presetAzure }

// echoes tells whether what is published can be subscribed to: an IoT Hub
// closes the connection for the attempt.
func (u *Uplink) echoes() bool { return u.opts.Preset != presetAzure && u.opts.Preset != presetTB }

// topicOf fills the topic template for a kind.
func (u *Uplink) topicOf(kind string) string {
	t := u.opts.topic(u.env.Site, u.env.Gateway, kind)
	if u.opts.Preset != presetAzure {
		return t
	}
	// The hub routes by the content of bodies that say what they are.
	as := "application/json"
	if kind == "up" || kind == "event" {
		as = contentType(u.opts.Shape, nil)
	}
	if as == "application/json" {
		as += ";charset=utf-8"
	}
	return t + "&$.ct=" + url.QueryEscape(strings.ReplaceAll(as, "; ", ";")) + "&$.ce=utf-8"
}

// zipped is the topic of a message that is compressed.
func (u *Uplink) zipped(topic string) string {
	if plain, ok := strings.CutSuffix(topic, "&$.ce=utf-8"); ok && u.opts.Preset == presetAzure {
		return plain + "&$.ce=gzip"
	}
	return topic + "/gz"
}

// credentials are user name and password for a CONNECT, and until when they
// serve; zero for ever. Files are read anew each time.
func (u *Uplink) credentials(b broker) (user, password string, until time.Time, err *Error) {
	o := &u.opts
	switch {
	case o.Preset == presetAzure && o.KeyFile != "":
		key, err := readSecret(o.KeyFile, "uplink.device_key_file")
		if err != nil {
			return "", "", time.Time{}, err
		}
		raw, bad := base64.StdEncoding.DecodeString(key)
		if bad != nil || len(raw) == 0 {
			return "", "", time.Time{}, &Error{Code: "device-key", Msg: "the device key cannot be read",
				Seen: o.KeyFile + " holds no base64", Try: "copy the primary key of the device from the portal", Err: bad}
		}
		life := u.tune.token
		if life == 0 {
			life = 24 * time.Hour
		}
		// The token names the hub's time; our own is all there is.
		password = sas(b.host+"/devices/"+u.clientID(), raw, u.now().Add(life))
		return o.Username, password, time.Now().Add(life * 9 / 10), nil
	case o.Preset == presetTB && o.TokenFile != "":
		user, err = readSecret(o.TokenFile, "uplink.token_file")
		return user, "", time.Time{}, err
	}
	password, err = readSecret(o.PasswordFile, "uplink.password_file")
	return o.Username, password, time.Time{}, err
}

// sas makes the shared access signature of a resource that serves until a
// time: HMAC-SHA256 over the quoted resource, a line feed and the time.
func sas(resource string, key []byte, until time.Time) string {
	quoted := url.QueryEscape(resource)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%d", quoted, until.Unix())
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d", quoted,
		url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), until.Unix())
}
