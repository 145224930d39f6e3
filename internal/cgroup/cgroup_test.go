package cgroup

import (
	"strings"
	"testing"
)

func TestContainersAreNamedByTheirCgroup(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for _, c := range []struct{ cgroup, want string }{
		{"/", ""}, {"/user.slice/user-0.slice", ""}, {"/docker/" + id, id[:12]}, {"/system.slice/docker-" + id + ".scope", id[:12]},
		{"/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope", id[:12]}, {"/machine.slice/libpod-" + id + ".scope/container", id[:12]},
		{"/lxc/web/init.scope", "web"}, {"/lxc.payload.web/system.slice", "web"}, {"/lxc.monitor.web", ""},
		{"/machine.slice/machine-web.scope/payload", "web"}, {`/machine.slice/machine-a\x2db.scope`, "a-b"}, {`/machine.slice/machine-a\x2`, `a\x2`},
		{`/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator`, ""}, {"/machine.slice/systemd-nspawn@web.service/payload", "web"},
	} {
		if got := Container(c.cgroup); got != c.want {
			t.Errorf("%s: %q, want %q", c.cgroup, got, c.want)
		}
	}
}

func FuzzContainer(f *testing.F) {
	f.Add(`/machine.slice/machine-a\x2db.scope`)
	f.Fuzz(func(t *testing.T, path string) {
		if got := Container(path); len(got) > len(path) {
			t.Errorf("%q is longer than %q", got, path)
		}
	})
}
