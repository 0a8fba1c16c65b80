package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
)

// exchange sends one request and reads one whole answer: by its length, or chunked.
func exchange(conn net.Conn, reader *bufio.Reader, request []byte) (int, error) {
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	status, length, err := readHead(reader)
	if err != nil {
		return 0, err
	}
	if status != 200 {
		return status, refusal(reader, status, length)
	}
	if length < 0 {
		return status, discardChunks(reader)
	}
	_, err = reader.Discard(length)
	return status, err
}

// refusal tells what an answer with another status than 200 says; its head was read.
func refusal(reader *bufio.Reader, status, length int) error {
	told, _ := reader.Peek(min(max(length, 0), 300))
	return fmt.Errorf("status %d: %s", status, told)
}

// readHead reads an answer's head: its status, and the length of its body, -1 when it is chunked.
func readHead(reader *bufio.Reader) (status, length int, err error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return 0, 0, err
	}
	if len(line) < 13 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, 0, errors.New("no status line")
	}
	status = int(line[9]-'0')*100 + int(line[10]-'0')*10 + int(line[11]-'0')
	for {
		if line, err = reader.ReadSlice('\n'); err != nil {
			return 0, 0, err
		}
		if len(line) <= 2 {
			return status, length, nil
		}
		if value, found := field(line, "content-length"); found {
			if length, err = strconv.Atoi(value); err != nil {
				return 0, 0, err
			}
		} else if _, found := field(line, "transfer-encoding"); found {
			length = -1
		}
	}
}

// field is the value of a header line when it has this name.
func field(line []byte, name string) (string, bool) {
	if len(line) <= len(name) || line[len(name)] != ':' || line[0]|0x20 != name[0] {
		return "", false
	}
	if !bytes.EqualFold(line[:len(name)], []byte(name)) {
		return "", false
	}
	return string(bytes.TrimSpace(line[len(name)+1:])), true
}

func discardChunks(reader *bufio.Reader) error {
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return err
		}
		if _, err = io.CopyN(io.Discard, reader, size+2); err != nil {
			return err
		}
		if size == 0 {
			return nil
		}
	}
}
