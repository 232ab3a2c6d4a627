package raftbench

import (
	"encoding/binary"
	"errors"
)

// A command of our state machine and of hashicorp's is one or more keys and
// values, each with its length before it.

func encodePairs(keys [][]byte, value []byte) []byte {
	size := 0
	for _, k := range keys {
		size += len(k) + len(value) + 4
	}
	cmd := make([]byte, 0, size)
	for _, k := range keys {
		cmd = append(binary.AppendUvarint(cmd, uint64(len(k))), k...)
		cmd = append(binary.AppendUvarint(cmd, uint64(len(value))), value...)
	}
	return cmd
}

func eachPair(cmd []byte, do func(key, value []byte) error) error {
	var key, value []byte
	for len(cmd) > 0 {
		for _, part := range []*[]byte{&key, &value} {
			n, w := binary.Uvarint(cmd)
			if w <= 0 || n > uint64(len(cmd)-w) {
				return errors.New("not a command of this benchmark")
			}
			*part, cmd = cmd[w:w+int(n)], cmd[w+int(n):]
		}
		if err := do(key, value); err != nil {
			return err
		}
	}
	return nil
}
