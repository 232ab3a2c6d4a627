package peer

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

var (
	// ErrClosed is the outcome of what was asked of a Transport that does not run.
	ErrClosed = errors.New("peer: transport is closed")

	// ErrNotConnected is reported for messages dropped because there is no
	// connection to their member.
	ErrNotConnected = errors.New("peer: not connected")

	// ErrQueueFull is reported for messages dropped because those before them
	// have not left yet.
	ErrQueueFull = errors.New("peer: queue is full")

	// ErrUnknownPeer is the outcome of a snapshot for a member without address.
	ErrUnknownPeer = errors.New("peer: no address is known for this member")

	// ErrSnapshotBusy is the outcome of a snapshot for a member that is already
	// being sent one.
	ErrSnapshotBusy = errors.New("peer: a snapshot to this member is already on its way")

	// ErrTooLarge is the outcome of a message larger than MaxMessage.
	ErrTooLarge = errors.New("peer: message is larger than allowed")
)

// LostError says that a connection to or from a member ended.
type LostError struct {
	Member uint64
	Lane   Lane
	Err    error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("peer: %s connection with member %x lost: %v", e.Lane, e.Member, e.Err)
}

func (e *LostError) Unwrap() error { return e.Err }

// Reset reports whether the other end closed or reset the connection, which its
// kernel does the moment its process dies. A connection that fell silent, or
// that this end gave up, is no reset.
func (e *LostError) Reset() bool {
	return errors.Is(e.Err, io.EOF) || errors.Is(e.Err, io.ErrUnexpectedEOF) ||
		errors.Is(e.Err, syscall.ECONNRESET) || errors.Is(e.Err, syscall.EPIPE)
}

// protocolError says that the other end sent something that it must not send.
type protocolError struct{ reason string }

func (e *protocolError) Error() string { return "peer: protocol violated: " + e.reason }

func violation(format string, args ...any) error {
	return &protocolError{reason: fmt.Sprintf(format, args...)}
}

// closedQuietly reports whether err only says that a connection was closed, by either
// end, between two frames.
func closedQuietly(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}
