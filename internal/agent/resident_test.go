package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// programResident is how much of the program file is in memory, in kB
// (proc(5), RssFile).
func programResident(t *testing.T) (kb int) {
	t.Helper()
	s, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(s), "RssFile:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}

func TestTrimGivesPagesBack(t *testing.T) {
	before := programResident(t)
	if err := trim(); err != nil {
		t.Fatal(err)
	}
	after := programResident(t)
	if after >= before {
		t.Errorf("%d kB of the program were resident, and %d kB after trimming", before, after)
	}
}
