package raftstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

// nodeFile is what a node knows of itself before it knows anything else.
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

func loadNodeFile(files disk.FS, dir string) (nodeFile, error) {
	var n nodeFile
	err := loadSealed(files, filepath.Join(dir, nodeFileName), nodeFileFormat, &n)
	if errors.Is(err, fs.ErrNotExist) {
		return nodeFile{Format: nodeFileFormat, Incarnation: randomID()}, nil
	}
	return n, err
}

func (n nodeFile) save(files disk.FS, dir string) error {
	return saveSealed(files, filepath.Join(dir, nodeFileName), n)
}
