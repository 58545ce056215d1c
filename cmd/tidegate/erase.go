package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"tidegate/buffer"
	"tidegate/internal/agent"
)

func (a *app) eraseCmd() *cobra.Command {
	var yes, keys bool
	c := &cobra.Command{
		Use:   "erase",
		Short: "destroy what the buffer holds, sent or not",
		Long: "Removes all files of the buffer, also what was never sent and what is in\n" +
			"quarantine. The agent must be stopped. Without --yes it only shows what would\n" +
			"go, and ends with exit code 64. With --keys the key file of the buffer and the\n" +
			"client's private key go first, each overwritten before it is removed; the\n" +
			"gateway cannot connect afterwards.\n\n" +
			"Flash memory may keep old blocks of removed and of overwritten files until it\n" +
			"uses them again. What was encrypted (buffer.key_file) stays unreadable there as\n" +
			"long as its key is gone; against the rest only destroying the medium helps.\n" +
			"The log is not the agent's file: see journalctl --vacuum-time.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.erase(yes, keys) },
	}
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	c.Flags().BoolVar(&keys, "keys", false, "the buffer's key file and the client's private key as well")
	return c
}

// erasure is what buffer erase prints.
type erasure struct {
	Schema   string   `json:"schema"`
	Erased   bool     `json:"erased"`
	Dir      string   `json:"dir"`
	Files    int      `json:"files"`
	Bytes    int64    `json:"bytes"`
	Batches  int64    `json:"batches"`  // not delivered, -1 unknown
	Readings int64    `json:"readings"` // in them, -1 unknown
	Keys     []string `json:"keys"`
	Others   []string `json:"others"` // files in the directory that stay
}

func (a *app) erase(yes, keys bool) error {
	cfg, _, err := a.load()
	if err != nil {
		return err
	}
	e := erasure{Schema: "tidegate.buffer-erase/1", Erased: yes, Dir: cfg.Buffer.Dir, Keys: []string{}, Others: []string{}}
	// Without the lock nothing goes, so it is looked at before the keys go.
	r, err := agent.Erase(cfg, false)
	if err != nil {
		return err
	}
	var failed []error
	files := []string{cfg.Buffer.KeyFile}
	for _, l := range cfg.Links() {
		files = append(files, l.ClientKey())
	}
	for _, file := range files {
		if !keys || file == "" || slices.Contains(e.Keys, file) {
			continue
		}
		if yes {
			err = buffer.Shred(file)
		} else {
			_, err = os.Stat(file)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			failed = append(failed, err)
		default:
			e.Keys = append(e.Keys, file)
		}
	}
	if yes {
		if _, err := agent.Erase(cfg, true); err != nil {
			failed = append(failed, err)
		}
	}
	e.Files, e.Bytes, e.Batches, e.Readings = len(r.Files), r.Bytes, r.Batches, r.Readings
	e.Others = append(e.Others, r.Others...)
	a.printErasure(e)
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("not all of it could be removed: %w", err)
	}
	if !yes {
		return usage{errors.New("nothing was erased; to do it, add --yes")}
	}
	return nil
}

func (a *app) printErasure(e erasure) {
	if a.json {
		printJSON(a.out, e)
		return
	}
	did, key := "would go", "would go"
	if e.Erased {
		did, key = "removed", "overwritten and removed"
	}
	unsent := "not known how much of it was never sent"
	if e.Readings >= 0 {
		unsent = fmt.Sprintf("%s in %s never sent", count(e.Readings, "reading"), count(e.Batches, "batch"))
	}
	rows := [][]string{{"buffer", fmt.Sprintf("%s: %s, %s, %s", did, count(int64(e.Files), "file"), size(e.Bytes), unsent)}}
	for _, file := range e.Keys {
		rows = append(rows, []string{"key", key + ": " + file})
	}
	for _, path := range e.Others {
		rows = append(rows, []string{"stays", "not of the buffer: " + path})
	}
	rows = append(rows, []string{"flash", "may keep old blocks until it uses them again; see tidegate help buffer erase"})
	table(a.out, rows)
}
