package main

import (
	"errors"
	"io/fs"
	"syscall"

	"tidegate/buffer"
	"tidegate/internal/agent"
	"tidegate/internal/status"
	"tidegate/uplink"
)

// failure gives any error the form that people read, with the exit code
// that belongs to it.
func failure(err error) *status.Failure {
	var f *status.Failure
	var u usage
	var up *uplink.Error
	var key *buffer.KeyError
	switch err := agent.Explain(err); {
	case errors.As(err, &f):
		return f
	case errors.As(err, &u):
		return &status.Failure{Code: "usage", What: u.Error(), Exit: exitUsage}
	case errors.Is(err, status.ErrNoAgent):
		return &status.Failure{Code: "agent-down", What: err.Error(),
			Likely: "the agent is not running, or it uses another configuration",
			Try:    "systemctl status tidegate; or name the file: --config FILE", Exit: exitUnavailable}
	case errors.Is(err, buffer.ErrLocked):
		return &status.Failure{Code: "buffer-locked", What: err.Error(), Likely: "another agent is running",
			Try: "tidegate status", Exit: exitTryAgain}
	case errors.As(err, &key):
		return &status.Failure{Code: "buffer-key", What: key.Error(), Seen: "nothing was changed; what waits in the buffer is kept",
			Try: key.Hint, Exit: exitConfig}
	case errors.As(err, &up):
		return agent.ExplainUplink(up)
	case errors.Is(err, fs.ErrPermission):
		return &status.Failure{Code: "permission", What: err.Error(), Exit: exitNoPermission,
			Try: "run it as the service's user or a member of its group, for example: sudo -u tidegate tidegate ..."}
	case errors.Is(err, fs.ErrNotExist):
		return &status.Failure{Code: "no-such-file", What: err.Error(), Exit: exitNoInput}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EROFS):
		return &status.Failure{Code: "disk", What: err.Error(), Exit: exitCannotCreate}
	default:
		return &status.Failure{What: err.Error(), Exit: exitFindings}
	}
}
