package identity

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRevocations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "revoked")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# sold hosts\n\nagent/lb1  sold\r\nserver/node0\nserial/00:AB:CD stolen\n")
	r, err := OpenRevocations(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		id     ID
		serial string
		want   string
	}{
		{ID{Role: RoleAgent, Name: "lb1"}, "1", "sold"},
		{ID{Role: RoleServer, Name: "lb1"}, "1", ""},
		{ID{Role: RoleServer, Name: "node0"}, "1", "it was revoked"},
		{ID{Role: RoleAgent, Name: "lb2"}, "abcd", "stolen"},
		{ID{Role: RoleAgent, Name: "lb2"}, "abce", ""},
	} {
		if got := r.Revoked(test.id, test.serial); got != test.want {
			t.Errorf("%v, %s: %q, want %q", test.id, test.serial, got, test.want)
		}
	}
	// What cannot be read revokes as before: nobody is let in by a typing error.
	write("agent/lb2 sold\nagents/lb3 sold\n")
	if err := r.files.again(); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a line that says nothing: %v", err)
	}
	if r.Revoked(ID{Role: RoleAgent, Name: "lb1"}, "1") == "" {
		t.Error("the older revocations are forgotten")
	}
	write("agent/lb2 sold\n")
	if err := r.files.again(); err != nil || r.Revoked(ID{Role: RoleAgent, Name: "lb1"}, "1") != "" || r.Revoked(ID{Role: RoleAgent, Name: "lb2"}, "1") == "" {
		t.Errorf("not read anew: %v", err)
	}
	var none *Revocations
	if none.Revoked(ID{}, "") != "" {
		t.Error("nothing revokes something")
	}
}

func FuzzRevocations(f *testing.F) {
	f.Add([]byte("agent/a why\nserial/0A:1b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseRevocations(data)
		if err != nil && list != nil {
			t.Error("a list beside an error")
		}
		for what, why := range list {
			if why == "" || !strings.Contains(what, "/") {
				t.Errorf("%q: %q", what, why)
			}
		}
	})
}
