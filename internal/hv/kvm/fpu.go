package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/x86"
)

// The XSAVE area in its standard format (SDM vol. 1 13.4): FXSAVE's 512 bytes, a header of 64, components.
const (
	xstateBV  = 512
	xcompBV   = 520
	ymmOffset = 576 // component 2 is at the same place in every processor

	fpuComponents = 1 | 2 | 4 // x87, SSE, AVX: what x86.FPU holds
)

// readXCR0 fills s.XCR0; a processor without XSAVE has none.
func (v *VCPU) readXCR0(s *x86.State) error {
	if !v.vm.b.xcrs {
		return nil
	}
	var x xcrs
	if _, err := ioctlAt(v.fd, getXCRs, &x); err != nil {
		return v.wrap("XCRs", err)
	}
	for _, e := range x.xcr[:min(x.n, 16)] {
		if e.index == 0 {
			s.XCR0 = e.value
		}
	}
	return nil
}

func (v *VCPU) writeXCR0(s *x86.State) error {
	x := xcrs{n: 1}
	x.xcr[0].value = s.XCR0 | 1
	if !v.vm.b.xcrs {
		if s.XCR0&^1 != 0 {
			return v.wrap(fmt.Sprintf("XCR0 = %#x", s.XCR0), errors.New("this host has no XSAVE"))
		}
		return nil
	}
	if _, err := ioctlAt(v.fd, setXCRs, &x); err != nil {
		return v.wrap(fmt.Sprintf("XCR0 = %#x", s.XCR0), err)
	}
	return nil
}

func (v *VCPU) readFPU(s *x86.State) error {
	request := uintptr(getXSave)
	if len(v.xsave) > 4096 {
		request = getXSave2
	}
	if err := xsaveRequest(v.fd, request, v.xsave); err != nil {
		return v.wrap("XSAVE area", err)
	}
	fpuFromArea(v.xsave, &s.FPU)
	if binary.LittleEndian.Uint64(v.xsave[xstateBV:])&^fpuComponents != 0 {
		s.XSAVE = slices.Clone(v.xsave)
	}
	return nil
}

func (v *VCPU) writeFPU(s *x86.State) error {
	area := v.xsave
	clear(area)
	copy(area, s.XSAVE)
	components := v.xcr0 & fpuComponents
	if components == 0 { // no XSAVE: the area is FXSAVE's
		components = 1 | 2
	}
	fpuToArea(&s.FPU, area, components)
	if err := xsaveRequest(v.fd, setXSave, area); err != nil {
		return v.wrap("XSAVE area", err)
	}
	return nil
}

// fpuFromArea reads f out of an area. Components that are not in it are in their initial state (SDM vol. 1 13.6).
func fpuFromArea(area []byte, f *x86.FPU) {
	le := binary.LittleEndian
	present := le.Uint64(area[xstateBV:])
	*f = x86.FPU{FCW: 0x37F, MXCSR: le.Uint32(area[24:])}
	if present&1 != 0 {
		f.FCW, f.FSW, f.FTW, f.FOP = le.Uint16(area), le.Uint16(area[2:]), area[4], le.Uint16(area[6:])
		f.FIP, f.FDP = le.Uint64(area[8:]), le.Uint64(area[16:])
		top := int(f.FSW >> 11 & 7)
		for i := range 8 { // the area has ST(i)
			p := area[32+16*i:]
			f.R[(top+i)&7] = x86.F80{Mant: le.Uint64(p), SE: le.Uint16(p[8:])}
		}
	}
	for i := range f.Vec {
		for j := range 2 {
			if present&2 != 0 {
				f.Vec[i][j] = le.Uint64(area[160+16*i+8*j:])
			}
			if present&4 != 0 {
				f.Vec[i][2+j] = le.Uint64(area[ymmOffset+16*i+8*j:])
			}
		}
	}
}

// fpuToArea writes f's components, as far as the guest has them.
func fpuToArea(f *x86.FPU, area []byte, components uint64) {
	le := binary.LittleEndian
	le.PutUint64(area[xstateBV:], le.Uint64(area[xstateBV:])&^fpuComponents|components)
	le.PutUint64(area[xcompBV:], 0)
	le.PutUint16(area, f.FCW)
	le.PutUint16(area[2:], f.FSW)
	area[4] = f.FTW
	le.PutUint16(area[6:], f.FOP)
	le.PutUint64(area[8:], f.FIP)
	le.PutUint64(area[16:], f.FDP)
	le.PutUint32(area[24:], f.MXCSR)
	top := int(f.FSW >> 11 & 7)
	for i := range 8 {
		p, r := area[32+16*i:], f.R[(top+i)&7]
		le.PutUint64(p, r.Mant)
		le.PutUint16(p[8:], r.SE)
	}
	for i, y := range f.Vec {
		for j := range 2 {
			le.PutUint64(area[160+16*i+8*j:], y[j])
			if components&4 != 0 {
				le.PutUint64(area[ymmOffset+16*i+8*j:], y[2+j])
			}
		}
	}
}

// xtileData is AMX's component, whose 8 KiB a process must ask for before its guests can have it.
const (
	xtileData        = 18
	requestForGuests = 0x1025 // ARCH_REQ_XCOMP_GUEST_PERM
)

// permitComponents asks for what guests get only then. Where that is refused, they do without.
func (b *Backend) permitComponents() {
	if b.has(capSysAttributes) == 0 {
		return
	}
	if has, err := guestComponents(b.fd); err == nil && has&(1<<xtileData) != 0 {
		unix.Syscall(unix.SYS_ARCH_PRCTL, requestForGuests, xtileData, 0)
	}
}
