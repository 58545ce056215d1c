package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"tidegate/internal/document"
	"tidegate/internal/rule"
	"tidegate/internal/telemetry"
)

// rules checks each rule, and all of them against the points of the devices.
func (p *parser) rules() {
	rules := p.cfg.Rules
	if len(rules) == 0 {
		return
	}
	for i := range rules {
		r := &rules[i]
		p.name("rules."+r.Name, r.Name, "a rule")
		if r.Severity == "" {
			r.Severity = rule.DefaultSeverity
		}
	}
	var points []telemetry.Point
	enums := map[uint32]map[int64]string{} // by point number
	broken := map[string]bool{}            // devices whose points are not known
	for i := range p.cfg.Buses {
		b := &p.cfg.Buses[i]
		for k := range b.Devices {
			d := &b.Devices[k]
			if d.Name == rule.Device {
				p.doc.Report("buses."+b.Name+".devices."+d.Name, document.CodeKey,
					fmt.Sprintf("%q cannot be the name of a device", d.Name), "the states of the rules are sent under this name; choose another one")
			}
			if d.Map == nil {
				broken[d.Name] = true
				continue
			}
			for n := range d.Map.Points {
				if e := d.Map.Points[n].Enum; len(e) > 0 {
					enums[uint32(len(points)+n)] = e
				}
			}
			points = append(points, d.Map.TelemetryPoints(d.Name)...)
		}
	}
	set, issues := rule.Compile(rules, points)
	for _, w := range set.Words() {
		known := slices.Sorted(maps.Values(enums[w.Point]))
		if len(known) > 0 && !slices.Contains(known, w.Text) {
			p.doc.Report("rules."+w.Rule+"."+w.Path, document.CodeValue,
				fmt.Sprintf("%s: %s/%s is never %q", w.Path, points[w.Point].Device, points[w.Point].Name, w.Text),
				didYouMean("it is "+strings.Join(known, ", "), document.Nearest(w.Text, known)))
		}
	}
	for _, is := range issues {
		hint := is.Hint
		if is.Unknown != "" {
			device, _, _ := strings.Cut(is.Unknown, "/")
			if broken[device] || p.doc.Broken() {
				continue // it may well be there; what hides it was told
			}
			hint = didYouMean(hint, nearPoint(is.Unknown, points))
		}
		path := "rules." + is.Rule
		code := document.CodeKey
		if is.Path != "" {
			path, code = path+"."+is.Path, document.CodeValue
		}
		p.doc.Report(path, code, is.Msg, hint)
	}
}

// nearPoint is the device/point that was probably meant, "" if none is near.
func nearPoint(name string, points []telemetry.Point) string {
	device, point, slash := strings.Cut(name, "/")
	of := map[string][]string{} // device -> points
	var devices, owners []string
	for i := range points {
		pt := &points[i]
		if of[pt.Device] == nil {
			devices = append(devices, pt.Device)
		}
		of[pt.Device] = append(of[pt.Device], pt.Name)
		if pt.Name == name {
			owners = append(owners, pt.Device)
		}
	}
	switch {
	case !slash && len(owners) == 1:
		return owners[0] + "/" + name
	case slash && of[device] == nil:
		device = document.Nearest(device, devices)
	}
	if near := document.Nearest(point, of[device]); near != "" {
		return device + "/" + near
	}
	return ""
}
