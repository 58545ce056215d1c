package mbus

import "fmt"

// fixedUnits are the units of the fixed structure in blocks of powers of ten.
var fixedUnits = []code{
	{0x02, 0x0A, tens, 0, "Wh", "energy"},
	{0x0B, 0x13, tens, 3, "J", "energy"},
	{0x14, 0x1C, tens, 0, "W", "power"},
	{0x1D, 0x25, tens, 3, "J/h", "power"},
	{0x26, 0x2E, tens, -6, "m3", "volume"},
	{0x2F, 0x37, tens, -6, "m3/h", "volume_flow"},
	{0x38, 0x38, tens, -3, "Cel", "flow_temperature"},
	{0x39, 0x39, plain, 0, "", "hca"},
	{0x3F, 0x3F, plain, 0, "", "dimensionless"},
}

// fixedMedia are the device types of the sixteen media.
var fixedMedia = [...]byte{0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x0F, 0x03, 0x04, 0x06, 0x07, 0x08, 0x0F}

// historic is the unit of a second counter that holds the first one's value
// at a fixed date.
const historic = 0x3E

// fixed decodes the fixed structure: two counters.
func (t *Telegram) fixed(b []byte, big bool) error {
	if len(b) != 16 {
		return fmt.Errorf("%w: the fixed structure has %d bytes of 16", ErrPremature, len(b))
	}
	t.Fixed, t.Short = true, true
	t.ID = digits(order(b[:4], big))
	t.Access, t.Status = b[4], b[5]
	units := order(b[6:8], big)
	t.Device = fixedMedia[units[0]>>6|units[1]>>6<<2]
	first := units[0] & 0x3F
	for i := range 2 {
		u := units[i] & 0x3F
		r := Record{VIF: []byte{u}}
		if t.Status&0x02 != 0 { // both counters are those of the fixed date
			r.Storage = 1
		}
		if u == historic {
			r.Storage, u = 1, first
		}
		c := code{}
		if row := find(fixedUnits, u); row != nil {
			c = *row
			r.Quantity, r.Unit, r.Exp = c.quantity, c.unit, int(c.exp)
			if c.how == tens {
				r.Exp += int(u - c.lo)
			}
		}
		data := order(b[8+4*i:12+4*i], big)
		field := byte(12)
		if t.Status&0x01 != 0 {
			field = 4
		}
		switch u {
		case 0x00: // hours, minutes, seconds; days, months, years
			r.Quantity, r.Value = "time", clockOf(data, field)
		case 0x01:
			r.Quantity, r.Value = "date", dateOf(data, field)
		default:
			r.take(data, field, c)
		}
		t.Records = append(t.Records, r)
	}
	return nil
}

// triple reads three numbers of a byte each.
func triple(b []byte, field byte) (x [3]int, ok bool) {
	for i := range x {
		v := int(b[i])
		if field == 12 {
			if b[i]>>4 > 9 || b[i]&15 > 9 {
				return x, false
			}
			v = int(b[i]>>4)*10 + int(b[i]&15)
		}
		x[i] = v
	}
	return x, true
}

func clockOf(b []byte, field byte) Value {
	x, ok := triple(b, field) // seconds, minutes, hours, least significant first
	if !ok || x[0] > 59 || x[1] > 59 || x[2] > 23 {
		return Value{Fault: NotTime}
	}
	return Value{Form: Moment, Time: Time{Year: -1, Month: -1, Day: -1, Hour: x[2], Minute: x[1], Second: x[0]}}
}

func dateOf(b []byte, field byte) Value {
	x, ok := triple(b, field) // year, month, day, least significant first
	if !ok || x[1] < 1 || x[1] > 12 || x[2] < 1 || x[2] > daysIn(2000+x[0], x[1]) {
		return Value{Fault: NotTime}
	}
	return Value{Form: Moment, Time: Time{Year: 2000 + x[0], Month: x[1], Day: x[2], Hour: -1, Minute: -1, Second: -1}}
}
