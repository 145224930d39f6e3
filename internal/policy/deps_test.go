package policy

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "vitrine.dev/vitrine"

// policy says which of the project's packages each package may import, directly. Packages below a directory share its line.
// Arrows run one way: what stands higher is not imported by what stands lower.
//
// "a < b, c" reads: a may import b and c, and nothing else of ours. A line's own subpackages are always allowed.
const policy = `
	internal/mem      <
	internal/x86      < internal/mem, internal/hv
	internal/hv       < internal/mem, internal/x86
	internal/machine/layout < internal/mem
	internal/network  <
	internal/machine  < internal/printable, internal/hv, internal/mem, internal/x86, internal/kernel/decompress, internal/network
	internal/hostfs   <
	internal/initramfs <
	internal/kernel   < internal/initramfs
	internal/agent    <
	internal/cgroup   <
	internal/host     < internal/cgroup
	internal/host/foreign < internal/guest, internal/host, internal/hv, internal/mem, internal/x86
	internal/transfer <
	internal/confine  <
	internal/printable <
	internal/helper   < internal/confine, internal/host, internal/hostfs, internal/machine/virtio, internal/mem, internal/network
	internal/control  < internal/host, internal/mem, internal/x86
	internal/program  <
	internal/guest    < internal/program, internal/printable, internal/cgroup, internal/mem, internal/x86
	internal/guest/guesttest < ., internal/guest, internal/kernel, internal/mem, internal/unwind, internal/x86
	internal/unwind   < internal/guest, internal/mem, internal/program, internal/x86
	internal/perf     < internal/guest, internal/program, internal/unwind
	.                 < internal/printable, internal/agent, internal/confine, internal/control, internal/helper, internal/host, internal/hostfs, internal/hv, internal/initramfs, internal/kernel, internal/machine, internal/mem, internal/network, internal/transfer, internal/x86
	cmd               < internal/printable, ., internal/agent, internal/control, internal/guest, internal/host, internal/kernel, internal/perf, internal/transfer, internal/unwind, internal/x86
	internal/boottest < ., internal/agent, internal/hv, internal/initramfs, internal/kernel, internal/machine, internal/mem, internal/x86
	internal/nested   < internal/hv, internal/initramfs, internal/kernel
	internal/bench    < ., internal/agent, internal/control, internal/guest, internal/host, internal/hv, internal/initramfs, internal/kernel, internal/machine, internal/mem, internal/nested, internal/x86
	internal/policy   <
`

// never lists what a package must not reach, even through others: the import that would undo a wall.
var never = map[string][]string{
	"internal/x86/interp": {"internal/machine", "internal/guest"},                                                                      // the engine knows no device
	"internal/machine":    {"internal/hv/soft", "internal/hv/kvm", "internal/guest", "internal/network/user", "internal/network/ring"}, // devices never know which CPU runs, nor what they are plugged into
	"internal/guest":      {"internal/machine", "internal/hv", "internal/control"},                                                     // a dump looks like a live guest
	"internal/agent":      {"net/http", "fmt", "encoding/json"},                                                                        // it starts on a slow processor
}

type pkg struct {
	imports, deps []string
}

func list(t *testing.T) map[string]pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}|{{join .Imports " "}}|{{join .Deps " "}}`, module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]pkg{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		all[short(f[0])] = pkg{strings.Fields(f[1]), strings.Fields(f[2])}
	}
	return all
}

// short is a package's path in the module; the root is ".".
func short(path string) string {
	if path == module {
		return "."
	}
	return strings.TrimPrefix(path, module+"/")
}

func under(path, dir string) bool {
	return path == dir || dir != "." && strings.HasPrefix(path, dir+"/")
}

func TestImportsFollowThePolicy(t *testing.T) {
	rules := map[string][]string{}
	for line := range strings.Lines(policy) {
		if name, allowed, ok := strings.Cut(line, "<"); ok {
			rules[strings.TrimSpace(name)] = strings.FieldsFunc(allowed, func(r rune) bool { return strings.ContainsRune(", \n", r) })
		}
	}
	for path, p := range list(t) {
		// The longest line that holds the package is its own.
		rule := ""
		for name := range rules {
			if under(path, name) && len(name) > len(rule) {
				rule = name
			}
		}
		if rule == "" {
			t.Errorf("%s has no line in the policy", path)
			continue
		}
		for _, imp := range p.imports {
			if imp != module && !strings.HasPrefix(imp, module+"/") {
				continue
			}
			imp = short(imp)
			if !under(imp, rule) && !slices.ContainsFunc(rules[rule], func(a string) bool { return under(imp, a) }) {
				t.Errorf("%s imports %s: its line allows %v", path, imp, rules[rule])
			}
		}
	}
}

func TestWallsStand(t *testing.T) {
	all := list(t)
	for path, banned := range never {
		p, ok := all[path]
		if !ok {
			t.Errorf("no package %s", path)
		}
		for _, dep := range p.deps {
			if slices.ContainsFunc(banned, func(b string) bool { return under(short(dep), b) }) {
				t.Errorf("%s reaches %s", path, short(dep))
			}
		}
	}
}
