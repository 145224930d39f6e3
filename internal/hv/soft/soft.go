// Package soft runs a guest's CPUs on the CPU engine, in software.
package soft

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/fpu"
	"vitrine.dev/vitrine/internal/x86/interp"
	"vitrine.dev/vitrine/internal/x86/jit"
	"vitrine.dev/vitrine/internal/x86/model"
)

// MaxCPUs is how many CPUs a VM can have: APIC ids are eight bits, and 255 is all of them.
const MaxCPUs = 255

// Backend is the CPU engine.
type Backend struct {
	// Interpret says that nothing is translated: the reference, slow.
	Interpret bool
	// CodeCache is how many bytes of translated code there may be, of all CPUs together; 0 is DefaultCodeCache.
	CodeCache int

	cpu model.Set // what its processors have; zero: all that the engine can give on this host
}

// DefaultCodeCache is the room for translated code, in bytes.
const DefaultCodeCache = 128 << 20

// Flags is what its processors can have.
func (b *Backend) Flags() model.Set { return model.Engine() }

// SetModel makes s, which is among Flags, what the processors of later VMs have.
func (b *Backend) SetModel(s model.Set) { b.cpu = s }

// Name implements [hv.Backend].
func (Backend) Name() string { return "soft" }

// TSCHz is the rate of every guest's time-stamp counter, in Hz: the host's own.
func TSCHz() uint64 { return interp.TSCHz() }

// LAPICHz is the LAPIC timer's clock that CPUID leaf 15H promises, in Hz.
const LAPICHz = interp.CrystalHz

// TSCHz is [TSCHz].
func (Backend) TSCHz() uint64 { return TSCHz() }

// NewVM implements [hv.Backend]. The VM watches ram until ram is closed.
func (b Backend) NewVM(ram *mem.Memory) (hv.VM, error) {
	if err := fpu.Ready(); err != nil {
		return nil, fmt.Errorf("soft: %w", err)
	}
	vm := interp.NewVM(ram)
	if b.cpu != (model.Set{}) {
		vm.SetModel(b.cpu)
	}
	if !b.Interpret && os.Getenv("VITRINE_DEBUG") != "interp" {
		// A host may refuse memory that can be executed: the interpreter needs none.
		room := b.CodeCache
		if room == 0 {
			room = DefaultCodeCache
		}
		if err := vm.Translate(interp.Translation{Size: room / 4}); err != nil && !errors.Is(err, jit.ErrRefused) {
			return nil, fmt.Errorf("soft: %w", err)
		}
	}
	return &VM{ram: ram, vm: vm}, nil
}

// A VM is one guest's CPUs. It implements [hv.VM] and [hv.DirtyLogger].
type VM struct {
	ram     *mem.Memory
	vm      *interp.VM
	cpus    int
	logging bool
}

// NewVCPU implements [hv.VM].
func (v *VM) NewVCPU(id int, io hv.IO) (hv.VCPU, error) {
	if id != v.cpus || id >= MaxCPUs {
		return nil, fmt.Errorf("soft: CPU %d: ids go from 0 up to %d, in order", id, MaxCPUs-1)
	}
	v.cpus++
	return &VCPU{cpu: v.vm.NewCPU(id, io)}, nil
}

// Close implements [hv.VM].
func (v *VM) Close() error { return nil }

// StartDirtyLog implements [hv.DirtyLogger].
func (v *VM) StartDirtyLog() error {
	v.ram.StartLog()
	v.logging = true
	return nil
}

// TakeDirtyLog implements [hv.DirtyLogger].
func (v *VM) TakeDirtyLog(fn func(mem.Addr)) error {
	if !v.logging {
		return errors.New("soft: no dirty log was started")
	}
	v.ram.TakeLog(fn)
	return nil
}

// StopDirtyLog implements [hv.DirtyLogger].
func (v *VM) StopDirtyLog() error {
	v.ram.StopLog()
	v.logging = false
	return nil
}

// A VCPU is one CPU. It implements [hv.VCPU], [hv.Sampler] and [hv.Counter].
type VCPU struct {
	cpu  *interp.CPU
	wait atomic.Bool // in wait-for-SIPI: Run has nothing to do
}

// Run implements [hv.VCPU].
func (v *VCPU) Run() (hv.Exit, error) {
	if v.wait.Load() {
		return hv.Halted, nil
	}
	return v.cpu.Run(), nil
}

// Kick implements [hv.VCPU].
func (v *VCPU) Kick() { v.cpu.Kick() }

// State implements [hv.VCPU].
func (v *VCPU) State(s *x86.State) error {
	if err := v.cpu.State(s); err != nil {
		return err
	}
	if v.wait.Load() {
		s.MP = x86.WaitForSIPI
	}
	return nil
}

// SetState implements [hv.VCPU].
func (v *VCPU) SetState(s *x86.State) error {
	if err := v.cpu.SetState(s); err != nil {
		return err
	}
	v.wait.Store(s.MP == x86.WaitForSIPI)
	return nil
}

// Sample implements [hv.Sampler]: RIP is where the block of code began that was running when the question was seen.
func (v *VCPU) Sample(r *x86.Regs) bool { return v.cpu.Sample(r) }

// Counters implements [hv.Counter].
func (v *VCPU) Counters(fn func(name string, value uint64)) { v.cpu.Counters(fn) }

// TSC is the guest's time-stamp counter as this CPU reads it, for the LAPIC's deadline timer.
func (v *VCPU) TSC() uint64 { return v.cpu.TSC() }
