package foreign

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/host/vmm"
)

// A gdbMonitor asks QEMU's human monitor through its debugger's stub, which is the last way to registers: QEMU stops the guest when somebody connects, and lets it
// go on when he leaves. So each question is a connection of its own, and none is asked of a guest that is not known to run.
type gdbMonitor struct {
	proc vmm.Proc
	pid  int
	at   vmm.Endpoint
}

// gdbFresh is how old its answers may be: a guest is not stopped more often.
const gdbFresh = 100 * time.Millisecond

// maxPackets bounds how many packets an answer may have, which has one for each line or part of one.
const maxPackets = 1 << 16

func (g *gdbMonitor) close() error { return nil }

// monitor asks one question.
func (g *gdbMonitor) monitor(command string) (string, error) {
	c, err := dialEndpoint(g.proc, g.pid, g.at)
	if err != nil {
		return "", fmt.Errorf("gdbstub: %w", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(replyTime))
	r := bufio.NewReader(c)
	send := func(p string) error {
		_, err := c.Write(packet(p))
		return err
	}
	if err := send("qRcmd," + hex.EncodeToString([]byte(command))); err != nil {
		return "", fmt.Errorf("gdbstub: %w", err)
	}
	text, err := readOutput(r, func() { c.Write([]byte{'+'}) })
	// Whatever came: it goes on. The answer shows that the stub has heard.
	if e := send("D"); e == nil {
		readPacket(r)
	}
	return text, err
}

// packet makes a packet (GDB manual, "Overview" of the remote protocol).
func packet(p string) []byte {
	sum := byte(0)
	for i := range len(p) {
		sum += p[i]
	}
	return fmt.Appendf(nil, "$%s#%02x", p, sum)
}

// readOutput collects what a monitor's command prints, until OK. ack is called for each packet.
func readOutput(r *bufio.Reader, ack func()) (string, error) {
	var text strings.Builder
	for range maxPackets {
		p, err := readPacket(r)
		if err != nil {
			return "", err
		}
		ack()
		switch {
		case p == "OK":
			return text.String(), nil
		case strings.HasPrefix(p, "O"):
			b, err := hex.DecodeString(p[1:])
			if err != nil {
				return "", fmt.Errorf("gdbstub: %w", err)
			}
			text.Write(b)
		case strings.HasPrefix(p, "T") || strings.HasPrefix(p, "S"): // that the guest has stopped
		default:
			return "", fmt.Errorf("gdbstub: %q in place of a monitor's answer", p)
		}
	}
	return "", errors.New("gdbstub: the answer is too long")
}

// readPacket reads one packet's content, passing over acknowledgements.
func readPacket(r *bufio.Reader) (string, error) {
	const longest = 64 << 10
	for {
		b, err := r.ReadByte()
		if err != nil {
			return "", fmt.Errorf("gdbstub: %w", err)
		}
		if b == '$' {
			break
		}
	}
	var p []byte
	sum := byte(0)
	for {
		b, err := r.ReadByte()
		if err != nil {
			return "", fmt.Errorf("gdbstub: %w", err)
		}
		if b == '#' {
			break
		}
		if len(p) == longest {
			return "", errors.New("gdbstub: a packet is too long")
		}
		p, sum = append(p, b), sum+b
	}
	var check [2]byte
	for i := range check {
		b, err := r.ReadByte()
		if err != nil {
			return "", fmt.Errorf("gdbstub: %w", err)
		}
		check[i] = b
	}
	if n, err := strconv.ParseUint(string(check[:]), 16, 8); err != nil || byte(n) != sum {
		return "", errors.New("gdbstub: a packet is damaged")
	}
	return string(p), nil
}
