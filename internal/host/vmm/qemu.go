package vmm

import (
	"path"
	"slices"
	"strings"
)

// What QEMU's command line says (qemu(1), QEMU's qemu-options.hx). An option may begin with one dash or two.

func qemu(args []string, names ...string) []string {
	var both []string
	for _, n := range names {
		both = append(both, "-"+n, "--"+n)
	}
	return values(args, both...)
}

func qemuHas(args []string, names ...string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		return strings.HasPrefix(a, "-") && slices.Contains(names, strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-"))
	})
}

// qemuLast is an option's last value in parts.
func qemuLast(args []string, implied string, names ...string) map[string]string {
	all := qemu(args, names...)
	if len(all) == 0 {
		return nil
	}
	return options(all[len(all)-1], implied)
}

// qemuRuns tells a command line that starts a guest from one that prints something and ends.
func qemuRuns(args []string) bool { return !qemuHas(args, "version", "help", "h") }

func qemuName(args []string) string { return qemuLast(args, "guest", "name")["guest"] }

func qemuMachine(args []string) string {
	return qemuLast(args, "type", "machine", "M")["type"]
}

// qemuMemory is the size of RAM; QEMU's default is 128 MiB.
func qemuMemory(args []string) uint64 {
	if all := qemu(args, "m"); len(all) > 0 {
		return size(options(all[len(all)-1], "size")["size"], 1<<20)
	}
	return 128 << 20
}

// qemuBackends are the sizes of the objects that RAM is made of, in the order that the guest has them; none: one of qemuMemory's size.
func qemuBackends(args []string) []uint64 {
	sizes := map[string]uint64{}
	for _, o := range qemu(args, "object") {
		if b := options(o, "qom-type"); strings.HasPrefix(b["qom-type"], "memory-backend-") {
			sizes[b["id"]] = size(b["size"], 1)
		}
	}
	var all []uint64
	for _, n := range qemu(args, "numa") {
		if o := options(n, "type"); o["type"] == "node" && o["memdev"] != "" {
			all = append(all, sizes[o["memdev"]])
		}
	}
	return all
}

func qemuCPUs(args []string) int {
	const most = 4096
	o := qemuLast(args, "cpus", "smp")
	if n := number(o["cpus"], most); n > 0 {
		return n
	}
	n := 1
	for _, part := range []string{"drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"} {
		if k := number(o[part], most); k > 0 {
			n = min(n*k, most)
		}
	}
	return n
}

func qemuAccelerator(args []string) string {
	if all := qemu(args, "accel"); len(all) > 0 {
		return clean(options(all[0], "accel")["accel"])
	}
	if a := qemuLast(args, "type", "machine", "M")["accel"]; a != "" {
		first, _, _ := strings.Cut(a, ":")
		return clean(first)
	}
	if qemuHas(args, "enable-kvm") || len(args) > 0 && path.Base(args[0]) == "qemu-kvm" {
		return KVM
	}
	return TCG
}

// An Endpoint is where a VMM listens: a unix socket's path, as the VMM has it, or a TCP address.
type Endpoint struct{ Network, Address string }

// QMP gives the sockets on which a QEMU was told to answer QMP.
func (g *Guest) QMP() []Endpoint {
	if g.VMM != "qemu" {
		return nil
	}
	var all []Endpoint
	add := func(e Endpoint) {
		if e.Address != "" {
			all = append(all, e)
		}
	}
	for _, d := range qemu(g.Args, "qmp", "qmp-pretty") {
		add(legacyEndpoint(d))
	}
	chardevs := map[string]Endpoint{}
	for _, c := range qemu(g.Args, "chardev") {
		if o := options(c, "backend"); o["backend"] == "socket" {
			chardevs[o["id"]] = socketEndpoint(o)
		}
	}
	for _, m := range qemu(g.Args, "mon") {
		if o := options(m, "chardev"); o["mode"] == "control" {
			add(chardevs[o["chardev"]])
		}
	}
	return all
}

// GDB gives the sockets on which a QEMU was told to serve a debugger.
func (g *Guest) GDB() []Endpoint {
	if g.VMM != "qemu" {
		return nil
	}
	var all []Endpoint
	if qemuHas(g.Args, "s") {
		all = append(all, Endpoint{"tcp", "127.0.0.1:1234"})
	}
	for _, d := range qemu(g.Args, "gdb") {
		if e := legacyEndpoint(d); e.Address != "" {
			all = append(all, e)
		}
	}
	return all
}

// legacyEndpoint reads "unix:PATH,server=on" or "tcp:HOST:PORT,server=on".
func legacyEndpoint(dev string) Endpoint {
	network, rest, _ := strings.Cut(dev, ":")
	address := options(rest, "address")["address"]
	switch network {
	case "unix":
		return Endpoint{"unix", address}
	case "tcp":
		return tcpEndpoint(address)
	}
	return Endpoint{}
}

func socketEndpoint(o map[string]string) Endpoint {
	switch {
	case o["path"] != "" && o["abstract"] != "on":
		return Endpoint{"unix", o["path"]}
	case o["port"] != "":
		return tcpEndpoint(o["host"] + ":" + o["port"])
	}
	return Endpoint{}
}

// tcpEndpoint is a host's and port's, for the loopback where the host is left out or all.
func tcpEndpoint(address string) Endpoint {
	i := strings.LastIndexByte(address, ':')
	if i < 0 || number(address[i+1:], 65535) == 0 {
		return Endpoint{}
	}
	if host := address[:i]; host == "" || host == "0.0.0.0" || host == "::" || host == "[::]" {
		address = "127.0.0.1" + address[i:]
	}
	return Endpoint{"tcp", address}
}
