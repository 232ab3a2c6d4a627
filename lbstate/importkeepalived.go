package lbstate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ImportKeepalived reads the virtual_server blocks of a keepalived
// configuration. Services are named after their listeners. The notes say, by
// line, what could not be carried over, and what the state would refuse.
func ImportKeepalived(data []byte) (Configuration, []ImportNote) {
	var im keepalived
	if im.tooLong(data) {
		return im.result()
	}
	statements := im.parse(data)
	im.groups = map[string][]statement{}
	for _, st := range statements {
		if st.is("virtual_server_group") && len(st.words) == 2 {
			im.groups[st.words[1]] = st.block
		}
	}
	for _, st := range statements {
		switch st.words[0] {
		case "virtual_server":
			im.virtualServers(st)
		case "virtual_server_group":
		default:
			im.note(st.line, st.words[0], "is not of a virtual server; it is left out")
		}
	}
	return im.result()
}

type keepalived struct {
	importer
	groups map[string][]statement
}

// statement is a keyword with its values, and the block in braces that follows.
type statement struct {
	line  int
	words []string // never empty
	block []statement
}

func (st statement) is(keyword string) bool { return st.words[0] == keyword }

// value is the statement's first value, or "".
func (st statement) value() string {
	if len(st.words) < 2 {
		return ""
	}
	return st.words[1]
}

func (st statement) text() string { return strings.Join(st.words, " ") }

// find returns the first statement of a block with a keyword.
func find(block []statement, keyword string) (statement, bool) {
	for _, st := range block {
		if st.is(keyword) {
			return st, true
		}
	}
	return statement{}, false
}

// maxDepth bounds blocks within blocks.
const maxDepth = 16

// parse reads statements: words up to the end of a line, then perhaps a block.
func (im *keepalived) parse(data []byte) []statement {
	open := []*[]statement{new([]statement)}
	line := 0
	for text := range strings.Lines(string(data)) {
		line++
		var words []string
		flush := func() {
			if len(words) > 0 {
				block := open[len(open)-1]
				*block = append(*block, statement{line: line, words: words})
				words = nil
			}
		}
		for _, word := range im.words(line, text) {
			switch word {
			case "{":
				flush()
				block := open[len(open)-1]
				if len(*block) == 0 || len(open) > maxDepth {
					im.note(line, "{", "opens a block of nothing, or one too deep; what follows is left out")
					return *open[0]
				}
				open = append(open, &(*block)[len(*block)-1].block)
			case "}":
				flush()
				if len(open) == 1 {
					im.note(line, "}", "closes no block")
					continue
				}
				open = open[:len(open)-1]
			default:
				words = append(words, strings.TrimPrefix(word, `"`))
			}
		}
		flush()
	}
	if len(open) > 1 {
		im.note(line, "end", "a block is not closed")
	}
	return *open[0]
}

// words splits a line. A word that was quoted keeps its first quote, so that a
// quoted brace is no brace.
func (im *keepalived) words(line int, text string) (words []string) {
	for {
		text = strings.TrimLeft(text, " \t\r\n")
		switch {
		case text == "" || text[0] == '#' || text[0] == '!':
			return words
		case text[0] == '{' || text[0] == '}':
			words, text = append(words, text[:1]), text[1:]
		case text[0] == '"':
			quoted, rest, closed := strings.Cut(text[1:], `"`)
			if !closed {
				im.note(line, text, "a quote is not closed")
			}
			words, text = append(words, `"`+strings.TrimRight(quoted, "\r\n")), rest
		default:
			n := strings.IndexAny(text, " \t\r\n{}")
			if n < 0 {
				n = len(text)
			}
			words, text = append(words, text[:n]), text[n:]
		}
	}
}

// virtualServers carries a block over: one service, or of a group several.
func (im *keepalived) virtualServers(st statement) {
	if st.value() != "group" {
		im.virtualServer(st, st.words[1:])
		return
	}
	if len(st.words) != 3 || im.groups[st.words[2]] == nil {
		im.note(st.line, st.text(), "names a group that there is not; it is left out")
		return
	}
	for _, member := range im.groups[st.words[2]] {
		im.virtualServer(st, member.words)
	}
}

// virtualServer carries a block over for one listener.
func (im *keepalived) virtualServer(st statement, listener []string) {
	s := Service{Protocol: TCP, Forwarding: Masq}
	if p, ok := find(st.block, "protocol"); ok {
		s.Protocol = Protocol(strings.ToLower(p.value()))
	}
	if err := keepalivedListener(&s, listener, st.block); err != nil {
		im.note(st.line, strings.Join(listener, " "), err.Error()+"; it is left out")
		return
	}
	s.Name = importName(s)
	added := im.add(st.line, s)
	if added == nil {
		return
	}
	s = *added
	check := HealthCheck{Initial: InitialUp} // as keepalived assumes without alpha
	for _, o := range st.block {
		im.option(&s, &check, o)
	}
	weight := 1
	if w, ok := find(st.block, "weight"); ok {
		weight = im.integer(w, 1)
	}
	for _, o := range st.block {
		if o.is("real_server") {
			im.realServer(&s, check, weight, o)
		}
	}
	*added = s
}

func keepalivedListener(s *Service, words []string, block []statement) error {
	if len(words) >= 2 && words[0] == "fwmark" {
		mark, err := strconv.ParseUint(words[1], 10, 32)
		if err != nil || mark == 0 {
			return fmt.Errorf("%q is not a firewall mark", clip(words[1]))
		}
		s.FWMark, s.Family, s.Protocol = uint32(mark), IPv4, ""
		if f, ok := find(block, "ip_family"); ok && f.value() == "inet6" {
			s.Family = IPv6
		}
		return nil
	}
	if len(words) < 1 || len(words) > 2 {
		return fmt.Errorf("is not an address and a port")
	}
	var err error
	if s.VIP, err = netip.ParseAddr(words[0]); err != nil {
		return fmt.Errorf("%q is not one IP address", clip(words[0]))
	}
	s.VIP = s.VIP.Unmap()
	if len(words) == 2 {
		port, err := strconv.ParseUint(words[1], 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not a port in numbers", clip(words[1]))
		}
		s.Port = int(port)
	}
	return nil
}

// keepalivedForwarding maps lvs_method.
var keepalivedForwarding = map[string]Forwarding{"NAT": Masq, "DR": DR, "TUN": Tunnel}

// option carries one statement of a virtual server over, but for its servers.
func (im *keepalived) option(s *Service, c *HealthCheck, o statement) {
	switch o.words[0] {
	case "protocol", "ip_family", "weight", "real_server", "inhibit_on_failure":
	case "lb_algo", "lvs_sched":
		s.Scheduler = o.value()
	case "lb_kind", "lvs_method":
		s.Forwarding, s.Tunnel = im.forwarding(o)
	case "persistence_timeout":
		p := im.persistence(s)
		p.Timeout = Duration(360e9) // keepalived's default
		if o.value() != "" {
			p.Timeout = im.seconds(o)
		}
	case "persistence_granularity":
		n, err := prefixLength(o.value())
		if err != nil {
			im.note(o.line, o.text(), err.Error())
		}
		im.persistence(s).Prefix = n
	case "persistence_engine":
		im.persistence(s).Engine = o.value()
	case "ops":
		s.OnePacket = true
	case "sh-port", "sh-fallback", "mh-port", "mh-fallback":
		s.SchedulerFlags = append(s.SchedulerFlags, o.words[0])
	case "quorum":
		s.MinHealthy = im.integer(o, 1)
	case "alpha":
		c.Initial = InitialDown
	case "delay_loop", "retry", "connect_timeout", "virtualhost":
		im.checkOption(c, o)
	case "sorry_server":
		im.sorryServer(s, o)
	default:
		im.note(o.line, o.text(), "has no counterpart; it is left out")
	}
}

func (im *keepalived) persistence(s *Service) *Persistence {
	if s.Persistence == nil {
		s.Persistence = &Persistence{}
	}
	return s.Persistence
}

func (im *keepalived) forwarding(o statement) (Forwarding, *TunnelOptions) {
	f, ok := keepalivedForwarding[strings.ToUpper(o.value())]
	if !ok {
		im.note(o.line, o.text(), "is none of NAT, DR, TUN")
		return Masq, nil
	}
	if f != Tunnel || len(o.words) < 3 {
		return f, nil
	}
	// TUN type (ipip | gue port N [nocsum|csum|remcsum] | gre [nocsum|csum])
	t := &TunnelOptions{}
	for i := 2; i < len(o.words); i++ {
		switch word := o.words[i]; word {
		case "type":
		case "ipip", "gue", "gre":
			t.Type = TunnelType(word)
		case "port":
			if i++; i < len(o.words) {
				t.Port = im.integer(statement{line: o.line, words: []string{"port", o.words[i]}}, 0)
			}
		case "nocsum":
			t.Checksum = ChecksumNone
		case "csum":
			t.Checksum = ChecksumOn
		case "remcsum":
			t.Checksum = ChecksumRemote
		default:
			im.note(o.line, o.text(), fmt.Sprintf("%q is not of a tunnel", clip(word)))
		}
	}
	return f, t
}

func (im *keepalived) sorryServer(s *Service, o statement) {
	addr, port, ok := im.target(o)
	if !ok {
		return
	}
	s.SorryServer = &SorryServer{Address: addr, Port: port}
}

// target reads the address and the port of a server.
func (im *keepalived) target(o statement) (addr netip.Addr, port int, ok bool) {
	addr, err := netip.ParseAddr(o.value())
	if err != nil {
		im.note(o.line, o.text(), "is not an address and a port in numbers; it is left out")
		return addr, 0, false
	}
	if len(o.words) > 2 {
		n, err := strconv.ParseUint(o.words[2], 10, 16)
		if err != nil {
			im.note(o.line, o.text(), "is not an address and a port in numbers; it is left out")
			return addr, 0, false
		}
		port = int(n)
	}
	return addr.Unmap(), port, true
}

func (im *keepalived) realServer(s *Service, check HealthCheck, weight int, st statement) {
	addr, port, ok := im.target(st)
	if !ok {
		return
	}
	b := Backend{Address: addr, Port: port}
	var checkers []HealthCheck
	var first statement // of them
	for _, o := range st.block {
		switch o.words[0] {
		case "weight":
			weight = im.integer(o, weight)
		case "lb_kind", "lvs_method":
			b.Forwarding, b.Tunnel = im.forwarding(o)
		case "uthreshold":
			b.UpperThreshold = im.integer(o, 0)
		case "lthreshold":
			b.LowerThreshold = im.integer(o, 0)
		case "inhibit_on_failure": // the state never takes a failed backend out
		case "alpha":
			check.Initial = InitialDown
		case "delay_loop", "retry", "connect_timeout", "virtualhost":
			im.checkOption(&check, o)
		case "MISC_CHECK":
			im.note(o.line, o.words[0], "runs a program; it is left out: put the program where the servers' configuration allows it, and write a check of type exec")
		case "TCP_CHECK", "HTTP_GET", "SSL_GET", "DNS_CHECK", "SMTP_CHECK", "UDP_CHECK", "PING_CHECK":
			if len(checkers) == 0 {
				first = o
			}
			checkers = append(checkers, im.checker(check, o)...)
		default:
			im.note(o.line, o.text(), "has no counterpart; it is left out")
		}
	}
	b.HealthCheck = im.combined(first, checkers)
	b.Weight = &weight
	s.Backends = append(s.Backends, b)
}

func (im *keepalived) integer(o statement, missing int) int {
	n, err := strconv.ParseInt(o.value(), 10, 32)
	if err != nil {
		im.note(o.line, o.text(), fmt.Sprintf("is not a number; %d stands in its place", missing))
		return missing
	}
	return int(n)
}

func (im *keepalived) seconds(o statement) Duration {
	d, err := seconds(o.value())
	if err != nil {
		im.note(o.line, o.text(), err.Error())
	}
	return d
}
