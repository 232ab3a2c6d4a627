package probe

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ipvskit/ipvskit/healthcheck"
)

func newDNS(t testing.TB, cfg DNSConfig) *DNS {
	t.Helper()
	p, err := NewDNS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// resolver answers a query; nil: it does not.
type resolver func(query dnsmessage.Message) []byte

// answering packs an answer to query.
func answering(query dnsmessage.Message, edit func(*dnsmessage.Message), addrs ...string) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, RecursionDesired: query.RecursionDesired, RecursionAvailable: true},
		Questions: query.Questions,
	}
	for _, a := range addrs {
		h := dnsmessage.ResourceHeader{Name: query.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60}
		if addr := netip.MustParseAddr(a); addr.Is4() {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}})
		} else {
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
		}
	}
	if edit != nil {
		edit(&m)
	}
	out, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return out
}

func addresses(addrs ...string) resolver {
	return func(q dnsmessage.Message) []byte { return answering(q, nil, addrs...) }
}

func edited(edit func(*dnsmessage.Message)) resolver {
	return func(q dnsmessage.Message) []byte { return answering(q, edit, "192.0.2.1") }
}

func parsed(t testing.TB, query []byte) dnsmessage.Message {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 || m.Response {
		t.Errorf("the query is %+v, %v", m, err)
	}
	return m
}

func byUDP(t testing.TB, answer resolver) netip.AddrPort {
	return datagrams(t, func(query []byte) [][]byte {
		if a := answer(parsed(t, query)); a != nil {
			return [][]byte{a}
		}
		return nil
	})
}

// alsoTCP serves TCP at the same address.
func alsoTCP(t testing.TB, at netip.AddrPort, answer resolver) {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			oneByTCP(t, c, answer)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

func oneByTCP(t testing.TB, c net.Conn, answer resolver) {
	query, err := framed(c)
	if err != nil {
		return
	}
	if a := answer(parsed(t, query)); a != nil {
		c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)) //nolint:errcheck // the probe notices
	}
}

func TestDNS(t *testing.T) {
	a := DNSConfig{Name: "www.example.com"}
	with := func(edit func(*DNSConfig)) DNSConfig {
		c := a
		edit(&c)
		return c
	}
	v4 := netip.MustParseAddr("192.0.2.1")
	for _, tt := range []struct {
		name   string
		cfg    DNSConfig
		answer resolver
		want   outcome
	}{
		{"an address", a, addresses("192.0.2.1"), fine},
		{"addresses that are wanted", with(func(c *DNSConfig) { c.Want = []netip.Addr{v4} }), addresses("192.0.2.7", "192.0.2.1"), fine},
		{"IPv6", with(func(c *DNSConfig) { c.Type = "AAAA"; c.Want = []netip.Addr{netip.MustParseAddr("2001:db8::1")} }), addresses("2001:db8::1"), fine},
		{"in any case of letters", a, edited(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("WWW.Example.COM.") }), fine},
		{"by way of another name", a, edited(func(m *dnsmessage.Message) {
			m.Answers = append([]dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET},
				Body:   &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("x.example.")},
			}}, m.Answers...)
		}), fine},
		{
			"no such name, as is wanted", with(func(c *DNSConfig) { c.Codes = []string{"NOERROR", "NXDOMAIN"} }),
			edited(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError; m.Answers = nil }), fine,
		},

		{"no such name", a, edited(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }), outcome{class: healthcheck.BadStatus, phase: "answer", expected: "A of www.example.com to give NOERROR", found: "NXDOMAIN"}},
		{"the server fails", a, edited(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeServerFailure }), outcome{class: healthcheck.BadStatus, phase: "answer", found: "SERVFAIL"}},
		{"refused", a, edited(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeRefused }), outcome{class: healthcheck.BadStatus, phase: "answer", found: "REFUSED"}},
		{"an odd code", a, edited(func(m *dnsmessage.Message) { m.RCode = 14 }), outcome{class: healthcheck.BadStatus, phase: "answer", found: "response code 14"}},
		{"nothing", a, addresses(), outcome{class: healthcheck.BadBody, phase: "answer", found: "no record"}},
		{"another type", a, addresses("2001:db8::1"), outcome{class: healthcheck.BadBody, phase: "answer", found: "no record"}},
		{"another address", with(func(c *DNSConfig) { c.Want = []netip.Addr{v4} }), addresses("192.0.2.2"), outcome{class: healthcheck.BadBody, phase: "answer", expected: "to have [192.0.2.1]", found: "[192.0.2.2]"}},
		{"another question", a, edited(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("x.") }), outcome{class: healthcheck.Protocol, phase: "answer", found: "another question"}},
		{"a question back", a, edited(func(m *dnsmessage.Message) { m.Response = false }), outcome{class: healthcheck.Protocol, phase: "answer", found: "no answer to the question"}},
		{"records that end too early", a, func(q dnsmessage.Message) []byte { b := answering(q, nil, "192.0.2.1"); return b[:len(b)-2] }, outcome{class: healthcheck.Protocol, phase: "answer", found: "cannot be read"}},
		{"a header that ends too early", a, func(q dnsmessage.Message) []byte { return answering(q, nil)[:7] }, outcome{class: healthcheck.Protocol, phase: "answer", found: "not a DNS message"}},
		{"another ID", a, edited(func(m *dnsmessage.Message) { m.ID++ }), outcome{class: healthcheck.Timeout, phase: "answer"}},
		{"hangs", a, func(dnsmessage.Message) []byte { return nil }, outcome{class: healthcheck.Timeout, phase: "answer"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ask(t, newDNS(t, tt.cfg), byUDP(t, tt.answer), tt.want)
			if strings.Contains(tt.name, "ID") {
				return // by TCP there are no others' answers
			}
			tt.cfg.TCP = true
			ask(t, newDNS(t, tt.cfg), serve(t, func(c net.Conn) { oneByTCP(t, c, tt.answer); hang(c) }).addr, tt.want)
		})
	}
	ask(t, newDNS(t, a), unheard(t), outcome{class: healthcheck.Refused, phase: "answer", advice: "listens"})
	byTCP := newDNS(t, with(func(c *DNSConfig) { c.TCP = true }))
	ask(t, byTCP, nobody(t), outcome{class: healthcheck.Refused, phase: "connect"})
	ask(t, byTCP, serve(t, closeEarly).addr, outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"})
	ask(t, byTCP, serve(t, sayAndClose("\x00\xffshort")).addr, outcome{class: healthcheck.Protocol, phase: "answer", found: "closed early"})
	ask(t, byTCP, serve(t, reset).addr, outcome{class: healthcheck.Reset, phase: "answer"})
	stranger := edited(func(m *dnsmessage.Message) { m.ID++ })
	ask(t, byTCP, serve(t, func(c net.Conn) { oneByTCP(t, c, stranger) }).addr, outcome{class: healthcheck.Protocol, phase: "answer", found: "no answer to the question"})
}

// An answer that does not fit into a datagram is asked for by TCP.
func TestDNSTruncated(t *testing.T) {
	cut := edited(func(m *dnsmessage.Message) { m.Truncated = true; m.Answers = nil })
	p := newDNS(t, DNSConfig{Name: "example.com.", Want: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	whole := byUDP(t, cut)
	alsoTCP(t, whole, addresses("192.0.2.1"))
	ask(t, p, whole, fine)
	never := byUDP(t, cut)
	alsoTCP(t, never, cut)
	ask(t, p, never, outcome{class: healthcheck.Protocol, phase: "answer", found: "cut off"})
	ask(t, p, byUDP(t, cut), outcome{class: healthcheck.Refused, phase: "connect"})
}

func TestDNSQuery(t *testing.T) {
	for name, recursion := range map[string]bool{"example.com": true, "example.org.": false, ".": true} {
		p := newDNS(t, DNSConfig{Name: name, Type: "NS", NoRecursion: !recursion})
		q, err := p.query(7)
		if err != nil {
			t.Fatal(err)
		}
		m := parsed(t, q)
		if m.ID != 7 || m.RecursionDesired != recursion || m.Questions[0].Name.String() != strings.TrimSuffix(name, ".")+"." || m.Questions[0].Type != dnsmessage.TypeNS {
			t.Errorf("%+v", m)
		}
	}
}

func TestDNSFaultsOfAConfig(t *testing.T) {
	for _, cfg := range []DNSConfig{
		{},
		{Name: "a..b"},
		{Name: ".a"},
		{Name: "a b"},
		{Name: strings.Repeat("a", 64) + ".com"},
		{Name: strings.Repeat("a.", 200)},
		{Name: "a", Type: "ANY"},
		{Name: "a", Codes: []string{"OK"}},
		{Name: "a", Want: []netip.Addr{netip.MustParseAddr("::1")}},
		{Name: "a", Type: "MX", Want: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		{Name: "a", Want: []netip.Addr{{}}},
	} {
		if _, err := NewDNS(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

func FuzzDNSAnswer(f *testing.F) {
	p, err := NewDNS(DNSConfig{Name: "a.example", Codes: []string{"NOERROR", "NXDOMAIN"}})
	if err != nil {
		f.Fatal(err)
	}
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{p.question()}}
	f.Add(answering(query, nil, "192.0.2.1"))
	f.Add(answering(query, nil, "2001:db8::1"))
	f.Add(answering(query, func(m *dnsmessage.Message) { m.RCode, m.Truncated = 3, true }))
	f.Fuzz(func(t *testing.T, answer []byte) {
		res, cut := p.judge(7, answer)
		wellFormed(t, res)
		if cut && res.OK() {
			t.Errorf("%+v of an answer that was cut off", res)
		}
		framed(strings.NewReader(string(answer))) //nolint:errcheck // it only must not panic
	})
}
