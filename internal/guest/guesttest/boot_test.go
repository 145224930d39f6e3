package guesttest

import (
	"bytes"
	"context"
	_ "embed"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

//go:embed truth.sh
var truthScript string

// A live is a guest that runs in this process.
type live struct{ *vitrine.Machine }

func (l live) ReadPhys(p []byte, a mem.Addr) (int, error) { return l.Memory().ReadPhys(p, a) }
func (l live) Regions() []mem.Region                      { return l.Memory().Regions() }

func (l live) CPU(i int, r *x86.Regs) error { return l.Registers(i, r) }

// A said is what a guest says of itself: its output by parts.
type said map[string]string

// A collector takes a guest's output until it has said all.
type collector struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	done chan struct{}
}

func newCollector() *collector { return &collector{done: make(chan struct{})} }

func (c *collector) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(p)
	if bytes.HasSuffix(c.buf.Bytes(), []byte("=== end\n\n")) {
		close(c.done)
	}
	return len(p), nil
}

func (c *collector) said() said {
	c.mu.Lock()
	defer c.mu.Unlock()
	parts := said{}
	for part := range strings.SplitSeq("\n"+c.buf.String(), "\n=== ") {
		name, text, _ := strings.Cut(part, "\n")
		if text != "" {
			text += "\n"
		}
		parts[name] = text
	}
	return parts
}

// A way is how a guest is booted.
type way struct {
	name  string
	words string // for the kernel's command line
	cpus  int
	cpu   string
}

// boot starts a guest on a kernel (empty: the one that vitrine finds) and lets it speak.
func boot(t *testing.T, kernelPath string, w way) (live, said) {
	t.Helper()
	out := newCollector()
	var errors bytes.Buffer
	m, err := vitrine.Start(t.Context(), vitrine.Config{
		CPUs: w.cpus, Memory: 512 << 20, Command: []string{"sh", "-s"}, Stdin: strings.NewReader(truthScript), Stdout: out, Stderr: &errors, Env: os.Environ(),
		KernelPath: kernelPath, Append: w.words, CPU: w.cpu, BootTimeout: 2 * time.Minute, Log: func(l string) { t.Log(l) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		m.Wait()
	})
	select {
	case <-out.done:
	case <-m.Done():
		_, err := m.Wait()
		t.Fatalf("the guest ended: %v", err)
	case <-time.After(4 * time.Minute):
		t.Fatalf("the guest does not say all: %s", errors.String())
	}
	return live{m}, out.said()
}

// ask lets the guest say again what it says of some processes.
func (l live) ask(t *testing.T, pids []string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := newCollector()
	p, err := l.Exec(ctx, vitrine.Command{Args: append([]string{"sh", "-s", "--"}, pids...), Stdin: strings.NewReader(truthScript), Stdout: out})
	if err == nil {
		_, err = p.Wait()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.said()
}
