package config

import (
	"fmt"
	"regexp"
	"strings"

	"tidegate/internal/document"
	"tidegate/uplink"
)

// The connect strings and urls people write, and what they meant. These
// checks come before the Validate of the section, which stays silent at a
// path that has an error already.

// connect checks the scheme of a connect string.
func (p *parser) connect(path, s string) {
	const expected = "expected rtu, ascii, serial, tcp, tls, rtu+tcp or serial+tcp"
	known := []string{"rtu", "ascii", "serial", "tcp", "tls", "rtu+tcp", "serial+tcp"}
	path += ".connect"
	scheme, rest, ok := strings.Cut(s, "://")
	switch {
	case s == "":
		return // missing: said already
	case !ok && strings.HasPrefix(s, "/"):
		p.doc.Report(path, document.CodeValue, fmt.Sprintf("connect: %q does not say how to speak", s), didYouMean("", "rtu://"+s))
	case !ok && hostPort.MatchString(s):
		p.doc.Report(path, document.CodeValue, fmt.Sprintf("connect: %q does not say how to speak", s), didYouMean("", "tcp://"+s))
	case !ok && strings.Contains(s, ":/"):
		scheme, rest, _ = strings.Cut(s, ":")
		p.doc.Report(path, document.CodeValue, fmt.Sprintf("connect: %q is no connect string", s), didYouMean("", scheme+"://"+rest))
	case ok && (scheme == "rtu" || scheme == "ascii" || scheme == "serial") && strings.HasPrefix(rest, "dev/"):
		p.doc.Report(path, document.CodeValue, "connect: the path of the port begins with /", didYouMean("", scheme+":///"+rest))
	case ok && (scheme == "udp" || scheme == "rtu+udp"):
		p.doc.Report(path, document.CodeValue, fmt.Sprintf("connect: %s:// is not in this version", scheme), expected)
	case ok && !oneOf(scheme, known):
		said := map[string]string{"modbus": "tcp", "modbus-tcp": "tcp", "modbustcp": "tcp", "mbtcp": "tcp", "tcps": "tls", "mbaps": "tls", "tcp+tls": "tls", "modbus-rtu": "rtu", "modbusrtu": "rtu",
			"rtu-tcp": "rtu+tcp", "rtuovertcp": "rtu+tcp", "rs485": "rtu", "tty": "serial", "file": "serial"}[strings.ToLower(scheme)]
		if said == "" {
			said = document.Nearest(scheme, known)
		}
		if said != "" {
			said += "://" + rest
		}
		p.doc.Report(path, document.CodeValue, fmt.Sprintf("connect: unknown scheme %q", scheme), didYouMean(expected, said))
	}
}

var hostPort = regexp.MustCompile(`^[A-Za-z0-9.-]+(:[0-9]+)?$`)

var lineWords = regexp.MustCompile(`^\s*([0-9]+)\D??\s*([5-8])?[\s,/-]*([A-Za-z]*)[\s,/-]*(1|2)?\s*$`)

// mode checks the words of a line setting: "9600 8 even 1" is 9600 8E1.
func (p *parser) mode(path, s string) {
	m := lineWords.FindStringSubmatch(s)
	if s == "" || m == nil || lineForm.MatchString(s) {
		return
	}
	parity := map[string]string{"": "N", "n": "N", "none": "N", "no": "N", "e": "E", "even": "E", "o": "O", "odd": "O", "m": "M", "mark": "M", "s": "S", "space": "S"}
	word := strings.ToLower(m[3])
	letter, known := parity[word]
	if !known {
		if near := document.Nearest(word, []string{"none", "even", "odd", "mark", "space"}); near != "" {
			letter = parity[near]
		}
	}
	data, stop := m[2], m[4]
	if data == "" {
		data = "8"
	}
	if stop == "" {
		stop = "1"
	}
	meant := ""
	if letter != "" {
		meant = m[1] + " " + data + letter + stop
	}
	switch {
	case !known:
		p.doc.Report(path+".line", document.CodeValue, fmt.Sprintf("line: unknown parity %q", m[3]), didYouMean("expected N (none), E (even) or O (odd)", meant))
	default:
		p.doc.Report(path+".line", document.CodeValue, fmt.Sprintf("line: %q is no line setting", s), didYouMean("expected speed, data bits, parity and stop bits", meant))
	}
}

var lineForm = regexp.MustCompile(`^[0-9]+ [5-8][NEOMSneoms][12]$`)

// brokers checks the schemes of an uplink's urls.
func (p *parser) brokers(path string, o *uplink.Options) {
	p.brokerURL(path+".url", "url", o.URL)
	for i, s := range o.Fallback {
		p.brokerURL(fmt.Sprintf("%s.fallback[%d]", path, i), "fallback", s)
	}
}

func (p *parser) brokerURL(path, key, s string) {
	const expected = "expected mqtts://, wss:// or https://"
	known := []string{"mqtts", "mqtt", "wss", "ws", "https", "http"}
	scheme, rest, ok := strings.Cut(s, "://")
	switch {
	case s == "":
		return
	case !ok && hostPort.MatchString(s):
		p.doc.Report(path, document.CodeValue, fmt.Sprintf("%s: %q has no scheme", key, s), didYouMean("", "mqtts://"+s))
	case ok && !oneOf(scheme, known):
		said := map[string]string{"ssl": "mqtts", "tls": "mqtts", "tcps": "mqtts", "tcp": "mqtt"}[scheme]
		if said == "" {
			said = document.Nearest(scheme, known)
		}
		if said != "" && !strings.Contains(rest, "@") {
			said += "://" + rest
		} else {
			said = ""
		}
		p.doc.Report(path, document.CodeValue, fmt.Sprintf("%s: unknown scheme %q", key, scheme), didYouMean(expected, said))
	}
}

func oneOf(s string, list []string) bool {
	for _, x := range list {
		if s == x {
			return true
		}
	}
	return false
}
