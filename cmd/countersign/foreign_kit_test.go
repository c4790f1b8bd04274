package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// child is a process with other people's libraries in it (scripts/verifiers): JSON lines in, JSON lines out.
type child struct {
	name  string
	stdin io.WriteCloser
	log   lockedText

	mu      sync.Mutex
	last    int
	waiting map[int]chan childAnswer
	ended   bool
}

type childRequest struct {
	ID    int    `json:"id"`
	With  string `json:"with"`
	Token string `json:"token"`
}

type childAnswer struct {
	ID           int
	Error, Token string
}

// childConfig is what the programs are told.
type childConfig struct {
	Issuer      string `json:"issuer"`
	Audience    string `json:"audience"`
	Client      string `json:"client"`
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
	CA          string `json:"ca"`
}

// lockedText is a process's standard error.
type lockedText struct {
	mu   sync.Mutex
	text []byte
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// childTime is how long a child may take to start, to answer and to end.
const childTime = 30 * time.Second

// verifiersDir holds the programs; scripts/test-deps.sh installs what they import.
func verifiersDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../scripts/verifiers")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// startChild starts a program and waits until it is ready. It is ended with the test.
func startChild(t *testing.T, config childConfig, program string, args ...string) *child {
	t.Helper()
	encoded, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{name: program, waiting: map[int]chan childAnswer{}}
	cmd := exec.Command(program, args...)
	cmd.Dir = verifiersDir(t)
	cmd.Env = append(os.Environ(), "VERIFIER="+string(encoded), "NODE_EXTRA_CA_CERTS="+config.CA)
	cmd.Stderr = &c.log
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	ready := c.expect(0)
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v; scripts/test-deps.sh installs it", program, err)
	}
	read := make(chan struct{})
	go func() { defer close(read); c.read(stdout) }()
	t.Cleanup(func() {
		c.stdin.Close()
		kill := time.AfterFunc(childTime, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s ended with %v\n%s", program, err, &c.log)
		}
	})
	if _, err := c.await(ready); err != nil {
		t.Fatalf("%s does not start: %v\n%s\nIs scripts/test-deps.sh done?", program, err, &c.log)
	}
	return c
}

func (c *child) expect(id int) chan childAnswer {
	answer := make(chan childAnswer, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		close(answer)
	} else {
		c.waiting[id] = answer
	}
	return answer
}

func (c *child) read(stdout io.Reader) {
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var answer childAnswer
		if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
			continue // awaited in vain, and told then
		}
		c.mu.Lock()
		if waiting := c.waiting[answer.ID]; waiting != nil {
			waiting <- answer
			delete(c.waiting, answer.ID)
		}
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for _, waiting := range c.waiting {
		close(waiting)
	}
}

func (c *child) await(answer chan childAnswer) (string, error) {
	timer := time.NewTimer(childTime)
	defer timer.Stop()
	select {
	case a, ok := <-answer:
		switch {
		case !ok:
			return "", errors.New("the process has ended")
		case a.Error != "":
			return "", errors.New(a.Error)
		}
		return a.Token, nil
	case <-timer.C:
		return "", fmt.Errorf("no answer in %s", childTime)
	}
}

// ask hands a token to a library.
func (c *child) ask(library, token string) (string, error) {
	c.mu.Lock()
	c.last++
	id := c.last
	c.mu.Unlock()
	line, err := json.Marshal(childRequest{ID: id, With: library, Token: token})
	if err != nil {
		return "", err
	}
	answer := c.expect(id)
	if _, err := c.stdin.Write(append(line, '\n')); err != nil { // one write of a pipe: lines of several goroutines do not mix
		return "", err
	}
	return c.await(answer)
}

func (c *child) verifier(library string) verifier {
	return func(token string) error {
		_, err := c.ask(library, token)
		return err
	}
}
