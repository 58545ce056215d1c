package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tidegate/internal/status"
)

// printJSON writes v on one line.
func printJSON(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.Encode(v)
}

// age writes a duration in milliseconds as people say it: "3 s", "4 m 1 s".
func age(ms int64) string {
	switch s := ms / 1000; {
	case ms < 0:
		return "-"
	case s < 1:
		return "0 s"
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return fmt.Sprintf("%d m %d s", s/60, s%60)
	case s < 48*3600:
		return fmt.Sprintf("%d h %d m", s/3600, s%3600/60)
	default:
		return fmt.Sprintf("%d d", s/86400)
	}
}

// size writes bytes with a decimal unit: "41.2 MB".
func size(b int64) string {
	switch {
	case b >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(b)/1e9)
	case b >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(b)/1e6)
	case b >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(b)/1e3)
	}
	return fmt.Sprintf("%d B", b)
}

// count writes a number with its noun: "1 batch", "2 batches", "3 readings".
func count(n int64, noun string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(noun, "ch"):
		noun += "es"
	default:
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// terminal tells whether the output is one that can be redrawn.
func (a *app) terminal() bool {
	f, ok := a.out.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}

// table writes rows with columns as wide as they need, two blanks apart;
// the last column is not filled up and goes on in the next line at column 80.
func table(w io.Writer, rows [][]string) {
	columns(w, rows, func(line string) string { return status.Wrap(line, 80, "        ") })
}

// columns writes rows with their columns below each other; fit makes a line
// fit for the screen.
func columns(w io.Writer, rows [][]string, fit func(line string) string) {
	var width []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	for _, r := range rows {
		var b strings.Builder
		for i, c := range r {
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-len([]rune(c))+2))
			}
		}
		fmt.Fprintln(w, fit(b.String()))
	}
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage{fmt.Errorf("%s takes no argument, got %q", c.CommandPath(), args[0])}
	}
	return nil
}

// atLeast checks the number of arguments; want says in words what they are.
func atLeast(n, most int, want string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < n || most >= 0 && len(args) > most {
			return usage{fmt.Errorf("%s wants %s, got %d arguments", c.CommandPath(), want, len(args))}
		}
		return nil
	}
}
