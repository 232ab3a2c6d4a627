// Command embed is a control plane of one's own: each YAML file in a directory
// is a service, and this host's kernel follows the files. Backends are checked;
// what was accepted survives a restart; changes are made in place.
//
//	go run ./examples/embed -fake DIRECTORY
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

func main() {
	fake := flag.Bool("fake", false, "work on an in-memory kernel, and print it")
	data := flag.String("data", "embed_data", "directory of the store")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, flag.Arg(0), *data, *fake, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir, data string, fake bool, out io.Writer) error {
	// A store without a transport is a cluster of one.
	state := lbstate.New(lbstate.Config{})
	store, err := raftstore.Open(raftstore.Config{Dir: data, StateMachines: map[string]raftstore.StateMachine{lbstate.Bucket: state}})
	if err != nil {
		return err
	}
	lb := lbstate.NewStore(state, store.Machine(lbstate.Bucket))
	checks, err := lbchecks.New(lbchecks.Config{Store: lb, Leadership: store})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	var kernel reconcile.Kernel = fakekernel.New()
	if !fake {
		if kernel, err = reconcile.NewLinux(reconcile.LinuxConfig{}); err != nil {
			return errors.Join(err, store.Close())
		}
	}
	director, err := reconcile.New(reconcile.Config{Kernel: kernel, Journal: reconcile.FileJournal(filepath.Join(data, "scope"))})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return store.Run(ctx) })
	parts.Go(func() error { return checks.Run(ctx) })
	parts.Go(func() error { return director.Run(ctx) })
	parts.Go(func() error {
		if err := store.WaitReady(ctx); err != nil {
			return err
		}
		parts.Go(func() error { return readFiles(ctx, lb, dir, out) })
		return follow(ctx, lb, director, kernel, out)
	})
	err = parts.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil // as asked
	}
	return errors.Join(err, store.Close())
}

// readFiles makes the state equal to the files, whenever one has changed. A
// file that cannot be used leaves its service as it is.
func readFiles(ctx context.Context, lb *lbstate.Store, dir string, out io.Writer) error {
	services, _, err := lb.Services(ctx, lbstate.ReadOptions{})
	if err != nil {
		return err
	}
	known := map[string]string{} // text by name of the service
	for _, s := range services {
		known[s.Name] = ""
	}
	for tick := time.Tick(200 * time.Millisecond); ctx.Err() == nil; <-tick {
		files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		if err != nil {
			return err
		}
		now := map[string]string{}
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), ".yaml")
			text, err := os.ReadFile(file)
			if now[name] = string(text); err == nil && now[name] != known[name] {
				err = put(ctx, lb, name, text)
			}
			if err != nil {
				fmt.Fprintf(out, "%s: %v\n", file, err)
			}
		}
		for name := range known {
			if _, stays := now[name]; !stays {
				if _, err := lb.DeleteService(ctx, name, lbstate.WriteOptions{Author: "embed"}); err != nil && !errors.Is(err, lbstate.ErrNotFound) {
					return err
				}
			}
		}
		known = now
	}
	return nil
}

func put(ctx context.Context, lb *lbstate.Store, name string, text []byte) error {
	s, err := lbstate.DecodeService(text)
	if err != nil {
		return err
	}
	s.Name = name
	_, err = lb.PutService(ctx, s, lbstate.WriteOptions{Author: "embed"})
	return err
}

// follow makes the kernel equal to the state, at each change of services or of
// their backends' health.
func follow(ctx context.Context, lb *lbstate.Store, director *reconcile.Reconciler, kernel reconcile.Kernel, out io.Writer) error {
	desired := map[string]lbstate.DesiredService{}
	for watcher := lb.Watch(lbstate.WatchOptions{}); ; {
		u, err := watcher.Next(ctx)
		if err != nil {
			return err
		}
		if u.Full {
			clear(desired)
		}
		for _, name := range u.Removed {
			delete(desired, name)
		}
		for _, s := range u.Services {
			desired[s.Name] = lbstate.Desired(s)
		}
		services := slices.SortedFunc(maps.Values(desired), func(a, b lbstate.DesiredService) int { return cmp.Compare(a.Name, b.Name) })
		report, err := director.Apply(ctx, lbstate.View{Revision: u.Revision, Services: services})
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "revision %d: %d services, %d operations, converged: %t\n", report.Revision, report.Services, report.Operations, report.Converged)
		if k, ok := kernel.(*fakekernel.Kernel); ok {
			fmt.Fprint(out, k.Dump())
		}
	}
}
