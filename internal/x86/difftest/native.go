package difftest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Native is the real processor: a traced child process whose pages are only those of a case.
// It belongs to the goroutine that made it, which stays locked to its thread.
type Native struct {
	pid   int
	fd    int    // memfd behind the child's pages: code, data, second page of code
	pages []byte // it, mapped here
	area  []byte // the child's XSAVE area, in standard format
}

// stubVA is where the child's own code is while it is set up: SYSCALL, INT3.
const stubVA = 0x30000

// secondPage is where the second page of code is in the memfd.
const secondPage = pageSize + dataLen

// NewNative starts the child.
func NewNative() (*Native, error) {
	runtime.LockOSThread()
	n := new(Native)
	var err error
	if n.fd, err = unix.MemfdCreate("difftest", 0); err != nil {
		return nil, fmt.Errorf("difftest: %w", err)
	}
	const size = secondPage + pageSize
	if err = unix.Ftruncate(n.fd, size); err != nil {
		return nil, fmt.Errorf("difftest: %w", err)
	}
	if n.pages, err = unix.Mmap(n.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("difftest: %w", err)
	}
	if err = n.start(); err != nil {
		n.Close()
		return nil, fmt.Errorf("difftest: traced child: %w", err)
	}
	return n, nil
}

// Close ends the child.
func (n *Native) Close() {
	if n.pid != 0 {
		unix.Kill(n.pid, unix.SIGKILL)
		var ws unix.WaitStatus
		unix.Wait4(n.pid, &ws, 0, nil)
	}
	unix.Munmap(n.pages)
	unix.Close(n.fd)
	runtime.UnlockOSThread()
}

func (n *Native) start() error {
	exe, err := unix.MemfdCreate("difftest-child", 0)
	if err != nil {
		return err
	}
	defer unix.Close(exe)
	if _, err := unix.Write(exe, childELF()); err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", exe)
	n.pid, err = syscall.ForkExec(path, []string{"difftest-child"}, &syscall.ProcAttr{
		Files: []uintptr{0, 1, 2, uintptr(n.fd)},
		Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(n.pid, &ws, 0, nil); err != nil || !ws.Stopped() {
		return fmt.Errorf("wait: %v, status %#x", err, uint32(ws))
	}
	if err := unix.PtraceSetOptions(n.pid, unix.PTRACE_O_EXITKILL); err != nil {
		return err
	}
	return n.layout()
}

// layout gives the child its pages and takes all others away.
func (n *Native) layout() error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", n.pid))
	if err != nil {
		return err
	}
	const shared = unix.MAP_SHARED | unix.MAP_FIXED
	for _, a := range [][6]uint64{
		{codeVA, pageSize, unix.PROT_READ | unix.PROT_EXEC, shared, 3, 0},
		{codeVA + pageSize, pageSize, unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC, shared, 3, secondPage},
		{dataVA, 2 * pageSize, unix.PROT_READ | unix.PROT_WRITE, shared, 3, pageSize},
		{roVA, pageSize, unix.PROT_READ, shared, 3, 3 * pageSize},
	} {
		if r, err := n.syscall(unix.SYS_MMAP, a); err != nil || r != a[0] {
			return fmt.Errorf("mmap %#x: %#x, %v", a[0], r, err)
		}
	}
	for _, line := range strings.Split(string(maps), "\n") {
		var lo, hi uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &lo, &hi); err != nil || lo == stubVA || strings.Contains(line, "vsyscall") {
			continue
		}
		if r, err := n.syscall(unix.SYS_MUNMAP, [6]uint64{lo, hi - lo}); err != nil || r != 0 {
			return fmt.Errorf("munmap %s: %#x, %v", line, r, err)
		}
	}
	_, err = n.syscall(unix.SYS_MUNMAP, [6]uint64{stubVA, pageSize}) // returns to nowhere: SIGSEGV
	return err
}

// syscall makes the child do a system call.
func (n *Native) syscall(nr uint64, a [6]uint64) (uint64, error) {
	r := unix.PtraceRegs{
		Rax: nr, Orig_rax: ^uint64(0), Rdi: a[0], Rsi: a[1], Rdx: a[2], R10: a[3], R8: a[4], R9: a[5],
		Rip: stubVA + stubOffset, Cs: userCS, Ss: userSS, Eflags: 0x202,
	}
	if err := unix.PtraceSetRegs(n.pid, &r); err != nil {
		return 0, err
	}
	if _, err := n.resume(); err != nil {
		return 0, err
	}
	err := unix.PtraceGetRegs(n.pid, &r)
	return r.Rax, err
}

// resume runs the child to its next signal.
func (n *Native) resume() (unix.Signal, error) {
	if err := unix.PtraceCont(n.pid, 0); err != nil {
		return 0, err
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(n.pid, &ws, 0, nil); err != nil {
		return 0, err
	}
	if !ws.Stopped() {
		return 0, fmt.Errorf("child ended: status %#x", uint32(ws))
	}
	return ws.StopSignal(), nil
}

// Selectors of user code and its stack in Linux; guest.go has the same.
const (
	userCS   = 0x33
	userCS32 = 0x23
	userSS   = 0x2B
)

// Run runs c. A case that must be stopped from outside (Stop) is an error.
func (n *Native) Run(c *Case, out *Outcome) error {
	text := c.text()
	copy(n.pages, text[:pageSize])
	copy(n.pages[secondPage:], text[pageSize:])
	copy(n.pages[pageSize:secondPage], c.data())
	r := ptraceRegs(&c.Regs)
	r.Cs, r.Ds = c.selectors()
	r.Es = r.Ds
	if err := n.setVectors(&c.State); err != nil {
		return err
	}
	if err := unix.PtraceSetRegs(n.pid, &r); err != nil {
		return err
	}
	sig, err := n.resume()
	if err != nil {
		return err
	}
	if c.Bits == 32 {
		// The kernel shows the registers of a child in 32-bit code as i386 has them: make it one in 64-bit code.
		if _, err := unix.PtracePokeUser(n.pid, offsetCS, []byte{userCS, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			return err
		}
	}
	if err := unix.PtraceGetRegs(n.pid, &r); err != nil {
		return err
	}
	out.Regs = registers(&r)
	if err := n.vectors(&out.State); err != nil {
		return err
	}
	out.Vector, out.Addr = 3, 0
	copy(out.Data[:], n.pages[pageSize:])
	code, addr, err := sigInfo(n.pid)
	if err != nil {
		return err
	}
	out.Vector, err = vectorOf(sig, code)
	if out.Vector == 14 {
		out.Addr = addr
	}
	return err
}

// setVectors gives the child the x87, SSE and AVX state of s.
func (n *Native) setVectors(s *State) error {
	if n.area == nil {
		n.area = make([]byte, maxArea)
		var err error
		if n.area, err = getArea(n.pid, n.area); err != nil {
			return err
		}
	}
	copy(n.area, s.FX[:])
	bv := components()
	if s.YMM == [len(s.YMM)]byte{} {
		bv &^= 4
	}
	binary.LittleEndian.PutUint64(n.area[512:], bv)
	if components()&4 != 0 {
		copy(n.area[576:], s.YMM[:])
	}
	return setArea(n.pid, n.area)
}

// vectors reads that state into s.
func (n *Native) vectors(s *State) error {
	area, err := getArea(n.pid, n.area)
	if err != nil {
		return err
	}
	copy(s.FX[:], area)
	clear(s.YMM[:])
	if components()&4 != 0 { // the kernel fills in what is in its initial state
		copy(s.YMM[:], area[576:])
	}
	return nil
}

// Stop ends the case that runs now, from another goroutine.
func (n *Native) Stop() { unix.Kill(n.pid, unix.SIGALRM) }

// errStopped says that a case was ended by a signal that is no exception's.
var errStopped = errors.New("difftest: case stopped")

// vectorOf is the exception behind a signal, as arch/x86/kernel/traps.c and mm/fault.c map them. #XM shows as #MF.
func vectorOf(sig unix.Signal, code int32) (uint8, error) {
	const kernel = 0x80 // SI_KERNEL
	switch {
	case sig == unix.SIGTRAP && code == kernel:
		return 3, nil
	case sig == unix.SIGTRAP:
		return 1, nil
	case sig == unix.SIGSEGV && code == kernel:
		return 13, nil
	case sig == unix.SIGSEGV:
		return 14, nil
	case sig == unix.SIGBUS && code == kernel:
		return 12, nil
	case sig == unix.SIGBUS:
		return 17, nil
	case sig == unix.SIGILL:
		return 6, nil
	case sig == unix.SIGFPE && code == 1: // FPE_INTDIV
		return 0, nil
	case sig == unix.SIGFPE:
		return 16, nil
	}
	return 0, fmt.Errorf("%w: signal %v, code %d", errStopped, sig, code)
}

// offsetCS is CS's place in struct user_regs_struct.
const offsetCS = 17 * 8

func ptraceRegs(g *[numRegs]uint64) unix.PtraceRegs {
	return unix.PtraceRegs{
		Rax: g[0], Rcx: g[1], Rdx: g[2], Rbx: g[3], Rsp: g[4], Rbp: g[5], Rsi: g[6], Rdi: g[7],
		R8: g[8], R9: g[9], R10: g[10], R11: g[11], R12: g[12], R13: g[13], R14: g[14], R15: g[15],
		Rip: g[regRIP], Eflags: g[regFlags], Fs_base: g[regFS], Gs_base: g[regGS], Orig_rax: ^uint64(0), Ss: userSS,
	}
}

func registers(r *unix.PtraceRegs) [numRegs]uint64 {
	return [numRegs]uint64{r.Rax, r.Rcx, r.Rdx, r.Rbx, r.Rsp, r.Rbp, r.Rsi, r.Rdi,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15, r.Rip, r.Eflags, r.Fs_base, r.Gs_base}
}
