package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runs runs a command that ends by itself.
func runs(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if code := run(t.Context(), args, &out, &out); code != want {
		t.Fatalf("%v: exit code %d, want %d:\n%s", args, code, want, out.String())
	}
	return out.String()
}

// A server is backed up while it runs and when it does not; both make a server
// that has what it had. One is also made of the survivor itself.
func TestBackUpRestoreRecover(t *testing.T) {
	n := newNode(t, "a")
	p := start(t, n, n.args()...)
	p.ready()
	if status, text := do(t, http.MethodPut, p.url+"/api/v1/services/web", `{"vip": "192.0.2.10", "port": 80}`); status != http.StatusCreated {
		t.Fatal(status, text)
	}
	online := filepath.Join(t.TempDir(), "online")
	status, stream := do(t, http.MethodGet, p.url+"/api/v1/cluster/backup", "")
	if err := os.WriteFile(online, []byte(stream), 0o600); err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	out := runs(t, 1, "check", "--raft_vol_dir", n.dir)
	if !strings.Contains(out, "another process") {
		t.Errorf("check of a running server: %s", out)
	}
	p.terminate()
	if out := runs(t, 0, "check", "--raft_vol_dir", n.dir); !strings.Contains(out, "is whole") {
		t.Error(out)
	}
	offline := filepath.Join(t.TempDir(), "offline")
	runs(t, 0, "backup", "--raft_vol_dir", n.dir, "--out", offline)
	runs(t, 1, "backup", "--raft_vol_dir", n.dir, "--out", offline) // it is there

	for _, file := range []string{online, offline} {
		again := newNode(t, "b")
		runs(t, 0, "restore", "--raft_vol_dir", again.dir, "--in", file)
		runs(t, 1, "restore", "--raft_vol_dir", again.dir, "--in", file) // not empty any more
		p := start(t, again, again.args()...)
		p.ready()
		if _, got := do(t, http.MethodGet, p.url+"/api/v1/services/web", ""); !strings.Contains(got, "192.0.2.10") {
			t.Errorf("restored from %s: %s", filepath.Base(file), got)
		}
		p.terminate()
	}
	runs(t, 2, "recover", "--raft_vol_dir", n.dir)
	if out := runs(t, 0, "recover", "--raft_vol_dir", n.dir, "--quorum_is_lost"); !strings.Contains(out, "surely acknowledged") {
		t.Error(out)
	}
	p = start(t, n, n.args()...)
	p.ready()
	if _, got := do(t, http.MethodGet, p.url+"/api/v1/services/web", ""); !strings.Contains(got, "192.0.2.10") {
		t.Errorf("recovered: %s", got)
	}
	p.terminate()
}
