package agent

import (
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// notifier speaks the sd_notify protocol (sd_notify(3)): datagrams of
// KEY=value lines to the socket that systemd names in NOTIFY_SOCKET. The
// zero notifier says nothing.
type notifier struct {
	conn *net.UnixConn
}

// newNotifier connects to systemd's socket, if there is one.
func newNotifier() notifier {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return notifier{}
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return notifier{}
	}
	return notifier{c}
}

// say sends lines such as READY=1. A lost datagram is said again at the
// next turn of the health loop, so its error is of no use here.
func (n notifier) say(lines ...string) {
	if n.conn != nil {
		n.conn.Write([]byte(strings.Join(lines, "\n")))
	}
}

func (n notifier) close() {
	if n.conn != nil {
		n.conn.Close()
	}
}

// watchdogPeriod returns how often systemd wants to hear WATCHDOG=1, half
// of WATCHDOG_USEC, or 0 where it does not watch this process.
func watchdogPeriod() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 {
		return 0
	}
	return time.Duration(us) * time.Microsecond / 2
}
