package main

import (
	"context"
	"encoding/json"
	"io"
	"strings"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/host/foreign"
	"vitrine.dev/vitrine/internal/host/vmm"
)

// inspect gives what a guest's process says of it, or what is kept of one that has ended.
func inspect(name string) (any, error) {
	e, err := host.FindAny(name)
	if err != nil {
		return nil, err
	}
	if g := e.Foreign(); g != nil {
		return inspectOther(e, g), nil
	}
	if e.State.State == host.Ended {
		return struct {
			host.State
			Directory string `json:"directory"`
		}{e.State, e.Dir()}, nil
	}
	c, err := control.Dial(e)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	text, err := c.Inspect()
	return json.RawMessage(text), err
}

// An otherInspection is what is known of another VMM's guest. Its keys are promised.
type otherInspection struct {
	host.State
	VCPUs     []vmm.VCPU  `json:"vcpus"`     // those whose threads are known by their names, or by KVM
	Memory    []memoryRun `json:"memory"`    // where its RAM lies
	MemoryBy  string      `json:"memory_by"` // "QMP", or "mappings" of the VMM; confirmed by the guest's kernel where it might lie otherwise
	Registers string      `json:"registers"` // "KVM", "QMP", "QEMU's memory", "gdbstub", "none"
	Banner    string      `json:"banner"`
	Symbols   int         `json:"symbols"`
	BTF       bool        `json:"btf"`               // its kernel describes its structures: without it symbols are all that can be read
	Problem   string      `json:"problem,omitempty"` // why what is missing is
}

// A memoryRun is a run of a guest's RAM, in bytes.
type memoryRun struct {
	Base uint64 `json:"base"`
	Size uint64 `json:"size"`
}

// inspectOther looks at a guest as the other verbs do, and says how far they get.
func inspectOther(e *host.Entry, g *vmm.Guest) otherInspection {
	i := otherInspection{State: e.State, VCPUs: append([]vmm.VCPU{}, g.VCPUs...), Memory: []memoryRun{}, Registers: "none"}
	t, err := foreign.Open(*g)
	if err != nil {
		i.Problem = err.Error()
		return i
	}
	defer t.Close()
	k, err := t.Kernel(context.Background())
	i.MemoryBy, i.Registers = t.How()
	if err != nil {
		i.Problem = err.Error()
		return i
	}
	for _, r := range t.Regions() {
		i.Memory = append(i.Memory, memoryRun{uint64(r.Base), r.Size})
	}
	i.Banner, i.Symbols, i.BTF = k.Banner, k.Symbols.Len(), k.BTF() != nil
	if words := strings.Fields(k.Banner); len(words) > 2 {
		i.Kernel = words[2]
	}
	return i
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
