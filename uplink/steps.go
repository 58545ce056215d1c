package uplink

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// Step is one step of Test.
type Step struct {
	Broker string        // which one was tried, where there are several; else empty
	Name   string        // config, clock, dns, tcp, tls, client cert, connect, publish, echo
	State  string        // one of the step states
	Text   string        // what was found
	Took   time.Duration // 0 where nothing had to be waited for
	Err    *Error        // of a failed or doubtful step
}

// The states of a step.
const (
	StepOK      = "ok"
	StepWarn    = "warn"
	StepFail    = "FAIL"
	StepUnknown = "unknown"
	StepNot     = "not tried"
)

const (
	stepConfig = iota
	stepClock
	stepDNS
	stepTCP
	stepTLS
	stepCert
	stepConnect
	stepPublish
	stepEcho
)

// stepLimit is how long one step of Test may take.
const stepLimit = 10 * time.Second

// Test tries the way to each broker step by step, one after the other, in an
// equal share of what is left of the time of ctx. The first failure names cause and
// advice, and the rest is not tried on this broker. While Run is connected, name,
// TCP and TLS are tried afresh, and the MQTT steps go through the running
// connection: a second one with the same client id would throw it out. With
// another broker they are left out then, since both may belong to one cluster.
func (u *Uplink) Test(ctx context.Context) (all []Step) {
	for i, b := range u.brokers {
		share, cancel := context.WithCancel(ctx)
		if end, ok := ctx.Deadline(); ok {
			share, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(len(u.brokers)-i))
		}
		t := &tester{u: u, b: b, resolver: net.DefaultResolver}
		if u.resolver != nil {
			t.resolver = u.resolver
		}
		name := ""
		if len(u.brokers) > 1 {
			name = b.String()
		}
		for _, step := range []string{"config", "clock", "dns", "tcp", "tls", "client cert", "connect", "publish", "echo"} {
			t.steps = append(t.steps, Step{Broker: name, Name: step, State: StepNot})
		}
		t.run(share)
		cancel()
		all = append(all, t.steps...)
	}
	return all
}

type tester struct {
	u        *Uplink
	b        broker
	resolver *net.Resolver
	steps    []Step
	began    time.Time
}

func (t *tester) start() { t.began = time.Now() }

func (t *tester) done(step int, state, format string, args ...any) {
	t.steps[step].State, t.steps[step].Text = state, fmt.Sprintf(format, args...)
	if step >= stepDNS && step != stepCert {
		t.steps[step].Took = time.Since(t.began)
	}
}

func (t *tester) fail(step int, err *Error) {
	t.done(step, StepFail, "%s", err.Msg)
	t.steps[step].Err = err
}

func (t *tester) run(ctx context.Context) {
	u := t.u
	t.done(stepConfig, StepOK, "%s, client id %s", t.b, u.clientID())
	t.clock()
	t.start()
	addresses, err := t.lookup(ctx)
	if err != nil {
		s := u.situation(t.b)
		s.probe = t.otherName(ctx)
		if u.proxy.host != "" {
			s.broker = u.proxy
		}
		t.fail(stepDNS, explain(atDNS, err, s))
		return
	}
	t.done(stepDNS, StepOK, "%s (%d address%s)", addresses[0], len(addresses), map[bool]string{true: "es"}[len(addresses) > 1])

	t.start()
	raw, problem := u.tcp(ctx, t.b, min(stepLimit, u.tune.connect))
	if problem != nil {
		if problem.Code == "port-blocked" {
			problem.Seen += t.otherPort(ctx, addresses[0])
		}
		t.fail(stepTCP, problem)
		return
	}
	defer raw.Close()
	through := ""
	if u.proxy.host != "" {
		through = " through the proxy"
	}
	t.done(stepTCP, StepOK, "%s%s", raw.RemoteAddr(), through)
	var c net.Conn = raw
	if t.b.secure {
		if c = t.tls(ctx, raw); c == nil {
			return
		}
	} else {
		t.plain()
	}

	if t.b.posts() {
		c.Close()
		t.post(ctx)
		return
	}
	t.start()
	u.mu.Lock()
	l := u.current
	u.mu.Unlock()
	if l != nil && l.wire.broker != t.b {
		c.Close()
		t.aside(ctx)
		return
	}
	if l != nil {
		t.done(stepConnect, StepOK, "through the running agent's connection")
	} else {
		w, failed := u.wrap(ctx, t.b, c, raw)
		if failed == nil {
			l, failed = u.connect(ctx, w, false)
		}
		if failed != nil {
			switch failed.Code {
			case "client-cert-required", "client-cert-expired", "client-cert-unknown-ca", "client-cert-revoked", "client-cert":
				// In TLS 1.3 the broker judges our certificate after the handshake.
				t.fail(stepCert, failed)
			default:
				t.fail(stepConnect, failed)
			}
			return
		}
		defer l.end(true)
		t.done(stepConnect, StepOK, "accepted")
	}
	t.echo(ctx, l)
}

// aside tries another broker than that of the running connection: whether it
// takes our certificate, and no more.
func (t *tester) aside(ctx context.Context) {
	if err := t.u.trial(ctx, t.b); err != nil {
		t.fail(stepCert, err)
		return
	}
	t.done(stepConnect, StepOK, "left out: the agent is connected, and brokers may share its client id")
	t.steps = t.steps[:stepPublish]
}

func (t *tester) clock() {
	now, state, word := time.Now().UTC(), StepOK, "NTP synchronised"
	if !t.u.env.Clock.Synced() {
		state, word = StepWarn, "not synchronised"
	}
	if floor := t.u.now().UTC(); floor.After(now.Add(time.Minute)) {
		state = StepWarn
		word += "; certificates are checked as of " + floor.Format("2006-01-02 15:04:05Z") + ", which has certainly passed"
	}
	t.done(stepClock, state, "%s, %s", now.Format("2006-01-02 15:04:05Z"), word)
}

func (t *tester) lookup(ctx context.Context) ([]string, error) {
	host := t.b.host
	if t.u.proxy.host != "" {
		host = t.u.proxy.host // the proxy resolves the broker's name
	}
	if ip := net.ParseIP(host); ip != nil {
		return []string{ip.String()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	return t.resolver.LookupHost(ctx, host)
}

// otherName tells whether the name server that does not know the broker knows
// a name that everybody knows.
func (t *tester) otherName(ctx context.Context) string {
	const known = "example.org"
	took := time.Since(t.began)
	ctx, cancel := context.WithTimeout(ctx, stepLimit/3)
	defer cancel()
	word := "resolves"
	if _, err := t.resolver.LookupHost(ctx, known); err != nil {
		word = "does not resolve either"
	}
	return fmt.Sprintf(" in %d ms; %s %s", took.Milliseconds(), known, word)
}

// otherPort tells whether the port that most networks let out is open.
func (t *tester) otherPort(ctx context.Context, host string) string {
	if t.b.port == "443" || t.u.proxy.host != "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, stepLimit/3)
	defer cancel()
	addr, began := net.JoinHostPort(host, "443"), time.Now()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	took := time.Since(began).Milliseconds()
	switch {
	case err == nil:
		c.Close()
		return fmt.Sprintf("; %s opens in %d ms", addr, took)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("; %s refuses in %d ms, so the host can be reached", addr, took)
	}
	return fmt.Sprintf("; %s does not open either", addr)
}

func (t *tester) plain() {
	state, word := StepOK, "not used: loopback"
	if !t.b.loopback() {
		state, word = StepWarn, "not used: everything travels unencrypted (insecure: plain-text)"
	}
	t.done(stepTLS, state, "%s", word)
	t.done(stepCert, StepOK, "not used")
}

// tls makes the handshake and judges both certificates. nil: one failed.
func (t *tester) tls(ctx context.Context, raw *rawConn) net.Conn {
	u := t.u
	files, fileErr := u.loadFiles()
	var bad *Error
	if errors.As(fileErr, &bad) && (bad.Code == "ca-file" || bad.Code == "crl") {
		t.fail(stepTLS, bad)
		return nil
	}
	c := files.config(&u.opts, t.b, u.now)
	c.ClientSessionCache = nil // a whole handshake, not a resumed one
	var server *tls.ConnectionState
	verify := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if verify != nil {
			if err := verify(s); err != nil {
				return err
			}
		}
		server = &s
		return nil
	}
	t.start()
	conn, err := openTLS(ctx, raw, c, min(stepLimit, u.tune.connect))
	if server != nil {
		leaf := server.PeerCertificates[0]
		t.done(stepTLS, StepOK, "%s, server CN=%s, %d d left", tls.VersionName(server.Version), leaf.Subject.CommonName, days(leaf.NotAfter))
	}
	switch {
	case server == nil:
		t.fail(stepTLS, explain(atTLS, err, u.situation(t.b)))
		return nil
	case bad != nil: // our files are at fault, whatever the broker says
		t.fail(stepCert, bad)
	case err != nil:
		t.fail(stepCert, explain(atTLS, err, u.situation(t.b)))
		return nil
	case files.pair == nil:
		t.done(stepCert, StepOK, "none configured")
	default:
		state := StepOK
		if days(files.info.NotAfter) < 30 {
			state = StepWarn
		}
		t.done(stepCert, state, "CN=%s, %d d left, %d certificate(s) in the file", files.info.Subject, days(files.info.NotAfter), files.info.Chain)
	}
	if bad != nil {
		if conn != nil {
			conn.Close()
		}
		return nil
	}
	return conn
}

func days(t time.Time) int { return int(time.Until(t).Hours() / 24) }

// echo publishes to the test topic and waits for the PUBACK, and for the
// broker to deliver the message back: only that proves the right to publish,
// since a broker of MQTT 3.1.1 acknowledges what it throws away.
func (t *tester) echo(ctx context.Context, l *link) {
	topic := t.u.topicOf("test")
	nonce := rand.Text()
	back := make(chan struct{}, 1)
	t.start()
	granted := false
	if t.u.echoes() {
		sub, ok := l.client.Subscribe(topic, 1, func(_ mqtt.Client, m mqtt.Message) {
			var got struct{ Nonce string }
			if json.Unmarshal(m.Payload(), &got) == nil && got.Nonce == nonce {
				select {
				case back <- struct{}{}:
				default:
				}
			}
		}).(*mqtt.SubscribeToken)
		if !ok || t.wait(ctx, l, sub) != nil {
			t.fail(stepPublish, t.explain(l, sub))
			return
		}
		granted = sub.Result()[topic] != 0x80
		if granted {
			defer func() { t.wait(ctx, l, l.client.Unsubscribe(topic)) }()
		}
	}

	t.start()
	message, _ := json.Marshal(map[string]any{"gw": t.u.env.Gateway, "test": true, "nonce": nonce, "sent": time.Now().UnixMilli()})
	token := l.client.Publish(topic, 1, false, message).(*mqtt.PublishToken)
	sent := published{token, l}
	if err := t.wait(ctx, l, token); err != nil || !proven(sent) {
		t.fail(stepPublish, t.explain(l, token))
		return
	}
	l.wire.forget(token.MessageID())
	t.done(stepPublish, StepOK, "PUBACK for %s, %d bytes", topic, len(message))

	doubt := &Error{Code: "puback", Msg: "acknowledged; delivery not proven",
		Likely: "the broker lets us not subscribe to " + topic + ", or throws away what we publish: MQTT 3.1.1 acknowledges both",
		Try:    "ask the cloud team whether messages arrive, and for the right to subscribe to " + topic}
	if !t.u.echoes() {
		doubt.Likely, doubt.Try = "a platform of preset "+t.u.opts.Preset+" delivers nothing back to the device", "look there for a message with test: true"
	}
	limit := time.NewTimer(min(stepLimit/2, t.u.tune.connect))
	defer limit.Stop()
	if granted {
		select {
		case <-back:
			t.done(stepEcho, StepOK, "the broker delivered it back: topic rights fine")
			return
		case <-limit.C:
		case <-l.wire.dead:
		case <-ctx.Done():
		}
	}
	t.done(stepEcho, StepUnknown, "%s (help puback)", doubt.Msg)
	t.steps[stepEcho].Err = doubt
}

// post is echo for HTTPS: the answer has to name what was posted.
func (t *tester) post(ctx context.Context) {
	u := t.u
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	files := loaded{}
	if t.b.secure {
		files, _ = u.loadFiles() // judged in the step before
	}
	p, problem := u.newPosts(t.b, files)
	if problem != nil {
		t.fail(stepConnect, problem)
		return
	}
	defer p.end(true)
	defer context.AfterFunc(ctx, p.cancel)()
	nonce := rand.Text()
	body, _ := json.Marshal(map[string]any{"gw": u.env.Gateway, "test": true, "nonce": nonce, "sent": time.Now().UnixMilli()})
	m := message{topic: u.topicOf("test"), body: body}
	t.start()
	if _, err := p.exchange(m, "", nil); err != nil {
		t.fail(stepConnect, explain(atConnect, err, u.situation(t.b)))
		return
	}
	t.done(stepConnect, StepOK, "the server takes our messages")
	t.start()
	if _, err := p.exchange(m, "test/"+nonce, nil); err != nil {
		t.fail(stepPublish, explain(atSession, err, u.situation(t.b)))
		return
	}
	t.done(stepPublish, StepOK, "%d bytes for %s", len(body), m.topic)
	t.done(stepEcho, StepOK, "the answer names our message: the receiver has it")
}

// wait waits for a token, at most the limit of a step.
func (t *tester) wait(ctx context.Context, l *link, token mqtt.Token) error {
	limit := time.NewTimer(min(stepLimit, t.u.tune.connect))
	defer limit.Stop()
	select {
	case <-token.Done():
		return token.Error()
	case <-l.wire.dead:
		return l.wire.cause()
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		return errStalled
	}
}

// explain says why a token failed.
func (t *tester) explain(l *link, token mqtt.Token) *Error {
	err := l.wire.cause()
	if err == nil {
		select {
		case <-token.Done():
			err = token.Error()
		default:
		}
	}
	if err == nil {
		err = errStalled
	}
	return explain(atSession, err, t.u.situation(t.b))
}
