package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/ipvskit/ipvskit/raftstore"
)

// What is done to the data directory of a server that does not run. A running
// one is backed up by GET /api/v1/cluster/backup.

func storageCommand(name, what string, args []string, more func(*pflag.FlagSet)) (dir string, err error) {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.StringVar(&dir, "raft_vol_dir", "node_1_data", "directory of the raft log and the database")
	if more != nil {
		more(fs)
	}
	return dir, parseCommand(fs, what, args)
}

// backup writes the state of a stopped server to a file.
func backup(args []string, stdout io.Writer) (err error) {
	var out string
	dir, err := storageCommand("backup", "copies the state of a stopped server to a file. Of a running one take\nGET /api/v1/cluster/backup.", args, func(fs *pflag.FlagSet) {
		fs.StringVar(&out, "out", "ipvs-manager.backup", "file to write; it must not exist")
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(out)
		}
	}()
	info, err := raftstore.BackupDir(dir, f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("--raft_vol_dir %s: %w", dir, err)
	}
	fmt.Fprintf(stdout, "%s: cluster %016x up to entry %d, %d bytes\n", out, info.Cluster, info.Index, info.Bytes)
	if info.Behind > 0 {
		fmt.Fprintf(stdout, "The server was killed: its log has %d entries more, which are not in the backup. Start and stop it once, then take another.\n", info.Behind)
	}
	return nil
}

// restore makes a data directory of a backup.
func restore(args []string, stdout io.Writer) error {
	var in string
	dir, err := storageCommand("restore", "makes a data directory of a backup: the first server of a new cluster, which records\nthe one that it was restored from. Others join it with empty directories.", args, func(fs *pflag.FlagSet) {
		fs.StringVar(&in, "in", "ipvs-manager.backup", "file to read")
	})
	if err != nil {
		return err
	}
	f, err := os.Open(in)
	if err != nil {
		return fmt.Errorf("--in: %w", err)
	}
	defer f.Close()
	info, err := raftstore.Restore(dir, f)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: restored from cluster %016x, up to entry %d\n", dir, info.Cluster, info.Index)
	return nil
}

// recoverQuorum makes a cluster of one of a survivor.
func recoverQuorum(args []string, stdout io.Writer) error {
	yes := false
	dir, err := storageCommand("recover", "makes a cluster of one of the last server of a cluster that lost most of its servers\nfor ever. What only the lost ones had acknowledged is lost. Take the survivor whose log\nis the longest (see check). The others start again with empty directories, and join.", args, func(fs *pflag.FlagSet) {
		fs.BoolVar(&yes, "quorum_is_lost", false, "most servers are gone and will not come back")
	})
	if err != nil {
		return err
	}
	if !yes {
		return &usageError{err: errors.New("a quorum that is only away must not be given up; when it is lost for ever, say --quorum_is_lost")}
	}
	r, err := raftstore.Recover(dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: cluster %016x, made of %016x\n", dir, r.Cluster, r.Predecessor)
	fmt.Fprintf(stdout, "Entries up to %d were surely acknowledged; those up to %d are kept. What the lost servers acknowledged beyond is lost.\n", r.Commit, r.Last)
	for _, m := range r.Lost {
		fmt.Fprintf(stdout, "no longer a member: %s (%s)\n", m.Name, m.RaftAddr)
	}
	return nil
}

// check reads all that a stopped server has on its disk.
func check(args []string, stdout io.Writer) error {
	dir, err := storageCommand("check", "reads everything in the directory of a stopped server: each checksum, each page,\nand whether log and state belong together. It changes nothing.", args, nil)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("--raft_vol_dir: %w", err)
	}
	r, err := raftstore.Check(dir)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s is whole.\n%s\n", filepath.Clean(dir), text)
	return nil
}
