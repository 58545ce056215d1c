package obis

import (
	"strconv"
	"strings"
	"time"
)

// Value returns the measured value of the data set and its unit, both
// without blanks around them: the last group, value*unit. The gas values of
// DSMR 2.2 and 3 have the unit in a group of its own before the value. ok is
// false where the data set is a list and holds no single value.
func (o *Object) Value() (value, unit string, ok bool) {
	last := o.Groups[len(o.Groups)-1]
	switch {
	case o.Code.C == 24 && o.Code.D == 3 && len(o.Groups) == 7:
		// 0-n:24.3.0(time)(status)(minutes)(values)(code)(unit)(value)
		if o.Groups[3] != "1" {
			return "", "", false
		}
		return strings.TrimSpace(last), strings.TrimSpace(o.Groups[5]), true
	case len(o.Groups) == 1:
	case len(o.Groups) == 2 && isTime(o.Groups[0]):
	case len(o.Groups) == 2 && isTime(o.Groups[1]) && !isTime(o.Groups[0]):
		last = o.Groups[0] // a highest value and when it was
	default:
		return "", "", false
	}
	value, unit, _ = strings.Cut(last, "*")
	return strings.TrimSpace(value), strings.TrimSpace(unit), true
}

// Stamp returns the time that stands beside the value, "" if there is none.
func (o *Object) Stamp() string {
	if n := len(o.Groups); n > 1 {
		for _, g := range [...]string{o.Groups[0], o.Groups[1]} {
			if isTime(g) {
				return g
			}
		}
	}
	return ""
}

// isTime says whether a group is a time: yyMMddHHmm with or without seconds
// and with or without S or W behind them, or the same with hyphens, colons
// and blanks between the numbers.
func isTime(s string) bool {
	s = strings.TrimRight(s, "SW")
	if strings.Count(s, "-") == 2 {
		s = strings.NewReplacer("-", "", ":", "", " ", "", ",", "").Replace(s)
	}
	if len(s) != 10 && len(s) != 12 {
		return false
	}
	_, err := strconv.ParseUint(s, 10, 64)
	_, err2 := time.Parse("0601021504", s[:10])
	return err == nil && err2 == nil
}

// Time is a time of a meter.
type Time struct {
	Local time.Time // as written, as if the zone were UTC
	Zoned bool      // it says whether it is summer time
	UTC   time.Time // valid if Zoned
}

// Never says whether a time is the stamp of a channel that never had a
// value: it lies in the year 70.
func Never(s string) bool { return isTime(s) && s[:2] == "70" }

// ParseTime reads yyMMddHHmmss, with S for Central European summer time
// (UTC+2) or W for Central European time (UTC+1) behind it. Without either
// letter the zone is not known. The year is 2000 to 2099: a stamp of the year
// 70 belongs to a channel that never had a value and is not ok.
func ParseTime(s string) (t Time, ok bool) {
	zone := 0
	if n := len(s); n == 13 && s[12] == 'S' {
		zone, s = 2, s[:12]
	} else if n == 13 && s[12] == 'W' {
		zone, s = 1, s[:12]
	}
	if len(s) != 12 {
		return t, false
	}
	local, err := time.Parse("060102150405", s)
	if err != nil || local.Year() < 2000 {
		return t, false
	}
	t.Local = local
	if zone > 0 {
		t.Zoned, t.UTC = true, local.Add(-time.Duration(zone)*time.Hour)
	}
	return t, true
}
