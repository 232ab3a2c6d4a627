package lbstate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

func rev(n uint64) *uint64 { return &n }

func web(edit func(*Service)) Service {
	s := Service{Name: "web", VIP: mustAddr("192.0.2.10"), Port: 80, Backends: []Backend{{Address: mustAddr("10.1.0.1")}}}
	if edit != nil {
		edit(&s)
	}
	return s
}

func TestOutcomes(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	want := func(what string, res WriteResult, err error, outcome string, revision uint64) {
		t.Helper()
		if err != nil || res.Outcome != outcome || res.Revision != revision {
			t.Errorf("%s: %+v, %v; not %s at %d", what, res, err, outcome, revision)
		}
	}
	res, err := n.PutService(ctx, web(nil), WriteOptions{})
	want("new", res, err, Created, 1)
	res, err = n.PutService(ctx, web(nil), WriteOptions{})
	want("same", res, err, Unchanged, 1)
	res, err = n.PutService(ctx, web(func(s *Service) { s.Scheduler = DefaultScheduler }), WriteOptions{})
	want("same but for a default", res, err, Unchanged, 1)
	res, err = n.PutService(ctx, web(func(s *Service) { s.Notes = "x" }), WriteOptions{})
	want("other", res, err, Changed, 2)
	res, err = n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.2")}, WriteOptions{})
	want("new backend", res, err, Changed, 3)
	res, err = n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.2"), Port: 80}, WriteOptions{})
	want("same backend", res, err, Unchanged, 3)
	res, err = n.DeleteBackend(ctx, "web", addrPort("10.1.0.2:80"), WriteOptions{})
	want("backend gone", res, err, Changed, 4)
	if _, err = n.DeleteBackend(ctx, "web", addrPort("10.1.0.2:80"), WriteOptions{}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err = n.PutBackend(ctx, "other", Backend{Address: mustAddr("10.1.0.2")}, WriteOptions{}); !errors.Is(err, ErrNotFound) || !NotApplied(err) {
		t.Error(err)
	}
	res, err = n.DeleteService(ctx, "web", WriteOptions{})
	want("gone", res, err, Deleted, 5)
	if _, err = n.DeleteService(ctx, "web", WriteOptions{}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err = n.DeleteService(ctx, "", WriteOptions{}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := n.Service(ctx, "web", ReadOptions{Stale: true}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	res, err = n.PutService(ctx, web(func(s *Service) { s.Backends = nil }), WriteOptions{})
	if want("warned", res, err, Created, 6); len(res.Warnings) != 1 || res.Warnings[0].Path != "backends" {
		t.Errorf("warnings %v", res.Warnings)
	}
}

func TestPreconditions(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	conflict := func(what string, err error, current uint64) {
		t.Helper()
		var c *ConflictError
		if !errors.As(err, &c) || c.Current != current || c.Object != "service web" || !NotApplied(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := n.PutService(ctx, web(nil), WriteOptions{IfRevision: rev(3)})
	conflict("missing", err, 0)
	_, err = n.PutService(ctx, web(nil), WriteOptions{IfRevision: rev(0)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.PutService(ctx, web(nil), WriteOptions{IfRevision: rev(0)})
	conflict("exists", err, 1)
	_, err = n.PutService(ctx, web(func(s *Service) { s.Notes, s.Revision = "x", 1 }), WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.PutService(ctx, web(func(s *Service) { s.Revision = 1 }), WriteOptions{})
	conflict("changed since", err, 2)
	_, err = n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.2")}, WriteOptions{IfRevision: rev(1)})
	conflict("backend", err, 2)
	_, err = n.DeleteBackend(ctx, "web", addrPort("10.1.0.1:80"), WriteOptions{IfRevision: rev(1)})
	conflict("backend gone", err, 2)
	_, err = n.DeleteService(ctx, "web", WriteOptions{IfRevision: rev(1)})
	conflict("gone", err, 2)
	if _, err = n.DeleteService(ctx, "web", WriteOptions{IfRevision: rev(2)}); err != nil {
		t.Error(err)
	}
}

// Backends come and go one by one; what is left is always a valid service.
func TestBackendsOneByOne(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.put(t, `{name: web, vip: 192.0.2.10, port: 80, tunnel: {type: gre}, sorry_server: {address: 10.1.0.9}, backends: [{address: 10.1.0.1, forwarding: tunnel}, {address: 10.1.0.2}]}`)
	if _, err := n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.3")}, WriteOptions{}); err != nil {
		t.Error(err)
	}
	for _, at := range []string{"10.1.0.1:80", "10.1.0.3:80"} {
		if _, err := n.DeleteBackend(ctx, "web", addrPort(at), WriteOptions{}); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.4"), Forwarding: Tunnel}, WriteOptions{}); err != nil {
		t.Error(err)
	}
	if b := n.service(t, "web").Backends[1]; b.Tunnel == nil || b.Tunnel.Type != GRE {
		t.Errorf("%+v", b)
	}
	if res, err := n.Patch(ctx, Ref{KindService, "web"}, []byte(`{notes: x}`), WriteOptions{}); err != nil || res.Outcome != Changed {
		t.Errorf("%+v, %v", res, err)
	}
	_, err := n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.9")}, WriteOptions{})
	wantFaults(t, "the sorry server", err, "sorry_server: is the same address and port")
	_, err = n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.5"), Port: 81, Forwarding: DR}, WriteOptions{})
	wantFaults(t, "another port", err, "backends[0].port: forwarding dr cannot change the port")
}

// What services may not share, each with its path.
func TestConflictsBetweenServices(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	if _, err := n.Put(ctx, Object{Check: &SharedCheck{Name: "probe", Check: HealthCheck{Type: "tcp"}}}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.put(t, `{name: web, vip: 192.0.2.10, port: 80, health_check: {use: probe}, backends: [{address: 10.1.0.1}], sorry_server: {address: 10.1.0.9}}`)
	n.put(t, `{name: mark, fwmark: 7, family: ipv4}`)
	for text, want := range map[string]string{
		`{name: other, vip: 192.0.2.10, port: 80}`:                                                          "vip: service web has the listener tcp/192.0.2.10:80 already",
		`{name: other, vip: 192.0.2.10, port: 80, protocol: udp}`:                                           "",
		`{name: other, fwmark: 7, family: ipv4}`:                                                            "fwmark: service mark has the listener fwmark/7/ipv4 already",
		`{name: other, fwmark: 7, family: ipv6}`:                                                            "",
		`{name: other, vip: 10.1.0.1, port: 80}`:                                                            "vip: 10.1.0.1 is a backend of service web",
		`{name: other, vip: 10.1.0.9, port: 80}`:                                                            "vip: 10.1.0.9 is a backend of service web",
		`{name: other, vip: 192.0.2.11, port: 80, backends: [{address: 192.0.2.10}]}`:                       "backends[0].address: 192.0.2.10 is the VIP of service web",
		`{name: other, vip: 192.0.2.11, port: 80, sorry_server: {address: 192.0.2.10}}`:                     "sorry_server.address: 192.0.2.10 is the VIP of service web",
		`{name: other, vip: 192.0.2.11, port: 80, health_check: {use: prob}}`:                               `health_check.use: there is no check "prob"`,
		`{name: other, vip: 192.0.2.11, port: 80, backends: [{address: 10.1.0.1, health_check: {use: x}}]}`: `backends[0].health_check.use: there is no check "x"`,
	} {
		s, err := DecodeService([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		_, err = n.PutService(ctx, s, WriteOptions{})
		wantFaults(t, text, err, want)
		if err == nil {
			n.remove(t, "other")
		}
	}
	_, err := n.Delete(ctx, Ref{KindCheck, "probe"}, WriteOptions{})
	wantFaults(t, "a check in use", err, "name: check probe is used by service web")
	_, err = n.PutBackend(ctx, "mark", Backend{Address: mustAddr("192.0.2.10")}, WriteOptions{})
	wantFaults(t, "a backend", err, "backends[0].address: 192.0.2.10 is the VIP of service web")
}

// A transaction is judged by the state that it leaves, and applied whole. INV-15.
func TestTransact(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	a := web(func(s *Service) { s.Name = "a" })
	b := web(func(s *Service) { s.Name, s.Port = "b", 81 })
	check := SharedCheck{Name: "probe", Check: HealthCheck{Type: "tcp"}}
	a.HealthCheck = &HealthCheck{Use: "probe"}
	res, err := n.Transact(ctx, []Operation{
		{Put: Object{Service: &a}, IfRevision: rev(0)}, // the check comes later in the same transaction
		{Put: Object{Service: &b}},
		{PutBackend: &BackendPut{"b", Backend{Address: mustAddr("10.1.0.2")}}},
		{DeleteBackend: &BackendRef{"b", addrPort("10.1.0.1:81")}},
		{Put: Object{Check: &check}},
		{Put: Object{Profile: &DirectorProfile{Name: "edge"}}},
	}, WriteOptions{Author: "ann"})
	if err != nil || res.Revision != 1 || len(res.Objects) != 4 || res.Objects[1].String() != "service/b" || res.Objects[1].Outcome != Created {
		t.Fatalf("%+v, %v", res, err)
	}
	if s := n.service(t, "b"); len(s.Backends) != 1 || s.Backends[0].Key() != "10.1.0.2:81" || s.Revision != 1 {
		t.Errorf("%+v", s)
	}

	// Two services swap their listeners.
	a.Port, b.Port = 81, 80
	if res, err = n.Transact(ctx, []Operation{{Put: Object{Service: &a}}, {Put: Object{Service: &b}}}, WriteOptions{}); err != nil || res.Outcome != Changed {
		t.Fatalf("%+v, %v", res, err)
	}
	// One takes over what another gives up; the check goes with its user.
	c := web(func(s *Service) { s.Name, s.Port = "c", 81 })
	if _, err = n.Transact(ctx, []Operation{
		{Delete: Ref{KindCheck, "probe"}}, {Put: Object{Service: &c}}, {Delete: Ref{KindService, "a"}},
	}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}

	// Whole or not at all, with the faults of all.
	before := n.digest(t)
	d := web(func(s *Service) { s.Name, s.Port = "d", 80 })
	e := web(func(s *Service) { s.Name, s.Port, s.HealthCheck = "e", 80, &HealthCheck{Use: "probe"} })
	_, err = n.Transact(ctx, []Operation{{Put: Object{Service: &d}}, {Put: Object{Service: &e}}}, WriteOptions{})
	var invalid *ValidationError
	if !errors.As(err, &invalid) || len(invalid.Faults) != 3 || invalid.Faults[0].Object != "service/d" || !strings.Contains(err.Error(), "service/e: health_check.use: there is no check") {
		t.Errorf("%v", err)
	}
	d.Port, e.Port, e.HealthCheck = 70000, -1, nil
	both := Operation{Put: Object{Service: &a}, Delete: Ref{KindService, "a"}}
	if _, err = n.Transact(ctx, []Operation{{Put: Object{Service: &d}}, {Put: Object{Service: &e}}, {}, both}, WriteOptions{}); !errors.As(err, &invalid) || len(invalid.Faults) != 6 {
		t.Errorf("%v", err)
	}
	d.Port = 1000
	_, err = n.Transact(ctx, []Operation{{Put: Object{Service: &d}}, {Delete: Ref{KindService, "nobody"}}}, WriteOptions{})
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	_, err = n.Transact(ctx, []Operation{{Put: Object{Service: &d}}, {Put: Object{Service: &c}, IfRevision: rev(77)}}, WriteOptions{})
	var conflict *ConflictError
	if !errors.As(err, &conflict) || conflict.Object != "service c" {
		t.Errorf("%v", err)
	}
	if _, err = n.Transact(ctx, nil, WriteOptions{IfRevision: rev(1)}); !errors.As(err, &invalid) {
		t.Errorf("%v", err)
	}
	if n.digest(t) != before {
		t.Error("something was written")
	}
	// Created and deleted in one is nothing.
	if res, err = n.Transact(ctx, []Operation{{Put: Object{Service: &d}}, {Delete: Ref{KindService, "d"}}}, WriteOptions{}); err != nil || res.Outcome != Unchanged || res.Revision != 3 {
		t.Errorf("%+v, %v", res, err)
	}
	if res, err = n.Transact(ctx, nil, WriteOptions{}); err != nil || res.Outcome != Unchanged {
		t.Errorf("%+v, %v", res, err)
	}
}

// An idempotency key makes a repeated write harmless, whatever came between.
func TestKeys(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	first, err := n.PutService(ctx, web(nil), WriteOptions{Key: "one"})
	if err != nil || first.Outcome != Created {
		t.Fatal(first, err)
	}
	n.put(t, `{name: web, vip: 192.0.2.10, port: 80, notes: later, backends: [{address: 10.1.0.1}]}`)
	again, err := n.PutService(ctx, web(nil), WriteOptions{Key: "one"})
	if err != nil || again.Outcome != Created || again.Revision != 1 {
		t.Error(again, err)
	}
	if s := n.service(t, "web"); s.Notes != "later" {
		t.Error("the repeated write had an effect")
	}
	var reused *KeyReusedError
	if _, err := n.DeleteService(ctx, "web", WriteOptions{Key: "one"}); !errors.As(err, &reused) || !NotApplied(err) {
		t.Error(err)
	}
	// A refused write does not use its key up, an unchanged one does.
	if _, err := n.DeleteService(ctx, "other", WriteOptions{Key: "two"}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := n.DeleteService(ctx, "web", WriteOptions{Key: "two"}); err != nil {
		t.Error(err)
	}
	if _, err := n.DeleteService(ctx, "web", WriteOptions{Key: "two"}); err != nil {
		t.Error(err)
	}
	// Only so many are remembered.
	if _, err := n.Put(ctx, Object{Settings: &Settings{IdempotencyKeys: 2}}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := n.PutService(ctx, web(nil), WriteOptions{Key: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	kept := 0
	if err := n.local.ReadStale(func(tx *bbolt.Tx) error {
		kept = tx.Bucket([]byte(Bucket)).Bucket(keysBucket).Stats().KeyN
		return nil
	}); err != nil || kept != 2 {
		t.Errorf("%d keys are kept, %v", kept, err)
	}
	if _, err := n.DeleteService(ctx, "web", WriteOptions{Key: "0"}); err != nil {
		t.Errorf("a forgotten key: %v", err)
	}
}

func TestWriteOptionsAreBounded(t *testing.T) {
	n := newNode(t)
	_, err := n.PutService(t.Context(), web(nil), WriteOptions{
		Author: strings.Repeat("x", maxAuthor+1), Reason: strings.Repeat("x", maxReason+1), Key: "\xff",
	})
	wantFaults(t, "options", err, "author: is too long, key: is not UTF-8, reason: is too long")
	big := web(nil)
	noise := rand.New(rand.NewPCG(1, 2))
	for i := range 1024 {
		notes := make([]byte, 1500)
		for j := range notes {
			notes[j] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[noise.IntN(62)]
		}
		big.Backends = append(big.Backends[:i], Backend{Address: mustAddr("10.1.0.1"), Port: i + 1, Notes: string(notes)})
	}
	_, err = n.PutService(t.Context(), big, WriteOptions{})
	wantFaults(t, "a big service", err, ": the change is too large")
}

// A whole site goes as one transaction, and makes the same of the state as its
// parts do.
func TestLargeTransaction(t *testing.T) {
	var ops []Operation
	for i := range 10_000 {
		s := benchService(i, 100)
		ops = append(ops, Operation{Put: Object{Service: &s}})
	}
	one, parts := newNode(t), newNode(t)
	tx, _, err := one.transaction(t.Context(), ops)
	if err != nil {
		t.Fatal(err)
	}
	data, err := encodeCommand(&lbstatepb.Command{Version: 1, Kind: &lbstatepb.Command_Transaction{Transaction: tx}})
	if err != nil || len(data) > MaxCommandBytes {
		t.Errorf("%d services take %d bytes, %v", len(ops), len(data), err)
	}

	ops = ops[:1000]
	if res, err := one.Transact(t.Context(), ops, WriteOptions{}); err != nil || res.Revision != 1 || len(res.Objects) != len(ops) {
		t.Fatal(len(res.Objects), err)
	}
	for part := range slices.Chunk(ops, 100) {
		if _, err := parts.Transact(t.Context(), part, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	text := func(n *node) string {
		c, _, err := n.Configuration(t.Context(), ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return plainText(t, c)
	}
	if text(one) != text(parts) {
		t.Error("the states differ")
	}
}

// interrupter lets another writer in before each proposal.
type interrupter struct {
	Replicator
	before func()
}

func (i *interrupter) Propose(ctx context.Context, cmd []byte) (any, uint64, error) {
	if i.before != nil {
		i.before()
	}
	return i.Replicator.Propose(ctx, cmd)
}

// A backend is validated against the service as it is when it is applied.
func TestPutBackendMeetsAnotherWriter(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	n.put(t, `{name: web, vip: 192.0.2.10, port: 80}`)
	between := &interrupter{Replicator: n.local}
	other := NewStore(n.state, between)

	between.before = func() {
		between.before = nil
		n.put(t, `{name: web, vip: 192.0.2.10, port: 80, forwarding: dr}`)
	}
	if _, err := other.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.1")}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if b := n.service(t, "web").Backends[0]; b.Forwarding != DR {
		t.Errorf("forwarding %s", b.Forwarding)
	}
	between.before = func() {
		between.before = nil
		n.put(t, `{name: web, vip: 192.0.2.10, port: 81, forwarding: dr}`)
	}
	_, err := other.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.2"), Port: 80}, WriteOptions{})
	wantFaults(t, "a port that fits no more", err, "backends[0].port: forwarding dr cannot change the port")

	// Other backends do not matter.
	tries := 0
	between.before = func() {
		tries++
		if _, err := n.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.3"), Weight: &tries}, WriteOptions{}); err != nil {
			t.Error(err)
		}
	}
	if _, err := other.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.4")}, WriteOptions{}); err != nil || tries != 1 {
		t.Errorf("%d tries, %v", tries, err)
	}
	// Someone who always comes first.
	between.before = func() {
		tries++
		n.put(t, fmt.Sprintf(`{name: web, vip: 192.0.2.10, port: 81, notes: "%d"}`, tries))
	}
	var conflict *ConflictError
	if _, err := other.PutBackend(ctx, "web", Backend{Address: mustAddr("10.1.0.5")}, WriteOptions{}); !errors.As(err, &conflict) || !NotApplied(err) {
		t.Error(err)
	}
}

// Many writers and readers at once, for the race detector.
func TestConcurrentUse(t *testing.T) {
	n := newNode(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 20 {
				n.putOn(t, fmt.Sprintf("s%d", j%5), 100*i+j%5+1, "")
			}
		})
		wg.Go(func() {
			w := n.Watch(WatchOptions{})
			for at := uint64(0); at < 10; {
				u, err := w.Next(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				at = u.Revision
				for _, s := range u.Services {
					if _, err := s.EncodedDesired(); err != nil {
						t.Error(err)
					}
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				if _, _, err := n.Services(context.Background(), ReadOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// The forms that the HTTP API shows.
func TestJSON(t *testing.T) {
	n := newNode(t)
	n.put(t, checkedWeb)
	n.report(t, "web", "10.1.0.1:80", Up, nil)
	data, err := json.Marshal(n.service(t, "web"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		`"name":"web"`, `"vip":"192.0.2.10"`, `"revision":1`, `"version":2`, `"interval":"2s"`,
		`"backends":[{"address":"10.1.0.1","port":80,"weight":100,"state":"active","forwarding":"masq","effective_weight":100,"reason":"healthy","check":{"type":"tcp"`,
		`"health":{"state":"up","since":`, `"effective_weight":0,"reason":"not yet up"`,
	} {
		if !strings.Contains(string(data), part) {
			t.Errorf("%s is not in %s", part, data)
		}
	}
	data, err = json.Marshal(BatchResult{Revision: 3, Outcome: Changed, Objects: []ObjectOutcome{{Ref{KindService, "a"}, Created, 3}}})
	if want := `{"revision":3,"outcome":"changed","objects":[{"kind":"service","name":"a","outcome":"created","revision":3}]}`; err != nil || string(data) != want {
		t.Errorf("%s, %v", data, err)
	}
}
