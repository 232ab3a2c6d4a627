package lbstate

import (
	"context"
	"errors"
	"flag"
	"net/netip"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a state with a store on it, whose clock stands still.
type node struct {
	*Store
	local *Local
	clock time.Time
}

func newNode(t testing.TB) *node {
	t.Helper()
	state := New(Config{})
	local, err := newLocal(t.TempDir(), state, &bbolt.Options{NoSync: true}) // no test here is about power cuts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := local.db.View(func(tx *bbolt.Tx) error { return errors.Join(check(tx), checkValid(tx)) }); err != nil {
			t.Errorf("the state contradicts itself: %v", err)
		}
		if err := local.Close(); err != nil {
			t.Error(err)
		}
	})
	n := &node{Store: NewStore(state, local), local: local, clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	n.now = func() time.Time { return n.clock }
	return n
}

// digest is that of all that the node holds.
func (n *node) digest(t testing.TB) uint64 {
	t.Helper()
	var d uint64
	if err := n.local.ReadStale(func(tx *bbolt.Tx) (err error) {
		d, err = DigestState(tx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return d
}

// put stores a service given as YAML.
func (n *node) put(t testing.TB, text string) WriteResult {
	t.Helper()
	s, err := DecodeService([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	res, err := n.PutService(context.Background(), s, WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// service returns a service that must be there.
func (n *node) service(t testing.TB, name string) ServiceStatus {
	t.Helper()
	s, err := n.Service(context.Background(), name, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// report stores one transition of a service's first check on a backend.
func (n *node) report(t testing.TB, service, backend string, to HealthState, edit func(*HealthTransition)) {
	t.Helper()
	tr := HealthTransition{Service: service, Backend: netip.MustParseAddrPort(backend), Term: n.local.term, To: to, At: n.clock}
	for _, c := range n.service(t, service).Checks() {
		if c.Backend == tr.Backend {
			tr.CheckHash = c.Hash
		}
	}
	if edit != nil {
		edit(&tr)
	}
	if err := n.ReportHealth(context.Background(), []HealthTransition{tr}); err != nil {
		t.Fatal(err)
	}
}

func unyaml(t testing.TB, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func toYAML(t testing.TB, v any) string {
	t.Helper()
	data, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
