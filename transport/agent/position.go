package agent

import (
	"fmt"

	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// position is what an agent holds of its view.
type position struct {
	cluster uint64
	have    uint64 // revision; 0: nothing
	full    bool   // only the whole state helps
	// resume says that the agent comes with what it had: claimed is its digest.
	resume   bool
	claimed  uint64
	restores int // of the moment before; -1: none
	profiles bool
}

// next is what the agent lacks, or nil; where that must be read from the store,
// read does it, and its result is for fitting to judge.
func (p *position) next(v *view) (e *encoding, read func() (*encoding, error), err error) {
	now, err := v.state()
	if err != nil || now == nil {
		return nil, nil, err
	}
	// What the agent holds may be of a state that is no more.
	p.full = p.full || p.restores >= 0 && now.restores != p.restores
	p.restores = now.restores
	if p.resume && !p.full && p.have == now.revision && p.claimed != now.sum(p.profiles) {
		p.full = true
	}
	// A view that was acquired later begins after what the agent has, and one that
	// goes on forgets it while the agent is busy.
	if p.full || !now.covers(p.have) && (p.resume || p.have < now.revision) {
		cluster, since, full, profiles := p.cluster, p.have, p.full, p.profiles
		return nil, func() (*encoding, error) { return v.read(now, cluster, since, full, profiles) }, nil
	}
	if p.have < now.revision {
		e, err = now.delta(p.cluster, p.have, p.profiles)
	}
	if err == nil {
		e, err = p.fitting(e)
	}
	return e, nil, err
}

// fitting is what of e the agent lacks, which is nil where it holds it all.
func (p *position) fitting(e *encoding) (*encoding, error) {
	if e != nil && e.revision < p.have {
		return nil, &farewell{agentpb.Bye_BEHIND, fmt.Sprintf("this server is at revision %d, the agent has seen %d", e.revision, p.have)}
	}
	if e != nil && e.empty && p.resume && p.claimed == e.digest {
		e = nil
	}
	p.resume = false
	return e, nil
}

// acked takes the agent's word on the update in flight.
func (p *position) acked(ack *agentpb.Ack) error {
	p.full = false
	switch {
	case !covers(ack.GetKind()) && ack.GetWantFull():
		p.full = true
	case ack.GetKind() == agentpb.Ack_REJECTED:
		return &farewell{agentpb.Bye_REFUSED, "the agent rejected the update: " + ack.GetReason()}
	default: // received, or held until someone releases it
		p.have = ack.GetRevision()
	}
	return nil
}
