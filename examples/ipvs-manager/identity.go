package main

import (
	"errors"
	"fmt"

	"go.uber.org/zap"

	accessdata "github.com/ipvskit/ipvskit/lbstate/access"
	"github.com/ipvskit/ipvskit/transport/identity"
)

// secured says whether connections are made and taken with certificates.
func (c config) secured() bool { return c.keyFile != "" || c.tlsCert != "" }

// serverIdentity is that of a server, which lets nobody in whom the state or
// --revoked_file has revoked. Without certificates it is nil.
func serverIdentity(cfg config, people *accessdata.State, log *zap.Logger) (*identity.Source, error) {
	var file *identity.Revocations
	if cfg.revokedFile != "" && cfg.secured() {
		var err error
		if file, err = identity.OpenRevocations(cfg.revokedFile, log); err != nil {
			return nil, fmt.Errorf("--revoked_file: %w", err)
		}
	}
	return openIdentity(cfg, identity.RoleServer, cfg.nodeID, revokedIn(people, file), log)
}

// openIdentity reads what the flags name. Without certificates it is nil.
func openIdentity(cfg config, role identity.Role, name string, revoked func(identity.ID, string) string, log *zap.Logger) (*identity.Source, error) {
	if !cfg.secured() {
		return nil, nil
	}
	ic := identity.Config{
		KeyFile: cfg.keyFile, CertFile: cfg.tlsCert, PrivateKeyFile: cfg.tlsKey, CAFile: cfg.tlsCA,
		Role: role, Name: name, Revoked: revoked, Logger: log,
	}
	switch role {
	case identity.RoleServer:
		ic.Hosts = append([]string{cfg.host(), cfg.listen, "localhost", "127.0.0.1", "::1"}, cfg.hostNames...)
	case identity.RoleAgent:
		ic.Labels = cfg.agentLabels
	}
	s, err := identity.Open(ic)
	if err != nil {
		flag := "--key_file"
		if cfg.keyFile == "" {
			flag = "--tls_cert, --tls_key, --tls_ca"
		}
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return s, nil
}

// agentIdentity is that of a director of its own host.
func agentIdentity(cfg config, log *zap.Logger) (*identity.Source, error) {
	name := ""
	if cfg.agentNamed {
		name = cfg.agentName
	}
	s, err := openIdentity(cfg, identity.RoleAgent, name, nil, log)
	if err == nil && s != nil && s.HoldsKey() {
		return nil, fmt.Errorf(`--key_file %s is the key of the cluster, which makes its holder any server or
agent; a director must not have it. Where the key is, make a credential:

    ipvs-manager agent-cert --key_file %s --name %s`, cfg.keyFile, shellJoin([]string{cfg.keyFile}), cfg.agentName)
	}
	return s, err
}

// ownDirectorIdentity is that of a singleon's director, which the same process
// serves: minted, if there is a key to do it with.
func ownDirectorIdentity(cfg config, log *zap.Logger) (*identity.Source, error) {
	if !cfg.secured() {
		return nil, nil
	}
	needsKey := errors.New("--server_type singleon needs the cluster's key as --key_file, to make its own director's certificate; where the key must not be, run a server and an agent")
	if cfg.keyFile == "" {
		return nil, needsKey
	}
	if bundle, _, err := identity.Read(cfg.keyFile); err == nil && bundle == nil {
		return nil, needsKey
	}
	return openIdentity(cfg, identity.RoleAgent, cfg.agentName, nil, log)
}
