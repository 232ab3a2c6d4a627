package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

func desired(name string, version uint64) *lbstatepb.DesiredService {
	return &lbstatepb.DesiredService{Name: name, Version: version, Vip: []byte{192, 0, 2, 1}, Port: 80, Protocol: "tcp", Family: "ipv4", Scheduler: "rr", Snat: "local"}
}

// written makes a journal with a base of one service and three deltas.
func written(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	j, st, _, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	for i := uint64(1); i <= 4; i++ {
		u := &agentpb.Update{Cluster: 7, Revision: i, Since: i - 1, Full: i == 1, Services: []*lbstatepb.DesiredService{desired(fmt.Sprintf("s%d", i), i)}}
		switch i { // in the base, then none, then another in the last change
		case 1, 4:
			u.Profile = &lbstatepb.DesiredProfile{Name: "edge", Revision: i}
		case 3:
			u.NoProfile = true
		}
		st = st.apply(u)
		if err := j.accept(st, u, 0); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func reopen(t *testing.T, dir string) (*state, JournalStatus) {
	t.Helper()
	j, st, _, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	return st, j.account()
}

func TestJournalKeepsWhatWasAccepted(t *testing.T) {
	st, status := reopen(t, written(t))
	if st.revision != 4 || len(st.entries) != 4 || st.cluster != 7 || st.profile == nil || st.profile.revision != 4 || status.Damage != "" || status.TornTail != 0 {
		t.Errorf("revision %d, %d services, status %+v", st.revision, len(st.entries), status)
	}
}

// A journal that the program wrote before it knew profiles is read: three services,
// of which a change removed one.
func TestJournalOfBeforeProfiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"base", "deltas"} {
		data, err := os.ReadFile(filepath.Join("testdata", "journal-v1", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	st, status := reopen(t, dir)
	if v, failures := st.view(); status.Damage != "" || status.TornTail != 0 || st.revision != 6 || len(v.Services) != 2 || v.Profile != nil || len(failures) != 0 {
		t.Errorf("revision %d, %+v, %v, %+v", st.revision, v, failures, status)
	}
}

func TestJournalIsUsedByOne(t *testing.T) {
	dir := written(t)
	j, _, _, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if other, _, _, err := openJournal(dir); err == nil {
		other.close()
		t.Error("a second agent opened the same journal")
	}
}

// Every cut of the deltas gives an earlier accepted state; every flipped bit
// is an unfinished append at the very end, or damage, never another state.
func TestJournalCutsAndFlips(t *testing.T) {
	dir := written(t)
	base, err := os.ReadFile(filepath.Join(dir, "base"))
	if err != nil {
		t.Fatal(err)
	}
	deltas, err := os.ReadFile(filepath.Join(dir, "deltas"))
	if err != nil {
		t.Fatal(err)
	}
	try := func(base, deltas []byte) (*state, JournalStatus) {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, "base"), base, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "deltas"), deltas, 0o600); err != nil {
			t.Fatal(err)
		}
		return reopen(t, d)
	}
	for n := range deltas {
		st, status := try(base, deltas[:n])
		if status.Damage != "" || st.revision < 1 || st.revision > 3 {
			t.Errorf("cut at %d: revision %d, %+v", n, st.revision, status)
		}
		if has := st.profile != nil && st.profile.revision == 1; has != (st.revision < 3) {
			t.Errorf("cut at %d: at revision %d the profile is %+v", n, st.revision, st.profile)
		}
	}
	for n := range deltas {
		flipped := append([]byte(nil), deltas...)
		flipped[n] ^= 0x40
		st, status := try(base, flipped)
		if status.Damage == "" && status.TornTail == 0 {
			t.Errorf("flip at %d of the deltas went unnoticed: revision %d", n, st.revision)
		}
		if status.Damage != "" && st.revision != 0 {
			t.Errorf("flip at %d: a damaged state is used, at revision %d", n, st.revision)
		}
	}
	for n := range base {
		flipped := append([]byte(nil), base...)
		flipped[n] ^= 0x40
		if st, status := try(flipped, deltas); status.Damage == "" || st.revision != 0 {
			t.Errorf("flip at %d of the base: revision %d, %+v", n, st.revision, status)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(journalMagic+"\x00\x00\x00\x00"), []byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, base, deltas []byte) {
		if b, err := decodeBase(base); err == nil {
			stateFromBase(b)
		}
		for len(deltas) > 0 {
			_, n, err := decodeRecord(deltas)
			if err != nil {
				return
			}
			deltas = deltas[n:]
		}
	})
}

func FuzzChunk(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint32(0), true)
	f.Fuzz(func(t *testing.T, data []byte, crc uint32, last bool) {
		a := assembler{limit: 1 << 20}
		if u, err := a.add(&agentpb.Chunk{Data: data, Crc: crc, Last: last}); err == nil && u != nil {
			(&state{}).apply(u).view()
		}
	})
}

// INV-11, INV-12: a state of another cluster that was released takes the place of
// the one before also where the power fails before the changes of that are gone.
func TestJournalOfAnotherClusterOverOldChanges(t *testing.T) {
	dir := written(t)
	old, err := os.ReadFile(filepath.Join(dir, "deltas"))
	if err != nil {
		t.Fatal(err)
	}
	j, st, _, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	u := &agentpb.Update{Cluster: 8, Revision: 2, Full: true, Services: []*lbstatepb.DesiredService{desired("new", 2)}}
	if err := j.accept(st.apply(u), u, 0); err != nil {
		t.Fatal(err)
	}
	j.close()
	if err := os.WriteFile(filepath.Join(dir, "deltas"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if j, st, _, err = openJournal(dir); err != nil {
		t.Fatal(err)
	}
	if s := j.account(); st.cluster != 8 || st.revision != 2 || len(st.entries) != 1 || s.Damage != "" {
		t.Errorf("cluster %d, revision %d, %d services, %+v", st.cluster, st.revision, len(st.entries), s)
	}
	next := &agentpb.Update{Cluster: 8, Revision: 3, Since: 2, Services: []*lbstatepb.DesiredService{desired("more", 3)}}
	if err := j.accept(st.apply(next), next, 0); err != nil {
		t.Fatal(err)
	}
	j.close()
	if st, status := reopen(t, dir); st.cluster != 8 || st.revision != 3 || len(st.entries) != 2 || status.Damage != "" {
		t.Errorf("cluster %d, revision %d, %d services, %+v", st.cluster, st.revision, len(st.entries), status)
	}
}
