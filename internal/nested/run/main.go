// Run runs a command under nested KVM: run [-mem MiB] [-file HOST[:GUEST]]… [-env NAME=VALUE]… COMMAND [ARG…].
// A file without another name is put into /payload, where the command runs. Its status is the command's.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"vitrine.dev/vitrine/internal/kernel"
	"vitrine.dev/vitrine/internal/nested"
)

func main() {
	status, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
	os.Exit(status)
}

func run() (int, error) {
	j := nested.Job{Dir: "/payload", Output: os.Stdout, Env: []string{"PATH=/payload:/bin:/usr/bin", "HOME=/tmp", "TERM=dumb"}}
	flag.IntVar(&j.MiB, "mem", 2048, "`MiB` of memory of the outer guest")
	flag.IntVar(&j.CPUs, "cpus", 1, "processors of the outer guest")
	flag.StringVar(&j.CPU, "cpu", nested.DefaultCPU, "QEMU's -cpu")
	limit := flag.Duration("t", 10*time.Minute, "time limit")
	suite := flag.String("suite", "bookworm", "Debian's `suite` that the outer kernel is from")
	flag.Func("file", "a file or directory of the host, and where in the outer guest", func(s string) error {
		from, to, ok := strings.Cut(s, ":")
		if !ok {
			to = path.Join(j.Dir, path.Base(from))
		}
		files, err := nested.Tree(from, to)
		j.Files = append(j.Files, files...)
		return err
	})
	flag.Func("env", "`NAME=VALUE` for the command", func(s string) error { j.Env = append(j.Env, s); return nil })
	drivers := flag.String("drivers", "", "more modules to load")
	flag.Parse()
	j.Commands, j.Drivers = [][]string{flag.Args()}, strings.Fields(*drivers)
	if flag.NArg() == 0 {
		flag.Usage()
		return 2, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	var err error
	if j.Kernel, err = kernel.FetchSuite(ctx, kernel.SuiteOptions{Suite: *suite}); err != nil {
		return 0, err
	}
	if j.Init, err = nested.BuildInit(ctx); err != nil {
		return 0, err
	}
	return j.Run(ctx)
}
