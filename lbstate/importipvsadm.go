package lbstate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ImportIPVSADM reads the output of `ipvsadm -Sn`. Services are named after
// their listeners. The notes say, by line, what could not be carried over, and
// what the state would refuse though the kernel took it.
func ImportIPVSADM(data []byte) (Configuration, []ImportNote) {
	var im ipvsadm
	if !im.tooLong(data) {
		line := 0
		for text := range strings.Lines(string(data)) {
			line++
			if words := strings.Fields(text); len(words) > 0 && !strings.HasPrefix(words[0], "#") {
				im.line(line, words)
			}
		}
	}
	return im.result()
}

type ipvsadm struct{ importer }

// ipvsadmOptions maps every option that a saved rule may have to its short
// name, and says whether a value follows.
var ipvsadmOptions = map[string]struct {
	short string
	value bool
}{
	"-A": {"A", false}, "--add-service": {"A", false}, "-a": {"a", false}, "--add-server": {"a", false},
	"-t": {"t", true}, "--tcp-service": {"t", true}, "-u": {"u", true}, "--udp-service": {"u", true},
	"--sctp-service": {"sctp", true}, "-f": {"f", true}, "--fwmark-service": {"f", true}, "-6": {"6", false}, "--ipv6": {"6", false},
	"-s": {"s", true}, "--scheduler": {"s", true}, "-b": {"b", true}, "--sched-flags": {"b", true},
	"-p": {"p", true}, "--persistent": {"p", true}, "-M": {"M", true}, "--netmask": {"M", true}, "--pe": {"pe", true},
	"-o": {"o", false}, "--ops": {"o", false}, "-r": {"r", true}, "--real-server": {"r", true},
	"-g": {"g", false}, "--gatewaying": {"g", false}, "-i": {"i", false}, "--ipip": {"i", false},
	"-m": {"m", false}, "--masquerading": {"m", false}, "-w": {"w", true}, "--weight": {"w", true},
	"-x": {"x", true}, "--u-threshold": {"x", true}, "-y": {"y", true}, "--l-threshold": {"y", true},
	"--tun-type": {"tun-type", true}, "--tun-port": {"tun-port", true},
	"--tun-nocsum": {"tun-nocsum", false}, "--tun-csum": {"tun-csum", false}, "--tun-remcsum": {"tun-remcsum", false},
}

// rule is one line by option.
type rule struct {
	im   *ipvsadm
	line int
	o    map[string]string
}

func (im *ipvsadm) line(line int, words []string) {
	r := rule{im, line, map[string]string{}}
	for i := 0; i < len(words); i++ {
		opt, ok := ipvsadmOptions[words[i]]
		if !ok {
			im.note(line, words[i], "is not an option of a saved rule; the line is left out")
			return
		}
		value := ""
		if opt.value {
			if i++; i == len(words) {
				im.note(line, words[i-1], "has no value; the line is left out")
				return
			}
			value = words[i]
		}
		r.o[opt.short] = value
	}
	s, err := r.listener()
	if err != nil {
		im.note(line, strings.Join(words, " "), err.Error()+"; the line is left out")
		return
	}
	_, service := r.o["A"]
	_, server := r.o["a"]
	switch {
	case service == server:
		im.note(line, strings.Join(words, " "), "does not add a service or a server; the line is left out")
	case service:
		r.service(s)
	default:
		r.server(s.Name)
	}
}

// listener is what the rule is about.
func (r rule) listener() (s Service, err error) {
	for opt, protocol := range map[string]Protocol{"t": TCP, "u": UDP, "sctp": SCTP} {
		if text, ok := r.o[opt]; ok {
			at, err := netip.ParseAddrPort(text)
			if err != nil {
				return s, fmt.Errorf("%q is not an address and a port in numbers: save with -n", clip(text))
			}
			s.Protocol, s.VIP, s.Port = protocol, at.Addr().Unmap(), int(at.Port())
		}
	}
	if text, ok := r.o["f"]; ok {
		mark, err := strconv.ParseUint(text, 10, 32)
		if err != nil || mark == 0 {
			return s, fmt.Errorf("%q is not a firewall mark", clip(text))
		}
		s.FWMark, s.Family = uint32(mark), IPv4
		if _, ok := r.o["6"]; ok {
			s.Family = IPv6
		}
	}
	if s.VIP.IsValid() == (s.FWMark != 0) {
		return s, fmt.Errorf("there is not exactly one service")
	}
	s.Name = importName(s)
	return s, nil
}

func (r rule) service(s Service) {
	s.Scheduler = r.o["s"]
	if flags := r.o["b"]; flags != "" {
		s.SchedulerFlags = strings.Split(flags, ",")
	}
	if timeout, ok := r.o["p"]; ok {
		s.Persistence = &Persistence{Engine: r.o["pe"]}
		var err error
		if s.Persistence.Timeout, err = seconds(timeout); err != nil {
			r.im.note(r.line, "-p "+timeout, err.Error())
		}
		if mask, ok := r.o["M"]; ok {
			if s.Persistence.Prefix, err = prefixLength(mask); err != nil {
				r.im.note(r.line, "-M "+mask, err.Error())
			}
		}
	}
	_, s.OnePacket = r.o["o"]
	s.Forwarding = DR // ipvsadm's default for servers
	r.im.add(r.line, s)
}

func (r rule) server(service string) {
	var s *Service
	for i := range r.im.services {
		if r.im.services[i].Name == service {
			s = &r.im.services[i]
		}
	}
	if s == nil {
		r.im.note(r.line, service, "was not added before; the server is left out")
		return
	}
	at, err := netip.ParseAddrPort(r.o["r"])
	if err != nil { // a server of a firewall mark may have no port
		addr, bare := netip.ParseAddr(strings.Trim(r.o["r"], "[]"))
		if bare != nil {
			r.im.note(r.line, "-r "+r.o["r"], "is not an address and a port in numbers: save with -n; the server is left out")
			return
		}
		at = netip.AddrPortFrom(addr, uint16(s.Port))
	}
	b := Backend{Address: at.Addr().Unmap(), Port: int(at.Port()), Forwarding: DR}
	if _, ok := r.o["m"]; ok {
		b.Forwarding = Masq
	}
	if _, ok := r.o["i"]; ok {
		b.Forwarding = Tunnel
		b.Tunnel = r.tunnel()
	}
	weight := r.number("w", 1)
	b.Weight, b.UpperThreshold, b.LowerThreshold = &weight, r.number("x", 0), r.number("y", 0)
	s.Backends = append(s.Backends, b)
}

func (r rule) tunnel() *TunnelOptions {
	t := &TunnelOptions{Type: TunnelType(r.o["tun-type"]), Port: r.number("tun-port", 0)}
	if _, ok := r.o["tun-csum"]; ok {
		t.Checksum = ChecksumOn
	}
	if _, ok := r.o["tun-remcsum"]; ok {
		t.Checksum = ChecksumRemote
	}
	return t
}

func (r rule) number(opt string, missing int) int {
	text, ok := r.o[opt]
	if !ok {
		return missing
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		r.im.note(r.line, text, fmt.Sprintf("is not a number; %d stands in its place", missing))
		return missing
	}
	return n
}
