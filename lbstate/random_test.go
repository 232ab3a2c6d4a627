package lbstate

import (
	"fmt"
	"net/netip"
	"strings"

	"pgregory.net/rapid"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// A small world, so that commands meet: a few names, addresses and ports.

func drawAddr(t *rapid.T, label string, hosts int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", rapid.IntRange(1, hosts).Draw(t, label)))
}

func drawName(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "name")
}

func drawBackend(t *rapid.T) Backend {
	weight := rapid.IntRange(0, 3).Draw(t, "weight")
	b := Backend{
		Address: drawAddr(t, "backend", 4), Port: rapid.IntRange(80, 81).Draw(t, "port"), Weight: &weight,
		State: rapid.SampledFrom([]BackendState{Active, Active, Drain, Disabled}).Draw(t, "state"),
	}
	if rapid.IntRange(0, 3).Draw(t, "own check") == 0 {
		b.HealthCheck = drawCheck(t)
	}
	return b
}

func drawCheck(t *rapid.T) *HealthCheck {
	return rapid.SampledFrom([]*HealthCheck{nil, {Type: "tcp"}, {Type: "tcp", Fall: 5}, {Use: "a"}, {Use: "b"}}).Draw(t, "check")
}

func drawService(t *rapid.T) Service {
	s := Service{
		Name: drawName(t), VIP: drawAddr(t, "vip", 6), Port: rapid.IntRange(80, 81).Draw(t, "service port"),
		HealthCheck: drawCheck(t), Notes: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "notes"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "backends") {
		s.Backends = append(s.Backends, drawBackend(t))
	}
	s = s.WithDefaults()
	for s.Validate() != nil { // the same backend twice, or its own VIP: fewer, until it can be
		s.Backends = s.Backends[1:]
	}
	return s
}

func drawRevision(t *rapid.T) *uint64 {
	if rapid.IntRange(0, 3).Draw(t, "precondition") > 0 {
		return nil
	}
	rev := rapid.Uint64Range(0, 10).Draw(t, "if revision")
	return &rev
}

func drawOperation(t *rapid.T) *lbstatepb.Operation {
	op := &lbstatepb.Operation{IfRevision: drawRevision(t)}
	switch rapid.IntRange(0, 9).Draw(t, "operation") {
	case 0, 1, 2, 3:
		s := drawService(t)
		Object{Service: &s}.putInto(op)
	case 4:
		op.Operation = &lbstatepb.Operation_PutBackend{PutBackend: &lbstatepb.PutBackend{
			Service: drawName(t), Backend: drawBackend(t).withDefaults(Service{Forwarding: Masq}).proto(), Frame: rapid.Uint64Range(0, 5).Draw(t, "frame"),
		}}
	case 5:
		op.Operation = &lbstatepb.Operation_DeleteBackend{DeleteBackend: &lbstatepb.DeleteBackend{
			Service: drawName(t), Address: drawAddr(t, "backend", 4).AsSlice()[rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "cut"):], Port: 80,
		}}
	case 6, 7:
		kind := rapid.SampledFrom([]Kind{KindService, KindService, KindCheck, KindProfile, KindSettings, "nothing"}).Draw(t, "kind")
		op.Operation = &lbstatepb.Operation_Delete{Delete: &lbstatepb.Delete{Kind: string(kind), Name: rapid.SampledFrom([]string{"a", "b", "c", "settings", "", "A"}).Draw(t, "deleted")}}
	case 8:
		c := Object{Check: &SharedCheck{Name: rapid.SampledFrom([]string{"a", "b", "", "no name"}).Draw(t, "shared"), Check: HealthCheck{Type: "tcp", Rise: rapid.IntRange(1, 2).Draw(t, "rise")}}}.withDefaults()
		c.putInto(op)
	case 9:
		o := Object{Profile: &DirectorProfile{Name: "a", Priority: rapid.IntRange(0, 2).Draw(t, "priority")}}
		if rapid.Bool().Draw(t, "settings") {
			o = Object{Settings: &Settings{
				HistoryRevisions: rapid.IntRange(1, 8).Draw(t, "history"), ChangeRevisions: rapid.IntRange(1, 20).Draw(t, "changes"),
				IdempotencyKeys: rapid.IntRange(1, 3).Draw(t, "keys"), HistoryBytes: 1 << 20,
			}}.withDefaults()
		}
		o.putInto(op)
	}
	return op
}

// drawCommand draws any command that a Store could have made, and some that
// none would; at is its time.
func drawCommand(t *rapid.T, at int64) []byte {
	c := &lbstatepb.Command{Version: CommandVersion, At: at, Author: rapid.SampledFrom([]string{"", "ann"}).Draw(t, "author")}
	if rapid.IntRange(0, 3).Draw(t, "keyed") == 0 {
		c.Key = rapid.SampledFrom([]string{"k1", "k2", "k3", "k4"}).Draw(t, "key")
		c.Request = rapid.Uint64Range(0, 1).Draw(t, "request")
	}
	switch rapid.IntRange(0, 9).Draw(t, "command") {
	case 0, 1:
		report := &lbstatepb.HealthReport{}
		for range rapid.IntRange(1, 4).Draw(t, "transitions") {
			backend := netip.AddrPortFrom(drawAddr(t, "backend", 4), uint16(rapid.IntRange(80, 81).Draw(t, "port")))
			check := HealthCheck{Type: "tcp"}
			report.Transitions = append(report.Transitions, &lbstatepb.HealthTransition{
				Service: drawName(t), Address: backend.Addr().AsSlice(), Port: uint32(backend.Port()),
				CheckHash: CheckHash(*check.withDefaults(), backend), Term: rapid.Uint64Range(1, 2).Draw(t, "term"),
				To: rapid.SampledFrom([]string{"up", "down", "unknown"}).Draw(t, "to"), At: at, Held: rapid.IntRange(0, 4).Draw(t, "held") == 0,
				Message: rapid.SampledFrom([]string{"", "refused"}).Draw(t, "message"),
			})
		}
		c.Kind = &lbstatepb.Command_Health{Health: report}
	case 2:
		r := &lbstatepb.Rollback{To: rapid.Uint64Range(0, 30).Draw(t, "to"), IfRevision: drawRevision(t)}
		c.Kind = &lbstatepb.Command_Rollback{Rollback: r}
	case 3:
		c.Kind = &lbstatepb.Command_PruneHistory{PruneHistory: &lbstatepb.PruneHistory{Before: rapid.Uint64Range(0, 30).Draw(t, "before")}}
	default:
		tx := &lbstatepb.Transaction{}
		for range rapid.SampledFrom([]int{1, 1, 1, 2, 4}).Draw(t, "operations") {
			tx.Operations = append(tx.Operations, drawOperation(t))
		}
		c.Kind = &lbstatepb.Command_Transaction{Transaction: tx}
	}
	data, err := encode(c)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// drawLog draws the commands of a log, each with the term of its entry.
func drawLog(t *rapid.T) (cmds [][]byte, terms []uint64) {
	term := uint64(1)
	for i := range rapid.IntRange(1, 60).Draw(t, "length") {
		if rapid.IntRange(0, 20).Draw(t, "election") == 0 {
			term = 2
		}
		cmds = append(cmds, drawCommand(t, 1767323045000+int64(i)*1000))
		terms = append(terms, term)
	}
	return cmds, terms
}

// told is what a command's caller gets, as text.
func told(result any) string {
	return strings.ReplaceAll(fmt.Sprintf("%T %v", result, result), "\n", " ")
}
