package agent_test

import (
	"net"
	"sync"
	"testing"
)

// proxy carries connections to an address that may change. Cut off, it carries
// nothing and closes nothing, as a network that is partitioned.
type proxy struct {
	l       net.Listener
	running sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	moved  *sync.Cond
	target string
	cut    bool
	closed bool
	conns  map[net.Conn]struct{}
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, conns: map[net.Conn]struct{}{}}
	p.moved = sync.NewCond(&p.mu)
	p.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.running.Go(func() { p.carry(c) })
		}
	})
	t.Cleanup(p.close)
	return p
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.l.Close()
	for c := range p.conns {
		c.Close()
	}
	p.moved.Broadcast()
	p.mu.Unlock()
	p.running.Wait()
}

// pass waits until something may be carried, and says whether it ever will.
func (p *proxy) pass() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.cut && !p.closed {
		p.moved.Wait()
	}
	return !p.closed
}

func (p *proxy) set(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
	p.moved.Broadcast()
}

func (p *proxy) to(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

func (p *proxy) own(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) carry(in net.Conn) {
	defer in.Close()
	if !p.own(in) || !p.pass() {
		return
	}
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	if !p.own(out) {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			defer way[1].Close()
			buf := make([]byte, 16<<10)
			for {
				n, err := way[0].Read(buf)
				if !p.pass() || err != nil {
					return
				}
				if _, err := way[1].Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, in)
	delete(p.conns, out)
}
