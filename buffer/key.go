package buffer

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// An encrypted record has flag bit 0. Behind its envelope stand
//
//	48  4  epoch in which it was written
//	52  8  name of the key
//	60 12  nonce, random
//	72     ciphertext, as long as the bytes
//	   16  tag
//
// AES-256-GCM. The associated data is 8..39 of the envelope (version, lane,
// flags, count, number, t0, t1) and 48..59. Length and CRC cover what stands
// on disk, so that damage is found and a salvage goes on without the key.
const (
	flagEncrypted = 1

	keySize     = 32
	keyNameSize = 8
	sealedHead  = 4 + keyNameSize
	sealedExtra = sealedHead + 12 + 16
)

// ErrKey means that batches on disk cannot be read for want of their key.
// They are kept. It is matched by every KeyError.
var ErrKey = errors.New("the key of the buffer")

// KeyError says what is wrong with the key of the buffer. It matches ErrKey.
type KeyError struct {
	File string // the key file; "" when none is configured
	Msg  string // what is wrong
	Hint string // what to do about it
	Mode bool   // others may read the file
	Err  error  // of the file system, or nil
}

// Error says what is wrong.
func (e *KeyError) Error() string { return e.Msg }

// Unwrap returns ErrKey and the error of the file system.
func (e *KeyError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrKey}
	}
	return []error{ErrKey, e.Err}
}

// diskKey encrypts records.
type diskKey struct {
	name string // 8 bytes, made from the key, that tell which key it is
	aead cipher.AEAD
}

// CheckKey reads a key file as Open does: a regular file of 32 bytes or of 64
// hex digits that only its owner may read, not all of one byte. The error is
// a *KeyError.
func CheckKey(file string) error {
	_, err := readKey(file)
	return err
}

func readKey(file string) (*diskKey, error) {
	const make32 = "make one: (umask 077; head -c 32 /dev/urandom > FILE)"
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		e := &KeyError{File: file, Err: err, Msg: fmt.Sprintf("the key file of the buffer cannot be read: %v", err),
			Hint: "let the service's user own it, mode 0600"}
		if errors.Is(err, fs.ErrNotExist) {
			e.Hint = "put the key back that the buffer was written with; for a new buffer " + make32
		}
		return nil, e
	}
	defer f.Close()
	fi, err := f.Stat()
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(f, 1024))
	}
	if err != nil {
		return nil, &KeyError{File: file, Err: err, Msg: fmt.Sprintf("the key file of the buffer cannot be read: %v", err), Hint: "write buffer.key_file: FILE"}
	}
	if !fi.Mode().IsRegular() {
		return nil, &KeyError{File: file, Msg: file + " is no regular file", Hint: "write buffer.key_file: FILE"}
	}
	if others := fi.Mode().Perm() & othersMay(file); others != 0 {
		return nil, &KeyError{File: file, Mode: true, Msg: fmt.Sprintf("%s can be read by others (mode %04o)", file, fi.Mode().Perm()), Hint: "chmod 0600 " + file}
	}
	secret := text
	if len(text) != keySize {
		secret, err = hex.DecodeString(string(bytes.TrimSpace(text)))
	} else if _, short := hex.DecodeString(string(text)); short == nil { // 32 hex digits: half of a key
		secret = nil
	}
	if err != nil || len(secret) != keySize || bytes.Count(secret, secret[:1]) == keySize {
		return nil, &KeyError{File: file, Msg: file + " is no key for the buffer: it wants 32 random bytes, or 64 hex digits", Hint: make32}
	}
	return newKey(secret)
}

// othersMay are the permissions that a key file must not have. A credential
// of systemd shows its access list as rights of the group.
func othersMay(file string) fs.FileMode {
	for _, dir := range []string{"/run/credentials", os.Getenv("CREDENTIALS_DIRECTORY")} {
		if dir != "" && strings.HasPrefix(filepath.Clean(file), filepath.Clean(dir)+"/") {
			return 0o037
		}
	}
	return 0o077
}

// newKey derives from the secret the key proper and its name, so that the
// name on disk tells nothing about either.
func newKey(secret []byte) (*diskKey, error) {
	enc, err := hkdf.Key(sha256.New, secret, nil, "tidegate buffer 1: records", keySize)
	if err != nil {
		return nil, err
	}
	name, err := hkdf.Key(sha256.New, secret, nil, "tidegate buffer 1: name", keyNameSize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(enc)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &diskKey{name: string(name), aead: aead}, nil
}

// id names the key as records and summaries do; "" is no key.
func (k *diskKey) id() string {
	if k == nil {
		return ""
	}
	return k.name
}

// seal returns what goes to disk of a record whose bytes stand in rec behind
// room for the envelope: rec itself without a key, else an encrypted copy.
func (k *diskKey) seal(e envelope, epoch uint32, rec []byte) []byte {
	if k == nil {
		e.seal(rec)
		return rec
	}
	out := make([]byte, recordHead+sealedHead, len(rec)+sealedExtra)
	binary.BigEndian.PutUint32(out[recordHead:], epoch)
	copy(out[recordHead+4:], k.name)
	e.flags |= flagEncrypted
	e.seal(out) // the associated data
	out = k.aead.Seal(out, nil, rec[recordHead:], associated(out))
	e.seal(out) // length and checksum
	return out
}

func associated(rec []byte) []byte {
	ad := make([]byte, 0, 32+sealedHead)
	ad = append(ad, rec[8:40]...)
	return append(ad, rec[recordHead:recordHead+sealedHead]...)
}

// keyName returns which key a whole and sound record wants, "" for none.
func keyName(rec []byte) string {
	if rec[10]&flagEncrypted == 0 || len(rec) < recordHead+sealedExtra {
		return ""
	}
	return string(rec[recordHead+4 : recordHead+sealedHead])
}

// unseal checks a whole record that is to be read now and returns its bytes.
// ErrKey when it was written with another key: then it is as good as ever.
func (q *Queue) unseal(rec []byte) (envelope, []byte, error) {
	e, err := openRecord(rec)
	if err != nil || e.flags&flagEncrypted == 0 {
		return e, rec[min(recordHead, len(rec)):], err
	}
	if len(rec) < recordHead+sealedExtra {
		return e, nil, damaged("encrypted record %d is too short", e.number)
	}
	if name := keyName(rec); name != q.key.id() {
		return e, nil, q.wrongKey(name)
	}
	plain, err := q.key.aead.Open(nil, nil, rec[recordHead+sealedHead:], associated(rec))
	if err != nil {
		return e, nil, damaged("record %d is not what was encrypted", e.number)
	}
	return e, plain, nil
}

// wrongKey is the error for data that wants another key than the one there is.
func (q *Queue) wrongKey(name string) error {
	if q.keyErr != nil {
		return q.keyErr
	}
	e := &KeyError{File: q.keyFile, Hint: "put the key back until what waits is delivered, and change it then; to give up what waits: tidegate buffer erase"}
	if q.keyFile == "" {
		e.Msg = fmt.Sprintf("%s holds batches encrypted with key %x, and buffer.key_file is not set", q.dir, name)
		e.Hint = "write buffer.key_file: FILE with that key until what waits is delivered; to give up what waits: tidegate buffer erase"
		return e
	}
	e.Msg = fmt.Sprintf("%s is not the key of what waits in %s: it is key %x, the batches want key %x", q.keyFile, q.dir, q.key.id(), name)
	return e
}

// checkKeys looks, before anything is written, whether all that is still held
// can be read with the key there is. A segment holds batches of one key only.
func (q *Queue) checkKeys(s *state) error {
	for i := range q.lanes {
		done := &s.lanes[i].done
		for _, seg := range q.lanes[i].segs {
			name := seg.sum.key
			switch {
			case seg.bad:
				name = keyInside(seg, done)
			case done.covers(seg.sum.first, seg.sum.last):
				continue
			}
			if name != "" && name != q.key.id() {
				return q.wrongKey(name)
			}
		}
	}
	return nil
}

// keyInside looks through a damaged segment for the key of what it holds.
func keyInside(seg *segment, done *ranges) (name string) {
	f, err := os.Open(seg.path)
	if err != nil {
		return ""
	}
	defer f.Close()
	end := &untilFound{ReaderAt: f}
	scan(end, seg.size, seg.lane, func(r found) {
		if name == "" && !done.has(r.number) {
			name, end.found = r.key, true
		}
	}, func(*ride) {})
	return name
}

// untilFound is a file that ends where nothing more is looked for.
type untilFound struct {
	io.ReaderAt
	found bool
}

// ReadAt reads until found.
func (u *untilFound) ReadAt(b []byte, at int64) (int, error) {
	if u.found {
		return 0, io.EOF
	}
	return u.ReaderAt.ReadAt(b, at)
}

// authentic tells whether a record that a scan found is to be salvaged: one
// that our key should open, and does not, is none of ours.
func (q *Queue) authentic(f io.ReaderAt, r found) bool {
	if r.key == "" || r.key != q.key.id() {
		return true
	}
	rec := make([]byte, r.length)
	readSome(f, rec, r.at)
	_, _, err := q.unseal(rec)
	return !isDamage(err)
}
