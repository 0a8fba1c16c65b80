package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

// asking stands for a fleet's requests: so many connections ask at a time, each of another client, for paths drawn from
// a list by Zipf's law, in an order of the client's own. After some requests a connection gives way to the next client's,
// which is dialled while the old one still asks. Closed loop (a connection asks as soon as it was answered), or with a
// rate an open one, in which latency counts from when a request was due, so that a stall is not hidden.
type asking struct {
	fleet
	period
	requests    [][]byte
	connections int
	lifetime    int
	rate        float64
	zipf        float64
	seed        int64
}

func ask(arguments []string) error {
	a, flags := asking{}, flag.NewFlagSet("ask", flag.ExitOnError)
	a.fleet.flags(flags)
	a.period.flags(flags)
	requests := flags.String("requests", "", "file of lines METHOD PATH; GET / when empty")
	first := flags.Int64("first", 0, "the client to begin with")
	flags.IntVar(&a.connections, "connections", 64, "connections that ask at a time")
	flags.IntVar(&a.lifetime, "lifetime", 250, "requests before a connection gives way to the next client's")
	flags.Float64Var(&a.rate, "rate", 0, "requests per second over all connections; 0 is as many as are answered")
	flags.Float64Var(&a.zipf, "zipf", 1.1, "exponent of the draw among requests")
	flags.Int64Var(&a.seed, "seed", 1, "of the draws; what a client likes best does not depend on it")
	flags.Parse(arguments)
	if err := a.fleet.load(); err != nil {
		return err
	}
	if err := a.loadRequests(*requests); err != nil {
		return err
	}
	a.next.Store(*first)
	runtime.GOMAXPROCS(1) // one is enough for all that two cores can carry, and costs less per request than two
	all := a.run()
	all.clients = a.next.Load() - *first
	return json.NewEncoder(os.Stdout).Encode(all.report(a.duration))
}

func (a *asking) loadRequests(file string) error {
	lines := []string{"GET /"}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		lines = strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	for _, line := range lines {
		method, path, _ := strings.Cut(line, " ")
		head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\n\r\n", method, path, a.name)
		a.requests = append(a.requests, []byte(head))
	}
	return nil
}

// run asks until the period's end. Connections are there before the warm-up begins.
func (a *asking) run() *tally {
	all := newTally()
	lines := make([]*line, a.connections)
	var group sync.WaitGroup
	for i := range lines {
		group.Add(1)
		go func() {
			defer group.Done()
			lines[i] = a.connect(time.Now().Add(time.Minute))
		}()
	}
	group.Wait()
	a.begin()
	for i := range lines {
		group.Add(1)
		go func() {
			defer group.Done()
			t := newTally()
			a.keepAsking(i, lines[i], t)
			all.merge(t)
		}()
	}
	group.Wait()
	return all
}

// line is one client's connection, and what that client asks for: the request of rank r is at (r*step+offset).
type line struct {
	conn         net.Conn
	reader       *bufio.Reader
	err          error
	step, offset int
}

func (a *asking) connect(until time.Time) *line {
	client := a.take()
	conn, err := a.dial(a.configs[client], until)
	if err != nil {
		return &line{err: err}
	}
	step := coprime(7+client*97, len(a.requests))
	return &line{conn, bufio.NewReaderSize(conn, 4<<10), nil, step, client * 31}
}

func (a *asking) keepAsking(i int, now *line, t *tally) {
	random := rand.New(rand.NewSource(a.seed<<32 + int64(i)))
	draw := rand.NewZipf(random, a.zipf, 1, uint64(max(len(a.requests)-1, 1)))
	until := a.end.Add(30 * time.Second)
	interval := time.Duration(0)
	if a.rate > 0 {
		interval = time.Duration(float64(a.connections) / a.rate * float64(time.Second))
	}
	due := time.Now().Add(time.Duration(random.Float64() * float64(interval)))
	left := 1 + random.Intn(a.lifetime) // so that not all give way at once
	var following chan *line
	for time.Now().Before(a.end) {
		if now.err != nil {
			t.fail(now.err)
			time.Sleep(10 * time.Millisecond)
			now, following, left = a.connect(until), nil, a.lifetime
			continue
		}
		if following == nil && left <= a.lifetime/8 {
			following = make(chan *line, 1)
			go func(found chan *line) { found <- a.connect(until) }(following)
		}
		if left <= 0 {
			select {
			case next := <-following:
				now.conn.Close()
				now, following, left = next, nil, a.lifetime
				continue
			default: // not there yet
			}
		}
		if interval > 0 {
			time.Sleep(time.Until(due))
		} else {
			due = time.Now()
		}
		asked := due
		due = due.Add(interval)
		request := a.requests[(int(draw.Uint64())*now.step+now.offset)%len(a.requests)]
		status, err := exchange(now.conn, now.reader, request)
		left--
		if err != nil {
			t.statuses[status]++
			now.conn.Close()
			now.err = err
		} else if asked.After(a.start) && asked.Before(a.end) {
			t.add(status, time.Since(asked))
		}
	}
	if now.err == nil {
		now.conn.Close()
	}
}

// coprime is the first number from n on that shares no factor with m, so that multiples of it modulo m are all of them.
func coprime(n, m int) int {
	for ; ; n++ {
		a, b := n, m
		for b != 0 {
			a, b = b, a%b
		}
		if a == 1 {
			return n
		}
	}
}
