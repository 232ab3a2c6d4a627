package raftstore

import (
	"errors"
	"fmt"
)

// Reasons for which a Store refuses or ends.
var (
	ErrStopped    = errors.New("the store is stopped")
	ErrNoLeader   = errors.New("the cluster has no leader that this node knows")
	ErrNotLeader  = errors.New("this node is not the leader")
	ErrOverloaded = errors.New("too many proposals are waiting")
	ErrTooLarge   = errors.New("the command is too large")
	ErrFounded    = errors.New("this node has accepted another founding record, or joined a cluster")
	ErrRemoved    = errors.New("this node was removed from the cluster")
	ErrNameInUse  = errors.New("the name is in use")
	ErrNoMember   = errors.New("there is no such member")
	ErrBusy       = errors.New("another membership change is on its way; try again")
	ErrOlder      = errors.New("this program is older than the cluster's commands")
	ErrQuorum     = errors.New("the cluster would lose its quorum")

	errLeaderChanged = errors.New("the leader changed before the command was applied")
	errSnapshot      = errors.New("a snapshot came before the command was applied here")
	errOutOfOrder    = errors.New("the command was overtaken by a later one on its way to the leader")
)

// ProposalError is the failure of a proposal. It tells whether the command is
// known never to be applied; otherwise its outcome is unknown, and it must not
// be proposed again as if it had failed.
type ProposalError struct {
	Err        error
	notApplied bool
}

func (e *ProposalError) Error() string {
	if e.notApplied {
		return fmt.Sprintf("not applied: %v", e.Err)
	}
	return fmt.Sprintf("outcome unknown: %v", e.Err)
}

func (e *ProposalError) Unwrap() error { return e.Err }

// NotApplied says that the command was not and will never be applied.
func (e *ProposalError) NotApplied() bool { return e.notApplied }

func notApplied(err error) error { return &ProposalError{err, true} }
func unknown(err error) error    { return &ProposalError{err, false} }
