package guesttest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/unwind"
)

// A record is what is known of one process: by aspects, a text of lines each.
type record map[string]string

// Names of a record's aspects that the corpus counts.
const (
	inStatus = "status"
	inStack  = "stack"
	inMaps   = "maps"
	inMounts = "mounts"
	inFiles  = "files"
	switches = "switches" // how often it left a processor; empty where it ran while it was looked at. Not compared: what has equal ones did not run between
)

// compareProcesses compares every process. What did not run between what the guest said and what was read must be equal. Else what differs is asked for
// again; kernel threads that run each time may differ to the end, and of others the stack.
func compareProcesses(t *testing.T, g live, k *guest.Kernel, said said, row *row) {
	u, err := unwind.New(k)
	if err != nil {
		t.Fatal(err)
	}
	equal := map[string]int{}
	processes, gone, ran := 0, 0, 0
	asked := map[string]bool{}
	const rounds = 12
	for round := range rounds {
		seen := readProcesses(t, k, u)
		if round == 0 {
			for pid := range seen {
				asked[pid] = true
			}
			for pid := range said {
				if _, err := strconv.Atoi(pid); err == nil {
					asked[pid] = true
				}
			}
		}
		var wrong []string
		for _, pid := range slices.SortedFunc(maps.Keys(asked), byNumber) {
			text, told := said[pid]
			switch got := seen[pid]; {
			case !told && got == nil:
				gone++
			case !told || got == nil:
				if wrong = append(wrong, pid); round == rounds-1 {
					t.Errorf("process %s: the guest says %q, memory %q", pid, firstLine(text), got[inStatus])
				}
			default:
				want := recordOf(text)
				differ := differences(got, want)
				slept := got[switches] != "" && got[switches] == want[switches] && pid != "1" // of which only the first thread's are known
				switch {
				case len(differ) == 0:
				case !slept && round == rounds-1 && (slices.Equal(differ, []string{inStack}) || got[inMaps] == ""):
					ran++
					continue
				case slept || round == rounds-1:
					for _, aspect := range differ {
						t.Errorf("process %s: %s; it slept: %v", pid, aspect, slept)
						same(t, got[aspect], want[aspect])
					}
					continue
				default:
					wrong = append(wrong, pid)
					continue
				}
				processes++
				for aspect, lines := range want {
					equal[aspect] += strings.Count(lines, "\n")
				}
			}
		}
		if len(wrong) == 0 {
			break
		}
		said = g.ask(t, wrong)
		clear(asked)
		for _, pid := range wrong {
			asked[pid] = true
		}
		time.Sleep(100 * time.Millisecond) // until who answered has gone
	}
	if processes < 20 || equal[inStack] < 60 || equal[inMaps] < 100 || equal[inMounts] < 100 || equal[inFiles] < 20 {
		t.Errorf("only %d processes were compared, with %v lines", processes, equal)
	}
	row.add(t, "processes", processes)
	for _, aspect := range []string{inStack, inMaps, inMounts, inFiles} {
		row.add(t, "lines of "+aspect, equal[aspect])
	}
	if gone > 0 {
		row.add(t, "gone", gone)
	}
	if ran > 0 {
		row.add(t, "ran each time", ran)
	}
	if ran > 4 {
		t.Errorf("%d processes ran each time that they were looked at", ran)
	}
}

func byNumber(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// differences names the aspects that differ and matter.
func differences(got, want record) []string {
	var all []string
	for _, aspect := range slices.Sorted(maps.Keys(want)) {
		if got[aspect] != want[aspect] && aspect != switches {
			all = append(all, aspect)
		}
	}
	return all
}

// containers are whose container truth.sh puts what runs a command line into.
var containers = map[string]string{
	"unshare -m -u -i -n -p -C -f --mount-proc sh -c hostname inner; mount -t tmpfs inner /mnt; exec sleep 1002": "0123456789ab",
	"sleep 1002": "0123456789ab", "sleep 1003": "web", "sleep 1004": "1123456789ab", "sleep 1005": "f123456789ab",
}

// recordOf takes what truth.sh tells of a process.
func recordOf(text string) record {
	status, first := map[string]string{}, map[string]string{}
	parts := map[string]*strings.Builder{}
	for _, name := range []string{"Stack", "Map", "Mount", "File", "Ns"} {
		parts[name] = &strings.Builder{}
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), ":")
		value = strings.TrimSpace(value)
		if b := parts[key]; b != nil {
			switch key {
			case "Stack":
				value = strings.TrimPrefix(value, "[<0>] ")
			case "Map":
				value = strings.Join(strings.Fields(value), " ")
			case "Mount":
				value = mountLine(value)
			}
			fmt.Fprintln(b, value)
			continue
		}
		if _, again := first[key]; !again {
			first[key] = value
		}
		status[key] = value
	}
	rss := strings.TrimSuffix(status["VmRSS"], " kB")
	if status["Pid"] == "1" { // it collects garbage as it likes
		rss = ""
	}
	words := namespaces(parts["Ns"].String())
	spaces := strings.Fields("0 " + status["NSpid"])
	const voluntary, other = "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"
	left := ""
	if first[voluntary] == status[voluntary] && first[other] == status[other] {
		left = status[voluntary] + " " + status[other]
	}
	if status["Pid"] == "1" { // what asks has files open there
		parts["File"].Reset()
	}
	return record{
		switches: left,
		inStatus: lines("name", status["Name"], "parent", status["PPid"], "group", status["Tgid"], "user", second(status["Uid"]), "threads", status["Threads"],
			"state", status["State"][:1], "RSS", rss, "command", status["Cmdline"], "cgroup", strings.TrimPrefix(status["0"], ":"), "namespaces", words,
			"its own number", spaces[len(spaces)-1], "container", containers[status["Cmdline"]]),
		inStack: parts["Stack"].String(), inMaps: parts["Map"].String(), inMounts: parts["Mount"].String(), inFiles: parts["File"].String(),
	}
}

func lines(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "%s: %s\n", pairs[i], pairs[i+1])
	}
	return b.String()
}

func second(fields string) string {
	if f := strings.Fields(fields); len(f) > 1 {
		return f[1]
	}
	return ""
}

// namespaces are the numbers of the links in /proc/PID/ns, in the order of guest.Inodes.
func namespaces(links string) string {
	numbers := map[string]string{}
	for line := range strings.Lines(links) {
		kind, number, _ := strings.Cut(strings.TrimSpace(line), ":[")
		if numbers[kind] == "" { // behind pid follows pid_for_children, which has the same kind
			numbers[kind] = strings.TrimSuffix(number, "]")
		}
	}
	all := make([]string, 0, 7)
	for _, kind := range []string{"mnt", "pid", "net", "uts", "ipc", "cgroup", "user"} {
		all = append(all, cmp.Or(numbers[kind], "0"))
	}
	return strings.Join(all, " ")
}

// mountLine is a line of mountinfo without what only the file system's code can print.
func mountLine(line string) string {
	mount, fs, _ := strings.Cut(line, " - ")
	f := strings.Fields(mount)
	return strings.Join(append(f[:min(6, len(f))], strings.Fields(fs)[:2]...), " ")
}

// readProcesses reads every process, and all there is to it.
func readProcesses(t *testing.T, k *guest.Kernel, u *unwind.Kernel) map[string]record {
	all, err := k.Processes(false)
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := k.Processes(true)
	if err != nil {
		t.Fatal(err)
	}
	threads := map[int]int{}
	for _, task := range tasks {
		threads[task.TGID]++
	}
	seen := map[string]record{}
	for _, p := range all {
		pid := strconv.Itoa(p.PID)
		if _, twice := seen[pid]; twice {
			t.Errorf("process %d is listed twice", p.PID)
		}
		seen[pid] = readProcess(k, u, p, threads[p.TGID])
	}
	return seen
}

func readProcess(k *guest.Kernel, u *unwind.Kernel, p guest.Process, threads int) record {
	rss := strconv.FormatUint(p.RSSBytes>>10, 10)
	if p.Kernel || p.State == "Z" || p.PID == 1 {
		rss = ""
	}
	n := p.Namespaces
	before := switchesOf(k, p)
	r := record{inStatus: lines("name", p.Comm, "parent", strconv.Itoa(p.PPID), "group", strconv.Itoa(p.TGID), "user", strconv.Itoa(int(p.UID)),
		"threads", strconv.Itoa(threads), "state", p.State, "RSS", rss, "command", p.Cmdline, "cgroup", p.Cgroup,
		"namespaces", fmt.Sprint(n.Mount, n.PID, n.Net, n.UTS, n.IPC, n.Cgroup, n.User), "its own number", strconv.Itoa(p.NSPID),
		"container", p.Container)}
	var b strings.Builder
	frames, err := u.Sleeping(p.Task)
	for _, f := range frames {
		fmt.Fprintln(&b, f)
	}
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	r[inStack] = b.String()
	if p.State == "Z" {
		r[inStack] = ""
	}
	if after := switchesOf(k, p); after == before {
		r[switches] = after
	}
	if p.Kernel || p.State == "Z" {
		return r
	}
	b.Reset()
	areas, err := k.Maps(p.Task)
	for _, m := range areas {
		fmt.Fprintln(&b, strings.TrimSpace(fmt.Sprintf("%08x-%08x %s %08x %s %d %s", m.Start, m.End, m.Perms, m.Offset, m.Device, m.Inode, m.Name)))
	}
	r[inMaps] = withError(&b, err)
	mounts, err := k.Mounts(p.Task)
	for _, m := range mounts {
		fmt.Fprintln(&b, m.ID, m.Parent, m.Device, m.Root, m.Target, m.Options, m.FSType, m.Source)
	}
	r[inMounts] = withError(&b, err)
	files, err := k.Files(p.Task)
	for _, f := range files {
		fmt.Fprintln(&b, f.FD, f.Name)
	}
	if r[inFiles] = withError(&b, err); p.PID == 1 {
		r[inFiles] = ""
	}
	return r
}

// switchesOf is how often a task left a processor, of its own and not.
func switchesOf(k *guest.Kernel, p guest.Process) string {
	var n [2]uint64
	for i, name := range []string{"nvcsw", "nivcsw"} {
		var b [8]byte
		f, err := k.BTF().Field("task_struct", name)
		if err != nil || k.ReadAt(b[:], p.Task+f.Off) != nil {
			return ""
		}
		n[i] = binary.LittleEndian.Uint64(b[:])
	}
	return fmt.Sprint(n[0], n[1])
}

// withError takes what b holds and an error.
func withError(b *strings.Builder, err error) string {
	defer b.Reset()
	if err != nil {
		fmt.Fprintln(b, err)
	}
	return b.String()
}

// compareStarts compares when processes began, in relation to the first.
func compareStarts(t *testing.T, k *guest.Kernel, said said) {
	all, err := k.Processes(false)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, p := range all {
		text := said[strconv.Itoa(p.PID)]
		if text == "" {
			continue
		}
		want := startOf(text) - startOf(said["1"])
		if d := p.Started.Sub(all[0].Started) - want; d < -20*time.Millisecond || d > 20*time.Millisecond {
			t.Errorf("process %d, %s, began %v off what the guest says", p.PID, p.Comm, d)
		}
		compared++
	}
	if compared < 20 {
		t.Errorf("only %d processes were compared", compared)
	}
}

// startOf is field 22 of a /proc/PID/stat: when it began after boot.
func startOf(told string) time.Duration {
	line := firstLine(told)
	f := strings.Fields(line[strings.LastIndex(line, ")")+2:])
	ticks, _ := strconv.ParseInt(f[19], 10, 64)
	return time.Duration(ticks) * 10 * time.Millisecond
}

// comparePS compares with procps' ps what lives in both. The shell has become another program since.
func comparePS(t *testing.T, k *guest.Kernel, said, shell string) {
	all, err := k.Processes(false)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]guest.Process{}
	for _, p := range all {
		by[strconv.Itoa(p.PID)] = p
	}
	compared := 0
	for line := range strings.Lines(said) {
		f := strings.Fields(line)
		p, ok := by[f[0]]
		if !ok || p.State == "Z" || len(f) < 5 {
			continue
		}
		got := fmt.Sprint(p.PID, p.PPID, p.UID)
		name := strings.Join(f[4:], " ")
		same := name == p.Comm || f[0] == shell || strings.HasPrefix(name, "kworker/") // whose names change with their work
		if want := strings.Join(f[:3], " "); got != want || !same {
			t.Errorf("%s %s, ps says %s %s", got, p.Comm, want, name)
		}
		compared++
	}
	if compared < 20 {
		t.Errorf("only %d processes were compared", compared)
	}
}
