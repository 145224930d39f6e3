package interp

import (
	"time"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/x86"
)

// Reasons in CPU.poll.
const (
	pollKick     = 1 << iota // Run returns Kicked
	pollIntr                 // an interrupt may be deliverable
	pollMail                 // there are messages of other CPUs
	pollSample               // somebody wants the registers
	pollHalt                 // HLT
	pollShutdown             // triple fault
	pollFlush                // decoded code is to be dropped
	pollGo                   // the Go runtime wants this thread: it takes it at the next call of a function
)

// pollEvents sees to all reasons in c.poll. It tells whether Run returns, and with what.
func (c *CPU) pollEvents() (exit hv.Exit, leave bool) {
	p := c.poll.Load()
	if p&pollGo != 0 {
		c.poll.And(^uint32(pollGo))
	}
	if p&pollMail != 0 {
		c.readMail()
	}
	if c.poll.Load()&pollFlush != 0 {
		c.poll.And(^uint32(pollFlush))
		c.flushCode()
	}
	if p&pollSample != 0 {
		c.answerSample()
	}
	if p&pollShutdown != 0 {
		c.poll.And(^uint32(pollKick)) // The machine resets this CPU; the Kick's purpose is served.
		return hv.Shutdown, true
	}
	if p&pollKick != 0 {
		c.poll.And(^uint32(pollKick))
		return hv.Kicked, true
	}
	if p&(pollIntr|pollHalt) == 0 {
		return 0, false
	}
	if c.shadow && !c.halted {
		return 0, false // The run loop executes one instruction and asks again.
	}
	c.poll.And(^uint32(pollIntr))
	c.takeInterrupts()
	if c.halted {
		return hv.Halted, true
	}
	c.poll.And(^uint32(pollHalt))
	return 0, false
}

// takeInterrupts delivers what is pending and may be delivered now, and ends HLT by it.
func (c *CPU) takeInterrupts() {
	if !c.io.Pending() {
		return
	}
	if !c.nmiMasked && c.io.TakeNMI() {
		c.halted = false
		c.stats.irqs++
		c.deliver(fault{vec: x86.NMIVector})
		c.nmiMasked = true
	}
	if c.flags&x86.IF == 0 {
		return
	}
	if vec, ok := c.io.Acknowledge(); ok {
		c.halted = false
		c.stats.irqs++
		c.deliver(fault{vec: x86.Vector(vec), intr: true})
	}
}

// checkPending asks for interrupts to be looked at, after what may have made one deliverable.
func (c *CPU) checkPending() {
	if c.io.Pending() {
		c.poll.Or(pollIntr)
	}
}

// Kick makes the current or next Run return Kicked. It may be called from any goroutine.
func (c *CPU) Kick() { c.poll.Or(pollKick) }

// A sampling is one question for the registers.
type sampling struct {
	r    *x86.Regs
	done chan struct{}
}

// sampleWait is how long a CPU's thread may wait for its turn on a busy host before a sample is given up. What it was at when the question
// came does not change meanwhile, so a late answer is a right one; given up, it would count as idle.
const sampleWait = 250 * time.Millisecond

// Sample copies the registers of the code that is running: RIP is that of the block of code that ran when the question came. It returns false
// where the CPU runs no guest code, or gives no answer within sampleWait. It may be called from any goroutine.
func (c *CPU) Sample(r *x86.Regs) bool {
	if !c.mail.running.Load() {
		return false
	}
	var got x86.Regs
	s := &sampling{&got, make(chan struct{})}
	if !c.sample.CompareAndSwap(nil, s) {
		return false // somebody else asks
	}
	c.poll.Or(pollSample)
	t := time.NewTimer(sampleWait)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
		if c.sample.CompareAndSwap(s, nil) {
			return false
		}
		<-s.done // it is being answered
	}
	*r = got
	return true
}

func (c *CPU) answerSample() {
	c.poll.And(^uint32(pollSample))
	s := c.sample.Swap(nil)
	if s == nil {
		return
	}
	c.regs(s.r)
	if !c.halted {
		s.r.RIP = c.at
		// SYSCALL, SYSRET, IRET and their like end a block with the privilege changed. Kernels live in the upper half: there the block's
		// own privilege is known by its address.
		if upper := c.at>>63 != 0; c.efer&x86.EFERLMA != 0 && upper != (c.cpl == 0) && upper != (c.rip>>63 != 0) {
			const dpl = 3 << x86.SegDPLShift
			user := uint16(dpl)
			if upper {
				user = 0
			}
			s.r.Seg[x86.SS].Access = s.r.Seg[x86.SS].Access&^dpl | user
		}
	}
	close(s.done)
}
