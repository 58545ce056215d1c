package agent

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
)

// trim gives back to the system what the start needed and running does not:
// freed heap, and the pages of the program file itself, of which reading the
// configuration and opening the buffer use most and polling uses a third.
// What is needed again comes back from the page cache by itself. It matters
// where memory is charged to a control group or counted by a monitor; a
// kernel short of memory would drop clean pages without being asked.
func trim() error {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var from, to uintptr
		var mode string
		// proc(5): address, permissions, offset, device, inode, path. Only
		// mappings that nobody can write to: what is thrown away there
		// stands in the file.
		if n, _ := fmt.Sscanf(s.Text(), "%x-%x %s", &from, &to, &mode); n != 3 || !strings.HasPrefix(mode, "r") ||
			strings.Contains(mode, "w") || !strings.HasSuffix(s.Text(), " "+exe) {
			continue
		}
		const dontNeed = 4 // MADV_DONTNEED, madvise(2)
		if _, _, e := syscall.Syscall(syscall.SYS_MADVISE, from, to-from, dontNeed); e != 0 {
			return e
		}
	}
	return nil
}
