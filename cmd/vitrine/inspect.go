package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/host/foreign"
	"vitrine.dev/vitrine/internal/host/vmm"
)

// inspect gives what a guest's process says of it, and its kernel's memory; or what is kept of one that has ended; or what a dump has.
func inspect(ctx context.Context, name string) (any, error) {
	e, err := host.FindAny(name)
	if isDump(name, err) {
		v, err := lookAtDump(name)
		if err != nil {
			return nil, err
		}
		defer v.close()
		return dumpInspection{name, v.System()}, nil
	}
	if err != nil {
		return nil, err
	}
	if g := e.Foreign(); g != nil {
		return inspectOther(ctx, e, g), nil
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
	if err != nil {
		return nil, err
	}
	return withMember(text, "linux", linux(ctx, e)), nil
}

// A dumpInspection is what is known of a dump. Its keys are promised.
type dumpInspection struct {
	File  string       `json:"file"`
	Linux guest.System `json:"linux"`
}

// linux is what a running guest's kernel says, or why that cannot be read.
func linux(ctx context.Context, e *host.Entry) any {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, err := lookAt(ctx, e)
	if err != nil {
		return struct {
			Problem string `json:"problem"`
		}{err.Error()}
	}
	defer v.close()
	return v.System()
}

// withMember adds a member to the text of a JSON object.
func withMember(object []byte, name string, value any) json.RawMessage {
	text, err := json.Marshal(value)
	object = bytes.TrimSpace(object)
	if err != nil || len(object) < 2 || object[len(object)-1] != '}' {
		return object
	}
	all := append([]byte{}, object[:len(object)-1]...)
	if len(bytes.TrimSpace(all)) > 1 {
		all = append(all, ',')
	}
	return append(append(all, fmt.Sprintf("%q:", name)...), append(text, '}')...)
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
	BTF       bool        `json:"btf"` // its kernel describes its structures
	Linux     any         `json:"linux,omitempty"`
	Problem   string      `json:"problem,omitempty"` // why what is missing is
}

// A memoryRun is a run of a guest's RAM, in bytes.
type memoryRun struct {
	Base uint64 `json:"base"`
	Size uint64 `json:"size"`
}

// inspectOther looks at a guest as the other verbs do, and says how far they get.
func inspectOther(ctx context.Context, e *host.Entry, g *vmm.Guest) otherInspection {
	i := otherInspection{State: e.State, VCPUs: append([]vmm.VCPU{}, g.VCPUs...), Memory: []memoryRun{}, Registers: "none"}
	t, err := foreign.Open(*g)
	if err != nil {
		i.Problem = err.Error()
		return i
	}
	defer t.Close()
	k, err := t.Kernel(ctx)
	i.MemoryBy, i.Registers = t.How()
	if err != nil {
		i.Problem = err.Error()
		return i
	}
	for _, r := range t.Regions() {
		i.Memory = append(i.Memory, memoryRun{uint64(r.Base), r.Size})
	}
	i.Banner, i.Symbols, i.BTF = k.Banner, k.Symbols.Len(), k.BTF() != nil
	i.Linux = k.System()
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
