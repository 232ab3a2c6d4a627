package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// An entry of the log carries an envelope: the commands that one node had
// queued when it proposed.
//
//	1 byte   version
//	8 bytes  member that proposed
//	8 bytes  its boot number
//	8 bytes  sequence number of the first command
//	uvarint  how many commands, then for each
//	         uvarint length and name of the state machine, uvarint length and bytes
//
// Member, boot and sequence make a delivery that comes twice recognizable.
type envelope struct {
	proposer uint64
	boot     uint64
	first    uint64
	commands []routed
}

type routed struct {
	machine string
	command []byte
}

const (
	envelopeVersion  = 1
	envelopeHeader   = 1 + 3*8
	maxMachineName   = 64
	maxEnvelopeCount = 4096
	maxEnvelopeBytes = 4 << 20
)

func (e *envelope) encode() []byte {
	size := envelopeHeader + binary.MaxVarintLen32
	for _, c := range e.commands {
		size += len(c.machine) + len(c.command) + 2*binary.MaxVarintLen32
	}
	b := make([]byte, 0, size)
	b = append(b, envelopeVersion)
	b = binary.BigEndian.AppendUint64(b, e.proposer)
	b = binary.BigEndian.AppendUint64(b, e.boot)
	b = binary.BigEndian.AppendUint64(b, e.first)
	b = binary.AppendUvarint(b, uint64(len(e.commands)))
	for _, c := range e.commands {
		b = append(binary.AppendUvarint(b, uint64(len(c.machine))), c.machine...)
		b = append(binary.AppendUvarint(b, uint64(len(c.command))), c.command...)
	}
	return b
}

// decode reads what encode wrote, into e and its memory. The commands share
// data.
func (e *envelope) decode(data []byte) error {
	e.commands = e.commands[:0]
	if len(data) < envelopeHeader {
		return errors.New("entry is shorter than its header")
	}
	if data[0] != envelopeVersion {
		return fmt.Errorf("entry of version %d: this program knows version %d alone", data[0], envelopeVersion)
	}
	e.proposer = binary.BigEndian.Uint64(data[1:])
	e.boot = binary.BigEndian.Uint64(data[9:])
	e.first = binary.BigEndian.Uint64(data[17:])
	rest := data[envelopeHeader:]
	n, w := binary.Uvarint(rest)
	if w <= 0 || n > maxEnvelopeCount {
		return errors.New("entry has no valid count of commands")
	}
	rest = rest[w:]
	next := func() ([]byte, bool) {
		size, w := binary.Uvarint(rest)
		if w <= 0 || size > uint64(len(rest)-w) {
			return nil, false
		}
		part := rest[w : w+int(size) : w+int(size)]
		rest = rest[w+int(size):]
		return part, true
	}
	machine := ""
	for range n {
		name, ok := next()
		if !ok || len(name) > maxMachineName {
			return errors.New("entry is cut short in a name")
		}
		command, ok := next()
		if !ok {
			return errors.New("entry is cut short in a command")
		}
		if string(name) != machine { // commands of one machine share its name
			machine = string(name)
		}
		e.commands = append(e.commands, routed{machine, command})
	}
	if len(rest) != 0 {
		return fmt.Errorf("entry has %d bytes too many", len(rest))
	}
	return nil
}
