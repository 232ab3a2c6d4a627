//go:build linux && !race

package raftstore

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Where a process may not have the address space that a state is given otherwise
// it works with what there is. (The race detector needs more than that itself.)
func TestSmallAddressSpace(t *testing.T) {
	cmd := exec.Command("sh", "-c", `ulimit -v 33554432 && exec "$0"`, os.Args[0]) // 32 GiB
	cmd.Env = append(os.Environ(), killedDir+"="+t.TempDir())
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "acked ") {
		t.Errorf("the process says %q, %v", lines.Text(), lines.Err())
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
}
