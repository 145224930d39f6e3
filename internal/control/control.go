// Package control lets the tools of a guest's owner reach the process that runs its machine.
//
// They talk over the guest's unix socket: a request is one line of JSON, so is its answer, and samples are a line every now and then. The
// process hands out its guest's memory (the memfd) and registers; what they mean is for the tool to find out.
package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
)

// Limits. A client that breaks one is disconnected; the machine notices nothing.
const (
	MaxLine    = 1 << 20 // bytes of a request or an answer
	MaxClients = 512
	MaxHz      = 10_000
	MaxSeconds = 3600
	writeTime  = 5 * time.Second // that a client may take to read an answer
	lastTime   = time.Second     // the same, once the machine has ended
)

// A Request is what a tool asks.
type Request struct {
	Verb    string  `json:"verb"`
	CPU     int     `json:"cpu,omitempty"`     // registers
	Hz      int     `json:"hz,omitempty"`      // samples
	Seconds float64 `json:"seconds,omitempty"` // samples
	Signal  int     `json:"signal,omitempty"`  // signal
}

// The verbs.
const (
	VerbInfo      = "info"      // answered by State
	VerbStop      = "stop"      // the guest is told to end, and ended 10 s later; answered when it has
	VerbKill      = "kill"      // the guest is ended
	VerbMemory    = "memory"    // answered by Memory, with the memfd beside it
	VerbRegisters = "registers" // answered by Registers
	VerbPause     = "pause"     // the guest stands still
	VerbResume    = "resume"    // and goes on
	VerbSignal    = "signal"    // Signal is sent to the guest's command
	VerbWait      = "wait"      // answered by Exit, when the guest has ended
	VerbInspect   = "inspect"   // answered by Inspect
	VerbExec      = "exec"      // answered; then the connection is an agent's (internal/agent/wire), which runs commands in the guest
	VerbConsole   = "console"   // answered; then the connection is the guest's first serial port
	VerbSamples   = "samples"   // answered by a line of Samples every Period, the last one with Last set
)

// Period is how often a line of samples is sent.
const Period = 100 * time.Millisecond

// An Answer is the process's reply: Error, or what the verb asks for.
type Answer struct {
	Error     string      `json:"error,omitempty"`
	State     *host.State `json:"state,omitempty"`
	Memory    *Memory     `json:"memory,omitempty"`
	Registers *x86.Regs   `json:"registers,omitempty"`
	Samples   []Sample    `json:"samples,omitempty"`
	Lost      int         `json:"lost,omitempty"` // samples that were not taken in time
	Last      bool        `json:"last,omitempty"`

	Exit    *Exit           `json:"exit,omitempty"`
	Inspect json.RawMessage `json:"inspect,omitempty"`
}

// Exit is how a guest ended.
type Exit struct {
	Status int    `json:"status"`
	Error  string `json:"error,omitempty"`
}

// Memory describes the memfd that comes with it.
type Memory struct {
	Regions []mem.Region `json:"regions"`
	CPUs    int          `json:"cpus"`
}

// A Sample is where one CPU was at one time.
type Sample struct {
	Time         int64  `json:"time"` // nanoseconds since the machine's process began to sample
	CPU          int    `json:"cpu"`
	Running      bool   `json:"running"` // false: it did not execute guest code, and what follows is 0
	RIP          uint64 `json:"rip,omitempty"`
	RSP          uint64 `json:"rsp,omitempty"`
	RBP          uint64 `json:"rbp,omitempty"`
	CR3          uint64 `json:"cr3,omitempty"`
	CPL          int    `json:"cpl,omitempty"`
	GSBase       uint64 `json:"gs_base,omitempty"`
	KernelGSBase uint64 `json:"kernel_gs_base,omitempty"`
}

// errTooLong is for a line beyond MaxLine.
var errTooLong = errors.New("control: line too long")

// readLine reads up to a newline, keeping what lies beyond it in buf for the next call.
func readLine(buf *[]byte, read func([]byte) (int, error)) ([]byte, error) {
	for {
		if i := bytes.IndexByte(*buf, '\n'); i >= 0 {
			line := (*buf)[:i:i]
			*buf = (*buf)[i+1:]
			return line, nil
		}
		if len(*buf) > MaxLine {
			return nil, errTooLong
		}
		var p [4096]byte
		n, err := read(p[:])
		n = max(n, 0) // recvmsg(2) that fails gives -1
		*buf = append(*buf, p[:n]...)
		if n == 0 && err != nil {
			if err == io.EOF && len(*buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// parseRequest reads a request and says what is wrong with it.
func parseRequest(line []byte) (Request, error) {
	var r Request
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("control: request: %w", err)
	}
	if r.Verb == VerbSamples && (r.Hz < 1 || r.Hz > MaxHz || !(r.Seconds > 0) || r.Seconds > MaxSeconds) {
		return r, fmt.Errorf("control: samples: hz is 1 to %d, seconds above 0 and up to %d", MaxHz, MaxSeconds)
	}
	return r, nil
}
