package lbstate

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// testdata/commands-vN.txt holds commands of version N as they rest in logs.
// Each program to come must still read them, and make the same of them. The
// file only grows: -update adds commands that it lacks, and never changes one.
func TestCorpus(t *testing.T) {
	for _, c := range []struct {
		file     string
		commands []namedCommand
	}{
		{"commands-v1", corpus()},
		{"commands-v2", corpus2()},
	} {
		t.Run(c.file, func(t *testing.T) { testCorpus(t, filepath.Join("testdata", c.file), c.commands) })
	}
}

func testCorpus(t *testing.T, file string, all []namedCommand) {
	path := file + ".txt"
	names, commands := readCorpus(t, path)
	for _, c := range all {
		data, err := encode(c.command)
		if err != nil {
			t.Fatal(err)
		}
		stored, ok := commands[c.name]
		switch {
		case !ok && *update:
			names, commands[c.name] = append(names, c.name), data
		case !ok:
			t.Errorf("%s is not in the corpus: run with -update", c.name)
		case string(stored) != string(data) && c.command.GetDeflated() == nil: // the compressor may change
			t.Errorf("%s is encoded otherwise than in the corpus", c.name)
		}
	}
	m := openMachine(t, filepath.Join(t.TempDir(), "db"))
	defer m.db.Close()
	var told strings.Builder
	for _, name := range names {
		fmt.Fprintf(&told, "%s: %v\n", name, m.apply(t, 1, commands[name])[0])
	}
	if err := m.db.View(func(tx *bbolt.Tx) error {
		text, err := dump(tx)
		told.WriteString(text)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&told, "digest %#x\n", m.digest(t))
	if *update {
		writeCorpus(t, path, names, commands)
	}
	golden(t, file+".golden", told.String())
}

func readCorpus(t *testing.T, path string) (names []string, commands map[string][]byte) {
	t.Helper()
	commands = map[string][]byte{}
	f, err := os.Open(path)
	if os.IsNotExist(err) && *update {
		return nil, commands
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, text, ok := strings.Cut(lines.Text(), ": ")
		data, err := hex.DecodeString(text)
		if !ok || err != nil {
			t.Fatalf("%s: %q: %v", path, lines.Text(), err)
		}
		names, commands[name] = append(names, name), data
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return names, commands
}

func writeCorpus(t *testing.T, path string, names []string, commands map[string][]byte) {
	t.Helper()
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "%s: %x\n", name, commands[name])
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// golden compares a text with a file, or writes it there.
func golden(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text == string(want) {
		return
	}
	got, wanted := strings.Split(text, "\n"), strings.Split(string(want), "\n")
	for i := range got {
		if i >= len(wanted) || got[i] != wanted[i] {
			t.Fatalf("%s:%d:\n got %s\nwant %s", path, i+1, got[i], strings.Join(wanted[min(i, len(wanted)):min(i+1, len(wanted))], ""))
		}
	}
	t.Fatalf("%s: ends after %d lines, not %d", path, len(got), len(wanted))
}

type namedCommand struct {
	name    string
	command *lbstatepb.Command
}

// corpus has each kind of command and of operation, with every field set
// somewhere.
func corpus() (all []namedCommand) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC).UnixMilli()
	add := func(name string, c *lbstatepb.Command) {
		at += 1000
		c.Version, c.At = 1, at
		all = append(all, namedCommand{name, c})
	}
	transaction := func(ops ...*lbstatepb.Operation) *lbstatepb.Command {
		return &lbstatepb.Command{Author: "ann", Reason: "because", Kind: &lbstatepb.Command_Transaction{Transaction: &lbstatepb.Transaction{Operations: ops}}}
	}
	put := func(o Object) *lbstatepb.Operation {
		op := &lbstatepb.Operation{}
		o.withDefaults().putInto(op)
		return op
	}
	weight := 65535
	seconds := func(n int) Duration { return Duration(time.Duration(n) * time.Second) }
	backend := Backend{
		Address: netip.MustParseAddr("2001:db8:1::1"), Port: 5060, Weight: &weight, State: Drain, DrainTimeout: seconds(60),
		Forwarding: Tunnel, Tunnel: &TunnelOptions{Type: GUE, Port: 6080, Checksum: ChecksumRemote}, UpperThreshold: 1000, LowerThreshold: 900,
		HealthCheck: &HealthCheck{Type: "http", Port: 81, Path: "/healthz", Host: "example.net", ExpectStatus: "200,204", ExpectBody: "ok", Interval: seconds(3), DownInterval: seconds(30), Timeout: seconds(2), Rise: 4, Fall: 5, Initial: InitialUp},
		Notes:       "first",
	}
	full := Service{
		Name: "full", Labels: map[string]string{"team": "a", "env": "test"}, VIP: netip.MustParseAddr("2001:db8::10"), Port: 5060, Protocol: UDP,
		Scheduler: "mh", SchedulerFlags: []string{"mh-port", "mh-fallback"}, Forwarding: Tunnel, Tunnel: &TunnelOptions{Type: GRE, Checksum: ChecksumOn},
		Persistence: &Persistence{Timeout: seconds(90), Prefix: 64, Engine: "sip"}, OnePacket: true, SNAT: SNATOff,
		Agents: map[string]string{"site": "east"}, HealthCheck: &HealthCheck{Use: "probe"}, MinHealthy: 2,
		SorryServer: &SorryServer{Address: netip.MustParseAddr("2001:db8:1::9")}, Notes: "all of it",
		Backends: []Backend{backend, {Address: netip.MustParseAddr("2001:db8:1::2")}},
	}
	mark := Service{Name: "mark", FWMark: 7, Family: IPv4, FailOpen: true, Backends: []Backend{{Address: netip.MustParseAddr("10.1.0.1"), State: Disabled, HealthCheck: &HealthCheck{Type: "tcp", Address: netip.MustParseAddr("10.1.0.2")}}}}
	add("check", transaction(put(Object{Check: &SharedCheck{Name: "probe", Check: HealthCheck{Type: "http", URL: "https://example.net/"}, Notes: "shared"}})))
	add("services", transaction(put(Object{Service: &full}), put(Object{Service: &mark})))
	add("profile", transaction(put(Object{Profile: &DirectorProfile{
		Name: "edge", Agents: map[string]string{"site": "east"}, Priority: -3, Timeouts: &Timeouts{seconds(900), seconds(120), seconds(300)},
		SyncDaemons: []SyncDaemon{{Role: "master", Interface: "eth0", ID: 5, MaxLength: 1400, Group: netip.MustParseAddr("224.0.0.81"), Port: 8848, TTL: 2}},
		Sysctls:     map[string]string{"net.ipv4.vs.conntrack": "1"}, ReleaseVIPs: true, AllowedPrefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		SNAT: SNATAll, DrainTimeout: seconds(30), Guard: &Guard{MaxServices: 5, MaxPercent: 20}, Notes: "edge",
	}})))
	add("settings", transaction(put(Object{Settings: &Settings{ChangeRevisions: 100, HistoryRevisions: 50, HistoryBytes: 1 << 20, HistoryAge: seconds(86400), IdempotencyKeys: 10}})))
	b := backend
	b.Address = netip.MustParseAddr("2001:db8:1::3")
	add("put backend", transaction(&lbstatepb.Operation{Operation: &lbstatepb.Operation_PutBackend{PutBackend: &lbstatepb.PutBackend{Service: "full", Backend: b.proto(), Frame: 2}}}))
	keyed := transaction(&lbstatepb.Operation{IfRevision: proto.Uint64(5), Operation: &lbstatepb.Operation_DeleteBackend{DeleteBackend: &lbstatepb.DeleteBackend{Service: "full", Address: b.Address.AsSlice(), Port: 5060}}})
	keyed.Key, keyed.Request = "key", 0x123456789abcdef0
	add("keyed", keyed)
	add("keyed again", keyed)
	shared := HealthCheck{Type: "http", URL: "https://example.net/"}
	at2 := netip.MustParseAddrPort("[2001:db8:1::2]:5060")
	add("health", &lbstatepb.Command{Kind: &lbstatepb.Command_Health{Health: &lbstatepb.HealthReport{Transitions: []*lbstatepb.HealthTransition{
		{Service: "full", Address: at2.Addr().AsSlice(), Port: 5060, CheckHash: CheckHash(*shared.withDefaults(), at2), Term: 1, To: "up", At: at, Message: "ok", Held: true},
		{Service: "full", Address: at2.Addr().AsSlice(), Port: 5060, CheckHash: 1, Term: 1, To: "down", At: at},
	}}}})
	add("delete", transaction(&lbstatepb.Operation{Operation: &lbstatepb.Operation_Delete{Delete: &lbstatepb.Delete{Kind: "service", Name: "mark"}}}))
	add("rollback", &lbstatepb.Command{Author: "bob", Kind: &lbstatepb.Command_Rollback{Rollback: &lbstatepb.Rollback{To: 3, IfRevision: proto.Uint64(8)}}})
	deflated := transaction(put(Object{Service: &Service{Name: "deflated", VIP: netip.MustParseAddr("192.0.2.77"), Port: 77}}))
	var small bytes.Buffer
	w := must(flate.NewWriter(&small, flate.BestSpeed))
	must(w.Write(must(encode(deflated.GetTransaction()))))
	if err := w.Close(); err != nil {
		panic(err)
	}
	deflated.Kind = &lbstatepb.Command_Deflated{Deflated: small.Bytes()}
	add("prune", &lbstatepb.Command{Kind: &lbstatepb.Command_PruneHistory{PruneHistory: &lbstatepb.PruneHistory{Before: 4}}})
	add("deflated", deflated)
	return all
}

// corpus2 has what came with version 2: checks of every type with each option.
func corpus2() (all []namedCommand) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMilli()
	for i, text := range checkSeeds {
		shared, err := DecodeCheck([]byte(fmt.Sprintf(`{name: check-%d, check: %s}`, i, text)))
		if err != nil {
			panic(err)
		}
		op := &lbstatepb.Operation{}
		Object{Check: &shared}.withDefaults().putInto(op)
		c := transactionCommand(&lbstatepb.Transaction{Operations: []*lbstatepb.Operation{op}})
		c.Version, c.At = 2, at+int64(i)
		all = append(all, namedCommand{fmt.Sprintf("check %d", i), c})
	}
	return all
}
