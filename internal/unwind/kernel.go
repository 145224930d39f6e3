package unwind

import (
	"errors"
	"fmt"

	"vitrine.dev/vitrine/internal/guest"
)

// A Frame is a place in the kernel's code.
type Frame struct {
	Addr   uint64 // where it goes on
	Symbol guest.Symbol
	Offset uint64 // of Addr in the function
	Size   uint64 // of the function
	Known  bool   // false: no symbol holds Addr
}

// String is the frame as /proc/PID/stack has it.
func (f Frame) String() string {
	if !f.Known {
		return fmt.Sprintf("%#x", f.Addr)
	}
	s := fmt.Sprintf("%s+%#x/%#x", f.Symbol.Name, f.Offset, f.Size)
	if f.Symbol.Module != "" {
		s += " [" + f.Symbol.Module + "]"
	}
	return s
}

// A Kernel unwinds the stacks of one kernel. Its methods belong to one goroutine at a time.
type Kernel struct {
	k       *guest.Kernel
	mem     memory // k's
	main    *table
	modules []module
}

type memory interface {
	ReadAt(p []byte, va uint64) error
}

type module struct {
	guest.Module
	ips, raw, n uint64
	table       *table
}

// New reads the kernel's tables: some 5 MB.
func New(k *guest.Kernel) (*Kernel, error) {
	if k.BTF() == nil {
		return nil, ErrNoORC
	}
	var at [3]uint64
	for i, name := range []string{"__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind"} {
		s, err := k.Symbols.Lookup(name)
		if err != nil {
			return nil, ErrNoORC
		}
		at[i] = s.Addr
	}
	t, err := read(k, at[0], at[2], (at[1]-at[0])/4)
	if err != nil {
		return nil, err
	}
	if t.format, err = formatOf(k.BTF(), t.raw); err != nil {
		return nil, err
	}
	u := &Kernel{k: k, mem: k, main: t}
	mods, _ := k.Modules() // without modules, their frames end the chain
	for _, m := range mods {
		ips, raw, n := k.ModuleORC(m)
		u.modules = append(u.modules, module{m, ips, raw, n, nil})
	}
	return u, nil
}

// find gives the entry for an address in the kernel or a module.
func (u *Kernel) find(ip uint64) (entry, bool) {
	for i := range u.modules {
		m := &u.modules[i]
		if ip < m.Address || ip-m.Address >= m.Size {
			continue
		}
		if m.table == nil {
			t, err := read(u.k, m.ips, m.raw, m.n)
			if err != nil {
				return entry{}, false
			}
			t.format = u.main.format
			m.table = t
		}
		return m.table.find(ip)
	}
	return u.main.find(ip)
}

// Why there is no stack to be read.
var (
	errRunning = errors.New("unwind: the task runs: only of one that sleeps is the stack known")
	errEnded   = errors.New("unwind: the task has ended, and has no stack any more")
)

// Sleeping gives the call chain of a task that does not run, the innermost first, as /proc/PID/stack has it: without the scheduler's own functions.
// A chain that could not be followed to its end comes with an error; one that the task ran on meanwhile is followed anew.
func (u *Kernel) Sleeping(task uint64) ([]Frame, error) {
	const tries = 10
	for range tries {
		before, err := u.rest(task)
		if err != nil {
			return nil, err
		}
		frames, chainErr := u.sleeping(before.sp)
		if after, err := u.rest(task); err == nil && after == before {
			return frames, chainErr
		}
	}
	return nil, errRunning
}

// A rest is how a task has slept since it ran last.
type rest struct{ sp, voluntary, other uint64 }

func (u *Kernel) rest(task uint64) (r rest, err error) {
	b := u.k.BTF()
	if f, err := b.Field("task_struct", "exit_state"); err == nil {
		if state, err := u.word(task + f.Off); err != nil || uint32(state) != 0 {
			return r, errEnded
		}
	}
	for cpu := range u.k.NumCPU() {
		if now, err := u.k.Current(cpu); err == nil && now == task {
			return r, errRunning
		}
	}
	for path, p := range map[string]*uint64{"thread.sp": &r.sp, "nvcsw": &r.voluntary, "nivcsw": &r.other} {
		f, err := b.Field("task_struct", path)
		if err != nil {
			return r, err
		}
		if *p, err = u.word(task + f.Off); err != nil {
			return r, err
		}
	}
	return r, nil
}

// sleeping follows the chain that a switch to another task left at sp.
func (u *Kernel) sleeping(sp uint64) ([]Frame, error) {
	b := u.k.BTF()
	word := func(base uint64, name, path string) (uint64, error) {
		f, err := b.Field(name, path)
		if err != nil {
			return 0, err
		}
		return u.word(base + f.Off)
	}
	// arch/x86/include/asm/switch_to.h, struct inactive_task_frame
	s := state{u: u}
	var err error
	if s.bp, err = word(sp, "inactive_task_frame", "bp"); err != nil {
		return nil, err
	}
	if s.ip, err = word(sp, "inactive_task_frame", "ret_addr"); err != nil {
		return nil, err
	}
	size, err := b.Sizeof("inactive_task_frame")
	if err != nil {
		return nil, err
	}
	s.sp = sp + size
	for _, name := range []string{"ret_from_fork", "ret_from_fork_asm"} { // it never ran: this is where it begins
		if f, err := u.k.Symbols.Lookup(name); err == nil && f.Addr == s.ip {
			s.signal = true
		}
	}
	chain, err := s.chain()
	frames := make([]Frame, 0, len(chain))
	for _, ip := range chain {
		if f := u.frame(ip); !u.scheduler(ip) {
			frames = append(frames, f)
		}
	}
	return frames, err
}

// scheduler tells whether an address is in the functions that waits go through (kernel/sched/core.c, in_sched_functions).
func (u *Kernel) scheduler(ip uint64) bool {
	for _, section := range []string{"__sched_text", "__lock_text"} {
		from, err := u.k.Symbols.Lookup(section + "_start")
		to, err2 := u.k.Symbols.Lookup(section + "_end")
		if err == nil && err2 == nil && ip >= from.Addr && ip < to.Addr {
			return true
		}
	}
	return false
}

// frame names a return address: by the instruction in front of it, which is the call.
func (u *Kernel) frame(ip uint64) Frame {
	s, size, ok := u.k.Symbols.Range(ip - 1)
	return Frame{Addr: ip, Symbol: s, Offset: ip - s.Addr, Size: size, Known: ok}
}

func (u *Kernel) word(at uint64) (uint64, error) {
	var b [8]byte
	err := u.mem.ReadAt(b[:], at)
	return le.Uint64(b[:]), err
}

// A state is a frame's registers.
type state struct {
	u          *Kernel
	ip, sp, bp uint64
	signal     bool
	regs       uint64 // address of the pt_regs that were met last, or 0
	err        error
}

// chain gives the return addresses up to the end of the stack.
func (s *state) chain() ([]uint64, error) {
	var all []uint64
	for len(all) < maxFrames {
		all = append(all, s.ip)
		before := s.sp
		more, err := s.step()
		if err != nil || !more {
			return all, err
		}
		if s.sp <= before && s.regs == 0 {
			return all, fmt.Errorf("unwind: the stack does not shrink at %#x", s.ip)
		}
	}
	return all, fmt.Errorf("unwind: more than %d frames", maxFrames)
}

// Offsets in struct pt_regs (arch/x86/include/asm/ptrace.h).
const (
	ptR13 = 2 * 8
	ptBP  = 4 * 8
	ptR10 = 7 * 8
	ptAX  = 10 * 8
	ptDX  = 12 * 8
	ptDI  = 14 * 8
	ptIP  = 16 * 8
	ptCS  = 17 * 8
	ptSP  = 19 * 8
)

// step goes to the caller (arch/x86/kernel/unwind_orc.c, unwind_next_frame); false at the end of the stack.
func (s *state) step() (bool, error) {
	look := s.ip
	if !s.signal {
		look-- // behind a call that does not return may be another function
	}
	e, ok := s.u.find(look)
	if !ok || e.kind == unknown {
		return false, fmt.Errorf("unwind: nothing is known of the frame at %#x", s.ip)
	}
	if e.kind == end {
		return false, nil
	}
	s.err = nil
	sp := s.stack(e)
	switch e.kind {
	case call:
		s.ip = s.read(sp - 8)
		s.sp, s.regs, s.signal = sp, 0, e.signal
	case registers:
		if s.read(sp+ptCS)&3 != 0 { // from user mode
			return false, s.err
		}
		s.ip, s.sp, s.regs, s.signal = s.read(sp+ptIP), s.read(sp+ptSP), sp, true
	case interrupt:
		frame := sp - ptIP
		if s.read(frame+ptCS)&3 != 0 {
			return false, s.err
		}
		s.ip, s.sp, s.regs, s.signal = s.read(frame+ptIP), s.read(frame+ptSP), 0, true
	}
	switch e.bpReg {
	case undefined:
		if s.regs != 0 {
			s.bp = s.read(s.regs + ptBP)
		}
	case previousSP:
		s.bp = s.read(sp + uint64(int64(e.bp)))
	case regBP:
		s.bp = s.read(s.bp + uint64(int64(e.bp)))
	default:
		return false, fmt.Errorf("unwind: the frame pointer at %#x cannot be found", s.ip)
	}
	return true, s.err
}

// stack is the caller's stack pointer.
func (s *state) stack(e entry) uint64 {
	off := uint64(int64(e.sp))
	saved := map[register]uint64{regR10: ptR10, regR13: ptR13, regDI: ptDI, regDX: ptDX, regAX: ptAX}
	switch e.spReg {
	case regSP:
		return s.sp + off
	case regBP:
		return s.bp + off
	case indirectSP:
		return s.read(s.sp) + off
	case indirectBP:
		return s.read(s.bp + off)
	case regR10, regR13, regDI, regDX, regAX:
		if s.regs != 0 {
			return s.read(s.regs+saved[e.spReg]) + off
		}
	}
	s.err = fmt.Errorf("unwind: the stack pointer at %#x cannot be found", s.ip)
	return 0
}

func (s *state) read(at uint64) uint64 {
	v, err := s.u.word(at)
	if err != nil && s.err == nil {
		s.err = err
	}
	return v
}
