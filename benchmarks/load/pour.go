package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// pouring measures what passes between connections to `target` and the service `sink`, which is this program too: what
// stands between them is what is measured. With `-up` the connections send, with `-down` the service does. It reports
// bytes per second in the period, and how many each connection carried.
type pouring struct {
	period
	target, sink string
	connections  int
	up, down     bool
}

const piece = 256 << 10

// poured is one connection, at both its ends.
type poured struct {
	conn    net.Conn
	service net.Conn
	bytes   atomic.Int64
}

func pour(arguments []string) error {
	p, flags := pouring{}, flag.NewFlagSet("pour", flag.ExitOnError)
	p.period.flags(flags)
	flags.StringVar(&p.target, "target", "", "loopback address to connect to")
	flags.StringVar(&p.sink, "sink", "", "loopback address to listen on")
	flags.IntVar(&p.connections, "connections", 1, "how many at a time")
	flags.BoolVar(&p.up, "up", false, "the connections send")
	flags.BoolVar(&p.down, "down", false, "the service sends")
	flags.Parse(arguments)
	all, err := joined(p.target, p.sink, p.connections)
	if err != nil {
		return err
	}
	for _, each := range all {
		if p.up {
			go fill(each.conn)
			go each.drain(each.service)
		}
		if p.down {
			go fill(each.service)
			go each.drain(each.conn)
		}
	}
	p.period.begin()
	time.Sleep(time.Until(p.start))
	before := carried(all)
	time.Sleep(time.Until(p.end))
	seconds := time.Since(p.start).Seconds()
	each, total := carried(all), int64(0)
	for i := range each {
		each[i] -= before[i]
		total += each[i]
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"per_second": float64(total) / seconds, "connections": each,
	})
}

// joined makes so many connections, one after another, and finds the service's end of each. What the kernel keeps for
// them is bounded: a thousand that grow as they like use up its memory for TCP, and then it drops what is under way.
func joined(target, sink string, count int) ([]*poured, error) {
	for _, address := range []string{target, sink} {
		if err := checkLoopback(address); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("tcp", sink)
	if err != nil {
		return nil, err
	}
	all := make([]*poured, count)
	for i := range all {
		conn, err := net.DialTimeout("tcp", target, 10*time.Second)
		if err != nil {
			return nil, err
		}
		listener.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
		service, err := listener.Accept()
		if err != nil {
			return nil, fmt.Errorf("connection %d does not arrive: %w", i, err)
		}
		for _, end := range []net.Conn{conn, service} {
			end := end.(*net.TCPConn)
			if err := errors.Join(end.SetWriteBuffer(piece), end.SetReadBuffer(piece)); err != nil {
				return nil, err
			}
		}
		all[i] = &poured{conn: conn, service: service}
	}
	return all, nil
}

func fill(conn net.Conn) {
	for data := make([]byte, piece); ; {
		if _, err := conn.Write(data); err != nil {
			return
		}
	}
}

func (p *poured) drain(conn net.Conn) {
	for data := make([]byte, piece); ; {
		count, err := conn.Read(data)
		p.bytes.Add(int64(count))
		if err != nil {
			return
		}
	}
}

func carried(all []*poured) []int64 {
	found := make([]int64, len(all))
	for i, each := range all {
		found[i] = each.bytes.Load()
	}
	return found
}

// bounce sends small messages at a steady rate over so many connections and has the service send them back. It reports
// how long each was under way, in nanoseconds.
func bounce(arguments []string) error {
	p, flags := pouring{}, flag.NewFlagSet("bounce", flag.ExitOnError)
	p.period.flags(flags)
	flags.StringVar(&p.target, "target", "", "loopback address to connect to")
	flags.StringVar(&p.sink, "sink", "", "loopback address to listen on")
	flags.IntVar(&p.connections, "connections", 20, "how many")
	rate := flags.Float64("rate", 500, "messages per second over all of them")
	size := flags.Int("size", 64, "bytes of a message")
	flags.Parse(arguments)
	all, err := joined(p.target, p.sink, p.connections)
	if err != nil {
		return err
	}
	p.period.begin()
	found := make(chan []int64, len(all))
	interval := time.Duration(float64(time.Second) * float64(len(all)) / *rate)
	for i, each := range all {
		go io.Copy(each.service, each.service)
		offset := interval * time.Duration(i) / time.Duration(len(all))
		go func() { found <- p.bounceOver(each.conn, make([]byte, *size), offset, interval) }()
	}
	took := []int64{}
	for range all {
		took = append(took, <-found...)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"nanoseconds": took})
}

func (p *pouring) bounceOver(conn net.Conn, message []byte, offset, interval time.Duration) []int64 {
	took := []int64{}
	for due := time.Now().Add(offset); due.Before(p.end); due = due.Add(interval) {
		time.Sleep(time.Until(due))
		begun := time.Now()
		if _, err := conn.Write(message); err != nil {
			must(err)
		}
		if _, err := io.ReadFull(conn, message); err != nil {
			must(err)
		}
		if begun.After(p.start) {
			took = append(took, time.Since(begun).Nanoseconds())
		}
	}
	return took
}
