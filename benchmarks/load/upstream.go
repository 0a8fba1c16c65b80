package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"net"
	"time"
)

var (
	answer    = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nall is well")
	beginning = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n.\n\r\n")
	heartbeat = []byte("2\r\n.\n\r\n")
)

// upstream answers every request without a body. A path that ends in /stream gets an answer that goes on until the
// client leaves, with two bytes now and then, as watches have.
func upstream(arguments []string) error {
	flags := flag.NewFlagSet("upstream", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:8080", "loopback address")
	every := flags.Duration("every", 20*time.Second, "between the bytes of a stream")
	flags.Parse(arguments)
	if err := checkLoopback(*listen); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go serve(conn, *every)
	}
}

func serve(conn net.Conn, every time.Duration) {
	defer conn.Close()
	reader := bufio.NewReaderSize(conn, 1<<10)
	for {
		streams, err := readRequest(reader)
		if err != nil {
			return
		}
		if streams {
			stream(conn, every)
			return
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func readRequest(reader *bufio.Reader) (streams bool, err error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return false, err
	}
	streams = bytes.Contains(line, []byte("/stream "))
	for len(line) > 2 {
		if line, err = reader.ReadSlice('\n'); err != nil {
			return false, err
		}
	}
	return streams, nil
}

func stream(conn net.Conn, every time.Duration) {
	if _, err := conn.Write(beginning); err != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		conn.Read(make([]byte, 1))
		close(gone)
	}()
	beat := time.NewTicker(every)
	defer beat.Stop()
	for {
		select {
		case <-gone:
			return
		case <-beat.C:
			if _, err := conn.Write(heartbeat); err != nil {
				return
			}
		}
	}
}
