package uplink

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"tidegate/internal/clock"
	"tidegate/internal/telemetry"
)

// HomeAssistant says where Home Assistant listens.
type HomeAssistant struct {
	Prefix string `yaml:"prefix" doc:"Discovery prefix of Home Assistant's MQTT integration."`
}

// homeassistant is the speaker of Home Assistant: a discovery message for
// each point, the state of each device as it is now, and the status message
// as its availability. It shows the present: what was kept is not replayed,
// for Home Assistant takes the time of arrival for the time of a value.
type homeassistant struct {
	envelopes
	prefix  string
	devices []*haDevice
	points  []*haPoint // by their numbers in the present catalog
}

type haDevice struct {
	name    string
	model   string
	every   time.Duration
	points  []*haPoint
	touched bool
}

type haPoint struct {
	telemetry.Point
	device    *haDevice
	last      telemetry.Reading
	at        int64 // Unix ms
	announced bool  // on this connection
}

// haKey is where the topics are kept that were announced, to take away those
// of points that are gone.
const haKey = "homeassistant/"

func newHomeAssistant(u *Uplink) *homeassistant {
	p := &homeassistant{envelopes: envelopes{u: u}, prefix: u.opts.HomeAssistant.Prefix}
	for _, pt := range u.env.Catalog.Points {
		i := slices.IndexFunc(p.devices, func(d *haDevice) bool { return d.name == pt.Device })
		if i < 0 {
			i = len(p.devices)
			p.devices = append(p.devices, &haDevice{name: pt.Device})
			for _, d := range u.env.Devices {
				if d.Name == pt.Device {
					p.devices[i].model, p.devices[i].every = d.Profile, d.Every
				}
			}
		}
		x := &haPoint{Point: pt, device: p.devices[i], last: telemetry.Reading{Quality: telemetry.Init}}
		p.devices[i].points = append(p.devices[i].points, x)
		p.points = append(p.points, x)
	}
	return p
}

func (p *homeassistant) will() (message, bool) {
	for _, x := range p.points {
		x.announced = false
	}
	return p.envelopes.will()
}

func (p *homeassistant) filters() []string { return []string{p.prefix + "/status"} }

// heard: Home Assistant has started and knows nothing yet.
func (p *homeassistant) heard(s *session, m incoming) error {
	if m.retained || m.topic != p.prefix+"/status" || string(m.body) != "online" {
		return nil
	}
	for _, x := range p.points {
		x.announced = false
	}
	if err := s.say(p.describe(s, p.u.env.Catalog, true)); err != nil {
		return err
	}
	return s.say(p.status(s))
}

// describe announces every point and says what is known of it. Points of old
// catalogs are of no interest.
func (p *homeassistant) describe(_ *session, _ *telemetry.Catalog, present bool) ([]message, error) {
	if !present {
		return nil, nil
	}
	if p.u.env.Latest != nil {
		p.u.env.Latest(func(point int, r telemetry.Reading, at clock.Stamp) {
			if point < len(p.points) && at != (clock.Stamp{}) {
				t, _ := p.u.env.Clock.Resolve(at)
				p.points[point].last, p.points[point].at = r, t.UnixMilli()
			}
		})
	}
	out := p.forget()
	for _, d := range p.devices {
		out = p.announce(out, d)
	}
	for _, d := range p.devices {
		if slices.ContainsFunc(d.points, func(x *haPoint) bool { return x.at != 0 }) {
			out = append(out, p.state(d))
		}
	}
	return out, nil
}

// announce says what the points of a device are, once on a connection. A
// state is a switch or a word: it waits for its first value.
func (p *homeassistant) announce(out []message, d *haDevice) []message {
	for _, x := range d.points {
		if x.announced || (x.Kind == "state" || x.Kind == "event") && x.at == 0 {
			continue
		}
		x.announced = true
		body, _ := json.Marshal(p.config(x)) // holds nothing that JSON cannot write
		out = append(out, message{topic: p.topic(x), body: body, retained: true})
	}
	return out
}

// forget takes away what was announced for points that are gone.
func (p *homeassistant) forget() []message {
	m := p.u.env.Memory
	if m == nil {
		return nil
	}
	key := haKey + p.u.env.Site + "/" + p.u.env.Gateway
	now := map[string]bool{}
	var list []string
	for _, x := range p.points {
		for _, t := range []string{p.topicAs(x, "sensor"), p.topicAs(x, "binary_sensor")} {
			now[t] = true
			list = append(list, t)
		}
	}
	var out []message
	if b, ok, err := m.Meta(key); err == nil && ok {
		for _, t := range strings.Fields(string(b)) {
			if !now[t] {
				out = append(out, message{topic: t, retained: true})
			}
		}
	}
	if err := m.SaveMeta(key, []byte(strings.Join(list, "\n"))); err != nil {
		p.u.log.Warn("what was announced to Home Assistant cannot be kept", "error", err)
	}
	return out
}

var haOdd = regexp.MustCompile(`[^A-Za-z0-9_-]`)

func haName(parts ...string) string {
	return haOdd.ReplaceAllString(strings.Join(parts, "_"), "_")
}

func (p *homeassistant) topic(x *haPoint) string {
	if x.last.Value.Kind() == telemetry.Bool {
		return p.topicAs(x, "binary_sensor")
	}
	return p.topicAs(x, "sensor")
}

func (p *homeassistant) topicAs(x *haPoint, component string) string {
	return fmt.Sprintf("%s/%s/%s/%s/config", p.prefix, component, haName(p.u.env.Gateway), haName(x.Device, x.Name))
}

func (p *homeassistant) stateTopic(d *haDevice) string { return p.u.topicOf("state") + "/" + d.name }

// config is the discovery message of a point.
func (p *homeassistant) config(x *haPoint) map[string]any {
	gw, quoted := p.u.env.Gateway, jinja(x.Name)
	c := map[string]any{
		"name": x.Name, "unique_id": haName("tidegate", gw, x.Device, x.Name), "object_id": haName(gw, x.Device, x.Name),
		"state_topic":              p.stateTopic(x.device),
		"value_template":           "{{ value_json['values'][" + quoted + "] }}",
		"json_attributes_topic":    p.stateTopic(x.device),
		"json_attributes_template": "{{ {'quality': value_json['q'].get(" + quoted + ", 'good'), 'time': value_json['t']} | tojson }}",
		"availability_topic":       p.u.topicOf("status"),
		"availability_template":    "{{ 'online' if value_json['state'] == 'online' else 'offline' }}",
		"origin":                   map[string]any{"name": "tidegate", "sw_version": p.u.env.Version},
	}
	device := map[string]any{"identifiers": []string{haName("tidegate", gw, x.Device)}, "name": gw + " " + x.Device, "suggested_area": p.u.env.Site}
	if x.device.model != "" {
		device["model"] = x.device.model
	}
	c["device"] = device
	if every := x.device.every; every > 0 {
		c["expire_after"] = int(max(3*every, 30*time.Second).Seconds())
	}
	if x.last.Value.Kind() == telemetry.Bool {
		c["value_template"] = "{% set v = value_json['values'][" + quoted + "] %}{{ 'None' if v is none else 'ON' if v else 'OFF' }}"
		return c
	}
	if x.Kind != "gauge" && x.Kind != "counter" && x.Kind != "" {
		return c
	}
	counter := x.Kind == "counter"
	unit, class := haUnit(x.Unit, x.Name, counter)
	c["state_class"] = "measurement"
	if counter {
		c["state_class"] = "total_increasing"
	}
	if unit != "" {
		c["unit_of_measurement"] = unit
	}
	if class != "" {
		c["device_class"] = class
	}
	if x.Decimals > 0 {
		c["suggested_display_precision"] = x.Decimals
	}
	return c
}

// jinja quotes a name for a template.
func jinja(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// haUnits are Home Assistant's names of units and, where the unit alone says
// it, the class of what is measured.
var haUnits = map[string][2]string{
	"V": {"V", "voltage"}, "A": {"A", "current"}, "W": {"W", "power"}, "kW": {"kW", "power"}, "VA": {"VA", "apparent_power"},
	"var": {"var", "reactive_power"}, "Hz": {"Hz", "frequency"}, "Cel": {"°C", "temperature"}, "K": {"K", "temperature"},
	"%RH": {"%", "humidity"}, "hPa": {"hPa", "pressure"}, "kPa": {"kPa", "pressure"}, "Pa": {"Pa", "pressure"}, "bar": {"bar", "pressure"},
	"mm[Hg]": {"mmHg", "pressure"}, "lx": {"lx", "illuminance"}, "W/m2": {"W/m²", "irradiance"}, "m/s": {"m/s", "speed"}, "km/h": {"km/h", "speed"},
	"ug/m3": {"µg/m³", ""}, "mg/m3": {"mg/m³", ""}, "deg": {"°", ""}, "/cm3": {"1/cm³", ""}, "beat/min": {"bpm", ""}, "uS/cm": {"µS/cm", "conductivity"},
	"dB": {"dB", "sound_pressure"}, "mm/h": {"mm/h", "precipitation_intensity"}, "pH": {"", "ph"}, "m3/h": {"m³/h", "volume_flow_rate"},
	"l/h": {"L/h", "volume_flow_rate"}, "s": {"s", "duration"}, "ms": {"ms", "duration"}, "min": {"min", "duration"}, "m": {"m", "distance"},
	"Ohm": {"Ω", ""}, "um": {"µm", ""}, "count": {"", ""}, "1": {"", ""}, "/": {"", ""},
}

// haTotals are the units of what only counts up.
var haTotals = map[string][2]string{
	"Wh": {"Wh", "energy"}, "kWh": {"kWh", "energy"}, "MWh": {"MWh", "energy"}, "GJ": {"GJ", "energy"}, "kvarh": {"kvarh", "reactive_energy"},
	"m3": {"m³", "volume"}, "l": {"L", "volume"},
}

// haUnit returns Home Assistant's unit and device class of a point, "" for none.
func haUnit(unit, name string, counter bool) (string, string) {
	if u, ok := haTotals[unit]; ok {
		if counter {
			return u[0], u[1]
		}
		return u[0], "" // these classes are for totals only
	}
	u, ok := haUnits[unit]
	switch {
	case !ok:
		return unit, ""
	case counter:
		return u[0], ""
	case unit == "ug/m3":
		for prefix, class := range map[string]string{"pm1": "pm1", "pm10": "pm10", "pm2_5": "pm25", "pm25": "pm25", "no2": "nitrogen_dioxide", "o3": "ozone", "so2": "sulphur_dioxide"} {
			if name == prefix {
				return u[0], class
			}
		}
	}
	return u[0], u[1]
}

// state is the state of a device as it is now: all its values, null where
// there is none, and the words for what is not good.
func (p *homeassistant) state(d *haDevice) message {
	dst := append([]byte(nil), `{"t":`...)
	t := int64(0)
	for _, x := range d.points {
		t = max(t, x.at)
	}
	dst = append(fmt.Appendf(dst, "%d", t), `,"values":{`...)
	for i, x := range d.points {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(telemetry.AppendQuoted(dst, x.Name), ':')
		if usable(&x.last) {
			dst = x.last.Value.AppendJSON(dst)
		} else {
			dst = append(dst, "null"...)
		}
	}
	dst = append(dst, `},"q":{`...)
	n := 0
	for _, x := range d.points {
		word := x.last.Quality.String()
		switch {
		case x.last.Quality != telemetry.Good:
		case !usable(&x.last):
			word = telemetry.Fault.String()
		default:
			continue
		}
		if n > 0 {
			dst = append(dst, ',')
		}
		n++
		if w := x.last.Cause.String(); w != "" {
			word += " " + w
		}
		dst = telemetry.AppendQuoted(append(telemetry.AppendQuoted(dst, x.Name), ':'), word)
	}
	return message{topic: p.stateTopic(d), body: append(dst, "}}"...)}
}

// batch says the state of the devices that the batch speaks of, if it tells
// of now.
func (p *homeassistant) batch(dst []message, s *session, _ Item, c *telemetry.Catalog, history bool) ([]message, error) {
	if history || c != p.u.env.Catalog {
		return dst, nil
	}
	for i := range s.batch.Len() {
		g := s.batch.Group(i)
		at, _ := p.u.env.Clock.Resolve(g.At)
		for _, r := range g.Readings {
			if int(r.Point) >= len(p.points) {
				return dst, fmt.Errorf("point number %d is not in catalog %s of %d points", r.Point, c.Hash(), len(p.points))
			}
			if x := p.points[r.Point]; at.UnixMilli() >= x.at {
				x.last, x.at, x.device.touched = r, at.UnixMilli(), true
			}
		}
	}
	for _, d := range p.devices {
		if d.touched {
			d.touched = false
			dst = append(p.announce(dst, d), p.state(d))
		}
	}
	return dst, nil
}

// loss: there is nobody to tell.
func (p *homeassistant) loss(dst []message, _ *session, _ *Loss) ([]message, error) { return dst, nil }
