package profile

import (
	"testing"
)

func TestLibrary(t *testing.T) {
	lib, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lib.Names() {
		p, err := lib.Get(name)
		if err != nil {
			if bad, ok := err.(*InvalidError); ok {
				for _, x := range bad.Problems {
					t.Errorf("%s:%d:%d: %s: %s (%s)", x.File, x.Line, x.Col, x.Path, x.Msg, x.Hint)
				}
			} else {
				t.Error(err)
			}
			continue
		}
		for _, r := range p.Test() {
			for _, f := range r.Failures {
				t.Errorf("%s: %s: %s", name, r.Name, f)
			}
		}
	}
}
