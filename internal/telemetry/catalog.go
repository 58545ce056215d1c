package telemetry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sync"
)

// Catalog is the dictionary of a batch: what each point number stands for.
// The points of one device stand together. A Catalog does not change after
// NewCatalog.
type Catalog struct {
	Points []Point

	once sync.Once
	hash string
}

// NewCatalog returns the catalog of points; the number of a point is its index.
func NewCatalog(points []Point) *Catalog { return &Catalog{Points: points} }

type catalogDevice struct {
	Device string         `json:"dev"`
	Points []catalogPoint `json:"points"`
}

type catalogPoint struct {
	Name     string `json:"n"`
	Unit     string `json:"u,omitempty"`
	Kind     string `json:"k,omitempty"` // "" is gauge
	Decimals int    `json:"d,omitempty"`
	Class    Class  `json:"c,omitempty"`
}

// Encode returns the catalog as JSON, devices in order with their points in
// order. It is made anew at each call: a large catalog is needed as bytes
// only when it is stored.
func (c *Catalog) Encode() []byte {
	devices := []catalogDevice{}
	for _, p := range c.Points {
		if n := len(devices); n == 0 || devices[n-1].Device != p.Device {
			devices = append(devices, catalogDevice{Device: p.Device})
		}
		d := &devices[len(devices)-1]
		kind := p.Kind
		if kind == "gauge" {
			kind = ""
		}
		d.Points = append(d.Points, catalogPoint{p.Name, p.Unit, kind, p.Decimals, p.Class})
	}
	// Marshal cannot fail: the types above hold nothing that JSON cannot write.
	b, _ := json.Marshal(devices)
	return b
}

// hashLen is the number of bytes of SHA-256 that name a catalog.
const hashLen = 4

// Hash names the catalog: the first 8 hex digits of the SHA-256 of Encode.
func (c *Catalog) Hash() string {
	c.once.Do(func() {
		sum := sha256.Sum256(c.Encode())
		c.hash = hex.EncodeToString(sum[:hashLen])
	})
	return c.hash
}

// DecodeCatalog reads what Encode wrote.
func DecodeCatalog(src []byte) (*Catalog, error) {
	var devices []catalogDevice
	if err := json.Unmarshal(src, &devices); err != nil {
		return nil, fmt.Errorf("telemetry: catalog: %w", err)
	}
	c := &Catalog{}
	for _, d := range devices {
		for _, p := range d.Points {
			if p.Kind == "" {
				p.Kind = "gauge"
			}
			c.Points = append(c.Points, Point{Device: d.Device, Name: p.Name, Unit: p.Unit,
				Kind: p.Kind, Decimals: p.Decimals, Class: p.Class})
		}
	}
	return c, nil
}
