package status

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// maxBody bounds what either side reads of one message.
const maxBody = 64 << 20

// Serve answers on a unix socket at path until ctx ends. The socket belongs
// to the owner and group only (0660); a socket left over by a dead agent is
// replaced, a living one is an error.
func Serve(ctx context.Context, path string, api API) error {
	l, err := listen(path)
	if err != nil {
		return err
	}
	s := &http.Server{
		Handler:           handler(api),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       30 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, peerOf(c))
		},
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	}()
	err = s.Serve(l)
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	return fmt.Errorf("status: %w", err)
}

func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("status: another agent answers on %s", path)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("status: %w", err)
	}
	return l, nil
}

func handler(api API) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		reply(w, api.Snapshot(), nil)
	})
	mux.HandleFunc("GET /values", func(w http.ResponseWriter, r *http.Request) {
		v, err := api.Values(r.URL.Query()["name"])
		reply(w, v, err)
	})
	mux.HandleFunc("POST /read", func(w http.ResponseWriter, r *http.Request) {
		var q ReadRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&q); err != nil {
			reply(w, nil, &Failure{Code: "usage", What: "the request is no JSON: " + err.Error()})
			return
		}
		v, err := api.Read(r.Context(), q)
		reply(w, v, err)
	})
	mux.HandleFunc("POST /write", func(w http.ResponseWriter, r *http.Request) {
		var q WriteRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&q); err != nil {
			reply(w, nil, &Failure{Code: "usage", What: "the request is no JSON: " + err.Error()})
			return
		}
		v, err := api.Write(r.Context(), caller(r.Context()), q)
		reply(w, v, err)
	})
	mux.HandleFunc("POST /scan", func(w http.ResponseWriter, r *http.Request) { serveScan(w, r, api) })
	mux.HandleFunc("GET /buffer/peek", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.URL.Query().Get("last"))
		if err != nil || n < 1 || n > 10000 {
			reply(w, nil, &Failure{Code: "usage", What: "last must be a number from 1 to 10000"})
			return
		}
		v, err := api.Peek(r.Context(), n, r.URL.Query().Get("device"))
		reply(w, v, err)
	})
	mux.HandleFunc("GET /buffer/export", func(w http.ResponseWriter, r *http.Request) { serveExport(w, r, api) })
	mux.HandleFunc("GET /buffer/verify", func(w http.ResponseWriter, r *http.Request) {
		v, err := api.CheckBuffer(r.Context())
		reply(w, v, err)
	})
	mux.HandleFunc("GET /capture", func(w http.ResponseWriter, r *http.Request) { serveCapture(w, r, api) })
	mux.HandleFunc("POST /uplink/test", func(w http.ResponseWriter, r *http.Request) {
		v, err := api.TestUplink(r.Context(), r.URL.Query().Get("name"))
		reply(w, v, err)
	})
	return mux
}

// callerKey is where the user at the other end of the socket is kept.
type callerKey struct{}

func caller(ctx context.Context) string {
	who, _ := ctx.Value(callerKey{}).(string)
	return cmp.Or(who, "unknown")
}

// peerOf asks the kernel who is at the other end: "uid 1000 (pi)".
func peerOf(c net.Conn) string {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ""
	}
	who := ""
	raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			who = UserName(int(cred.Uid))
		}
	})
	return who
}

// UserName writes a user id with the name it has on this machine.
func UserName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return "uid " + id + " (" + u.Username + ")"
	}
	return "uid " + id
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		var f *Failure
		if !errors.As(err, &f) {
			f = &Failure{What: err.Error()}
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		v = f
	}
	b, err := json.Marshal(v)
	if err != nil {
		return // the types of this package always marshal; a bad RawMessage is a bug of the API
	}
	w.Write(append(b, '\n'))
}

// Client asks a running agent.
type Client struct {
	path string
	http http.Client
}

// ErrNoAgent is wrapped when nobody answers on the socket.
var ErrNoAgent = errors.New("no agent answers")

// Dial returns a client for the socket at path. It does not connect yet.
func Dial(path string) *Client {
	return &Client{path: path, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}}
}

// Status returns the agent's snapshot.
func (c *Client) Status(ctx context.Context) (s Snapshot, err error) {
	return s, c.do(ctx, "GET", "/status", nil, &s)
}

// Values returns the last readings of the named devices or points.
func (c *Client) Values(ctx context.Context, names []string) (v []Value, err error) {
	return v, c.do(ctx, "GET", "/values?"+url.Values{"name": names}.Encode(), nil, &v)
}

// Read reads from the bus, through the agent, between two polls.
func (c *Client) Read(ctx context.Context, r ReadRequest) (v ReadReply, err error) {
	return v, c.do(ctx, "POST", "/read", r, &v)
}

// Write writes to a device, through the agent, between two polls.
func (c *Client) Write(ctx context.Context, r WriteRequest) (v WriteReply, err error) {
	return v, c.do(ctx, "POST", "/write", r, &v)
}

// Peek returns the n newest batches that wait.
func (c *Client) Peek(ctx context.Context, n int, device string) (v []Batch, err error) {
	q := url.Values{"last": {strconv.Itoa(n)}, "device": {device}}
	return v, c.do(ctx, "GET", "/buffer/peek?"+q.Encode(), nil, &v)
}

// TestUplink runs the steps of `uplink test` in the agent.
func (c *Client) TestUplink(ctx context.Context, name string) (v []Step, err error) {
	return v, c.do(ctx, "POST", "/uplink/test?name="+url.QueryEscape(name), nil, &v)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.ask(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(out); err != nil {
		return fmt.Errorf("the agent on %s answered what is no JSON: %w", c.path, err)
	}
	return nil
}

// ask sends a request and returns the answer, whose body the caller closes.
// An answer that is a Failure is returned as the error.
func (c *Client) ask(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("%w on %s", ErrNoAgent, c.path)
		}
		return nil, fmt.Errorf("asking the agent on %s: %w", c.path, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	f := new(Failure)
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(f); err != nil || f.What == "" {
		return nil, fmt.Errorf("the agent on %s answered %s", c.path, resp.Status)
	}
	return nil, f
}
