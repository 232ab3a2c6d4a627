// Package peer carries raft's messages and snapshots between the servers of a
// cluster, on framed TCP (or TLS) connections of its own. A [Transport]
// satisfies raftstore's Transport interface; it knows raftpb and nothing else of
// this module.
//
// # Nouns
//
// A member dials every other member on two lanes, each a connection that
// carries messages one way: the control lane (heartbeats, votes and what else
// keeps a leader in office) and the data lane (everything with entries, and its
// answers). Nothing on the control lane ever waits behind data. A snapshot
// travels on a connection made for it alone.
//
// A connection opens with a handshake: magic, the protocol versions spoken, the
// cluster, who calls whom, and both incarnations. The other end welcomes it or
// refuses it with a [Refusal] and a sentence, which both ends log. After that
// come frames: a header with length and CRC32C, and a payload. All messages that
// a queue holds are drained into one frame, and one write.
//
// # What it promises
//
//   - [Transport.Send] never blocks. Queues are bounded in number and bytes;
//     what does not fit is dropped, and unreachable is called. So it is for a
//     member that is not connected.
//   - A connection that the other end closed or reset is reported at once, as a
//     [LostError] whose Reset method says true: that is how a killed leader is
//     noticed within milliseconds.
//   - A snapshot is handed over as a stream that ends with io.EOF only when
//     every byte of it has been checked; the sender hears the outcome from the
//     receiver itself.
//   - No length that arrives is believed: frames are bounded, counts are bounded
//     by the bytes that came, memory grows with what was received. Bytes that do
//     not decode end their own connection and nothing else.
//   - With TLS both ends show certificates; [Transport.Recheck] ends connections
//     whose certificate was revoked since.
//   - A peer that stops reading holds a goroutine for at most the write timeout;
//     one that falls silent is noticed by pings.
//
// # Caveats
//
// Messages may be lost, and messages of different lanes overtake each other;
// raft allows for both. Within a lane order holds.
//
// The receive callback is called concurrently, once for each connection. While
// it blocks, that one connection is held back, which is the flow control between
// members; it must not block for the messages of the control lane.
//
// A member that was never announced by SetPeer is let in when it shows the right
// cluster, and is answered at the address that it announces itself: a node that
// was away while members changed would otherwise never hear the new leader.
// Which members count is raft's to decide. A removed one is refused.
//
// # Goroutines
//
//	goroutine        | started by          | stopped by              | state it owns
//	Run (accept)     | the caller          | ctx, Close              | the listener
//	reporter         | Run                 | end of Run              | pending reports
//	lane writer (2)  | Run or SetPeer,     | RemovePeer, end of Run  | the outgoing connection, its
//	                 | for each member     |                         | encode buffer and back-off
//	lane watcher     | lane writer, for    | end of the connection   | nothing; it reads pongs and
//	                 | each connection     |                         | notices a reset
//	inbound          | accept              | end of the connection   | the incoming connection, its
//	                 |                     |                         | read buffer
//	snapshot sender  | SendSnapshot        | outcome, end of Run     | its connection and body
//	snapshot watcher | snapshot sender     | end of the connection   | nothing
//	snapshot pulse   | inbound, for a      | end of the installation | nothing; it tells the sender
//	                 | snapshot            |                         | that work goes on
package peer
