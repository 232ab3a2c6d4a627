package raftstore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Versioned is a StateMachine whose commands come in versions. One that is not
// Versioned has version 1.
type Versioned interface {
	// CommandVersion is the highest version of commands that this program can
	// apply, at least 1. It is always the same.
	CommandVersion() uint64
}

// Versions are versions of commands, by state machine. 0 is that of a machine
// which is not there. nil counts as 1 for all: a record from before versions were
// recorded.
type Versions map[string]uint64

// ownCommandVersion is that of the commands in which a Store itself tells the
// cluster something; its machine is called like its bucket.
const ownCommandVersion = 1

func (v Versions) of(machine string) uint64 {
	if v == nil {
		return 1
	}
	return v[machine]
}

// equal says whether both say the same of every machine.
func (v Versions) equal(o Versions) bool {
	for _, names := range []Versions{v, o} {
		for name := range names {
			if v.of(name) != o.of(name) {
				return false
			}
		}
	}
	return true
}

// Admits says whether a program that knows these versions can be a member of a
// cluster that accepts commands of v (Status.Accepted). Its error is ErrOlder.
func (v Versions) Admits(program Versions) error {
	for _, name := range slices.Sorted(maps.Keys(v)) {
		switch have := program.of(name); {
		case have == 0 && v[name] > 0:
			return fmt.Errorf("%w: it does not have state machine %q, whose commands the cluster accepts; start the program that the other members run, or a newer one", ErrOlder, name)
		case have < v[name]:
			return fmt.Errorf("%w: it knows commands of state machine %q up to version %d, the cluster accepts %d; start the program that the other members run, or a newer one", ErrOlder, name, have, v[name])
		}
	}
	return nil
}

// programVersions are those of this program.
func (c Config) programVersions() Versions {
	v := Versions{ownBucketName: ownCommandVersion}
	for name, machine := range c.StateMachines {
		v[name] = 1
		if m, ok := machine.(Versioned); ok {
			v[name] = m.CommandVersion()
		}
	}
	return v
}

// VersionError says that a command was not proposed, since a member could not
// apply it.
type VersionError struct {
	Machine  string
	Version  uint64   // of the command
	Accepted uint64   // the highest that may be proposed; 0: the machine is not on every member
	Behind   []Member // whose programs are older, by name, as this node knows them
}

func (e *VersionError) Error() string {
	what := fmt.Sprintf("commands of version %d of state machine %q cannot be proposed yet, only those up to %d", e.Version, e.Machine, e.Accepted)
	if e.Accepted == 0 {
		what = fmt.Sprintf("state machine %q cannot be used yet", e.Machine)
	}
	if len(e.Behind) == 0 {
		return what + ": the members have not all said what they know; try again"
	}
	var names []string
	for _, m := range e.Behind {
		names = append(names, fmt.Sprintf("%s at %s knows version %d", m.Name, m.RaftAddr, m.Versions.of(e.Machine)))
	}
	return fmt.Sprintf("%s: %s; start a newer program there, or remove the member", what, strings.Join(names, ", "))
}

// Accepts says whether commands of this version may be proposed: every member can
// apply them, and so can everyone who joins from now on. The error is a
// *ProposalError, not applied, with a *VersionError that names who is behind.
func (m *Machine) Accepts(version uint64) error {
	s := m.s
	accepted := s.acceptedVersions().of(m.name)
	if accepted >= version {
		return nil
	}
	e := &VersionError{Machine: m.name, Version: version, Accepted: accepted}
	for _, member := range s.Members() {
		if member.Versions.of(m.name) < version {
			e.Behind = append(e.Behind, member)
		}
	}
	return notApplied(e)
}

func (s *Store) acceptedVersions() Versions {
	if v := s.accepted.Load(); v != nil {
		return *v
	}
	return nil
}

// setAccepted shows v, which is never changed, to proposals.
func (s *Store) setAccepted(v Versions) { s.accepted.Store(&v) }

// ownCommand is what a Store itself has to say through the log.
type ownCommand struct {
	Member   uint64   `json:"member"`   // whose record it is about
	Versions Versions `json:"versions"` // of its program
}

// recordTicks is how long a record that was proposed is given.
const recordTicks = 20

// record tells the cluster what this program knows, where its record there says
// something else: another program was started in its place.
func (l *loop) record() {
	m, ok := l.applied.members[l.self]
	program := l.s.cfg.programVersions()
	if !ok || m.Versions != nil && m.Versions.equal(program) || l.recorded > 0 && l.ticks-l.recorded < recordTicks {
		return
	}
	l.recorded = l.ticks
	data, err := json.Marshal(ownCommand{l.self, program})
	if err != nil {
		l.s.inbox.fail(err)
		return
	}
	e := envelope{proposer: l.self, boot: l.boot, first: l.next, commands: []routed{{ownBucketName, data}}}
	l.next++
	_ = l.rn.Propose(e.encode()) // where no one takes it, it is proposed again
}

// applyOwn applies commands of the Store itself. A record of a member that is gone
// has no effect.
func (o own) applyOwn(cmds [][]byte) ([]any, error) {
	for _, data := range cmds {
		var c ownCommand
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&c); err != nil {
			return nil, fmt.Errorf("a command of raftstore itself that this program does not know; it is older than a member: %w", err)
		}
		m, ok, err := o.member(c.Member)
		if err == nil && ok {
			m.Versions = c.Versions
			err = o.putMember(m)
		}
		if err != nil {
			return nil, err
		}
	}
	return make([]any, len(cmds)), nil
}

// accepted are the versions that the members have agreed on.
func (o own) accepted() (Versions, error) {
	if o.b == nil || o.b.Get(acceptedKey) == nil {
		return nil, nil
	}
	var v Versions
	body, err := unseal(o.b.Get(acceptedKey))
	if err == nil {
		err = json.Unmarshal(body, &v)
	}
	if err != nil {
		return nil, fmt.Errorf("the accepted versions in the state are damaged: %w", err)
	}
	return v, nil
}

// agree raises the accepted versions to what all members know, and returns them.
// They never go down: the log may hold such commands. So it is the state that
// says what may be proposed, at the same place of the log on every node.
func (o own) agree(members map[uint64]Member) (Versions, error) {
	before, err := o.accepted()
	if err != nil || len(members) == 0 {
		return before, err
	}
	after := Versions{}
	maps.Copy(after, before)
	for _, some := range members {
		for name := range some.Versions {
			lowest := some.Versions.of(name)
			for _, m := range members {
				lowest = min(lowest, m.Versions.of(name))
			}
			after[name] = max(after[name], lowest)
		}
	}
	if maps.Equal(before, after) {
		return before, nil
	}
	body, err := json.Marshal(after)
	if err != nil {
		return nil, err
	}
	return after, o.b.Put(acceptedKey, seal(body))
}
