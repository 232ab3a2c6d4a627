package reconcile

import (
	"context"

	"github.com/ipvskit/ipvskit/lbstate"
)

// Traffic reads the counters of the services that were applied last, and of their
// backends: one listing, during which services can be changed. The connections
// established of a service are those of its backends.
func (r *Reconciler) Traffic(ctx context.Context) ([]lbstate.Traffic, error) {
	if err := r.lock(ctx); err != nil {
		return nil, err
	}
	names := map[Key]string{}
	if r.want != nil {
		for i := range r.want.services {
			names[r.want.services[i].Key] = r.want.services[i].Name
		}
	}
	r.unlock()
	if len(names) == 0 {
		return nil, nil
	}
	services, err := r.cfg.Kernel.Services(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]lbstate.Traffic, 0, len(services))
	for i := range services {
		s := &services[i]
		name := names[s.Key]
		if name == "" {
			continue
		}
		at := len(out)
		out = append(out, traffic(name, s.Counters))
		for j := range s.Destinations {
			d := &s.Destinations[j]
			t := traffic(name, d.Counters)
			t.Backend, t.Active = d.AddrPort(), uint64(d.Active)
			out[at].Active += t.Active
			out = append(out, t)
		}
	}
	return out, nil
}

func traffic(service string, c Counters) lbstate.Traffic {
	return lbstate.Traffic{
		Service: service, Connections: c.Connections,
		PacketsIn: c.PacketsIn, PacketsOut: c.PacketsOut, BytesIn: c.BytesIn, BytesOut: c.BytesOut,
	}
}
