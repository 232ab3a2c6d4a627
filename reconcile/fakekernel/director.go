package fakekernel

import (
	"context"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
)

func (k *Kernel) doDirector(op reconcile.Op) error {
	switch op.Kind {
	case reconcile.SetTimeouts:
		return k.setTimeouts(*op.Timeouts)
	case reconcile.Zero:
		return k.zero(op.Service.Key)
	}
	at := slices.IndexFunc(k.ipvs.Daemons, func(d reconcile.SyncDaemon) bool { return d.Role == op.Daemon.Role })
	if op.Kind == reconcile.StopDaemon {
		if at < 0 {
			return syscall.ESRCH
		}
		k.ipvs.Daemons = slices.Delete(k.ipvs.Daemons, at, at+1)
		return nil
	}
	d := *op.Daemon
	_, exists := k.links[d.Interface]
	switch {
	case d.Role != reconcile.SyncMaster && d.Role != reconcile.SyncBackup:
		return syscall.EINVAL
	case d.Group.IsValid() && !d.Group.IsMulticast():
		return syscall.EINVAL
	case !exists:
		return syscall.ENODEV
	case at >= 0:
		return syscall.EEXIST
	}
	// What the kernel chooses where nothing is asked for
	// (net/netfilter/ipvs/ip_vs_sync.c); the payload fits an MTU of 1500.
	if !d.Group.IsValid() {
		d.Group = netip.AddrFrom4([4]byte{224, 0, 0, 81})
	}
	if d.Port == 0 {
		d.Port = 8848
	}
	if d.TTL == 0 {
		d.TTL = 1
	}
	if d.MaxLen == 0 {
		d.MaxLen = 1472
	}
	k.ipvs.Daemons = append(k.ipvs.Daemons, d)
	slices.SortFunc(k.ipvs.Daemons, func(a, b reconcile.SyncDaemon) int { return int(a.Role) - int(b.Role) })
	return nil
}

func (k *Kernel) setTimeouts(t reconcile.Timeouts) error {
	for _, f := range []struct {
		have *time.Duration
		want time.Duration
	}{{&k.ipvs.Timeouts.TCP, t.TCP}, {&k.ipvs.Timeouts.TCPFin, t.TCPFin}, {&k.ipvs.Timeouts.UDP, t.UDP}} {
		if f.want < 0 {
			return syscall.EINVAL
		}
		if f.want != 0 {
			*f.have = f.want.Truncate(time.Second)
		}
	}
	return nil
}

func (k *Kernel) zero(key reconcile.Key) error {
	if key != (reconcile.Key{}) {
		s, ok := k.services[key]
		if !ok {
			return syscall.ESRCH
		}
		s.zero()
		return nil
	}
	for _, s := range k.services {
		s.zero()
	}
	return nil
}

func (s *service) zero() {
	s.counters = reconcile.Counters{}
	for _, d := range s.destinations {
		d.Counters = reconcile.Counters{}
	}
}

// Notify tells of changes of interfaces and addresses.
func (k *Kernel) Notify(ctx context.Context, changed func()) error {
	c := make(chan struct{}, 1)
	k.mu.Lock()
	k.listeners[c] = true
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.listeners, c)
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c:
			changed()
		}
	}
}

// tell is called with mu held.
func (k *Kernel) tell() {
	for c := range k.listeners {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
