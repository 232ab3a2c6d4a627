package raftstore

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

// nodeFile is what a node knows of itself before it knows anything else. It is
// written whole, synced and renamed into place.
type nodeFile struct {
	Format      int       `json:"format"`
	Incarnation uint64    `json:"incarnation"`
	Boot        uint64    `json:"boot"` // one up at each Open; makes sequence numbers unique
	Cluster     uint64    `json:"cluster"`
	Member      uint64    `json:"member"`
	Founding    *Founding `json:"founding,omitempty"`
	Peers       []Member  `json:"peers,omitempty"` // of a node that joined: whom to hear before the state says
}

const (
	nodeFileName   = "node.json"
	nodeFileFormat = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// randomID returns a random number that is not 0.
func randomID() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails (crypto/rand)
		// 63 bits, so that the number survives JSON readers with signed integers.
		if id := binary.BigEndian.Uint64(b[:]) >> 1; id != 0 {
			return id
		}
	}
}

// sum wraps a file's JSON with its checksum.
type sum struct {
	CRC  uint32          `json:"crc32c"`
	Node json.RawMessage `json:"node"`
}

func loadNodeFile(dir string) (nodeFile, error) {
	path := filepath.Join(dir, nodeFileName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nodeFile{Format: nodeFileFormat, Incarnation: randomID()}, nil
	}
	if err != nil {
		return nodeFile{}, err
	}
	var s sum
	if err := json.Unmarshal(data, &s); err != nil {
		return nodeFile{}, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if crc32.Checksum(s.Node, castagnoli) != s.CRC {
		return nodeFile{}, fmt.Errorf("%s is damaged: the checksum does not match", path)
	}
	var n nodeFile
	if err := json.Unmarshal(s.Node, &n); err != nil {
		return nodeFile{}, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if n.Format != nodeFileFormat {
		return nodeFile{}, fmt.Errorf("%s has format %d, this program knows format %d alone: was the directory used by a newer one?", path, n.Format, nodeFileFormat)
	}
	return n, nil
}

func (n nodeFile) save(dir string) error {
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	data, err := json.Marshal(sum{crc32.Checksum(body, castagnoli), body})
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, nodeFileName+".tmp")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, nodeFileName))
	}
	if err == nil {
		err = syncDir(dir)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
