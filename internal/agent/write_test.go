package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"tidegate/driver/profile"
	"tidegate/internal/status"
)

// TestAuditWrite: the record names the unit that was written to, also where
// only its device was named.
func TestAuditWrite(t *testing.T) {
	for _, c := range []struct {
		err  error
		w    status.WriteReply
		want string
	}{
		{nil, status.WriteReply{Unit: 7, Function: 6, Sent: true}, `level=INFO msg=write who=ops what="boiler unit 7 holding 40+1" value=33 sent=true`},
		{errors.New("refused"), status.WriteReply{Unit: 7, Function: 6, Sent: true}, `level=WARN msg="write failed" who=ops what="boiler unit 7 holding 40+1"`},
	} {
		var b bytes.Buffer
		q := status.WriteRequest{Bus: "boiler", Unit: -1, Table: int(profile.Holding), Addr: 40, Count: 1, Value: "33"}
		AuditWrite(slog.New(slog.NewTextHandler(&b, nil)), "ops", q, c.w, c.err)
		if !strings.Contains(b.String(), c.want) {
			t.Errorf("got %s, want %s", b.String(), c.want)
		}
	}
}
