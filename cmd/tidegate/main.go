// Command tidegate is an edge gateway agent: it polls serial and Modbus
// devices, keeps their readings on flash while the uplink is away, and
// delivers them to an MQTT broker over TLS.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"tidegate/config"
	"tidegate/internal/document"
	"tidegate/internal/status"
)

// Exit codes, one table for all verbs (sysexits.h where it has a number).
const (
	exitOK           = 0
	exitFindings     = 1   // the verb worked and found something wrong
	exitUsage        = 64  // bad flag or argument
	exitData         = 65  // input file damaged
	exitNoInput      = 66  // file or port not there
	exitUnavailable  = 69  // agent not running, broker not reachable
	exitInternal     = 70  // our bug
	exitCannotCreate = 73  // target full or read-only
	exitTryAgain     = 75  // port or database busy
	exitNoPermission = 77  // rights
	exitConfig       = 78  // configuration invalid
	exitInterrupted  = 130 // Ctrl-C
)

// version is set by the linker: -X main.version=...
var (
	version = "dev"
	commit  = ""
	date    = "" // from SOURCE_DATE_EPOCH
)

func main() {
	runtime.MemProfileRate = 0 // nobody looks at it, and it costs a megabyte
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// app is what every verb shares.
type app struct {
	in         io.Reader
	out, err   io.Writer
	json       bool
	noColor    bool
	configFile string
	socket     string
}

// exit ends a verb with a code and no further message.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// usage marks an error as one of flags or arguments.
type usage struct{ error }

func execute(args []string, in io.Reader, out, errw io.Writer) int {
	a := &app{in: in, out: out, err: errw}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	verb, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	return a.report(err, verb.CommandPath())
}

// report writes an error of a verb ("tidegate read") as a person reads it and
// returns the exit code.
func (a *app) report(err error, verb string) int {
	var e exit
	if errors.As(err, &e) {
		return int(e)
	}
	f := failure(err)
	if f.Code == "usage" && f.Try == "" {
		f.Try = strings.Replace(verb, "tidegate", "tidegate help", 1)
	}
	if a.json {
		printJSON(a.err, struct {
			Schema string          `json:"schema"`
			Error  *status.Failure `json:"error"`
		}{"tidegate.error/1", f})
	} else {
		io.WriteString(a.err, f.Text())
	}
	if f.Exit != 0 {
		return f.Exit
	}
	return exitFindings
}

func (a *app) root() *cobra.Command {
	askVersion := false
	root := &cobra.Command{
		Use:   "tidegate",
		Short: "edge gateway agent: devices in, MQTT out, nothing lost in between",
		Long: "tidegate polls serial and Modbus devices, keeps their readings on flash while\n" +
			"the uplink is away, and delivers them to an MQTT broker over TLS.",
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			text := fmt.Sprintf("there is no verb %q", args[0])
			if s := c.SuggestionsFor(args[0]); len(s) > 0 {
				text += fmt.Sprintf("; did you mean %q?", s[0])
			}
			return usage{errors.New(text)}
		},
		SuggestionsMinimumDistance: 2,
		RunE: func(c *cobra.Command, _ []string) error {
			if askVersion {
				return a.printVersion()
			}
			return c.Help()
		},
	}
	root.Flags().BoolVar(&askVersion, "version", false, "the same as the verb version")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	p := root.PersistentFlags()
	p.BoolVar(&a.json, "json", false, "print data as JSON")
	p.BoolVar(&a.noColor, "no-color", false, "no colour, also where the terminal has some")
	p.StringVarP(&a.configFile, "config", "c", "", "configuration `FILE` (default /etc/tidegate/tidegate.yaml, then ./tidegate.yaml; - is standard input)")
	p.StringVar(&a.socket, "socket", "", "the agent's `SOCKET` (default: as configured)")
	for _, g := range []*cobra.Group{
		{ID: "setup", Title: "Set up:"}, {ID: "cabinet", Title: "At the cabinet:"},
		{ID: "well", Title: "Is it well:"}, {ID: "service", Title: "Service:"}} {
		root.AddGroup(g)
	}
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("setup", a.checkCmd(), a.uplinkCmd(), a.demoCmd(), a.simCmd())
	add("cabinet", a.scanCmd(), a.readCmd(), a.writeCmd(), a.watchCmd(), a.captureCmd(), a.profileCmd())
	add("well", a.statusCmd(), a.bufferCmd(), a.verifyCmd())
	add("service", a.runCmd())
	root.AddCommand(a.versionCmd(), exitCodesTopic())
	a.help(root)
	return root
}

// help makes the help fit 80 columns, and an unknown topic an error.
func (a *app) help(root *cobra.Command) {
	print := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		var b bytes.Buffer
		c.SetOut(&b)
		print(c, args)
		for line := range strings.Lines(b.String()) {
			indent := "    "
			if at := strings.LastIndex(line[:min(len(line), 40)], "  "); at > 0 {
				indent = strings.Repeat(" ", at+2) // the column of the descriptions
			}
			line = strings.Replace(line, "  tidegate exit-codes ", "  tidegate help exit-codes  ", 1)
			fmt.Fprintln(a.out, status.Wrap(strings.TrimSuffix(line, "\n"), 80, indent))
		}
	})
	root.SetHelpCommand(&cobra.Command{
		Use:   "help [VERB or TOPIC]",
		Short: "help about a verb or a topic",
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil {
				return usage{err}
			}
			if len(rest) > 0 {
				text := fmt.Sprintf("there is no help on %q", strings.Join(args, " "))
				if s := c.SuggestionsFor(rest[0]); len(s) > 0 {
					text += fmt.Sprintf("; did you mean %q?", s[0])
				}
				return usage{errors.New(text)}
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
	})
}

// exitCodesTopic is `tidegate help exit-codes`.
func exitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "what the exit codes mean",
		Long: strings.TrimLeft(`
  0  ok              done, or nothing to do
  1  findings        the verb worked and found something wrong
 64  usage           bad flag or argument
 65  data            input file damaged (capture, export, profile)
 66  no-input        file or port not there
 69  unavailable     agent not running, broker not reachable
 70  internal        a bug of tidegate
 73  cannot-create   target full or read-only
 75  try-again       port or database busy
 77  no-permission   rights
 78  config          configuration invalid
130  interrupted     Ctrl-C`, "\n"),
	}
}

// configPath returns the file that --config names, or the first of the
// default places that exists.
func (a *app) configPath() string {
	if a.configFile != "" {
		return a.configFile
	}
	for _, p := range []string{defaultConfig, "tidegate.yaml"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return defaultConfig
}

// defaultConfig is where the package puts the configuration.
const defaultConfig = "/etc/tidegate/tidegate.yaml"

// load reads the configuration; its errors are printed as `check` prints
// them, and end the verb with exit code 78.
func (a *app) load() (*config.Config, []document.Problem, error) {
	path := a.configPath()
	cfg, problems, err := config.Load(path)
	if err != nil {
		return nil, nil, configFailure(path, err)
	}
	if cfg == nil {
		text, _ := config.Report(path, problems, nil)
		fmt.Fprint(a.err, text)
		return nil, problems, exit(exitConfig)
	}
	return cfg, problems, nil
}

// client returns a client for the agent's socket: the one that --socket
// names, or the one of the configuration, or the default one.
func (a *app) client() *status.Client { return status.Dial(a.socketPath()) }

func (a *app) socketPath() string {
	if a.socket != "" {
		return a.socket
	}
	return config.Socket(a.configPath())
}
