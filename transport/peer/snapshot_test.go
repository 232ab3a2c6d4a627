package peer

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// snapshotMessage is one for node 2.
func snapshotMessage(from uint64) *raftpb.Message {
	m := message(raftpb.MsgSnap, from, 2, 0)
	m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(42), Term: proto.Uint64(1), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}},
	}}
	return m
}

// source is a snapshot's body that must be closed once.
type source struct {
	io.Reader
	closed atomic.Int32
}

func (s *source) Close() error {
	s.closed.Add(1)
	return nil
}

// send sends a snapshot to node 2 and returns its outcome.
func (n *node) send(body io.Reader, size int64) error {
	n.t.Helper()
	src := &source{Reader: body}
	outcome := make(chan error, 2)
	n.SendSnapshot(snapshotMessage(n.id), size, src, func(err error) { outcome <- err })
	select {
	case err := <-outcome:
		if src.closed.Load() != 1 {
			n.t.Errorf("the body was closed %d times", src.closed.Load())
		}
		return err
	case <-time.After(20 * time.Second):
		n.t.Fatal("no outcome of a snapshot")
		return nil
	}
}

func randomBytes(seed uint64, n int) []byte {
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	_, _ = rng.Read(b)
	return b
}

func TestSnapshotArrives(t *testing.T) {
	for _, size := range []int{0, 1, chunkBytes, chunkBytes + 1, 5<<20 + 123} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			data := randomBytes(1, size)
			a, b := newNode(t, 1, testConfig(t)), newNode(t, 2, testConfig(t))
			b.onInstall = func(msg *raftpb.Message, body io.Reader) error {
				if !proto.Equal(msg, snapshotMessage(1)) {
					t.Errorf("message arrived as %v", msg)
				}
				got, err := io.ReadAll(body)
				if err != nil {
					return err
				}
				if sha256.Sum256(got) != sha256.Sum256(data) {
					t.Errorf("%d bytes arrived, not those that were sent", len(got))
				}
				return nil
			}
			a.knows(b)
			a.run()
			b.run()
			if err := a.send(bytes.NewReader(data), int64(size)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSnapshotOutcomes(t *testing.T) {
	const size = 3 << 20
	data := randomBytes(2, size)
	tests := []struct {
		name    string
		body    io.Reader
		install func(msg *raftpb.Message, body io.Reader) error
		want    string
	}{
		{"refused at once", bytes.NewReader(data), func(*raftpb.Message, io.Reader) error { return errors.New("not wanted") }, "not wanted"},
		{"refused in the middle", bytes.NewReader(data), func(_ *raftpb.Message, body io.Reader) error {
			if _, err := io.ReadFull(body, make([]byte, 1<<20)); err != nil {
				return err
			}
			return errors.New("disk full")
		}, "disk full"},
		{"installed without its end", bytes.NewReader(data), func(_ *raftpb.Message, body io.Reader) error {
			_, err := io.ReadFull(body, make([]byte, 100))
			return err
		}, "without its end"},
		{"source fails", io.MultiReader(bytes.NewReader(data[:1<<20]), failing{}), func(_ *raftpb.Message, body io.Reader) error {
			if _, err := io.Copy(io.Discard, body); !errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("the receiver saw %w", err)
			}
			return errors.New("cut off")
		}, "bad sector"},
		{"source too short", bytes.NewReader(data[:100]), func(_ *raftpb.Message, body io.Reader) error {
			_, err := io.Copy(io.Discard, body)
			return err
		}, "read the snapshot"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newNode(t, 1, testConfig(t)), newNode(t, 2, testConfig(t))
			b.onInstall = tt.install
			a.knows(b)
			a.run()
			b.run()
			if err := a.send(tt.body, size); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("outcome %v, want one with %q", err, tt.want)
			}
			// The next one finds a free way.
			b.mu.Lock()
			b.onInstall = func(_ *raftpb.Message, body io.Reader) error { _, err := io.Copy(io.Discard, body); return err }
			b.mu.Unlock()
			if err := a.send(bytes.NewReader(data), size); err != nil {
				t.Errorf("the snapshot after it: %v", err)
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("bad sector") }

func TestSnapshotThatCannotGo(t *testing.T) {
	a := newNode(t, 1, testConfig(t))
	if err := a.send(strings.NewReader("x"), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("before Run: %v", err)
	}
	a.run()
	if err := a.send(strings.NewReader("x"), 1); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("to an unknown member: %v", err)
	}
	l := listen(t)
	_ = l.Close()
	a.SetPeer(2, 0, l.Addr().String())
	if err := a.send(strings.NewReader("x"), 1); err == nil {
		t.Error("to a dead member: no error")
	}
	a.end()
	if err := a.send(strings.NewReader("x"), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("after Run: %v", err)
	}
}

// While one is on its way another one to the same member is refused; the
// receiver's death, or the sender's end, ends it.
func TestSnapshotIsAloneAndEndsWithItsEnds(t *testing.T) {
	for _, dies := range []string{"receiver", "sender"} {
		t.Run(dies, func(t *testing.T) {
			a, b := newNode(t, 1, testConfig(t)), newNode(t, 2, testConfig(t))
			began := make(chan struct{})
			b.onInstall = func(_ *raftpb.Message, body io.Reader) error {
				close(began)
				_, err := io.Copy(io.Discard, body)
				return err
			}
			a.knows(b)
			a.run()
			b.run()
			r, w := io.Pipe()
			defer w.Close()
			outcome := make(chan error, 1)
			a.SendSnapshot(snapshotMessage(1), 1<<20, r, func(err error) { outcome <- err })
			<-began
			if err := a.send(strings.NewReader("x"), 1); !errors.Is(err, ErrSnapshotBusy) {
				t.Errorf("a second snapshot: %v", err)
			}
			if dies == "receiver" {
				b.end()
				go func() { _, _ = w.Write(make([]byte, 1<<20)) }()
			} else {
				_ = w.Close() // a reader that blocks is the caller's to end
				a.end()
			}
			if err := <-outcome; err == nil {
				t.Error("a snapshot cut off was installed")
			}
			_ = r.Close()
		})
	}
}

func TestSnapshotIsThrottled(t *testing.T) {
	cfg := testConfig(t)
	cfg.SnapshotRate = 1 << 20
	a, b := newNode(t, 1, cfg), newNode(t, 2, testConfig(t))
	b.onInstall = func(_ *raftpb.Message, body io.Reader) error { _, err := io.Copy(io.Discard, body); return err }
	a.knows(b)
	a.run()
	b.run()
	began := time.Now()
	if err := a.send(bytes.NewReader(make([]byte, 512<<10)), 512<<10); err != nil {
		t.Fatal(err)
	}
	// The first piece, a tenth of a second's worth, does not wait.
	if took := time.Since(began); took < 350*time.Millisecond {
		t.Errorf("512 KiB at 1 MiB/s took %v", took)
	}
}

// The bound is one for all receivers, and none of them waits for another's end.
func TestSnapshotsShareTheBound(t *testing.T) {
	cfg := testConfig(t)
	cfg.SnapshotRate = 1 << 20
	a := newNode(t, 1, cfg)
	const size = 256 << 10
	began := time.Now()
	both := make(chan uint64, 2)    // who has begun to install
	together := make(chan struct{}) // closed when both have
	outcome := make(chan error, 2)
	for _, id := range []uint64{2, 3} {
		n := newNode(t, id, testConfig(t))
		n.onInstall = func(_ *raftpb.Message, body io.Reader) error {
			both <- id
			<-together
			_, err := io.Copy(io.Discard, body)
			return err
		}
		a.knows(n)
		n.run()
	}
	a.run()
	for _, id := range []uint64{2, 3} {
		m := snapshotMessage(1)
		m.To = proto.Uint64(id)
		a.SendSnapshot(m, size, &source{Reader: bytes.NewReader(make([]byte, size))}, func(err error) { outcome <- err })
	}
	if one, other := <-both, <-both; one == other {
		t.Errorf("member %d installs twice", one)
	}
	close(together)
	for range 2 {
		if err := <-outcome; err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took < 350*time.Millisecond {
		t.Errorf("two times 256 KiB at 1 MiB/s took %v", took)
	}
}

// A chunk that is damaged on the way is never handed over as good.
func TestSnapshotDamagedOnTheWay(t *testing.T) {
	b := newNode(t, 2, testConfig(t))
	outcome := make(chan error, 1)
	b.onInstall = func(_ *raftpb.Message, body io.Reader) error {
		_, err := io.Copy(io.Discard, body)
		outcome <- err
		return err
	}
	b.run()
	begin := func() []byte {
		h := hello{oldest: 1, newest: 1, lane: Snapshots, cluster: testCluster, from: 1, to: 2, incarnation: 5, address: "127.0.0.1:1"}
		first, err := appendBatch([]byte{6, 0, 0, 0, 0, 0, 0, 0}, []*raftpb.Message{snapshotMessage(1)})
		if err != nil {
			t.Fatal(err)
		}
		return appendFrame(h.encode(), 1, frameSnapshot, first)
	}
	chunk := func(s string) []byte { return appendFrame(nil, 1, frameChunk, []byte(s)) }
	flipped := chunk("abcdef")
	flipped[len(flipped)-1] ^= 1
	for name, rest := range map[string][]byte{
		"flipped bit":   flipped,
		"cut off":       chunk("abc"),
		"too long":      chunk("abcdefg"),
		"early end":     append(chunk("abc"), appendFrame(nil, 1, frameEnd, make([]byte, snapshotEndBytes))...),
		"wrong sum":     append(chunk("abcdef"), appendFrame(nil, 1, frameEnd, append([]byte{6}, make([]byte, 11)...))...),
		"foreign frame": append(chunk("abc"), appendFrame(nil, 1, frameMessages, nil)...),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", b.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(append(begin(), rest...)); err != nil {
				t.Fatal(err)
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			if err := <-outcome; err == nil {
				t.Error("the receiver read it to its end")
			}
			r := bufio.NewReader(conn)
			if _, err := readWelcome(r); err != nil {
				t.Fatal(err)
			}
			err = readResult(&outgoing{Conn: conn, raw: conn, r: r, version: 1}, 2)
			var refused *SnapshotError
			if !errors.As(err, &refused) {
				t.Errorf("the sender hears %v", err)
			}
		})
	}
}

// However long an installation takes, the sender waits while the receiver lives.
func TestSlowInstallation(t *testing.T) {
	cfg := testConfig(t)
	// A machine that is busy may keep the pulse from its turn for a second.
	cfg.PingInterval, cfg.IdleTimeout = 10*time.Millisecond, 2*time.Second
	a, b := newNode(t, 1, cfg), newNode(t, 2, cfg)
	b.onInstall = func(_ *raftpb.Message, body io.Reader) error {
		_, err := io.Copy(io.Discard, body)
		<-time.After(cfg.IdleTimeout + cfg.IdleTimeout/2)
		return err
	}
	a.knows(b)
	a.run()
	b.run()
	if err := a.send(strings.NewReader("abc"), 3); err != nil {
		t.Error(err)
	}
}
