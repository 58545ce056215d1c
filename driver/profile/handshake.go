package profile

import (
	"fmt"
	"slices"
	"time"
)

// Handshake is a manner of speaking that no frame and no message can
// describe. It may be written as its kind alone.
type Handshake struct {
	Kind    string        `yaml:"kind" required:"true" enum:"dsmr,iec62056-21,mbus,sunspec" doc:"dsmr: a P1 port, which talks by itself; iec62056-21: a meter that is read out at 300 baud and faster; mbus: a meter on an M-Bus; sunspec: a Modbus device whose registers stand in models that are found on it."`
	Mode    string        `yaml:"mode" enum:"poll,push" doc:"iec62056-21: poll asks the meter (modes A, B and C), push listens to one that talks by itself; poll if not given."`
	MaxBaud int           `yaml:"max_baud" min:"0" max:"19200" doc:"iec62056-21: the highest speed to go to; what the meter offers if not given."`
	Select  Hex           `yaml:"application" doc:"mbus: sub-code of the application reset that is sent before the meter is asked, such as 10; none if not given."`
	Wake    time.Duration `yaml:"wake" doc:"iec62056-21: how long zero bytes are sent before the request, for meters that run on a battery (2.2s)."`
}

// handshakes are the known kinds.
var handshakes = []string{"dsmr", "iec62056-21", "mbus", "sunspec"}

// IsBaud says whether IEC 62056-21 has a speed.
func IsBaud(n int) bool { return slices.Contains(bauds, n) }

var bauds = []int{300, 600, 1200, 2400, 4800, 9600, 19200}

// UnmarshalText takes the kind alone.
func (h *Handshake) UnmarshalText(b []byte) error {
	if slices.Contains(handshakes, string(b)) {
		h.Kind = string(b)
		return nil
	}
	return fmt.Errorf("%q is no handshake; known are %v", string(b), handshakes)
}

// Asks says whether the device is asked; else it talks by itself.
func (h *Handshake) Asks() bool {
	return h != nil && (h.Kind == "iec62056-21" && h.Mode != "push" || h.Kind == "mbus")
}

// MBus says whether the device is a meter on an M-Bus.
func (p *Profile) MBus() bool { return p.Handshake != nil && p.Handshake.Kind == "mbus" }

// Whole says whether each telegram of the device speaks of all of its points,
// so that what it does not hold is not there.
func (p *Profile) Whole() bool {
	return p.Frames != nil && (p.Frames.Kind == "mbus" || p.Frames.Kind == "obis")
}

// frames returns the frames that the handshake brings along.
func (h *Handshake) frames() *Frames {
	if h.Kind == "mbus" {
		return &Frames{Kind: "mbus"}
	}
	return &Frames{Kind: "obis"}
}

func (h *Handshake) build(p *Profile, r report) {
	if h.Kind == "sunspec" {
		if p.Transport != "modbus" {
			r("", "sunspec is for Modbus devices", "write transport: modbus")
		}
		for i := range p.Points {
			if p.Points[i].SunSpec == nil {
				r("", "with sunspec every point stands in a model", "give "+p.Points[i].Name+" a place under sunspec")
				return
			}
		}
		if h.Mode != "" || h.MaxBaud != 0 || h.Wake != 0 || h.Select != nil {
			r("", "sunspec has no further settings", "write handshake: sunspec")
		}
		return
	}
	switch {
	case p.Transport != "serial":
		r("", "a handshake is for serial devices", "write transport: serial")
	case p.Frames == nil || p.Frames.Kind != h.frames().Kind:
		r("", "the handshake "+h.Kind+" has its own frames", "remove frames")
	case p.Talk != nil:
		r("", "the handshake says what is sent", "remove talk")
	case h.Kind != "iec62056-21" && (h.Mode != "" || h.MaxBaud != 0 || h.Wake != 0):
		r("", "mode, max_baud and wake are for iec62056-21", "remove them")
	case h.Kind != "mbus" && h.Select != nil:
		r("application", "application is for mbus", "remove it")
	case len(h.Select) > 10:
		r("application", "an application reset has at most ten bytes", "write application: 10")
	case h.MaxBaud != 0 && !IsBaud(h.MaxBaud):
		r("max_baud", fmt.Sprintf("%d is no speed of IEC 62056-21", h.MaxBaud), "write 300, 600, 1200, 2400, 4800, 9600 or 19200")
	case h.Wake < 0 || h.Wake > 10*time.Second:
		r("wake", fmt.Sprintf("%v is outside 0..10s", h.Wake), "write wake: 2.2s")
	}
}
