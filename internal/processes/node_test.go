//go:build linux

package processes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/ipvskit/ipvskit/raftstore"
	"github.com/ipvskit/ipvskit/transport/peer"
)

// nodeEnv in the environment makes this binary one node of a cluster; its value
// is a nodeConfig.
const nodeEnv = "IPVSKIT_PROCESS"

type nodeConfig struct {
	Dir, Name, Addr string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(nodeEnv); text != "" {
		if err := serve(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// serve is a node. It prints "incarnation N"; on its standard input it gets a
// founding record, once, and then requests, a line each:
//
//	found JSON
//	put ID KEY VALUE   → ID ok FORMER | ID no | ID unknown
//	get ID KEY         → ID ok VALUE | ID unknown
//	dump ID            → ID ok TEXT, of what this node has applied
//	term ID            → ID ok TERM
//	status ID          → ID ok TEXT, for people
func serve(text string) error {
	var cfg nodeConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	t, err := peer.New(peer.Config{ListenAddr: cfg.Addr})
	if err != nil {
		return err
	}
	s, err := raftstore.Open(raftstore.Config{
		Dir: cfg.Dir, Name: cfg.Name, RaftAddr: cfg.Addr, Transport: t,
		StateMachines: map[string]raftstore.StateMachine{"kv": registers{}}, SnapshotEntries: 300, TrailingEntries: 30,
	})
	if err != nil {
		return err
	}
	n := &server{store: s}
	n.say("incarnation %d", s.Identity().Incarnation)
	go n.listen()
	return s.Run(context.Background())
}

type server struct {
	store *raftstore.Store
	mu    sync.Mutex // guards standard output
}

func (n *server) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Printf(format+"\n", args...)
}

// listen takes requests until standard input ends, which ends the process.
func (n *server) listen() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		if verb == "found" {
			var f raftstore.Founding
			err := json.Unmarshal([]byte(rest), &f)
			if err == nil {
				err = n.store.Found(f)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "found:", err)
				os.Exit(1)
			}
			continue
		}
		go n.answer(verb, strings.Fields(rest))
	}
	os.Exit(0)
}

func (n *server) answer(verb string, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	var text string
	var err error
	switch verb {
	case "put":
		var former any
		if former, _, err = n.store.Machine("kv").Propose(ctx, []byte(args[1]+"="+args[2])); err == nil {
			text = former.(string)
		}
	case "get":
		err = n.store.Read(ctx, func(tx *bbolt.Tx) error {
			if b := tx.Bucket(bucket); b != nil {
				text = string(b.Get([]byte(args[1])))
			}
			return nil
		})
	case "term":
		text = fmt.Sprint(n.store.Status().Term)
	case "status":
		text = fmt.Sprintf("%+v", n.store.Status())
	case "dump":
		err = n.store.ReadStale(func(tx *bbolt.Tx) error {
			var out []string
			if b := tx.Bucket(bucket); b != nil {
				return b.ForEach(func(k, v []byte) error {
					out = append(out, string(k)+"="+string(v))
					text = strings.Join(out, ",")
					return nil
				})
			}
			return nil
		})
	}
	var known interface{ NotApplied() bool }
	switch {
	case err == nil:
		n.say("%s ok %s", args[0], text)
	case errors.As(err, &known) && known.NotApplied():
		n.say("%s no", args[0])
	default:
		n.say("%s unknown", args[0])
	}
}

// registers keeps values by key; a command puts one and answers the former. It
// counts how often each was written, so what is applied twice is seen.
type registers struct{}

var bucket = []byte("kv")

func (registers) Apply(tx *bbolt.Tx, _, _ uint64, cmds [][]byte) ([]any, error) {
	b, err := tx.CreateBucketIfNotExists(bucket)
	if err != nil {
		return nil, err
	}
	results := make([]any, len(cmds))
	for i, c := range cmds {
		key, value, _ := bytes.Cut(c, []byte("="))
		former := string(b.Get(key))
		results[i] = former
		if err := b.Put(key, []byte(next(former, string(value)))); err != nil {
			return nil, err
		}
	}
	return results, nil
}

func (registers) Committed(uint64)         {}
func (registers) Restored(*bbolt.Tx) error { return nil }

// next is what a register holds after value was put over former.
func next(former, value string) string {
	_, count, _ := strings.Cut(former, "#")
	n, _ := strconv.Atoi(count) // of what was never written it is 0
	return fmt.Sprintf("%s#%d", value, n+1)
}
