package mbus

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// header is a long header: 12345678, CHM, version 1, electricity.
const header = "78 56 34 12 0D 0D 01 02 2A 00 00 00 "

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for _, f := range strings.Fields(s) {
		var x byte
		for _, c := range []byte(f) {
			i := bytes.IndexByte([]byte("0123456789ABCDEF"), c)
			if i < 0 {
				t.Fatalf("%q is no byte", f)
			}
			x = x<<4 | byte(i)
		}
		out = append(out, x)
	}
	return out
}

// one decodes a single record behind a long header.
func one(t testing.TB, record string) (Record, error) {
	t.Helper()
	tele, err := Parse(Frame{Long: true, Control: RspUd, CI: 0x72, Data: fromHex(t, header+record)})
	if err != nil {
		return Record{}, err
	}
	if len(tele.Records) != 1 {
		t.Fatalf("%s: %d records", record, len(tele.Records))
	}
	return tele.Records[0], nil
}

// text1 writes a value as the tables below have it.
func text1(r Record) string {
	var b strings.Builder
	b.WriteString(r.Quantity)
	for _, q := range r.Qualifiers {
		b.WriteString(" " + q)
	}
	v := r.Value
	switch v.Form {
	case None:
		b.WriteString(" " + [...]string{"ok", "none", "no-bcd", "no-time", "no-real", "refused"}[v.Fault])
	case Integer:
		b.WriteString(" " + itoa(v.Int) + "e" + itoa(int64(r.Exp)))
	case Unsigned:
		b.WriteString(" big")
	case Real:
		b.WriteString(" real")
	case Text:
		b.WriteString(" '" + v.Str + "'")
	case Moment:
		b.WriteString(" " + v.Time.String())
	case Bytes:
		b.WriteString(" bytes")
	}
	return b.String() + " " + r.Unit
}

func itoa(n int64) string {
	if n < 0 {
		return "-" + itoa(-n)
	}
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

// TestRecords: the examples of the standard's text and one for each corner
// of the tables.
func TestRecords(t *testing.T) {
	for record, want := range map[string]string{
		// Numbers.
		"01 03 2A":                      "energy 42e0 Wh",
		"02 13 00 80":                   "volume none m3",
		"02 13 01 80":                   "volume -32767e-3 m3",
		"03 13 FF FF FF":                "volume -1e-3 m3",
		"04 13 00 00 00 80":             "volume none m3",
		"06 13 01 00 00 00 00 00":       "volume 1e-3 m3",
		"07 03 FF FF FF FF FF FF FF 7F": "energy 9223372036854775807e0 Wh",
		"07 78 FF FF FF FF FF FF FF FF": "fabrication_number big ",
		"02 FD 17 FF FF":                "error_flags 65535e0 ",
		"0C 13 78 56 34 12":             "volume 12345678e-3 m3",
		"0A 5A 02 F1":                   "flow_temperature -102e-1 Cel",
		"0A 5A 0A 01":                   "flow_temperature no-bcd Cel",
		"0A 5A 02 E1":                   "flow_temperature no-bcd Cel",
		"0E 03 01 02 03 04 05 06":       "energy 60504030201e0 Wh",
		"05 2B 00 00 80 3F":             "power real W",
		"05 2B 00 00 C0 7F":             "power no-real W",
		"00 13":                         "volume none m3",
		"08 13":                         "volume none m3",
		"0D 13 C4 78 56 34 12":          "volume 12345678e-3 m3",
		"0D 13 D2 78 56":                "volume -5678e-3 m3",
		"0D 13 E3 01 00 00":             "volume 1e-3 m3",
		"0D FD 11 03 43 42 41":          "customer 'ABC' ",
		"0D FD 11 00":                   "customer none ",
		"0D 79 F0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6": "identification bytes ",
		// Times: G, F, J, I, and what is none.
		"02 6C FF 0C":             "time_point 2007-12-31 ",
		"02 6C 00 00":             "time_point no-time ",
		"02 6C FF FF":             "time_point no-time ",
		"02 6C 1E 12":             "time_point no-time ", // 30 February 2008
		"04 6D 32 37 1F 15":       "time_point 2008-05-31T23:50 ",
		"04 6D B2 37 1F 15":       "time_point no-time ",          // marked as not valid
		"04 6D 32 77 7F CC":       "time_point 2299-12-31T23:50 ", // century 3
		"04 6D 32 17 BF C5":       "time_point no-time ",          // year 101
		"04 6D 32 17 7F C5":       "time_point 1999-05-31T23:50 ", // none, and above 80
		"03 6D 0A 0B 0C":          "time_point 12:11:10 ",
		"06 6D 0A 0B 0C 1F 15 01": "time_point 2008-05-31T12:11:10 ",
		"06 6D 0A 8B 0C 1F 15 01": "time_point no-time ",
		"42 EC 7E FF 0C":          "time_point future 2007-12-31 ",
		"02 BB 39 FF 0C":          "volume_flow start 2007-12-31 ",
		// Extensions.
		"02 FD 48 E9 08":             "voltage 2281e-1 V",
		"02 FD C8 FC 01 E9 08":       "voltage l1 2281e-1 V",
		"02 FD DB FC 03 E9 08":       "current l3 2281e-1 A",
		"02 FB 1A 12 02":             "relative_humidity 530e-1 %RH",
		"02 FB 00 12 02":             "energy 530e5 Wh",
		"02 FB 2F 12 02":             "frequency 530e0 Hz",
		"02 FB 17 12 02":             "reactive_power 530e3 var",
		"04 83 3B 88 13 00 00":       "energy forward 5000e0 Wh",
		"04 83 3C 88 13 00 00":       "energy backward 5000e0 Wh",
		"02 93 74 12 02":             "volume 530e-5 m3", // x 10^-2
		"02 93 77 12 02":             "volume 530e-2 m3", // x 10
		"02 48 12 02":                "volume_flow 530e-9 m3/s",
		"02 47 12 02":                "volume_flow 530e0 m3/min",
		"02 93 7D 12 02":             "volume 530e0 m3", // x 1000
		"02 93 22 12 02":             "volume per_hour 530e-3 m3",
		"02 BB 58 12 02":             "volume_flow vife_58 530e0 s",
		"02 BB 49 12 02":             "volume_flow upper_exceeds 530e0 ",
		"02 93 15 12 02":             "volume refused m3",
		"02 93 18 12 02":             "volume refused m3",
		"02 93 00 12 02":             "volume 530e-3 m3",
		"02 FF 7F 12 02":             "maker maker_7f 530e0 ",
		"02 93 FF 15 12 02":          "volume maker maker_15 530e-3 m3", // no error: it is the maker's
		"02 27 12 02":                "operating_time 530e0 d",
		"02 FD 31 12 02":             "tariff_duration 530e0 min",
		"02 FD 6C 12 02":             "battery_time 530e0 h",
		"02 6F 12 02":                " 530e0 ",
		"02 FC 03 48 52 25 74 12 02": "text 530e-2 ",
	} {
		r, err := one(t, strings.ReplaceAll(" "+record, " 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6", " 01 02 03 04 05 06 07 08 09 00 01 02 03 04 05 06")[1:])
		if err != nil || text1(r) != want {
			t.Errorf("%s: %q %v, want %q", record, text1(r), err, want)
		}
	}
}

// TestPlaces: storage number, tariff and subunit are put together from DIF
// and DIFEs.
func TestPlaces(t *testing.T) {
	r, err := one(t, "F1 FF 7F 13 01") // DIF: error value, storage bit 0; two DIFEs with everything set
	if err != nil || r.Function != DuringError || r.Storage != 511 || r.Tariff != 15 || r.Subunit != 3 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err = one(t, "82"+strings.Repeat(" 80", 9)+" 01 93"+strings.Repeat(" BB", 9)+" 3B 01 00"); err != nil || r.Storage != 1<<37 {
		t.Errorf("ten extensions each: %+v %v", r, err)
	}
	r, err = one(t, "82 40 FD 48 01 00")
	if err != nil || r.Storage != 0 || r.Subunit != 1 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err = one(t, "02 FC 03 48 52 25 74 12 02"); err != nil || r.Label != "%RH" {
		t.Errorf("%q %v", r.Label, err)
	}
}

func TestErrors(t *testing.T) {
	for data, want := range map[string]error{
		"72 " + header + "02":          ErrPremature,
		"72 " + header + "82 80":       ErrPremature,
		"72 " + header + "02 93":       ErrPremature,
		"72 " + header + "02 FD":       ErrPremature,
		"72 " + header + "02 7C":       ErrPremature,
		"72 " + header + "02 7C 09 41": ErrPremature,
		"72 " + header + "02 13 01":    ErrPremature,
		"72 " + header + "0D 13":       ErrPremature,
		"72 " + header + "0D 13 05 01": ErrPremature,
		"72 " + header + "0D 13 CF 01": ErrLength,
		"72 " + header + "0D 13 FB 01": ErrLength,
		"72 " + header + "3F":          ErrReserved,
		"72 " + header + "7F":          ErrReserved,
		"72 " + header + "82" + strings.Repeat(" 80", 10) + " 00 13 01 00": ErrTooLong,
		"72 " + header + "02 93" + strings.Repeat(" BB", 10) + " 3B 01 00": ErrTooLong,
		"72 78 56 34":                   ErrPremature,
		"7A 01 00":                      ErrPremature,
		"73 78 56 34 12 0A 00 E9 7E 01": ErrPremature,
		"74 00":                         ErrCI,
		"70 08":                         ErrApplication,
		"70":                            ErrApplication,
		"7A 2A 00 10 05 AA BB CC":       ErrEncrypted,
		// A good record before the fault does not count either.
		"72 " + header + "01 13 01 02 13": ErrPremature,
	} {
		b := fromHex(t, data)
		tele, err := Parse(Frame{Long: true, Control: RspUd, CI: b[0], Data: b[1:]})
		if !errors.Is(err, want) || tele != nil {
			t.Errorf("%s: %v, %v; want %v and no telegram", data, tele, err, want)
		}
	}
	if _, err := Parse(Frame{Ack: true}); !errors.Is(err, ErrFrame) {
		t.Error(err)
	}
	if _, err := Parse(Frame{Long: true, Control: SndUd, CI: 0x72}); !errors.Is(err, ErrFrame) {
		t.Error("a request was taken for an answer")
	}
	if s := (&ApplicationError{Code: 5}).Error(); s != "the meter reports an error: more than 10 DIFEs" {
		t.Error(s)
	}
}

// TestModes: the other headers, and mode 2 with the bytes turned round.
func TestModes(t *testing.T) {
	for data, want := range map[string]string{
		"78 02 13 12 02":                                     " 530e-3",
		"7A 2A 00 00 00 02 13 12 02":                         " 530e-3",
		"7A 2A 00 10 05 2F 2F 02 13 12 02 2F 2F":             " 530e-3", // was decrypted
		"76 12 34 56 78 0D 0D 01 02 2A 00 00 00 02 13 02 12": "12345678 530e-3",
		"76 12 34 56 78 0D 0D 01 02 2A 00 00 00 0A 13 05 30": "12345678 530e-3",
		"77 12 34 56 78 0A 00 7E E9 00 00 05 30 00 00 01 35": "", // the units have changed places, too
	} {
		b := fromHex(t, data)
		tele, err := Parse(Frame{Long: true, Control: RspUd, CI: b[0], Data: b[1:]})
		if err != nil {
			t.Errorf("%s: %v", data, err)
			continue
		}
		if r := tele.Records[0]; want != "" && tele.ID+" "+itoa(r.Value.Int)+"e"+itoa(int64(r.Exp)) != want {
			t.Errorf("%s: %s %+v, want %s", data, tele.ID, r, want)
		}
		if want == "" && (tele.ID != "12345678" || tele.Device != 7 || tele.Records[0].Value.Int != 530 || tele.Records[0].Exp != -3 || tele.Records[1].Value.Int != 135 || tele.Records[1].Storage != 1) {
			t.Errorf("%s: %+v", data, tele)
		}
	}
}

// TestFrames: what is written is read back, and tables are without gaps and
// doubles.
func TestFrames(t *testing.T) {
	for _, b := range [][]byte{Short(SndNke, 5), Short(ReqUd2|FCB, 253), Long(SndUd, 253, 0x52, 1, 2, 3, 4, 5, 6, 7, 8), {Ack}} {
		if f, n, err := ParseFrame(append(b, 0xAA)); err != nil || n != len(b) || f.Response() || f.Ack == f.FromMaster() {
			t.Errorf("% x: %+v %d %v", b, f, n, err)
		}
	}
	if f, _, err := ParseFrame(Long(0x28, 5, 0x72, 1)); err != nil || !f.Response() || f.Address != 5 || f.CI != 0x72 || len(f.Data) != 1 {
		t.Errorf("%+v %v", f, err)
	}
	for _, table := range [...][]code{primary, tableFD, tableFB} {
		next := byte(0)
		for _, c := range table {
			if c.lo < next || c.hi < c.lo || c.hi > 0x7F {
				t.Errorf("%+v: out of order", c)
			}
			next = c.hi + 1
		}
	}
	for _, name := range []string{"AMT", "KAM", "ZRM"} {
		if code, ok := MakerCode(name); !ok || makerName(code) != name {
			t.Error(name)
		}
	}
	if !Known("energy") || Known("energie") || !KnownQualifier("l1") || !KnownQualifier("vife_58") || !KnownQualifier("vife_fc_55") || KnownQualifier("vife_5") {
		t.Error("names")
	}
}

// FuzzParse: whatever comes, there is a telegram or an error and never both,
// and no record reaches beyond its frame.
func FuzzParse(f *testing.F) {
	for _, v := range loadVectors(f) {
		f.Add(loadFrame(f, v.File))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, fr := range frameAndData(b) {
			tele, err := Parse(fr)
			if (tele == nil) == (err == nil) {
				t.Fatalf("%v and %v", tele, err)
			}
			if tele == nil {
				continue
			}
			for _, r := range tele.Records {
				if (r.Value.Form == None) != (r.Value.Fault != OK) {
					t.Fatalf("%+v", r)
				}
				if r.Value.Form == Moment {
					_ = r.Value.Time.String()
				}
			}
		}
	})
}

// frameAndData takes bytes as a frame, and as the data of one whose link
// check is right: a fuzzer seldom finds a checksum.
func frameAndData(b []byte) (out []Frame) {
	if f, n, err := ParseFrame(b); err == nil && n <= len(b) {
		out = append(out, f)
	}
	if len(b) > 6 {
		out = append(out, Frame{Long: true, Control: RspUd, CI: b[6], Data: b[7:]})
	}
	return out
}
