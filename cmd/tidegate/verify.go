package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/internal/account"
	"tidegate/internal/command"
	"tidegate/internal/status"
	"tidegate/uplink"
)

type verifyFlags struct {
	broker   uplink.Options
	topic    string
	duration time.Duration
	midway   bool
	audit    string
}

func (a *app) verifyCmd() *cobra.Command {
	f := verifyFlags{broker: uplink.Defaults()}
	c := &cobra.Command{
		Use:   "verify [FILE...]",
		Short: "prove from the cloud's side that no batch is missing",
		Long: `Keeps the account of what gateways delivered: numbers received, repeated, late,
closed by a tombstone, or lost without one, which must not be.

FILE holds messages, one a line: topic, blank, payload, as mosquitto_sub -v
writes it, or with the payload in hex as -F '%t %x' does (needed for gzip); -
is standard input. Exports (*.jsonl.gz of tidegate buffer export) are read, too,
alone or beside messages; alone, the account begins with their first number.
With --url it subscribes and listens, for --for or until Ctrl-C; then a lane's
account begins where listening began.

Exit code 0 complete (tombstones are listed), 1 incomplete or nothing received.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.audit != "" {
				return a.verifyAudit(f.audit)
			}
			book := account.New()
			switch {
			case f.broker.URL != "" && len(args) > 0:
				return usage{fmt.Errorf("either files or --url, not both")}
			case f.broker.URL != "":
				book.Midway()
				if err := a.listen(cmd.Context(), book, &f); err != nil {
					return err
				}
			case len(args) == 0:
				return usage{fmt.Errorf("what shall be verified? Name files of messages, - for standard input, or --url")}
			default:
				if f.midway || allExports(args) {
					book.Midway()
				}
				for _, file := range args {
					if err := a.addFile(book, file); err != nil {
						return err
					}
				}
			}
			r := book.Report()
			if a.json {
				fmt.Fprintf(a.out, "%s\n", bytes.TrimSpace(r.JSON()))
			} else {
				fmt.Fprint(a.out, r.Text())
			}
			if beginsLost(r) {
				fmt.Fprintln(a.err, "try:    --midway, if the recording began in the middle of a gateway's life")
			}
			if r.Verdict == account.Complete || r.Verdict == account.CompleteButTombs {
				return nil
			}
			return exit(exitFindings)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.audit, "audit", "", "check the chain of the record of commands in `FILE` instead (audit.log in the buffer's folder)")
	fl.BoolVar(&f.midway, "midway", false, "the files begin in the middle of the gateways' lives")
	fl.StringVar(&f.broker.URL, "url", "", "subscribe to this broker: mqtts://HOST[:8883]")
	fl.StringVar(&f.broker.Identity, "identity", "", "`FOLDER` with ca.crt, client.crt and client.key")
	fl.StringVar(&f.broker.TLS.CA, "ca", "", "`FILE` with the broker's authority, where no client certificate is needed")
	fl.StringVar(&f.broker.Username, "username", "", "user at the broker")
	fl.StringVar(&f.broker.PasswordFile, "password-file", "", "`FILE` with the password")
	fl.StringVar(&f.broker.ClientID, "client-id", "", "MQTT client id (default: made up)")
	fl.StringVar(&f.topic, "topic", "tg/v1/#", "topic `FILTER` to subscribe to")
	fl.DurationVar(&f.duration, "for", 0, "listen this long (default: until Ctrl-C)")
	return c
}

// beginsLost tells whether a lane lacks its first number.
func beginsLost(r account.Report) bool {
	return slices.ContainsFunc(r.Lanes, func(l account.Lane) bool { return len(l.LostAt) > 0 && l.LostAt[0].From == 1 })
}

// allExports tells whether the files are exports alone: they begin with what
// waited, in the middle of the gateway's life.
func allExports(files []string) bool {
	for _, f := range files {
		if !strings.HasSuffix(f, exportSuffix) {
			return false
		}
	}
	return true
}

func (a *app) addFile(book *account.Book, file string) error {
	in, name := a.in, "standard input"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return &status.Failure{Code: "no-such-file", What: err.Error(), Exit: exitNoInput}
		}
		defer f.Close()
		in, name = f, filepath.Base(file)
	}
	shown := 0
	err := book.AddLines(in, func(line int, err error) {
		if shown++; shown <= 5 {
			fmt.Fprintf(a.err, "%s:%d: %v\n", name, line, err)
		}
	})
	if errors.Is(err, account.ErrGzip) {
		return &status.Failure{Code: "file-damaged", What: file + " is damaged or cut off", Seen: err.Error(), Exit: exitData,
			Try: "tidegate buffer verify " + file}
	}
	return err
}

// listen feeds the book from a broker until the time is up or Ctrl-C.
func (a *app) listen(ctx context.Context, book *account.Book, f *verifyFlags) error {
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	if f.broker.ClientID == "" {
		f.broker.ClientID = fmt.Sprintf("tidegate-verify-%d", os.Getpid())
	}
	var problem error
	f.broker.Validate(func(path, msg, hint string) {
		if problem == nil {
			problem = usage{fmt.Errorf("%s: %s; %s", path, msg, hint)}
		}
	})
	if problem != nil {
		return problem
	}
	io.WriteString(a.err, "listening to "+f.topic+"; Ctrl-C ends it and prints the account\n")
	return uplink.Listen(ctx, f.broker, []string{f.topic}, func(topic string, payload []byte) {
		if err := book.Add(topic, payload); err != nil {
			fmt.Fprintf(a.err, "%s: %v\n", topic, err)
		}
	})
}

// verifyAudit checks the record of commands.
func (a *app) verifyAudit(file string) error {
	n, err := command.Check(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &status.Failure{Code: "no-such-file", What: err.Error(), Exit: exitNoInput}
	case errors.Is(err, command.ErrChain):
		return &status.Failure{Code: "audit-chain", What: file + " is not what was written", Seen: err.Error(), Exit: exitFindings,
			Likely: "somebody has changed it, or the disk is damaged",
			Try:    "compare it with the events commands/audit that the cloud has"}
	case err != nil:
		return err
	}
	if a.json {
		printJSON(a.out, struct {
			Schema string `json:"schema"`
			Lines  int    `json:"lines"`
			OK     bool   `json:"ok"`
		}{"tidegate.audit/1", n, true})
		return nil
	}
	fmt.Fprintf(a.out, "%d lines, every one follows from the one before\n", n)
	return nil
}
