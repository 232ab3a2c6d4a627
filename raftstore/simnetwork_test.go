package raftstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

type simMessage struct {
	to, from uint64
	due      time.Time
	msg      *raftpb.Message
	body     []byte      // of a snapshot
	done     func(error) // of a snapshot
}

// simInstall is a snapshot that a node has received; its sender hears the outcome.
type simInstall struct {
	outcome chan error
	report  func(error)
}

// simTransport is one node's end of the simulated network.
type simTransport struct {
	n *simNode
}

func (simTransport) SetPeer(uint64, uint64, string) {}
func (simTransport) RemovePeer(uint64)              {}
func (simTransport) Run(context.Context, uint64, uint64, uint64, func(uint64, []*raftpb.Message), func(*raftpb.Message, io.Reader) error, func(uint64, error)) error {
	return errors.New("the simulation carries messages itself")
}

func (t simTransport) Send(msgs []*raftpb.Message) {
	s := t.n.sim
	for _, m := range msgs {
		s.note("send %d %d %v %d %d", t.n.id, m.GetTo(), m.GetType(), m.GetTerm(), m.GetIndex())
		if s.rng.IntN(100) < 2 {
			continue // lost
		}
		copies := 1
		if s.rng.IntN(100) < 2 {
			copies = 2
		}
		for range copies {
			delay := time.Duration(1+s.rng.IntN(5)) * time.Millisecond
			if s.rng.IntN(50) == 0 {
				delay = time.Duration(s.rng.IntN(400)) * time.Millisecond
			}
			s.net = append(s.net, simMessage{to: m.GetTo(), from: t.n.id, due: s.now.Add(delay), msg: proto.CloneOf(m)})
		}
	}
}

func (t simTransport) SendSnapshot(m *raftpb.Message, _ int64, body io.ReadCloser, done func(error)) {
	data, err := io.ReadAll(body)
	body.Close()
	if err != nil {
		done(err)
		return
	}
	s := t.n.sim
	s.net = append(s.net, simMessage{to: m.GetTo(), from: t.n.id, due: s.now.Add(time.Duration(5+s.rng.IntN(50)) * time.Millisecond), msg: proto.CloneOf(m), body: data, done: done})
}

// deliver hands over the messages that are due.
func (s *sim) deliver() error {
	var rest, due []simMessage
	for _, m := range s.net {
		if s.now.Before(m.due) {
			rest = append(rest, m)
		} else {
			due = append(due, m)
		}
	}
	s.net = rest
	s.rng.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	for _, m := range due {
		if err := s.hand(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *sim) hand(m simMessage) error {
	n := s.at(m.to)
	if n == nil || !n.up || s.cut[pair(m.from, m.to)] {
		if m.done != nil {
			m.done(errors.New("cut off"))
		}
		return nil
	}
	if m.body == nil {
		n.s.inbox.put(func() {
			n.s.inbox.messages = append(n.s.inbox.messages, received{m.from, s.now, []*raftpb.Message{m.msg}})
		})
		return nil
	}
	return n.do(func() error {
		in, err := n.s.verifySnapshot(m.msg.GetSnapshot().GetMetadata(), bytes.NewReader(m.body))
		if err != nil {
			m.done(err)
			return err
		}
		l := n.l
		l.takeSnapshot(m.msg, in)
		n.awaits = append(n.awaits, simInstall{in.done, m.done})
		return nil
	})
}

func pair(a, b uint64) [2]uint64 { return [2]uint64{min(a, b), max(a, b)} }
