package difftest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// A Runner has the processor and engines. It belongs to the goroutine that made it.
type Runner struct {
	native *Native
	guests [Engines]*Guest
	own    uint64 // instructions of the monitor's, in a case that is not interrupted
	quit   chan struct{}
	done   sync.WaitGroup // for what quit ends

	running atomic.Uint64 // counts what was begun, shifted by 4; below: what runs now, 1 for the processor, from 2 on the engines

	want, got Outcome
	// Instructions and Cases say how much was run to an end, Stopped how many cases were not. Instructions are those that the interpreter executed,
	// or without it those of the cases' text.
	Instructions, Cases, Stopped uint64
	// Lost is how many cases differed once, and not when they were run again.
	Lost uint64
}

// NewRunner makes the processor and the engines to compare with it.
func NewRunner(engines ...Engine) (*Runner, error) {
	n, err := NewNative()
	if err != nil {
		return nil, err
	}
	r := &Runner{native: n, quit: make(chan struct{})}
	for _, e := range engines {
		if r.guests[e], err = NewGuest(e); err != nil {
			r.Close()
			return nil, err
		}
		r.done.Go(func() { r.guests[e].rain(r.quit) })
	}
	r.done.Go(r.watch)
	if g := r.guests[Interpreter]; g != nil {
		c := &Case{Code: []byte{0xCC}, Bits: 64}
		c.Regs[regRIP], c.Regs[regFlags] = codeVA, 2
		before := g.Instructions()
		if err := g.Run(c, &r.got); err != nil {
			return nil, err
		}
		r.own = g.Instructions() - before
	}
	return r, nil
}

// Close ends all.
func (r *Runner) Close() {
	close(r.quit)
	r.done.Wait()
	r.native.Close()
	for _, g := range r.guests {
		if g != nil {
			g.Close()
		}
	}
}

// watch stops cases that run for ever: the processor after a fifth of a second, engines after ten.
func (r *Runner) watch() {
	var before uint64
	same := 0
	for {
		select {
		case <-r.quit:
			return
		case <-time.After(200 * time.Millisecond):
		}
		now := r.running.Load()
		if same++; now != before {
			same = 0
		}
		if now&15 == 1 && same > 0 || same >= 50 {
			switch what := now & 15; what {
			case 0:
			case 1:
				r.native.Stop()
			default:
				r.guests[what-2].Stop()
			}
		}
		before = now
	}
}

// runs says that what runs from now on: see running.
func (r *Runner) runs(what uint64) { r.running.Store(r.running.Load()&^15 + 16 + what) }

// Try runs c everywhere and says what differs.
func (r *Runner) Try(c *Case) (diff []string, err error) {
	r.runs(1)
	err = r.native.Run(c, &r.want)
	r.runs(0)
	if err != nil {
		return nil, err
	}
	for i, g := range r.guests {
		e := Engine(i)
		if g == nil || e == Translator && !c.ABI {
			continue
		}
		r.runs(2 + uint64(i))
		err := g.Run(c, &r.got)
		r.runs(0)
		var d []string
		switch {
		case errors.Is(err, ErrStopped):
			d = []string{"did not end; the processor did"}
		case err != nil:
			d = []string{err.Error()}
		default:
			if e == Translator && r.got.Vector != breakpoint {
				// Flags that nobody would have read are anything at a fault.
				r.got.Regs[regFlags] = r.got.Regs[regFlags]&^allFlags | r.want.Regs[regFlags]&allFlags
			}
			d = Differences(c, &r.want, &r.got)
		}
		for _, l := range d {
			diff = append(diff, e.String()+": "+l)
		}
	}
	return diff, nil
}

// breakpoint is #BP's vector.
const breakpoint = 3

// A Mismatch is a case on which the two do not agree, made small.
type Mismatch struct {
	Case  *Case
	Diff  []string
	First []string // what differed before it was made small
}

// Random runs cases that generate makes until it has been stopped by until, and calls found with what differs; found returns false to end.
func (r *Runner) Random(generate func() *Case, until func() bool, found func(*Mismatch) bool) error {
	for !until() {
		c := generate()
		before := r.monitored()
		d, err := r.Try(c)
		if errors.Is(err, errStopped) {
			r.Stopped++
			continue
		}
		if err != nil {
			return fmt.Errorf("%w\n%s", err, c)
		}
		r.Cases++
		if r.guests[Interpreter] != nil {
			r.Instructions += max(r.monitored()-before, r.own) - r.own
		} else {
			r.Instructions += executed(c, r.want.Regs[regRIP])
		}
		if d == nil {
			continue
		}
		m := r.shrink(c)
		if m == nil {
			r.Lost++
			continue
		}
		m.First = d
		if !found(m) {
			return nil
		}
	}
	return nil
}

// monitored is the instructions that the interpreter executed, without those of the monitor's handlers; 0 without it.
func (r *Runner) monitored() uint64 {
	g := r.guests[Interpreter]
	if g == nil {
		return 0
	}
	return g.Instructions() - 9*g.Faults - 6*g.Interrupts
}

// executed is the instructions of c up to rip, those that a branch passed over included; one if it ended elsewhere.
func executed(c *Case, rip uint64) (n uint64) {
	at := c.Regs[regRIP]
	for code := c.Code; len(code) > 1 && at != rip; n++ {
		in, err := decode.Decode(code, c.mode(), features)
		if err != nil {
			break
		}
		code, at = code[in.Len:], at+uint64(in.Len)
	}
	if rip-c.Regs[regRIP] > uint64(len(c.Code)) {
		return 1
	}
	return n
}

// shrink replaces instructions by NOPs as long as something differs. It returns nil where nothing differs the second time.
func (r *Runner) shrink(c *Case) *Mismatch {
	var d []string
	for range 20 { // it may have been an interrupt's moment
		var err error
		if d, err = r.Try(c); err != nil {
			return nil
		}
		if d != nil {
			break
		}
	}
	if d == nil {
		return nil
	}
	for again := true; again; {
		again = false
		for at := 0; at < len(c.Code)-1; {
			in, err := decode.Decode(c.Code[at:], c.mode(), features)
			if err != nil {
				break
			}
			small := *c
			small.Code = bytes.Clone(c.Code)
			for i := range int(in.Len) {
				small.Code[at+i] = 0x90
			}
			at += int(in.Len)
			next, err := decode.Decode(c.Code[at:], c.mode(), features)
			if bytes.Equal(small.Code, c.Code) || err == nil && next.Op == decode.POPF { // see tamePOPF
				continue
			}
			if in.Op == decode.MOV && in.Opcode == 0xC7 { // it keeps the next from writing anywhere
				continue
			}
			if e, err := r.Try(&small); err == nil && e != nil {
				c, d, again = &small, e, true
			}
		}
	}
	return &Mismatch{Case: c, Diff: d}
}
