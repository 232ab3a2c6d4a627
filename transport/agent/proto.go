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
