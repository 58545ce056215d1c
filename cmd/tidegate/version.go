package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
)

// built is when this binary was built, zero if the build did not say.
func built() time.Time {
	t, err := time.Parse(time.RFC3339, date)
	if err != nil {
		return time.Time{}
	}
	return t
}

type versionInfo struct {
	Schema  string `json:"schema"`
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Date    string `json:"date,omitempty"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "version, commit, Go version, architecture",
		Args:  noArgs,
		RunE:  func(*cobra.Command, []string) error { return a.printVersion() },
	}
}

func (a *app) printVersion() error {
	v := versionInfo{"tidegate.version/1", version, commit, date, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "GOARM" || s.Key == "GOMIPS" || s.Key == "GO386" {
				v.Arch += " " + s.Key + "=" + s.Value
			}
		}
	}
	if a.json {
		printJSON(a.out, v)
		return nil
	}
	line := "tidegate " + v.Version
	for _, s := range []string{v.Commit, v.Date, v.Go, v.Arch} {
		if s != "" {
			line += "  " + s
		}
	}
	fmt.Fprintln(a.out, line)
	return nil
}
