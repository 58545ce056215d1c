package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tidegate/config"
	"tidegate/driver/profile"
	"tidegate/internal/status"
)

// profileInfo is one line of `profile list --json` and `profile show --json`.
type profileInfo struct {
	Schema   string          `json:"schema"`
	Name     string          `json:"name"`
	Title    string          `json:"title"`
	Vendor   string          `json:"vendor,omitempty"`
	Models   []string        `json:"models,omitempty"`
	Domain   string          `json:"domain"`
	Status   string          `json:"status"` // captured, second-hand, community
	Verified bool            `json:"verified"`
	Examples int             `json:"examples"`
	Line     string          `json:"line,omitempty"`
	Unit     int             `json:"unit,omitempty"`
	File     string          `json:"file"`
	Sources  []string        `json:"sources,omitempty"`
	Notes    string          `json:"notes,omitempty"`
	Places   []profile.Place `json:"points"`
}

func infoOf(schema string, i profile.Info) profileInfo {
	return profileInfo{schema, i.Name, i.Title, i.Vendor, i.Models, i.Domain, i.Status, i.Verified, i.Examples,
		i.Line, i.Unit, i.File, i.Sources, i.Notes, i.Places}
}

func (a *app) profileCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "profile",
		Short: "the device library: list, show, test",
		Args:  noArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		&cobra.Command{
			Use:   "list [WORD...]",
			Short: "profiles whose name, title, vendor or domain holds the words",
			Args:  cobra.ArbitraryArgs,
			RunE:  func(_ *cobra.Command, args []string) error { return a.profileList(args) },
		},
		&cobra.Command{
			Use:   "show NAME|FILE",
			Short: "points, addresses, line settings and sources of a profile",
			Args:  atLeast(1, 1, "the name of a profile, or its file"),
			RunE:  func(_ *cobra.Command, args []string) error { return a.profileShow(args[0]) },
		},
		a.profileTestCmd())
	return c
}

// library is the built-in profiles with those in the folder "profiles"
// beside the configuration.
func (a *app) library() (*profile.Library, error) {
	return config.Library(a.configPath())
}

func (a *app) profileList(words []string) error {
	lib, err := a.library()
	if err != nil {
		return err
	}
	rows := [][]string{{"PROFILE", "DOMAIN", "STATUS", "EXAMPLES", "DEVICE"}}
	found := false
	for _, name := range lib.Names() {
		i, err := lib.Describe(name)
		if err != nil {
			fmt.Fprintln(a.err, err)
			continue
		}
		text := strings.ToLower(strings.Join([]string{i.Name, i.Title, i.Vendor, i.Domain, strings.Join(i.Models, " ")}, " "))
		match := true
		for _, w := range words {
			match = match && strings.Contains(text, strings.ToLower(w))
		}
		if !match {
			continue
		}
		found = true
		if a.json {
			printJSON(a.out, infoOf("tidegate.profile/1", i))
			continue
		}
		examples := fmt.Sprintf("%d pass", i.Examples)
		if i.Examples == 0 {
			examples = "unverified"
		} else if !i.Verified {
			examples = "FAIL"
		}
		rows = append(rows, []string{i.Name, i.Domain, i.Status, examples, i.Title})
	}
	if !found {
		return &status.Failure{Code: "profile-unknown", What: fmt.Sprintf("no profile speaks of %q", strings.Join(words, " ")),
			Try: "tidegate profile list; writing one is explained in docs/profiles.md", Exit: exitFindings}
	}
	if !a.json {
		table(a.out, rows)
	}
	return nil
}

func (a *app) profileShow(name string) error {
	lib, err := a.library()
	if err != nil {
		return err
	}
	var i profile.Info
	if isFile(name) {
		p, err := a.profileNamed(lib, name)
		if err != nil {
			return err
		}
		i = p.Describe()
		i.File = name
	} else if i, err = lib.Describe(name); err != nil {
		return profileFailure(name, err)
	}
	if a.json {
		printJSON(a.out, infoOf("tidegate.profile/1", i))
		return nil
	}
	fmt.Fprintf(a.out, "%s  %s\n", i.Name, i.Title)
	about := [][]string{{"", "domain", i.Domain}, {"", "models", strings.Join(i.Models, ", ")}, {"", "line", i.Line},
		{"", "status", fmt.Sprintf("%s, %d examples", i.Status, i.Examples)}}
	if i.Unit > 0 {
		about = append(about, []string{"", "unit id", fmt.Sprint(i.Unit)})
	}
	for _, s := range i.Sources {
		about = append(about, []string{"", "source", s})
	}
	for line := range strings.Lines(i.Notes) {
		about = append(about, []string{"", "note", strings.TrimSpace(line)})
	}
	table(a.out, about)
	rows := [][]string{{"POINT", "PLACE", "MANUAL", "TYPE", "UNIT", "KIND"}}
	for k, p := range i.Places {
		place, manual := fmt.Sprintf("byte %d", p.Address), ""
		if p.Table != "" {
			place, manual = fmt.Sprintf("%s %d", p.Table, p.Address), fmt.Sprint(p.Manual)
		} else if p.Field != "" {
			place = p.Field
		}
		rows = append(rows, []string{p.Point, place, manual, p.Type, i.Points[k].Unit, p.Kind})
	}
	table(a.out, rows)
	return nil
}

func profileFailure(name string, err error) error {
	if errors.Is(err, profile.ErrUnknown) {
		return &status.Failure{Code: "profile-unknown", What: err.Error(), Try: "tidegate profile list", Exit: exitUsage}
	}
	return &status.Failure{Code: "profile-invalid", What: err.Error(), Exit: exitData}
}

// isFile says whether a profile is named by its file.
func isFile(name string) bool {
	return strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")
}

// profileNamed is a profile of the library, or of a file of the user's own.
func (a *app) profileNamed(lib *profile.Library, name string) (*profile.Profile, error) {
	if !isFile(name) {
		p, err := lib.Get(name)
		if err != nil {
			return nil, profileFailure(name, err)
		}
		return p, nil
	}
	src, err := os.ReadFile(name)
	if err != nil {
		return nil, &status.Failure{Code: "no-such-file", What: err.Error(), Exit: exitNoInput}
	}
	p, problems := profile.Parse(lib, name, src)
	bad := p == nil
	for _, pr := range problems {
		fmt.Fprint(a.err, pr.Text())
		bad = bad || !pr.Warning
	}
	if bad {
		return nil, exit(exitData)
	}
	return p, nil
}
