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
	w, err := u.dial(ctx)
	if err != nil {
		return nil, err
	}
	return u.connect(ctx, w, true)
}

// dial reads the certificate files and opens TCP and TLS.
func (u *Uplink) dial(ctx context.Context) (*wire, *Error) {
	var files loaded
	if u.broker.secure {
		var err error
		if files, err = u.loadFiles(); err != nil {
			return nil, explain(atFiles, err, u.situation())
		}
	}
	raw, err := openTCP(ctx, u.broker.addr(), u.tune.connect, u.tune.write, &u.meter)
	if err != nil {
		return nil, explain(tcpStage(err), err, u.situation())
	}
	if !u.broker.secure {
		return newWire(raw, raw), nil
	}
	t, err := openTLS(ctx, raw, files.config(&u.opts, u.broker, u.now), u.tune.connect)
	if err != nil {
		return nil, explain(atTLS, err, u.situation())
	}
	return newWire(t, raw), nil
}

// loadFiles reads the certificate files and keeps what is wrong with new ones.
func (u *Uplink) loadFiles() (loaded, error) {
	files, err := u.id.load(u.now())
	warning := ""
	if files.warn != nil {
		warning = files.warn.Error()
		u.log.Warn("the new certificate is not used", "code", files.warn.Code, "error", warning)
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
	password, err := u.password()
	if err != nil {
		w.abort()
		return nil, err
	}
	o := mqtt.NewClientOptions().
		AddBroker("tcp://" + u.broker.addr()). // only a name here: the connection is open already
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
		return nil, explain(atConnect, err, u.situation())
	}
	if ctx.Err() != nil {
		l.end(false)
		return nil, explain(atConnect, ctx.Err(), u.situation())
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

// password reads the first line of the password file.
func (u *Uplink) password() (string, *Error) {
	if u.opts.PasswordFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(u.opts.PasswordFile)
	if err != nil {
		return "", &Error{Code: "password-file", Msg: "the password file cannot be read",
			Try: "check uplink.password_file and its rights", Err: err}
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
