package interp

// counters count what a CPU does. Others read them while it runs, and see values at most a block old.
type counters struct {
	insns   uint64 // instructions executed
	blocks  uint64 // blocks decoded
	flushes uint64 // times that the code cache was full
	walks   uint64 // page walks for data
	faults  uint64 // page faults
	mmio    uint64 // accesses to devices in memory
	irqs    uint64 // interrupts delivered
}
