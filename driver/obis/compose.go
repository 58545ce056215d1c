package obis

import "fmt"

// Compose writes a telegram: ident is what stands behind the "/", lines are
// its data sets. A block stands between STX and ETX and ends with its check,
// as a readout does; else a CRC stands behind the "!", as on a P1 port.
func Compose(ident string, lines []string, block bool) []byte {
	out := []byte("/" + ident + "\r\n")
	if block {
		out = append(out, stx)
	} else {
		out = append(out, "\r\n"...)
	}
	from := len(out)
	for _, l := range lines {
		out = append(out, l+"\r\n"...)
	}
	out = append(out, '!')
	if !block {
		return fmt.Appendf(out, "%04X\r\n", CRC(out))
	}
	out = append(out, '\r', '\n', etx)
	return append(out, BlockCheck(out[from:]))
}
