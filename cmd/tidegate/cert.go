package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidegate/config"
	"tidegate/internal/agent"
	"tidegate/internal/status"
	"tidegate/uplink"
)

// certWait is how long a new certificate has to bring the uplink up.
const certWait = 60 * time.Second

func (a *app) csrCmd(which *string) *cobra.Command {
	var force bool
	var name string
	c := &cobra.Command{
		Use:   "csr",
		Short: "make the key and a certificate request for it",
		Long: "Makes an EC P-256 key, if the identity folder has none, and a certificate\n" +
			"request for it whose common name is the gateway id. A key that is there is kept\n" +
			"and the request is for it; with --force a new one is made, and the one in use\n" +
			"stays in use until `uplink cert` puts the new certificate in place.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.csr(*which, name, force) },
	}
	c.Flags().BoolVar(&force, "force", false, "make a new key although there is one")
	c.Flags().StringVar(&name, "name", "", "common `NAME` (default: the gateway id)")
	return c
}

// named is the flag that an uplink must be called with, "" where it is the only one.
func named(link *config.Uplink) string {
	if link.Name == "" {
		return ""
	}
	return " --uplink " + link.Name
}

// theUplink loads the configuration and picks one of its uplinks: of several
// the name must be said.
func (a *app) theUplink(name string) (*config.Config, *config.Uplink, error) {
	cfg, _, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	links, err := agent.PickUplinks(cfg, name)
	if err != nil {
		return nil, nil, err
	}
	if len(links) > 1 {
		var names []string
		for i := range links {
			names = append(names, links[i].Name)
		}
		return nil, nil, &status.Failure{Code: "usage", What: "there are several uplinks, and none is named", Try: "--uplink with one of: " + strings.Join(names, ", "), Exit: exitUsage}
	}
	return cfg, &links[0], nil
}

func (a *app) csr(which, name string, force bool) error {
	cfg, link, err := a.theUplink(which)
	if err != nil {
		return err
	}
	if name == "" {
		name = cfg.Gateway.ID
	}
	key, csr, sum, made, err := uplink.Request(&link.Options, name, force)
	if err != nil {
		return err
	}
	if a.json {
		printJSON(a.out, struct {
			Schema string `json:"schema"`
			Key    string `json:"key"`
			Made   bool   `json:"key_made"`
			CSR    string `json:"csr"`
			Name   string `json:"cn"`
			SHA256 string `json:"sha256"`
		}{"tidegate.uplink-csr/1", key, made, csr, name, sum})
		return nil
	}
	if made {
		fmt.Fprintf(a.out, "wrote %s  EC P-256, 0600\n", key)
	} else {
		fmt.Fprintf(a.out, "kept  %s  the request is for this key\n", key)
	}
	fmt.Fprintf(a.out, "wrote %s  CN=%s\n      sha256 %s\n", csr, name, short(sum))
	fmt.Fprintf(a.err, "next:  send %s to your CA, then\n       tidegate uplink cert%s client.crt   (checks it, tries it, then puts it in place)\n", filepath.Base(csr), named(link))
	return nil
}

// short is the beginning and the end of a fingerprint.
func short(sum string) string {
	if len(sum) < 40 {
		return sum
	}
	return sum[:23] + ":..:" + sum[len(sum)-11:]
}

func (a *app) certCmd(which *string) *cobra.Command {
	var untried bool
	c := &cobra.Command{
		Use:   "cert [FILE]",
		Short: "show the client certificate, or check, try and place a new one",
		Long: "Without FILE it shows the client certificate. With FILE it checks that the new\n" +
			"one fits our key, is valid, has its chain in order and is for a client; makes a\n" +
			"handshake with the broker; puts it in place, keeping the old pair as *.old; and\n" +
			"waits until the uplink is connected with it. If that takes more than 60 s, the\n" +
			"old pair is put back. Exit code 0 also when the certificate is in place already.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, link, err := a.theUplink(*which)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return a.showCert(link)
			}
			return a.placeCert(cmd.Context(), cfg, link, args[0], untried)
		},
	}
	c.Flags().BoolVar(&untried, "untried", false, "place it without a handshake and without waiting: the broker is not there yet")
	return c
}

// certReport is what `uplink cert --json` prints.
type certReport struct {
	Schema  string `json:"schema"`
	File    string `json:"file"`
	Subject string `json:"cn"`
	Issuer  string `json:"issuer"`
	From    int64  `json:"from"` // Unix ms
	To      int64  `json:"to"`
	Days    int    `json:"days"` // left
	Chain   int    `json:"chain"`
	KeyOK   bool   `json:"key_ok"`
	SHA256  string `json:"sha256"`
	Placed  bool   `json:"placed"`
}

func report(c *uplink.Certificate) certReport {
	return certReport{Schema: "tidegate.uplink-cert/1", File: c.File, Subject: c.Subject, Issuer: c.Issuer, From: c.From.UnixMilli(),
		To: c.To.UnixMilli(), Days: int(time.Until(c.To).Hours() / 24), Chain: c.Chain, KeyOK: c.KeyOK, SHA256: c.SHA256}
}

func (a *app) showCert(link *config.Uplink) error {
	c, err := uplink.InPlace(&link.Options)
	if err != nil {
		return err
	}
	if c == nil {
		return &status.Failure{Code: "cert-file", What: "there is no client certificate", Where: link.ClientKey(),
			Try: "tidegate uplink csr" + named(link), Exit: exitNoInput}
	}
	r := report(c)
	if a.json {
		printJSON(a.out, r)
	} else {
		a.writeCert(r, c)
	}
	if !c.KeyOK || r.Days < 0 || time.Now().After(c.To) {
		return exit(exitFindings)
	}
	return nil
}

func (a *app) writeCert(r certReport, c *uplink.Certificate) {
	key := "fits " + c.Key
	if !c.KeyOK {
		key = "FAIL does not fit " + c.Key
	}
	left := fmt.Sprintf("%d d left", r.Days)
	if time.Now().After(c.To) {
		left = "FAIL expired"
	}
	fmt.Fprintf(a.out, "file     %s\nsubject  CN=%s\nissuer   %s\nvalid    %s to %s, %s\nchain    %d certificate(s) in the file\nkey      %s\nsha256   %s\n",
		c.File, c.Subject, c.Issuer, c.From.UTC().Format(time.DateOnly), c.To.UTC().Format(time.DateOnly), left, c.Chain, key, c.SHA256)
}

func (a *app) placeCert(ctx context.Context, cfg *config.Config, link *config.Uplink, file string, untried bool) error {
	u, err := agent.OpenUplink(cfg, link, agent.Options{Version: version, Built: built()})
	if err != nil {
		return err
	}
	c, err := u.Consider(file)
	if err != nil {
		return err
	}
	if now, err := uplink.InPlace(&link.Options); err == nil && now != nil && now.SHA256 == c.SHA256 && now.KeyOK {
		fmt.Fprintln(a.err, "it is in place already")
		return a.placed(now)
	}
	fmt.Fprintf(a.err, "checked  CN=%s, issued by %s, valid to %s, fits %s\n", c.Subject, c.Issuer, c.To.UTC().Format(time.DateOnly), c.Key)
	if !untried {
		if err := u.Try(ctx, c); err != nil {
			fmt.Fprintln(a.err, "tried    FAIL: nothing was changed")
			return err
		}
		fmt.Fprintln(a.err, "tried    the broker takes it")
	}
	if err := c.Place(); err != nil {
		return errors.Join(err, c.Back())
	}
	placed, back := "placed   the old pair is kept as *.old", "back     the old pair is in place again"
	if c.First() {
		placed, back = "placed   it is the first one here", "back     it was taken away again"
	}
	fmt.Fprintln(a.err, placed)
	if !untried {
		how, err := a.works(ctx, cfg, link.Name, c)
		if err != nil {
			if e := c.Back(); e != nil {
				return errors.Join(err, e)
			}
			fmt.Fprintln(a.err, back)
			return err
		}
		fmt.Fprintln(a.err, "works    "+how)
	}
	now, err := uplink.InPlace(&link.Options)
	if err != nil {
		return err
	}
	return a.placed(now)
}

func (a *app) placed(c *uplink.Certificate) error {
	r := report(c)
	r.Placed = true
	if a.json {
		printJSON(a.out, r)
	} else {
		a.writeCert(r, c)
	}
	return nil
}

// works waits until the agent is connected with the new certificate, or
// connects by itself where no agent runs, and says which.
func (a *app) works(ctx context.Context, cfg *config.Config, name string, c *uplink.Candidate) (how string, _ error) {
	last := &status.Failure{Code: "cert-not-used", What: fmt.Sprintf("the uplink did not connect with the new certificate within %s", certWait), Exit: exitFindings}
	for end := time.Now().Add(certWait); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(250 * time.Millisecond) {
		s, err := a.client().Status(ctx)
		u := s.Uplink
		for _, x := range s.Uplinks {
			if x.Name == name {
				u = x.Uplink
			}
		}
		switch {
		case errors.Is(err, status.ErrNoAgent):
			steps, err := agent.TestUplink(ctx, cfg, name, agent.Options{Version: version, Built: built()})
			if err != nil {
				return "", err
			}
			for _, s := range steps {
				if s.State == status.Fail && s.Failure != nil && s.Broker == steps[0].Broker {
					return "", s.Failure
				}
			}
			return "the broker took a message with it; no agent runs here", nil
		case err != nil:
			return "", err
		case u.State == "connected" && u.Cert == c.SHA256:
			return "the uplink is connected with it", nil
		}
		last.Seen = u.CertWarning
		if last.Seen == "" {
			last.Seen = u.Error
		}
	}
	return "", last
}
