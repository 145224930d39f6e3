package vitrine

import (
	"encoding/json"
	"errors"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/host"
)

// Pause makes the guest stand still, its clock too.
func (m *Machine) Pause() error {
	select {
	case <-m.ended:
		return errors.New("the guest has ended")
	case <-m.up:
	default:
		return errors.New("the guest is not up yet")
	}
	m.board.Pause()
	m.setState("paused")
	return nil
}

// Resume lets a paused guest go on.
func (m *Machine) Resume() error {
	if !m.board.Paused() {
		return errors.New("the guest is not paused")
	}
	m.board.Resume()
	m.setState("running")
	return nil
}

// Ended is closed when the guest has ended and Result is known; Done comes later, when nothing of it is left.
func (m *Machine) Ended() <-chan struct{} { return m.over }

// Result is how the guest ended.
func (m *Machine) Result() control.Exit {
	e := control.Exit{Status: m.status}
	if m.result != nil {
		e.Error = m.result.Error()
	}
	return e
}

// An inspection is what Inspect says. Its keys are promised.
type inspection struct {
	host.State
	Directory   string   `json:"directory"`
	KernelPath  string   `json:"kernel_path"`
	CommandLine string   `json:"command_line"`
	Initrd      string   `json:"initrd,omitempty"`
	Exactly     bool     `json:"exactly"` // booted as given, without an agent
	Command     []string `json:"command"`
	Workdir     string   `json:"workdir,omitempty"`
	Env         []string `json:"env"`
	Root        string   `json:"root"`
	Volumes     []string `json:"volumes"`
	Disks       []string `json:"disks"`
	Kept        bool     `json:"kept"`              // its entry and logs stay when it has ended
	HugePages   string   `json:"huge_pages"`        // off, asked, always, pool
	StartCPU    float64  `json:"start_cpu_seconds"` // CPU time of this process until its guest's first instruction
	// Counters are statistics by where they come from: cpu0 and on, vm, memory. Their names are those of the accelerator and not promised.
	Counters map[string]map[string]uint64 `json:"counters"`
}

// Inspect says all there is to say of the guest, as JSON.
func (m *Machine) Inspect() ([]byte, error) {
	i := inspection{
		State: m.State(), Directory: m.entry.Dir(), KernelPath: m.kernelPath, CommandLine: m.commandLine, Initrd: m.cfg.Initrd, Exactly: m.exactly,
		Command: append([]string{}, m.cfg.Command...), Workdir: m.cfg.Dir, Env: append([]string{}, m.cfg.Env...), Root: m.cfg.Root,
		Volumes: []string{}, Disks: []string{}, Kept: m.cfg.Keep,
		StartCPU: m.startCPU.Seconds(), HugePages: m.ram.Huge().String(), Counters: m.counters(),
	}
	for _, v := range m.cfg.Volumes {
		i.Volumes = append(i.Volumes, v.Path+map[bool]string{true: ":rw"}[v.Writable])
	}
	for _, d := range m.cfg.Disks {
		i.Disks = append(i.Disks, d.Path+map[bool]string{true: ":ro"}[d.ReadOnly])
	}
	return json.Marshal(i)
}
