package kvm

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/x86"
)

// kickSignal takes a thread out of KVM_RUN. The Go runtime has a handler for it that does nothing where nothing is to be preempted, and does not
// mind the signal at any time.
const kickSignal = unix.SIGURG

// immediateExit is kvm_run.immediate_exit in the word that holds it.
const immediateExit = 1 << 8

// How no kick is lost: Kick sets kicked, then immediate_exit, then looks whether the CPU's thread is in Run. Run notes its thread first, and at each turn
// clears immediate_exit before it looks at kicked. So either Run sees kicked, or the KVM_RUN that follows sees immediate_exit, or the
// signal finds the thread inside it.

// Kick implements [hv.VCPU].
func (v *VCPU) Kick() {
	v.kicked.Store(true)
	v.poke()
}

// poke makes the current KVM_RUN return.
func (v *VCPU) poke() {
	v.pokes.Add(1)
	defer v.pokes.Add(-1)
	tid := v.tid.Load()
	if tid == 0 { // not in Run, or closed
		return
	}
	v.page.immediate().Or(immediateExit)
	unix.Tgkill(pid, int(tid), kickSignal)
}

var pid = unix.Getpid()

// close frees the CPU. Kicks may come afterwards.
func (v *VCPU) close() error {
	v.tid.Store(0)
	for v.pokes.Load() != 0 { // one that found tid before is about to be done
		runtime.Gosched()
	}
	return errors.Join(unix.Munmap(v.area), v.stats.close(), unix.Close(v.fd))
}

// Paused implements [hv.Pausable]: a guest with kvm-clock is told not to take the time that went by for a hang (KVM_KVMCLOCK_CTRL). One without refuses.
func (v *VCPU) Paused() { ioctl(v.fd, kvmClockCtrl, 0) }

// enter notes that this thread is in Run.
func (v *VCPU) enter() {
	v.mu.Lock()
	v.running = true
	v.mu.Unlock()
	v.tid.Store(int32(unix.Gettid()))
}

// leave ends what enter began.
func (v *VCPU) leave() {
	v.tid.Store(0)
	v.mu.Lock()
	v.running = false
	asked := v.asked
	v.asked = nil
	v.mu.Unlock()
	for _, q := range asked {
		q.done <- false
	}
}

// A question for the registers of code that runs.
type question struct {
	regs *x86.Regs
	done chan bool // has room for the answer
}

// Sample implements [hv.Sampler]. The CPU leaves the guest for as long as some requests to KVM take.
func (v *VCPU) Sample(r *x86.Regs) bool {
	q := question{r, make(chan bool, 1)}
	v.mu.Lock()
	if !v.running {
		v.mu.Unlock()
		return false
	}
	v.asked = append(v.asked, q)
	v.sampled.Store(true)
	v.mu.Unlock()
	v.poke()
	return <-q.done
}

// answer answers all questions.
func (v *VCPU) answer() {
	v.mu.Lock()
	asked := v.asked
	v.asked = nil
	v.sampled.Store(false)
	v.mu.Unlock()
	var r x86.Regs
	ok := !v.sleeps() && v.readRegs(&r) == nil
	for _, q := range asked {
		if ok {
			*q.regs = r
		}
		q.done <- ok
	}
}
