package lbstate

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal encodes a value as it rests in the database: CRC32C, then JSON. JSON
// from Go structs is deterministic: fields in order, map keys sorted.
func seal(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(out, crc32.Checksum(body, castagnoli))
	return append(out, body...), nil
}

// unseal decodes what seal made. The error names the key.
func unseal(bucket string, key, data []byte, into any) error {
	if len(data) < 4 || binary.BigEndian.Uint32(data) != crc32.Checksum(data[4:], castagnoli) {
		return fmt.Errorf("damaged value of key %q in bucket %s: the checksum does not match", key, bucket)
	}
	if err := json.Unmarshal(data[4:], into); err != nil {
		return fmt.Errorf("damaged value of key %q in bucket %s: %w", key, bucket, err)
	}
	return nil
}

func revisionKey(r uint64) []byte { return binary.BigEndian.AppendUint64(nil, r) }

// commandVersion is the version of the commands that this code writes, and
// the only one it can apply.
const commandVersion = 1

// maxCommandBytes bounds one encoded command.
const maxCommandBytes = 1 << 20

// command is one change as it travels through the log. Exactly one of the
// kinds is set.
type command struct {
	Version    int     `json:"v"`
	Author     string  `json:"author,omitempty"`
	Reason     string  `json:"reason,omitempty"`
	At         int64   `json:"at,omitempty"` // Unix milliseconds, by the proposer's clock
	IfRevision *uint64 `json:"if_revision,omitempty"`

	PutService    *Service       `json:"put_service,omitempty"`
	DeleteService string         `json:"delete_service,omitempty"`
	PutBackend    *putBackend    `json:"put_backend,omitempty"`
	DeleteBackend *deleteBackend `json:"delete_backend,omitempty"`
	ReportHealth  []healthReport `json:"report_health,omitempty"`
}

type putBackend struct {
	Service string  `json:"service"`
	Backend Backend `json:"backend"`
}

type deleteBackend struct {
	Service string `json:"service"`
	Backend string `json:"backend"` // address:port
}

type healthReport struct {
	Service   string      `json:"service"`
	Backend   string      `json:"backend"` // address:port
	CheckHash uint64      `json:"check"`
	Term      uint64      `json:"term"`
	To        HealthState `json:"to"`
	At        int64       `json:"at"` // Unix milliseconds
	Message   string      `json:"message,omitempty"`
}

func decodeCommand(data []byte) (command, error) {
	var c command
	if len(data) > maxCommandBytes {
		return c, fmt.Errorf("command of %d bytes: at most %d are allowed", len(data), maxCommandBytes)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("undecodable command: %w", err)
	}
	if c.Version != commandVersion {
		return c, fmt.Errorf("command of version %d: this program knows version %d alone; it is older than a member that wrote to the log", c.Version, commandVersion)
	}
	kinds := 0
	for _, set := range []bool{c.PutService != nil, c.DeleteService != "", c.PutBackend != nil, c.DeleteBackend != nil, c.ReportHealth != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return c, fmt.Errorf("command of no kind that this program knows")
	}
	return c, nil
}
