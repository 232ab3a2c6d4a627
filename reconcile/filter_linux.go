package reconcile

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// filter is the packet filter for one of our chains, by the iptables programs
// that may reach it. Which of them works shows only when one writes: the nft
// variant lists an empty table nat on a kernel that has none.
type filter struct {
	key      ChainKey
	programs []program // what may work; only the first once it holds our chain
	absent   bool      // no program listed our chain a moment ago
	known    bool      // that jumps is true or false
	jumps    bool      // the hook jumped to our chain when last read
}

type program struct {
	key           ChainKey
	name, restore string
}

// findFilter looks for programs that can read the chain's table here. One that
// holds our chain already is taken alone, so that a changed default leaves no
// second chain behind.
func findFilter(k ChainKey, name string) (*filter, error) {
	base, proto := "iptables", iptables.ProtocolIPv4
	if k.Family == IPv6 {
		base, proto = "ip6tables", iptables.ProtocolIPv6
	}
	names := []string{base, base + "-nft", base + "-legacy"}
	if name != "" {
		names = []string{name}
	}
	found := &filter{key: k}
	var errs []error
	same := map[string]bool{} // iptables is one of the two others, by a link
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			if path, err = filepath.EvalSymlinks(path); err == nil {
				if same[path] {
					continue
				}
				same[path] = true
			}
		}
		ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(name), iptables.Timeout(5))
		if err != nil {
			errs = append(errs, brief(name, err))
			continue
		}
		p := program{k, name, name + "-restore"}
		chains, err := ipt.ListChains(k.Table.String())
		if err != nil {
			errs = append(errs, brief(name, err))
			continue
		}
		if slices.Contains(chains, k.Name()) {
			found.programs = []program{p}
			return found, nil
		}
		found.programs = append(found.programs, p)
	}
	if len(found.programs) == 0 {
		return nil, fmt.Errorf("no packet filter with table %s can be read here: %w", k.Table, errors.Join(errs...))
	}
	found.absent = true
	return found, nil
}

// brief is a program's error on one line.
func brief(program string, err error) error {
	return fmt.Errorf("%s: %s", program, strings.Join(strings.Fields(err.Error()), " "))
}

// jump is the rule of the hook that leads to our chain. Protection comes before
// whatever else is accepted there, and is about new connections alone.
func (k ChainKey) jump() (command string, rule []string) {
	if k.Table == Filter {
		return "-I", []string{"-m", "conntrack", "--ctstate", "NEW", "-j", k.Name()}
	}
	return "-A", []string{"-j", k.Name()}
}

func (f *filter) read() (Chain, error) {
	c := Chain{ChainKey: f.key}
	if f.absent {
		f.absent = false // this once: others may make it meanwhile
		f.known, f.jumps = true, false
		return c, nil
	}
	p := f.programs[0]
	// One list of the table costs one process; go-iptables takes one for the chain
	// and one for the jump.
	out, err := exec.Command(p.name, "-w", "5", "-t", f.key.Table.String(), "-S").Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %.300s", err, strings.Join(strings.Fields(string(failed.Stderr)), " "))
		}
		return c, fmt.Errorf("%s: list table %s: %w", p.name, f.key.Table, err)
	}
	_, rule := f.key.jump()
	jump := "-A " + f.key.Hook() + " " + strings.Join(rule, " ")
	for line := range strings.Lines(string(out)) {
		switch line = strings.TrimSpace(line); {
		case line == "-N "+f.key.Name():
			c.Exists = true
		case line == jump:
			c.Jump = true
		case strings.HasPrefix(line, "-A "+f.key.Name()+" "):
			c.Rules = append(c.Rules, ParseRule(line))
		}
	}
	f.known, f.jumps = true, c.Jump
	return c, nil
}

func (f *filter) replace(rules []Rule) error {
	if !f.known {
		if _, err := f.read(); err != nil {
			return err
		}
	}
	var errs []error
	for _, p := range f.programs {
		err := p.replace(rules, f.jumps)
		if err == nil {
			f.programs, f.jumps = []program{p}, true
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (p program) replace(rules []Rule, jumps bool) error {
	var b strings.Builder
	for _, r := range rules {
		fmt.Fprintf(&b, "-A %s %s\n", p.key.Name(), r)
	}
	if !jumps {
		command, rule := p.key.jump()
		fmt.Fprintf(&b, "%s %s %s\n", command, p.key.Hook(), strings.Join(rule, " "))
	}
	return p.transaction(b.String())
}

// transaction changes our chain, which is made empty first, and the hook: no
// packet sees half of it. All other chains stay as they are.
func (p program) transaction(lines string) error {
	in := fmt.Sprintf("*%s\n:%s - [0:0]\n%sCOMMIT\n", p.key.Table, p.key.Name(), lines)
	var complaint bytes.Buffer
	cmd := exec.Command(p.restore, "--noflush", "-w", "5")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &complaint, &complaint
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
	var lines string
	if c.Jump {
		_, rule := f.key.jump()
		lines = fmt.Sprintf("-D %s %s\n", f.key.Hook(), strings.Join(rule, " "))
	}
	return f.programs[0].transaction(lines + "-X " + f.key.Name() + "\n")
}
