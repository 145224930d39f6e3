package difftest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"vitrine.dev/vitrine/internal/x86/decode"
)

// A Runner has both worlds. It belongs to the goroutine that made it.
type Runner struct {
	native *Native
	guest  *Guest
	quit   chan struct{}

	running atomic.Uint64 // counts cases begun and ended: odd while one runs

	want, got Outcome
	// Instructions and Cases say how much was run to an end, Stopped how many cases were not.
	Instructions, Cases, Stopped uint64
}

// NewRunner makes both worlds: the processor, and the interpreter or the translator.
func NewRunner(translate bool) (*Runner, error) {
	n, err := NewNative()
	if err != nil {
		return nil, err
	}
	g, err := NewGuest(translate)
	if err != nil {
		n.Close()
		return nil, err
	}
	r := &Runner{native: n, guest: g, quit: make(chan struct{})}
	go r.watch()
	return r, nil
}

// Close ends both.
func (r *Runner) Close() {
	close(r.quit)
	r.native.Close()
	r.guest.Close()
}

// watch stops cases that run for ever: those that are still the same after two ticks.
func (r *Runner) watch() {
	var before uint64
	for {
		select {
		case <-r.quit:
			return
		case <-time.After(200 * time.Millisecond):
		}
		now := r.running.Load()
		if now == before && now&1 != 0 {
			if now&2 != 0 {
				r.native.Stop()
			} else {
				r.guest.Stop()
			}
		}
		before = now
	}
}

// Try runs c in both worlds and says what differs.
func (r *Runner) Try(c *Case) ([]string, error) {
	seq := r.running.Load() &^ 3
	r.running.Store(seq + 4 + 3)
	err := r.native.Run(c, &r.want)
	r.running.Store(seq + 4 + 2)
	if err != nil {
		return nil, err
	}
	r.running.Store(seq + 8 + 1)
	err = r.guest.Run(c, &r.got)
	r.running.Store(seq + 8)
	if errors.Is(err, ErrStopped) {
		return []string{"interp did not end; the processor did"}, nil
	}
	if err != nil {
		return []string{"interp: " + err.Error()}, nil
	}
	return Differences(c, &r.want, &r.got), nil
}

// A Mismatch is a case on which the two do not agree, made small.
type Mismatch struct {
	Case *Case
	Diff []string
}

// Random runs generated cases of n instructions until it has been stopped by until, and calls found with what differs; found returns false to end.
func (r *Runner) Random(rng *rand.Rand, n int, until func() bool, found func(*Mismatch) bool) error {
	for !until() {
		c := Generate(rng, n)
		d, err := r.Try(c)
		if errors.Is(err, errStopped) {
			r.Stopped++
			continue
		}
		if err != nil {
			return fmt.Errorf("%w\n%s", err, c)
		}
		r.Cases++
		r.Instructions += executed(c, r.want.Regs[regRIP])
		if d == nil {
			continue
		}
		m := r.shrink(c)
		if m != nil && !found(m) {
			return nil
		}
	}
	return nil
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
	d, err := r.Try(c)
	if d == nil || err != nil {
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
			if e, err := r.Try(&small); err == nil && e != nil {
				c, d, again = &small, e, true
			}
		}
	}
	return &Mismatch{c, d}
}
