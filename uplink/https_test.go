package uplink

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tidegate/internal/sim"
)

// taken is one request as a receiver got it.
type taken struct {
	key, topic, kind string
	body             []byte
	acked            bool
	at               time.Time
}

// receiver is the cloud's side of HTTPS. judge may answer in its place.
type receiver struct {
	mu    sync.Mutex
	token string
	got   []taken
	n     int // named requests
	judge func(n int, w http.ResponseWriter, r *http.Request) (answered, keep bool)
}

func (v *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if v.token != "" && r.Header.Get("Authorization") != v.token {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost {
		http.Error(w, "what?", http.StatusMethodNotAllowed)
		return
	}
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err == nil {
			body, err = io.ReadAll(z)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	key := r.Header.Get("Idempotency-Key")
	v.mu.Lock()
	if key != "" {
		v.n++
	}
	n := v.n
	v.mu.Unlock()
	done, keep := false, true
	if v.judge != nil && key != "" {
		done, keep = v.judge(n, w, r)
	}
	v.mu.Lock()
	if keep {
		v.got = append(v.got, taken{key, r.Header.Get("Tidegate-Topic"), r.Header.Get("Content-Type"), body, !done, time.Now()})
	}
	v.mu.Unlock()
	if done {
		return
	}
	if key == "" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	json.NewEncoder(w).Encode(map[string]string{"ack": key})
}

// all returns what was taken so far.
func (v *receiver) all() []taken {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.got)
}

// numbers returns the data batches in the order of their arrival.
func (v *receiver) numbers(t *testing.T) []uint64 {
	var out []uint64
	for _, g := range v.all() {
		if g.key == "" || strings.HasPrefix(g.key, "test/") {
			continue
		}
		var m struct {
			EP, Lane string
			Seq      uint64
		}
		if json.Unmarshal(g.body, &m) != nil {
			t.Errorf("%q", g.body)
		}
		if m.Lane == laneData && m.Seq != 0 {
			if g.key != fmt.Sprintf("%s/%s/%d", m.EP, m.Lane, m.Seq) {
				t.Errorf("key %q of number %d", g.key, m.Seq)
			}
			out = append(out, m.Seq)
		}
	}
	return out
}

func (v *receiver) acknowledged(seq uint64) bool {
	return slices.ContainsFunc(v.all(), func(g taken) bool { return g.acked && g.key == fmt.Sprintf("6f3a91c2/data/%d", seq) })
}

func serveReceiver(t *testing.T, v *receiver, ln net.Listener) string {
	addr, stop := serveHTTP(t, ln)(v)
	t.Cleanup(stop)
	return addr
}

// TestHTTPS posts batches with mutual TLS and a token.
func TestHTTPS(t *testing.T) {
	ca := newAuthority(t, "ca")
	sc, sk := ca.good("localhost")
	cc, ck := ca.good("gw-1")
	v := &receiver{token: "Bearer let-me-in"}
	addr := serveReceiver(t, v, listenTLS(t, sc, sk, ca, nil))
	token := write(t, 0o600, filepath.Join(t.TempDir(), "token"), []byte("let-me-in\n"))
	up := newUplink(t, "https://localhost:"+portOf(addr)+"/ingest?site=1", func(o *Options) {
		o.Identity = identityDir(t, ca.pem, cc, ck)
		o.TokenFile, o.Compress = token, "gzip"
	})
	for _, s := range up.Test(context.Background()) {
		if s.State != StepOK && s.Name != "clock" {
			t.Errorf("%+v %+v", s, s.Err)
		}
	}
	src := newStore(t).add(laneData, 20).add(laneEvent, 2)
	src.put(laneData, src.encode(src.cat, 21, strings.Repeat("long ", 200)))
	src.losses = []Loss{{Lane: laneData, From: 31, To: 33, Batches: 3, Readings: 5, Why: "full"}}
	u := start(t, up, src)
	eventually(t, 5*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	if r := complete(t, v.numbers(t), 21); r != 0 {
		t.Errorf("%d repeats", r)
	}
	words := map[string]int{}
	for _, g := range v.all() {
		words[g.topic[strings.LastIndexByte(g.topic, '/')+1:]]++
		if g.kind != "application/json" {
			t.Errorf("content type %s", g.kind)
		}
		if g.key == "6f3a91c2/data/31-33" {
			words["tombstone"]++
		}
	}
	if words["status"] < 3 || words["meta"] != 1 || words["event"] != 2 || words["gz"] != 1 || words["tombstone"] != 1 {
		t.Errorf("%v", words)
	}
	if s := u.Stats(); s.BytesOut == 0 || s.Cert == "" || s.Acked != 24 {
		t.Errorf("%+v", s)
	}
}

// TestHTTPSSweep lets the receiver misbehave at the n-th request, for every n
// and every way a server knows.
func TestHTTPSSweep(t *testing.T) {
	const batches = 10
	hijack := func(w http.ResponseWriter) {
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			c.Close()
		}
	}
	status := func(code int, header, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			if header != "" {
				w.Header().Set("Retry-After", header)
			}
			w.WriteHeader(code)
			io.WriteString(w, body)
			return false
		}
	}
	for name, move := range map[string]func(http.ResponseWriter, *http.Request) (keep bool){
		"drop before":  func(w http.ResponseWriter, _ *http.Request) bool { hijack(w); return false },
		"drop after":   func(w http.ResponseWriter, _ *http.Request) bool { hijack(w); return true },
		"silent":       func(w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
		"portal":       status(200, "", "<html>please log in</html>"),
		"other number": status(200, "", `{"ack":"6f3a91c2/data/999"}`),
		"no content":   status(204, "", ""),
		"redirect":     status(302, "", ""),
		"error":        status(500, "", "oops"),
		"later":        status(503, "0", ""),
		"too many":     status(429, "0", ""),
		"refuses once": status(422, "", "no"),
		"endless header": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("X", strings.Repeat("y", 1<<20))
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; n <= batches+1; n++ {
				fired := false
				v := &receiver{judge: func(i int, w http.ResponseWriter, r *http.Request) (bool, bool) {
					if i != n {
						return false, true
					}
					fired = true
					return true, move(w, r)
				}}
				ln := listen(t)
				addr, stop := serveHTTP(t, ln)(v)
				src := newStore(t).add(laneData, batches)
				src.onAck = func(_ string, seq uint64) {
					if !v.acknowledged(seq) {
						t.Errorf("%s at %d: number %d was acknowledged to the source only", name, n, seq)
					}
				}
				u := start(t, newUplink(t, "http://"+addr+"/", nil), src)
				eventually(t, 10*time.Second, "delivered", func() bool { return src.waiting() == 0 })
				src.add(laneData, 1)
				eventually(t, 10*time.Second, "live delivered", func() bool { return src.waiting() == 0 })
				u.stop()
				stop()
				if !fired {
					t.Errorf("%s at %d did not fire", name, n)
				}
				if r := complete(t, v.numbers(t), batches+1); r > postsAtOnce {
					t.Errorf("%s at %d: %d repeats", name, n, r)
				}
				if len(src.aside) != 0 {
					t.Errorf("%s at %d: set aside %v", name, n, src.aside)
				}
			}
		})
	}
}

// TestRetryAfter: a receiver that asks for patience gets it: nothing comes
// before its time, and the connection is no new one.
func TestRetryAfter(t *testing.T) {
	var asked time.Time
	v := &receiver{}
	v.judge = func(n int, w http.ResponseWriter, r *http.Request) (bool, bool) {
		if n == 3 {
			v.mu.Lock()
			asked = time.Now()
			v.mu.Unlock()
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true, false
		}
		return false, true
	}
	src := newStore(t).add(laneData, 60)
	u := start(t, newUplink(t, "http://"+serveReceiver(t, v, listen(t))+"/", nil), src)
	eventually(t, 10*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	u.stop()
	early := 0
	for _, g := range v.all() {
		if after := g.at.Sub(asked); g.key != "" && after > 400*time.Millisecond && after < 950*time.Millisecond {
			early++
		}
	}
	if s := u.Stats(); early != 0 || s.Sessions != 1 || s.Repeats != 0 || asked.IsZero() {
		t.Errorf("%d came early; %+v", early, s)
	}
	for _, x := range []struct {
		said      string
		low, high time.Duration
	}{{"", retryAfter, retryAfter}, {"7", 7 * time.Second, 7 * time.Second}, {"99999999999999999999", retryAfter, retryAfter}, {"100000", time.Hour, time.Hour}, {"-5", retryAfter, retryAfter},
		{time.Now().Add(20 * time.Second).UTC().Format(http.TimeFormat), 15 * time.Second, 20 * time.Second}, {"Thu, 01 Jan 1970 00:00:00 GMT", 100 * time.Millisecond, 100 * time.Millisecond}} {
		if d := patience(x.said); d < x.low || d > x.high {
			t.Errorf("Retry-After %q: %s", x.said, d)
		}
	}
}

// TestHTTPSPoison: a batch that the receiver refuses again and again is set
// aside when others get through, and a tombstone tells of it.
func TestHTTPSPoison(t *testing.T) {
	v := &receiver{}
	v.judge = func(_ int, w http.ResponseWriter, r *http.Request) (bool, bool) {
		if r.Header.Get("Idempotency-Key") == "6f3a91c2/data/7" {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return true, false
		}
		return false, true
	}
	src := newStore(t).add(laneData, 25)
	u := start(t, newUplink(t, "http://"+serveReceiver(t, v, listen(t))+"/", nil), src)
	eventually(t, 20*time.Second, "all but one delivered, the tombstone told", func() bool {
		if src.Given(laneData) < 60 {
			src.add(laneData, 1)
		}
		time.Sleep(10 * time.Millisecond)
		return src.waiting() == 0
	})
	u.stop()
	if !slices.Equal(src.aside, []key{{laneData, 7}}) || len(src.told) != 1 || src.told[0].Why != "poison" {
		t.Errorf("set aside %v, told %v", src.aside, src.told)
	}
}

// TestHTTPSCodes: what an installer sees of a receiver that is none.
func TestHTTPSCodes(t *testing.T) {
	plain := func(h http.HandlerFunc) func(t *testing.T) string {
		return func(t *testing.T) string {
			addr, stop := serveHTTP(t, listen(t))(h)
			t.Cleanup(stop)
			return "http://" + addr + "/in"
		}
	}
	for _, x := range []struct {
		name, code string
		step       int
		url        func(t *testing.T) string
	}{
		{"unauthorised", "https-auth", stepConnect, plain(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })},
		{"not found", "https-status", stepConnect, plain(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) })},
		{"busy", "https-busy", stepConnect, plain(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })},
		{"portal", "https-ack", stepPublish, plain(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "welcome") })},
		{"mqtt there", "https-closed", stepConnect, func(t *testing.T) string { return "http://" + newScript(t, sim.ScriptOptions{}).Addr() }},
		{"silent", "https-silent", stepConnect, func(t *testing.T) string { return "http://" + deaf(t) }},
		{"refused", "refused", stepTCP, func(t *testing.T) string { return "http://127.0.0.1:" + freePort(t) }},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			up := newUplink(t, x.url(t), nil)
			s := up.Test(context.Background())[x.step]
			if s.State != StepFail || s.Err.Code != x.code || s.Err.Hint() == "" {
				t.Errorf("%+v %+v", s, s.Err)
			}
			src := newStore(t).add(laneData, 1)
			u := start(t, up, src)
			eventually(t, 5*time.Second, "the error", func() bool { return u.Stats().Err != nil })
			u.stop()
			if e := u.Stats().Err; e.Code != x.code {
				t.Errorf("Run: %s %v", e.Code, e)
			}
		})
	}
}

// TestHTTPSStandsIn: while the broker is away, batches go to the receiver.
func TestHTTPSStandsIn(t *testing.T) {
	v := &receiver{}
	addr := serveReceiver(t, v, listen(t))
	ln := listen(t)
	home := ln.Addr().String()
	ln.Close()
	src := newStore(t).add(laneData, 20)
	u := start(t, newUplink(t, "mqtt://"+home, func(o *Options) { o.Fallback = []string{"http://" + addr} }), src)
	eventually(t, 5*time.Second, "delivered to the receiver", func() bool { return src.waiting() == 0 })
	ln, err := net.Listen("tcp", home)
	if err != nil {
		t.Fatal(err)
	}
	b := sim.NewScript(ln, sim.ScriptOptions{})
	defer b.Close()
	eventually(t, 5*time.Second, "home", func() bool { n, _ := b.Connections(); return n > 0 })
	src.add(laneData, 20)
	eventually(t, 5*time.Second, "delivered to the broker", func() bool { return src.waiting() == 0 })
	u.stop()
	if r := complete(t, slices.Concat(v.numbers(t), seqs(t, b, laneData)), 40); r != 0 {
		t.Errorf("%d repeats", r)
	}
}

// TestReceiverOfTheManual runs the receiver of docs/https.md and delivers to
// it over broken connections; its file is complete.
func TestReceiverOfTheManual(t *testing.T) {
	needs(t, "python3")
	page, err := os.ReadFile(filepath.Join("..", "docs", "https.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(page), "cat > receiver.py <<'END'\n")
	code, _, ok := strings.Cut(code, "\nEND\n")
	if !ok {
		t.Fatal("the receiver is gone")
	}
	dir, port := t.TempDir(), freePort(t)
	file := write(t, 0o644, filepath.Join(dir, "receiver.py"), []byte(code))
	t.Chdir(dir)
	background(t, port, "python3", file, port, "let-me-in")
	link, err := sim.NewLink("127.0.0.1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	token := write(t, 0o600, filepath.Join(dir, "token"), []byte("let-me-in\n"))
	src := newStore(t).add(laneData, 300)
	u := start(t, newUplink(t, "http://"+link.Addr()+"/", func(o *Options) { o.TokenFile, o.Compress = token, "gzip" }), src)
	eventually(t, 20*time.Second, "the first is there", func() bool { return u.Stats().Acked > 0 })
	for range 5 {
		time.Sleep(30 * time.Millisecond)
		link.Cut()
		src.add(laneData, 20)
	}
	eventually(t, 20*time.Second, "delivered", func() bool { return src.waiting() == 0 })
	st := u.Stats()
	u.stop()
	b, err := os.ReadFile(filepath.Join(dir, "received.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]int{}
	for line := range strings.Lines(string(b)) {
		var m struct {
			Lane string
			Seq  json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if n, err := strconv.ParseUint(string(m.Seq), 10, 64); m.Lane == laneData && err == nil {
			seen[n]++
		}
	}
	for n := uint64(1); n <= 400; n++ {
		if seen[n] != 1 {
			t.Errorf("number %d: %d times", n, seen[n])
		}
	}
	if st.Sessions < 2 {
		t.Errorf("%d sessions: the fault did not fire", st.Sessions)
	}
}
