//go:build linux

package processes

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// history is what the callers saw. Times are nanoseconds since its beginning.
type history struct {
	began time.Time

	mu     sync.Mutex // guards the fields below
	ops    []porcupine.Operation
	acked  int // writes that were acknowledged
	reads  int
	unsure int // writes whose outcome is unknown
}

type input struct{ key, value string } // value "": a read

type output struct {
	text    string // read, or replaced
	unknown bool
}

func (h *history) now() int64 { return int64(time.Since(h.began)) }

// add takes an answer of a process.
func (h *history) add(caller int, in input, call int64, answer string) {
	end := h.now()
	outcome, text, _ := strings.Cut(answer, " ")
	out := output{text: text}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case outcome == "ok" && in.value == "":
		h.reads++
	case outcome == "ok":
		h.acked++
	case in.value == "" || outcome == "no":
		return // it says nothing, or that it has no effect: whatever is seen of it has no source
	default:
		h.unsure++
		out.unknown, end = true, math.MaxInt64
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: caller, Input: in, Call: call, Output: out, Return: end})
}

var model = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range ops {
			key := op.Input.(input).key
			byKey[key] = append(byKey[key], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		i, o := in.(input), out.(output)
		if i.value == "" {
			return o.text == state, state
		}
		return o.unknown || o.text == state, next(state.(string), i.value)
	},
	Equal:             func(a, b any) bool { return a == b },
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%v → %v", in, out) },
}

func (h *history) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch porcupine.CheckOperationsTimeout(model, h.ops, 2*time.Minute) {
	case porcupine.Ok:
		return nil
	case porcupine.Illegal:
		return fmt.Errorf("the history of %d operations is not linearizable", len(h.ops))
	}
	return errors.New("the history could not be checked within two minutes")
}
