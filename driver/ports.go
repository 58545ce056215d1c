package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Port is a serial port of this machine.
type Port struct {
	Path   string `json:"path"`              // /dev/ttyUSB0
	ByID   string `json:"by_id,omitempty"`   // /dev/serial/by-id/..., "" if udev made none
	ByPath string `json:"by_path,omitempty"` // /dev/serial/by-path/..., "" if udev made none
	Driver string `json:"driver,omitempty"`  // kernel driver, such as ftdi_sio
	Vendor string `json:"vendor,omitempty"`  // USB maker and product, as the adapter says
	Serial string `json:"serial,omitempty"`  // USB serial number
	Group  string `json:"group,omitempty"`   // group of the device file, which a user must be in
}

// Ports lists the serial ports by reading sysfs alone: no port is opened, so
// none is disturbed. A machine without sysfs has none.
func Ports() ([]Port, error) { return portsUnder("/sys", "/dev") }

func portsUnder(sys, dev string) ([]Port, error) {
	ttys, err := os.ReadDir(filepath.Join(sys, "class/tty"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the ports: %w", err)
	}
	ids, paths := links(filepath.Join(dev, "serial/by-id")), links(filepath.Join(dev, "serial/by-path"))
	var ports []Port
	for _, t := range ttys {
		dir := filepath.Join(sys, "class/tty", t.Name())
		node := filepath.Join(dir, "device")
		if _, err := os.Stat(node); err != nil {
			continue // consoles, ptys
		}
		if kind, err := os.ReadFile(filepath.Join(dir, "type")); err == nil && strings.TrimSpace(string(kind)) == "0" {
			continue // a place for a UART where none is fitted
		}
		p := Port{Path: filepath.Join(dev, t.Name()), ByID: ids[t.Name()], ByPath: paths[t.Name()]}
		if drv, err := os.Readlink(filepath.Join(node, "driver")); err == nil {
			p.Driver = filepath.Base(drv)
		}
		p.Vendor, p.Serial = usbNames(node)
		var st unix.Stat_t
		if unix.Stat(p.Path, &st) == nil {
			p.Group = groupName(st.Gid)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// links maps the last part of each link's target to the link.
func links(dir string) map[string]string {
	m := map[string]string{}
	list, _ := os.ReadDir(dir)
	for _, l := range list {
		path := filepath.Join(dir, l.Name())
		if target, err := os.Readlink(path); err == nil {
			m[filepath.Base(target)] = path
		}
	}
	return m
}

// usbNames climbs from the port to the USB device above it.
func usbNames(node string) (product, serial string) {
	at, err := filepath.EvalSymlinks(node)
	if err != nil {
		return "", ""
	}
	for range 4 {
		if id, err := os.ReadFile(filepath.Join(at, "idVendor")); err == nil && len(id) > 0 {
			read := func(name string) string {
				b, _ := os.ReadFile(filepath.Join(at, name))
				return strings.TrimSpace(string(b))
			}
			return strings.TrimSpace(read("manufacturer") + " " + read("product")), read("serial")
		}
		at = filepath.Dir(at)
	}
	return "", ""
}

// portsHere names the ports in one line, by-id first.
func portsHere() string {
	ports, err := Ports()
	if err != nil || len(ports) == 0 {
		return "none"
	}
	names := make([]string, 0, len(ports))
	for _, p := range ports {
		if p.ByID != "" {
			names = append(names, fmt.Sprintf("%s (now %s)", p.ByID, filepath.Base(p.Path)))
		} else {
			names = append(names, p.Path)
		}
	}
	return strings.Join(names, ", ")
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// Rights says whether a user may open the port: "yes", or why not. "" is
// whoever asks.
func (p Port) Rights(name string) string {
	var st unix.Stat_t
	if err := unix.Stat(p.Path, &st); err != nil {
		return "the device file is not there"
	}
	if name == "" {
		if unix.Access(p.Path, unix.R_OK|unix.W_OK) == nil {
			return "yes"
		}
		return fmt.Sprintf("no: not in group %s (mode %o)", groupName(st.Gid), st.Mode&0o777)
	}
	u, err := user.Lookup(name)
	if err != nil {
		return "there is no user " + name
	}
	groups, _ := u.GroupIds()
	switch {
	case u.Uid == "0", st.Mode&0o006 == 0o006,
		st.Mode&0o600 == 0o600 && u.Uid == strconv.FormatUint(uint64(st.Uid), 10),
		st.Mode&0o060 == 0o060 && slices.Contains(groups, strconv.FormatUint(uint64(st.Gid), 10)):
		return "yes"
	}
	return fmt.Sprintf("no: not in group %s; sudo usermod -aG %s %s", groupName(st.Gid), groupName(st.Gid), name)
}

// Holder names the process that has the port open, as far as it can be seen;
// "" if there is none.
func (p Port) Holder() string {
	name, _ := holder(p.Path)
	return name
}

// permissionFacts says who may open the port, who we are, and what to do.
func permissionFacts(path string) (seen, try string) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return "", ""
	}
	owner, me := strconv.FormatUint(uint64(st.Uid), 10), strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	}
	if u, err := user.LookupId(me); err == nil {
		me = u.Username
	}
	gids, _ := os.Getgroups()
	gids = append(gids, os.Getegid())
	slices.Sort(gids)
	var groups []string
	for _, g := range slices.Compact(gids) {
		groups = append(groups, groupName(uint32(g)))
	}
	group := groupName(st.Gid)
	seen = fmt.Sprintf("owner %s, group %s, mode %o; you are %s (groups %s)", owner, group, st.Mode&0o777, me, strings.Join(groups, ", "))
	if st.Mode&0o060 == 0o060 && st.Gid != 0 && !slices.Contains(gids, int(st.Gid)) {
		try = fmt.Sprintf("sudo usermod -aG %s %s, then log in again or restart the service", group, me)
	}
	return seen, try
}

// portHolder names the process that has the port open, as far as /proc tells.
func portHolder(path string) string {
	name, hidden := holder(path)
	if name == "" && hidden {
		return "the process that holds it belongs to another user; sudo fuser -v " + path + " names it"
	}
	return name
}

// holder names the process; hidden tells that some could not be looked at.
func holder(path string) (name string, hidden bool) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", false
	}
	named := func(pid, does string) string {
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("process %s (%s) %s", pid, strings.TrimSpace(string(name)), does)
	}
	self := strconv.Itoa(os.Getpid())
	switch pid := flockHolder(real); pid {
	case "":
	case self:
		return "another line of this process has it open", false
	default:
		return named(pid, "holds it"), false
	}
	// No lock, but the exclusive flag of the terminal.
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if errors.Is(err, fs.ErrPermission) {
			hidden = true
		}
		if pid := strings.Split(fd, "/")[2]; target == real && pid != self {
			return named(pid, "has it open"), false
		}
	}
	return "", hidden
}

// flockHolder looks the lock up in /proc/locks, which anyone may read.
func flockHolder(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	want := ":" + strconv.FormatUint(st.Ino, 10)
	for line := range strings.Lines(string(b)) {
		// 1: FLOCK  ADVISORY  WRITE 708 00:15:5 0 EOF
		f := strings.Fields(line)
		if len(f) >= 6 && f[1] == "FLOCK" && strings.HasSuffix(f[5], want) {
			dev := fmt.Sprintf("%02x:%02x", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
			if strings.HasPrefix(f[5], dev) {
				return f[4]
			}
		}
	}
	return ""
}
