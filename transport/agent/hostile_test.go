package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/ipvskit/ipvskit/lbstate"
	"github.com/ipvskit/ipvskit/transport/agent/agentpb"
)

// raw is a client that does what a test says.
func raw(t *testing.T, addr string) (_ grpc.BidiStreamingClient[agentpb.AgentMessage, agentpb.ServerMessage], leave func()) {
	t.Helper()
	// With windows of a set size gRPC does not read ahead of the test.
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() { cancel(); conn.Close() })
	stream, err := agentpb.NewAgentsClient(conn).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream, cancel
}

func helloOf(h *agentpb.Hello) *agentpb.AgentMessage {
	return &agentpb.AgentMessage{Message: &agentpb.AgentMessage_Hello{Hello: h}}
}

// bye reads until the server ends the stream, and returns why it says it does.
func bye(stream grpc.BidiStreamingClient[agentpb.AgentMessage, agentpb.ServerMessage]) (*agentpb.Bye, error) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if b := m.GetBye(); b != nil {
			return b, nil
		}
	}
}

func wantBye(t *testing.T, stream grpc.BidiStreamingClient[agentpb.AgentMessage, agentpb.ServerMessage], code agentpb.Bye_Code, says string) {
	t.Helper()
	b, err := bye(stream)
	if err != nil || b.GetCode() != code || !strings.Contains(b.GetReason(), says) {
		t.Errorf("%v, %v; want %v with %q", b, err, code, says)
	}
}

// What an agent must not say ends its stream, with the reason.
func TestAgentsThatMisbehave(t *testing.T) {
	store := newStore(t)
	put(t, store, "one", 1, nil)
	_, addr, _ := serve(t, store, 7, func(c *ServerConfig) { c.SilenceTimeout = 300 * time.Millisecond })
	labels := map[string]string{}
	for i := range 65 {
		labels[fmt.Sprint(i)] = ""
	}
	for _, test := range []struct {
		name string
		msgs []*agentpb.AgentMessage
		code agentpb.Bye_Code
		says string
	}{
		{"says nothing", nil, agentpb.Bye_SLOW, "no hello in time"},
		{"does not greet", []*agentpb.AgentMessage{{Message: &agentpb.AgentMessage_Heartbeat{Heartbeat: &agentpb.Heartbeat{}}}}, agentpb.Bye_REFUSED, "must be a hello"},
		{"has no name", []*agentpb.AgentMessage{helloOf(&agentpb.Hello{})}, agentpb.Bye_REFUSED, "name has 0 bytes"},
		{"has too long a name", []*agentpb.AgentMessage{helloOf(&agentpb.Hello{Name: strings.Repeat("n", 254)})}, agentpb.Bye_REFUSED, "254 bytes"},
		{"has too many labels", []*agentpb.AgentMessage{helloOf(&agentpb.Hello{Name: "a", Labels: labels})}, agentpb.Bye_REFUSED, "64 allowed"},
		{"has too long a label", []*agentpb.AgentMessage{helloOf(&agentpb.Hello{Name: "a", Labels: map[string]string{"k": strings.Repeat("v", 129)}})}, agentpb.Bye_REFUSED, "at most 128"},
		{"greets twice", []*agentpb.AgentMessage{helloOf(&agentpb.Hello{Name: "a"}), helloOf(&agentpb.Hello{Name: "a"})}, agentpb.Bye_REFUSED, "neither an acknowledgement"},
		{"falls silent", []*agentpb.AgentMessage{helloOf(&agentpb.Hello{Name: "a"})}, agentpb.Bye_SLOW, "nothing heard for"},
		{"comes from the future", []*agentpb.AgentMessage{helloOf(&agentpb.Hello{Name: "a", Cluster: 7, Revision: 99})}, agentpb.Bye_BEHIND, "revision 1, the agent has seen 99"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stream, _ := raw(t, addr)
			for _, m := range test.msgs {
				if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
			wantBye(t, stream, test.code, test.says)
		})
	}
	t.Run("are too many", func(t *testing.T) {
		_, addr, _ := serve(t, store, 7, func(c *ServerConfig) { c.SilenceTimeout, c.MaxStreams = time.Minute, 2 })
		for i := range 2 {
			stream, _ := raw(t, addr)
			if err := stream.Send(helloOf(&agentpb.Hello{Name: fmt.Sprint("full", i)})); err != nil {
				t.Fatal(err)
			}
			if m, err := stream.Recv(); err != nil || m.GetWelcome() == nil {
				t.Fatalf("%v, %v", m, err)
			}
		}
		stream, _ := raw(t, addr)
		if err := stream.Send(helloOf(&agentpb.Hello{Name: "late"})); err != nil {
			t.Fatal(err)
		}
		wantBye(t, stream, agentpb.Bye_FULL, "takes 2 agents")
	})
}

// A message from an agent has a bound, however it is announced.
func TestAgentMessageIsBounded(t *testing.T) {
	s, addr, _ := serve(t, newStore(t), 7, nil)
	stream, _ := raw(t, addr)
	if err := stream.Send(helloOf(&agentpb.Hello{Name: "large", Version: strings.Repeat("v", maxAgentMessage)})); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if _, err := bye(stream); status.Code(err) != codes.ResourceExhausted && !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	if len(s.Agents()) != 0 {
		t.Errorf("it was let in: %v", s.Agents())
	}
}

const largeServices = 150

// large is a store with more state than a connection takes unread.
func large(t *testing.T) *lbstate.Store {
	store := newStore(t)
	for i := range largeServices {
		s := lbstate.Service{Name: fmt.Sprintf("service-%04d", i), VIP: netip.MustParseAddr("192.0.2.10"), Port: 1 + i}
		for b := range 40 {
			s.Backends = append(s.Backends, lbstate.Backend{Address: netip.AddrFrom4([4]byte{10, 1, 0, byte(1 + b)})})
		}
		if _, err := store.PutService(t.Context(), s, lbstate.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

// An agent that never reads is ended, whatever it says meanwhile, and the server
// keeps no more for it than what is on its way.
func TestAgentThatNeverReads(t *testing.T) {
	store := large(t)
	s, addr, _ := serve(t, store, 7, func(c *ServerConfig) { c.SendTimeout = 200 * time.Millisecond; c.SilenceTimeout = 20 * time.Second })
	stream, leave := raw(t, addr)
	if err := stream.Send(helloOf(&agentpb.Hello{Name: "deaf"})); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // it goes on talking
		defer close(done)
		for stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Heartbeat{Heartbeat: &agentpb.Heartbeat{}}}) == nil {
			time.Sleep(5 * time.Millisecond)
		}
	}()
	until(t, "it is ended", func() bool {
		a := s.Agents()
		return len(a) == 1 && !a[0].Connected && strings.Contains(a[0].Problem, "does not read")
	})
	leave() // it has not noticed: it does not read
	<-done
}

// An agent that reads slowly is served all the same, and the changes that were
// made meanwhile come together.
func TestSlowReaderIsCoalesced(t *testing.T) {
	store := large(t)
	// It says nothing for as long as the test takes, on a machine that is busy.
	s, addr, _ := serve(t, store, 7, func(c *ServerConfig) { c.SilenceTimeout, c.SendTimeout = time.Minute, time.Minute })
	stream, _ := raw(t, addr)
	if err := stream.Send(helloOf(&agentpb.Hello{Name: "slow"})); err != nil {
		t.Fatal(err)
	}
	a := assembler{limit: 64 << 20}
	update := func() *agentpb.Update {
		t.Helper()
		for {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if m.GetChunk() == nil {
				continue
			}
			if u, err := a.add(m.GetChunk()); err != nil {
				t.Fatal(err)
			} else if u != nil {
				return u
			}
		}
	}
	first := update()
	if !first.GetFull() || len(first.GetServices()) != largeServices {
		t.Fatalf("%d services", len(first.GetServices()))
	}
	var last uint64
	for i := range 20 {
		last = put(t, store, "busy", 30000+i, nil)
	}
	v := viewOf(s, map[string]string{})
	until(t, "the view has the last change", func() bool { m, _ := v.state(); return m.revision == last })
	if err := stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Ack{Ack: &agentpb.Ack{Kind: agentpb.Ack_RECEIVED, Revision: first.GetRevision()}}}); err != nil {
		t.Fatal(err)
	}
	next := update()
	if next.GetFull() || next.GetSince() != first.GetRevision() || next.GetRevision() != last || len(next.GetServices()) != 1 {
		t.Errorf("since %d to %d, full %v, %d services", next.GetSince(), next.GetRevision(), next.GetFull(), len(next.GetServices()))
	}
}

// A client that announces a message of 4 GB gets an error and costs no memory;
// one that sends its message a byte at a time is ended.
func TestHostileFrames(t *testing.T) {
	_, addr, _ := serve(t, newStore(t), 7, func(c *ServerConfig) { c.SilenceTimeout = 300 * time.Millisecond })
	post := func(body io.Reader) (*http.Response, error) {
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		transport := &http.Transport{Protocols: &p}
		t.Cleanup(transport.CloseIdleConnections)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+agentpb.Agents_Stream_FullMethodName, body)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("TE", "trailers")
		return (&http.Client{Transport: transport}).Do(req)
	}
	t.Run("4 GB", func(t *testing.T) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		resp, err := post(bytes.NewReader(binary.BigEndian.AppendUint32([]byte{0}, 1<<32-1)))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 32<<20 {
			t.Errorf("%d bytes were allocated", grown)
		}
		status := resp.Trailer.Get("Grpc-Status") + resp.Header.Get("Grpc-Status")
		t.Logf("status %s %s%s", status, resp.Trailer.Get("Grpc-Message"), resp.Header.Get("Grpc-Message"))
	})
	t.Run("a byte at a time", func(t *testing.T) {
		r, w := io.Pipe()
		defer r.Close()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			message := append([]byte{0, 0, 0, 16, 0}, make([]byte, 4096)...)
			for _, b := range message {
				if _, err := w.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		resp, err := post(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		began := time.Now()
		data, _ := io.ReadAll(resp.Body) // the stream may end with a reset
		if !bytes.Contains(data, []byte("no hello in time")) || time.Since(began) > patience {
			t.Errorf("%q after %v", data, time.Since(began))
		}
		r.CloseWithError(io.ErrClosedPipe)
		<-ended
	})
}

// Reflection is off.
func TestReflectionIsOff(t *testing.T) {
	store := newStore(t)
	_, addr, _ := serve(t, store, 7, nil)
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, method := range []string{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"} {
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err == nil {
			err = stream.RecvMsg(&agentpb.Hello{})
		}
		if err == nil || !strings.Contains(err.Error(), "unknown service") {
			t.Errorf("%s: %v", method, err)
		}
	}
}
