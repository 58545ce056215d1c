package account

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// maxLine is the longest line AddLines reads: a topic and a message in hex.
const maxLine = 2*maxMessage + 64<<10

// AddLines adds a file of messages, one a line: the topic, a space or a tab,
// and the payload, as mosquitto_sub writes it with -v or with -F '%t %x'. A
// payload that is all hexadecimal digits is taken as such; compressed
// messages need that form. A line that begins with {" is a payload alone, as
// `tidegate buffer export` writes it. A file that is gzip as a whole is
// unpacked. Lines that cannot be read are given to bad, with their number
// from 1, and the file goes on; the error is one of reading r, ErrGzip when
// the gzip of the file is damaged.
func (b *Book) AddLines(r io.Reader, bad func(line int, err error)) error {
	br := bufio.NewReaderSize(r, 64<<10)
	if magic, _ := br.Peek(2); string(magic) == "\x1f\x8b" {
		z, err := gzip.NewReader(br)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrGzip, err)
		}
		br = bufio.NewReaderSize(unpacked{z}, 64<<10)
	}
	var line []byte
	for n := 1; ; {
		part, err := br.ReadSlice('\n')
		if len(line) <= maxLine {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("account: line %d: %w", n, err)
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) > 0 {
			if lerr := b.addLine(line); lerr != nil && bad != nil {
				bad(n, lerr)
			}
		}
		if err == io.EOF {
			return nil
		}
		line, n = line[:0], n+1
	}
}

func (b *Book) addLine(line []byte) error {
	if len(line) > maxLine {
		return b.unread(errors.New("account: the line is too long"))
	}
	if bytes.HasPrefix(line, []byte(`{"`)) {
		return b.Add("", line)
	}
	i := bytes.IndexAny(line, " \t")
	if i < 1 {
		return b.unread(fmt.Errorf("account: %.40q is not a topic, a space and a payload", line))
	}
	topic, payload := string(line[:i]), line[i+1:]
	if raw := make([]byte, hex.DecodedLen(len(payload))); len(payload) > 0 && payload[0] != '{' {
		if _, err := hex.Decode(raw, payload); err != nil {
			return b.unread(fmt.Errorf("account: the payload %.40q is neither JSON nor hex; compressed messages need mosquitto_sub -F '%%t %%x'", payload))
		}
		payload = raw
	}
	return b.Add(topic, payload)
}

// ErrGzip means that a compressed file is damaged or cut off.
var ErrGzip = errors.New("account: the compressed file is damaged")

// unpacked marks every error of unpacking.
type unpacked struct{ z *gzip.Reader }

func (u unpacked) Read(p []byte) (int, error) {
	n, err := u.z.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", ErrGzip, err)
	}
	return n, err
}

// unread counts a message that did not get as far as Add.
func (b *Book) unread(err error) error {
	b.messages++
	b.unreadable++
	return err
}
