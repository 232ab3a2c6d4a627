package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/transport/identity"
)

// command runs the program and returns its exit code and what it printed.
func command(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func made(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := command(args...)
	if code != 0 {
		t.Fatalf("%v: code %d, %s", args, code, stderr)
	}
	return stdout
}

func TestKeysAndCredentials(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "cluster.key")
	said := made(t, "keygen", "--key_file", key, "--cluster_name", "prod")
	if !strings.Contains(said, "agent-cert --key_file "+key) {
		t.Errorf("keygen does not say what comes next: %s", said)
	}
	read := func(path string) (*identity.Bundle, *identity.Credential) {
		t.Helper()
		b, c, err := identity.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		return b, c
	}
	if b, _ := read(key); b == nil || b.Domain() != "prod" {
		t.Errorf("%+v", b)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"agent-cert", "--name", "lb1", "--labels", "zone=a,rack=7"}, "ipvskit://prod/agent/lb1?rack=7&zone=a"},
		{[]string{"server-cert", "--name", "node0", "--hosts", "192.0.2.77,node0.example"}, "ipvskit://prod/server/node0"},
		{[]string{"operator-cert", "--name", "alice", "--days", "1"}, "ipvskit://prod/operator/alice"},
	} {
		out := filepath.Join(dir, test.args[2]+".key")
		said := made(t, append(test.args, "--key_file", key, "--out", out)...)
		_, c := read(out)
		if c == nil || c.ID().URI().String() != test.want || !strings.Contains(said, c.Serial()) {
			t.Errorf("%v: %+v; said %s", test.args, c, said)
		}
	}
	made(t, "keygen", "--rotate", "--key_file", key)
	if b, _ := read(key); len(b.Authorities()) != 2 {
		t.Errorf("%d authorities after a rotation", len(b.Authorities()))
	}
	made(t, "keygen", "--retire", "--key_file", key)
	if b, _ := read(key); len(b.Authorities()) != 1 {
		t.Errorf("%d authorities after they retired", len(b.Authorities()))
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestCommandsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	key, lb1 := filepath.Join(dir, "cluster.key"), filepath.Join(dir, "lb1.key")
	made(t, "keygen", "--key_file", key)
	made(t, "agent-cert", "--key_file", key, "--name", "lb1", "--out", lb1)
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"keygen", "--help"}, 0, ""},
		{[]string{"agent-cert", "--help"}, 0, ""},
		{[]string{"keygen", "--key_file", key}, 1, "exists; to replace the key of a running cluster use --rotate"},
		{[]string{"keygen", "--key_file", filepath.Join(dir, "no", "key")}, 1, "no such file"},
		{[]string{"keygen", "--cluster_name", "Prod!"}, 1, "Prod!"},
		{[]string{"keygen", "--rotate", "--retire"}, 2, "two steps"},
		{[]string{"keygen", "--retire", "--key_file", key}, 1, "rotate first"},
		{[]string{"keygen", "--rotate", "--key_file", filepath.Join(dir, "none")}, 1, "ipvs-manager keygen --key_file"},
		{[]string{"keygen", "more"}, 2, `"more"`},
		{[]string{"agent-cert", "--key_file", key}, 2, "--name is required"},
		{[]string{"agent-cert", "--key_file", key, "--name", "lb1", "--labels", "zone"}, 2, "k=v"},
		{[]string{"agent-cert", "--key_file", key, "--name", "l b", "--out", filepath.Join(dir, "x")}, 1, "letters, digits"},
		{[]string{"agent-cert", "--key_file", key, "--name", "lb1", "--days", "0"}, 2, "1 to 3650"},
		{[]string{"agent-cert", "--key_file", key, "--name", "lb1", "--out", lb1}, 1, "exists"},
		{[]string{"agent-cert", "--key_file", lb1, "--name", "lb2"}, 1, "is a credential, not the key of a cluster"},
		{[]string{"server-cert", "--key_file", key, "--name", "s", "--hosts", "a/b"}, 2, "--hosts"},
		{[]string{"agent-cert", "--nope"}, 2, "--help"},
		// The wrong file for a role.
		{[]string{"--server_type", "agent", "--agent_name", "lb1", "--key_file", key}, 1, "ipvs-manager agent-cert --key_file"},
		{[]string{"--server_type", "agent", "--agent_name", "lb2", "--key_file", lb1}, 1, "wrong name"},
		{[]string{"--key_file", lb1}, 1, "wrong role"},
		{[]string{"--server_type", "singleon", "--key_file", lb1}, 1, "singleon needs the cluster's key"},
		{[]string{"--key_file", filepath.Join(dir, "none")}, 1, "no such file"},
		{[]string{"--key_file", key, "--revoked_file", filepath.Join(dir, "none")}, 1, "--revoked_file"},
	} {
		code, stdout, stderr := command(test.args...)
		if code != test.code || !strings.Contains(stderr, test.says) {
			t.Errorf("%v: code %d, want %d; %s, want %q", test.args, code, test.code, stderr, test.says)
		}
		if test.code == 0 && !strings.Contains(stdout, "--key_file") {
			t.Errorf("%v: %s", test.args, stdout)
		}
	}
}
