package fakekernel

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ipvskit/ipvskit/reconcile"
)

// Dump is what `ipvsadm -Sn` would print: services by key, destinations by
// address and port. Unlike ipvsadm it does not forget thresholds.
func (k *Kernel) Dump() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return Dump(k.list())
}

// Dump writes services as `ipvsadm -Sn` does.
func Dump(services []reconcile.ServiceState) string {
	var b strings.Builder
	for _, s := range services {
		fmt.Fprintf(&b, "-A %s -s %s", serviceArgs(s.Key), s.Scheduler)
		if s.Flags&reconcile.Persistent != 0 {
			fmt.Fprintf(&b, " -p %d", s.Timeout/time.Second)
			switch {
			case s.Family == reconcile.IPv4 && s.Prefix != 32:
				fmt.Fprintf(&b, " -M %s", net.IP(net.CIDRMask(s.Prefix, 32)))
			case s.Family == reconcile.IPv6 && s.Prefix != 128:
				fmt.Fprintf(&b, " -M %d", s.Prefix)
			}
		}
		if s.Flags&reconcile.OnePacket != 0 {
			b.WriteString(" -o")
		}
		if s.Engine != "" {
			b.WriteString(" --pe " + s.Engine)
		}
		if f := schedulerFlags(s.Scheduler, s.Flags); f != "" {
			b.WriteString(" -b " + f)
		}
		b.WriteByte('\n')
		for _, d := range s.Destinations {
			fmt.Fprintf(&b, "-a %s -r %s %s -w %d", serviceArgs(s.Key), d.AddrPort(), forwardingArg(d.Forwarding), int32(d.Weight))
			if d.Upper != 0 {
				fmt.Fprintf(&b, " -x %d", d.Upper)
			}
			if d.Lower != 0 {
				fmt.Fprintf(&b, " -y %d", d.Lower)
			}
			switch {
			case d.Forwarding != reconcile.Tunnel:
			case d.Encap == reconcile.IPIP:
				b.WriteString(" --tun-type ipip")
			case d.Encap == reconcile.GUE:
				fmt.Fprintf(&b, " --tun-type gue --tun-port %d%s", d.EncapPort, checksumArg(d.EncapFlags))
			default:
				fmt.Fprintf(&b, " --tun-type %s%s", d.Encap, checksumArg(d.EncapFlags))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func serviceArgs(k reconcile.Key) string {
	switch {
	case k.FWMark != 0 && k.Family == reconcile.IPv6:
		return fmt.Sprintf("-f %d -6", k.FWMark)
	case k.FWMark != 0:
		return fmt.Sprintf("-f %d", k.FWMark)
	}
	option := "-t"
	switch k.Protocol {
	case reconcile.UDP:
		option = "-u"
	case reconcile.SCTP:
		option = "--sctp-service"
	}
	return option + " " + netip.AddrPortFrom(k.Addr, k.Port).String()
}

func forwardingArg(f reconcile.Forwarding) string {
	switch f {
	case reconcile.DR:
		return "-g"
	case reconcile.Tunnel:
		return "-i"
	}
	return "-m"
}

func checksumArg(f reconcile.TunnelFlags) string {
	switch f {
	case reconcile.TunnelChecksum:
		return " --tun-csum"
	case reconcile.TunnelRemoteChecksum:
		return " --tun-remcsum"
	}
	return " --tun-nocsum"
}

func schedulerFlags(scheduler string, f reconcile.Flags) string {
	names := [...]string{"flag-1", "flag-2", "flag-3"}
	if scheduler == "sh" || scheduler == "mh" {
		names[0], names[1] = scheduler+"-fallback", scheduler+"-port"
	}
	var out []string
	for i, bit := range []reconcile.Flags{reconcile.Sched1, reconcile.Sched2, reconcile.Sched3} {
		if f&bit != 0 {
			out = append(out, names[i])
		}
	}
	return strings.Join(out, ",")
}

// Load adds the services and destinations of a dump, as `ipvsadm -R` would. It
// stops at the first line that cannot be read or carried out.
func (k *Kernel) Load(dump string) error {
	lines := bufio.NewScanner(strings.NewReader(dump))
	for n := 1; lines.Scan(); n++ {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		op, err := parseLine(words)
		if err == nil {
			err = k.Do(context.Background(), []reconcile.Op{op})[0]
		}
		if err != nil {
			return fmt.Errorf("dump, line %d (%s): %w", n, lines.Text(), err)
		}
	}
	return lines.Err()
}

// parseLine reads one line of Dump.
func parseLine(words []string) (op reconcile.Op, err error) {
	switch words[0] {
	case "-A":
		op.Kind = reconcile.AddService
	case "-a":
		op.Kind = reconcile.AddDestination
	default:
		return op, fmt.Errorf("a line begins with -A or -a, not %s", words[0])
	}
	s, d := &op.Service, &op.Dest
	words = words[1:]
	next := func() string {
		if len(words) == 0 {
			err = fmt.Errorf("a value is missing at the end")
			return ""
		}
		w := words[0]
		words = words[1:]
		return w
	}
	addrPort := func() netip.AddrPort {
		var a netip.AddrPort
		if text := next(); err == nil {
			a, err = netip.ParseAddrPort(text)
		}
		return a
	}
	number := func(bits int) uint64 {
		var v uint64
		if text := next(); err == nil {
			v, err = strconv.ParseUint(text, 10, bits)
		}
		return v
	}
	for len(words) > 0 && err == nil {
		switch w := next(); w {
		case "-t":
			s.Key = reconcile.AddrKey(reconcile.TCP, addrPort())
		case "-u":
			s.Key = reconcile.AddrKey(reconcile.UDP, addrPort())
		case "--sctp-service":
			s.Key = reconcile.AddrKey(reconcile.SCTP, addrPort())
		case "-f":
			s.Key = reconcile.MarkKey(reconcile.IPv4, uint32(number(32)))
		case "-6":
			s.Family = reconcile.IPv6
		case "-s":
			s.Scheduler = next()
		case "-p":
			s.Flags |= reconcile.Persistent
			s.Timeout = time.Duration(number(31)) * time.Second
		case "-M":
			text := next()
			if mask, merr := netip.ParseAddr(text); merr == nil && mask.Is4() {
				ones, _ := net.IPMask(mask.AsSlice()).Size()
				s.Prefix = ones
			} else {
				s.Prefix, err = strconv.Atoi(text)
			}
		case "--pe":
			s.Engine = next()
		case "-o":
			s.Flags |= reconcile.OnePacket
		case "-b":
			for f := range strings.SplitSeq(next(), ",") {
				switch f {
				case "flag-1", "sh-fallback", "mh-fallback":
					s.Flags |= reconcile.Sched1
				case "flag-2", "sh-port", "mh-port":
					s.Flags |= reconcile.Sched2
				case "flag-3":
					s.Flags |= reconcile.Sched3
				default:
					return op, fmt.Errorf("scheduler flag %q is not known", f)
				}
			}
		case "-r":
			a := addrPort()
			d.Addr, d.Port = a.Addr(), a.Port()
		case "-m":
			d.Forwarding = reconcile.Masq
		case "-g":
			d.Forwarding = reconcile.DR
		case "-i":
			d.Forwarding = reconcile.Tunnel
		case "-w":
			d.Weight = uint32(number(31))
		case "-x":
			d.Upper = uint32(number(32))
		case "-y":
			d.Lower = uint32(number(32))
		case "--tun-type":
			switch text := next(); text {
			case "ipip":
				d.Encap = reconcile.IPIP
			case "gue":
				d.Encap = reconcile.GUE
			case "gre":
				d.Encap = reconcile.GRE
			default:
				return op, fmt.Errorf("tunnel type %q is not known", text)
			}
		case "--tun-port":
			d.EncapPort = uint16(number(16))
		case "--tun-csum":
			d.EncapFlags = reconcile.TunnelChecksum
		case "--tun-remcsum":
			d.EncapFlags = reconcile.TunnelRemoteChecksum
		case "--tun-nocsum":
		default:
			return op, fmt.Errorf("option %q is not known", w)
		}
	}
	switch {
	case err != nil:
	case !s.Addr.IsValid() && s.FWMark == 0:
		err = fmt.Errorf("a service is missing: -t, -u, --sctp-service or -f")
	case op.Kind == reconcile.AddDestination && !d.Addr.IsValid():
		err = fmt.Errorf("a destination is missing: -r")
	}
	return op, err
}
