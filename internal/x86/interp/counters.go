package interp

import "sync/atomic"

// counters count what a CPU does. Others read them while it runs, and see values at most a block old.
type counters struct {
	insns      uint64 // instructions executed
	blocks     uint64 // blocks decoded
	flushes    uint64 // times that the code cache was full
	walks      uint64 // page walks for data
	faults     uint64 // page faults
	mmio       uint64 // accesses to devices in memory
	ports      uint64 // port accesses
	irqs       uint64 // interrupts delivered
	translated uint64 // blocks translated
	steps      uint64 // instructions that translated code left to the interpreter
}

// Counters calls fn with the name and value of each counter. It may be called from any goroutine.
func (c *CPU) Counters(fn func(name string, value uint64)) {
	s := &c.stats
	for _, n := range [...]struct {
		name string
		at   *uint64
	}{
		{"instructions", &s.insns}, {"blocks", &s.blocks}, {"flushes", &s.flushes}, {"walks", &s.walks}, {"faults", &s.faults},
		{"mmio", &s.mmio}, {"ports", &s.ports}, {"interrupts", &s.irqs},
		{"translated", &s.translated}, {"steps", &s.steps},
	} {
		fn(n.name, atomic.LoadUint64(n.at))
	}
}
