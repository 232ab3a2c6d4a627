package peer

// Metrics hears what a Transport does. Its methods are called from any
// goroutine and must return at once.
type Metrics interface {
	// Sent and Received count messages of one frame and its bytes on the wire.
	Sent(member uint64, messages, bytes int)
	Received(member uint64, messages, bytes int)
	// Dropped counts messages that never left: the queue was full, or the member
	// was not connected.
	Dropped(member uint64, messages int)
	// Connected says that a lane to a member came up or went down.
	Connected(member uint64, lane Lane, up bool)
	// Refused counts handshakes that this member refused.
	Refused(reason Refusal)
	// SnapshotSent reports the end of an outgoing snapshot; err is nil when the
	// receiver has installed it.
	SnapshotSent(member uint64, bytes int64, err error)
}

type noMetrics struct{}

func (noMetrics) Sent(uint64, int, int)             {}
func (noMetrics) Received(uint64, int, int)         {}
func (noMetrics) Dropped(uint64, int)               {}
func (noMetrics) Connected(uint64, Lane, bool)      {}
func (noMetrics) Refused(Refusal)                   {}
func (noMetrics) SnapshotSent(uint64, int64, error) {}
