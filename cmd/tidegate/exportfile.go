package main

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"tidegate/internal/status"
)

// exportSuffix is how the name of an export ends. Its manifest has the same
// name with manifestSuffix instead.
const (
	exportSuffix   = ".jsonl.gz"
	manifestSuffix = ".json"
)

// manifestSchema is the version of manifest's JSON form.
const manifestSchema = "tidegate.export/1"

// manifest says what is in an export. Times are Unix ms.
type manifest struct {
	Schema     string           `json:"schema"`
	Gateway    string           `json:"gw"`
	Epoch      string           `json:"ep"`
	Created    int64            `json:"created"`
	File       string           `json:"file"`
	Bytes      int64            `json:"bytes"`
	SHA256     string           `json:"sha256"`
	Batches    int64            `json:"batches"`
	Readings   int64            `json:"readings"`
	Tombstones int64            `json:"tombstones"`
	T0         int64            `json:"t0"` // of the first reading, 0: none
	T1         int64            `json:"t1"`
	Lanes      []manifestLane   `json:"lanes"`
	Since      int64            `json:"since,omitempty"` // what was asked for, 0: no bound
	Until      int64            `json:"until,omitempty"`
	Unreadable []status.Numbers `json:"unreadable,omitempty"` // damaged in the buffer, not in the file; the first of them
}

type manifestLane struct {
	Lane       string `json:"lane"`
	First      uint64 `json:"first"` // number of the first and last batch, 0: only tombstones
	Last       uint64 `json:"last"`
	Batches    int64  `json:"batches"`
	Readings   int64  `json:"readings"`
	Tombstones int64  `json:"tombstones"`
}

func (m *manifest) lane(name string) *manifestLane {
	for i := range m.Lanes {
		if m.Lanes[i].Lane == name {
			return &m.Lanes[i]
		}
	}
	m.Lanes = append(m.Lanes, manifestLane{Lane: name})
	return &m.Lanes[len(m.Lanes)-1]
}

// note counts one line of the export.
func (m *manifest) note(l status.ExportLine) {
	switch l.Kind {
	case status.ExportHeadKind:
		m.Gateway, m.Epoch = l.Head.Gateway, l.Head.Epoch
		return
	case status.ExportBadKind:
		if k := len(m.Unreadable) - 1; k >= 0 && m.Unreadable[k].Lane == l.Lane && m.Unreadable[k].To+1 == l.From && m.Unreadable[k].Error == l.Error {
			m.Unreadable[k].To = l.To
		} else if k < 99 {
			m.Unreadable = append(m.Unreadable, status.Numbers{Lane: l.Lane, From: l.From, To: l.To, Error: l.Error})
		}
		return
	}
	lane := m.lane(l.Lane)
	if l.Kind == status.ExportLossKind {
		m.Tombstones++
		lane.Tombstones++
		return
	}
	if lane.First == 0 {
		lane.First = l.From
	}
	lane.Last = l.To
	lane.Batches++
	lane.Readings += l.Readings
	m.Batches++
	m.Readings += l.Readings
	if m.T0 == 0 || l.T0 < m.T0 {
		m.T0 = l.T0
	}
	m.T1 = max(m.T1, l.T1)
}

// name is the file's name: the gateway and the numbers of the data lane, or
// of the event lane where there are no data.
func (m *manifest) name() string {
	var best manifestLane
	for _, l := range m.Lanes {
		if best.Lane == "" || l.Lane == "data" && l.First > 0 || best.First == 0 {
			best = l
		}
	}
	return fmt.Sprintf("%s_%d-%d%s", strings.Map(inFileName, m.Gateway), best.First, best.Last, exportSuffix)
}

func inFileName(r rune) rune {
	if strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_", r) {
		return r
	}
	return '_'
}

// target is where an export goes.
type target struct {
	dir  string
	name string                      // "": made from gateway and numbers
	free func(string) (int64, error) // bytes that may be written in a folder
}

// probe is how much of an export is packed in memory before the target is
// touched: small exports are known to fit before they begin, large ones are
// extrapolated.
const probe = 1 << 20

// margin is the room for the manifest and the blocks of a file system.
const margin = 16 << 10

// exportFile writes an export under a temporary name. Nothing stands under
// the final name before finish.
type exportFile struct {
	to       target
	m        manifest
	expected int64 // readings, 0: unknown

	zip   *gzip.Writer
	sum   hash.Hash
	mem   []byte
	tmp   *os.File
	lines int64
}

func newExportFile(to target) *exportFile {
	e := &exportFile{to: to, sum: sha256.New(), m: manifest{Schema: manifestSchema}}
	e.zip = gzip.NewWriter(packed{e})
	return e
}

// add takes one line of the export.
func (e *exportFile) add(l status.ExportLine) error {
	e.m.note(l)
	if len(l.Message) == 0 {
		return nil
	}
	e.lines++
	if _, err := e.zip.Write(l.Message); err != nil {
		return err
	}
	_, err := e.zip.Write([]byte{'\n'})
	return err
}

// packed is the end of the gzip writer.
type packed struct{ e *exportFile }

func (p packed) Write(b []byte) (int, error) {
	e := p.e
	e.sum.Write(b)
	e.m.Bytes += int64(len(b))
	if e.tmp == nil {
		if e.mem = append(e.mem, b...); len(e.mem) < probe {
			return len(b), nil
		}
		need := e.m.Bytes
		if e.m.Readings > 0 && e.expected > e.m.Readings {
			need = int64(float64(need) / float64(e.m.Readings) * float64(e.expected))
		}
		return len(b), e.open(need)
	}
	if _, err := e.tmp.Write(b); err != nil {
		return 0, e.to.failed(err)
	}
	return len(b), nil
}

// open makes sure of the room and begins the temporary file.
func (e *exportFile) open(need int64) error {
	free, err := e.to.free(e.to.dir)
	if err != nil {
		return e.to.failed(err)
	}
	if free < need+margin {
		return &status.Failure{Code: "target-full", What: fmt.Sprintf("%s has no room for the export; nothing was written", e.to.dir),
			Seen: fmt.Sprintf("%s needed, %s free", size(need+margin), size(free)), Exit: exitCannotCreate,
			Try: "a larger stick, or less at a time: --since TIME --until TIME"}
	}
	if e.tmp, err = os.CreateTemp(e.to.dir, ".tidegate-export-*.tmp"); err != nil {
		return e.to.failed(err)
	}
	if _, err := e.tmp.Write(e.mem); err != nil {
		return e.to.failed(err)
	}
	e.mem = nil
	return nil
}

// abandon removes what was begun.
func (e *exportFile) abandon() {
	if e.tmp != nil {
		e.tmp.Close()
		os.Remove(e.tmp.Name())
	}
}

// finish makes everything durable, reads it back, and gives file and
// manifest their names.
func (e *exportFile) finish(created int64) (file, beside string, err error) {
	if err := e.zip.Close(); err != nil {
		return "", "", err
	}
	if e.tmp == nil {
		if err := e.open(e.m.Bytes); err != nil {
			return "", "", err
		}
	}
	if err := e.tmp.Sync(); err != nil {
		return "", "", e.to.failed(err)
	}
	if err := e.tmp.Close(); err != nil {
		return "", "", e.to.failed(err)
	}
	e.m.SHA256 = hex.EncodeToString(e.sum.Sum(nil))
	e.m.Created = created
	sum, n, err := sumOnDisk(e.tmp.Name())
	if err != nil {
		return "", "", e.to.failed(err)
	}
	if n != e.m.Bytes || sum != e.m.SHA256 {
		return "", "", &status.Failure{Code: "target-damaged", What: e.to.dir + " does not give back what was written to it",
			Seen:   fmt.Sprintf("sha256 %.12s of %d bytes written, %.12s of %d bytes read", e.m.SHA256, e.m.Bytes, sum, n),
			Likely: "the stick is broken", Try: "another stick", Exit: exitCannotCreate}
	}
	if file, err = e.to.freeName(e.m.name()); err != nil {
		return "", "", err
	}
	beside = manifestOf(file)
	e.m.File = filepath.Base(file)
	text, err := json.MarshalIndent(e.m, "", " ")
	if err != nil {
		return "", "", err
	}
	half := e.tmp.Name() + manifestSuffix
	defer os.Remove(half)
	if err := writeDurable(half, append(text, '\n')); err != nil {
		return "", "", e.to.failed(err)
	}
	if err := os.Rename(e.tmp.Name(), file); err != nil {
		return "", "", e.to.failed(err)
	}
	if err := os.Rename(half, beside); err != nil {
		os.Remove(file)
		return "", "", e.to.failed(err)
	}
	if err := syncFolder(e.to.dir); err != nil {
		os.Remove(file)
		os.Remove(beside)
		return "", "", e.to.failed(err)
	}
	return file, beside, nil
}

func manifestOf(file string) string { return strings.TrimSuffix(file, exportSuffix) + manifestSuffix }

// freeName returns the path of an export that overwrites nothing: another
// export may hold the same numbers of another lane or time.
func (t target) freeName(name string) (string, error) {
	taken := func(path string) bool {
		_, err := os.Lstat(path)
		_, err2 := os.Lstat(manifestOf(path))
		return err == nil || err2 == nil
	}
	if t.name != "" {
		path := filepath.Join(t.dir, t.name)
		if taken(path) {
			return "", &status.Failure{Code: "target-exists", What: path + " or its manifest is there already", Exit: exitCannotCreate,
				Try: "another name, or the folder: --to " + t.dir}
		}
		return path, nil
	}
	path := filepath.Join(t.dir, name)
	for n := 2; taken(path); n++ {
		path = filepath.Join(t.dir, fmt.Sprintf("%s_%d%s", strings.TrimSuffix(name, exportSuffix), n, exportSuffix))
	}
	return path, nil
}

// failed says what a failing target means to the person who holds it.
func (t target) failed(err error) error {
	f := &status.Failure{Code: "target-failed", What: err.Error(), Exit: exitCannotCreate, Try: "another stick; nothing is left under the final name"}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		f.Code, f.What = "target-full", t.dir+" is full; no half file is left there"
		f.Seen, f.Try = err.Error(), "a larger stick, or less at a time: --since TIME --until TIME"
	case errors.Is(err, syscall.EROFS):
		f.Code, f.What, f.Seen = "target-read-only", t.dir+" can only be read", err.Error()
		f.Likely, f.Try = "the write protection of the stick, or a damaged file system on it", "another stick"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return err
	}
	return f
}

// newTarget understands --to.
func newTarget(to string) (target, error) {
	t := target{dir: to, free: freeBytes}
	fi, err := os.Stat(to)
	switch {
	case to == "":
		return t, usage{errors.New("--to DIR or --to FILE: where shall the export go?")}
	case err == nil && fi.IsDir():
		return t, nil
	case !strings.HasSuffix(to, exportSuffix):
		if err == nil {
			return t, usage{fmt.Errorf("--to %s: it is no folder, and the name of an export ends with %s", to, exportSuffix)}
		}
		return t, &status.Failure{Code: "no-such-file", What: fmt.Sprintf("there is no folder %s", to), Exit: exitNoInput,
			Likely: "the stick is not mounted", Try: "lsblk -o NAME,LABEL,MOUNTPOINT; the name of a new file must end with " + exportSuffix}
	}
	t.dir, t.name = filepath.Dir(to), filepath.Base(to)
	if fi, err := os.Stat(t.dir); err != nil || !fi.IsDir() {
		return t, &status.Failure{Code: "no-such-file", What: fmt.Sprintf("there is no folder %s", t.dir), Exit: exitNoInput}
	}
	_, err = t.freeName("")
	return t, err
}

func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}

// sumOnDisk reads a file past the page cache where the file system allows
// it: what is compared must come from the stick, not from memory.
func sumOnDisk(path string) (sum string, n int64, err error) {
	const block = 1 << 20
	page, err := syscall.Mmap(-1, 0, block, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE) // aligned
	if err != nil {
		return sumFile(path)
	}
	defer syscall.Munmap(page)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return sumFile(path)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	for n < fi.Size() {
		k, err := f.Read(page)
		h.Write(page[:k])
		n += int64(k)
		if errors.Is(err, syscall.EINVAL) {
			return sumFile(path)
		}
		if err != nil {
			return "", n, err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}

// sumFile reads a file and returns its SHA-256 and length.
func sumFile(path string) (sum string, n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

func writeDurable(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems have none
		return err
	}
	return nil
}
