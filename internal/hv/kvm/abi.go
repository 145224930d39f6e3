package kvm

//lint:file-ignore U1000 the structures are KVM's (include/uapi/linux/kvm.h): a field that we do not use keeps the place of those behind it

// Requests of the KVM API (Linux include/uapi/linux/kvm.h, Documentation/virt/kvm/api.rst).
const (
	getAPIVersion       = 0xAE00
	createVM            = 0xAE01
	getMSRIndexList     = 0xC004AE02
	checkExtension      = 0xAE03
	getVCPUMmapSize     = 0xAE04
	getSupportedCPUID   = 0xC008AE05
	createVCPU          = 0xAE41
	getDirtyLog         = 0x4010AE42
	setUserMemoryRegion = 0x4020AE46
	setTSSAddr          = 0xAE47
	setIdentityMapAddr  = 0x4008AE48
	setClock            = 0x4030AE7B
	getClock            = 0x8030AE7C
	run                 = 0xAE80
	getRegs             = 0x8090AE81
	setRegs             = 0x4090AE82
	getSRegs            = 0x8138AE83
	setSRegs            = 0x4138AE84
	createIRQChip       = 0xAE60
	getIRQChip          = 0xC208AE62
	setIRQChip          = 0x8208AE63
	irqLineStatus       = 0xC008AE67
	setGSIRouting       = 0x4008AE6A
	irqFD               = 0x4020AE76
	ioEventFD           = 0x4040AE79
	interrupt           = 0x4004AE86
	getMSRs             = 0xC008AE88
	setMSRs             = 0x4008AE89
	setCPUID2           = 0x4008AE90
	getLAPIC            = 0x8400AE8E
	setLAPIC            = 0x4400AE8F
	getMPState          = 0x8004AE98
	setMPState          = 0x4004AE99
	nmi                 = 0xAE9A
	getVCPUEvents       = 0x8040AE9F
	setVCPUEvents       = 0x4040AEA0
	getDebugRegs        = 0x8080AEA1
	setDebugRegs        = 0x4080AEA2
	setTSCKHz           = 0xAEA2
	getTSCKHz           = 0xAEA3
	enableCap           = 0x4068AEA3
	getXSave            = 0x9000AEA4
	signalMSI           = 0x4020AEA5
	setXSave            = 0x5000AEA5
	getXCRs             = 0x8188AEA6
	setXCRs             = 0x4188AEA7
	kvmClockCtrl        = 0xAEAD
	setMSRFilter        = 0x4188AEC6
	getStatsFD          = 0xAECE
	getXSave2           = 0x9000AECF
	getDeviceAttr       = 0x4018AEE2

	apiVersion = 12 // since Linux 2.6.22, for ever
)

// Capabilities.
const (
	capUserMemory    = 3
	capIRQFD         = 32
	capIOEventFD     = 36
	capVCPUEvents    = 41
	capDebugRegs     = 50
	capXSave         = 55
	capTSCControl    = 60
	capXCRs          = 56
	capMaxVCPUs      = 66
	capAnyLength     = 122 // of an ioeventfd
	capImmediateExit = 136
	capUserSpaceMSR  = 188
	capMSRFilter     = 189
	capXSave2        = 208
	capSysAttributes = 209
	capPMU           = 212
)

// Why KVM_RUN came back.
const (
	exitUnknown       = 0
	exitException     = 1
	exitIO            = 2
	exitHLT           = 5
	exitMMIO          = 6
	exitIRQWindow     = 7
	exitShutdown      = 8
	exitFailEntry     = 9
	exitINTR          = 10
	exitSetTPR        = 11
	exitInternalError = 17
	exitReadMSR       = 29
	exitWriteMSR      = 30
)

// A runPage is the beginning of struct kvm_run.
type runPage struct {
	requestWindow uint8
	immediateExit uint8
	_             [6]uint8
	reason        uint32
	ready         uint8 // an interrupt can be injected
	ifFlag        uint8
	flags         uint16
	cr8           uint64
	apicBase      uint64
	exit          [256]byte // a union; the types below are what it can be
}

type ioExit struct {
	out   uint8
	size  uint8
	port  uint16
	count uint32
	data  uint64 // an offset in the CPU's area
}

type mmioExit struct {
	addr  uint64
	data  [8]byte
	n     uint32
	write uint8
}

type msrExit struct {
	fault  uint8
	_      [7]uint8
	reason uint32
	index  uint32
	data   uint64
}

// Reasons for an exit by an MSR.
const (
	msrInvalid  = 1 << 0 // would be #GP
	msrFiltered = 1 << 2
)

type internalExit struct {
	suberror uint32
	n        uint32
	data     [16]uint64
}

type memoryRegion struct {
	slot, flags      uint32
	base, size, host uint64
}

const memLogDirty = 1

type generalRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r                                      [8]uint64 // R8 to R15
	rip, rflags                            uint64
}

type segment struct {
	base                         uint64
	limit                        uint32
	selector                     uint16
	kind, present, dpl, db, s, l uint8
	g, avl, unusable, _          uint8
}

type table struct {
	base  uint64
	limit uint16
	_     [3]uint16
}

type specialRegs struct {
	cs, ds, es, fs, gs, ss, tr, ldt segment
	gdt, idt                        table
	cr0, cr2, cr3, cr4, cr8, efer   uint64
	apicBase                        uint64
	interrupts                      [4]uint64
}

type vcpuEvents struct {
	exception struct {
		injected, vector, hasError, pending uint8
		code                                uint32
	}
	interrupt struct{ injected, vector, soft, shadow uint8 }
	nmi       struct{ injected, pending, masked, _ uint8 }
	sipi      uint32
	flags     uint32
	smi       [4]uint8
	triple    uint8
	_         [26]uint8
	_         uint8
	payload   uint64
}

const (
	eventsNMIPending = 1 << 0
	eventsShadow     = 1 << 2

	shadowMovSS = 1 << 0
	shadowSTI   = 1 << 1
)

type debugRegs struct {
	db       [4]uint64
	dr6, dr7 uint64
	flags    uint64
	_        [9]uint64
}

type xcrs struct {
	n, flags uint32
	xcr      [16]struct {
		index, _ uint32
		value    uint64
	}
	_ [16]uint64
}

const maxMSRs = 512

type msrEntry struct {
	index, _ uint32
	data     uint64
}

type msrList struct {
	n, _    uint32
	entries [maxMSRs]msrEntry
}

type msrIndexList struct {
	n       uint32
	indices [maxMSRs]uint32
}

const maxCPUID = 256

type cpuidEntry struct {
	leaf, sub, flags uint32
	a, b, c, d       uint32
	_                [3]uint32
}

const cpuidHasSub = 1 << 0

type cpuidList struct {
	n, _    uint32
	entries [maxCPUID]cpuidEntry
}

type capability struct {
	cap, flags uint32
	args       [4]uint64
	_          [64]uint8
}

type clockData struct {
	clock    uint64
	flags, _ uint32
	realtime uint64
	hostTSC  uint64
	_        [4]uint32
}
