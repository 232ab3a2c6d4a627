package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zapcore"

	"github.com/ipvskit/ipvskit/healthcheck"
	"github.com/ipvskit/ipvskit/reconcile"
)

func TestFlagsDefaults(t *testing.T) {
	c, err := parseFlags([]string{"--agent_name", "here"})
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		role: roleServer, nodeID: "raft", advertise: "127.0.0.1:8110", listen: "127.0.0.1",
		cluster: []string{"127.0.0.1:8010"}, serverPort: 8010, grpcPort: 8210,
		grpcAddress: []string{"127.0.0.1:8210"}, volDir: "node_1_data", tuning: tuning{dummyName: "ipvs-manager"},
		hold: healthcheck.Hold{Share: 0.5, Limit: time.Minute}, execDir: "/etc/ipvs-manager/checks",
		plane: planeAuto, agentName: "here", agentNamed: true, agentLabels: map[string]string{}, agentDir: "agent_data",
		logLevel: zapcore.InfoLevel,
	}
	if diff := cmp.Diff(want, c, cmp.AllowUnexported(config{}, tuning{})); diff != "" {
		t.Error(diff)
	}
}

func TestFlags(t *testing.T) {
	for _, test := range []struct {
		name string
		args string
		ok   func(config) bool
	}{
		{"roles", "--server_type=", func(c config) bool { return c.role == roleServer }},
		{"singleon's journal", "--server_type singleon --raft_vol_dir d", func(c config) bool { return c.agentDir == "d/agent" }},
		{"advertise", "--advertise 192.0.2.1:9 --server_port 80", func(c config) bool {
			return c.advertise == "192.0.2.1:9" && c.cluster[0] == "192.0.2.1:80" && c.listen == "192.0.2.1"
		}},
		{"dashes", "--server-port 81 --raft-node-id n", func(c config) bool { return c.serverPort == 81 && c.nodeID == "n" }},
		{"IPv6", "--adverties [2001:db8::1]:8110", func(c config) bool { return c.httpAddress() == "[2001:db8::1]:8010" }},
		{"list", "--cluster a:1,,b:2, --form_without b:2", func(c config) bool { return len(c.cluster) == 2 && c.without[0] == "b:2" }},
		{"labels", "--agent_labels zone=a,rack=,x=7", func(c config) bool {
			return c.agentLabels["zone"] == "a" && c.agentLabels["x"] == "7" && len(c.agentLabels) == 3
		}},
		{"director", "--allowed_prefixes 192.0.2.7/24,2001:db8::/32 --drain_timeout 0 --release_vips --leave_sysctls *", func(c config) bool {
			t := c.tuning
			return len(t.allowedPrefixes) == 2 && t.allowedPrefixes[0].String() == "192.0.2.0/24" && t.drainTimeout < 0 && t.releaseVIPs && t.leaveSysctls[0] == "*"
		}},
		{"VIPs stay", "--release_vips=false --drain_timeout 1m", func(c config) bool {
			return !c.tuning.releaseVIPs && c.tuning.keepVIPs && c.tuning.drainTimeout == time.Minute
		}},
		{"kernel", "--ipvs_timeouts tcp=5m,udp=30s --sync_daemons master:eth1:7,backup:eth1:7", func(c config) bool {
			t := c.tuning
			return t.timeouts == reconcile.Timeouts{TCP: 5 * time.Minute, UDP: 30 * time.Second} && len(t.daemons) == 2 &&
				t.daemons[1] == reconcile.SyncDaemon{Role: reconcile.SyncBackup, Interface: "eth1", ID: 7}
		}},
		{"programs", "--allow_exec_checks --exec_checks_dir /", func(c config) bool { return c.execChecks && c.execDir == "/" }},
		{"listen", "--listen ::", func(c config) bool { return c.listenAddress(8010) == "[::]:8010" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := parseFlags(strings.Fields(test.args))
			if err != nil || !test.ok(c) {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

func TestBadFlagsAreNamed(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args string
		want []string // parts of the message
	}{
		{"--server_type master", []string{"--server_type", `"master"`, "server (or empty), agent, singleon"}},
		{"--allowed_prefixes 192.0.2.0", []string{"--allowed_prefixes", `"192.0.2.0"`, "ADDRESS/LENGTH"}},
		{"--ipvs_timeouts tcp=1ms", []string{"--ipvs_timeouts", `"tcp=1ms"`, "whole seconds"}},
		{"--ipvs_timeouts icmp=1s", []string{"--ipvs_timeouts", `"icmp=1s"`}},
		{"--sync_daemons master:eth1", []string{"--sync_daemons", `"master:eth1"`, "master:INTERFACE:ID"}},
		{"--sync_daemons master:eth1:256", []string{"--sync_daemons", `"master:eth1:256"`}},
		{"--hold_share 1.5", []string{"--hold_share", `"1.5"`, "at most 1"}},
		{"--hold_limit 0s", []string{"--hold_limit", `"0s"`, "more than 0"}},
		{"--release_vips=some", []string{"--release_vips", `"some"`, "true, false"}},
		{"--exec_checks_dir checks", []string{"--exec_checks_dir", `"checks"`, "absolute"}},
		{"--exec_checks_dir /a/../b", []string{"--exec_checks_dir", `"/a/../b"`}},
		{"--allow_exec_checks --exec_checks_dir /no/such/directory", []string{"--allow_exec_checks", "--exec_checks_dir", "/no/such/directory", "make it"}},
		{"--allow_exec_checks --exec_checks_dir /dev/null", []string{"--exec_checks_dir", `"/dev/null"`, "a directory"}},
		{"--allow_exec_checks --exec_checks_dir " + open, []string{"--exec_checks_dir", open, "drwxrwxrwx", "go-w"}},
		{"--drain_timeout -1s", []string{"--drain_timeout", `"-1s"`, "a duration"}},
		{"--server_port 0", []string{"--server_port", `"0"`, "1 to 65535"}},
		{"--server_port 65536", []string{"--server_port", `"65536"`}},
		{"--server_port x", []string{"--server_port", `"x"`, "1 to 65535"}},
		{"--advertise 192.0.2.1", []string{"--adverties", `"192.0.2.1"`, "host:port"}},
		{"--adverties 0.0.0.0:8110", []string{"--adverties", `"0.0.0.0:8110"`, "can dial"}},
		{"--cluster a:1,b", []string{"--cluster", `"a:1,b"`, "host:port"}},
		{"--cluster ,", []string{"--cluster", `","`}},
		{"--grpc_address x", []string{"--grpc_address", `"x"`}},
		{"--raft_node_id=", []string{"--raft_node_id", `""`, "letters"}},
		{"--raft_node_id a/b", []string{"--raft_node_id", `"a/b"`}},
		{"--dummy_name 0123456789abcdef", []string{"--dummy_name", "15"}},
		{"--dataplane ebpf", []string{"--dataplane", `"ebpf"`, "auto, kernel, fake"}},
		{"--agent_labels zone", []string{"--agent_labels", `"zone"`, "k=v"}},
		{"--agent_labels a=1,a=2", []string{"--agent_labels", "once"}},
		{"--log_level loud", []string{"--log_level", `"loud"`, "debug, info, warn, error"}},
		{"--log_level fatal", []string{"--log_level", `"fatal"`}},
		{"--insecure=maybe", []string{"--insecure", `"maybe"`, "true, false"}},
		{"--raft_vol_dir=", []string{"--raft_vol_dir", `""`}},
		{"--form_without x:1", []string{"--form_without", `"x:1"`, "127.0.0.1:8010"}},
		{"--form_without 127.0.0.1:8010", []string{"--form_without", "this node itself"}},
		{"--grpc_port 8010", []string{"--grpc_port", "--server_port", "8010"}},
		{"--adverties 127.0.0.1:8010", []string{"--adverties", "--server_port"}},
		{"--listen a/b", []string{"--listen", `"a/b"`}},
		{"--key_file k --insecure", []string{"--insecure", "leave it away"}},
		{"--key_file k --tls_cert c", []string{"--key_file", "--tls_cert", "give one"}},
		{"--tls_cert c --tls_ca a", []string{"--tls_key", "together"}},
		{"--key_file k --http_cert c", []string{"--http_key", "together"}},
		{"--revoked_file r", []string{"--revoked_file", "--key_file"}},
		{"--nope", []string{"--nope", "--help"}},
		{"--server_port", []string{"--server_port", "--help"}},
		{"agent", []string{`"agent"`, "--help"}},
	} {
		t.Run(test.args, func(t *testing.T) {
			_, err := parseFlags(strings.Fields(test.args))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %s", err, part)
				}
			}
		})
	}
}

// INV-40: off loopback nothing listens without certificates, unless --insecure is
// given; the two commands that make and use a key are said.
func TestExposureNeedsAKey(t *testing.T) {
	for _, test := range []struct {
		args    string
		refused string // the flag; empty: accepted
	}{
		{"", ""},
		{"--adverties localhost:8110", ""},
		{"--adverties [::1]:8110", ""},
		{"--adverties 127.0.0.2:8110", ""},
		{"--adverties 192.0.2.77:8110", "adverties"},
		{"--adverties host.example:8110", "adverties"},
		{"--listen 0.0.0.0", "listen"},
		{"--listen ::", "listen"},
		{"--cluster 127.0.0.1:8010,192.0.2.2:8010", "cluster"},
		{"--server_type singleon --listen 192.0.2.7", "listen"},
		{"--server_type agent", ""},
		{"--server_type agent --grpc_address 127.0.0.1:1,192.0.2.1:2", "grpc_address"},
		{"--server_type agent --adverties 192.0.2.77:8110", ""},
	} {
		t.Run(test.args, func(t *testing.T) {
			args := strings.Fields(test.args)
			c, err := parseFlags(args)
			if err != nil {
				t.Fatal(err)
			}
			err = checkExposure(c, args)
			if (err != nil) != (test.refused != "") {
				t.Fatalf("refused: %v", err)
			}
			if err == nil {
				return
			}
			keygen, use := "ipvs-manager keygen --key_file cluster.key", "--key_file cluster.key"
			if c.role == roleAgent {
				keygen = "ipvs-manager agent-cert --key_file cluster.key --name " + c.agentName
				use = "--key_file " + c.agentName + ".key"
			}
			for _, part := range []string{"--" + test.refused, keygen, "ipvs-manager " + test.args + " " + use + "\n", "ipvs-manager " + test.args + " --insecure"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %s", err, part)
				}
			}
			c.insecure = true
			if err := checkExposure(c, args); err != nil {
				t.Errorf("with --insecure: %v", err)
			}
			c.insecure, c.keyFile = false, "cluster.key"
			if err := checkExposure(c, args); err != nil {
				t.Errorf("with --key_file: %v", err)
			}
		})
	}
}

func TestRunTellsHowItEnded(t *testing.T) {
	for _, test := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"--help", 0, "--raft_vol_dir", ""},
		{"--version", 0, "ipvs-manager ", ""},
		{"--server_type boss", 2, "", `--server_type: "boss"`},
		{"--adverties 192.0.2.1:8110", 2, "", "--insecure"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(context.Background(), strings.Fields(test.args), &stdout, &stderr); code != test.code {
			t.Errorf("%s: code %d, want %d", test.args, code, test.code)
		}
		if !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
			t.Errorf("%s:\nstdout %s\nstderr %s", test.args, &stdout, &stderr)
		}
	}
}
