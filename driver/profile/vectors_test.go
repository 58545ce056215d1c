package profile

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidegate/internal/telemetry"
)

// readJSON reads recorded data: from testdata/device, or, for what may not
// be published with the project, from the folder TIDEGATE_DEVICES or
// ../shared/devices beside the repository. A file that is not there skips
// the test.
func readJSON(t testing.TB, name string, v any) {
	t.Helper()
	root := filepath.Join("..", "..")
	for _, dir := range []string{filepath.Join(root, "testdata", "device"), os.Getenv("TIDEGATE_DEVICES"), filepath.Join(root, "..", "shared", "devices")} {
		if dir == "" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return
	}
	t.Skipf("NOT RUN: %s is not here; set TIDEGATE_DEVICES to the folder that holds it", name)
}

type vector struct {
	ID           string
	Framing      string
	Function     int
	Address      int
	RequestHex   string `json:"request_hex"`
	ResponseHex  string `json:"response_hex"`
	PayloadHex   string `json:"payload_hex"`
	Registers    []uint16
	Exception    int
	ExpectedFrom string `json:"expected_from"`
	Exchanges    [][2]string
	Values       []struct {
		Reg, Bit          *int
		Type, Name, Point string
		Marker            string
		At, Model, Length int
		Value             any
		Tol               float64
	}
}

// TestModbusVectors decodes every recorded exchange with points made for it.
func TestModbusVectors(t *testing.T) {
	var vectors []vector
	readJSON(t, "modbus/vectors.json", &vectors)
	if len(vectors) < 17 {
		t.Errorf("only %d vectors", len(vectors))
	}
	for _, v := range vectors {
		t.Run(v.ID, func(t *testing.T) {
			switch {
			case v.ID == "solaredge-model-103":
				v.run(t, model103(t))
			case v.Exchanges != nil:
				v.discovery(t)
			case v.Exception != 0:
				e := Example{Response: unhex(t, v.ResponseHex), Holding: ptr(0), Exception: v.Exception}
				if e.Response[1] == 0x84 {
					e.Holding, e.Input = nil, ptr(0)
				}
				p := custom(t, nil, Point{Name: "x", Input: ptr(0)})
				if r := e.run(p); !r.OK() || len(r.Readings) != 0 {
					t.Error(r)
				}
			default:
				v.run(t, v.points(t))
			}
		})
	}
}

// points makes a point for each value, with the scale of its device.
func (v *vector) points(t *testing.T) []Point {
	scales := map[string]string{"pzem/voltage": "0.1", "pzem/current": "0.001", "pzem/power": "0.1", "pzem/frequency": "0.1",
		"pzem/pf": "0.01", "et112/voltage_l1": "0.1", "xy/temperature": "0.1", "xy/humidity": "0.1"}
	var out []Point
	table := Input
	switch {
	case v.Function != 0:
		table = Table(v.Function)
	case v.RequestHex != "":
		table = Table(unhex(t, v.RequestHex)[1])
	}
	for _, x := range v.Values {
		pt := Point{Name: x.Name}
		at := x.Reg
		if x.Bit != nil {
			at = x.Bit
		} else {
			typ, order, _ := strings.Cut(x.Type, " ")
			pt.Type = typ
			if order == "low word first" {
				pt.Order = "CDAB"
			}
		}
		switch table {
		case Coils:
			pt.Coil = at
		case Discrete:
			pt.Discrete = at
		case Holding:
			pt.Holding = at
		case Input:
			pt.Input = at
		}
		device, _, _ := strings.Cut(v.ID, "-")
		if s, ok := scales[device+"/"+x.Name]; ok {
			pt.Scale = dec(t, s)
		}
		out = append(out, pt)
	}
	return out
}

func (v *vector) run(t *testing.T, points []Point) {
	p := custom(t, nil, points...)
	e := Example{Framing: v.Framing}
	switch v.Framing {
	case "payload", "registers":
		e.Payload, e.Input = unhex(t, v.PayloadHex), ptr(v.Address)
		for _, r := range v.Registers {
			e.Payload = append(e.Payload, byte(r>>8), byte(r))
		}
		if v.ID == "sdm230-80-registers" {
			e.Payload = e.Payload[:80] // the log is cut after that
		}
	default:
		e.Response = unhex(t, v.ResponseHex)
		if v.RequestHex != "" {
			e.Request = unhex(t, v.RequestHex)
		} else {
			e.Input = ptr(0)
		}
	}
	res := e.run(p)
	if !res.OK() {
		t.Fatal(res.Failures)
	}
	got := map[string]telemetry.Reading{}
	for _, r := range res.Readings {
		got[p.Points[r.Point].Name] = r
	}
	for _, want := range v.Values {
		name := strings.ToLower(want.Name + want.Point)
		r, ok := got[name]
		if !ok {
			t.Errorf("%s: no reading", name)
			continue
		}
		t.Logf("%s = %s", name, ReadingText(r))
		switch x := want.Value.(type) {
		case nil:
			if r.Value.Kind() != telemetry.None || r.Quality != telemetry.Fault {
				t.Errorf("%s = %s, want no value", name, ReadingText(r))
			}
		case bool:
			if r.Value != telemetry.BoolValue(x) {
				t.Errorf("%s = %s, want %v", name, ReadingText(r), x)
			}
		case float64:
			if want.Tol == 0 && r.Value.Float() != x || math.Abs(r.Value.Float()-x) > want.Tol || r.Quality != telemetry.Good {
				t.Errorf("%s = %s, want %v", name, ReadingText(r), x)
			}
		}
	}
}

// model103 is SunSpec model 103 at 40071, without its header.
func model103(t *testing.T) []Point {
	var out []Point
	sf := map[string]int{}
	at := 40071
	for _, w := range strings.Fields("A:u AphA:u AphB:u AphC:u A_SF PPVphAB:u PPVphBC:u PPVphCA:u PhVphA:u PhVphB:u PhVphC:u V_SF W:s W_SF Hz:u Hz_SF " +
		"VA:s VA_SF VAr:s VAr_SF PF:s PF_SF WH:a WH_SF DCA:u DCA_SF DCV:u DCV_SF DCW:s DCW_SF TmpCab:s TmpSnk:s TmpTrns:s TmpOt:s Tmp_SF St:e") {
		name, kind, _ := strings.Cut(w, ":")
		pt := Point{Name: strings.ToLower(name), Holding: ptr(at)}
		switch kind {
		case "":
			sf[strings.TrimSuffix(name, "_SF")] = at
			at++
			continue
		case "u":
			pt.Type, pt.NA = "u16", []Marker{"0xFFFF"}
		case "s":
			pt.Type, pt.NA = "s16", []Marker{"0x8000"}
		case "e":
			pt.Type, pt.NA = "u16", []Marker{"0xFFFF"}
		case "a":
			pt.Type = "u32"
			at++
		}
		at++
		out = append(out, pt)
	}
	for i := range out {
		name := out[i].Name
		for prefix, addr := range sf {
			p := strings.ToLower(prefix)
			if name == p || p == "a" && strings.HasPrefix(name, "aph") || p == "v" && strings.Contains(name, "vph") || p == "tmp" && strings.HasPrefix(name, "tmp") {
				out[i].SF = Ref(fmt.Sprint(addr))
			}
		}
	}
	return out
}

// discovery reads the SunSpec marker and the heads of two models.
func (v *vector) discovery(t *testing.T) {
	for i, x := range v.Exchanges {
		want := v.Values[i]
		var points []Point
		expect := map[string]Want{}
		if want.Marker != "" {
			points = append(points, Point{Name: "marker", Holding: ptr(want.At), Type: "string", Length: 2})
			expect["marker"] = Want(want.Marker)
		} else {
			points = append(points, Point{Name: "model", Holding: ptr(want.At)}, Point{Name: "length", Holding: ptr(want.At + 1)})
			expect["model"], expect["length"] = Want(fmt.Sprint(want.Model)), Want(fmt.Sprint(want.Length))
		}
		p := custom(t, nil, points...)
		e := Example{Framing: "tcp", Request: unhex(t, x[0]), Response: unhex(t, x[1]), Expect: expect}
		if r := e.run(p); !r.OK() {
			t.Error(r.Failures)
		}
	}
}
