package reconcile

import (
	"net/netip"
	"strconv"
	"strings"
)

// Table is a table of the packet filter.
type Table uint8

// The tables in which we have a chain.
const (
	NAT    Table = iota // SNAT, for packets that leave
	Filter              // Config.ProtectVIPs, for packets that come in
)

func (t Table) String() string {
	if t == Filter {
		return "filter"
	}
	return "nat"
}

// ChainKey names one of our chains: there can be one in each table of each
// family.
type ChainKey struct {
	Table  Table
	Family Family
}

// Name is the chain's name in its table.
func (k ChainKey) Name() string {
	if k.Table == Filter {
		return "IPVSKIT-INPUT"
	}
	return "IPVSKIT-POSTROUTING"
}

// Hook is the kernel's chain from which a rule jumps to ours.
func (k ChainKey) Hook() string {
	if k.Table == Filter {
		return "INPUT"
	}
	return "POSTROUTING"
}

func (k ChainKey) String() string {
	if k.Table == Filter {
		return "protection " + k.Family.String()
	}
	return "snat " + k.Family.String()
}

// allChains are all that there can be of ours.
var allChains = [...]ChainKey{{NAT, IPv4}, {NAT, IPv6}, {Filter, IPv4}, {Filter, IPv6}}

// Chain is one of our chains as the packet filter holds it.
type Chain struct {
	ChainKey
	Exists bool
	Jump   bool   // the hook jumps to it
	Rules  []Rule // in order
}

// Rule is one rule of a chain in iptables' words without "-A CHAIN". Equal rules
// are equal strings if both went through ParseRule.
type Rule string

// ParseRule is the canonical form of a rule as iptables prints it.
func ParseRule(text string) Rule {
	words := strings.Fields(text)
	if len(words) >= 2 && words[0] == "-A" {
		words = words[2:]
	}
	var out []string
	for i := 0; i < len(words); i++ {
		switch w := words[i]; w {
		case "--ipvs": // implied by every other option of the match; not always printed
		case "-s", "-d", "--vaddr":
			out = append(out, w)
			if i++; i < len(words) {
				out = append(out, canonicalPrefix(words[i]))
			}
		case "--vproto":
			out = append(out, w)
			if i++; i < len(words) {
				out = append(out, canonicalProtocol(words[i]))
			}
		default:
			out = append(out, w)
		}
	}
	return Rule(strings.Join(out, " "))
}

func canonicalPrefix(s string) string {
	if a, mask, ok := strings.Cut(s, "/"); ok && strings.Contains(mask, ".") {
		if m, err := netip.ParseAddr(mask); err == nil {
			ones := 0
			for _, b := range m.AsSlice() {
				for ; b&0x80 != 0; b <<= 1 {
					ones++
				}
			}
			s = a + "/" + strconv.Itoa(ones)
		}
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()).String()
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.String()
	}
	return s
}

func canonicalProtocol(s string) string {
	switch s {
	case "tcp":
		return "6"
	case "udp":
		return "17"
	case "sctp":
		return "132"
	}
	return s
}
