package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"tidegate/config"
	"tidegate/internal/agent"
)

func (a *app) runCmd() *cobra.Command {
	var level, format string
	c := &cobra.Command{
		Use:   "run",
		Short: "the agent: poll, buffer, forward until SIGTERM",
		Long: "Runs the agent in the foreground until SIGTERM or Ctrl-C; what is in the buffer\n" +
			"is durable before it ends. It starts with any device or the broker absent and\n" +
			"recovers by itself. SIGHUP checks the configuration and applies it; a wrong one\n" +
			"is refused and the old one stays in force. Exit code 0 after a stop, 78 for a\n" +
			"wrong configuration, 75 when another agent holds the buffer.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.run(cmd.Context(), level, format)
		},
	}
	c.Flags().StringVar(&level, "log-level", "", "`LEVEL`: debug, info, warn or error (default: as configured)")
	c.Flags().StringVar(&format, "log-format", "", "`FORMAT`: text or json (default: as configured)")
	return c
}

func (a *app) run(ctx context.Context, level, format string) error {
	// Running makes so little garbage that collecting it early costs nothing.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
	path := a.configPath()
	cfg, problems, err := a.load()
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		text, _ := config.Report(path, problems, cfg)
		fmt.Fprint(a.err, text)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(processors(cfg, runtime.GOMAXPROCS(0)))
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	refused := ""
	for old := (*config.Config)(nil); ; {
		next, err := a.runOnce(ctx, path, cfg, refused, level, format, hup)
		if errors.As(err, new(notStarted)) && old != nil {
			// It passed the check, but cannot be run here: a folder that is
			// not writable, for example.
			refused = err.Error()
			cfg, old = old, nil
			continue
		}
		if err != nil || next == nil {
			return err
		}
		cfg, old, refused = next, cfg, ""
	}
}

// notStarted is an error that came before the agent ran.
type notStarted struct{ error }

func (e notStarted) Unwrap() error { return e.error }

// runOnce runs an agent until it ends, or until SIGHUP brings a new
// configuration, which it returns.
func (a *app) runOnce(ctx context.Context, path string, cfg *config.Config, refused, level, format string, hup <-chan os.Signal) (*config.Config, error) {
	if level != "" {
		cfg.Log.Level = level
	}
	if format != "" {
		cfg.Log.Format = format
	}
	log, err := newLogger(a.err, cfg.Log.Level, cfg.Log.Format)
	if err != nil {
		return nil, usage{err}
	}
	ag, err := agent.New(cfg, agent.Options{File: path, Version: version, Built: built(), Logger: log})
	if err != nil {
		return nil, notStarted{err}
	}
	if refused != "" {
		log.Error("the new configuration cannot be run; the old one stays in force", "file", path, "error", refused)
		ag.Refused(refused)
	}
	debug.FreeOSMemory() // reading the configuration takes more memory than running does
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- ag.Run(ctx) }()
	for {
		select {
		case err := <-done:
			return nil, err
		case <-hup:
			next, problems, err := config.Load(path)
			if err == nil && next != nil {
				log.Info("configuration applied", "file", path)
				stop()
				return next, <-done
			}
			if err != nil {
				log.Error("the configuration cannot be read; the old one stays in force", "file", path, "error", err)
				ag.Refused(err.Error())
				continue
			}
			text, _ := config.Report(path, problems, nil)
			first := strings.Join(strings.Fields(strings.SplitN(text, "\n", 2)[0]), " ")
			log.Error("the configuration is wrong; the old one stays in force", "file", path, "problems", len(problems), "first", first)
			ag.Refused(first)
		}
	}
}

// newLogger returns the agent's log. Under systemd lines carry the
// journal's priority (sd-daemon(3)) and no time of their own.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch {
	case format == "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case format != "text":
		return nil, fmt.Errorf("log format %q: text or json", format)
	case os.Getenv("JOURNAL_STREAM") != "":
		return slog.New(newJournal(w, o)), nil
	}
	return slog.New(slog.NewTextHandler(w, o)), nil
}

// journal puts the priority before each line that a text handler writes.
type journal struct {
	slog.Handler
	out *journalWriter
}

type journalWriter struct {
	mu  sync.Mutex
	buf bytes.Buffer
	w   io.Writer
}

func (j *journalWriter) Write(p []byte) (int, error) { return j.buf.Write(p) }

func newJournal(w io.Writer, o *slog.HandlerOptions) slog.Handler {
	out := &journalWriter{w: w}
	o.ReplaceAttr = func(groups []string, at slog.Attr) slog.Attr {
		if len(groups) == 0 && (at.Key == slog.TimeKey || at.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return at
	}
	return journal{slog.NewTextHandler(out, o), out}
}

func (j journal) Handle(ctx context.Context, r slog.Record) error {
	j.out.mu.Lock()
	defer j.out.mu.Unlock()
	j.out.buf.Reset()
	priority := "<6>"
	switch {
	case r.Level >= slog.LevelError:
		priority = "<3>"
	case r.Level >= slog.LevelWarn:
		priority = "<4>"
	case r.Level < slog.LevelInfo:
		priority = "<7>"
	}
	j.out.buf.WriteString(priority)
	if err := j.Handler.Handle(ctx, r); err != nil {
		return err
	}
	_, err := j.out.w.Write(j.out.buf.Bytes())
	return err
}

func (j journal) WithAttrs(as []slog.Attr) slog.Handler {
	return journal{j.Handler.WithAttrs(as), j.out}
}
func (j journal) WithGroup(n string) slog.Handler { return journal{j.Handler.WithGroup(n), j.out} }

func (a *app) checkCmd() *cobra.Command {
	var show, strict, schema bool
	c := &cobra.Command{
		Use:   "check [FILE...]",
		Short: "check the configuration; touches no port and no network",
		Long: "Checks configuration files: every mistake at once, each with line, column, an\n" +
			"excerpt and what to write instead. Exit code 0, or 78 when one is wrong. Without\n" +
			"FILE it checks the file that `run` would use; - is standard input.",
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if schema {
				_, err := a.out.Write(config.Schema())
				return err
			}
			if len(args) == 0 {
				args = []string{a.configPath()}
			}
			return a.check(args, show, strict)
		},
	}
	c.Flags().BoolVar(&show, "show", false, "print the effective configuration, defaults included, secrets redacted")
	c.Flags().BoolVar(&strict, "strict", false, "warnings count as errors")
	c.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of the configuration file, for editors")
	return c
}

func (a *app) check(files []string, show, strict bool) error {
	code := exitOK
	for _, file := range files {
		cfg, problems, err := config.Load(file)
		if err != nil {
			return configFailure(file, err)
		}
		text, report := config.Report(file, problems, cfg)
		if cfg == nil || strict && len(problems) > 0 {
			code = exitConfig
		}
		switch {
		case a.json:
			fmt.Fprintln(a.out, strings.TrimSpace(string(report)))
		case show && cfg != nil:
			fmt.Fprint(a.err, text)
			a.out.Write(config.Show(cfg))
		default:
			fmt.Fprint(a.out, text)
		}
	}
	if code != exitOK {
		return exit(code)
	}
	return nil
}

// processors is how many threads may run Go code at once, at most those there
// are. Lines on the network share one: with more, each answer wakes another
// thread, which is a fifth of the agent's CPU, and each keeps memory of its
// own. A serial port blocks its thread while it reads, and gets one more.
func processors(cfg *config.Config, there int) int {
	n := 1
	for i := range cfg.Buses {
		if cfg.Buses[i].Serial() {
			n++
		}
	}
	return min(n, there)
}
