package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine"
)

// runFlags are run's, as typed.
type runFlags struct {
	name, memory, accel, kernel, initrd, appendLine, modules, root, dir string
	confine                                                             string
	cpus                                                                int
	disks, volumes, ports, env                                          []string
	quiet, detach, remove                                               bool
	config                                                              vitrine.Config
}

func runVerb() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] [-- CMD…]",
		Short: "starts a guest and runs a command in it, or a shell",
		Long: `Starts a guest and runs CMD in it, or a shell, in the current directory, as the guest's root.

Without --initrd the guest's root file system is the host's own, read-only: what nobody on the host could read, and the current directory.
What the guest writes is its own and goes with it. With --initrd, or with an image that is not Linux, exactly that is booted, and the
first serial port is standard input and output.

The exit status is CMD's. 120: KVM failed. 121: it met an instruction that it can neither execute nor emulate. 122: the host's processor refused
the state of the guest's. 123: a processor of the guest stopped with a triple fault. 125: Vitrine or the guest failed in another way. 126, 127: CMD
cannot be executed, was not found.`,
		Example: "  vitrine run -- uname -a\n  vitrine run\n  vitrine run --kernel arch/x86/boot/bzImage -- ./test",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return fmt.Errorf("run: %q: images are not known yet; a command follows after --", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("cpus") && f.cpus == 0 { // which a Config takes for none given
				return fmt.Errorf("--cpus 0: give 1 to %d", vitrine.MaxCPUs)
			}
			if err := f.parse(args); err != nil {
				return err
			}
			tightHeap()
			if f.detach && !isDetached() {
				return detach()
			}
			return run(&f.config, f.quiet)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "the guest's `NAME` and host name (default: made up)")
	fl.IntVar(&f.cpus, "cpus", 0, "number of processors (default 2)")
	fl.StringVar(&f.memory, "memory", "1G", "the guest's memory, `SIZE` like 512M")
	fl.BoolVar(&f.config.HugePages, "hugepages", false, "take the memory from the host's pool of huge pages")
	fl.StringVar(&f.accel, "accel", vitrine.Auto, "what runs the processors: auto, kvm or soft")
	fl.StringVar(&f.config.CPU, "cpu", "max", "the processor that the guest sees: max, x86-64-v3 or x86-64-v2, then `MODEL[,+FLAG,-FLAG…]`")
	fl.StringVar(&f.kernel, "kernel", "", "a bzImage, vmlinux or multiboot `FILE` (default: found or fetched)")
	fl.StringVar(&f.initrd, "initrd", "", "an initial RAM disk `FILE`: boots exactly that, adding nothing")
	fl.StringVar(&f.appendLine, "append", "", "`WORDS` for the kernel's command line")
	fl.StringVar(&f.modules, "modules", "", "the `DIR` of the kernel's modules")
	fl.StringArrayVar(&f.disks, "disk", nil, "a raw image `FILE[:ro]` as a disk (repeatable)")
	fl.StringArrayVar(&f.volumes, "volume", nil, "a `DIR[:rw]` that the guest sees too (repeatable)")
	fl.StringVar(&f.root, "root", vitrine.RootHost, "host: what nobody could read; host-all: all that you can")
	fl.StringVar(&f.config.Net, "net", vitrine.NetUser, "user: a network of the guest's own, by the host's sockets; none")
	fl.StringArrayVar(&f.ports, "port", nil, "a port of the host that leads to one of the guest's, `[ADDR:]HOST:GUEST[/udp]`; only the host reaches it unless ADDR says more (repeatable)")
	fl.StringVarP(&f.dir, "workdir", "w", "", "CMD's working `DIR` (default: the current one)")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "`NAME[=VALUE]` for CMD's environment (repeatable)")
	fl.StringVar(&f.confine, "confine", "on", "on: this process keeps only the rights that a running guest needs; off: all, for looking into it")
	fl.BoolVar(&f.config.DebugExit, "debug-exit", false, "port 0xf4 ends the guest, with status value*2+1")
	fl.DurationVar(&f.config.BootTimeout, "boot-timeout", 0, "give up a guest that is not ready by then (with --initrd: has not ended) (default 5m; none with --initrd)")
	fl.BoolVarP(&f.detach, "detach", "d", false, "print the guest's name and leave it running; without CMD it idles, for exec")
	fl.BoolVar(&f.remove, "rm", false, "with --detach: keep nothing of the guest when it has ended")
	fl.BoolVarP(&f.config.Terminal, "tty", "t", false, "give CMD a terminal, where there is one here; a shell has it anyway")
	fl.BoolP("interactive", "i", true, "CMD has our standard input: it always has, hands type it")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print none of Vitrine's own lines but errors")
	_ = cmd.RegisterFlagCompletionFunc("cpu", completeCPU)
	return cmd
}

// completeCPU completes --cpu: a model, or behind a comma a flag with its sign.
func completeCPU(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	i := strings.LastIndexByte(typed, ',')
	if i < 0 {
		return vitrine.CPUModels(), cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	signs := "+-"
	if rest := typed[i+1:]; rest != "" {
		signs = rest[:1]
	}
	var all []string
	for _, sign := range signs {
		for _, flag := range vitrine.CPUFlags() {
			all = append(all, typed[:i+1]+string(sign)+flag)
		}
	}
	return all, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// parse turns flags into a Config.
func (f *runFlags) parse(args []string) error {
	c := &f.config
	c.Name, c.CPUs, c.Accel, c.KernelPath, c.Initrd, c.Append = f.name, f.cpus, f.accel, f.kernel, f.initrd, f.appendLine
	c.ModulesDir, c.Root, c.Command = f.modules, f.root, args
	var err error
	if c.Memory, err = vitrine.ParseSize(f.memory); err != nil {
		return fmt.Errorf("--memory: %w", err)
	}
	if c.Memory == 0 {
		return fmt.Errorf("--memory %s: give 2M to 1T", f.memory)
	}
	for _, d := range f.disks {
		path, ro := strings.CutSuffix(d, ":ro")
		c.Disks = append(c.Disks, vitrine.Disk{Path: path, ReadOnly: ro})
	}
	for _, p := range f.ports {
		port, err := vitrine.ParsePort(p)
		if err != nil {
			return fmt.Errorf("--port: %w", err)
		}
		c.Ports = append(c.Ports, port)
	}
	for _, v := range f.volumes {
		path, rw := strings.CutSuffix(v, ":rw")
		path = strings.TrimSuffix(path, ":ro")
		if path, err = directory(path); err != nil {
			return fmt.Errorf("--volume: %w", err)
		}
		c.Volumes = append(c.Volumes, vitrine.Volume{Path: path, Writable: rw})
	}
	dir := f.dir
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			return fmt.Errorf("the current directory: %w: give one by --workdir", err)
		}
	}
	if c.Dir, err = directory(dir); err != nil {
		return fmt.Errorf("--workdir: %w", err)
	}
	if f.confine != "on" && f.confine != "off" {
		return fmt.Errorf("--confine %q: give on or off", f.confine)
	}
	c.Confine = f.confine == "on"
	c.Env = environment(f.env)
	if f.remove && !f.detach {
		return errors.New("--rm goes with --detach: without it nothing is kept anyway")
	}
	if f.detach {
		c.Keep, c.LogOutput = !f.remove, true
		c.Idle = len(c.Command) == 0 && c.Initrd == ""
	}
	return nil
}

// directory gives the absolute path of a directory, without symbolic links: it is the same in the guest.
func directory(given string) (string, error) {
	path, err := filepath.Abs(given)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is not there", given)
	}
	if err != nil {
		return "", err
	}
	if fi, err := os.Stat(path); err != nil || !fi.IsDir() {
		return "", fmt.Errorf("%s is not a directory", path)
	}
	return path, nil
}

// passed are the variables that a command in the guest has from its caller. SHELL is for run without a command.
var passed = []string{"PATH", "TERM", "LANG", "SHELL"}

func environment(more []string) []string {
	return named(append(append([]string(nil), passed...), more...))
}

// named gives variables by NAME=VALUE, or by NAME as this process has them.
func named(all []string) []string {
	var env []string
	for _, e := range all {
		if name, _, given := strings.Cut(e, "="); given {
			env = append(env, e)
		} else if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// run starts the guest and sees it through.
func run(c *vitrine.Config, quiet bool) error {
	if isDetached() {
		return runDetached(c, quiet)
	}
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	in, out := isTerminal(os.Stdin), isTerminal(os.Stdout)
	c.Terminal = (c.Terminal || len(c.Command) == 0) && in && out
	if c.Terminal {
		c.Rows, c.Cols = terminalSize(os.Stdout)
	}
	log := &progress{quiet: quiet}
	c.Log = log.line

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := watchSignals(cancel)
	defer s.stop()
	m, err := vitrine.Start(ctx, *c)
	if err != nil {
		if status, ok := s.caught(); ok {
			return &exitError{status, nil}
		}
		return err
	}
	if in {
		restore, err := rawFor(c)
		if err != nil {
			cancel()
			m.Wait()
			return err
		}
		defer restore()
		s.atExit(restore)
	}
	log.raw.Store(c.Terminal)
	s.attach(m, c.Terminal)
	status, err := m.Wait()
	log.raw.Store(false)
	if st, ok := s.caught(); ok && (err != nil || status == 0) {
		return &exitError{st, nil}
	}
	if err != nil {
		return &exitError{status, err}
	}
	if status != 0 {
		return &exitError{status, nil}
	}
	return nil
}

// rawFor sets the terminal as the guest needs it: untouched for a command, whose input comes line by line; all keys for a shell; for a serial port
// all keys but those that end Vitrine.
func rawFor(c *vitrine.Config) (func(), error) {
	switch {
	case c.Terminal:
		return setRaw(os.Stdin, false)
	case len(c.Command) == 0 && c.Initrd != "":
		return setRaw(os.Stdin, true)
	}
	return func() {}, nil
}

// tightHeap has the garbage collector come after a third of growth, not after doubling: what lives is the cache of decoded code, of which little dies.
func tightHeap() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(30)
	}
}
