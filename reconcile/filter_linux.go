package reconcile

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// filter is the packet filter of one family, by the iptables programs that may
// reach it. Which of them works shows only when one writes: the nft variant
// lists an empty table nat on a kernel that has none.
type filter struct {
	family   Family
	programs []program // what may work; only the first once it holds our chain
}

type program struct {
	ipt     *iptables.IPTables
	restore string
}

const natTable, postrouting = "nat", "POSTROUTING"

// findFilter looks for programs that can read table nat here. One that holds our
// chain already is taken alone, so that a changed default leaves no second
// chain behind.
func findFilter(f Family, name string) (*filter, error) {
	base, proto := "iptables", iptables.ProtocolIPv4
	if f == IPv6 {
		base, proto = "ip6tables", iptables.ProtocolIPv6
	}
	names := []string{base, base + "-nft", base + "-legacy"}
	if name != "" {
		names = []string{name}
	}
	found := &filter{family: f}
	var errs []error
	for _, name := range names {
		ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(name), iptables.Timeout(5))
		if err != nil {
			errs = append(errs, brief(name, err))
			continue
		}
		p := program{ipt, name + "-restore"}
		chains, err := ipt.ListChains(natTable)
		if err != nil {
			errs = append(errs, brief(name, err))
			continue
		}
		if slices.Contains(chains, ChainName) {
			found.programs = []program{p}
			return found, nil
		}
		found.programs = append(found.programs, p)
	}
	if len(found.programs) == 0 {
		return nil, fmt.Errorf("no packet filter with table nat can be read here: %w", errors.Join(errs...))
	}
	return found, nil
}

// brief is a program's error on one line.
func brief(program string, err error) error {
	return fmt.Errorf("%s: %s", program, strings.Join(strings.Fields(err.Error()), " "))
}

func (f *filter) read() (Chain, error) {
	c := Chain{Family: f.family}
	ipt := f.programs[0].ipt
	lines, err := ipt.List(natTable, ChainName)
	var failed *iptables.Error
	if errors.As(err, &failed) && failed.ExitStatus() == 1 {
		return c, nil // no such chain
	}
	if err != nil {
		return c, brief("read chain "+ChainName, err)
	}
	c.Exists = true
	for _, line := range lines {
		if strings.HasPrefix(line, "-A ") {
			c.Rules = append(c.Rules, ParseRule(line))
		}
	}
	if c.Jump, err = ipt.Exists(natTable, postrouting, "-j", ChainName); err != nil {
		return c, brief("read chain "+postrouting, err)
	}
	return c, nil
}

// replace is one transaction: no packet sees half a chain.
func (f *filter) replace(rules []Rule) error {
	var errs []error
	for _, p := range f.programs {
		err := p.replace(rules)
		if err == nil {
			f.programs = []program{p}
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (p program) replace(rules []Rule) error {
	jump, err := p.ipt.Exists(natTable, postrouting, "-j", ChainName)
	if err != nil {
		jump = false // without the chain there is no jump to it
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
	var complaint bytes.Buffer
	cmd := exec.Command(p.restore, "--noflush", "-w", "5")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &complaint, &complaint
	if err := cmd.Run(); err != nil {
		text := strings.Join(strings.Fields(complaint.String()), " ")
		return fmt.Errorf("%s: %w: %.300s", p.restore, err, text)
	}
	return nil
}

func (f *filter) remove() error {
	c, err := f.read()
	if err != nil || !c.Exists {
		return err
	}
	ipt := f.programs[0].ipt
	if c.Jump {
		if err := ipt.Delete(natTable, postrouting, "-j", ChainName); err != nil {
			return brief("remove the jump to "+ChainName, err)
		}
	}
	if err := ipt.ClearAndDeleteChain(natTable, ChainName); err != nil {
		return brief("remove chain "+ChainName, err)
	}
	return nil
}
