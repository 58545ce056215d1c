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
	lost   chan error // 1-buffered: the client gave the connection up
	in     chan incoming
}

// publishWait is how long a Publish may wait for the client to take the
// message. It is only called when the client has nothing to write, so this
// passes only if the connection is lost in that very moment.
const publishWait = 2 * time.Second

// open makes one connection: files, TCP, TLS, CONNECT.
func (u *Uplink) open(ctx context.Context) (*link, *Error) {
	b := u.broker()
	var files loaded
	if b.secure {
		var err error
		if files, err = u.loadFiles(); err != nil {
			return nil, explain(atFiles, err, u.situation(b))
		}
	}
	w, err := u.dial(ctx, b, files)
	var l *link
	if err == nil {
		l, err = u.connect(ctx, w, true)
	}
	if err != nil {
		if b.secure && ctx.Err() == nil && u.id.refuse(files, err) {
			u.log.Warn("no connection with the new certificate files: back to those that worked", "code", err.Code, "error", err.Error())
		}
		return nil, err
	}
	if b.secure {
		u.id.accept(files)
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

// dial opens TCP, through the proxy if there is one, TLS and WebSocket.
func (u *Uplink) dial(ctx context.Context, b broker, files loaded) (*wire, *Error) {
	raw, err := u.tcp(ctx, b, u.tune.connect)
	if err != nil {
		return nil, err
	}
	var c net.Conn = raw
	if b.secure {
		t, err := openTLS(ctx, raw, files.config(&u.opts, b, u.now), u.tune.connect)
		if err != nil {
			return nil, explain(atTLS, err, u.situation(b))
		}
		c = t
	}
	return u.wrap(ctx, b, c, raw)
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
	l := &link{wire: w, lost: make(chan error, 1), in: make(chan incoming, 16)}
	password, err := readSecret(u.opts.PasswordFile, "uplink.password_file")
	if err != nil {
		w.abort()
		return nil, err
	}
	o := mqtt.NewClientOptions().
		AddBroker("tcp://" + w.broker.addr()). // only a name here: the connection is open already
		SetClientID(u.clientID()).SetUsername(u.opts.Username).SetPassword(password).
		SetProtocolVersion(4).SetCleanSession(true).
		SetAutoReconnect(false).SetConnectRetry(false).SetResumeSubs(false).
		SetKeepAlive(u.opts.Keepalive).SetPingTimeout(u.pingTimeout()).
		SetConnectTimeout(u.tune.connect).SetWriteTimeout(publishWait).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) { l.lost <- err }).
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return w, nil })
	if m, ok := u.speaker.will(); will && ok {
		o.SetBinaryWill(m.topic, m.body, 1, m.retained)
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
// moment until the client has stopped.
func (l *link) end(politely bool) {
	if !politely {
		l.wire.abort()
	}
	l.client.Disconnect(250)
}

// publish hands a message to the client, which writes it by itself. The
// bytes must stay as they are until the PUBACK.
func (l *link) publish(topic string, retained bool, b []byte) (*mqtt.PublishToken, error) {
	select {
	case <-l.wire.dead: // the connection knows before the client does
		return nil, l.wire.cause()
	default:
	}
	token, ok := l.client.Publish(topic, 1, retained, b).(*mqtt.PublishToken)
	if !ok {
		return nil, fmt.Errorf("uplink: no token for a publish to %s", topic)
	}
	select {
	case <-token.Done():
		// Done this early is a refusal, or a very fast PUBACK.
		return token, token.Error()
	default:
		return token, nil
	}
}

// publishQuick is publish with quality 0: nothing proves that it arrived.
func (l *link) publishQuick(topic string, retained bool, b []byte) error {
	token := l.client.Publish(topic, 0, retained, b)
	select {
	case <-l.wire.dead:
		return l.wire.cause()
	case <-token.Done():
		return token.Error()
	default:
		return nil
	}
}

// subscribe asks for a topic filter with quality 1; what comes is put into
// l.in. It waits for the broker's answer, at most the limit. A refused filter
// is an Error, and the connection stays good.
func (l *link) subscribe(filter, who string, limit time.Duration) error {
	token := l.client.Subscribe(filter, 1, func(_ mqtt.Client, m mqtt.Message) {
		select {
		case l.in <- incoming{topic: m.Topic(), body: m.Payload(), retained: m.Retained(), again: m.Duplicate()}:
		case <-l.wire.dead:
		}
	}).(*mqtt.SubscribeToken)
	wait := time.NewTimer(limit)
	defer wait.Stop()
	select {
	case <-l.wire.dead:
		return l.wire.cause()
	case err := <-l.lost:
		return err
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

// proven tells whether the PUBACK for this very publish came on this
// connection. A token that is done is not enough: SUBACK, UNSUBACK and
// PUBCOMP complete it too.
func (l *link) proven(t *mqtt.PublishToken) bool {
	select {
	case <-t.Done():
	default:
		return false
	}
	return t.Error() == nil && !l.wire.proofOf(t.MessageID()).acked.IsZero()
}
