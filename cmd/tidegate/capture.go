package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tidegate/driver"
	"tidegate/driver/profile"
	"tidegate/internal/agent"
	"tidegate/internal/capture"
	"tidegate/internal/sim"
	"tidegate/internal/status"
)

type captureFlags struct {
	out     string
	seconds int
	maxSize string
	line    string
}

func (a *app) captureCmd() *cobra.Command {
	var f captureFlags
	c := &cobra.Command{
		Use:   "capture TARGET -o FILE",
		Short: "record the bytes of a line; show and replay recordings",
		Long: `Records every byte that passes on a line, with the time to the microsecond.
TARGET is a bus or a device of the configuration, or an address such as
serial:/dev/ttyUSB0 or rtu:/dev/ttyUSB0.

While the agent runs, it lets its own traffic be listened to, in both
directions, and polls on without a pause. Without the agent the port is opened
and only listened to: not a byte is sent.

The file is text: a header, then a JSON object for each piece of bytes. It holds
no secrets of the configuration. Ctrl-C ends the recording.`,
		Args: atLeast(1, 1, "a bus, a device or an address"),
		RunE: func(c *cobra.Command, args []string) error { return a.capture(c.Context(), args[0], &f) },
	}
	c.Flags().StringVarP(&f.out, "output", "o", "", "`FILE` to write; - is the standard output")
	c.Flags().IntVar(&f.seconds, "seconds", 0, "end after so many seconds; 0: at Ctrl-C")
	c.Flags().StringVar(&f.maxSize, "max-size", "16M", "end at this `SIZE` of the file")
	c.Flags().StringVar(&f.line, "line", "", "speed and format of a port given as an address (9600 8N1)")
	var at, link string
	replay := &cobra.Command{
		Use:   "replay FILE",
		Short: "answer as the recorded devices did",
		Long: `Offers a pseudo terminal, or a TCP port, that answers each request of the
recording as the devices did, after the time they took; where they were silent,
with silence. What devices said by themselves is said again, for ever.`,
		Args: atLeast(1, 1, "the file of a capture"),
		RunE: func(c *cobra.Command, args []string) error { return a.captureReplay(c.Context(), args[0], at, link) },
	}
	replay.Flags().StringVar(&at, "at", "", "`pty` or tcp:HOST:PORT; as recorded if not given")
	replay.Flags().StringVar(&link, "link", "", "make this `PATH` a link to the pseudo terminal")
	c.AddCommand(&cobra.Command{
		Use:   "show FILE",
		Short: "requests, answers and what they mean",
		Args:  atLeast(1, 1, "the file of a capture"),
		RunE:  func(_ *cobra.Command, args []string) error { return a.captureShow(args[0]) },
	}, replay)
	return c
}

// errEnough ends a recording that is as long or as large as wanted.
var errEnough = errors.New("enough")

func (a *app) capture(ctx context.Context, target string, f *captureFlags) error {
	if f.out == "" {
		return usage{errors.New("where to? Give -o FILE")}
	}
	most := sizeOf(f.maxSize)
	if most == 0 {
		return usage{fmt.Errorf("--max-size %s is no size such as 16M", f.maxSize)}
	}
	var out io.Writer = a.out
	if f.out != "-" {
		file, err := os.OpenFile(f.out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if err != nil {
			fail := &status.Failure{Code: "cannot-create", What: err.Error(), Exit: exitCannotCreate}
			if errors.Is(err, os.ErrExist) {
				fail.Try = "another name; a recording is never written over"
			}
			return fail
		}
		defer file.Close()
		out = file
	}
	if f.seconds > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, time.Duration(f.seconds)*time.Second)
		defer stop()
	}
	began := time.Now()
	var events, bytes int64
	take := func(line []byte) error {
		n, err := out.Write(line)
		if err != nil {
			return &status.Failure{Code: "cannot-create", What: err.Error(), Exit: exitCannotCreate}
		}
		events++
		if bytes += int64(n); bytes >= most {
			return errEnough
		}
		return nil
	}
	via, err := a.record(ctx, target, f.line, take)
	if events == 0 && err != nil {
		if f.out != "-" {
			os.Remove(f.out)
		}
		return err
	}
	if f.out != "-" {
		fmt.Fprintf(a.out, "%s: %s, %s in %.1f s, %s\n", f.out, count(max(events-1, 0), "event"), size(bytes), time.Since(began).Seconds(), via)
		if events <= 1 {
			fmt.Fprintln(a.out, "nothing passed on the line")
		}
	}
	if err != nil && !errors.Is(err, errEnough) && ctx.Err() == nil {
		return err
	}
	return nil
}

// record gives the lines of a capture to take: from the agent, or of a port
// that nobody has.
func (a *app) record(ctx context.Context, target, line string, take func([]byte) error) (via string, err error) {
	const byAgent, byUs = "through the agent, both directions", "only listened"
	connect, raw := address(target)
	if raw {
		bus, err := a.busOf(ctx, "", connect)
		switch {
		case err != nil:
			return "", err
		case bus != "":
			return byAgent, a.client().Capture(ctx, bus, take)
		case isPort(target):
			return "", usage{fmt.Errorf("what speaks on %s? Write rtu:%s for Modbus RTU, ascii: or serial: for the others", target, target)}
		}
		return byUs, a.overhear(ctx, &driver.Options{Name: target, Connect: connect, Line: line}, take)
	}
	err = a.client().Capture(ctx, target, take)
	if !errors.Is(err, status.ErrNoAgent) {
		return byAgent, err
	}
	cfg, err := a.configOf(target)
	if err != nil {
		return "", err
	}
	for i := range cfg.Buses {
		b := &cfg.Buses[i]
		found := b.Name == target
		for k := range b.Devices {
			found = found || b.Devices[k].Name == target
		}
		if found {
			return byUs, a.overhear(ctx, b, take)
		}
	}
	return "", &status.Failure{Code: "no-such-name", What: fmt.Sprintf("there is no bus and no device %q", target),
		Try: "tidegate check --effective lists them; or give an address such as serial:/dev/ttyUSB0", Exit: exitUsage}
}

func (a *app) overhear(ctx context.Context, bus *driver.Options, take func([]byte) error) error {
	h := agent.CaptureHeader(bus, "listen", version)
	begun := false
	err := driver.Overhear(ctx, bus.Connect, h.Line, func(t driver.Traffic) error {
		if !begun {
			begun = true
			if err := take(capture.Encode(h)); err != nil {
				return err
			}
		}
		return take(capture.Encode(agent.CaptureEvent(bus.Name, t)))
	})
	switch {
	case errors.Is(err, driver.ErrRequest):
		return &status.Failure{Code: "listening", What: fmt.Sprintf("there is nothing to hear on %s while no agent runs", bus.Name),
			Likely: "devices on a network speak to their own master only", Try: "start the agent: tidegate run; then: tidegate capture " + bus.Name, Exit: exitUnavailable}
	case err != nil:
		return agent.Explain(err)
	}
	return nil
}

// openCapture reads the file of a capture.
func (a *app) openCapture(name string) (capture.Header, []capture.Event, error) {
	file, err := os.Open(name)
	if err != nil {
		return capture.Header{}, nil, &status.Failure{Code: "no-such-file", What: err.Error(), Exit: exitNoInput}
	}
	defer file.Close()
	h, events, err := capture.Read(file)
	if err != nil {
		return h, nil, &status.Failure{Code: "capture-damaged", What: name + ": " + err.Error(),
			Likely: "the file is no capture, or it was changed by hand", Exit: exitData}
	}
	if h.Cut {
		fmt.Fprintf(a.err, "note: %s: its last line is cut off and left out; %s are whole\n", name, count(int64(len(events)), "event"))
	}
	return h, events, nil
}

func (a *app) captureShow(name string) error {
	h, events, err := a.openCapture(name)
	if err != nil {
		return err
	}
	lib, err := a.library()
	if err != nil {
		return err
	}
	if a.json {
		for _, x := range capture.Exchanges(&h, events) {
			printJSON(a.out, struct {
				Schema  string `json:"schema"`
				At      string `json:"at"`
				Request string `json:"request,omitempty"`
				Answer  string `json:"answer,omitempty"`
				Micros  int64  `json:"us,omitempty"` // from the request to the first byte of the answer
				Mark    string `json:"mark,omitempty"`
				Lost    uint64 `json:"lost,omitempty"`
			}{"tidegate.capture-show/1", x.At.UTC().Format("2006-01-02T15:04:05.000000Z"), capture.Hex(x.Request), capture.Hex(x.Answer),
				micros(&x), x.Mark, x.Lost})
		}
		return nil
	}
	fmt.Fprintf(a.out, "%s  %s, recorded %s (%s)\n", h.Bus, strings.TrimSpace(h.Connect+" "+h.Line), h.Started.Local().Format("2006-01-02 15:04:05"), h.Mode)
	return capture.Show(a.out, &h, events, func(name string) *profile.Profile {
		p, err := lib.Get(name)
		if err != nil {
			return nil
		}
		return p
	})
}

func micros(x *capture.Exchange) int64 {
	if x.Request == nil || len(x.Answer) == 0 {
		return 0
	}
	return x.Answered.Sub(x.At).Microseconds()
}

func (a *app) captureReplay(ctx context.Context, name, at, link string) error {
	h, events, err := a.openCapture(name)
	if err != nil {
		return err
	}
	p := capture.NewReplay(&h, events)
	asked, spoken := p.Requests()
	if asked+spoken == 0 {
		return &status.Failure{Code: "capture-empty", What: name + " holds nothing to replay", Exit: exitData}
	}
	if at == "" {
		at = "pty"
		if h.Framing() == "tcp" {
			at = "tcp:127.0.0.1:0"
		}
	}
	what := fmt.Sprintf("%s, %s", count(int64(asked), "request"), count(int64(spoken), "thing")+" said unasked")
	defer func() {
		if n := p.Unknown.Load(); n > 0 {
			fmt.Fprintf(a.out, "%s answered, %d not in the recording\n", count(int64(p.Answered.Load()), "request"), n)
		}
	}()
	if hostport, ok := strings.CutPrefix(at, "tcp:"); ok {
		ln, err := net.Listen("tcp", hostport)
		if err != nil {
			return &status.Failure{Code: "cannot-listen", What: err.Error(), Exit: exitUsage}
		}
		fmt.Fprintf(a.out, "replaying %s on tcp:%s (Ctrl-C ends)\n", what, ln.Addr())
		return p.ServeTCP(ctx, ln)
	}
	if at != "pty" {
		return usage{fmt.Errorf("--at %s: write pty or tcp:HOST:PORT", at)}
	}
	master, path, err := sim.OpenPTY()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { master.Close() })
	defer stop()
	if link != "" {
		if err := os.Symlink(path, link); err != nil {
			master.Close()
			return &status.Failure{Code: "cannot-create", What: err.Error(), Exit: exitCannotCreate}
		}
		defer os.Remove(link)
		path = link
	}
	fmt.Fprintf(a.out, "replaying %s on %s (Ctrl-C ends)\n", what, path)
	return p.Serve(ctx, ptyEnd{ctx, master})
}

// ptyEnd reads on when nobody has the other end open.
type ptyEnd struct {
	ctx context.Context
	*os.File
}

func (e ptyEnd) Read(b []byte) (int, error) {
	for {
		n, err := e.File.Read(b)
		if err == nil || e.ctx.Err() != nil || !errors.Is(err, syscall.EIO) {
			return n, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// sizeOf reads a size such as 500k, 16M or 1G; 0 if it is none.
func sizeOf(s string) int64 {
	unit := int64(1)
	for k, u := range map[string]int64{"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9} {
		if rest, ok := strings.CutSuffix(strings.TrimSuffix(s, "B"), k); ok {
			s, unit = rest, u
		}
	}
	n, err := strconv.ParseInt(s, 10, 40)
	if err != nil || n <= 0 {
		return 0
	}
	return n * unit
}
