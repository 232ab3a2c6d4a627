package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/ipvskit/ipvskit/raftstore/internal/disk"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealed is a small file: JSON with its checksum, replaced whole.
type sealed struct {
	CRC  uint32          `json:"crc32c"`
	Body json.RawMessage `json:"body"`
}

// format is what every body has: a number that a newer program raises.
type format struct {
	Format int `json:"format"`
}

// loadSealed reads what saveSealed wrote; a missing file is fs.ErrNotExist.
func loadSealed(fs disk.FS, path string, want int, body any) error {
	data, err := disk.Read(fs, path)
	if err != nil {
		return err
	}
	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	if crc32.Checksum(s.Body, castagnoli) != s.CRC {
		return fmt.Errorf("%s is damaged: the checksum does not match", path)
	}
	var f format
	if err := json.Unmarshal(s.Body, &f); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	if f.Format != want {
		return fmt.Errorf("%s has format %d, this program knows format %d alone: was the directory used by a newer one?", path, f.Format, want)
	}
	if err := json.Unmarshal(s.Body, body); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	return nil
}

func saveSealed(fs disk.FS, path string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	data, err := json.Marshal(sealed{crc32.Checksum(raw, castagnoli), raw})
	if err != nil {
		return err
	}
	return disk.Replace(fs, path, data)
}

var errChecksum = errors.New("the checksum does not match")
