package lbstate

import "math"

// maxObjectBytes bounds the text of one object: it must fit into a command.
const maxObjectBytes = MaxCommandBytes

// DecodeService reads a service from JSON or YAML. Everything that is wrong is
// reported at once: *SyntaxError for text that is neither, and for fields that
// do not exist; *ValidationError for values of the wrong form. Ranges are
// Validate's matter.
func DecodeService(data []byte) (s Service, err error) {
	err = decode(data, maxObjectBytes, func(o *object) { s = o.service() })
	return s, err
}

// DecodeBackend reads one backend, as DecodeService does a service.
func DecodeBackend(data []byte) (b Backend, err error) {
	err = decode(data, maxObjectBytes, func(o *object) { b = o.backend() })
	return b, err
}

// DecodeCheck reads a shared check, as DecodeService does a service.
func DecodeCheck(data []byte) (c SharedCheck, err error) {
	err = decode(data, maxObjectBytes, func(o *object) { c = o.sharedCheck() })
	return c, err
}

// DecodeProfile reads a profile, as DecodeService does a service.
func DecodeProfile(data []byte) (p DirectorProfile, err error) {
	err = decode(data, maxObjectBytes, func(o *object) { p = o.profile() })
	return p, err
}

// DecodeSettings reads settings, as DecodeService does a service.
func DecodeSettings(data []byte) (s Settings, err error) {
	err = decode(data, maxObjectBytes, func(o *object) { s = o.settings() })
	return s, err
}

// decodeObject reads an object of a kind.
func decodeObject(kind Kind, data []byte) (o Object, err error) {
	read, err := objectReader(kind)
	if err != nil {
		return o, err
	}
	err = decode(data, maxObjectBytes, func(obj *object) { o = read(obj) })
	return o, err
}

// decodeObjectTree reads an object of a kind that was parsed; m is used up.
func decodeObjectTree(kind Kind, m map[string]any) (o Object, err error) {
	read, err := objectReader(kind)
	if err != nil {
		return o, err
	}
	err = decodeTree(m, func(obj *object) { o = read(obj) })
	return o, err
}

func objectReader(kind Kind) (func(*object) Object, error) {
	switch kind {
	case KindService:
		return func(o *object) Object { s := o.service(); return Object{Service: &s} }, nil
	case KindCheck:
		return func(o *object) Object { c := o.sharedCheck(); return Object{Check: &c} }, nil
	case KindProfile:
		return func(o *object) Object { p := o.profile(); return Object{Profile: &p} }, nil
	case KindSettings:
		return func(o *object) Object { s := o.settings(); return Object{Settings: &s} }, nil
	}
	return nil, unknownKind(kind)
}

func (o *object) revision() uint64 { return o.natural("revision", math.MaxInt64) }

func (o *object) service() Service {
	s := Service{
		Name: o.text("name"), Labels: o.labels("labels"), Notes: o.text("notes"),
		VIP: o.addr("vip"), Port: o.integer("port"), Protocol: Protocol(o.text("protocol")),
		FWMark: uint32(o.natural("fwmark", math.MaxUint32)), Family: Family(o.text("family")),
		Scheduler: o.text("scheduler"), SchedulerFlags: o.texts("scheduler_flags"),
		Forwarding: Forwarding(o.text("forwarding")), Tunnel: o.tunnel("tunnel"), OnePacket: o.boolean("one_packet"),
		SNAT: SNATMode(o.text("snat")), Agents: o.labels("agents"), HealthCheck: o.check("health_check"),
		MinHealthy: o.integer("min_healthy"), FailOpen: o.boolean("fail_open"), Revision: o.revision(),
	}
	if p := o.sub("persistence"); p != nil {
		s.Persistence = &Persistence{Timeout: p.duration("timeout"), Prefix: p.integer("prefix"), Engine: p.text("engine")}
		p.done()
	}
	if p := o.sub("sorry_server"); p != nil {
		s.SorryServer = &SorryServer{Address: p.addr("address"), Port: p.integer("port"), Forwarding: Forwarding(p.text("forwarding"))}
		p.done()
	}
	for _, b := range o.list("backends") {
		s.Backends = append(s.Backends, b.backend())
		b.done()
	}
	return s
}

func (o *object) backend() Backend {
	b := Backend{
		Address: o.addr("address"), Port: o.integer("port"), State: BackendState(o.text("state")),
		DrainTimeout: o.duration("drain_timeout"), DrainSince: o.instant("drain_since"),
		Forwarding: Forwarding(o.text("forwarding")), Tunnel: o.tunnel("tunnel"),
		UpperThreshold: o.integer("upper_threshold"), LowerThreshold: o.integer("lower_threshold"),
		HealthCheck: o.check("health_check"), Notes: o.text("notes"),
	}
	if w, ok := o.number("weight"); ok {
		b.Weight = &w
	}
	return b
}

func (o *object) tunnel(name string) *TunnelOptions {
	t := o.sub(name)
	if t == nil {
		return nil
	}
	defer t.done()
	return &TunnelOptions{Type: TunnelType(t.text("type")), Port: t.integer("port"), Checksum: TunnelChecksum(t.text("checksum"))}
}

func (o *object) sharedCheck() SharedCheck {
	c := SharedCheck{Name: o.text("name"), Notes: o.text("notes"), Revision: o.revision()}
	if check := o.check("check"); check != nil {
		c.Check = *check
	}
	return c
}

func (o *object) profile() DirectorProfile {
	p := DirectorProfile{
		Name: o.text("name"), Agents: o.labels("agents"), Priority: o.integer("priority"), Sysctls: o.labels("sysctls"),
		ReleaseVIPs: o.boolean("release_vips"), AllowedPrefixes: o.prefixes("allowed_prefixes"), SNAT: SNATMode(o.text("snat")),
		DrainTimeout: o.duration("drain_timeout"), Notes: o.text("notes"), Revision: o.revision(),
	}
	if t := o.sub("timeouts"); t != nil {
		p.Timeouts = &Timeouts{TCP: t.duration("tcp"), TCPFin: t.duration("tcp_fin"), UDP: t.duration("udp")}
		t.done()
	}
	for _, d := range o.list("sync_daemons") {
		p.SyncDaemons = append(p.SyncDaemons, SyncDaemon{
			Role: d.text("role"), Interface: d.text("interface"), ID: d.integer("id"), MaxLength: d.integer("max_length"),
			Group: d.addr("group"), Port: d.integer("port"), TTL: d.integer("ttl"),
		})
		d.done()
	}
	if g := o.sub("guard"); g != nil {
		p.Guard = &Guard{MaxServices: g.integer("max_services"), MaxPercent: g.integer("max_percent")}
		g.done()
	}
	return p
}

func (o *object) settings() Settings {
	return Settings{
		ChangeRevisions: o.integer("change_revisions"), HistoryRevisions: o.integer("history_revisions"),
		HistoryBytes: o.integer("history_bytes"), HistoryAge: o.duration("history_age"),
		IdempotencyKeys: o.integer("idempotency_keys"), Revision: o.revision(),
	}
}
