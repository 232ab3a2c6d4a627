package lbstate

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// CommandVersion is the highest version of a command that this program can
// apply. A command carries the lowest that can say what it says, and is proposed
// only when every member knows that one (Replicator.Accepts): a cluster in the
// middle of an upgrade goes on with what all its members know.
//
//	version  since then
//	1        -
//	2        checks of other types than tcp and http, and with other options
const CommandVersion = 2

// CommandVersion is the highest version of commands that Apply takes.
func (s *State) CommandVersion() uint64 { return CommandVersion }

// lastCheckField is the number of the last field that a HealthCheck had in
// version 1.
const lastCheckField = 15

// commandVersion is the version that a command needs. Whoever adds a kind, a
// field or a meaning of one says so here.
func commandVersion(c *lbstatepb.Command) uint32 {
	for _, op := range c.GetTransaction().GetOperations() {
		checks := []*lbstatepb.HealthCheck{
			op.GetPutCheck().GetCheck(), op.GetPutService().GetHealthCheck(), op.GetPutBackend().GetBackend().GetHealthCheck(),
		}
		for _, b := range op.GetPutService().GetBackends() {
			checks = append(checks, b.GetHealthCheck())
		}
		for _, check := range checks {
			if check != nil && newerCheck(check) {
				return 2
			}
		}
	}
	return 1
}

// newerCheck says whether a program of version 1 would probe something else.
func newerCheck(c *lbstatepb.HealthCheck) bool {
	switch c.GetType() {
	case "", CheckTypeTCP: // a check that uses a shared one has no type
	case CheckTypeHTTP:
		if len(c.GetAddress()) > 0 { // it was refused
			return true
		}
	default:
		return true
	}
	newer := false
	c.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		newer = f.Number() > lastCheckField
		return !newer
	})
	return newer
}
