package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// tunnels keeps nodes' tunnels (docs/protocol.md) open, and streams over them. Commands and answers are as those of
// `hold`; a group's members are streams where it has any, and tunnels where it has none. Streams that reach a tunnel of
// ours from CLIENT are the group far:CLIENT.
//
//	serve CLIENT                           a tunnel of CLIENT that takes every stream it is called for
//	idle GROUP CLIENT COUNT                COUNT tunnels of CLIENT (or * for each in turn) that carry nothing
//	open GROUP CLIENT COUNT ROUTE TARGETS  a tunnel of CLIENT with COUNT streams to TARGETS (names, with commas), in turn
//	closed GROUP SECONDS                   waits at most so long for all of GROUP to be closed, and tells when
//	count GROUP                            how many of GROUP are open
//
// Each tunnel asks for a sign of life every ten seconds, as agents do.
type tunnels struct {
	fleet
	lock   sync.Mutex
	groups map[string]*group
}

const (
	alpn     = "sallyport-tunnel/1"
	beat     = 10 * time.Second
	together = 100 // streams that are asked for at once

	kindHello, kindOpen, kindOpened, kindRefused = 1, 2, 3, 4
	kindEnd, kindReset, kindPing, kindPong       = 8, 9, 10, 11
	helloDocument                                = `{"version":1,"software":"load","services":["sink"],"revision":0}`
	openedDocument                               = `{"decision":""}`
)

func holdTunnels(arguments []string) error {
	t, flags := tunnels{groups: map[string]*group{}}, flag.NewFlagSet("tunnels", flag.ExitOnError)
	t.fleet.flags(flags)
	flags.Parse(arguments)
	if err := t.fleet.load(); err != nil {
		return err
	}
	for _, config := range t.configs {
		config.NextProtos = []string{alpn}
	}
	commands, answers := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for commands.Scan() {
		found, err := t.obey(strings.Fields(commands.Text()))
		if err != nil {
			found = map[string]any{"error": err.Error()}
		}
		if err := answers.Encode(found); err != nil {
			return err
		}
	}
	return commands.Err()
}

func (t *tunnels) obey(words []string) (map[string]any, error) {
	switch {
	case len(words) == 2 && words[0] == "serve":
		_, err := t.dialTunnel(words[1], nil)
		return map[string]any{}, err
	case len(words) == 4 && words[0] == "idle":
		count, _ := strconv.Atoi(words[3])
		return t.idle(t.group(words[1]), words[2], count)
	case len(words) == 6 && words[0] == "open":
		count, _ := strconv.Atoi(words[3])
		return t.open(t.group(words[1]), words[2], count, words[4], strings.Split(words[5], ","))
	case len(words) == 3 && words[0] == "closed":
		seconds, _ := strconv.Atoi(words[2])
		return t.group(words[1]).await(time.Duration(seconds) * time.Second), nil
	case len(words) == 2 && words[0] == "count":
		return map[string]any{"open": t.group(words[1]).count()}, nil
	}
	return nil, fmt.Errorf("not a command: %q", words)
}

func (t *tunnels) group(name string) *group {
	t.lock.Lock()
	defer t.lock.Unlock()
	if t.groups[name] == nil {
		t.groups[name] = &group{all: make(chan struct{})}
	}
	return t.groups[name]
}

func (t *tunnels) idle(g *group, client string, count int) (map[string]any, error) {
	begun, failures, free := time.Now(), make(chan error, count), make(chan struct{}, 64)
	g.opened += count
	for range count {
		free <- struct{}{}
		go func() {
			_, err := t.dialTunnel(client, g)
			failures <- err
			<-free
		}()
	}
	for range count {
		if err := <-failures; err != nil {
			return nil, err
		}
	}
	return map[string]any{"opened": count, "seconds": time.Since(begun).Seconds()}, nil
}

func (t *tunnels) open(g *group, client string, count int, route string, targets []string) (map[string]any, error) {
	begun := time.Now()
	tunnel, err := t.dialTunnel(client, nil)
	if err != nil {
		return nil, err
	}
	tunnel.lock.Lock()
	tunnel.streams = g
	tunnel.lock.Unlock()
	g.opened += count
	for first := 0; first < count; first += together {
		if err := tunnel.ask(first, min(first+together, count), route, targets); err != nil {
			return nil, err
		}
	}
	return map[string]any{"opened": count, "seconds": time.Since(begun).Seconds()}, nil
}

// ask asks for the streams of these numbers, and waits for all of them to be taken.
func (u *tunnel) ask(first, end int, route string, targets []string) error {
	var frames bytes.Buffer
	for i := first; i < end; i++ {
		document := fmt.Sprintf(`{"route":%q,"target":%q,"protocol":"tcp"}`, route, targets[i%len(targets)])
		frames.Write(frame(kindOpen, uint32(2*i+1), []byte(document)))
	}
	if _, err := u.conn.Write(frames.Bytes()); err != nil {
		return err
	}
	for i := first; i < end; i++ {
		select {
		case answer := <-u.answers:
			if answer != "" {
				return fmt.Errorf("a stream was refused: %s", answer)
			}
		case <-time.After(30 * time.Second):
			return fmt.Errorf("streams are not answered")
		}
	}
	return nil
}

// tunnel is one connection, and the streams that it has asked for. `whole` hears of its own end, `streams` of theirs.
type tunnel struct {
	all     *tunnels
	conn    net.Conn
	lock    sync.Mutex
	open    map[uint32]*group
	streams *group
	whole   *group
	answers chan string // empty: a stream was taken
	greeted chan struct{}
}

// dialTunnel connects, and returns when both sides have said HELLO.
func (t *tunnels) dialTunnel(client string, whole *group) (*tunnel, error) {
	config := t.byName[client]
	if client == "*" {
		config = t.configs[t.take()]
	} else if config == nil {
		return nil, fmt.Errorf("no client %s", client)
	}
	conn, err := t.dial(config, time.Time{})
	if err != nil {
		return nil, err
	}
	made := &tunnel{all: t, conn: conn, open: map[uint32]*group{}, whole: whole, answers: make(chan string, 4096), greeted: make(chan struct{})}
	if _, err := conn.Write(frame(kindHello, 0, []byte(helloDocument))); err != nil {
		return nil, err
	}
	go made.read()
	select {
	case <-made.greeted:
		time.AfterFunc(beat, made.beat)
		return made, nil
	case <-time.After(20 * time.Second):
		return nil, fmt.Errorf("no HELLO")
	}
}

func (u *tunnel) beat() {
	if _, err := u.conn.Write(frame(kindPing, 0, make([]byte, 8))); err == nil {
		time.AfterFunc(beat, u.beat)
	}
}

// read hears the other side until it closes the connection.
func (u *tunnel) read() {
	defer u.conn.Close()
	reader := bufio.NewReaderSize(u.conn, 1<<10)
	for {
		kind, stream, body, err := readFrame(reader)
		if err == nil {
			err = u.hear(kind, stream, body)
		}
		if err != nil {
			break
		}
	}
	at := time.Now().UnixNano()
	u.lock.Lock()
	defer u.lock.Unlock()
	for _, of := range u.open {
		of.close(at)
	}
	u.open = nil
	if u.whole != nil {
		u.whole.close(at)
	}
}

func (u *tunnel) hear(kind byte, stream uint32, body []byte) error {
	u.lock.Lock()
	defer u.lock.Unlock()
	switch kind {
	case kindHello:
		close(u.greeted)
	case kindPing:
		return u.say(kindPong, 0, body)
	case kindOpen:
		_, name, _ := bytes.Cut(body, []byte("/node/"))
		name, _, _ = bytes.Cut(name, []byte{'"'})
		u.begin(stream, u.all.group("far:"+string(name)), 1)
		return u.say(kindOpened, stream, []byte(openedDocument))
	case kindOpened:
		u.begin(stream, u.streams, 0)
		u.answers <- ""
	case kindRefused:
		u.answers <- string(body)
	case kindReset, kindEnd:
		if of := u.open[stream]; of != nil {
			delete(u.open, stream)
			of.close(time.Now().UnixNano())
		}
	}
	return nil
}

// begin has a stream be of a group, which has as many more than were expected.
func (u *tunnel) begin(stream uint32, of *group, more int) {
	of.lock.Lock()
	of.opened += more
	of.lock.Unlock()
	u.open[stream] = of
}

func (u *tunnel) say(kind byte, stream uint32, body []byte) error {
	_, err := u.conn.Write(frame(kind, stream, body))
	return err
}
