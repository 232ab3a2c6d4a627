package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// DNSConfig says how a DNS probe asks.
type DNSConfig struct {
	// Name is asked for. Required; a final dot is added where there is none.
	Name string
	// Type of the records: A (default), AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT.
	Type string
	// Address and Port are asked instead of the target's, where they are set.
	Address netip.Addr
	Port    uint16
	// TCP asks by TCP. By default UDP is used, and TCP when the answer says that
	// it was cut off.
	TCP bool
	// NoRecursion asks an authoritative server for what it knows itself.
	NoRecursion bool
	// Codes are the response codes that are wanted, by their names (NXDOMAIN).
	// Default NOERROR, with at least one record of the type.
	Codes []string
	// Want are addresses all of which must be among the answers; for A and AAAA.
	Want []netip.Addr
	Via  Via
}

// DNS is a probe that asks a name server. It is made by NewDNS.
type DNS struct {
	cfg   DNSConfig
	name  dnsmessage.Name
	kind  dnsmessage.Type
	codes []dnsmessage.RCode
}

var dnsTypes = map[string]dnsmessage.Type{
	"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "CNAME": dnsmessage.TypeCNAME, "MX": dnsmessage.TypeMX,
	"NS": dnsmessage.TypeNS, "PTR": dnsmessage.TypePTR, "SOA": dnsmessage.TypeSOA, "SRV": dnsmessage.TypeSRV, "TXT": dnsmessage.TypeTXT,
}

// dnsCodes are the names of RFC 1035 and 2136, by number.
var dnsCodes = []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE"}

func codeName(c dnsmessage.RCode) string {
	if int(c) < len(dnsCodes) {
		return dnsCodes[c]
	}
	return fmt.Sprintf("response code %d", c)
}

// NewDNS makes a DNS probe.
func NewDNS(cfg DNSConfig) (*DNS, error) {
	p := &DNS{cfg: cfg}
	if err := p.prepare(); err != nil {
		return nil, fmt.Errorf("dns probe: %w", err)
	}
	return p, nil
}

func (p *DNS) prepare() error {
	c := &p.cfg
	if c.Name == "" || strings.Contains(c.Name, "..") || strings.HasPrefix(c.Name, ".") && c.Name != "." || !visible(c.Name) {
		return fmt.Errorf("name is %q, want a domain name", c.Name)
	}
	name := strings.TrimSuffix(c.Name, ".") + "."
	var err error
	if p.name, err = dnsmessage.NewName(name); err != nil {
		return fmt.Errorf("name %q: %w", c.Name, err)
	}
	if c.Type == "" {
		c.Type = "A"
	}
	var known bool
	if p.kind, known = dnsTypes[c.Type]; !known {
		return fmt.Errorf("type is %q, want A, AAAA, CNAME, MX, NS, PTR, SOA, SRV or TXT", c.Type)
	}
	for _, code := range c.Codes {
		i := slices.Index(dnsCodes, code)
		if i < 0 {
			return fmt.Errorf("code is %q, want NOERROR, NXDOMAIN, REFUSED or the like", code)
		}
		p.codes = append(p.codes, dnsmessage.RCode(i))
	}
	if len(c.Codes) == 0 {
		p.codes = []dnsmessage.RCode{dnsmessage.RCodeSuccess}
	}
	for _, a := range c.Want {
		if (p.kind != dnsmessage.TypeA || !a.Is4()) && (p.kind != dnsmessage.TypeAAAA || !a.Is6()) {
			return fmt.Errorf("address %v cannot be in an answer of type %s", a, c.Type)
		}
	}
	if _, err := p.query(0); err != nil { // labels that are too long
		return fmt.Errorf("name %q: %w", c.Name, err)
	}
	return c.Via.validate()
}

// query is a message of one question.
func (p *DNS) query(id uint16) ([]byte, error) {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: !p.cfg.NoRecursion},
		Questions: []dnsmessage.Question{p.question()},
	}
	return m.Pack()
}

func (p *DNS) question() dnsmessage.Question {
	return dnsmessage.Question{Name: p.name, Type: p.kind, Class: dnsmessage.ClassINET}
}

func (p *DNS) expected() string {
	what := p.cfg.Type + " of " + quote(p.cfg.Name)
	if len(p.cfg.Want) > 0 {
		return what + " to have " + fmt.Sprint(p.cfg.Want)
	}
	var codes []string
	for _, c := range p.codes {
		codes = append(codes, codeName(c))
	}
	return what + " to give " + strings.Join(codes, " or ")
}

// Probe asks target.
func (p *DNS) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	target = at(target, p.cfg.Address, p.cfg.Port)
	id := uint16(rand.Uint32())
	query, err := p.query(id)
	if err != nil {
		return failed(ctx, phaseRequest, p.expected(), localError{err})
	}
	byTCP := p.cfg.TCP
	for {
		answer, phase, err := p.exchange(ctx, target, byTCP, id, query)
		if err != nil {
			return failed(ctx, phase, p.expected(), err)
		}
		res, cut := p.judge(id, answer)
		if !cut || byTCP {
			return res
		}
		byTCP = true
	}
}

// exchange sends a query and returns the message that answers it.
func (p *DNS) exchange(ctx context.Context, target netip.AddrPort, byTCP bool, id uint16, query []byte) (answer []byte, phase string, err error) {
	dial := p.cfg.Via.udp
	if byTCP {
		dial = p.cfg.Via.connect
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	conn, err := dial(ctx, target)
	if err != nil {
		return nil, phaseConnect, err
	}
	defer conn.Close()
	defer bind(ctx, conn)()
	if _, err := conn.Write(query); err != nil {
		return nil, phaseRequest, err
	}
	if byTCP {
		answer, err = framed(conn)
	} else {
		answer, err = p.datagram(conn, id)
	}
	return answer, phaseAnswer, err
}

// datagram waits for one that answers the query. Others, which are late or
// forged, are passed over.
func (p *DNS) datagram(conn net.Conn, id uint16) ([]byte, error) {
	answer := make([]byte, 4096)
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if n >= 2 && binary.BigEndian.Uint16(answer) == id {
			return answer[:n], nil
		}
	}
}

// framed reads a message with its length before it.
func framed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, answer)
	return answer, err
}

// judge says what to make of an answer; cut says that only a part of it came.
func (p *DNS) judge(id uint16, answer []byte) (res healthcheck.Result, cut bool) {
	bad := func(class healthcheck.Class, found string) healthcheck.Result {
		return healthcheck.Result{Class: class, Phase: phaseAnswer, Expected: p.expected(), Found: found}
	}
	var in dnsmessage.Parser
	header, err := in.Start(answer)
	if err != nil {
		return bad(healthcheck.Protocol, "not a DNS message: "+quote(err.Error())), false
	}
	if header.ID != id || !header.Response {
		return bad(healthcheck.Protocol, "a message that is no answer to the question"), false
	}
	if !slices.Contains(p.codes, header.RCode) {
		return bad(healthcheck.BadStatus, codeName(header.RCode)), header.Truncated
	}
	questions, err := in.AllQuestions()
	if err != nil || len(questions) != 1 || questions[0].Type != p.kind || questions[0].Class != dnsmessage.ClassINET ||
		!strings.EqualFold(questions[0].Name.String(), p.name.String()) {
		return bad(healthcheck.Protocol, "an answer to another question"), header.Truncated
	}
	if header.RCode != dnsmessage.RCodeSuccess {
		return healthcheck.Result{}, false
	}
	records, addresses, err := p.records(&in)
	switch {
	case header.Truncated:
		return bad(healthcheck.Protocol, "an answer that is cut off"), true
	case err != nil:
		return bad(healthcheck.Protocol, "records that cannot be read: "+quote(err.Error())), false
	case records == 0:
		return bad(healthcheck.BadBody, "no record of this type"), false
	}
	for _, want := range p.cfg.Want {
		if !slices.Contains(addresses, want) {
			return bad(healthcheck.BadBody, quote(fmt.Sprint(addresses))), false
		}
	}
	return healthcheck.Result{}, false
}

// records counts those of the type that was asked for, and reads addresses.
func (p *DNS) records(in *dnsmessage.Parser) (n int, addresses []netip.Addr, err error) {
	for {
		h, err := in.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return n, addresses, nil
		}
		if err != nil {
			return 0, nil, err
		}
		if h.Type == p.kind {
			n++
		}
		switch h.Type {
		case dnsmessage.TypeA:
			a, err := in.AResource()
			if err != nil {
				return 0, nil, err
			}
			addresses = append(addresses, netip.AddrFrom4(a.A))
		case dnsmessage.TypeAAAA:
			a, err := in.AAAAResource()
			if err != nil {
				return 0, nil, err
			}
			addresses = append(addresses, netip.AddrFrom16(a.AAAA))
		default:
			if err := in.SkipAnswer(); err != nil {
				return 0, nil, err
			}
		}
	}
}
