package interp

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"vitrine.dev/vitrine/internal/hv"
	"vitrine.dev/vitrine/internal/mem"
	"vitrine.dev/vitrine/internal/x86"
	"vitrine.dev/vitrine/internal/x86/fpu"
	"vitrine.dev/vitrine/internal/x86/jit"
	"vitrine.dev/vitrine/internal/x86/model"
)

// A VM is the processors of one guest. It watches their memory: code that was decoded, and writes that must be seen.
type VM struct {
	ram       *mem.Memory
	model     model.Set // which features the processors have; what follows from it:
	cr4       uint64    // the bits that CR4 can have
	xcr0      uint64    // and XCR0
	cpus      []*CPU    // complete before the first runs
	tscBase   uint64
	holders   holders     // of decoded code
	translate Translation // Size 0: interpret only
	split     sync.Mutex  // held over LOCKed accesses that no host instruction can make atomic
}

// NewVM makes a guest without processors around ram.
func NewVM(ram *mem.Memory) *VM {
	vm := &VM{ram: ram, tscBase: rdtsc()}
	vm.SetModel(model.Engine())
	ram.Watch(vm)
	return vm
}

// A Translation is how CPUs translate.
type Translation struct {
	Size  int    // bytes of code, of each CPU
	Hot   uint32 // how often a block is interpreted before it is translated; 0: a good number
	Exact bool   // flags are right at every instruction boundary, also those that nobody reads
}

// Translate makes CPUs that are added from now on translate what they run often. It fails where the host does not let us; CPUs then interpret.
func (vm *VM) Translate(how Translation) error {
	if err := jit.Init(&layout, pollGo); err != nil {
		return err
	}
	if how.Hot == 0 {
		how.Hot = hot
	}
	vm.translate = how
	return nil
}

// SetModel makes the features of s, which must be among the engine's, those of the processors. Call it before NewCPU; without it they have all.
func (vm *VM) SetModel(s model.Set) {
	vm.model = s
	vm.cr4 = s.CR4() | x86.CR4PCE
	vm.xcr0 = s.XCR0() & fpu.SupportedXCR0
}

// NewCPU adds processor number id, reset. Call it before any CPU runs. A CPU for whose code the host has no room interprets.
func (vm *VM) NewCPU(id int, io hv.IO) *CPU {
	c := newCPU(vm, id, io)
	if vm.translate.Size > 0 {
		c.native, _ = newNative(c, vm.translate)
		c.codes.host = c.native
	}
	vm.cpus = append(vm.cpus, c)
	return c
}

// CodeWritten implements [mem.Watcher].
func (vm *VM) CodeWritten(a mem.Addr, n int) {
	for _, c := range vm.cpus {
		c.mail.post(c, message{code: true, a: a, n: n})
	}
}

// Retrack implements [mem.Watcher]: when it returns, no CPU writes to the page at a without saying so.
func (vm *VM) Retrack(a mem.Addr) {
	var want [16]uint64
	waits := want[:0]
	for _, c := range vm.cpus {
		waits = append(waits, c.mail.post(c, message{a: a &^ (mem.PageSize - 1)}))
	}
	for i, c := range vm.cpus {
		for n := 0; c.mail.running.Load() && int64(c.mail.done.Load()-waits[i]) < 0; n++ {
			if n < 100 {
				runtime.Gosched()
			} else {
				time.Sleep(20 * time.Microsecond) // its thread may wait for ours to leave the processor
			}
		}
	}
}

// A message is what one CPU asks of another.
type message struct {
	a    mem.Addr
	n    int
	code bool // code at [a, a+n) changed; else the page at a is tracked now
}

// A mailbox holds a CPU's messages. A CPU that is not running (parked: outside of Run, in a device, waiting for others) reads them before it touches
// guest memory again, so nobody waits for it.
type mailbox struct {
	running atomic.Bool
	done    atomic.Uint64 // messages dealt with

	mu     sync.Mutex
	queue  []message
	all    bool   // there were more than fit: everything may have changed
	posted uint64 // ever
}

// maxMail bounds the queue of a CPU that does not look for long.
const maxMail = 4096

// post leaves m and returns the value of done that says it was dealt with.
func (b *mailbox) post(c *CPU, m message) uint64 {
	b.mu.Lock()
	if len(b.queue) < maxMail {
		b.queue = append(b.queue, m)
	} else {
		b.all = true
	}
	b.posted++
	n := b.posted
	b.mu.Unlock()
	c.poll.Or(pollMail)
	return n
}

// park says that this CPU touches no guest memory until unpark.
func (c *CPU) park() { c.mail.running.Store(false) }

// unpark ends park.
func (c *CPU) unpark() {
	c.mail.running.Store(true)
	if c.poll.Load()&pollMail != 0 {
		c.readMail()
	}
}

// ownMail deals with messages that this CPU's own store may have caused: code that rewrites itself sees its new self at once.
func (c *CPU) ownMail() {
	if c.poll.Load()&pollMail != 0 {
		c.readMail()
	}
}

// readMail deals with all messages.
func (c *CPU) readMail() {
	c.poll.And(^uint32(pollMail))
	b := &c.mail
	b.mu.Lock()
	q, n, all := b.queue, b.posted, b.all
	b.queue, b.all = nil, false
	b.mu.Unlock()
	if all {
		for _, sp := range c.tlbs.all {
			for i := range sp.banks {
				sp.banks[i].flush(true)
			}
		}
		c.poll.Or(pollFlush) // not here: a block may be in the making
		q = nil
	}
	for _, m := range q {
		if m.code {
			c.codes.written(m.a, m.n)
		} else {
			c.tlbs.dropWrites(m.a)
		}
	}
	b.done.Store(n)
}
