package kvm

import (
	"fmt"

	"vitrine.dev/vitrine/internal/x86"
)

// readMSR reads one MSR as the host may, whether or not the guest has it.
func (v *VCPU) readMSR(msr uint32) (uint64, error) {
	l := struct {
		n, _  uint32
		entry msrEntry
	}{n: 1, entry: msrEntry{index: msr}}
	if n, err := ioctlAt(v.fd, getMSRs, &l); err != nil || n != 1 {
		return 0, fmt.Errorf("kvm: CPU %d: MSR %#x cannot be read (%v)", v.id, msr, err)
	}
	return l.entry.data, nil
}

// inState tells whether an MSR is one of State.MSR.
func inState(msr uint32) bool {
	switch msr {
	case msrTSC, msrAPICBase, msrTSCDeadline, msrEFER, msrLSTAR, msrFSBase, msrGSBase, msrKernelGSBase:
		return false
	}
	if msr >= msrHyperV && msr < msrHyperVEnd {
		return false // the guest has none
	}
	return msr < msrX2APIC || msr >= msrX2APICEnd
}

// findMSRs lists the MSRs that State has: of those that KVM names, the ones that can be read and written back.
func (v *VCPU) findMSRs() error {
	names := msrIndexList{n: maxMSRs}
	if _, err := ioctlAt(v.vm.b.fd, getMSRIndexList, &names); err != nil {
		return v.wrap("list of MSRs", err)
	}
	var list []msrEntry
	for _, msr := range names.indices[:min(names.n, maxMSRs)] {
		if inState(msr) {
			list = append(list, msrEntry{index: msr})
		}
	}
	for _, request := range []uintptr{getMSRs, setMSRs} {
		list = v.sieve(request, list)
	}
	for _, e := range list {
		v.vm.msrs = append(v.vm.msrs, e.index)
	}
	return nil
}

// sieve makes a request for all MSRs of list, and drops the ones that KVM refuses: it stops at each.
func (v *VCPU) sieve(request uintptr, list []msrEntry) (taken []msrEntry) {
	for len(list) > 0 {
		var l msrList
		l.n = uint32(copy(l.entries[:], list))
		n, err := ioctlAt(v.fd, request, &l)
		if err != nil {
			n = 0
		}
		taken = append(taken, l.entries[:n]...)
		list = list[min(n+1, len(list)):]
	}
	return taken
}

// readMSRs fills s.MSR and s.TSC.
func (v *VCPU) readMSRs(s *x86.State) error {
	l := msrList{n: uint32(len(v.vm.msrs)) + 1}
	for i, msr := range v.vm.msrs {
		l.entries[i].index = msr
	}
	l.entries[l.n-1].index = msrTSC
	if n, err := ioctlAt(v.fd, getMSRs, &l); err != nil || n != int(l.n) {
		return v.wrap(fmt.Sprintf("MSRs: %d of %d", n, l.n), err)
	}
	s.MSR = make(map[uint32]uint64, l.n)
	for _, e := range l.entries[:l.n-1] {
		s.MSR[e.index] = e.data
	}
	s.TSC = l.entries[l.n-1].data
	v.tscRead = s.TSC
	if v.id == 0 {
		var c clockData
		if _, err := ioctlAt(v.vm.fd, getClock, &c); err != nil {
			return v.wrap("kvm-clock", err)
		}
		s.MSR[Clock] = c.clock
	}
	return nil
}

// writeMSRs sets the MSRs that are in s. The TSC is left alone where s is what State gave just now, changed elsewhere: to write it would set
// it back by the time that went by. A TSC of 0 is none.
func (v *VCPU) writeMSRs(s *x86.State) error {
	l := msrList{n: 2}
	l.entries[0] = msrEntry{index: msrKernelGSBase, data: s.KernelGSBase}
	l.entries[1] = msrEntry{index: msrLSTAR, data: s.LSTAR}
	if moved := s.TSC != 0 && s.TSC != v.tscRead; moved {
		l.entries[l.n] = msrEntry{index: msrTSC, data: s.TSC}
		l.n++
		if ns, ok := s.MSR[Clock]; ok && v.id == 0 {
			if _, err := ioctlAt(v.vm.fd, setClock, &clockData{clock: ns}); err != nil {
				return v.wrap("kvm-clock", err)
			}
		}
	}
	for _, msr := range v.vm.msrs { // in KVM's order
		if value, ok := s.MSR[msr]; ok {
			l.entries[l.n] = msrEntry{index: msr, data: value}
			l.n++
		}
	}
	n, err := ioctlAt(v.fd, setMSRs, &l)
	if err == nil && n != int(l.n) {
		e := l.entries[n]
		err = fmt.Errorf("MSR %#x does not take %#x", e.index, e.data)
	}
	if err != nil {
		return v.wrap("MSRs", err)
	}
	return v.learnOffset()
}
