package fakekernel

// sysctls are the settings of a network namespace as Linux 6.1 has them at
// first, with IPVS: those that this library and its users' profiles set.
func sysctls() map[string]string {
	s := map[string]string{
		"net/ipv4/ip_forward":            "0",
		"net/ipv4/conf/all/arp_ignore":   "0",
		"net/ipv4/conf/all/arp_announce": "0",
		"net/ipv6/conf/all/forwarding":   "0",
		"net/ipv6/conf/eth0/accept_ra":   "1",
		"net/ipv6/conf/lo/accept_ra":     "1",
	}
	for name, value := range map[string]string{
		"am_droprate": "10", "amemthresh": "1024", "backup_only": "0", "cache_bypass": "0", "conn_reuse_mode": "1",
		"conntrack": "0", "drop_entry": "0", "drop_packet": "0", "expire_nodest_conn": "0", "expire_quiescent_template": "0",
		"ignore_tunneled": "0", "nat_icmp_send": "0", "pmtu_disc": "1", "run_estimation": "1", "schedule_icmp": "0",
		"secure_tcp": "0", "sloppy_sctp": "0", "sloppy_tcp": "0", "snat_reroute": "1",
		"sync_persist_mode": "0", "sync_ports": "1", "sync_refresh_period": "0", "sync_retries": "0",
		"sync_qlen_max":  "2048", // by the host's memory
		"sync_sock_size": "0", "sync_threshold": "3\t50", "sync_version": "1",
	} {
		s["net/ipv4/vs/"+name] = value
	}
	return s
}
