package lbstate

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// Kind is a kind of object.
type Kind string

const (
	KindService  Kind = "service"
	KindCheck    Kind = "check"
	KindProfile  Kind = "profile"
	KindSettings Kind = "settings" // there is one, of name "settings"
)

// kinds in the order in which objects are listed and created.
var kinds = []Kind{KindSettings, KindCheck, KindProfile, KindService}

// Ref names an object.
type Ref struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
}

func (r Ref) String() string { return string(r.Kind) + "/" + r.Name }

// path is how a sentence names the object: "service web".
func (r Ref) path() string { return string(r.Kind) + " " + r.Name }

func parseRef(text string) (Ref, error) {
	kind, name, ok := strings.Cut(text, "/")
	if !ok {
		return Ref{}, fmt.Errorf("%q does not name an object", text)
	}
	return Ref{Kind(kind), name}, nil
}

// Object is one object of the configuration: exactly one field is set.
type Object struct {
	Service  *Service
	Check    *SharedCheck
	Profile  *DirectorProfile
	Settings *Settings
}

// Ref names the object.
func (o Object) Ref() Ref {
	switch {
	case o.Service != nil:
		return Ref{KindService, o.Service.Name}
	case o.Check != nil:
		return Ref{KindCheck, o.Check.Name}
	case o.Profile != nil:
		return Ref{KindProfile, o.Profile.Name}
	case o.Settings != nil:
		return settingsRef
	}
	return Ref{}
}

var settingsRef = Ref{KindSettings, "settings"}

// Revision is that of the object's last change.
func (o Object) Revision() uint64 {
	switch {
	case o.Service != nil:
		return o.Service.Revision
	case o.Check != nil:
		return o.Check.Revision
	case o.Profile != nil:
		return o.Profile.Revision
	case o.Settings != nil:
		return o.Settings.Revision
	}
	return 0
}

// value is what Object holds, for encoding as JSON.
func (o Object) value() any {
	switch {
	case o.Service != nil:
		return o.Service
	case o.Check != nil:
		return o.Check
	case o.Profile != nil:
		return o.Profile
	case o.Settings != nil:
		return o.Settings
	}
	return nil
}

func (o Object) exists() bool { return o != Object{} }

// withDefaults returns a copy with every default filled in.
func (o Object) withDefaults() Object {
	switch {
	case o.Service != nil:
		s := o.Service.WithDefaults()
		return Object{Service: &s}
	case o.Check != nil:
		c := *o.Check
		c.Check = *c.Check.withDefaults()
		return Object{Check: &c}
	case o.Profile != nil:
		p := o.Profile.withDefaults()
		return Object{Profile: &p}
	case o.Settings != nil:
		s := o.Settings.WithDefaults()
		return Object{Settings: &s}
	}
	return o
}

// record is an object as it rests in the database.
type record struct {
	Object
	frame uint64 // of a service: the revision of the last change of anything but single backends
	raw   []byte // as it was read; nil: made by a command
}

// setRevision stamps the object, which must not be shared.
func (r *record) setRevision(rev uint64) {
	switch {
	case r.Service != nil:
		r.Service.Revision = rev
	case r.Check != nil:
		r.Check.Revision = rev
	case r.Profile != nil:
		r.Profile.Revision = rev
	case r.Settings != nil:
		r.Settings.Revision = rev
	}
}

// encode is the form in which the record rests.
func (r record) encode() ([]byte, error) {
	body, err := r.bare()
	return stamped(body, r.Revision(), r.frame), err
}

// bare is the record's form without what the state sets: revision and frame.
func (r record) bare() ([]byte, error) {
	var m proto.Message
	switch {
	case r.Service != nil:
		p := r.Service.proto()
		p.Revision = 0
		m = p
	case r.Check != nil:
		p := r.Check.proto()
		p.Revision = 0
		m = p
	case r.Profile != nil:
		p := r.Profile.proto()
		p.Revision = 0
		m = p
	case r.Settings != nil:
		p := r.Settings.proto()
		p.Revision = 0
		m = p
	}
	return encode(m)
}

// The numbers of what the state sets, the same in each kind of object and the
// highest, so that they stand last.
const (
	revisionField = 30
	frameField    = 31
)

// stamped adds revision and frame to a bare form, which it does not change.
func stamped(bare []byte, revision, frame uint64) []byte {
	body := bare[:len(bare):len(bare)]
	for _, f := range []struct {
		number protowire.Number
		value  uint64
	}{{revisionField, revision}, {frameField, frame}} {
		if f.value != 0 {
			body = protowire.AppendVarint(protowire.AppendTag(body, f.number, protowire.VarintType), f.value)
		}
	}
	return body
}

func decodeRecord(kind Kind, body []byte) (record, error) {
	switch kind {
	case KindService:
		var p lbstatepb.Service
		if err := proto.Unmarshal(body, &p); err != nil {
			return record{}, err
		}
		s, err := serviceFrom(&p)
		return record{Object: Object{Service: &s}, frame: p.GetFrame()}, err
	case KindCheck:
		var p lbstatepb.SharedCheck
		if err := proto.Unmarshal(body, &p); err != nil {
			return record{}, err
		}
		c, err := sharedCheckFrom(&p)
		return record{Object: Object{Check: &c}}, err
	case KindProfile:
		var p lbstatepb.DirectorProfile
		if err := proto.Unmarshal(body, &p); err != nil {
			return record{}, err
		}
		d, err := profileFrom(&p)
		return record{Object: Object{Profile: &d}}, err
	case KindSettings:
		var p lbstatepb.Settings
		if err := proto.Unmarshal(body, &p); err != nil {
			return record{}, err
		}
		s := settingsFrom(&p)
		return record{Object: Object{Settings: &s}}, nil
	}
	return record{}, unknownKind(kind)
}

func unknownKind(kind Kind) error {
	return &ValidationError{[]Fault{{Path: "kind", Found: clip(kind), Allowed: "service, check, profile, settings", Reason: "is not a kind of object"}}}
}
