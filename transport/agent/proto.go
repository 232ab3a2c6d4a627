package agent

import (
	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

func appliedToProto(a lbstate.Applied) *agentpb.Applied {
	p := &agentpb.Applied{
		Revision: a.Revision, Converged: a.Converged, Simulated: a.Simulated, Services: uint32(a.Services),
		Operations: uint32(a.Operations), Draining: uint32(a.Draining), Collisions: a.Collisions,
	}
	if d := a.Profile; d != nil {
		p.Profile = &agentpb.AppliedProfile{Name: d.Name, Revision: d.Revision}
		for _, o := range d.Overridden[:min(len(d.Overridden), maxFailures)] {
			p.Profile.Overridden = append(p.Profile.Overridden, &agentpb.Overridden{Field: o.Field, Profile: o.Profile, Host: o.Host})
		}
	}
	for _, f := range a.Failures {
		p.Failures = append(p.Failures, &agentpb.Failure{Object: f.Object, Op: f.Op, Reason: f.Reason})
	}
	return p
}

func appliedFromProto(p *agentpb.Applied) lbstate.Applied {
	a := lbstate.Applied{
		Revision: p.GetRevision(), Converged: p.GetConverged(), Simulated: p.GetSimulated(), Services: int(p.GetServices()),
		Operations: int(p.GetOperations()), Draining: int(p.GetDraining()), Collisions: p.GetCollisions(),
	}
	for _, f := range p.GetFailures() {
		if len(a.Failures) == maxFailures {
			break
		}
		a.Failures = append(a.Failures, lbstate.Failure{Object: clip(f.GetObject()), Op: clip(f.GetOp()), Reason: clip(f.GetReason())})
	}
	if d := p.GetProfile(); d != nil {
		a.Profile = &lbstate.AppliedProfile{Name: clip(d.GetName()), Revision: d.GetRevision()}
		for _, o := range d.GetOverridden()[:min(len(d.GetOverridden()), maxFailures)] {
			a.Profile.Overridden = append(a.Profile.Overridden, lbstate.Overridden{Field: clip(o.GetField()), Profile: clip(o.GetProfile()), Host: clip(o.GetHost())})
		}
	}
	a = bounded(a)
	for i, c := range a.Collisions {
		a.Collisions[i] = clip(c)
	}
	return a
}

// maxFailures are told of one account; more would say no more.
const maxFailures = 100

// bounded keeps an account small enough for one message.
func bounded(a lbstate.Applied) lbstate.Applied {
	a.Failures = a.Failures[:min(len(a.Failures), maxFailures)]
	a.Collisions = a.Collisions[:min(len(a.Collisions), maxFailures)]
	return a
}
