package jit

// The invariants of this file: the Go runtime installed its handlers with SA_ONSTACK before, and their flags and restorer stay; while the program counter
// is between region.lo and region.hi, RSP is a state of region's layout.

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// region is what signal handlers know (enter_amd64.s has the offsets).
var region struct {
	lo, hi    uintptr // where translated code is
	frame     uintptr // offset of Frame in a state
	poll      uintptr // offset of the poll word
	fault     uintptr // where a fault goes on
	preempted uint32  // the bit of the poll word to set
}

// goHandlers are the Go runtime's handlers, by signal.
var goHandlers [65]uintptr

func faultHandlerAddr() uintptr
func urgentHandlerAddr() uintptr

// sigaction is the kernel's, of x86-64.
type sigaction struct {
	handler, flags, restorer, mask uintptr
}

func rtSigaction(sig unix.Signal, act, old *sigaction) error {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	if e != 0 {
		return fmt.Errorf("jit: handler of %v: %w", sig, e)
	}
	return nil
}

// hookSignals puts our handlers in front of the Go runtime's.
func hookSignals() error {
	for _, s := range []struct {
		sig     unix.Signal
		handler uintptr
	}{
		{unix.SIGSEGV, faultHandlerAddr()}, {unix.SIGBUS, faultHandlerAddr()}, {unix.SIGFPE, faultHandlerAddr()},
		{unix.SIGILL, faultHandlerAddr()}, {unix.SIGTRAP, faultHandlerAddr()}, {unix.SIGURG, urgentHandlerAddr()},
	} {
		var act sigaction
		if err := rtSigaction(s.sig, nil, &act); err != nil {
			return err
		}
		const onStack = 0x08000000
		if act.handler < 2 || act.flags&onStack == 0 {
			return fmt.Errorf("jit: %v has not the Go runtime's handler", s.sig)
		}
		goHandlers[s.sig] = act.handler
		act.handler = s.handler
		if err := rtSigaction(s.sig, &act, nil); err != nil {
			return err
		}
	}
	return nil
}
