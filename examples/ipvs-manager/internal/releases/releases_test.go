package releases

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/raftstore/raftstoretest"
)

func encoded(t *testing.T, r Release) []byte {
	t.Helper()
	data, err := json.Marshal(command{version, r})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func agentRelease(i int) Release {
	return Release{At: time.Unix(int64(i), 0).UTC(), By: "alice", Reason: "it is meant", Agent: fmt.Sprint("agent-", i), Held: "4 of 5 would vanish"}
}

func TestContract(t *testing.T) {
	var commands [][]byte
	for i := range 6 {
		commands = append(commands, encoded(t, agentRelease(i)), encoded(t, Release{By: "bob", Cluster: uint64(1 + i%3)}))
	}
	raftstoretest.Contract(t, Bucket, func() raftstore.StateMachine { return new(State) }, commands)
}

// machine applies commands one at a time, as a store does.
type machine struct {
	*State
	t  *testing.T
	db *bbolt.DB
	at uint64
}

func newMachine(t *testing.T) *machine {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &machine{State: new(State), t: t, db: db}
}

func (m *machine) apply(r Release) any {
	m.t.Helper()
	m.at++
	var results []any
	if err := m.db.Update(func(tx *bbolt.Tx) (err error) {
		results, err = m.Apply(tx, 1, m.at, [][]byte{encoded(m.t, r)})
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	m.Committed(m.at)
	return results[0]
}

func (m *machine) list() (all []Release) {
	m.t.Helper()
	if err := m.db.View(func(tx *bbolt.Tx) (err error) {
		all, err = list(tx)
		return err
	}); err != nil {
		m.t.Fatal(err)
	}
	return all
}

func TestReleasesAreKeptAndBounded(t *testing.T) {
	m := newMachine(t)
	var told []string
	m.OnRelease = func(r Release) { told = append(told, r.Agent) }
	for i := range kept + 3 {
		m.apply(agentRelease(i))
	}
	all := m.list()
	if len(all) != kept || all[0] != agentRelease(kept+2) || all[kept-1] != agentRelease(3) {
		t.Errorf("%d releases, from %+v to %+v", len(all), all[0], all[len(all)-1])
	}
	if len(told) != kept+3 || told[1] != "agent-1" {
		t.Errorf("told of %d", len(told))
	}
	for i := range clusters + 1 {
		err, _ := m.apply(Release{At: time.Unix(1e6, 0), Cluster: uint64(i + 1)}).(error)
		if (i == clusters) != errors.Is(err, ErrTooMany) {
			t.Errorf("cluster %d: %v", i, err)
		}
		m.apply(Release{At: time.Unix(2e6, 0), Cluster: 1}) // once is enough
	}
	before := m.Predecessors()
	if len(before) != clusters || before[0] != 1 {
		t.Errorf("%d predecessors", len(before))
	}
	again := &machine{State: new(State), t: t, db: m.db}
	if err := m.db.View(again.Restored); err != nil {
		t.Fatal(err)
	}
	if after := again.Predecessors(); !slices.Equal(slices.Sorted(slices.Values(after)), before) {
		t.Errorf("a node that starts anew knows %v", after)
	}
}

// A command that this program does not know stops the node.
func TestUnknownCommands(t *testing.T) {
	for _, data := range []string{
		``, `{}`, `{"version":2,"release":{"agent":"a"}}`, `{"version":1,"release":{}}`,
		`{"version":1,"release":{"agent":"a","cluster":"7"}}`, `{"version":1,"release":{"agent":"a","more":1}}`,
	} {
		m := newMachine(t)
		if err := m.db.Update(func(tx *bbolt.Tx) error {
			_, err := m.Apply(tx, 1, 1, [][]byte{[]byte(data)})
			return err
		}); err == nil {
			t.Errorf("%s was applied", data)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"release":{"agent":"a"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := decode(data); err == nil && (c.Release.Agent == "") == (c.Release.Cluster == 0) {
			t.Errorf("%+v", c)
		}
	})
}
