package uplink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"time"

	"tidegate/uplink/payload"
)

// postsAtOnce is how many requests may be under way; each has a connection
// of its own, which is kept.
const postsAtOnce = 4

// The time to wait after 429 or 503 without a Retry-After, and the longest
// that is obeyed.
const (
	retryAfter     = 30 * time.Second
	retryAfterMost = time.Hour
)

// posts carries messages as HTTPS requests, as docs/https.md describes: what
// the receiver names in its answer is acknowledged.
type posts struct {
	u       *Uplink
	b       broker
	files   loaded
	client  http.Client
	auth    string // value of Authorization, "" for none
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	notify  chan struct{}
	closing chan struct{} // the connection is lost

	mu    sync.Mutex
	busyN int
	err   error
	until time.Time // the receiver wants nothing before
}

var _ carrier = (*posts)(nil)

// answered is an answer that is no acknowledgement.
type answered struct {
	status int
	text   string // beginning of the body, one line
	retry  time.Duration
}

func (e *answered) Error() string {
	text := fmt.Sprintf("the answer is %d %s", e.status, http.StatusText(e.status))
	if e.text != "" {
		text += ": " + e.text
	}
	return text
}

// refuses tells that the receiver will not take this very message, however
// often it is sent.
func refuses(err error) bool {
	a, ok := errors.AsType[*answered](err)
	return ok && (a.status == http.StatusBadRequest || a.status == http.StatusRequestEntityTooLarge || a.status == http.StatusUnprocessableEntity)
}

// openPosts says online to the receiver: that it answers is the connection.
func (u *Uplink) openPosts(ctx context.Context, b broker, files loaded) (*posts, *Error) {
	p, err := u.newPosts(b, files)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, p.cancel)
	defer stop()
	m := message{topic: u.topicOf("status"), body: payload.Status(u.state("online", nil))}
	if _, err := p.exchange(m, "", nil); err != nil {
		p.end(false)
		return nil, explain(atConnect, err, u.situation(b))
	}
	return p, nil
}

func (u *Uplink) newPosts(b broker, files loaded) (*posts, *Error) {
	p := &posts{u: u, b: b, files: files, notify: make(chan struct{}, 1), closing: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	token, err := readSecret(u.opts.TokenFile, "uplink.token_file")
	if err != nil {
		p.cancel()
		return nil, err
	}
	if token != "" {
		p.auth = "Bearer " + token
	} else if u.opts.Username != "" {
		password, err := readSecret(u.opts.PasswordFile, "uplink.password_file")
		if err != nil {
			p.cancel()
			return nil, err
		}
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(u.opts.Username, password)
		p.auth = r.Header.Get("Authorization")
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, _, err := u.secured(ctx, b, files)
		if err != nil {
			return nil, err // not a nil *Error in an interface
		}
		return c, nil
	}
	p.client = http.Client{
		Transport: &http.Transport{DialContext: dial, DialTLSContext: dial, DisableCompression: true,
			MaxIdleConnsPerHost: postsAtOnce, MaxConnsPerHost: postsAtOnce, IdleConnTimeout: 5 * time.Minute,
			ResponseHeaderTimeout: u.tune.ack, MaxResponseHeaderBytes: 64 << 10},
		// Another host would get what is meant for this one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return p, nil
}

// posted is a message on its way.
type posted struct {
	end   chan struct{}
	mu    sync.Mutex
	wrote time.Time
	acked time.Time
	err   error
}

func (t *posted) done() <-chan struct{} { return t.end }
func (t *posted) drop()                 {}

func (t *posted) written() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wrote
}

func (t *posted) outcome() (time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.acked, t.err
}

func (p *posts) post(m message, name string) (ticket, error) {
	if err := p.cause(); err != nil {
		return nil, err
	}
	t := &posted{end: make(chan struct{})}
	p.mu.Lock()
	p.busyN++
	p.mu.Unlock()
	p.wg.Go(func() {
		err := p.deliver(m, name, t)
		p.mu.Lock()
		p.busyN--
		if err != nil && p.err == nil {
			p.err = err
			close(p.closing)
		}
		p.mu.Unlock()
		t.mu.Lock()
		if t.err = err; err == nil {
			t.acked = time.Now()
		}
		t.mu.Unlock()
		close(t.end)
		p.signal()
	})
	return t, nil
}

// deliver posts a message until the receiver does not ask for patience.
func (p *posts) deliver(m message, name string, t *posted) error {
	for {
		wait, err := p.exchange(m, name, func() {
			t.mu.Lock()
			t.wrote = time.Now()
			t.mu.Unlock()
			p.signal()
		})
		if err == nil || wait == 0 {
			return err
		}
		p.hold(wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-p.ctx.Done():
			timer.Stop()
			return err
		case <-p.closing:
			timer.Stop()
			return err
		}
	}
}

func (p *posts) hold(wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := time.Now().Add(wait); t.After(p.until) {
		p.until = t
	}
}

// exchange makes one request. The wait is not zero where the receiver asks
// to come again later.
func (p *posts) exchange(m message, name string, wrote func()) (wait time.Duration, err error) {
	ctx := p.ctx
	if wrote != nil {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { wrote() }})
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.b.String(), bytes.NewReader(m.body))
	if err != nil {
		return 0, err
	}
	h := r.Header
	h.Set("User-Agent", "tidegate/"+p.u.env.Version)
	h.Set("Content-Type", contentType(p.u.opts.Shape, m.body))
	h.Set("Tidegate-Topic", m.topic)
	if bytes.HasPrefix(m.body, []byte{0x1f, 0x8b}) {
		h.Set("Content-Encoding", "gzip")
	}
	if name != "" {
		h.Set("Idempotency-Key", name)
	}
	if p.auth != "" {
		h.Set("Authorization", p.auth)
	}
	resp, err := p.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return 0, err
	}
	a := &answered{status: resp.StatusCode, text: firstLine(body)}
	switch {
	case a.status/100 == 2 && name == "":
		return 0, nil
	case a.status/100 == 2:
		var said struct{ Ack string }
		if json.Unmarshal(body, &said) != nil || said.Ack != name {
			return 0, fmt.Errorf("%w: %w", errUnnamed, a)
		}
		return 0, nil
	case a.status == http.StatusTooManyRequests, a.status == http.StatusServiceUnavailable:
		return patience(resp.Header.Get("Retry-After")), a
	}
	return 0, a
}

// errUnnamed is a success that does not name what it received: a captive
// portal says 200 too.
var errUnnamed = errors.New("the answer does not name the number of the message")

// patience reads a Retry-After: seconds or a date.
func patience(s string) time.Duration {
	d := retryAfter
	if n, err := strconv.Atoi(strings.TrimSpace(s)); err == nil && n >= 0 {
		d = time.Duration(min(n, int(retryAfterMost/time.Second))) * time.Second
	} else if t, err := http.ParseTime(s); err == nil {
		d = time.Until(t)
	}
	return max(100*time.Millisecond, min(d, retryAfterMost))
}

// contentType names what a body is. What we say of ourselves is JSON in
// every shape.
func contentType(shape string, body []byte) string {
	switch {
	case bytes.HasPrefix(body, []byte("{")), shape == "records", shape == "columns":
		return "application/json"
	case shape == "senml-json":
		return "application/senml+json"
	case shape == "senml-cbor":
		return "application/senml+cbor"
	case shape == "influx":
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

func firstLine(b []byte) string {
	s, _, _ := strings.Cut(strings.TrimSpace(string(b[:min(len(b), 120)])), "\n")
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s), "?")
}

func (p *posts) quick(m message) error {
	_, err := p.post(m, "")
	return err
}

// subscribe always fails: nothing comes down this way.
func (p *posts) subscribe(filter, _ string, _ time.Duration) error {
	return &Error{Code: "subscribe-refused", Msg: "nothing can be heard over HTTPS: " + filter,
		Likely: "the uplink goes to " + p.b.String(), Try: "use MQTT for what the cloud has to say"}
}

func (p *posts) incoming() <-chan incoming { return nil }
func (p *posts) changed() <-chan struct{}  { return p.notify }
func (p *posts) gone() <-chan struct{}     { return p.closing }
func (p *posts) peer() (broker, loaded)    { return p.b, p.files }

func (p *posts) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.busyN >= postsAtOnce || time.Now().Before(p.until)
}

func (p *posts) held() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until
}

func (p *posts) cause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *posts) why(err error) error {
	if cause := p.cause(); cause != nil {
		return cause
	}
	return err
}

func (p *posts) end(bool) {
	p.cancel()
	p.wg.Wait()
	p.client.CloseIdleConnections()
}

func (p *posts) signal() {
	select {
	case p.notify <- struct{}{}:
	default:
	}
}

// explainAnswer knows the answers of a web server; false for other errors.
func explainAnswer(e *Error, err error, s situation) bool {
	a, ok := errors.AsType[*answered](err)
	if !ok {
		return false
	}
	e.Seen = "the server answered " + strings.TrimPrefix(a.Error(), "the answer is ")
	switch {
	case errors.Is(err, errUnnamed):
		e.Code, e.Msg = "https-ack", fmt.Sprintf("%s takes what we send without naming it", s.broker)
		e.Likely = "another page answers there, such as the portal of a network, or the receiver does not do what docs/https.md asks for"
		e.Try = `the answer has to be {"ack":"..."} with the Idempotency-Key of the request`
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
		e.Code, e.Msg = "https-auth", fmt.Sprintf("%s does not let us in", s.broker)
		e.Likely = "the token, the user or the client certificate is not known there"
		e.Try = "check token_file with the cloud team"
	case a.status == http.StatusTooManyRequests, a.status == http.StatusServiceUnavailable:
		e.Code, e.Msg = "https-busy", fmt.Sprintf("%s has no time for us", s.broker)
		e.Likely, e.Try = "it is overloaded or being serviced", "nothing: it is tried again"
	case refuses(err):
		e.Code, e.Msg = "https-refused", fmt.Sprintf("%s does not take this message", s.broker)
		e.Likely = "it is larger than the server allows, or not what the receiver expects"
		e.Try = "read the log of the receiver; a smaller batch.max_bytes helps against 413"
	default:
		e.Code, e.Msg = "https-status", fmt.Sprintf("%s does not work as a receiver", s.broker)
		e.Likely = "another path, or a server that is not well"
		e.Try = "check the path in uplink.url with the cloud team"
	}
	return true
}
