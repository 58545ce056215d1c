package payload

import (
	"bytes"
	"compress/gzip"
)

// GzipFrom is the size in bytes from which a message is compressed: below
// it, gzip gains little or nothing.
const GzipFrom = 500

// Gzip compresses message after message with one writer: a new one would
// cost 0.8 MB each time. It is not safe for concurrent use; the zero value
// is ready.
type Gzip struct {
	w   *gzip.Writer
	buf bytes.Buffer
}

// Append appends the gzip form of src to dst. ok is false, and dst as it
// was, when src is shorter than GzipFrom or did not become smaller.
func (z *Gzip) Append(dst, src []byte) (out []byte, ok bool) {
	if len(src) < GzipFrom {
		return dst, false
	}
	z.buf.Reset()
	if z.w == nil {
		z.w = gzip.NewWriter(&z.buf)
	} else {
		z.w.Reset(&z.buf)
	}
	// A bytes.Buffer takes everything: neither call can fail.
	z.w.Write(src)
	z.w.Close()
	if z.buf.Len() >= len(src) {
		return dst, false
	}
	return append(dst, z.buf.Bytes()...), true
}
