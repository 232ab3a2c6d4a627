package reconcile_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/reconcile/fakekernel"
)

// states is a Source of what a test sends.
type states chan reconcile.Desired

var errEnded = errors.New("the source has ended")

func (s states) Next(ctx context.Context) (reconcile.Desired, error) {
	select {
	case d, ok := <-s:
		if !ok {
			return d, errEnded
		}
		return d, nil
	case <-ctx.Done():
		return reconcile.Desired{}, ctx.Err()
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fakekernel.New()
		var reports []reconcile.Report
		r := newReconciler(t, reconcile.Config{Kernel: k, RetryMin: time.Second, OnReport: func(r reconcile.Report) { reports = append(reports, r) }})
		src, done := make(states), make(chan error, 1)
		go func() { done <- r.Follow(t.Context(), src) }()
		src <- desired(web("192.0.2.10:80", 100))
		synctest.Wait()
		if len(reports) != 1 || !reports[0].Converged || !strings.Contains(k.Dump(), "192.0.2.10:80") {
			t.Fatalf("reports %v, kernel\n%s", reports, k.Dump())
		}

		// A kernel that cannot be read is asked again; a newer state is taken at once.
		k.InjectRead(func(string) error { return syscall.ENOBUFS })
		src <- desired(web("192.0.2.11:80", 100))
		time.Sleep(500 * time.Millisecond)
		k.InjectRead(nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(reports); n < 2 || !strings.Contains(k.Dump(), "192.0.2.11:80") || strings.Contains(k.Dump(), "192.0.2.10:80") {
			t.Errorf("%d reports, kernel\n%s", n, k.Dump())
		}
		close(src)
		if err := <-done; !errors.Is(err, errEnded) {
			t.Errorf("Follow: %v", err)
		}
	})
}

func TestFollowEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReconciler(t, reconcile.Config{Kernel: fakekernel.New()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Follow(ctx, make(states)) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Follow: %v", err)
		}
	})
}
