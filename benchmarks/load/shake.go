package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// shaking makes full handshakes, each client after the other. One is done when the server, too, is done with it: the
// client says goodbye and reads the server's end; a server that did not take the certificate sends an alert instead.
type shaking struct {
	fleet
	period
	at int
}

func shake(arguments []string) error {
	s, flags := shaking{}, flag.NewFlagSet("shake", flag.ExitOnError)
	s.fleet.flags(flags)
	s.period.flags(flags)
	flags.IntVar(&s.at, "connections", 32, "handshakes at a time")
	flags.Parse(arguments)
	if err := s.fleet.load(); err != nil {
		return err
	}
	s.begin()
	all := newTally()
	var group sync.WaitGroup
	for range s.at {
		group.Add(1)
		go func() {
			defer group.Done()
			t := newTally()
			for time.Now().Before(s.end) {
				begun := time.Now()
				if err := s.once(); err != nil {
					t.fail(err)
				} else if now := time.Now(); now.After(s.start) && now.Before(s.end) {
					t.add(200, now.Sub(begun))
				}
			}
			all.merge(t)
		}()
	}
	group.Wait()
	return json.NewEncoder(os.Stdout).Encode(all.report(s.duration))
}

func (s *shaking) once() error {
	conn, err := s.dial(s.configs[s.take()], time.Now().Add(20*time.Second))
	if err != nil {
		return err
	}
	defer conn.Close()
	if goodbye, ok := conn.(interface{ CloseWrite() error }); ok {
		if err := goodbye.CloseWrite(); err != nil {
			return err
		}
	}
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		if half, ok := secure.NetConn().(*net.TCPConn); ok {
			half.CloseWrite()
		}
	}
	n, err := conn.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("after a handshake: %d bytes, %v", n, err)
	}
	return nil
}
