package lbstate_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"
	"time"

	"github.com/ipvskit/ipvskit/lbstate"
)

// open returns a store on a database of its own. In a cluster the replicator is
// raftstore's.
func open() (*lbstate.Store, func()) {
	dir, err := os.MkdirTemp("", "lbstate")
	if err != nil {
		log.Fatal(err)
	}
	state := lbstate.New(lbstate.Config{})
	local, err := lbstate.NewLocal(dir, state)
	if err != nil {
		log.Fatal(err)
	}
	return lbstate.NewStore(state, local), func() {
		local.Close()
		os.RemoveAll(dir)
	}
}

// put stores services given as YAML.
func put(store *lbstate.Store, texts ...string) {
	for _, text := range texts {
		s, err := lbstate.DecodeService([]byte(text))
		if err != nil {
			log.Fatal(err)
		}
		if _, err := store.PutService(context.Background(), s, lbstate.WriteOptions{Author: "ann"}); err != nil {
			log.Fatal(err)
		}
	}
}

func ExampleStore_PutService() {
	store, done := open()
	defer done()
	ctx := context.Background()
	web := lbstate.Service{
		Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Port: 80,
		Backends: []lbstate.Backend{{Address: netip.MustParseAddr("10.1.0.1")}},
	}
	res, err := store.PutService(ctx, web, lbstate.WriteOptions{Author: "ann", Reason: "first"})
	fmt.Println(res.Outcome, res.Revision, err)

	// An unchanged write makes no revision.
	res, err = store.PutService(ctx, web, lbstate.WriteOptions{})
	fmt.Println(res.Outcome, res.Revision, err)

	// Everything that is wrong is said at once.
	bad := 70000
	web.Scheduler, web.Backends[0].Weight = "best", &bad
	var invalid *lbstate.ValidationError
	if _, err = store.PutService(ctx, web, lbstate.WriteOptions{}); errors.As(err, &invalid) {
		for _, f := range invalid.Faults {
			fmt.Println(f.Path, "is", f.Found)
		}
	}
	// Output:
	// created 1 <nil>
	// unchanged 1 <nil>
	// backends[0].weight is 70000
	// scheduler is best
}

func ExampleStore_Transact() {
	store, done := open()
	defer done()
	put(store, `{name: a, vip: 192.0.2.10, port: 80}`, `{name: b, vip: 192.0.2.11, port: 80}`)
	a := lbstate.Service{Name: "a", VIP: netip.MustParseAddr("192.0.2.11"), Port: 80}
	b := lbstate.Service{Name: "b", VIP: netip.MustParseAddr("192.0.2.10"), Port: 80}
	// Two services swap their listeners: one after the other they could not.
	res, err := store.Transact(context.Background(), []lbstate.Operation{
		{Put: lbstate.Object{Service: &a}},
		{Put: lbstate.Object{Service: &b}},
	}, lbstate.WriteOptions{Author: "ann", Key: "swap-1"})
	fmt.Println(res.Outcome, "at", res.Revision, err)
	for _, o := range res.Objects {
		fmt.Println(o.Ref, o.Outcome)
	}
	// Output:
	// changed at 3 <nil>
	// service/a changed
	// service/b changed
}

func ExampleStore_Patch() {
	store, done := open()
	defer done()
	put(store, `{name: web, vip: 192.0.2.10, port: 80, notes: old}`)
	ref := lbstate.Ref{Kind: lbstate.KindService, Name: "web"}
	res, err := store.Patch(context.Background(), ref, []byte(`{"scheduler": "rr", "notes": null}`), lbstate.WriteOptions{})
	fmt.Println(res.Outcome, err)
	web, err := store.Service(context.Background(), "web", lbstate.ReadOptions{})
	fmt.Printf("%s %q %v\n", web.Scheduler, web.Notes, err)
	// Output:
	// changed <nil>
	// rr "" <nil>
}

func ExampleStore_ReportHealth() {
	store, done := open()
	defer done()
	ctx := context.Background()
	put(store, `{name: web, vip: 192.0.2.10, port: 80, health_check: {type: tcp}, backends: [{address: 10.1.0.1}, {address: 10.1.0.2}]}`)
	web, err := store.Service(ctx, "web", lbstate.ReadOptions{})
	if err != nil {
		log.Fatal(err)
	}
	check := web.Checks()[0]
	err = store.ReportHealth(ctx, []lbstate.HealthTransition{{
		Service: "web", Backend: check.Backend, CheckHash: check.Hash,
		Term: 1, To: lbstate.Up, At: time.Now(),
	}})
	if err != nil {
		log.Fatal(err)
	}
	if web, err = store.Service(ctx, "web", lbstate.ReadOptions{}); err != nil {
		log.Fatal(err)
	}
	fmt.Println("revision", web.Revision, "version", web.Version)
	for _, b := range web.Backends {
		fmt.Println(b.Key(), b.EffectiveWeight, b.Reason)
	}
	// Output:
	// revision 1 version 2
	// 10.1.0.1:80 100 healthy
	// 10.1.0.2:80 0 not yet up
}

func ExampleStore_Watch() {
	store, done := open()
	defer done()
	ctx := context.Background()
	put(store, `{name: a, vip: 192.0.2.10, port: 80}`, `{name: b, vip: 192.0.2.11, port: 80}`)
	show := func(u lbstate.Update) {
		fmt.Print("full: ", u.Full, ", at ", u.Revision, ":")
		for _, s := range u.Services {
			fmt.Print(" ", s.Name)
		}
		fmt.Println(" removed:", u.Removed)
	}
	watcher := store.Watch(lbstate.WatchOptions{})
	u, err := watcher.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	show(u)
	// A slow watcher gets each service once, as it is then.
	put(store, `{name: a, vip: 192.0.2.10, port: 81}`, `{name: a, vip: 192.0.2.10, port: 82}`)
	if _, err := store.DeleteService(ctx, "b", lbstate.WriteOptions{}); err != nil {
		log.Fatal(err)
	}
	if u, err = watcher.Next(ctx); err != nil {
		log.Fatal(err)
	}
	show(u)
	// Output:
	// full: true, at 2: a b removed: []
	// full: false, at 5: a removed: [b]
}

func ExampleStore_Diff() {
	store, done := open()
	defer done()
	put(store,
		`{name: web, vip: 192.0.2.10, port: 80, backends: [{address: 10.1.0.1}]}`,
		`{name: web, vip: 192.0.2.10, port: 80, scheduler: rr, backends: [{address: 10.1.0.1, weight: 7}]}`,
	)
	diffs, err := store.Diff(context.Background(), 1, 2, lbstate.ReadOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range diffs {
		fmt.Println(d.Action, d.Ref)
		for _, f := range d.Fields {
			fmt.Println(" ", f)
		}
	}
	// Output:
	// change service/web
	//   backends[10.1.0.1:80].weight: 100 → 7
	//   scheduler: "wlc" → "rr"
}

func ExampleStore_Rollback() {
	store, done := open()
	defer done()
	ctx := context.Background()
	put(store, `{name: web, vip: 192.0.2.10, port: 80}`, `{name: web, vip: 192.0.2.10, port: 8080}`)
	res, err := store.Rollback(ctx, 1, lbstate.WriteOptions{Author: "bob", Reason: "wrong port"})
	fmt.Println(res.Outcome, "at", res.Revision, err)
	history, err := store.History(ctx, lbstate.HistoryOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range history {
		fmt.Println(e.Revision, e.Author, e.Reason, e.Objects[0].Outcome)
	}
	then, err := store.At(ctx, 2, lbstate.ReadOptions{})
	fmt.Println(then.Services[0].Port, err)
	// Output:
	// changed at 3 <nil>
	// 3 bob wrong port changed
	// 2 ann  changed
	// 1 ann  created
	// 8080 <nil>
}

func ExampleStore_ApplyPlan() {
	store, done := open()
	defer done()
	ctx := context.Background()
	put(store, `{name: old, vip: 192.0.2.99, port: 80}`)
	set, err := lbstate.DecodeConfiguration([]byte(`
checks:
  - {name: alive, check: {type: tcp}}
services:
  - name: web
    vip: 192.0.2.10
    port: 80
    health_check: {use: alive}
    backends: [{address: 10.1.0.1}]
`))
	if err != nil {
		log.Fatal(err)
	}
	pruning := lbstate.PlanOptions{Prune: true}
	plan, err := store.Plan(ctx, set, pruning)
	if err != nil {
		log.Fatal(err)
	}
	for _, step := range plan.Steps {
		fmt.Println(step.Action, step.Ref)
	}
	// Whoever reviewed the plan passes its hash on.
	res, err := store.ApplyPlan(ctx, set, pruning, plan.Hash, lbstate.WriteOptions{Author: "ann"})
	fmt.Println(res.Outcome, err)
	_, err = store.ApplyPlan(ctx, set, pruning, plan.Hash, lbstate.WriteOptions{Author: "ann"})
	var changed *lbstate.PlanChangedError
	fmt.Println(errors.As(err, &changed), len(changed.Plan.Steps), "steps are left")
	// Output:
	// create check/alive
	// create service/web
	// delete service/old
	// changed <nil>
	// true 0 steps are left
}

func ExampleConfiguration_YAML() {
	store, done := open()
	defer done()
	put(store, `{name: dns, vip: 192.0.2.53, port: 53, protocol: udp}`)
	c, _, err := store.Configuration(context.Background(), lbstate.ReadOptions{})
	if err != nil {
		log.Fatal(err)
	}
	text, err := c.YAML()
	fmt.Print(string(text), err)
	// Output:
	// services:
	// - forwarding: masq
	//   name: dns
	//   port: 53
	//   protocol: udp
	//   revision: 1
	//   scheduler: wlc
	//   snat: local
	//   vip: 192.0.2.53
	// <nil>
}

func ExampleImportIPVSADM() {
	set, notes := lbstate.ImportIPVSADM([]byte(`
-A -t 192.0.2.10:80 -s wlc
-a -t 192.0.2.10:80 -r 10.1.0.1:8080 -m -w 100
-a -t 192.0.2.10:80 -r backend2:8080 -m -w 100
`))
	s := set.Services[0]
	fmt.Println(s.Name, s.Scheduler, s.Backends[0].Key(), s.Backends[0].Forwarding)
	for _, n := range notes {
		fmt.Println(n)
	}
	// Output:
	// tcp-192.0.2.10-80 wlc 10.1.0.1:8080 masq
	// line 4: -r backend2:8080: is not an address and a port in numbers: save with -n; the server is left out
}

func ExampleImportKeepalived() {
	set, notes := lbstate.ImportKeepalived([]byte(`
virtual_server 192.0.2.10 80 {
    delay_loop 6
    lb_algo wlc
    lb_kind DR
    real_server 10.1.0.1 80 {
        weight 3
        TCP_CHECK {
            connect_timeout 3
        }
        notify_up "/usr/local/bin/hello"
    }
}
`))
	s := set.Services[0]
	check := s.Backends[0].HealthCheck
	fmt.Println(s.Name, s.Forwarding, check.Type, "every", check.Interval, "within", check.Timeout)
	for _, n := range notes {
		fmt.Println(n)
	}
	// Output:
	// tcp-192.0.2.10-80 dr tcp every 6s within 3s
	// line 11: notify_up /usr/local/bin/hello: has no counterpart; it is left out
}

func ExampleEffective() {
	s := lbstate.Service{
		Name: "web", VIP: netip.MustParseAddr("192.0.2.10"), Port: 80, HealthCheck: &lbstate.HealthCheck{Type: "tcp"},
		SorryServer: &lbstate.SorryServer{Address: netip.MustParseAddr("10.1.0.9")},
		Backends:    []lbstate.Backend{{Address: netip.MustParseAddr("10.1.0.1")}},
	}.WithDefaults()
	down := map[netip.AddrPort]lbstate.BackendHealth{netip.MustParseAddrPort("10.1.0.1:80"): {State: lbstate.Down}}
	for _, b := range lbstate.Desired(lbstate.Effective(s, nil, down, 1)).Backends {
		fmt.Println(b.Address, b.Weight, b.Reason)
	}
	// Output:
	// 10.1.0.1 0 unhealthy
	// 10.1.0.9 100 sorry server in charge
}
