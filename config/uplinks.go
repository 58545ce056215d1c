package config

import (
	"fmt"
	"path/filepath"

	"tidegate/internal/document"
	"tidegate/uplink"
)

// Uplink is one of several uplinks.
type Uplink struct {
	Name     string `yaml:"-"`
	Required bool   `yaml:"required" doc:"Whether readings are kept until this uplink has them. One that is not required gets what comes while it is connected, and a tombstone for what it missed."`

	uplink.Options `yaml:",inline"`
}

// Default sets what holds where the file says nothing.
func (u *Uplink) Default() { u.Required, u.Options = true, uplink.Defaults() }

// path is where the uplink stands in the file.
func (u *Uplink) path() string {
	if u.Name == "" {
		return "uplink"
	}
	return "uplinks." + u.Name
}

// ClientKey returns the file of the client's private key, "" for none.
func (u *Uplink) ClientKey() string {
	if u.Identity != "" {
		return filepath.Join(u.Identity, "client.key")
	}
	return u.TLS.Key
}

// maxUplinks is how many there may be.
const maxUplinks = 8

// Links returns the uplinks, the first first. A single one under the key
// uplink has no name.
func (c *Config) Links() []Uplink {
	if len(c.Uplinks) > 0 {
		return c.Uplinks
	}
	return []Uplink{{Required: true, Options: c.Uplink}}
}

// Commander returns the uplink that takes commands; nil without one.
func (c *Config) Commander() *Uplink {
	for _, u := range c.Links() {
		if u.Commands {
			return &u
		}
	}
	return nil
}

// links returns the uplinks that the file has.
func (p *parser) links() []Uplink {
	if p.doc.Has("uplink") || len(p.cfg.Uplinks) > 0 {
		return p.cfg.Links()
	}
	return nil
}

// uplinks checks one or several uplinks.
func (p *parser) uplinks() {
	c := p.cfg
	complete := func(path string, o *uplink.Options) {
		p.brokers(path, o)
		o.Complete(c.Gateway.ID, func(key string) bool { return p.doc.Has(path + "." + key) })
	}
	validate := func(path string, o *uplink.Options) {
		section := p.doc.Section(path)
		o.Validate(section)
		o.ValidateNames(c.Gateway.Site, c.Gateway.ID, section)
	}
	if p.doc.Has("uplink") {
		complete("uplink", &c.Uplink)
		validate("uplink", &c.Uplink)
	} else if p.doc.Has("uplinks") {
		c.Uplink = uplink.Options{}
	}
	p.severalUplinks()
	list := c.Uplinks
	for i := range list {
		complete(list[i].path(), &list[i].Options)
		// The batches are the same for all: as the first says, and where it
		// says nothing, as small as one of them needs them.
		if !p.doc.Has(list[0].path() + ".batch.max_bytes") {
			list[0].Batch.MaxBytes = min(list[0].Batch.MaxBytes, list[i].Batch.MaxBytes)
		}
	}
	for i := range list {
		if list[i].Batch != list[0].Batch && p.doc.Has(list[i].path()+".batch") {
			p.doc.Report(list[i].path()+".batch", document.CodeValue, "batch: the batches are the same for all uplinks, and the first one says when they are complete", "write it under "+list[0].path())
		}
		list[i].Batch = list[0].Batch
		validate(list[i].path(), &list[i].Options)
	}
}

// severalUplinks checks what concerns more than one.
func (p *parser) severalUplinks() {
	list := p.cfg.Uplinks
	if !p.doc.Has("uplinks") {
		return
	}
	switch {
	case p.doc.Has("uplink"):
		p.doc.Report("uplinks", document.CodeKey, `"uplink" and "uplinks" both say where the readings go`, "keep uplink for one place, uplinks for several")
	case len(list) == 0:
		p.doc.Report("uplinks", document.CodeMissing, `"uplinks" names none`, "write a name such as cloud: and the keys of an uplink under it")
		return
	case len(list) > maxUplinks:
		p.doc.Report("uplinks", document.CodeValue, fmt.Sprintf("at most %d uplinks can stand side by side", maxUplinks), "")
	}
	required, commander := false, ""
	for i := range list {
		u := &list[i]
		required = required || u.Required
		p.name(u.path(), u.Name, "an uplink")
		if u.Commands && commander != "" {
			p.doc.Report(u.path()+".commands", document.CodeValue, "commands: only one uplink takes commands, and "+commander+" does", "leave it out here, or there")
		} else if u.Commands {
			commander = u.Name
		}
		if u.Receipts && !u.Required {
			p.doc.Report(u.path()+".receipts", document.CodeValue, "receipts: nothing is kept for an uplink that is not required until a receipt comes", "write required: true, or leave receipts out")
		}
		for k := range i {
			if at := u.Clashes(&list[k].Options, p.cfg.Gateway.ID); at != "" {
				p.doc.Report(u.path()+".client_id", document.CodeValue, fmt.Sprintf("%s and %s go to %s with the same client id: they would throw each other out", list[k].Name, u.Name, at), "give one of them a client_id of its own")
			}
		}
	}
	if !required {
		p.doc.Report("uplinks", document.CodeValue, "no uplink is required, so nothing would be kept for any", "leave required: false out at the one that must have everything")
	}
	if len(list) > 1 && p.cfg.Buffer.WhenFull == "thin" {
		p.doc.Warn("buffer.when_full", document.CodeValue, "when_full: what one of the uplinks may have is not thinned for the others", "a full buffer drops it, the oldest first, and tells so")
	}
}
