package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestDumpsSayWhatTheGuestSays takes dumps of a guest of QEMU in every form that there is, and claims that each verb says of them what the guest does.
func TestDumpsSayWhatTheGuestSays(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64 (apt-get install qemu-system-x86)")
	}
	program, cache := prepare(t)
	g := bootForeign(t, program, findKernel(t, cache), "-m", "256M", "-smp", "2", "-qmp", "unix:qmp.sock,server=on,wait=off")
	q := dialQMP(t, filepath.Join(filepath.Dir(g.console), "qmp.sock"))
	dir := t.TempDir()
	core := filepath.Join(dir, "core")
	g.vitrine(t, "core", strconv.Itoa(g.pid), core)
	for _, c := range []struct {
		name   string
		paging bool
		format string // of QEMU's; empty: not by QEMU
	}{
		{"core", false, ""}, {"kdump", false, ""}, {"QEMU", false, "elf"}, {"QEMU, paging", true, "elf"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := core
			switch {
			case c.format != "":
				path = filepath.Join(t.TempDir(), "dump")
				q.do(t, "dump-guest-memory", map[string]any{"paging": c.paging, "protocol": "file:" + path, "format": c.format})
			case c.name == "kdump":
				path = filepath.Join(t.TempDir(), "vmcore")
				likeKdump(t, core, path)
			}
			saysWhatTheGuestSays(t, g, path)
		})
	}
	t.Run("compressed", func(t *testing.T) {
		path := filepath.Join(dir, "zlib")
		q.do(t, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + path, "format": "kdump-zlib"})
		if out, err := g.try("ps", path); err == nil || !strings.Contains(err.Error(), "compressed kdump") || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("%q, %v; want one line that says what it is", out, err)
		}
	})
}

// likeKdump copies a core to what the kernel's own dump has: no registers but the general ones, and VMCOREINFO.
func likeKdump(t *testing.T, core, path string) {
	t.Helper()
	if err := exec.Command("cp", "--sparse=always", core, path).Run(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 64<<10)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	name := []byte("QEMU\x00")
	if bytes.Count(head, name) != 2 || !bytes.Contains(head, []byte("VMCOREINFO\x00")) {
		t.Fatalf("%d notes of QEMU's, want one a processor", bytes.Count(head, name))
	}
	if _, err := f.WriteAt(bytes.ReplaceAll(head, name, []byte("NONE\x00")), 0); err != nil {
		t.Fatal(err)
	}
}

// A qmp is a connection to QEMU's monitor.
type qmp struct {
	net.Conn
	in *bufio.Reader
}

func dialQMP(t *testing.T, path string) *qmp {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	q := &qmp{c, bufio.NewReader(c)}
	if _, err := q.in.ReadBytes('\n'); err != nil { // its greeting
		t.Fatal(err)
	}
	q.do(t, "qmp_capabilities", map[string]any{})
	return q
}

// do gives a command and waits for its answer, past events.
func (q *qmp) do(t *testing.T, command string, arguments map[string]any) {
	t.Helper()
	q.SetDeadline(time.Now().Add(time.Minute))
	if err := json.NewEncoder(q).Encode(map[string]any{"execute": command, "arguments": arguments}); err != nil {
		t.Fatal(err)
	}
	for {
		line, err := q.in.ReadBytes('\n')
		if err != nil {
			t.Fatalf("QMP %s: %v", command, err)
		}
		var answer map[string]json.RawMessage
		if err := json.Unmarshal(line, &answer); err != nil {
			t.Fatal(err)
		}
		if answer["error"] != nil {
			t.Fatalf("QMP %s: %s", command, answer["error"])
		}
		if answer["return"] != nil {
			return
		}
	}
}
