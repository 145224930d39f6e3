// Package data reads and writes perf.data, the file of Linux's perf: tools/perf/Documentation/perf.data-file-format.txt, and for the records
// include/uapi/linux/perf_event.h (6.1 to 7.3).
package data

import "encoding/binary"

var le = binary.LittleEndian

const (
	magic      = "PERFILE2"
	headerSize = 104 // of the file
	attrSize   = 112 // PERF_ATTR_SIZE_VER5, what Write writes
	recordHead = 8
	// maxRecord is the largest record: its size has 16 bits.
	maxRecord = 1<<16 - 8
)

// Types of records (enum perf_event_type; from 64 on perf's own, tools/lib/perf/include/perf/event.h).
const (
	RecordMmap       = 1
	RecordLost       = 2
	RecordComm       = 3
	RecordExit       = 4
	RecordThrottle   = 5
	RecordUnthrottle = 6
	RecordFork       = 7
	RecordSample     = 9
	RecordMmap2      = 10
	RecordAux        = 11
	RecordLostSample = 13
	RecordKsymbol    = 17
	RecordBPFEvent   = 18

	RecordBuildID       = 67
	RecordFinishedRound = 68
	RecordIDIndex       = 69
	RecordAuxtrace      = 71
	RecordCompressed    = 81
	RecordCompressed2   = 83
)

// Bits of a record's misc field.
const (
	MiscMode        = 7 // one of the following
	MiscUnknown     = 0
	MiscKernel      = 1
	MiscUser        = 2
	MiscHypervisor  = 3
	MiscGuestKernel = 4
	MiscGuestUser   = 5
	MiscCommExec    = 1 << 13 // of comm records
	MiscBuildID     = 1 << 14 // of mmap2 records: a build id stands in place of device and inode
)

// What a sample holds (enum perf_event_sample_format).
const (
	SampleIP         = 1 << 0
	SampleTID        = 1 << 1
	SampleTime       = 1 << 2
	SampleAddr       = 1 << 3
	SampleRead       = 1 << 4
	SampleCallchain  = 1 << 5
	SampleID         = 1 << 6
	SampleCPU        = 1 << 7
	SamplePeriod     = 1 << 8
	SampleStreamID   = 1 << 9
	SampleRaw        = 1 << 10
	SampleBranch     = 1 << 11
	SampleRegsUser   = 1 << 12
	SampleStackUser  = 1 << 13
	SampleWeight     = 1 << 14
	SampleDataSrc    = 1 << 15
	SampleIdentifier = 1 << 16
)

// Marks in call chains (enum perf_callchain_context): what follows is of that space. They are addresses above ContextMax.
const (
	ContextHypervisor  = ^uint64(32 - 1)
	ContextKernel      = ^uint64(128 - 1)
	ContextUser        = ^uint64(512 - 1)
	ContextGuest       = ^uint64(2048 - 1)
	ContextGuestKernel = ^uint64(2176 - 1)
	ContextGuestUser   = ^uint64(2560 - 1)
	ContextMax         = ^uint64(4095 - 1)
)

// Kinds of events (perf_event_attr.type) and the software events that are used here.
const (
	TypeHardware   = 0
	TypeSoftware   = 1
	TypeTracepoint = 2
	SoftwareCPU    = 0 // cpu-clock
	SoftwareTask   = 1 // task-clock
)

// Bits of perf_event_attr's flags.
const (
	flagMmap          = 1 << 8
	flagComm          = 1 << 9
	flagFreq          = 1 << 10
	flagSampleIDAll   = 1 << 18
	flagExcludeHost   = 1 << 19
	flagExcludeGuest  = 1 << 20
	flagMmap2         = 1 << 23
	flagCommExec      = 1 << 24
	flagUseClockID    = 1 << 25
	readFormatID      = 1 << 2
	readTotalEnabled  = 1 << 0
	readTotalRunning  = 1 << 1
	readGroup         = 1 << 3
	readLost          = 1 << 4
	branchHWIndex     = 1 << 17
	branchCounters    = 1 << 19
	clockMonotonic    = 1
	maxFeatureSection = 64 << 20
)

// Sections behind the data (tools/perf/util/header.h).
const (
	FeatureTracing   = 1
	FeatureBuildID   = 2
	FeatureHostname  = 3
	FeatureOSRelease = 4
	FeatureVersion   = 5
	FeatureArch      = 6
	FeatureCPUs      = 7
	FeatureCPUDesc   = 8
	FeatureCmdline   = 11
	FeatureEventDesc = 12
	FeatureClockID   = 23
	FeatureCompress  = 27
)

// An Attr is an event that was recorded, with the ids by which its samples name it.
type Attr struct {
	Type       uint32
	Config     uint64
	Period     uint64 // or, with Freq, hertz
	Freq       bool
	SampleType uint64
	ReadFormat uint64
	BranchType uint64 // PERF_SAMPLE_BRANCH_…
	RegsUser   uint64 // the mask of user registers
	Flags      uint64
	IDs        []uint64
	Name       string // where the file tells it
}

// idAll tells whether records other than samples have a trailer.
func (a *Attr) idAll() bool { return a.Flags&flagSampleIDAll != 0 }

// An ID is what a record of ID_INDEX says of an event's id.
type ID struct {
	ID      uint64
	Index   uint64
	CPU     int64 // -1: any
	TID     int64
	Machine int64 // process id of the VMM, 0 for the host
	VCPU    int64 // -1 for the host
}
