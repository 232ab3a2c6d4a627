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
		a.Failures = append(a.Failures, lbstate.Failure{Object: f.GetObject(), Op: f.GetOp(), Reason: f.GetReason()})
	}
	return a
}

// bounded keeps an account small enough for one message.
func bounded(a lbstate.Applied) lbstate.Applied {
	const most = 100
	a.Failures = a.Failures[:min(len(a.Failures), most)]
	a.Collisions = a.Collisions[:min(len(a.Collisions), most)]
	return a
}
