package document

import (
	"slices"
	"strings"
)

// Nearest returns the word of known that was probably meant: the same letters
// in another case or with other separators, a few letters off, or cut short
// or drawn out (warn for warning). It returns "" if none is near enough. Of
// equally near words the first one counts.
func Nearest(word string, known []string) string {
	w := fold(word)
	if w == "" {
		return ""
	}
	limit := 1
	switch n := len([]rune(w)); {
	case n >= 9:
		limit = 3
	case n >= 5:
		limit = 2
	}
	best := ""
	for _, k := range known {
		f := fold(k)
		if f == w {
			return k
		}
		if len(f) < 2 {
			continue
		}
		// A short word that is wholly another one is not a typing mistake.
		if d := distance(w, f); d <= limit && d < len([]rune(f)) && d < len([]rune(w)) {
			best, limit = k, d-1
		}
	}
	if best != "" {
		return best
	}
	for _, k := range known {
		f := fold(k)
		if len(f) >= 4 && strings.HasPrefix(w, f) || len(w) >= 4 && strings.HasPrefix(f, w) {
			if best != "" {
				return "" // several
			}
			best = k
		}
	}
	return best
}

func fold(s string) string {
	return strings.ToLower(strings.Map(func(r rune) rune {
		if strings.ContainsRune("-_ .", r) {
			return -1
		}
		return r
	}, s))
}

// distance counts inserted, missing, changed and swapped letters (optimal
// string alignment).
func distance(a, b string) int {
	s, t := []rune(a), []rune(b)
	if len(s) > 64 || len(t) > 64 {
		return 64
	}
	before := make([]int, len(t)+1)
	prev := make([]int, len(t)+1)
	row := make([]int, len(t)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(s); i++ {
		row[0] = i
		for j := 1; j <= len(t); j++ {
			cost := 1
			if s[i-1] == t[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(t)]
}

// synonym returns the known key that people of the trade also call word.
func synonym(word string, known []string) string {
	w := fold(word)
	for _, group := range [][]string{
		{"unit", "slave", "slaveid", "unitid", "slaveaddress", "modbusid", "stationaddress", "id"},
		{"buses", "bus", "lines", "ports", "connections", "modbus"},
		{"uplink", "mqtt", "broker", "cloud"},
		{"gateway", "agent", "node", "edge"},
		{"every", "interval", "period", "poll", "pollinterval", "pollrate", "scanrate", "cycle"},
		{"connect", "port", "device", "serialport", "endpoint", "target", "tty", "address", "url"},
		{"line", "baud", "baudrate", "parity", "speed", "databits", "stopbits", "serial", "settings"},
		{"url", "broker", "server", "host", "endpoint", "address", "uri"},
		{"register", "address", "addr", "reg", "adress", "offsetaddress", "registeraddress"},
		{"input", "inputregister"},
		{"holding", "holdingregister"},
		{"discrete", "discreteinput", "contact", "di"},
		{"type", "datatype", "format", "dtype"},
		{"order", "byteorder", "wordorder", "endian", "endianness", "byteswap"},
		{"scale", "factor", "multiplier", "gain", "multiply"},
		{"identity", "pki", "certs", "certificates"},
		{"dir", "path", "directory", "folder"},
		{"size", "maxsize", "limit", "quota"},
		{"password_file", "password", "pass", "passwordfile", "secret"},
		{"username", "user", "login"},
		{"keepalive", "keepaliveinterval", "ping"},
		{"every", "rate"},
		{"profile", "model", "template", "type"},
		{"compress", "compression"},
		{"shape", "payload", "encoding", "format"},
		{"level", "loglevel", "verbosity"},
		{"ca", "cafile", "cacert", "rootca"},
		{"cert", "certfile", "clientcert", "certificate"},
		{"key", "keyfile", "clientkey", "privatekey"},
		{"server_name", "sni", "servername"},
		{"when", "condition", "if"},
		{"for", "delay", "hold", "duration"},
		{"severity", "priority"},
	} {
		if slices.Contains(group[1:], w) && slices.Contains(known, group[0]) {
			return group[0]
		}
	}
	return ""
}
