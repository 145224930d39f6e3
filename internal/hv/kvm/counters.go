package kvm

import "sync/atomic"

// A counter is one reason's exits, and the host's TSC ticks that the machine took for them.
type counter struct{ exits, ticks atomic.Uint64 }

// exitNames are the reasons that occur; the other ones share the first name.
var exitNames = [...]string{
	exitUnknown: "other", exitIO: "port", exitHLT: "hlt", exitMMIO: "mmio", exitIRQWindow: "interrupt_window", exitShutdown: "shutdown",
	exitINTR: "signal", exitSetTPR: "set_tpr", exitReadMSR: "read_msr", exitWriteMSR: "write_msr",
}

type counters [len(exitNames)]counter

// note counts an exit. The CPU's own thread alone calls it.
func (c *counters) note(reason uint32, ticks uint64) {
	if reason >= uint32(len(c)) || exitNames[reason] == "" {
		reason = exitUnknown
	}
	c[reason].exits.Add(1)
	c[reason].ticks.Add(ticks)
}

// Counters implements [hv.Counter]: exits by reason, and the nanoseconds that it took to serve them, from the return to this program until it
// is about to enter the guest again; then KVM's own statistics of the CPU, as kvm_NAME. It is not called after Close.
func (v *VCPU) Counters(fn func(name string, value uint64)) {
	for i, name := range exitNames {
		if name == "" {
			continue
		}
		fn("exits_"+name, v.count[i].exits.Load())
		fn("exits_"+name+"_ns", uint64(float64(v.count[i].ticks.Load())*1e9/float64(v.vm.b.tscHz)))
	}
	v.stats.each(fn)
}

// Counters implements [hv.Counter]: KVM's own statistics of the machine. It is not called after Close.
func (v *VM) Counters(fn func(name string, value uint64)) { v.stats.each(fn) }
