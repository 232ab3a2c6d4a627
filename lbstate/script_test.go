package lbstate

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// testdata/script holds sessions with a state: a command, lines that go with
// it, then four dashes and what it answers, up to an empty line. Each script
// starts from nothing. -update writes the answers anew.
func TestScripts(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("testdata", "script", "*.txt"))
	if err != nil || len(paths) == 0 {
		t.Fatal("there are no scripts", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s := &script{node: newNode(t), t: t, watchers: map[string]*Watcher{}}
			var out strings.Builder
			for _, block := range strings.Split(strings.TrimSpace(string(data)), "\n\n") {
				asked, _, isCommand := strings.Cut(block, "\n----")
				if !isCommand { // a comment
					fmt.Fprintf(&out, "%s\n\n", block)
					continue
				}
				line, body, _ := strings.Cut(asked, "\n")
				fmt.Fprintf(&out, "%s\n----\n%s\n\n", asked, strings.TrimRight(s.run(line, body), "\n"))
			}
			golden(t, path, strings.TrimRight(out.String(), "\n")+"\n")
		})
	}
}

type script struct {
	*node
	t        *testing.T
	watchers map[string]*Watcher
}

// run runs one command: words, and options of the form name=value.
func (s *script) run(line, body string) string {
	ctx := context.Background()
	s.clock = s.clock.Add(time.Second)
	var words []string
	var o WriteOptions
	po := PlanOptions{}
	for _, w := range strings.Fields(line) {
		name, value, ok := strings.Cut(w, "=")
		switch {
		case !ok:
			words = append(words, w)
		case name == "author":
			o.Author = value
		case name == "reason":
			o.Reason = value
		case name == "key":
			o.Key = value
		case name == "if":
			o.IfRevision = rev(s.number(value))
		case name == "prune":
			po.Prune = value == "yes"
		default:
			s.t.Fatalf("there is no option %q", w)
		}
	}
	arg := func(i int) string {
		if i >= len(words) {
			s.t.Fatalf("%q is too short", line)
		}
		return words[i]
	}
	wrote := func(res any, err error) string {
		if err != nil {
			return failure(err)
		}
		return asJSON(s.t, res)
	}
	ref := func(text string) Ref {
		r, err := parseRef(text)
		if err != nil {
			s.t.Fatal(err)
		}
		return r
	}
	switch words[0] {
	case "put":
		obj, err := decodeObject(Kind(arg(1)), []byte(body))
		if err != nil {
			return failure(err)
		}
		return wrote(s.Put(ctx, obj, o))
	case "patch":
		return wrote(s.Patch(ctx, ref(arg(1)), []byte(body), o))
	case "delete":
		return wrote(s.Delete(ctx, ref(arg(1)), o))
	case "put-backend":
		b, err := DecodeBackend([]byte(body))
		if err != nil {
			return failure(err)
		}
		return wrote(s.PutBackend(ctx, arg(1), b, o))
	case "delete-backend":
		return wrote(s.DeleteBackend(ctx, arg(1), addrPort(arg(2)), o))
	case "transact": // one "put KIND {…}" or "delete KIND/NAME" a line
		var ops []Operation
		for _, l := range strings.Split(body, "\n") {
			verb, rest, _ := strings.Cut(l, " ")
			if verb == "delete" {
				ops = append(ops, Operation{Delete: ref(rest)})
				continue
			}
			kind, text, _ := strings.Cut(rest, " ")
			obj, err := decodeObject(Kind(kind), []byte(text))
			if err != nil {
				return failure(err)
			}
			ops = append(ops, Operation{Put: obj})
		}
		return wrote(s.Transact(ctx, ops, o))
	case "health": // health SERVICE BACKEND up|down|held [MESSAGE]
		tr := HealthTransition{Service: arg(1), Backend: addrPort(arg(2)), Term: s.local.term, To: HealthState(arg(3)), At: s.clock, Message: strings.Join(words[4:], " ")}
		if tr.To == "held" {
			tr.To, tr.Held = Up, true
		}
		st, err := s.Service(ctx, tr.Service, ReadOptions{})
		if err != nil {
			return failure(err)
		}
		for _, c := range st.Checks() {
			if c.Backend == tr.Backend {
				tr.CheckHash = c.Hash
			}
		}
		if err := s.ReportHealth(ctx, []HealthTransition{tr}); err != nil {
			return failure(err)
		}
		return "ok"
	case "term":
		s.local.SetTerm(s.number(arg(1)))
		return "ok"
	case "pass": // lets time go by
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			s.t.Fatal(err)
		}
		s.clock = s.clock.Add(d)
		return "ok"
	case "show":
		return s.show(arg(1))
	case "watch": // watch NAME [FROM [LABEL:VALUE…]]: begins to watch
		w := WatchOptions{}
		if len(words) > 2 {
			w.From = s.number(words[2])
		}
		for _, label := range words[min(3, len(words)):] {
			k, v, _ := strings.Cut(label, ":")
			if w.Labels == nil {
				w.Labels = map[string]string{}
			}
			w.Labels[k] = v
		}
		s.watchers[arg(1)] = s.Watch(w)
		return "ok"
	case "next": // what a watcher has to tell
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		u, err := s.watchers[arg(1)].Next(ctx)
		if err != nil {
			return "nothing"
		}
		return seen(u)
	case "history":
		entries, err := s.History(ctx, HistoryOptions{})
		if err != nil {
			return failure(err)
		}
		var b strings.Builder
		for _, e := range entries {
			fmt.Fprintf(&b, "%d %s %q %q", e.Revision, e.At.Format(time.TimeOnly), e.Author, e.Reason)
			for _, h := range e.Objects {
				fmt.Fprintf(&b, " %s %s", h.Outcome, h.Ref)
			}
			b.WriteByte('\n')
		}
		return b.String()
	case "diff":
		diffs, err := s.Diff(ctx, s.number(arg(1)), s.number(arg(2)), ReadOptions{})
		if err != nil {
			return failure(err)
		}
		return steps(diffs)
	case "at":
		c, err := s.At(ctx, s.number(arg(1)), ReadOptions{})
		if err != nil {
			return failure(err)
		}
		return must(s.text(c))
	case "rollback":
		return wrote(s.Rollback(ctx, s.number(arg(1)), o))
	case "plan", "apply": // apply ends in the hash that plan told, or "reviewed" for the present one
		c, err := DecodeConfiguration([]byte(body))
		if err != nil {
			return failure(err)
		}
		p, err := s.Plan(ctx, c, po)
		if err != nil {
			return failure(err)
		}
		if words[0] == "plan" {
			return steps(p.Steps) + "hash " + p.Hash
		}
		hash := arg(1)
		if hash == "reviewed" {
			hash = p.Hash
		}
		return wrote(s.ApplyPlan(ctx, c, po, hash, o))
	case "dump":
		var text string
		if err := s.local.ReadStale(func(tx *bbolt.Tx) (err error) {
			text, err = dump(tx)
			return err
		}); err != nil {
			s.t.Fatal(err)
		}
		return text
	}
	s.t.Fatalf("there is no command %q", line)
	return ""
}

func (s *script) number(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *script) text(c Configuration) (string, error) {
	data, err := c.YAML()
	return string(data), err
}

// show is a service in a few lines: what each backend gets, and why.
func (s *script) show(name string) string {
	st, err := s.Service(context.Background(), name, ReadOptions{})
	if err != nil {
		return failure(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s revision %d version %d", st.Name, st.Revision, st.Version)
	if st.InCharge {
		b.WriteString(", the sorry server in charge")
	}
	b.WriteByte('\n')
	for _, d := range Desired(st).Backends {
		fmt.Fprintf(&b, "  %s:%d %s %d %s", d.Address, d.Port, d.Forwarding, d.Weight, d.Reason)
		if !d.DrainUntil.IsZero() {
			fmt.Fprintf(&b, " until %s", d.DrainUntil.Format(time.TimeOnly))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func steps(diffs []ObjectDiff) string {
	var b strings.Builder
	for _, d := range diffs {
		fmt.Fprintf(&b, "%s %s\n", d.Action, d.Ref)
		for _, f := range d.Fields {
			fmt.Fprintf(&b, "  %s\n", f)
		}
	}
	return b.String()
}

func failure(err error) string {
	if !NotApplied(err) {
		return "outcome unknown: " + err.Error()
	}
	return "error: " + strings.ReplaceAll(err.Error(), "; ", "\n  ")
}

func asJSON(t *testing.T, v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
