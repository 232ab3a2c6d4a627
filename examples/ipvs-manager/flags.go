package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"

	"github.com/ipvskit/ipvskit/healthcheck"
)

type role string

const (
	roleServer   role = "server"
	roleAgent    role = "agent"
	roleSingleon role = "singleon"
)

// dataplane says which kernel a director programs.
type dataplane string

const (
	planeAuto   dataplane = "auto"
	planeKernel dataplane = "kernel"
	planeFake   dataplane = "fake"
)

// config is the command line, complete and checked.
type config struct {
	role        role
	nodeID      string
	advertise   string   // host:port of raft, as announced
	listen      string   // host that all ports listen on
	cluster     []string // HTTP addresses of all servers
	without     []string
	serverPort  int
	grpcPort    int
	grpcAddress []string // servers that an agent talks to
	volDir      string
	tuning      tuning
	hold        healthcheck.Hold // when mass failure is suspected
	execChecks  bool             // health checks may run programs
	execDir     string           // of those programs
	plane       dataplane
	agentName   string
	agentNamed  bool // by --agent_name
	agentLabels map[string]string
	agentDir    string
	hostNames   []string // DNS names that browsers may use
	keyFile     string   // the cluster's key, or a credential
	tlsCert     string   // own certificates, instead of keyFile
	tlsKey      string
	tlsCA       string
	httpCert    string // for browsers
	httpKey     string
	revokedFile string
	insecure    bool
	logLevel    zapcore.Level
	version     bool
}

// host is the announced host, which the other servers dial.
func (c config) host() string {
	host, _, _ := net.SplitHostPort(c.advertise) // parseFlags has checked it
	return host
}

// httpAddress is the announced address of the HTTP port.
func (c config) httpAddress() string {
	return net.JoinHostPort(c.host(), strconv.Itoa(c.serverPort))
}

func (c config) listenAddress(port int) string {
	return net.JoinHostPort(c.listen, strconv.Itoa(port))
}

func (c config) raftPort() int {
	_, port, _ := net.SplitHostPort(c.advertise)
	n, _ := strconv.Atoi(port)
	return n
}

var errHelp = errors.New("help")

// flagError names one flag that cannot be used as given.
type flagError struct{ flag, value, allowed string }

func (e *flagError) Error() string {
	return fmt.Sprintf("--%s: %q is not allowed; allowed: %s", e.flag, e.value, e.allowed)
}

// parseFlags reads the command line. Every error names the flag, the value
// that was found, and what is allowed.
func parseFlags(args []string) (config, error) {
	var c config
	fs := flagSet(&c)
	if err := fs.Parse(args); err != nil {
		return c, explain(err)
	}
	if rest := fs.Args(); len(rest) > 0 {
		return c, fmt.Errorf("unexpected argument %q: everything is given by flags; see --help", rest[0])
	}
	if c.role == "" {
		c.role = roleServer
	}
	if c.listen == "" {
		c.listen = c.host()
	}
	if len(c.cluster) == 0 {
		c.cluster = []string{c.httpAddress()}
	}
	if c.agentDir == "" {
		c.agentDir = "agent_data"
		if c.role == roleSingleon {
			c.agentDir = filepath.Join(c.volDir, "agent")
		}
	}
	c.agentNamed = c.agentName != ""
	if !c.agentNamed {
		name, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("--agent_name is not given, and this host does not say its name: %w", err)
		}
		c.agentName = name
	}
	return c, c.contradictions()
}

// contradictions finds flags that are fine each by itself but not together.
func (c config) contradictions() error {
	if err := c.twoIdentities(); err != nil {
		return err
	}
	if c.role == roleAgent {
		return nil
	}
	if c.execChecks {
		if dir, err := os.Stat(c.execDir); err != nil {
			return fmt.Errorf("--allow_exec_checks: --exec_checks_dir: %w; make it, writable by root alone, and put the programs there", err)
		} else if !dir.IsDir() {
			return &flagError{"exec_checks_dir", c.execDir, "a directory"}
		} else if runtime.GOOS != "windows" && dir.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("--allow_exec_checks: --exec_checks_dir %s has mode %v: others than its owner may put programs there, which would run as the user of this process; chmod go-w it, once you have looked at what is in it", c.execDir, dir.Mode())
		}
	}
	ports := map[int]string{}
	for _, p := range []struct {
		flag string
		port int
	}{{"server_port", c.serverPort}, {"grpc_port", c.grpcPort}, {"adverties", c.raftPort()}} {
		if other, ok := ports[p.port]; ok {
			return fmt.Errorf("--%s and --%s both want port %d; give each its own", other, p.flag, p.port)
		}
		ports[p.port] = p.flag
	}
	for _, w := range c.without {
		if !slices.Contains(c.cluster, w) {
			return &flagError{"form_without", w, "addresses of --cluster: " + strings.Join(c.cluster, ", ")}
		}
		if w == c.httpAddress() {
			return fmt.Errorf("--form_without names %s, which is this node itself", w)
		}
	}
	return nil
}

func (c config) twoIdentities() error {
	own := c.tlsCert != "" || c.tlsKey != "" || c.tlsCA != ""
	switch {
	case c.keyFile != "" && own:
		return errors.New("--key_file and --tls_cert, --tls_key, --tls_ca are two ways to the same; give one")
	case own && (c.tlsCert == "" || c.tlsKey == "" || c.tlsCA == ""):
		return errors.New("--tls_cert, --tls_key and --tls_ca are needed together")
	case (c.httpCert == "") != (c.httpKey == ""):
		return errors.New("--http_cert and --http_key are needed together")
	case (c.httpCert != "" || c.revokedFile != "") && !c.secured():
		return errors.New("--http_cert and --revoked_file are for servers with --key_file, or --tls_cert, --tls_key and --tls_ca")
	case c.insecure && c.secured():
		return errors.New("--insecure is for a server or agent without certificates, and here are some; leave it away")
	}
	return nil
}

func flagSet(c *config) *pflag.FlagSet {
	fs := pflag.NewFlagSet("ipvs-manager", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {} // run prints it
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		name = strings.ReplaceAll(name, "-", "_")
		if name == "advertise" {
			name = "adverties"
		}
		return pflag.NormalizedName(name)
	})
	text := func(p *string, name, value, allowed, usage string, ok func(string) bool) {
		fs.Var(newValue(value, "string", allowed, func(s string) bool { *p = s; return ok(s) }), name, usage)
	}
	list := func(p *[]string, name, value, allowed, usage string, ok func(string) bool) {
		fs.Var(newValue(value, "list", allowed, func(s string) bool {
			*p = splitList(s)
			return (len(*p) > 0 || s == "") && !slices.ContainsFunc(*p, func(e string) bool { return !ok(e) })
		}), name, usage)
	}
	port := func(p *int, name string, value int, usage string) {
		fs.Var(newValue(strconv.Itoa(value), "port", "a port, 1 to 65535", func(s string) bool {
			n, err := strconv.ParseUint(s, 10, 16)
			*p = int(n)
			return err == nil && n > 0
		}), name, usage)
	}

	fs.Var(newValue("server", "role", "server (or empty), agent, singleon", func(s string) bool {
		c.role = role(s)
		return s == "" || slices.Contains([]role{roleServer, roleAgent, roleSingleon}, c.role)
	}), "server_type", "server: store, HTTP, health checks, agents' port. agent: programs this host's kernel.\nsingleon: both in one process")
	text(&c.nodeID, "raft_node_id", "raft", nodeNames, "name of this node, unique in the cluster", isNodeName)
	text(&c.advertise, "adverties", "127.0.0.1:8110", "host:port that the other servers can dial", "address of this node's raft port, as announced to the others (also --advertise)", isDialable)
	list(&c.cluster, "cluster", "", "HTTP addresses host:port, comma separated", "HTTP addresses of all servers, the same list on each (default: this node alone)", isDialable)
	list(&c.without, "form_without", "", "HTTP addresses host:port, comma separated", "addresses of --cluster that are known to be absent: form the first cluster without them.\nNever name one that may hold data", isDialable)
	port(&c.serverPort, "server_port", 8010, "port of the HTTP API and the web page")
	port(&c.grpcPort, "grpc_port", 8210, "port for agents")
	list(&c.grpcAddress, "grpc_address", "127.0.0.1:8210", "addresses host:port, comma separated", "servers that this agent talks to", isDialable)
	text(&c.volDir, "raft_vol_dir", "node_1_data", "a directory", "directory of the raft log and the database", isSet)
	c.tuning.scopeFlags(fs)
	fs.Var(newValue("auto", "plane", "auto, kernel, fake", func(s string) bool {
		c.plane = dataplane(s)
		return slices.Contains([]dataplane{planeAuto, planeKernel, planeFake}, c.plane)
	}), "dataplane", "kernel: this host's IPVS. fake: an in-memory kernel, shown everywhere as simulated.\nauto: the kernel; singleon alone falls back to fake where the kernel cannot be used")
	text(&c.agentName, "agent_name", "", "a name without white space", "name of this agent (default: the host's)", func(s string) bool { return s == "" || isNodeName(s) })
	fs.Var(newValue("", "labels", "k=v pairs, comma separated, each key once", func(s string) bool {
		var ok bool
		c.agentLabels, ok = parseLabels(s)
		return ok
	}), "agent_labels", "labels of this agent, as in zone=a,rack=7; services select agents by them")
	text(&c.agentDir, "agent_dir", "", "a directory", "directory of the agent's journal (default: agent_data; singleon: agent, under --raft_vol_dir)", func(string) bool { return true })
	c.tuning.flags(fs)
	fs.Var(newValue("0.5", "share", "more than 0, at most 1; 1 holds nothing", func(s string) bool {
		n, err := strconv.ParseFloat(s, 64)
		c.hold.Share = n
		return err == nil && n > 0 && n <= 1
	}), "hold_share", "share of the healthy backends that must fail within 10 s for this host to be suspected:\nthey stay in service for --hold_limit")
	fs.Var(newValue("1m0s", "duration", "a duration of more than 0, as in 30s", func(s string) bool {
		d, err := time.ParseDuration(s)
		c.hold.Limit = d
		return err == nil && d > 0
	}), "hold_limit", "how long what is held back is not believed, at most")
	fs.BoolVar(&c.execChecks, "allow_exec_checks", false, "let health checks of type exec run programs of --exec_checks_dir, as the user of this\nprocess: whoever may write services then has them run. Give it to every server")
	text(&c.execDir, "exec_checks_dir", "/etc/ipvs-manager/checks", "an absolute path without detours", "directory of the programs that health checks may run; a check names a file in it", func(s string) bool {
		return filepath.IsAbs(s) && filepath.Clean(s) == s
	})
	text(&c.listen, "listen", "", "a host name or IP address", "host that all ports listen on; 0.0.0.0 or :: for every address, VIPs included\n(default: the host of --adverties)", func(s string) bool { return s == "" || isHost(s) })
	list(&c.hostNames, "http_names", "", "DNS names, comma separated", "further DNS names by which browsers reach the page; by IP address and by the announced\nname they always may", isHost)
	file := func(p *string, name, usage string) {
		text(p, name, "", "a file", usage, func(string) bool { return true })
	}
	file(&c.keyFile, "key_file", "servers: the cluster's key, made by 'ipvs-manager keygen', or a credential made by\n'server-cert'. Agents: a credential made by 'agent-cert'. Turns TLS on")
	file(&c.tlsCert, "tls_cert", "own certificate (PEM) instead of --key_file; its SAN must have the URI\nipvskit://DOMAIN/server/NAME or ipvskit://DOMAIN/agent/NAME?label=value")
	file(&c.tlsKey, "tls_key", "private key of --tls_cert")
	file(&c.tlsCA, "tls_ca", "authorities that sign servers and agents (PEM)")
	file(&c.httpCert, "http_cert", "certificate for browsers (PEM; default: the server's own)")
	file(&c.httpKey, "http_key", "private key of --http_cert")
	file(&c.revokedFile, "revoked_file", "names and serials that are no longer let in, a line each: agent/NAME why, serial/HEX why")
	fs.BoolVar(&c.insecure, "insecure", false, "listen off loopback, in plain text and without any login: whoever reaches the ports\ncontrols the load balancer")
	fs.Var(newValue("info", "level", "debug, info, warn, error", func(s string) bool {
		level, err := zapcore.ParseLevel(s)
		c.logLevel = level
		return err == nil && level <= zapcore.ErrorLevel
	}), "log_level", "debug, info, warn or error")
	fs.BoolVar(&c.version, "version", false, "print the version and exit")
	return fs
}

// usage is the text of --help.
func usage() string {
	var c config
	return "ipvs-manager manages Linux IPVS on any number of directors from a replicated store.\n\n" +
		"  one machine      ipvs-manager --server_type singleon\n" +
		"  three servers    ipvs-manager --raft_node_id node0 --adverties 192.0.2.77:8110 \\\n" +
		"                     --cluster 192.0.2.77:8010,192.0.2.78:8010,192.0.2.80:8010 --key_file cluster.key\n" +
		"  a director       ipvs-manager --server_type agent \\\n" +
		"                     --grpc_address 192.0.2.77:8210,192.0.2.78:8210,192.0.2.80:8210 --key_file lb1.key\n\n" +
		"Off loopback nothing listens without certificates, unless --insecure is given.\n\n" + commandsHelp + "\nFlags:\n" + flagSet(&c).FlagUsages()
}

// value is a pflag.Value that knows what it allows.
type value struct {
	text, typ, allowed string
	set                func(string) bool
}

func newValue(def, typ, allowed string, set func(string) bool) *value {
	set(def)
	return &value{def, typ, allowed, set}
}

func (v *value) String() string { return v.text }
func (v *value) Type() string   { return v.typ }

func (v *value) Set(s string) error {
	if !v.set(s) {
		return errors.New(v.allowed)
	}
	v.text = s
	return nil
}

// explain puts pflag's errors in the words of this program.
func explain(err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return errHelp
	}
	var bad *pflag.InvalidValueError
	if errors.As(err, &bad) {
		allowed := "true, false"
		if v, ok := bad.GetFlag().Value.(*value); ok {
			allowed = v.allowed
		}
		return &flagError{bad.GetFlag().Name, bad.GetValue(), allowed}
	}
	return fmt.Errorf("%w; see --help", err)
}

const nodeNames = "1 to 63 letters, digits, '.', '_' and '-'"

func isNodeName(s string) bool {
	return len(s) >= 1 && len(s) <= 63 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	})
}

func isSet(s string) bool { return strings.TrimSpace(s) != "" }

// isInterface follows dev_valid_name of net/core/dev.c.
func isInterface(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r")
}

func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return isNodeName(strings.ReplaceAll(s, ".", "")) && len(s) <= 253
}

// isDialable says whether s is host:port of one machine.
func isDialable(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || !isHost(host) {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

func splitList(s string) []string {
	var out []string
	for e := range strings.SplitSeq(s, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}

func parseLabels(s string) (map[string]string, bool) {
	labels := map[string]string{}
	for _, pair := range splitList(s) {
		k, v, ok := strings.Cut(pair, "=")
		if _, twice := labels[k]; !ok || twice || !isNodeName(k) || v != "" && !isNodeName(v) {
			return nil, false
		}
		labels[k] = v
	}
	return labels, true
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "development"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "development" {
			v += " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return v + " " + info.GoVersion
}
