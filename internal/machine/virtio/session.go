package virtio

import (
	"encoding/gob"
	"fmt"

	"vitrine.dev/vitrine/internal/machine/pci"
	"vitrine.dev/vitrine/internal/mem"
)

// beginSession starts the device and a goroutine for each enabled queue. t.mu is held.
func (t *PCI) beginSession() {
	stop := make(chan struct{})
	t.stop = stop
	s := &Session{Features: t.common.Driver, RAM: t.queues[0].ram, Queues: t.queues, ConfigChanged: t.configChanged}
	broken := false
	for _, q := range t.queues {
		broken = q.start(s.Features, t.paused) != nil || broken
	}
	t.dev.Activate(s)
	for _, q := range t.queues {
		if q.Enabled() {
			t.workers.Go(func() { q.run(t.dev.Serve, stop) })
			// What the driver made available before it was ready was not served at its notify.
			q.Wake()
		}
	}
	if broken {
		t.breakQueue()
	}
}

// endSession waits for what is under way, ends the goroutines and forgets the driver. t.mu is held, by a caller that may wait.
func (t *PCI) endSession() {
	t.quiesce()
	if t.stop != nil {
		close(t.stop)
		for _, q := range t.queues {
			q.bell.ring()
		}
		t.workers.Wait()
		t.stop = nil
		t.dev.Reset()
	}
	for i, q := range t.queues {
		q.reset(t.max[i])
	}
	t.common = commonState{}
	t.configVector.Store(noVector)
	t.needsReset.Store(false)
	t.takeISR()
}

// quiesce returns when no request is under way; none begins until resume.
func (t *PCI) quiesce() {
	for _, q := range t.queues {
		q.pause()
	}
	for _, q := range t.queues {
		q.wait()
	}
}

// beginReset resets the device without keeping the CPU waiting for long: until it is done, the status does not read 0 and
// writes have no effect (virtio 1.2 section 4.1.4.3.1). t.mu is held.
func (t *PCI) beginReset() {
	if t.stop == nil {
		t.endSession()
		return
	}
	done := make(chan struct{})
	t.resetting = done
	go func() {
		t.quiesce()
		t.mu.Lock()
		t.endSession()
		t.resetting = nil
		t.mu.Unlock()
		close(done)
	}()
}

// Pause implements [pci.Pauser].
func (t *PCI) Pause() {
	t.mu.Lock()
	for t.resetting != nil {
		done := t.resetting
		t.mu.Unlock()
		<-done
		t.mu.Lock()
	}
	t.paused = true
	t.mu.Unlock()
	t.quiesce()
}

// Resume implements [pci.Pauser].
func (t *PCI) Resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = false
	for _, q := range t.queues {
		q.resume()
	}
}

type pciState struct {
	Config       pci.ConfigState
	Common       commonState
	ConfigVector uint32
	Generation   uint32
	NeedsReset   bool
	ISR          uint8
	Queues       []queueState
}

type queueState struct {
	Size              uint16
	Enabled           bool
	Desc, Avail, Used uint64
	NextAvail         uint16
	NextUsed          uint16
	Vector            uint32
	Broken            string
}

// Save implements [bus.Stateful]; the function must be paused.
func (t *PCI) Save(enc *gob.Encoder) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isrMu.Lock()
	s := pciState{
		Common: t.common, ConfigVector: t.configVector.Load(), Generation: t.generation.Load(),
		NeedsReset: t.needsReset.Load(), ISR: t.isr,
	}
	t.isrMu.Unlock()
	s.Config = t.config.State()
	for _, q := range t.queues {
		q.mu.Lock()
		r := q.ring
		qs := queueState{
			Size: r.Size, Enabled: r.Enabled, Desc: uint64(r.Desc), Avail: uint64(r.Avail), Used: uint64(r.Used),
			NextAvail: q.next, NextUsed: q.used, Vector: q.vector.Load(),
		}
		if q.err != nil {
			qs.Broken = q.err.Error()
		}
		q.mu.Unlock()
		s.Queues = append(s.Queues, qs)
	}
	if err := enc.Encode(s); err != nil {
		return err
	}
	return t.dev.Save(enc)
}

// Load implements [bus.Stateful]. Pause the function first, and Resume it when RAM and the interrupt controllers are loaded too.
func (t *PCI) Load(dec *gob.Decoder) error {
	var s pciState
	if err := dec.Decode(&s); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.accepts(&s); err != nil {
		return err
	}
	t.endSession()
	if err := t.config.SetState(s.Config); err != nil {
		return err
	}
	if err := t.dev.Load(dec); err != nil {
		return err
	}
	t.common = s.Common
	t.configVector.Store(t.validVector(s.ConfigVector))
	t.generation.Store(s.Generation)
	t.needsReset.Store(s.NeedsReset)
	t.isrMu.Lock()
	t.isr = s.ISR
	t.isrMu.Unlock()
	t.config.SetINTx(s.Config.INTx) // endSession released it
	for i, qs := range s.Queues {
		q := t.queues[i]
		q.mu.Lock()
		q.ring = ring{qs.Size, qs.Enabled, mem.Addr(qs.Desc), mem.Addr(qs.Avail), mem.Addr(qs.Used)}
		q.next, q.used = qs.NextAvail, qs.NextUsed
		if qs.Broken != "" {
			q.err = fmt.Errorf("%s", qs.Broken)
		}
		q.mu.Unlock()
		q.vector.Store(t.validVector(qs.Vector))
	}
	if t.common.Status&StatusDriverOK != 0 {
		t.beginSession()
	}
	return nil
}

// accepts tells whether a state that was read fits this device. A state is a file: it is not trusted.
func (t *PCI) accepts(s *pciState) error {
	if len(s.Queues) != len(t.queues) {
		return fmt.Errorf("virtio: state of %d queues, here %d", len(s.Queues), len(t.queues))
	}
	if extra := s.Common.Driver &^ t.features; s.Common.Status&StatusFeaturesOK != 0 && extra != 0 {
		return fmt.Errorf("virtio: state uses features %#x that this device does not have", extra)
	}
	for i, q := range s.Queues {
		if q.Size == 0 || q.Size&(q.Size-1) != 0 || q.Size > t.max[i] {
			return fmt.Errorf("virtio: state of queue %d with size %d, here %d", i, q.Size, t.max[i])
		}
	}
	return nil
}
