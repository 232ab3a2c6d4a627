//go:build unix

package agent

import (
	"os/signal"
	"syscall"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// limited calls f while no file of this process may grow beyond size.
func limited(t *testing.T, size int64, f func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	now := before
	now.Cur = uint64(size)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &now); err != nil {
		t.Fatal(err)
	}
	f()
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
}

// INV-11: a change of which the disk took only a part leaves nothing in the
// journal, whatever is noted next.
func TestJournalOnAFullDisk(t *testing.T) {
	dir := written(t)
	j, st, _, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	u := &agentpb.Update{Cluster: 7, Revision: 5, Since: 4}
	for i := range uint64(20) {
		u.Services = append(u.Services, desired("more", i))
	}
	limited(t, j.deltaSize+200, func() { err = j.accept(st.apply(u), u, 0) })
	if err == nil {
		t.Fatal("the disk was not full")
	}
	if err := j.confirm(4); err != nil {
		t.Fatal(err)
	}
	next := &agentpb.Update{Cluster: 7, Revision: 6, Since: 4, Services: []*lbstatepb.DesiredService{desired("s6", 6)}}
	j.close()
	if st, status := reopen(t, dir); st.revision != 4 || status.Damage != "" || status.TornTail != 0 {
		t.Errorf("revision %d, %+v", st.revision, status)
	}
	if j, st, _, err = openJournal(dir); err != nil {
		t.Fatal(err)
	}
	if err := j.accept(st.apply(next), next, 4); err != nil {
		t.Error(err)
	}
	j.close()
	if st, status := reopen(t, dir); st.revision != 6 || status.Damage != "" {
		t.Errorf("revision %d, %+v", st.revision, status)
	}
}
