package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// link is one connection and the MQTT client that was made for it.
type link struct {
	files  loaded // the certificate files it was made with
	client mqtt.Client
	wire   *wire
	in     chan incoming
	over   chan struct{} // closed when nobody takes from in any more
}

var _ carrier = (*link)(nil)

// publishWait is how long a Publish may wait for the client to take the
// message. It is only called when the wire has room, and then the client does
// not write, so this passes only if the connection is lost in that very moment.
const publishWait = 2 * time.Second

// open makes one connection: files, TCP, TLS, CONNECT.
func (u *Uplink) open(ctx context.Context) (carrier, *Error) {
	b := u.broker()
	var files loaded
	if b.secure {
		var err error
		if files, err = u.loadFiles(); err != nil {
			return nil, explain(atFiles, err, u.situation(b))
		}
	}
	c, err := u.carrier(ctx, b, files)
	if err != nil {
		if b.secure && ctx.Err() == nil && u.id.refuse(files, err) {
			u.log.Warn("no connection with the new certificate files: back to those that worked", "code", err.Code, "error", err.Error())
		}
		return nil, err
	}
	if b.secure {
		u.id.accept(files)
	}
	return c, nil
}

// carrier makes the connection that the url asks for.
func (u *Uplink) carrier(ctx context.Context, b broker, files loaded) (carrier, *Error) {
	if b.posts() {
		p, err := u.openPosts(ctx, b, files)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	w, err := u.dial(ctx, b, files)
	if err != nil {
		return nil, err
	}
	l, err := u.connect(ctx, w, true)
	if err != nil {
		return nil, err
	}
	l.files = files
	return l, nil
}

// reach reads the certificate files and dials.
func (u *Uplink) reach(ctx context.Context, b broker) (*wire, *Error) {
	var files loaded
	if b.secure {
		var err error
		if files, err = u.loadFiles(); err != nil {
			return nil, explain(atFiles, err, u.situation(b))
		}
	}
	return u.dial(ctx, b, files)
}

// dial opens what MQTT is written to: TCP, TLS and WebSocket.
func (u *Uplink) dial(ctx context.Context, b broker, files loaded) (*wire, *Error) {
	c, raw, err := u.secured(ctx, b, files)
	if err != nil {
		return nil, err
	}
	return u.wrap(ctx, b, c, raw)
}

// secured opens TCP, through the proxy if there is one, and TLS.
func (u *Uplink) secured(ctx context.Context, b broker, files loaded) (net.Conn, *rawConn, *Error) {
	raw, err := u.tcp(ctx, b, u.tune.connect)
	if err != nil {
		return nil, nil, err
	}
	if !b.secure {
		return raw, raw, nil
	}
	c := files.config(&u.opts, b, u.now)
	if u.ending() {
		c.ClientSessionCache = nil // a session that is resumed shows the old certificate
	}
	t, problem := openTLS(ctx, raw, c, u.tune.connect)
	if problem != nil {
		return nil, nil, explain(atTLS, problem, u.situation(b))
	}
	u.shown(t.ConnectionState().VerifiedChains)
	return t, raw, nil
}

// wrap makes what MQTT is written to of an open connection.
func (u *Uplink) wrap(ctx context.Context, b broker, c net.Conn, raw *rawConn) (*wire, *Error) {
	if b.websocket() {
		ws, err := upgrade(ctx, c, b, u.tune.connect)
		if err != nil {
			return nil, explain(atConnect, err, u.situation(b))
		}
		c = ws
	}
	return newWire(c, raw, b), nil
}

// tcp opens a connection to the broker, or to the proxy and through it.
func (u *Uplink) tcp(ctx context.Context, b broker, limit time.Duration) (*rawConn, *Error) {
	s := u.situation(b)
	s.timeout = limit
	if u.proxy.host == "" {
		raw, err := openTCP(ctx, b.addr(), limit, u.tune.write, &u.meter)
		if err != nil {
			return nil, explain(tcpStage(err), err, s)
		}
		return raw, nil
	}
	password, problem := readSecret(u.opts.ProxyFile, "uplink.proxy_password_file")
	if problem != nil {
		return nil, problem
	}
	raw, err := openTCP(ctx, u.proxy.addr(), limit, u.tune.write, &u.meter)
	if err != nil {
		s.broker, s.proxied = u.proxy, true
		return nil, explain(tcpStage(err), err, s)
	}
	if err := through(ctx, raw, u.proxy, b.addr(), u.opts.ProxyUser, password, limit); err != nil {
		raw.Close()
		s.proxy = u.proxy
		return nil, explain(atProxy, err, s)
	}
	return raw, nil
}

// loadFiles reads the certificate files and keeps what is wrong with new ones.
func (u *Uplink) loadFiles() (loaded, error) {
	files, err := u.id.load(u.now())
	warning := ""
	if files.warn != nil {
		warning = files.warn.Error()
		u.log.Warn("the new certificate files are not used", "code", files.warn.Code, "error", warning)
	}
	u.count(func(s *Stats) { s.CertWarning = warning })
	return files, err
}

// tcpStage tells a failed look-up from a failed connection.
func tcpStage(err error) stage {
	var d *net.DNSError
	if errors.As(err, &d) {
		return atDNS
	}
	return atTCP
}

// connect speaks MQTT on an open connection; with a will if this is the
// gateway itself. The wire is closed if it fails.
func (u *Uplink) connect(ctx context.Context, w *wire, will bool) (*link, *Error) {
	l := &link{wire: w, in: make(chan incoming, 16), over: make(chan struct{})}
	user, password, until, err := u.credentials(w.broker)
	if err != nil {
		w.abort()
		return nil, err
	}
	if will {
		u.until = until
	}
	o := mqtt.NewClientOptions().
		AddBroker("tcp://" + w.broker.addr()). // only a name here: the connection is open already
		SetClientID(u.clientID()).SetUsername(user).SetPassword(password).
		SetProtocolVersion(4).SetCleanSession(true).
		SetAutoReconnect(false).SetConnectRetry(false).SetResumeSubs(false).
		SetKeepAlive(u.opts.Keepalive).SetPingTimeout(u.pingTimeout()).
		SetConnectTimeout(u.tune.connect).SetWriteTimeout(publishWait).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) { w.lose(err) }).
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return w, nil })
	if m, ok := u.speaker.will(); will && ok {
		o.SetBinaryWill(m.topic, m.body, 1, m.retained && u.retains())
	}
	l.client = mqtt.NewClient(o)
	stop := context.AfterFunc(ctx, w.abort)
	token := l.client.Connect()
	<-token.Done() // bounded by the connect timeout and ctx
	stop()
	if err := token.Error(); err != nil {
		if cause := w.cause(); errors.Is(cause, errMalformed) {
			err = cause
		}
		w.abort()
		return nil, explain(atConnect, err, u.situation(w.broker))
	}
	if ctx.Err() != nil {
		l.end(false)
		return nil, explain(atConnect, ctx.Err(), u.situation(w.broker))
	}
	return l, nil
}

// pingTimeout keeps the notice of a dead idle link within two keep-alives:
// keep-alive, two of the client's looks at its watch, and this. The client
// looks every 5 s above a keep-alive of 10 s, else four times in it.
func (u *Uplink) pingTimeout() time.Duration {
	keep := u.opts.Keepalive.Truncate(time.Second) // the client counts whole seconds
	limit := min(15*time.Second, keep/4)
	if keep > 10*time.Second {
		limit = min(limit, keep-10*time.Second)
	}
	return limit
}

// readSecret returns the first line of a file, "" for no file.
func readSecret(file, key string) (string, *Error) {
	if file == "" {
		return "", nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", &Error{Code: "password-file", Msg: "the file of " + key + " cannot be read",
			Try: "check " + key + " and the rights of the file", Err: err}
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSuffix(line, "\r"), nil
}

// end closes the connection, with DISCONNECT if politely, and waits a
// moment until the client has stopped. What has come and nobody takes any more
// would keep the client's goroutines for good.
func (l *link) end(politely bool) {
	if !politely {
		l.wire.abort()
	}
	l.client.Disconnect(250)
	close(l.over)
}

// post hands a message to the client, which writes it by itself.
func (l *link) post(m message, _ string) (ticket, error) {
	select {
	case <-l.wire.dead: // the connection knows before the client does
		return nil, l.wire.cause()
	default:
	}
	token, ok := l.client.Publish(m.topic, 1, m.retained, l.wire.carry(m.body)).(*mqtt.PublishToken)
	if !ok {
		return nil, fmt.Errorf("uplink: no token for a publish to %s", m.topic)
	}
	select {
	case <-token.Done():
		// Done this early is a refusal, or a very fast PUBACK.
		if err := token.Error(); err != nil {
			return nil, l.why(err)
		}
	default:
	}
	return published{token, l}, nil
}

// quick is post with quality 0: nothing proves that it arrived.
func (l *link) quick(m message) error {
	token := l.client.Publish(m.topic, 0, m.retained, l.wire.carry(m.body))
	select {
	case <-l.wire.dead:
		return l.wire.cause()
	case <-token.Done():
		if err := token.Error(); err != nil {
			return l.why(err)
		}
	default:
	}
	return nil
}

func (l *link) busy() bool                { return l.wire.unwritten() >= ahead }
func (l *link) held() time.Time           { return time.Time{} }
func (l *link) changed() <-chan struct{}  { return l.wire.notify }
func (l *link) gone() <-chan struct{}     { return l.wire.dead }
func (l *link) incoming() <-chan incoming { return l.in }
func (l *link) peer() (broker, loaded)    { return l.wire.broker, l.files }

// why prefers the error of the connection to what the client says.
func (l *link) why(err error) error {
	if err == nil || err.Error() == "connection lost before Publish completed" {
		select { // the client says why in a moment
		case <-l.wire.dead:
		case <-time.After(time.Second):
		}
	}
	if cause := l.wire.cause(); cause != nil {
		return cause
	}
	return err
}

// published is a PUBLISH on its way. That the token is done is not enough:
// SUBACK, UNSUBACK and PUBCOMP complete it too.
type published struct {
	token *mqtt.PublishToken
	link  *link
}

func (p published) done() <-chan struct{} { return p.token.Done() }
func (p published) written() time.Time    { return p.link.wire.proofOf(p.token.MessageID()).written }
func (p published) drop()                 { p.link.wire.forget(p.token.MessageID()) }

func (p published) outcome() (time.Time, error) {
	if err := p.token.Error(); err != nil {
		return time.Time{}, err
	}
	acked := p.link.wire.proofOf(p.token.MessageID()).acked
	if acked.IsZero() {
		return acked, errProof
	}
	return acked, nil
}

// subscribe asks for a topic filter with quality 1; what comes is put into
// l.in. It waits for the broker's answer, at most the limit. A refused filter
// is an Error, and the connection stays good.
func (l *link) subscribe(filter, who string, limit time.Duration) error {
	token := l.client.Subscribe(filter, 1, func(_ mqtt.Client, m mqtt.Message) {
		select {
		case l.in <- incoming{topic: m.Topic(), body: m.Payload(), retained: m.Retained(), again: m.Duplicate()}:
		case <-l.wire.dead:
		case <-l.over:
		}
	}).(*mqtt.SubscribeToken)
	wait := time.NewTimer(limit)
	defer wait.Stop()
	select {
	case <-l.wire.dead:
		return l.wire.cause()
	case <-wait.C:
		return errStalled
	case <-token.Done():
	}
	if err := token.Error(); err != nil && token.Result()[filter] != 0x80 {
		return err
	}
	if token.Result()[filter] > 2 {
		return &Error{Code: "subscribe-refused", Msg: fmt.Sprintf("the broker does not let %s listen to %s", who, filter),
			Likely: "an access rule of the broker", Try: "ask the cloud team for read access to this topic"}
	}
	return nil
}
