package vmm

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// Eyes is what the calling process may see of others.
type Eyes struct {
	UID    int  // effective
	Ptrace bool // has CAP_SYS_PTRACE
	Yama   int  // kernel.yama.ptrace_scope (Documentation/admin-guide/LSM/Yama.rst); 0 where there is none
}

// capSysPtrace is CAP_SYS_PTRACE's bit (capabilities(7)).
const capSysPtrace = 1 << 19

// EyesIn gives the calling process's, by proc.
func EyesIn(proc Proc) Eyes {
	e := Eyes{UID: os.Geteuid()}
	if status, err := os.ReadFile(string(proc) + "/self/status"); err == nil {
		e.Ptrace = capable(string(status), capSysPtrace)
	}
	if scope, err := os.ReadFile(string(proc) + "/sys/kernel/yama/ptrace_scope"); err == nil {
		e.Yama, _ = strconv.Atoi(strings.TrimSpace(string(scope)))
	}
	return e
}

// WhyNot says in one line what keeps these eyes from a process of the given user, and what would help; denied tells that the host refused them already.
// It is empty where nothing is known to.
func (e Eyes) WhyNot(uid int, denied bool) string {
	const help = "look as root (CAP_SYS_PTRACE)"
	switch {
	case e.Yama >= 3:
		return "Yama forbids it to everybody until the host boots again (kernel.yama.ptrace_scope=3)"
	case e.Ptrace && denied:
		return "a security module keeps it closed, or it is in a user namespace that is not below this one"
	case e.Ptrace:
		return ""
	case e.UID == 0 && (denied || e.Yama > 0):
		return "this root lacks the capability CAP_SYS_PTRACE: give it to the container (--cap-add SYS_PTRACE), or look from outside of it"
	case uid >= 0 && uid != e.UID:
		return "it belongs to " + Owner(uid) + ": look as that user or root (CAP_SYS_PTRACE)"
	case e.Yama == 2:
		return "Yama allows it to root alone (kernel.yama.ptrace_scope=2): " + help
	case e.Yama == 1:
		return "Yama allows it to the process's parents alone (kernel.yama.ptrace_scope=1): " + help
	case denied:
		return "it keeps itself closed (prctl PR_SET_DUMPABLE), or has changed its user: " + help
	}
	return ""
}

// capable tells whether /proc/PID/status has a capability among the effective.
func capable(status string, bit uint64) bool {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(rest), 16, 64)
			return err == nil && caps&bit != 0
		}
	}
	return false
}

// Owner is a user's name, or number where it has none here.
func Owner(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return clean(u.Username)
	}
	return fmt.Sprint("user ", uid)
}
