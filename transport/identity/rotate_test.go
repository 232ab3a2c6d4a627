package identity

import (
	"bytes"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func rotated(t *testing.T, b *Bundle) *Bundle {
	t.Helper()
	next, err := b.Rotate(epoch)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// At every moment of a rotation everyone can talk with everyone.
func TestRotationNeedsNoStop(t *testing.T) {
	b := newBundle(t, "prod")
	next := rotated(t, b)
	third := rotated(t, next)
	last, err := third.Retire()
	if err != nil {
		t.Fatal(err)
	}
	id := ID{Role: RoleAgent, Name: "a1"}
	holders := map[string]*Source{
		"server, before": server(t, b), "server, rotated": server(t, next), "server, twice": server(t, third),
		"agent, before": issued(t, b, id, time.Hour), "agent, rotated": issued(t, next, id, time.Hour), "agent, twice": issued(t, third, id, time.Hour),
	}
	for dialed, s := range holders {
		if s.cfg.Role != RoleServer {
			continue
		}
		for dialing, c := range holders {
			if ofServer, ofClient, _ := handshake(t, s.ServerTLS(RoleServer, RoleAgent), c.ClientTLS()); ofServer != nil || ofClient != nil {
				t.Errorf("%s to %s: %v, %v", dialing, dialed, ofServer, ofClient)
			}
		}
	}
	retired := server(t, last)
	if ofServer, ofClient, _ := handshake(t, retired.ServerTLS(RoleAgent), holders["agent, twice"].ClientTLS()); ofServer != nil || ofClient != nil {
		t.Errorf("the newest authority alone: %v, %v", ofServer, ofClient)
	}
	_, ofClient, _ := handshake(t, retired.ServerTLS(RoleAgent), holders["agent, before"].ClientTLS())
	says(t, ofClient, WrongCA)
	if _, err := last.Retire(); err == nil {
		t.Error("the last authority was retired")
	}
}

// An agent renews over its connection: with a key of its own, for the name and
// labels that it had, and gets the authorities that the server trusts.
func TestRenewal(t *testing.T) {
	b := newBundle(t, "prod")
	next := rotated(t, b)
	s := server(t, next)
	agent := issued(t, b, ID{Role: RoleAgent, Name: "a1", Labels: map[string]string{"zone": "a"}}, time.Hour)
	if !agent.Due(s.Trust()) || agent.Due(0) || agent.Due(server(t, b).Trust()) {
		t.Error("it is due when the server trusts another set of authorities, and only then")
	}
	_, _, state := handshake(t, s.ServerTLS(RoleAgent), agent.ClientTLS())
	request, err := agent.Request()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.Renew(state, request)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(answer, []byte("PRIVATE")) {
		t.Fatal("a private key travels")
	}
	before := agent.files.get().credential
	if err := agent.Accept(answer); err != nil {
		t.Fatal(err)
	}
	after := agent.files.get().credential
	if after.Serial() == before.Serial() || after.id.Labels["zone"] != "a" || after.id.Name != "a1" || len(after.anchors) != 2 || agent.Due(s.Trust()) {
		t.Errorf("%v, %d authorities", after.id, len(after.anchors))
	}
	if !after.Expires().Equal(epoch.Add(90 * 24 * time.Hour)) {
		t.Errorf("until %v", after.Expires())
	}
	if _, stored, err := Read(agent.cfg.KeyFile); err != nil || stored.Serial() != after.Serial() {
		t.Errorf("not in the file: %v", err)
	}
	if err := agent.Accept(answer); err == nil {
		t.Error("an answer was taken twice")
	}
	last, err := next.Retire()
	if err != nil {
		t.Fatal(err)
	}
	if ofServer, ofClient, _ := handshake(t, server(t, last).ServerTLS(RoleAgent), agent.ClientTLS()); ofServer != nil || ofClient != nil {
		t.Errorf("after the older authority is retired: %v, %v", ofServer, ofClient)
	}
}

func TestRenewalIsForItsOwn(t *testing.T) {
	b := newBundle(t, "prod")
	s := server(t, b)
	a1 := issued(t, b, ID{Role: RoleAgent, Name: "a1"}, time.Hour)
	a2 := issued(t, b, ID{Role: RoleAgent, Name: "a2"}, time.Hour)
	_, _, state := handshake(t, s.ServerTLS(RoleAgent), a1.ClientTLS())
	request, err := a2.Request()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.Renew(state, request)
	if err != nil {
		t.Fatal(err)
	}
	if err := a2.Accept(answer); err == nil || !strings.Contains(err.Error(), `agent "a1"`) {
		t.Errorf("another's credential is taken: %v", err)
	}
	if _, err := a1.Request(); err != nil {
		t.Fatal(err)
	}
	if err := a1.Accept(answer); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("a credential for another key is taken: %v", err)
	}
	_, _, state = handshake(t, s.ServerTLS(RoleServer), server(t, b).ClientTLS())
	_, err = s.Renew(state, request)
	says(t, err, WrongRole)
	for name, bad := range map[string][]byte{"empty": nil, "cut": request[:len(request)-9], "large": make([]byte, 1<<20)} {
		_, _, state = handshake(t, s.ServerTLS(RoleAgent), a1.ClientTLS())
		if _, err := s.Renew(state, bad); err == nil {
			t.Errorf("%s request is signed", name)
		}
	}
}

func TestDueWithTime(t *testing.T) {
	b := newBundle(t, "prod")
	now := epoch
	c, err := b.Issue(ID{Role: RoleAgent, Name: "a1"}, nil, 90*time.Minute-backdate, epoch)
	if err != nil {
		t.Fatal(err)
	}
	agent := open(t, Config{KeyFile: stored(t, c), Role: RoleAgent, Now: func() time.Time { return now }})
	for minutes, due := range map[time.Duration]bool{0: false, 49: false, 51: true} {
		if now = epoch.Add(minutes * time.Minute); agent.Due(0) != due {
			t.Errorf("after %d minutes: %v", minutes, !due)
		}
	}
}

func TestFilesAreSecret(t *testing.T) {
	b := newBundle(t, "prod")
	path := stored(t, b)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := Create(path, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an existing key was written over: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(path); err == nil || !strings.Contains(err.Error(), "0640") || !strings.Contains(err.Error(), "chmod 600 "+path) {
		t.Errorf("a file that the group may read: %v", err)
	}
	if err := Replace(path, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v after a replacement, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".key*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	b := newBundle(t, "prod")
	bundle, err := rotated(t, b).Encode()
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Issue(ID{Role: RoleAgent, Name: "a1"}, nil, time.Hour, epoch)
	if err != nil {
		t.Fatal(err)
	}
	credential, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	other, err := newBundle(t, "prod").Encode()
	if err != nil {
		t.Fatal(err)
	}
	block := func(data []byte, from, to int) []byte { // PEM blocks from..to
		blocks := bytes.SplitAfter(data, []byte("-----\n"))
		return bytes.Join(blocks[2*from:2*to], nil)
	}
	if back, none, err := Parse(bundle); err != nil || none != nil || back.Domain() != "prod" || len(back.Authorities()) != 2 {
		t.Fatalf("the bundle itself: %v", err)
	}
	if none, back, err := Parse(credential); err != nil || none != nil || back.Serial() != c.Serial() || back.ID().Name != "a1" {
		t.Fatalf("the credential itself: %v", err)
	}
	for name, test := range map[string]struct {
		data []byte
		says string
	}{
		"empty":                 {nil, "no PEM block"},
		"text":                  {[]byte("secret\n"), "no PEM block"},
		"key alone":             {block(credential, 0, 1), "no certificate"},
		"bundle without key":    {block(bundle, 0, 1), "each with its private key"},
		"bundle's second alone": {block(bundle, 2, 5), ""}, // fit to be a bundle of one but for the cross-signature
		"authorities swapped":   {append(bytes.Clone(block(bundle, 2, 5)), block(bundle, 0, 2)...), "authority"},
		"foreign key":           {append(bytes.Clone(block(bundle, 0, 1)), block(other, 1, 2)...), "does not belong"},
		"no authority":          {block(credential, 0, 2), "trusted authority"},
		"other block":           {[]byte("-----BEGIN RSA PUBLIC KEY-----\nAAAA\n-----END RSA PUBLIC KEY-----\n"), "RSA PUBLIC KEY"},
		"too long":              {make([]byte, maxFile+1), "at most"},
	} {
		_, _, err := Parse(test.data)
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q", name, err, test.says)
		}
	}
	if _, _, err := Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestIDs(t *testing.T) {
	id := ID{Domain: "prod.example", Role: RoleAgent, Name: "lb_1.a", Labels: map[string]string{"zone": "a", "rack": ""}}
	back, err := ParseID(id.URI())
	if err != nil || back.URI().String() != id.URI().String() || back.Labels["zone"] != "a" || len(back.Labels) != 2 {
		t.Errorf("%v, %v", back, err)
	}
	for _, bad := range []ID{
		{Domain: "Prod", Role: RoleAgent, Name: "a"},
		{Domain: "", Role: RoleAgent, Name: "a"},
		{Domain: "p", Role: "root", Name: "a"},
		{Domain: "p", Role: RoleAgent, Name: "a/b"},
		{Domain: "p", Role: RoleAgent, Name: strings.Repeat("a", 254)},
		{Domain: "p", Role: RoleServer, Name: "a", Labels: map[string]string{"x": "y"}},
		{Domain: "p", Role: RoleAgent, Name: "a", Labels: map[string]string{"": "y"}},
		{Domain: "p", Role: RoleAgent, Name: "a", Labels: map[string]string{"x": "y z"}},
	} {
		if err := bad.Validate(); err == nil {
			t.Errorf("%+v passes", bad)
		}
		if _, err := newBundle(t, "p").Issue(bad, nil, time.Hour, epoch); err == nil && bad.Domain != "" {
			t.Errorf("%+v is signed", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, err := NewBundle("prod", epoch)
	if err != nil {
		f.Fatal(err)
	}
	two, err := b.Rotate(epoch)
	if err != nil {
		f.Fatal(err)
	}
	c, err := two.Issue(ID{Role: RoleAgent, Name: "a1"}, nil, time.Hour, epoch)
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range []interface{ Encode() ([]byte, error) }{b, two, c} {
		data, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, c, err := Parse(data)
		if (b != nil) == (c != nil) && err == nil {
			t.Fatal("neither or both")
		}
		if b != nil && err == nil {
			if _, err := b.Issue(ID{Role: RoleServer, Name: "s"}, nil, time.Hour, epoch); err != nil && len(b.authorities) == 0 {
				t.Fatal(err)
			}
		}
	})
}

func FuzzID(f *testing.F) {
	f.Add("ipvskit://prod/agent/a1?zone=a")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, err := ParseID(u)
		if err != nil {
			return
		}
		if back, err := ParseID(id.URI()); err != nil || back.URI().String() != id.URI().String() {
			t.Fatalf("%q becomes %v, %v", s, back, err)
		}
	})
}
