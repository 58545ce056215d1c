package profile

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestNames holds the library to the table of names: each point has a usual
// name, unit and kind. A new kind of point gets a line in names.txt first.
func TestNames(t *testing.T) {
	lib, _ := Load()
	used := map[string]bool{}
	for _, name := range lib.Names() {
		p, err := lib.Get(name)
		if err != nil {
			continue // TestLibrary tells
		}
		for _, s := range p.Unusual() {
			t.Errorf("%s: %s (a new name gets a line in driver/profile/names.txt)", name, s)
		}
		for i := range p.Points {
			for _, n := range StandardNames() {
				if fitsPattern(n.Pattern, p.Points[i].Name) {
					used[n.Pattern] = true
				}
			}
		}
	}
	seen := map[string]bool{}
	kinds := []string{"gauge", "counter", "state", "event", "text"}
	for _, n := range StandardNames() {
		if seen[n.Pattern] {
			t.Errorf("%s stands twice in names.txt", n.Pattern)
		}
		seen[n.Pattern] = true
		if n.Section == "" || n.Model != "" && strings.Count(n.Model, ".") != 1 || slices.ContainsFunc(n.Kinds, func(k string) bool { return !slices.Contains(kinds, k) }) {
			t.Errorf("names.txt: %+v", n)
		}
		if !used[n.Pattern] && n.Pattern != "latitude" && n.Pattern != "longitude" { // left for receivers with degmin
			t.Errorf("no profile has a point %s: remove it from names.txt", n.Pattern)
		}
	}
}

func TestUnusual(t *testing.T) {
	p := parseText(t, `
frames: {kind: line}
points:
  voltage_l1: {field: 1, unit: V}
  voltage_l2: {field: 2, unit: mV}
  voltage_la: {field: 3, unit: V}
  energy_imports: {field: 4, unit: kWh, kind: counter}
  frequency: {field: 5, unit: Hz, kind: counter}
  input_12: {field: 6, enum: {0: open}}
  lane_3_count: {field: 7, unit: count}
  lane__count: {field: 8, unit: count}
  zebra: {field: 9}
`)
	want := "voltage_l2 is in mV, usual is V\nvoltage_la is none of the usual names; is it voltage_l*?\n" +
		"energy_imports is none of the usual names; is it energy_import?\nfrequency is a counter, usual is gauge\n" +
		"lane__count is none of the usual names; is it lane_*_count?\nzebra is none of the usual names"
	if got := strings.Join(p.Unusual(), "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestPointsPage holds docs/points.md up to date.
func TestPointsPage(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Names of points\n\nThe same thing has the same name, unit and kind in every profile, whoever made the device. `*` stands for digits.\n" +
		"The last column is its place in the Smart Data Models, as MODEL.ATTRIBUTE; *own* marks what only that vendor's device\n" +
		"says. This page is made of `driver/profile/names.txt`; a profile of yours with other names works all the same, and\n" +
		"`tidegate profile test FILE` tells which of its names and units are unusual.\n")
	section := ""
	for _, n := range StandardNames() {
		if n.Section != section {
			section = n.Section
			fmt.Fprintf(&b, "\n## %s\n\n| name | kind | unit | meaning | Smart Data Models |\n| --- | --- | --- | --- | --- |\n", section)
		}
		model := n.Model
		if n.Own {
			model = "*own*"
		}
		units := slices.DeleteFunc(slices.Clone(n.Units), func(u string) bool { return u == "" })
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", n.Pattern, strings.Join(n.Kinds, ", "), strings.Join(units, ", "), n.Meaning, model)
	}
	golden(t, filepath.Join("..", "..", "docs", "points.md"), []byte(b.String()))
}
