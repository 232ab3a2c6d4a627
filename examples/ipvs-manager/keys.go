package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/ipvskit/ipvskit/transport/identity"
)

// commands are what is done once and ends; everything else is a role of the
// program, given by flags.
var commands = map[string]func(args []string, stdout io.Writer) error{
	"observe": observe,
	"zero":    zero,
	"plan":    plan,
	"cleanup": cleanup,
	"backup":  backup,
	"restore": restore,
	"recover": recoverQuorum,
	"check":   check,
	"keygen":  keygen,
	"agent-cert": func(args []string, stdout io.Writer) error {
		return issue("agent-cert", identity.RoleAgent, args, stdout)
	},
	"server-cert": func(args []string, stdout io.Writer) error {
		return issue("server-cert", identity.RoleServer, args, stdout)
	},
	"operator-cert": func(args []string, stdout io.Writer) error {
		return issue("operator-cert", identity.RoleOperator, args, stdout)
	},
}

const commandsHelp = `Commands (each has --help):
  observe         show what this host's kernel has of the load balancer, with statistics
  plan            print what would make this host's kernel equal to a file, without doing it
  zero            set those statistics back
  cleanup         remove from this host's kernel all that an agent has programmed, and nothing else
  backup          copy the state of a stopped server to a file
  restore         make the first server of a new cluster of a backup
  recover         make a cluster of one of the last server, when the quorum is lost for ever
  check           verify all that a stopped server has on its disk
  keygen          make the key of a cluster, or with --rotate and --retire replace it without a stop
  agent-cert      make the credential of a director
  operator-cert   make the credential of a person or program that uses the HTTP API
  server-cert     make the credential of a server that is not to hold the key
`

// runCommand runs a subcommand and returns the exit code.
func runCommand(name string, args []string, stdout, stderr io.Writer) int {
	err := commands[name](args, stdout)
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage) && usage.err == nil:
		fmt.Fprint(stdout, usage.text)
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "ipvs-manager %s: %v; see --help\n", name, usage.err)
		return 2
	}
	fmt.Fprintf(stderr, "ipvs-manager %s: %v\n", name, err)
	return 1
}

// usageError is a command line that cannot be used; without err help was asked
// for.
type usageError struct {
	text string
	err  error
}

func (e *usageError) Error() string { return fmt.Sprint(e.err) }

func parseCommand(set *pflag.FlagSet, what string, args []string) error {
	set.SortFlags = false
	set.Usage = func() {} // runCommand prints it
	set.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "-", "_"))
	})
	err := set.Parse(args)
	if err == nil && set.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	if errors.Is(err, pflag.ErrHelp) {
		return &usageError{text: "ipvs-manager " + set.Name() + " " + what + "\n\nFlags:\n" + set.FlagUsages()}
	}
	if err != nil {
		return &usageError{err: err}
	}
	return nil
}

func keygen(args []string, stdout io.Writer) error {
	set := pflag.NewFlagSet("keygen", pflag.ContinueOnError)
	file := set.String("key_file", "cluster.key", "file of the key")
	domain := set.String("cluster_name", "", "name of the cluster in its certificates (default: a random one)")
	rotate := set.Bool("rotate", false, "add a new authority, which signs from then on; the older ones stay trusted")
	retire := set.Bool("retire", false, "drop all authorities but the newest")
	if err := parseCommand(set, "makes the key of a cluster: a certificate authority in one file.", args); err != nil {
		return err
	}
	switch {
	case *rotate && *retire:
		return &usageError{err: errors.New("--rotate and --retire are two steps: the new key goes to every server between them")}
	case *rotate || *retire:
		if *domain != "" {
			return &usageError{err: errors.New("--cluster_name is for a new key")}
		}
		return changeKey(*file, *rotate, stdout)
	}
	b, err := identity.NewBundle(*domain, time.Now())
	if err != nil {
		return err
	}
	data, err := b.Encode()
	if err != nil {
		return err
	}
	if err := identity.Create(*file, data); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; to replace the key of a running cluster use --rotate, and for another cluster give another --key_file", *file)
	} else if err != nil {
		return err
	}
	fmt.Fprintf(stdout, `The key of cluster %s is in %s.

Whoever has it can be any server or agent: copy it to the servers alone, by a
safe way, readable by their user alone. Start each server with --key_file %s.
For each director, and for people who use the API:

    ipvs-manager agent-cert --key_file %s --name DIRECTOR
    ipvs-manager operator-cert --key_file %s --name PERSON
`, b.Domain(), *file, *file, *file, *file)
	return nil
}

func changeKey(file string, rotate bool, stdout io.Writer) error {
	b, err := readBundle(file)
	if err != nil {
		return err
	}
	said := `A new authority signs from now on; the older stay trusted. Copy %s to every
server, in any order; each reads it within a second of its next connection, and
the agents renew by themselves. When every director has renewed:

    ipvs-manager keygen --retire --key_file %s
`
	if rotate {
		b, err = b.Rotate(time.Now())
	} else {
		b, err = b.Retire()
		said = `Only the newest authority is trusted from now on. Copy %s to every server.
A director that has not renewed needs a new credential:

    ipvs-manager agent-cert --key_file %s --name DIRECTOR
`
	}
	if err != nil {
		return err
	}
	data, err := b.Encode()
	if err != nil {
		return err
	}
	if err := identity.Replace(file, data); err != nil {
		return err
	}
	fmt.Fprintf(stdout, said, file, file)
	return nil
}

func readBundle(file string) (*identity.Bundle, error) {
	b, _, err := identity.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("--key_file: %w; ipvs-manager keygen --key_file %s makes a key", err, file)
	}
	if err == nil && b == nil {
		err = fmt.Errorf("--key_file: %s is a credential, not the key of a cluster", file)
	}
	return b, err
}

func issue(command string, role identity.Role, args []string, stdout io.Writer) error {
	set := pflag.NewFlagSet(command, pflag.ContinueOnError)
	file := set.String("key_file", "cluster.key", "file of the cluster's key")
	name := set.String("name", "", "name of the "+string(role)+" (required)")
	out := set.String("out", "", "file to make (default: NAME.key)")
	days := set.Int("days", 90, "days until it ends; a director's is renewed by the servers before")
	var labels string
	var hosts []string
	if role == identity.RoleAgent {
		set.StringVar(&labels, "labels", "", "labels of the agent, as in zone=a,rack=7; services select agents by them")
	}
	if role == identity.RoleServer {
		set.StringSliceVar(&hosts, "hosts", nil, "host names and addresses by which browsers reach it, comma separated")
	}
	if err := parseCommand(set, fmt.Sprintf("makes a credential of role %s: a certificate with its key, in one PEM file.", role), args); err != nil {
		return err
	}
	parsed, ok := parseLabels(labels)
	switch {
	case *name == "":
		return &usageError{err: errors.New("--name is required")}
	case *days < 1 || *days > 3650:
		return &usageError{err: fmt.Errorf("--days: %d is not allowed; allowed: 1 to 3650", *days)}
	case !ok:
		return &usageError{err: fmt.Errorf("--labels: %q is not allowed; allowed: k=v pairs, comma separated, each key once", labels)}
	case slices.ContainsFunc(hosts, func(h string) bool { return !isHost(h) }):
		return &usageError{err: fmt.Errorf("--hosts: %q is not allowed; allowed: host names and IP addresses", hosts)}
	}
	if *out == "" {
		*out = *name + ".key"
	}
	b, err := readBundle(*file)
	if err != nil {
		return err
	}
	c, err := b.Issue(identity.ID{Role: role, Name: *name, Labels: parsed}, hosts, time.Duration(*days)*24*time.Hour, time.Now())
	if err != nil {
		return err
	}
	data, err := c.Encode()
	if err != nil {
		return err
	}
	if err := identity.Create(*out, data); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; give another --out, or remove it", *out)
	} else if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "The credential of %v is in %s, until %s.\nIts serial number, to revoke it by: %s\n",
		c.ID(), *out, c.Expires().UTC().Format(time.DateOnly), c.Serial())
	switch role {
	case identity.RoleAgent:
		fmt.Fprintf(stdout, "On the director: ipvs-manager --server_type agent --key_file %s --grpc_address SERVERS\n", *out)
	case identity.RoleServer:
		fmt.Fprintf(stdout, "On the server: ipvs-manager --raft_node_id %s --key_file %s ...\n", *name, *out)
		if len(hosts) == 0 {
			fmt.Fprintln(stdout, "Without --hosts browsers and curl do not accept it; servers and agents do.")
		}
	case identity.RoleOperator:
		fmt.Fprintf(stdout, "With curl: curl --cert %s --cacert %s https://SERVER:8010/api/v1/cluster\nFor a browser: openssl pkcs12 -export -in %s -out %s.p12\n", *out, *out, *out, *name)
	}
	return nil
}
