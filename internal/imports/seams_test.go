package imports

import (
	"github.com/ipvskit/ipvskit/healthcheck/lbchecks"
	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/raftstore/formation"
	"github.com/ipvskit/ipvskit/reconcile"
	"github.com/ipvskit/ipvskit/transport/agent"
	"github.com/ipvskit/ipvskit/transport/identity"
	"github.com/ipvskit/ipvskit/transport/peer"
)

// Each seam, wired without an adapter.
var (
	_ raftstore.StateMachine = (*lbstate.State)(nil)
	_ raftstore.Versioned    = (*lbstate.State)(nil)
	_ raftstore.StateMachine = (*access.State)(nil)
	_ raftstore.Versioned    = (*access.State)(nil)
	_ raftstore.Transport    = (*peer.Transport)(nil)
	_ formation.Store        = (*raftstore.Store)(nil)
	_ lbstate.Replicator     = (*raftstore.Machine)(nil)
	_ lbstate.Replicator     = (*lbstate.Local)(nil)
	_ lbstate.Machine        = (*lbstate.State)(nil)
	_ lbstate.Machine        = (*access.State)(nil)
	_ agent.Applier          = (*reconcile.Reconciler)(nil)
	_ lbchecks.Leadership    = (*raftstore.Store)(nil)
	_ agent.Authenticator    = (*identity.Source)(nil)
	_ agent.Renewer          = (*identity.Source)(nil)
)
