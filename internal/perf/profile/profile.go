// Package profile is what a recording becomes once it has names: samples with call chains, of hosts and guests alike, whoever took them.
package profile

import "iter"

// Where a frame's code ran.
type Space uint8

// A chain runs from the guest's functions to those of the process that runs the guest, through both kernels: in this order, leaf first.
const (
	GuestUser Space = iota
	GuestKernel
	HostUser
	HostKernel
)

// String is the word that exports and listings use.
func (s Space) String() string {
	switch s {
	case GuestUser:
		return "guest user"
	case GuestKernel:
		return "guest kernel"
	case HostUser:
		return "host user"
	}
	return "host kernel"
}

// Guest tells whether the code is a guest's.
func (s Space) Guest() bool { return s <= GuestKernel }

// Kernel tells whether the code is a kernel's.
func (s Space) Kernel() bool { return s == GuestKernel || s == HostKernel }

// A Frame is one entry of a call chain.
type Frame struct {
	Space  Space
	IP     uint64 // of a caller: the return address
	Func   string // empty where no symbol is known
	Offset uint64 // of IP in Func
	Module string // a file's path, "[kernel]" or a kernel module's name; empty where unknown
	File   string // source, where debug information says; else empty
	Line   int
}

// Name is what a listing calls the frame: the function, or the module and address where it has no name.
func (f *Frame) Name() string {
	switch {
	case f.Func != "":
		return f.Func
	case f.Module != "":
		return "[" + base(f.Module) + "]"
	}
	return "[unknown]"
}

// base is a path's last element, without the brackets of a pseudo file.
func base(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			path = path[i+1:]
			break
		}
	}
	if len(path) > 1 && path[0] == '[' && path[len(path)-1] == ']' {
		path = path[1 : len(path)-1]
	}
	return path
}

// A Sample is a moment of one CPU, with names.
type Sample struct {
	Time      int64  // nanoseconds since an instant that all samples of a profile share
	Weight    uint64 // what it stands for, in the profile's unit
	Guest     string // empty: the host's own work
	VCPU      int    // of the guest, else -1
	CPU       int    // of the host, else -1
	PID, TID  int    // in the guest where Guest is set and the task is known, else of the host
	Comm      string
	Container string // short name, where the task is in one
	Idle      bool   // the CPU had nothing to do
	Chain     []Frame
}

// A Profile is samples that can be gone through again and again, with what they have in common.
type Profile struct {
	Event string // "cpu-clock"
	Unit  string // of Weight: "nanoseconds" or "count"
	Start int64  // wall clock of Time 0, ns since 1970; 0 where not known
	// Samples goes through them in the order of time. An error ends it.
	Samples iter.Seq2[*Sample, error] // a sample is valid until the next
}

// Of is a profile of samples in memory.
func Of(event, unit string, samples []Sample) *Profile {
	return &Profile{Event: event, Unit: unit, Samples: func(yield func(*Sample, error) bool) {
		for i := range samples {
			if !yield(&samples[i], nil) {
				return
			}
		}
	}}
}
