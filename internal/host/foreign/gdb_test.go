package foreign

import (
	"bufio"
	"encoding/hex"
	"net"
	"strings"
	"testing"

	"vitrine.dev/vitrine/internal/host/vmm"
)

// TestGDBStubIsAskedAndLeft plays QEMU's stub: it says first that the guest has stopped, prints in pieces, and wants to be left.
func TestGDBStubIsAskedAndLeft(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := make(chan []string, 1)
	go func() {
		var all []string
		defer func() { heard <- all }()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		for {
			p, err := readPacket(r)
			if err != nil {
				return
			}
			all = append(all, p)
			c.Write([]byte{'+'})
			if p == "D" {
				c.Write(packet("OK"))
				return
			}
			c.Write(packet("T02thread:01;"))
			for _, piece := range []string{"RAX=0000000000000001 RBX", "=0000000000000002\r\n"} {
				c.Write(packet("O" + hex.EncodeToString([]byte(piece))))
			}
			c.Write(packet("OK"))
		}
	}()
	g := &gdbMonitor{Proc, 1, vmm.Endpoint{Network: "tcp", Address: l.Addr().String()}}
	text, err := g.monitor("info registers -a")
	if err != nil {
		t.Fatal(err)
	}
	if regs, _ := parseRegisters(text); len(regs) != 1 || regs[0].GPR[0] != 1 || regs[0].GPR[3] != 2 {
		t.Errorf("%q gives %+v", text, regs)
	}
	if got, want := strings.Join(<-heard, " "), "qRcmd,"+hex.EncodeToString([]byte("info registers -a"))+" D"; got != want {
		t.Errorf("the stub heard %q, want %q", got, want)
	}
}

func FuzzGDB(f *testing.F) {
	f.Add("+$T02thread:01;#00$O41#c4$OK#9a")
	f.Add(string(packet("O4142")) + string(packet("OK")))
	f.Fuzz(func(t *testing.T, text string) {
		out, err := readOutput(bufio.NewReader(strings.NewReader(text)), func() {})
		if err == nil && len(out) > len(text) {
			t.Errorf("%d bytes of %d", len(out), len(text))
		}
	})
}
