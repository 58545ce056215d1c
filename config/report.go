package config

import (
	"encoding/json"
	"fmt"
	"strings"

	"tidegate/driver/profile"
	"tidegate/uplink"
	"tidegate/uplink/payload"
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
	parts, all, err := cfg.Traffic()
	if err != nil || all.Batches == 0 {
		return b.String()
	}
	for i, u := range cfg.Uplinks {
		reportTraffic(&b, u.Name, parts[i])
	}
	if len(cfg.Uplinks) == 0 {
		reportTraffic(&b, "uplink", all)
	} else if len(cfg.Uplinks) > 1 {
		reportTraffic(&b, "all uplinks", all)
	}
	return b.String()
}

func reportTraffic(b *strings.Builder, name string, t uplink.Traffic) {
	fmt.Fprintf(b, "  %-16s about %s a month, %s with TCP/IP:\n%19s%s of %s, %.1f bytes a reading\n", name, megabytes(t.Out+t.In),
		megabytes(t.Out+t.In+t.IP), "", plural(int(t.Batches), "batch"), plural(int(t.Readings), "reading"), t.Reading)
}

// megabytes writes bytes as data plans do.
func megabytes(n int64) string {
	if n < 10_000_000 {
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%d MB", (n+500_000)/1_000_000)
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	if strings.HasSuffix(word, "ch") {
		word += "e"
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
	Traffic  *jsonTraffic  `json:"traffic,omitempty"` // of all uplinks
	Uplinks  []jsonTraffic `json:"uplinks,omitempty"` // of each of several
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

// jsonTraffic is the estimate of a month of 30 days.
type jsonTraffic struct {
	Name     string  `json:"name,omitempty"` // of one of several uplinks
	Batches  int64   `json:"batches"`
	Readings int64   `json:"readings"` // in a batch
	Out      int64   `json:"out_bytes"`
	In       int64   `json:"in_bytes"`
	IP       int64   `json:"ip_bytes"` // what TCP and IP add
	Reading  float64 `json:"bytes_a_reading"`
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
	if r.OK {
		if parts, all, err := cfg.Traffic(); err == nil {
			form := func(name string, t uplink.Traffic) jsonTraffic {
				return jsonTraffic{name, t.Batches, t.Readings, t.Out, t.In, t.IP, round3(t.Reading)}
			}
			sum := form("", all)
			r.Traffic = &sum
			for i, u := range cfg.Uplinks {
				r.Uplinks = append(r.Uplinks, form(u.Name, parts[i]))
			}
		}
	}
	// Marshal cannot fail: the types above hold nothing that JSON cannot write.
	out, _ := json.Marshal(r)
	return append(out, '\n')
}

// Traffic estimates what each uplink costs in a month, and all together.
func (c *Config) Traffic() (parts []uplink.Traffic, all uplink.Traffic, err error) {
	var polls []uplink.Poll
	var devices []payload.Device
	for i := range c.Buses {
		for k := range c.Buses[i].Devices {
			d := &c.Buses[i].Devices[k]
			devices = append(devices, payload.Device{Name: d.Name, Profile: d.Profile, Driver: c.Buses[i].Connect, Every: d.Every})
			all := uplink.Poll{Every: d.Every}
			for n := range d.Map.Points {
				all.Points = append(all.Points, d.Base+uint32(n))
			}
			plan := d.Map.Usual().Plan(profile.Limits{})
			for _, r := range plan {
				p := uplink.Poll{Every: d.Every}
				for _, n := range r.Points {
					p.Points = append(p.Points, d.Base+uint32(n))
				}
				polls = append(polls, p)
			}
			if len(plan) == 0 { // it talks by itself, or all at once
				polls = append(polls, all)
			}
		}
	}
	links := c.Links()
	age := links[0].Batch.MaxAge
	if c.Buffer.MaxLoss > 0 { // as the collector obeys it
		age = min(age, c.Buffer.MaxLoss/2)
	}
	for i := range links {
		t, err := uplink.Estimate(links[i].Options, uplink.Env{Gateway: c.Gateway.ID, Site: c.Gateway.Site, Version: "0.0.0", Labels: c.Gateway.Labels,
			Stopped: "clean", Devices: devices, Catalog: c.catalog, Health: func() string { return "ok" }}, polls, age)
		if err != nil {
			return nil, all, err
		}
		parts = append(parts, t)
		all = uplink.Traffic{Batches: parts[0].Batches, Readings: parts[0].Readings, Out: all.Out + t.Out, In: all.In + t.In, IP: all.IP + t.IP, Reading: all.Reading + t.Reading}
	}
	return parts, all, nil
}

func round3(x float64) float64 { return float64(int64(x*1000+0.5)) / 1000 }
