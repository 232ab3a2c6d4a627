package raftstore

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// history is what the callers of a simulation saw.
type history struct {
	ops  []porcupine.Operation
	seen int // operations that ended, those without effect included
}

type register struct {
	key, value string // value "": a read
}

type registerOut struct {
	value   string // read, or replaced
	unknown bool
}

func (h *history) len() int { return h.seen }

func (h *history) add(op *simOp, now int, o outcome) {
	h.seen++
	out := registerOut{}
	end := int64(now)
	var refused interface{ NotApplied() bool }
	switch {
	case o.err == nil:
		out.value = o.result.(string)
	case op.p == nil:
		return // a read without an answer says nothing
	case errors.As(o.err, &refused) && refused.NotApplied():
		// Said to have no effect: any value of it that is seen has no source.
		return
	default:
		out.unknown = true
		end = math.MaxInt64
	}
	h.ops = append(h.ops, porcupine.Operation{
		ClientId: len(h.ops), Input: register{op.key, op.value}, Call: int64(op.began), Output: out, Return: end,
	})
}

var registers = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range ops {
			k := op.Input.(register).key
			byKey[k] = append(byKey[k], op)
		}
		var parts [][]porcupine.Operation
		for _, p := range byKey {
			parts = append(parts, p)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in, out := input.(register), output.(registerOut)
		if in.value == "" {
			return out.value == state, state
		}
		return out.unknown || out.value == state, string(nextValue([]byte(state.(string)), []byte(in.value)))
	},
	Equal:             func(a, b any) bool { return a == b },
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%v → %v", in, out) },
}

// check says whether the history is linearizable.
func (h *history) check() error {
	switch porcupine.CheckOperationsTimeout(registers, h.ops, time.Minute) {
	case porcupine.Ok:
		return nil
	case porcupine.Illegal:
		return fmt.Errorf("the history of %d operations is not linearizable", len(h.ops))
	}
	return errors.New("the history could not be checked within a minute")
}
