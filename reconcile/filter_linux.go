package reconcile

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// filter is one working iptables program with its brother that restores.
type filter struct {
	family  Family
	ipt     *iptables.IPTables
	restore string
}

const natTable, postrouting = "nat", "POSTROUTING"

// findFilter takes the first program that can work on table nat here; one that
// holds our chain already goes before the others, so that a changed default
// leaves no second chain behind.
func findFilter(f Family, name string) (*filter, error) {
	base, proto := "iptables", iptables.ProtocolIPv4
	if f == IPv6 {
		base, proto = "ip6tables", iptables.ProtocolIPv6
	}
	names := []string{base, base + "-nft", base + "-legacy"}
	if name != "" {
		names = []string{name}
	}
	var first *filter
	var errs []string
	for _, name := range names {
		ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(name), iptables.Timeout(5))
		if err != nil {
			errs = append(errs, name+": "+oneLine(err))
			continue
		}
		found := &filter{family: f, ipt: ipt, restore: name + "-restore"}
		chains, err := ipt.ListChains(natTable)
		if err != nil {
			errs = append(errs, name+": "+oneLine(err))
			continue
		}
		for _, c := range chains {
			if c == ChainName {
				return found, nil
			}
		}
		if first == nil {
			first = found
		}
	}
	if first == nil {
		return nil, fmt.Errorf("no packet filter with table nat works here: %s", strings.Join(errs, "; "))
	}
	return first, nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func (f *filter) read() (Chain, error) {
	c := Chain{Family: f.family}
	lines, err := f.ipt.List(natTable, ChainName)
	var failed *iptables.Error
	if errors.As(err, &failed) && failed.ExitStatus() == 1 {
		return c, nil // no such chain
	}
	if err != nil {
		return c, fmt.Errorf("read chain %s: %s", ChainName, oneLine(err))
	}
	c.Exists = true
	for _, line := range lines {
		if strings.HasPrefix(line, "-A ") {
			c.Rules = append(c.Rules, ParseRule(line))
		}
	}
	if c.Jump, err = f.ipt.Exists(natTable, postrouting, "-j", ChainName); err != nil {
		return c, fmt.Errorf("read chain %s: %s", postrouting, oneLine(err))
	}
	return c, nil
}

// replace is one transaction: no packet sees half a chain.
func (f *filter) replace(rules []Rule) error {
	jump, err := f.ipt.Exists(natTable, postrouting, "-j", ChainName)
	if err != nil {
		// Without the chain there is no jump to it.
		jump = false
	}
	var in bytes.Buffer
	// Naming the chain empties it, or makes it; --noflush keeps all others.
	fmt.Fprintf(&in, "*%s\n:%s - [0:0]\n", natTable, ChainName)
	for _, r := range rules {
		fmt.Fprintf(&in, "-A %s %s\n", ChainName, r)
	}
	if !jump {
		fmt.Fprintf(&in, "-A %s -j %s\n", postrouting, ChainName)
	}
	in.WriteString("COMMIT\n")
	cmd := exec.Command(f.restore, "--noflush", "-w", "5")
	cmd.Stdin = &in
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", f.restore, err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

func (f *filter) remove() error {
	c, err := f.read()
	if err != nil || !c.Exists {
		return err
	}
	if c.Jump {
		if err := f.ipt.Delete(natTable, postrouting, "-j", ChainName); err != nil {
			return fmt.Errorf("remove the jump to %s: %s", ChainName, oneLine(err))
		}
	}
	if err := f.ipt.ClearAndDeleteChain(natTable, ChainName); err != nil {
		return fmt.Errorf("remove chain %s: %s", ChainName, oneLine(err))
	}
	return nil
}
