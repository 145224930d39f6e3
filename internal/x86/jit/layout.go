package jit

// A Layout says where a processor's state has what translated code uses: byte offsets from the state's first byte, which is what host RSP points to while
// such code runs. The 16 general registers begin at 0.
type Layout struct {
	// Status holds the six status flags, as in RFLAGS, on entry and exit; exits also zero StatusKind.
	Status, StatusKind int32
	Base               int32 // RIP of the first byte of the running block's page
	FS, GS             int32 // segment bases
	TLB                int32 // address of the array of TLBEntries entries in force
	Poll               int32 // 32 bits: not zero when code must be left soon
	Gen, GlobalGen     int32 // what valid jump entries are tagged with
	Frame              int32 // a Frame
	Vec                int32 // the vector registers, 32 bytes each
	MXCSR              int32
}

// The TLB entries that translated code reads (package interp's tlbEntry): 32 bytes.
const (
	TLBEntries   = 1024
	tlbRead      = 0  // page's address where reads are allowed
	tlbWrite     = 8  // likewise for writes
	tlbPage      = 16 // its address in the host
	tlbEntrySize = 32
	pageSize     = 4096
)

// A Frame is what translated code and its caller tell each other.
type Frame struct {
	hostSP uint64
	saved  uint64  // the guest's RAX, where flags pass through AH and AL
	jumps  uintptr // the JumpTable
	host   uint64  // scratch
	base   uint64  // likewise
	vec    uintptr // what loads the vector registers, or knows that they are

	Block uint32 // of an exit: which block
	Word  uint32 // of an exit: a Reason and an offset in the block's page

	mxcsr   uint32 // the Go runtime's
	vecLive uint32 // not zero: the vector registers are the guest's

	Signal  uint32 // number of the signal that ended the run, or 0
	_       uint32
	FaultPC uintptr // where it came
}

// A Reason is why translated code was left.
type Reason uint32

// The reasons.
const (
	Step  Reason = iota // the instruction at the offset is for the interpreter
	Taken               // a branch was taken to a block that is not linked
	Fall                // execution goes on behind the block, likewise
	Dead                // the block begun has died; the offset is its own
)

// Split takes a Frame's Word apart.
func Split(word uint32) (Reason, uint16) { return Reason(word >> 16), uint16(word) }

func join(r Reason, off uint16) uint32 { return uint32(r)<<16 | uint32(off) }

// A JumpTable finds translated code by RIP, for jumps that leave a page or come from a register. It belongs to one processor.
type JumpTable [jumpEntries]Jump

const jumpEntries = 4096

// A Jump says that code at RIP is translated at Code.
type Jump struct {
	RIP  uint64
	Gen  uint64 // valid where it is the processor's Gen or GlobalGen
	Base uint64 // RIP of the page's first byte
	Code uintptr
}

// Offsets in Jump.
const (
	jumpRIP  = 0
	jumpGen  = 8
	jumpBase = 16
	jumpCode = 24
)

// At is the entry of rip. Translated code computes the same (branch.go).
func (t *JumpTable) At(rip uint64) *Jump { return &t[(rip^rip>>12)%jumpEntries] }
