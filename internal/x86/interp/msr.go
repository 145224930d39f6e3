package interp

import (
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/decode"
)

// msrs is the model-specific registers that the CPU keeps itself; the LAPIC's are the machine's.
type msrs struct {
	star, lstar, cstar, fmask            uint64
	sysenterCS, sysenterESP, sysenterEIP uint64
	kernelGS                             uint64
	tscAux, tscAdjust                    uint64
	pat                                  uint64
	miscEnable                           uint64
	debugctl                             uint64
	mcgStatus                            uint64
	ucode                                uint64
	mtrrDefault                          uint64
	mtrrVar                              [16]uint64
	mtrrFixed                            [11]uint64
}

// Numbers of model-specific registers (SDM vol. 4).
const (
	msrTSC          = 0x10
	msrPlatformID   = 0x17
	msrAPICBase     = 0x1B
	msrFeatureCtl   = 0x3A
	msrTSCAdjust    = 0x3B
	msrUcode        = 0x8B
	msrMTRRCap      = 0xFE
	msrSysenterCS   = 0x174
	msrSysenterESP  = 0x175
	msrSysenterEIP  = 0x176
	msrMCGCap       = 0x179
	msrMCGStatus    = 0x17A
	msrMiscEnable   = 0x1A0
	msrDebugCtl     = 0x1D9
	msrMTRRVar      = 0x200
	msrPAT          = 0x277
	msrMTRRDefault  = 0x2FF
	msrEFER         = 0xC0000080
	msrSTAR         = 0xC0000081
	msrLSTAR        = 0xC0000082
	msrCSTAR        = 0xC0000083
	msrFMASK        = 0xC0000084
	msrFSBase       = 0xC0000100
	msrGSBase       = 0xC0000101
	msrKernelGSBase = 0xC0000102
	msrTSCAux       = 0xC0000103
)

// mtrrFixedMSR is the numbers of the fixed-range MTRRs.
var mtrrFixedMSR = [11]uint32{0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F}

const (
	patReset        = 0x0007040600070406
	miscEnableReset = 1<<0 | 1<<11 | 1<<12 // fast strings; no BTS, no PEBS
	// mtrrReset is enabled, all memory write-back: what firmware leaves.
	mtrrReset = 1<<11 | 6
	mtrrCap   = 8 | 1<<8 | 1<<10 // eight variable ranges, fixed ranges, WC
)

// A msrRow is one register that is a plain value.
type msrRow struct {
	at   func(m *msrs) *uint64
	good func(c *CPU, v uint64) bool // what may be written; nil: anything
}

var msrTable = map[uint32]msrRow{
	msrSysenterCS:   {func(m *msrs) *uint64 { return &m.sysenterCS }, nil},
	msrSysenterESP:  {func(m *msrs) *uint64 { return &m.sysenterESP }, (*CPU).canonicalBase},
	msrSysenterEIP:  {func(m *msrs) *uint64 { return &m.sysenterEIP }, (*CPU).canonicalBase},
	msrMiscEnable:   {func(m *msrs) *uint64 { return &m.miscEnable }, nil},
	msrDebugCtl:     {func(m *msrs) *uint64 { return &m.debugctl }, func(_ *CPU, v uint64) bool { return v&^0xFFFF == 0 }},
	msrMCGStatus:    {func(m *msrs) *uint64 { return &m.mcgStatus }, func(_ *CPU, v uint64) bool { return v == 0 }},
	msrUcode:        {func(m *msrs) *uint64 { return &m.ucode }, nil},
	msrPAT:          {func(m *msrs) *uint64 { return &m.pat }, func(_ *CPU, v uint64) bool { return memoryTypes(v) }},
	msrMTRRDefault:  {func(m *msrs) *uint64 { return &m.mtrrDefault }, func(_ *CPU, v uint64) bool { return v&^0xCFF == 0 }},
	msrSTAR:         {func(m *msrs) *uint64 { return &m.star }, nil},
	msrLSTAR:        {func(m *msrs) *uint64 { return &m.lstar }, (*CPU).canonicalBase},
	msrCSTAR:        {func(m *msrs) *uint64 { return &m.cstar }, (*CPU).canonicalBase},
	msrFMASK:        {func(m *msrs) *uint64 { return &m.fmask }, func(_ *CPU, v uint64) bool { return v>>32 == 0 }},
	msrKernelGSBase: {func(m *msrs) *uint64 { return &m.kernelGS }, (*CPU).canonicalBase},
	msrTSCAux:       {func(m *msrs) *uint64 { return &m.tscAux }, func(_ *CPU, v uint64) bool { return v>>32 == 0 }},
}

func init() {
	for i := range uint32(16) {
		msrTable[msrMTRRVar+i] = msrRow{func(m *msrs) *uint64 { return &m.mtrrVar[i] }, nil}
	}
	for i, n := range mtrrFixedMSR {
		msrTable[n] = msrRow{func(m *msrs) *uint64 { return &m.mtrrFixed[i] }, nil}
	}
}

// memoryTypes tells whether each byte of v is a memory type that PAT may hold.
func memoryTypes(v uint64) bool {
	for ; v != 0; v >>= 8 {
		if t := v & 0xFF; t == 2 || t == 3 || t > 7 {
			return false
		}
	}
	return true
}

func (m *msrs) reset() {
	*m = msrs{pat: patReset, miscEnable: miscEnableReset, mtrrDefault: mtrrReset}
}

// machineMSR tells whether an MSR is the LAPIC's: the APIC base, the x2APIC range, the TSC deadline.
func machineMSR(n uint32) bool { return n == msrAPICBase || n>>8 == 8 || n == 0x6E0 }

// rdmsr reads MSR n. It returns false where that is #GP(0).
func (c *CPU) rdmsr(n uint32) (uint64, bool) {
	if r, ok := msrTable[n]; ok {
		return *r.at(&c.msr), true
	}
	if machineMSR(n) {
		c.park()
		v, err := c.io.ReadMSR(n)
		c.unpark()
		return v, err == nil
	}
	switch n {
	case msrTSC:
		return c.TSC(), true
	case msrTSCAdjust:
		return c.msr.tscAdjust, true
	case msrEFER:
		return c.efer, true
	case msrFSBase:
		return c.seg[x86.FS].Base, true
	case msrGSBase:
		return c.seg[x86.GS].Base, true
	case msrMTRRCap:
		return mtrrCap, true
	case msrFeatureCtl:
		return 1, true // locked, with nothing enabled
	case msrPlatformID, msrMCGCap: // no machine-check banks
		return 0, true
	}
	return 0, false
}

// wrmsr writes MSR n. It returns false where that is #GP(0).
func (c *CPU) wrmsr(n uint32, v uint64) bool {
	if r, ok := msrTable[n]; ok {
		if r.good != nil && !r.good(c, v) {
			return false
		}
		*r.at(&c.msr) = v
		return true
	}
	if machineMSR(n) {
		c.park()
		err := c.io.WriteMSR(n, v)
		c.unpark()
		c.checkPending()
		return err == nil
	}
	switch n {
	case msrTSC:
		d := v - c.TSC()
		c.tsc.offset.Add(d)
		c.msr.tscAdjust += d
		return true
	case msrTSCAdjust:
		c.tsc.offset.Add(v - c.msr.tscAdjust)
		c.msr.tscAdjust = v
		return true
	case msrEFER:
		const known = x86.EFERSCE | x86.EFERLME | x86.EFERLMA | x86.EFERNXE
		if v&^known != 0 || c.cr0&x86.CR0PG != 0 && (v^c.efer)&x86.EFERLME != 0 {
			return false
		}
		old := c.efer
		c.efer = v&^x86.EFERLMA | old&x86.EFERLMA
		if (old^c.efer)&x86.EFERNXE != 0 {
			c.tlbs.flushAll()
		}
		c.spaceChanged(c.space.PDPTE)
		c.selectTLB()
		return true
	case msrFSBase, msrGSBase:
		if !c.canonicalBase(v) {
			return false
		}
		c.seg[x86.FS+n-msrFSBase].Base = v
		if c.mode == decode.Mode64 {
			c.syncCode()
		}
		return true
	case msrPlatformID:
		return false
	}
	return false
}
