package lbstate

import (
	"fmt"

	"sigs.k8s.io/yaml"
)

// Configuration is a set of objects, as files and the history have it.
type Configuration struct {
	Settings *Settings         `json:"settings,omitempty"`
	Checks   []SharedCheck     `json:"checks,omitempty"`
	Profiles []DirectorProfile `json:"profiles,omitempty"`
	Services []Service         `json:"services,omitempty"`
}

// maxConfigurationBytes bounds the text of a configuration.
const maxConfigurationBytes = 64 << 20

// DecodeConfiguration reads a configuration from JSON or YAML, as DecodeService
// does a service.
func DecodeConfiguration(data []byte) (c Configuration, err error) {
	err = decode(data, maxConfigurationBytes, func(o *object) {
		if s := o.sub("settings"); s != nil {
			settings := s.settings()
			s.done()
			c.Settings = &settings
		}
		for _, s := range o.list("checks") {
			c.Checks = append(c.Checks, s.sharedCheck())
			s.done()
		}
		for _, s := range o.list("profiles") {
			c.Profiles = append(c.Profiles, s.profile())
			s.done()
		}
		for _, s := range o.list("services") {
			c.Services = append(c.Services, s.service())
			s.done()
		}
	})
	return c, err
}

// YAML writes the configuration in the form that DecodeConfiguration reads.
func (c Configuration) YAML() ([]byte, error) { return yaml.Marshal(c) }

// Objects lists the configuration's objects: settings, checks, profiles, then
// services, each kind in its order.
func (c Configuration) Objects() []Object {
	objects := make([]Object, 0, 1+len(c.Checks)+len(c.Profiles)+len(c.Services))
	if c.Settings != nil {
		objects = append(objects, Object{Settings: c.Settings})
	}
	for i := range c.Checks {
		objects = append(objects, Object{Check: &c.Checks[i]})
	}
	for i := range c.Profiles {
		objects = append(objects, Object{Profile: &c.Profiles[i]})
	}
	for i := range c.Services {
		objects = append(objects, Object{Service: &c.Services[i]})
	}
	return objects
}

func (c *Configuration) add(o Object) {
	switch {
	case o.Service != nil:
		c.Services = append(c.Services, *o.Service)
	case o.Check != nil:
		c.Checks = append(c.Checks, *o.Check)
	case o.Profile != nil:
		c.Profiles = append(c.Profiles, *o.Profile)
	case o.Settings != nil:
		c.Settings = o.Settings
	}
}

// Validate names every fault of every object, defaults filled in, and each
// object that stands twice, in a *ValidationError, or returns nil. What objects
// may not be beside each other Store.Plan says.
func (c Configuration) Validate() error {
	var f faults
	seen := map[Ref]bool{}
	for _, o := range c.Objects() {
		ref := o.Ref()
		if seen[ref] {
			f = append(f, Fault{Object: ref.String(), Path: "name", Found: clip(ref.Name), Reason: "stands twice"})
		}
		seen[ref] = true
		f = append(f, about(ref, faultsOf(o.withDefaults().validate()))...)
	}
	return f.inOrder()
}

// about says of which object faults are.
func about(ref Ref, f []Fault) []Fault {
	for i := range f {
		f[i].Object = ref.String()
	}
	return f
}

// faultsOf is the inverse of faults.err.
func faultsOf(err error) []Fault {
	if invalid, ok := err.(*ValidationError); ok { //nolint:errorlint // Validate wraps nothing
		return invalid.Faults
	}
	return nil
}

// inOrder is the error that carries the faults as they stand.
func (f faults) inOrder() error {
	if len(f) == 0 {
		return nil
	}
	return &ValidationError{f}
}

func (c Configuration) String() string {
	return fmt.Sprintf("%d services, %d checks, %d profiles", len(c.Services), len(c.Checks), len(c.Profiles))
}
