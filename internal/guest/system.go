package guest

import (
	"bytes"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/printable"
)

// A System is what a kernel says of itself as a whole. The keys are promised; what cannot be read is left out.
type System struct {
	Banner   string     `json:"banner"`  // "Linux version …"
	Release  string     `json:"release"` // as uname -r has it
	Hostname string     `json:"hostname,omitempty"`
	Booted   time.Time  `json:"booted,omitzero"` // by the guest's clock
	Uptime   float64    `json:"uptime_seconds,omitempty"`
	Load     []float64  `json:"load,omitempty"`       // averages of 1, 5 and 15 minutes
	Memory   []MemValue `json:"memory,omitempty"`     // as /proc/meminfo
	Taint    string     `json:"taint,omitempty"`      // letters, as in an oops: "G W O"
	Tainted  []string   `json:"tainted_by,omitempty"` // what they say
	Panic    string     `json:"panic,omitempty"`      // why the kernel has given up
	Oops     []string   `json:"oops,omitempty"`       // the last report of a fault in the kernel: lines of its log
	Symbols  int        `json:"symbols"`
	Types    string     `json:"types"`             // where its structures are known from: "BTF", or "inferred", or "unknown"
	Unknown  []string   `json:"unknown,omitempty"` // what cannot be read, and why
}

// System reads what there is to be read of the whole.
func (k *Kernel) System() System {
	s := System{Banner: k.Banner, Symbols: k.Symbols.Len(), Types: k.types(), Unknown: k.unknown()}
	if words := strings.Fields(k.Banner); len(words) > 2 {
		s.Release = words[2]
	}
	if f, ok := k.structure("uts_namespace").field("name"); ok {
		// struct new_utsname: six strings of 65 bytes (include/uapi/linux/utsname.h); the second is the node's name.
		if u, err := k.load("uts_namespace", k.address("init_uts_ns")); err == nil && f.Off+f.Size <= uint64(len(u.raw)) && f.Size >= 2*65 {
			s.Hostname = cstring(u.raw[f.Off+65 : f.Off+2*65])
		}
	}
	s.Booted, s.Uptime = k.BootTime(), float64(k.Uptime().Milliseconds())/1e3
	s.Load = k.load3()
	s.Memory = k.meminfo()
	s.Taint, s.Tainted = taints(k.variable("tainted_mask"))
	if log, err := k.Log(0); err == nil {
		s.Panic, s.Oops = troubles(log)
	}
	if at := k.address("panic_cpu"); at != 0 { // what the log says is true only if a processor is in panic()
		if cpu, err := k.space.Uint32(at); err == nil && int32(cpu) == -1 {
			s.Panic = ""
		} else if err == nil && s.Panic == "" {
			s.Panic = "for a reason that is not in its log"
		}
	}
	return s
}

// types tells where structures are known from.
func (k *Kernel) types() string {
	if k.BTF() != nil {
		return "BTF"
	}
	return "unknown"
}

// unknown says what cannot be had.
func (k *Kernel) unknown() []string {
	if k.BTF() != nil {
		return nil
	}
	return []string{"the kernel has no BTF: its structures are not known"}
}

// load3 are the averages of the run queue's length (kernel/sched/loadavg.c: numbers with 11 bits behind the point), rounded as /proc/loadavg does.
func (k *Kernel) load3() []float64 {
	at := k.address("avenrun")
	if at == 0 {
		return nil
	}
	var raw [24]byte
	if k.space.ReadAt(raw[:], at) != nil {
		return nil
	}
	all := make([]float64, 3)
	for i := range all {
		const one = 1 << 11
		v := le.Uint64(raw[8*i:]) + one/200
		all[i] = float64(v*100/one) / 100
	}
	return all
}

// taintFlags are the bits of tainted_mask (include/linux/panic.h, Documentation/admin-guide/tainted-kernels.rst).
var taintFlags = []struct {
	letter byte
	says   string
}{
	{'P', "a proprietary module was loaded"}, {'F', "a module was loaded by force"}, {'S', "the processor is out of its specification"},
	{'R', "a module was unloaded by force"}, {'M', "a machine check was reported"}, {'B', "a page was bad"}, {'U', "a program asked for it"},
	{'D', "the kernel has died: an oops or BUG"}, {'A', "an ACPI table was replaced"}, {'W', "the kernel has warned"}, {'C', "a staging driver was loaded"},
	{'I', "a fault of the firmware is worked around"}, {'O', "a module from outside of the kernel's tree was loaded"}, {'E', "an unsigned module was loaded"},
	{'L', "a soft lockup happened"}, {'K', "the kernel was patched while it ran"}, {'X', "the distribution has marked it"},
	{'T', "structures were laid out at random"}, {'N', "a test has run in the kernel"}, {'J', "a program changed a device's firmware behind the kernel's back"},
}

// taints gives the letters and what they mean.
func taints(mask uint64) (letters string, says []string) {
	var b []byte
	for i, f := range taintFlags {
		if mask>>i&1 != 0 {
			b, says = append(b, f.letter), append(says, f.says)
		}
	}
	return string(b), says
}

// Beginnings of a record by which a fault in the kernel is reported (arch/x86/kernel/{dumpstack,traps}.c, arch/x86/mm/fault.c).
var oopsWords = []string{"BUG: ", "Oops: ", "kernel BUG at ", "general protection fault", "invalid opcode", "divide error", "stack segment",
	"double fault", "traps: PANIC", "kernel tried to execute", "Unable to handle kernel"}

const (
	panicWords = "Kernel panic - not syncing: "
	endOfOops  = "---[ end trace "
	maxOops    = 200 // lines
)

// troubles finds the kernel's last words in its log: why it panicked, and the last oops.
func troubles(log []Message) (panicked string, oops []string) {
	within := false
	for _, m := range log {
		if m.Facility != 0 { // a program can write anything
			continue
		}
		for line := range strings.SplitSeq(m.Text, "\n") {
			starts := false
			for _, w := range oopsWords {
				starts = starts || strings.HasPrefix(line, w)
			}
			if why, ok := strings.CutPrefix(line, panicWords); ok {
				panicked, within = why, false
			}
			if starts && !within {
				oops, within = nil, true
			}
			if within && len(oops) < maxOops {
				oops = append(oops, line)
			}
			if strings.HasPrefix(line, endOfOops) && !strings.HasPrefix(line, "---[ end Kernel panic") {
				within = false
			}
		}
	}
	return panicked, oops
}

// cstring is what is before the first NUL, printable.
func cstring(b []byte) string {
	if n := bytes.IndexByte(b, 0); n >= 0 {
		b = b[:n]
	}
	return printable.Text(string(b))
}
