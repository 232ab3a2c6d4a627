// Package agent carries the desired state from servers to agents, over gRPC.
//
// A Server is mounted on a gRPC server and reads an lbstate.Store. A Client
// follows one of several servers, keeps what it accepted in a journal, and
// hands it to an Applier, which makes the host equal to it.
//
// An agent says which state it holds (cluster, revision, digest). A server
// that can answers with what changed since, else with the full state; updates
// carry explicit removals, and one is in flight at a time: what changes
// meanwhile is coalesced, each service as it is at the end. The agent makes an
// update durable, acknowledges it as received, applies it, and acknowledges it
// as applied. Streams with the same labels share a view: the store is read, and
// an update encoded, once for all of them.
//
// Each agent has an order of its own in which it tries the servers, stays with
// one while it serves, and returns to its first when that is back.
//
// The view carries the agent's profile, too: in the full state, and in a change
// where another selects it now, or none. It counts in the digest. Ends of before
// profiles are served as ever, see featureProfiles.
//
// # What an agent refuses
//
// It never goes back in revision. A state that is of another cluster, empty,
// or in which more than half and more than three services would vanish without
// explicit removals, is held back: traffic goes on as it is, the status says
// why, and Client.Release lets it pass. With every server gone nothing is
// withdrawn, and a restarted agent applies its journal before it dials.
//
// # Goroutines
//
//	goroutine          started by     stopped by                    owns
//	Client.applyLoop   Client.Run     ctx                           calls of Applier.Apply
//	Client.reportLoop  Client.Run     ctx                           -
//	session.sendLoop   Client.follow  end of the stream             sending on the stream
//	Client.awaitHome   dialLoop       end of the stream             -
//	Stream (handler)   gRPC           end of the stream, Close      nothing: it waits for the end
//	stream.receive     Stream         end of the stream             receiving
//	stream.send        stream.post    when all is sent              sending what may wait for the agent
//	stream.later       stream.step    answer of the store           reading what an agent lacks
//	view.run           acquire        no streams, Close             the view's versions
//	view.tell          view.run       when all streams are told     nothing
//	Server.pulse       first stream   Close                         when each stream has its turn
//	Server.rechecks    first stream   Close                         looking again at all streams
//	Server.unstick     first stream   Close                         none: ends streams that make others wait
//	Server.monitor     first stream   Close                         the server's condition
package agent
