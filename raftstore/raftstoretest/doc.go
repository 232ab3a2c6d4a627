// Package raftstoretest is for tests of what is built on raftstore: a cluster in
// one process, on a simulated network and on disks that can lose power, and a
// contract that every state machine must keep.
//
// A Cluster runs real Stores in real time; its faults are drawn from a seed, but
// the order of events is the scheduler's. (raftstore's own simulation, which
// repeats exactly, is in its tests.)
//
//	goroutine    started by            stopped by        state it owns
//	Store.Run    Node.Start            Stop, Crash, end  the node's own
//	Network end  the node's transport  end of Store.Run  what is on its way to the node
package raftstoretest
