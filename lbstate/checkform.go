package lbstate

import (
	"fmt"
	"math"
	"net/netip"

	"github.com/ipvskit/ipvskit/lbstate/lbstatepb"
)

// A check's forms: that of the database and of commands, and that which people
// write.

func (c *HealthCheck) proto() *lbstatepb.HealthCheck {
	if c == nil {
		return nil
	}
	p := &lbstatepb.HealthCheck{
		Use: c.Use, Type: c.Type, Address: c.Address.AsSlice(), Port: uint32(c.Port), Path: c.Path, Host: c.Host, Url: c.URL,
		ExpectStatus: c.ExpectStatus, ExpectBody: c.ExpectBody, Interval: int64(c.Interval), DownInterval: int64(c.DownInterval),
		Timeout: int64(c.Timeout), Rise: uint32(c.Rise), Fall: uint32(c.Fall), Initial: string(c.Initial),
		Mode: c.Mode, Send: c.Send, Expect: c.Expect, ExpectLimit: uint32(c.ExpectLimit),
		Method: c.Method, Headers: labelsProto(c.Headers), HttpVersion: c.HTTPVersion, FollowRedirects: uint32(c.FollowRedirects),
		GrpcService: c.GRPCService, Hello: c.Hello, PacketSize: uint32(c.PacketSize), Quiet: int64(c.Quiet),
	}
	if t := c.TLS; t != nil {
		p.Tls = &lbstatepb.CheckTLS{ServerName: t.ServerName, SkipVerify: t.SkipVerify, Ca: t.CA, MinDays: int32(t.MinDays), Implicit: t.Implicit}
	}
	if d := c.DNS; d != nil {
		p.Dns = &lbstatepb.CheckDNS{Name: d.Name, Type: d.Type, Tcp: d.TCP, NoRecursion: d.NoRecursion, ExpectCodes: d.ExpectCodes}
		for _, a := range d.ExpectAddresses {
			p.Dns.ExpectAddresses = append(p.Dns.ExpectAddresses, a.AsSlice())
		}
	}
	if x := c.Exec; x != nil {
		p.Exec = &lbstatepb.CheckExec{Program: x.Program, Args: x.Args}
	}
	if v := c.Via; v != nil {
		p.Via = &lbstatepb.CheckVia{Source: v.Source.AsSlice(), Interface: v.Interface, Mark: v.Mark}
	}
	for _, part := range c.Checks {
		p.Checks = append(p.Checks, part.proto())
	}
	return p
}

func checkFrom(a *addrs, p *lbstatepb.HealthCheck) *HealthCheck {
	if p == nil {
		return nil
	}
	c := &HealthCheck{
		Use: p.GetUse(), Type: p.GetType(), Address: a.from(p.GetAddress(), "health check"), Port: int(p.GetPort()), Path: p.GetPath(), Host: p.GetHost(), URL: p.GetUrl(),
		ExpectStatus: p.GetExpectStatus(), ExpectBody: p.GetExpectBody(), Interval: Duration(p.GetInterval()), DownInterval: Duration(p.GetDownInterval()),
		Timeout: Duration(p.GetTimeout()), Rise: int(p.GetRise()), Fall: int(p.GetFall()), Initial: Initial(p.GetInitial()),
		Mode: p.GetMode(), Send: p.GetSend(), Expect: p.GetExpect(), ExpectLimit: int(p.GetExpectLimit()),
		Method: p.GetMethod(), Headers: labelsFrom(p.GetHeaders()), HTTPVersion: p.GetHttpVersion(), FollowRedirects: int(p.GetFollowRedirects()),
		GRPCService: p.GetGrpcService(), Hello: p.GetHello(), PacketSize: int(p.GetPacketSize()), Quiet: Duration(p.GetQuiet()),
	}
	if t := p.GetTls(); t != nil {
		c.TLS = &CheckTLS{ServerName: t.GetServerName(), SkipVerify: t.GetSkipVerify(), CA: t.GetCa(), MinDays: int(t.GetMinDays()), Implicit: t.GetImplicit()}
	}
	if d := p.GetDns(); d != nil {
		c.DNS = &CheckDNS{Name: d.GetName(), Type: d.GetType(), TCP: d.GetTcp(), NoRecursion: d.GetNoRecursion(), ExpectCodes: d.GetExpectCodes()}
		for _, addr := range d.GetExpectAddresses() {
			c.DNS.ExpectAddresses = append(c.DNS.ExpectAddresses, a.from(addr, "expected address"))
		}
	}
	if x := p.GetExec(); x != nil {
		c.Exec = &CheckExec{Program: x.GetProgram(), Args: x.GetArgs()}
	}
	if v := p.GetVia(); v != nil {
		c.Via = &CheckVia{Source: a.from(v.GetSource(), "source of a check"), Interface: v.GetInterface(), Mark: v.GetMark()}
	}
	for _, part := range p.GetChecks() {
		c.Checks = append(c.Checks, *checkFrom(a, part))
	}
	return c
}

func (o *object) check(name string) *HealthCheck {
	c := o.sub(name)
	if c == nil {
		return nil
	}
	defer c.done()
	h := c.healthCheck(1)
	return &h
}

// healthCheck reads a check at a depth of combination. Deeper than a check may
// be nothing is read.
func (o *object) healthCheck(depth int) HealthCheck {
	c := HealthCheck{
		Use: o.text("use"), Type: o.text("type"), Address: o.addr("address"), Port: o.integer("port"), Path: o.text("path"),
		Host: o.text("host"), URL: o.text("url"), ExpectStatus: o.text("expect_status"), ExpectBody: o.text("expect_body"),
		Interval: o.duration("interval"), DownInterval: o.duration("down_interval"), Timeout: o.duration("timeout"),
		Rise: o.integer("rise"), Fall: o.integer("fall"), Initial: Initial(o.text("initial")),
		Mode: o.text("mode"), Send: o.text("send"), Expect: o.text("expect"), ExpectLimit: o.integer("expect_limit"),
		Method: o.text("method"), Headers: o.labels("headers"), HTTPVersion: o.version("http_version"), FollowRedirects: o.integer("follow_redirects"),
		GRPCService: o.text("grpc_service"), Hello: o.text("hello"), PacketSize: o.integer("packet_size"), Quiet: o.duration("quiet"),
	}
	if t := o.sub("tls"); t != nil {
		c.TLS = &CheckTLS{ServerName: t.text("server_name"), SkipVerify: t.boolean("skip_verify"), CA: t.text("ca"), MinDays: t.integer("min_days"), Implicit: t.boolean("implicit")}
		t.done()
	}
	if d := o.sub("dns"); d != nil {
		c.DNS = &CheckDNS{
			Name: d.text("name"), Type: d.text("type"), TCP: d.boolean("tcp"), NoRecursion: d.boolean("no_recursion"),
			ExpectCodes: d.texts("expect_codes"), ExpectAddresses: d.addresses("expect_addresses"),
		}
		d.done()
	}
	if x := o.sub("exec"); x != nil {
		c.Exec = &CheckExec{Program: x.text("program"), Args: x.texts("args")}
		x.done()
	}
	if v := o.sub("via"); v != nil {
		c.Via = &CheckVia{Source: v.addr("source"), Interface: v.text("interface"), Mark: uint32(v.natural("mark", math.MaxUint32))}
		v.done()
	}
	if parts := o.list("checks"); depth < maxCheckDepth {
		for _, part := range parts {
			c.Checks = append(c.Checks, part.healthCheck(depth+1))
			part.done()
		}
	} else if len(parts) > 0 {
		o.r.fault(o.path+"checks", fmt.Sprintf("%d checks", len(parts)), fmt.Sprintf("checks of checks to a depth of %d", maxCheckDepth), "is too deep")
	}
	return c
}

// version is a text, or a number that YAML makes of it: 1.1, 2.
func (o *object) version(name string) string {
	if n, ok := o.m[name].(fmt.Stringer); ok {
		o.m[name] = n.String()
	}
	return o.text(name)
}

func (o *object) addresses(name string) (list []netip.Addr) {
	for i, text := range o.texts(name) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			o.r.fault(fmt.Sprintf("%s%s[%d]", o.path, name, i), text, "an IPv4 or IPv6 address", fmt.Sprintf("%q is not an IP address", clip(text)))
		}
		list = append(list, a.Unmap())
	}
	return list
}
