package mbus

import "fmt"

// how says what the low bits of a VIF mean.
type how uint8

const (
	plain  how = iota // nothing: a single code, or codes that mean the same
	tens              // a power of ten; exp is that of the first code
	clock             // the unit of a time: s, min, h, d
	whole             // a number without a sign, or single bits
	moment            // a point in time
)

// code is a row of a VIF table: the codes lo..hi without the extension bit.
type code struct {
	lo, hi   byte
	how      how
	exp      int8
	unit     string
	quantity string
}

// Units are the SenML symbols, and UCUM where SenML has none. The tables are
// those of EN 13757-3: the primary codes, the extensions FD and FB.
var primary = []code{
	{0x00, 0x07, tens, -3, "Wh", "energy"},
	{0x08, 0x0F, tens, 0, "J", "energy"},
	{0x10, 0x17, tens, -6, "m3", "volume"},
	{0x18, 0x1F, tens, -3, "kg", "mass"},
	{0x20, 0x23, clock, 0, "", "on_time"},
	{0x24, 0x27, clock, 0, "", "operating_time"},
	{0x28, 0x2F, tens, -3, "W", "power"},
	{0x30, 0x37, tens, 0, "J/h", "power"},
	{0x38, 0x3F, tens, -6, "m3/h", "volume_flow"},
	{0x40, 0x47, tens, -7, "m3/min", "volume_flow"},
	{0x48, 0x4F, tens, -9, "m3/s", "volume_flow"},
	{0x50, 0x57, tens, -3, "kg/h", "mass_flow"},
	{0x58, 0x5B, tens, -3, "Cel", "flow_temperature"},
	{0x5C, 0x5F, tens, -3, "Cel", "return_temperature"},
	{0x60, 0x63, tens, -3, "K", "temperature_difference"},
	{0x64, 0x67, tens, -3, "Cel", "external_temperature"},
	{0x68, 0x6B, tens, -3, "bar", "pressure"},
	{0x6C, 0x6D, moment, 0, "", "time_point"},
	{0x6E, 0x6E, plain, 0, "", "hca"},
	{0x70, 0x73, clock, 0, "", "averaging_duration"},
	{0x74, 0x77, clock, 0, "", "actuality_duration"},
	{0x78, 0x78, whole, 0, "", "fabrication_number"},
	{0x79, 0x79, whole, 0, "", "identification"},
	{0x7A, 0x7A, whole, 0, "", "bus_address"},
	{0x7E, 0x7E, plain, 0, "", "any"},
	{0x7F, 0x7F, plain, 0, "", "maker"},
}

var tableFD = []code{
	{0x00, 0x03, tens, -3, "", "credit"},
	{0x04, 0x07, tens, -3, "", "debit"},
	{0x08, 0x08, whole, 0, "", "access_number"},
	{0x09, 0x09, whole, 0, "", "device_type"},
	{0x0A, 0x0A, whole, 0, "", "manufacturer"},
	{0x0B, 0x0B, whole, 0, "", "parameter_set"},
	{0x0C, 0x0C, whole, 0, "", "model"},
	{0x0D, 0x0D, whole, 0, "", "hardware_version"},
	{0x0E, 0x0E, whole, 0, "", "firmware_version"},
	{0x0F, 0x0F, whole, 0, "", "software_version"},
	{0x10, 0x10, whole, 0, "", "customer_location"},
	{0x11, 0x11, whole, 0, "", "customer"},
	{0x12, 0x15, whole, 0, "", "access_code"},
	{0x16, 0x16, whole, 0, "", "password"},
	{0x17, 0x17, whole, 0, "", "error_flags"},
	{0x18, 0x18, whole, 0, "", "error_mask"},
	{0x19, 0x19, whole, 0, "", "security_key"},
	{0x1A, 0x1A, whole, 0, "", "digital_output"},
	{0x1B, 0x1B, whole, 0, "", "digital_input"},
	{0x1C, 0x1C, whole, 0, "Bd", "baud_rate"},
	{0x1D, 0x1D, whole, 0, "", "response_delay"},
	{0x1E, 0x1E, whole, 0, "", "retries"},
	{0x1F, 0x1F, whole, 0, "", "remote_control"},
	{0x20, 0x20, whole, 0, "", "first_storage"},
	{0x21, 0x21, whole, 0, "", "last_storage"},
	{0x22, 0x22, whole, 0, "", "storage_size"},
	{0x23, 0x23, whole, 0, "", "tariff_descriptor"},
	{0x24, 0x27, clock, 0, "", "storage_interval"},
	{0x28, 0x28, plain, 0, "mo", "storage_interval"},
	{0x29, 0x29, plain, 0, "a", "storage_interval"},
	{0x2A, 0x2A, whole, 0, "", "operator_data"},
	{0x2B, 0x2B, whole, 0, "s", "second"},
	{0x2C, 0x2F, clock, 0, "", "since_readout"},
	{0x30, 0x30, moment, 0, "", "tariff_start"},
	{0x31, 0x33, clock, 1, "", "tariff_duration"},
	{0x34, 0x37, clock, 0, "", "tariff_period"},
	{0x38, 0x38, plain, 0, "mo", "tariff_period"},
	{0x39, 0x39, plain, 0, "a", "tariff_period"},
	{0x3A, 0x3A, plain, 0, "", "dimensionless"},
	{0x3B, 0x3B, plain, 0, "", "container"},
	{0x3C, 0x3F, clock, 0, "", "transmission_period"},
	{0x40, 0x4F, tens, -9, "V", "voltage"},
	{0x50, 0x5F, tens, -12, "A", "current"},
	{0x60, 0x60, whole, 0, "", "reset_counter"},
	{0x61, 0x61, whole, 0, "", "cumulation_counter"},
	{0x62, 0x62, whole, 0, "", "control_signal"},
	{0x63, 0x63, whole, 0, "", "day_of_week"},
	{0x64, 0x64, whole, 0, "", "week_number"},
	{0x65, 0x65, moment, 0, "", "day_change"},
	{0x66, 0x66, whole, 0, "", "parameter_state"},
	{0x67, 0x67, whole, 0, "", "supplier_data"},
	{0x68, 0x69, clock, 2, "", "since_cumulation"},
	{0x6A, 0x6A, plain, 0, "mo", "since_cumulation"},
	{0x6B, 0x6B, plain, 0, "a", "since_cumulation"},
	{0x6C, 0x6D, clock, 2, "", "battery_time"},
	{0x6E, 0x6E, plain, 0, "mo", "battery_time"},
	{0x6F, 0x6F, plain, 0, "a", "battery_time"},
	{0x70, 0x70, moment, 0, "", "battery_change"},
	{0x71, 0x71, plain, 0, "dBm", "rf_level"},
	{0x72, 0x72, whole, 0, "", "daylight_saving"},
	{0x73, 0x73, whole, 0, "", "listening_window"},
	{0x74, 0x74, whole, 0, "d", "battery_remaining"},
	{0x75, 0x75, whole, 0, "", "stop_counter"},
	{0x76, 0x76, plain, 0, "", "maker_container"},
}

var tableFB = []code{
	{0x00, 0x01, tens, 5, "Wh", "energy"},
	{0x02, 0x03, tens, 3, "varh", "reactive_energy"},
	{0x04, 0x05, tens, 3, "VAh", "apparent_energy"},
	{0x08, 0x09, tens, 8, "J", "energy"},
	{0x0C, 0x0F, tens, 5, "cal", "energy"},
	{0x10, 0x11, tens, 2, "m3", "volume"},
	{0x14, 0x17, tens, 0, "var", "reactive_power"},
	{0x18, 0x19, tens, 5, "kg", "mass"},
	{0x1A, 0x1B, tens, -1, "%RH", "relative_humidity"},
	{0x20, 0x20, plain, 0, "[cft_i]", "volume"},
	{0x21, 0x21, plain, -1, "[cft_i]", "volume"},
	{0x22, 0x22, plain, -1, "[gal_us]", "volume"},
	{0x23, 0x23, plain, 0, "[gal_us]", "volume"},
	{0x24, 0x24, plain, -3, "[gal_us]/min", "volume_flow"},
	{0x25, 0x25, plain, 0, "[gal_us]/min", "volume_flow"},
	{0x26, 0x26, plain, 0, "[gal_us]/h", "volume_flow"},
	{0x28, 0x29, tens, 5, "W", "power"},
	{0x2A, 0x2A, plain, -1, "deg", "phase_angle_uu"},
	{0x2B, 0x2B, plain, -1, "deg", "phase_angle_ui"},
	{0x2C, 0x2F, tens, -3, "Hz", "frequency"},
	{0x30, 0x31, tens, 8, "J/h", "power"},
	{0x34, 0x37, tens, 0, "VA", "apparent_power"},
	{0x58, 0x5B, tens, -3, "[degF]", "flow_temperature"},
	{0x5C, 0x5F, tens, -3, "[degF]", "return_temperature"},
	{0x60, 0x63, tens, -3, "[degF]", "temperature_difference"},
	{0x64, 0x67, tens, -3, "[degF]", "external_temperature"},
	{0x70, 0x73, tens, -3, "[degF]", "temperature_limit"},
	{0x74, 0x77, tens, -3, "Cel", "temperature_limit"},
	{0x78, 0x7F, tens, -3, "W", "cumulated_max_power"},
}

// clocks are the units of times.
var clocks = [...]string{"s", "min", "h", "d"}

// find returns the row of a code, or nil.
func find(table []code, x byte) *code {
	for i := range table {
		if c := &table[i]; x >= c.lo && x <= c.hi {
			return c
		}
	}
	return nil
}

// Known says whether a quantity stands in the tables.
func Known(quantity string) bool {
	for _, t := range [...][]code{primary, tableFD, tableFB} {
		for i := range t {
			if t[i].quantity == quantity {
				return true
			}
		}
	}
	return false
}

// Quantities returns the names of all quantities, in the order of the tables.
func Quantities() (out []string) {
	seen := map[string]bool{}
	for _, t := range [...][]code{primary, tableFD, tableFB} {
		for i := range t {
			if q := t[i].quantity; !seen[q] {
				seen[q] = true
				out = append(out, q)
			}
		}
	}
	return out
}

// qualifiers are the extensions of a VIF (VIFE) that change what it means.
var qualifiers = map[byte]string{
	0x12: "average", 0x13: "inverse_profile", 0x14: "deviation", 0x1D: "standard_data", 0x1E: "profile_registers", 0x1F: "profile",
	0x20: "per_second", 0x21: "per_minute", 0x22: "per_hour", 0x23: "per_day", 0x24: "per_week", 0x25: "per_month", 0x26: "per_year",
	0x27: "per_revolution", 0x28: "per_input_pulse_0", 0x29: "per_input_pulse_1", 0x2A: "per_output_pulse_0", 0x2B: "per_output_pulse_1",
	0x2C: "per_litre", 0x2D: "per_m3", 0x2E: "per_kg", 0x2F: "per_kelvin", 0x30: "per_kwh", 0x31: "per_gj", 0x32: "per_kw",
	0x33: "per_kelvin_litre", 0x34: "per_volt", 0x35: "per_ampere", 0x36: "times_second", 0x37: "times_second_per_volt",
	0x38: "times_second_per_ampere", 0x39: "start", 0x3A: "uncorrected", 0x3B: "forward", 0x3C: "backward", 0x3D: "non_metric",
	0x3E: "base", 0x3F: "obis", 0x40: "lower_limit", 0x48: "upper_limit", 0x41: "lower_exceeds", 0x49: "upper_exceeds",
	0x68: "at_lower_limit", 0x6C: "at_upper_limit", 0x69: "leakage", 0x6D: "overflow",
	0x78: "plus_0.001", 0x79: "plus_0.01", 0x7A: "plus_0.1", 0x7B: "plus_1", 0x7E: "future", 0x7F: "maker",
}

// qualifiersFC are the extensions behind FC.
var qualifiersFC = map[byte]string{
	0x01: "l1", 0x02: "l2", 0x03: "l3", 0x04: "neutral", 0x05: "l1_l2", 0x06: "l2_l3", 0x07: "l3_l1",
	0x08: "quadrant_1", 0x09: "quadrant_2", 0x0A: "quadrant_3", 0x0B: "quadrant_4", 0x0C: "import_minus_export",
	0x10: "absolute",
}

// KnownQualifier says whether a word stands in the tables of extensions.
func KnownQualifier(word string) bool {
	for _, m := range [...]map[byte]string{qualifiers, qualifiersFC} {
		for _, w := range m {
			if w == word {
				return true
			}
		}
	}
	var x byte
	for _, form := range [...]string{"vife_%02x", "vife_fc_%02x"} {
		if n, _ := fmt.Sscanf(word, form, &x); n == 1 && fmt.Sprintf(form, x) == word {
			return true
		}
	}
	return false
}

// qualifier returns the word of an extension; one without a word is named by
// its code.
func qualifier(x byte, second bool) string {
	m, form := qualifiers, "vife_%02x"
	if second {
		m, form = qualifiersFC, "vife_fc_%02x"
	}
	if w, ok := m[x]; ok {
		return w
	}
	return fmt.Sprintf(form, x)
}

// isMoment says whether an extension makes a point in time of the record:
// the start of it, or the begin and end of a limit being exceeded.
func isMoment(x byte) bool {
	switch x {
	case 0x39, 0x42, 0x43, 0x46, 0x47, 0x4A, 0x4B, 0x4E, 0x4F, 0x6A, 0x6B, 0x6E, 0x6F:
		return true
	}
	return false
}

// isDuration returns the unit of the time that an extension makes of the
// record: how long a limit was exceeded, or how long it lasted.
func isDuration(x byte) (string, bool) {
	if x >= 0x50 && x <= 0x67 {
		return clocks[x&3], true
	}
	return "", false
}
