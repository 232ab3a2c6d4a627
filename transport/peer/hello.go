package peer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// A connection begins with preamble and a hello frame from the caller, answered
// by a welcome frame. The form of these two never changes, whatever versions of
// the protocol follow; both are encoded in frames of version 0.
const (
	preamble = "ipvskit\n"

	versionOldest = 1 // oldest protocol version spoken
	versionNewest = 1

	maxAddress = 255 // bytes of an address
	maxReason  = 512 // bytes of a refusal's sentence
	maxHello   = 1024
)

// Refusal is the reason why a handshake was refused.
type Refusal uint8

const (
	// WrongVersion: the two have no protocol version in common.
	WrongVersion Refusal = 1 + iota
	// WrongCluster: the two belong to different clusters.
	WrongCluster
	// WrongMember: the one called is not the member that the caller wants.
	WrongMember
	// WrongIncarnation: a member has lost its disk since the other learnt of it,
	// and is not who it was.
	WrongIncarnation
	// RemovedMember: the caller has been removed from the cluster.
	RemovedMember
	// Busy: the one called takes no more connections of this kind for now.
	Busy
)

func (r Refusal) String() string {
	switch r {
	case WrongVersion:
		return "wrong version"
	case WrongCluster:
		return "wrong cluster"
	case WrongMember:
		return "wrong member"
	case WrongIncarnation:
		return "wrong incarnation"
	case RemovedMember:
		return "removed"
	case Busy:
		return "busy"
	}
	return fmt.Sprintf("refusal %d", uint8(r))
}

// RefusedError says that a handshake was refused, by this end or by the other.
type RefusedError struct {
	Member uint64 // the other one
	Reason Refusal
	Detail string // a sentence for people: what was expected, what was found
	Here   bool   // this end refused the other; otherwise the other refused this one
}

func (e *RefusedError) Error() string {
	if e.Here {
		return fmt.Sprintf("peer: refused member %x (%s): %s", e.Member, e.Reason, e.Detail)
	}
	return fmt.Sprintf("peer: member %x refuses this one (%s): %s", e.Member, e.Reason, e.Detail)
}

// Removed reports whether the other end says that this member has been removed
// from the cluster.
func (e *RefusedError) Removed() bool { return e.Reason == RemovedMember && !e.Here }

// hello is how a caller presents itself.
type hello struct {
	oldest, newest uint16 // protocol versions that the caller speaks
	lane           Lane
	cluster        uint64
	from, to       uint64
	incarnation    uint64 // the caller's
	expects        uint64 // incarnation that the one called must have; 0: any
	address        string // where the caller is reached
}

const helloFixed = 2 + 2 + 1 + 5*8 + 1

func (h hello) encode() []byte {
	buf, start := beginFrame([]byte(preamble))
	buf = binary.LittleEndian.AppendUint16(buf, h.oldest)
	buf = binary.LittleEndian.AppendUint16(buf, h.newest)
	buf = append(buf, byte(h.lane))
	for _, v := range [...]uint64{h.cluster, h.from, h.to, h.incarnation, h.expects} {
		buf = binary.LittleEndian.AppendUint64(buf, v)
	}
	buf = append(buf, byte(len(h.address)))
	buf = append(buf, h.address...)
	sealFrame(buf, start, 0, frameHello)
	return buf
}

// decodeHello leaves out what stands after the fields that it knows: a later
// version may say more about itself.
func decodeHello(b []byte) (hello, error) {
	if len(b) < helloFixed || len(b) < helloFixed+int(b[helloFixed-1]) {
		return hello{}, violation("hello cut off")
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[5+8*i:]) }
	h := hello{
		oldest: binary.LittleEndian.Uint16(b),
		newest: binary.LittleEndian.Uint16(b[2:]),
		lane:   Lane(b[4]), cluster: word(0), from: word(1), to: word(2),
		incarnation: word(3), expects: word(4),
		address: string(b[helloFixed : helloFixed+int(b[helloFixed-1])]),
	}
	if h.from == 0 || h.newest < h.oldest {
		return hello{}, violation("hello of member %x with versions %d to %d", h.from, h.oldest, h.newest)
	}
	return h, nil
}

// readHello reads what a caller begins with.
func readHello(r io.Reader) (hello, error) {
	var begin [len(preamble)]byte
	if _, err := io.ReadFull(r, begin[:]); err != nil {
		return hello{}, err
	}
	if string(begin[:]) != preamble {
		return hello{}, violation("this is a raft port, and the caller %s", guess(begin[:]))
	}
	kind, payload, err := (&frameReader{r: r, max: maxHello}).next()
	if err != nil {
		return hello{}, err
	}
	if kind != frameHello {
		return hello{}, violation("frame of kind %d instead of a hello", kind)
	}
	return decodeHello(payload)
}

func guess(begin []byte) string {
	switch {
	case begin[0] == 0x16 && begin[1] == 3:
		return "speaks TLS, which is off here"
	case bytes.HasPrefix(begin, []byte("GET ")), bytes.HasPrefix(begin, []byte("POST ")), bytes.HasPrefix(begin, []byte("PUT ")):
		return "speaks HTTP"
	case bytes.HasPrefix(begin, []byte("PRI * HT")):
		return "speaks HTTP/2 or gRPC"
	}
	return fmt.Sprintf("begins with %q", begin)
}

// welcome is the answer to a hello.
type welcome struct {
	refusal     Refusal // 0: accepted
	version     uint16  // protocol version of what follows
	cluster     uint64
	member      uint64
	incarnation uint64
	detail      string
}

const welcomeFixed = 1 + 2 + 3*8 + 2

func (w welcome) encode() []byte {
	buf, start := beginFrame(nil)
	buf = append(buf, byte(w.refusal))
	buf = binary.LittleEndian.AppendUint16(buf, w.version)
	for _, v := range [...]uint64{w.cluster, w.member, w.incarnation} {
		buf = binary.LittleEndian.AppendUint64(buf, v)
	}
	detail := w.detail[:min(len(w.detail), maxReason)]
	buf = binary.LittleEndian.AppendUint16(buf, uint16(len(detail)))
	buf = append(buf, detail...)
	sealFrame(buf, start, 0, frameWelcome)
	return buf
}

func decodeWelcome(b []byte) (welcome, error) {
	if len(b) < welcomeFixed {
		return welcome{}, violation("welcome cut off")
	}
	n := int(binary.LittleEndian.Uint16(b[welcomeFixed-2:]))
	if n > maxReason || len(b) < welcomeFixed+n {
		return welcome{}, violation("welcome cut off")
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[3+8*i:]) }
	return welcome{
		refusal: Refusal(b[0]), version: binary.LittleEndian.Uint16(b[1:]),
		cluster: word(0), member: word(1), incarnation: word(2),
		detail: string(b[welcomeFixed : welcomeFixed+n]),
	}, nil
}

func readWelcome(r io.Reader) (welcome, error) {
	kind, payload, err := (&frameReader{r: r, max: maxHello}).next()
	if err != nil {
		return welcome{}, err
	}
	if kind != frameWelcome {
		return welcome{}, violation("frame of kind %d instead of a welcome", kind)
	}
	return decodeWelcome(payload)
}
