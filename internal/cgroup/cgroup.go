// Package cgroup tells containers by the names of their control groups.
package cgroup

import (
	"slices"
	"strconv"
	"strings"
)

// Container finds what container runtimes name a cgroup by: 64 hexadecimal digits, perhaps with a prefix and ".scope", of which 12 are kept, as
// they do; the names that LXC and systemd-machined give. It is empty where path is no container's; a virtual machine of libvirt, which is
// registered with systemd-machined too, is none.
func Container(path string) string {
	parts := strings.Split(path, "/")
	for _, p := range slices.Backward(parts) {
		p = strings.TrimSuffix(p, ".scope")
		p = p[strings.LastIndexByte(p, '-')+1:]
		if len(p) == 64 && strings.Trim(p, "0123456789abcdef") == "" {
			return p[:12]
		}
	}
	for i, p := range parts {
		if name, ok := strings.CutPrefix(p, "lxc.payload."); ok {
			return name
		}
		if i == 0 {
			continue
		}
		switch parts[i-1] {
		case "lxc", "lxc.payload":
			return p
		case "machine.slice":
			return machine(p)
		}
	}
	return ""
}

// machine is the name in a unit that systemd-machined or systemd-nspawn made for a container.
func machine(unit string) string {
	if name, ok := strings.CutPrefix(unit, "systemd-nspawn@"); ok {
		return unescape(strings.TrimSuffix(name, ".service"))
	}
	name := unescape(strings.TrimPrefix(strings.TrimSuffix(unit, ".scope"), "machine-"))
	if strings.HasPrefix(name, "qemu-") {
		return ""
	}
	return name
}

// unescape undoes systemd's \xNN (systemd.unit(5), "string escaping").
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.HasPrefix(s[i:], `\x`) && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil && n >= 0x20 && n < 0x7F { // no control characters
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
