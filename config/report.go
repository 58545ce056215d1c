package config

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Report returns what `tidegate check` prints about one file: as text for
// people, and as one JSON object of the schema tidegate.check/1 with a line
// feed. cfg is nil if the file has errors.
func Report(file string, problems []Problem, cfg *Config) (text string, js []byte) {
	return reportText(file, problems, cfg), reportJSON(file, problems, cfg)
}

func reportText(file string, problems []Problem, cfg *Config) string {
	var b strings.Builder
	errors, warnings := 0, 0
	for _, p := range problems {
		b.WriteString(p.Text())
		if p.Warning {
			warnings++
		} else {
			errors++
		}
	}
	if errors > 0 || cfg == nil {
		b.WriteString(plural(errors, "error"))
		if warnings > 0 {
			b.WriteString(", " + plural(warnings, "warning"))
		}
		b.WriteString(".\n")
		return b.String()
	}
	devices := 0
	for _, bus := range cfg.Buses {
		devices += len(bus.Devices)
	}
	fmt.Fprintf(&b, "%s: ok, config %s\n", file, cfg.Hash())
	fmt.Fprintf(&b, "%s, %s, %s", plural(devices, "device"), pluralBus(len(cfg.Buses)), plural(len(cfg.devices), "point"))
	if n := len(cfg.Rules); n > 0 {
		fmt.Fprintf(&b, ", %s", plural(n, "rule"))
	}
	if warnings > 0 {
		fmt.Fprintf(&b, ", %s", plural(warnings, "warning"))
	}
	b.WriteString("\n")
	for _, l := range cfg.loads {
		line := l.Line
		if line == "" {
			line = "network"
		}
		fmt.Fprintf(&b, "  %-16s %-12s %s per round in %s, %.1f %% busy\n", l.Name, line,
			seconds(l.Round), plural(l.Requests, "request"), 100*l.Share)
	}
	return b.String()
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func pluralBus(n int) string {
	if n == 1 {
		return "1 bus"
	}
	return fmt.Sprintf("%d buses", n)
}

type jsonReport struct {
	Schema   string        `json:"schema"`
	File     string        `json:"file"`
	Config   string        `json:"config,omitempty"` // hash of the effective configuration
	Errors   []jsonProblem `json:"errors"`
	Warnings []jsonProblem `json:"warnings"`
	Buses    []jsonBus     `json:"buses,omitempty"`
	OK       bool          `json:"ok"`
}

type jsonProblem struct {
	Code    string `json:"code"`
	Line    int    `json:"line"` // 0: the problem has no place in the file
	Col     int    `json:"col"`
	Len     int    `json:"len"`
	Path    string `json:"path"`
	Msg     string `json:"msg"`
	Hint    string `json:"hint,omitempty"`
	Suggest string `json:"suggest,omitempty"`
}

type jsonBus struct {
	Name     string  `json:"name"`
	Devices  int     `json:"devices"`
	Requests int     `json:"requests"` // in one round of all devices
	Round    float64 `json:"round_s"`
	Load     float64 `json:"load"`     // 1 = always busy
	Absent   float64 `json:"absent_s"` // each try of a device that is absent
	Fits     float64 `json:"fits_s"`   // a period for all devices at which the polls fit
}

func reportJSON(file string, problems []Problem, cfg *Config) []byte {
	r := jsonReport{Schema: "tidegate.check/1", File: file, Errors: []jsonProblem{}, Warnings: []jsonProblem{}}
	for _, p := range problems {
		j := jsonProblem{p.Code, p.Line, p.Col, p.Len, p.Path, p.Msg, p.Hint, p.Suggest}
		if p.Warning {
			r.Warnings = append(r.Warnings, j)
		} else {
			r.Errors = append(r.Errors, j)
		}
	}
	r.OK = len(r.Errors) == 0 && cfg != nil
	if r.OK {
		r.Config = cfg.Hash()
		for _, l := range cfg.loads {
			r.Buses = append(r.Buses, jsonBus{l.Name, l.Devices, l.Requests, round3(l.Round.Seconds()), round3(l.Share), round3(l.Absent.Seconds()), round3(l.Fits().Seconds())})
		}
	}
	// Marshal cannot fail: the types above hold nothing that JSON cannot write.
	out, _ := json.Marshal(r)
	return append(out, '\n')
}

func round3(x float64) float64 { return float64(int64(x*1000+0.5)) / 1000 }
