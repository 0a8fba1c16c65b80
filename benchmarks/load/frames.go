package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

const frameHeader, longestFrame = 9, 1 << 16

// frame is one of a tunnel's (docs/protocol.md).
func frame(kind byte, stream uint32, body []byte) []byte {
	made := make([]byte, frameHeader, frameHeader+len(body))
	made[0] = kind
	binary.BigEndian.PutUint32(made[1:], stream)
	binary.BigEndian.PutUint32(made[5:], uint32(len(body)))
	return append(made, body...)
}

func readFrame(reader *bufio.Reader) (byte, uint32, []byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(reader, header[:]); err != nil {
		return 0, 0, nil, err
	}
	length := binary.BigEndian.Uint32(header[5:])
	if length > longestFrame {
		return 0, 0, nil, fmt.Errorf("a frame of %d bytes", length)
	}
	body := make([]byte, length)
	_, err := io.ReadFull(reader, body)
	return header[0], binary.BigEndian.Uint32(header[1:]), body, err
}
