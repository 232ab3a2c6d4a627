package reconcile

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// linux is the real kernel, in one network namespace.
type linux struct {
	ns    *namespace
	ipvs  *ipvsConn
	route *routeConn

	mu      sync.Mutex
	cfg     LinuxConfig
	filters map[ChainKey]*filter // guarded by mu, with what is in them; found when first needed
}

// NewLinux opens the kernel's IPVS, interfaces and packet filter in the network
// namespace of the calling thread, or in that of cfg. Methods work from any
// thread. It loads the kernel module ip_vs if it must; Available explains its
// errors. The Kernel also has Close() error, for programs that open many.
func NewLinux(cfg LinuxConfig) (Kernel, error) {
	ns, err := openNamespace(cfg.NetNS)
	if err != nil {
		return nil, fmt.Errorf("reconcile: open the network namespace: %w", err)
	}
	k := &linux{ns: ns, cfg: cfg, filters: map[ChainKey]*filter{}}
	err = ns.do(func() error {
		if k.ipvs, err = openIPVS(); err != nil {
			return err
		}
		k.route, err = openRoute()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reconcile: %w", err)
	}
	return k, nil
}

// Available says whether NewLinux's kernel can be programmed by this process.
// The error names what is missing and what to do; nothing is changed but that
// the module ip_vs may be loaded.
func Available() error {
	k, err := NewLinux(LinuxConfig{})
	if err != nil {
		return err
	}
	defer k.(*linux).Close()
	if _, err := k.Services(context.Background()); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := unix.Access("/proc/sys/net/ipv4/vs/expire_nodest_conn", unix.W_OK); err != nil {
		return fmt.Errorf("reconcile: the settings below /proc/sys/net cannot be written: %w: %s", err, permissionHint(Op{Kind: SetSysctl}))
	}
	return nil
}

// Close gives back the sockets. No other method may be called afterwards.
func (k *linux) Close() error {
	k.ipvs.close()
	k.route.close()
	return k.ns.file.Close()
}

func (k *linux) Simulated() bool { return false }

func (k *linux) Services(ctx context.Context) ([]ServiceState, error) {
	list, err := k.ipvs.list(ctx)
	return list, withCapability(err)
}

func (k *linux) Service(ctx context.Context, key Key) (ServiceState, error) {
	if err := ctx.Err(); err != nil {
		return ServiceState{}, err
	}
	s, err := k.ipvs.get(key)
	return s, withCapability(err)
}

func (k *linux) Fingerprint(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return k.ipvs.fingerprint()
}

func (k *linux) Links(ctx context.Context) ([]Link, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return k.route.list()
}

func (k *linux) Sysctl(ctx context.Context, name string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	path, err := sysctlPath(name)
	if err != nil {
		return "", err
	}
	var b []byte
	err = k.ns.do(func() error {
		b, err = os.ReadFile(path)
		return err
	})
	return strings.TrimSpace(string(b)), err
}

func (k *linux) setSysctl(name, value string) error {
	path, err := sysctlPath(name)
	if err != nil {
		return err
	}
	return k.ns.do(func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(value)
		return err
	})
}

func sysctlPath(name string) (string, error) {
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("%q is not the name of a setting", name)
	}
	return "/proc/sys/" + name, nil
}

func (k *linux) IPVS(ctx context.Context) (IPVS, error) {
	if err := ctx.Err(); err != nil {
		return IPVS{}, err
	}
	state, err := k.ipvs.state()
	return state, withCapability(err)
}

func (k *linux) Chain(ctx context.Context, key ChainKey) (Chain, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	filter, err := k.filter(key)
	if err != nil {
		return Chain{}, err
	}
	var c Chain
	err = k.ns.do(func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err = filter.read()
		return err
	})
	return c, err
}

// filter finds the packet filter for a chain on first use, and again as long as
// there is none. The caller holds mu.
func (k *linux) filter(key ChainKey) (*filter, error) {
	if found := k.filters[key]; found != nil {
		return found, nil
	}
	name := k.cfg.IPTables
	if key.Family == IPv6 {
		name = k.cfg.IP6Tables
	}
	var found *filter
	err := k.ns.do(func() (err error) {
		found, err = findFilter(key, name)
		return err
	})
	if err == nil {
		k.filters[key] = found
	}
	return found, err
}

func (k *linux) Do(ctx context.Context, ops []Op) map[int]error {
	errs := map[int]error{}
	for i := 0; i < len(ops); {
		if err := ctx.Err(); err != nil {
			errs[i] = err
			i++
			continue
		}
		n := 1
		switch op := ops[i]; {
		case op.Kind.ipvs():
			for i+n < len(ops) && n < batchSize && ops[i+n].Kind.ipvs() {
				n++
			}
			k.ipvs.do(ops[i:i+n], errs, i)
		case op.Kind == AddAddress || op.Kind == DelAddress:
			for i+n < len(ops) && n < batchSize && (ops[i+n].Kind == AddAddress || ops[i+n].Kind == DelAddress) && ops[i+n].Link == op.Link {
				n++
			}
			k.route.addresses(ops[i:i+n], errs, i)
		default:
			if err := k.one(op); err != nil {
				errs[i] = err
			}
		}
		i += n
	}
	return errs
}

func (k *linux) one(op Op) error {
	switch op.Kind {
	case SetSysctl:
		return k.setSysctl(op.Name, op.Value)
	case AddLink, SetAlias, LinkUp, DelLink:
		return k.route.link(op)
	case SetTimeouts:
		return k.ipvs.setTimeouts(*op.Timeouts)
	case SetChain, DelChain:
		k.mu.Lock()
		defer k.mu.Unlock()
		filter, err := k.filter(op.Chain.ChainKey)
		if err != nil {
			return err
		}
		return k.ns.do(func() error {
			if op.Kind == DelChain {
				return filter.remove()
			}
			return filter.replace(op.Chain.Rules)
		})
	}
	return fmt.Errorf("%s: %w", op.Kind, syscall.EOPNOTSUPP)
}

// namespace is a network namespace in which to open sockets and files and to run
// programs.
type namespace struct{ file *os.File }

func openNamespace(path string) (*namespace, error) {
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &namespace{f}, nil
}

// do runs f in the namespace. The thread is moved only where it must be.
func (n *namespace) do(f func() error) error {
	runtime.LockOSThread()
	var here, there unix.Stat_t
	self := "/proc/self/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net"
	if err := unix.Stat(self, &here); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	if err := unix.Fstat(int(n.file.Fd()), &there); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	if here.Ino == there.Ino && here.Dev == there.Dev {
		defer runtime.UnlockOSThread()
		return f()
	}
	back, err := os.Open(self)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer back.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		if lack := lacks(unix.CAP_SYS_ADMIN); lack != nil {
			err = fmt.Errorf("%w: %w", err, lack)
		}
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	defer func() {
		// A thread that cannot go back stays locked, and ends with its goroutine.
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// modprobe loads a kernel module; whether it worked shows in what needs it.
func modprobe(name string) {
	_ = exec.Command("modprobe", "-q", name).Run()
}
