package main

import "testing"

// A plan is for a director with labels: it gets the services and the profile that
// these select.
func TestViewOfLabels(t *testing.T) {
	const text = `
services:
- {name: all, vip: 192.0.2.10, port: 80, backends: [{address: 10.1.0.1}]}
- {name: east, vip: 192.0.2.10, port: 81, agents: {site: east}, backends: [{address: 10.1.0.1}]}
profiles:
- {name: base, timeouts: {tcp: 5m}}
- {name: east, agents: {site: east}, priority: 1}
`
	for _, c := range []struct {
		labels   map[string]string
		services int
		profile  string
	}{
		{nil, 2, "base"},
		{map[string]string{"site": "west"}, 1, "base"},
		{map[string]string{"site": "east"}, 2, "east"},
	} {
		v, err := viewOf([]byte(text), c.labels)
		if err != nil || len(v.Services) != c.services || v.Profile == nil || v.Profile.Name != c.profile {
			t.Errorf("%v: %d services, profile %+v, %v", c.labels, len(v.Services), v.Profile, err)
		}
	}
	if v, err := viewOf([]byte("services: []"), nil); err != nil || v.Profile != nil {
		t.Errorf("profile %+v, %v", v.Profile, err)
	}
}
