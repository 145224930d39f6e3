// Summary reads the output of `go test -json` and prints the failures, the skips, each package's time, and one closing line.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
)

// event is a line of test2json's output.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

type key struct{ pkg, test string }

func main() {
	passed, failed, err := summarise(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

func summarise(r io.Reader, w io.Writer) (passed, failed int, err error) {
	output := map[key][]string{}
	var skipped int
	type pkg struct {
		name    string
		seconds float64
	}
	var pkgs []pkg
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if json.Unmarshal(in.Bytes(), &e) != nil {
			fmt.Fprintln(w, in.Text())
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "output":
			if len(output[k]) < 200 {
				output[k] = append(output[k], e.Output)
			}
		case "pass", "fail", "skip":
			switch {
			case e.Test == "" && e.Action == "fail":
				failed++
				fmt.Fprintf(w, "FAIL %s\n", e.Package)
				print(w, output[k])
			case e.Test == "":
				pkgs = append(pkgs, pkg{e.Package, e.Elapsed})
			case e.Action == "fail":
				failed++
				fmt.Fprintf(w, "FAIL %s %s\n", e.Package, e.Test)
				print(w, output[k])
			case e.Action == "skip":
				skipped++
				fmt.Fprintf(w, "SKIP %s %s\n", e.Package, e.Test)
				print(w, output[k])
			default:
				passed++
			}
			delete(output, k)
		}
	}
	sort.Slice(pkgs, func(i, j int) bool { return pkgs[i].seconds > pkgs[j].seconds })
	for _, p := range pkgs {
		if p.seconds >= 1 {
			fmt.Fprintf(w, "%7.1f s  %s\n", p.seconds, p.name)
		}
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return passed, failed, in.Err()
}

func print(w io.Writer, lines []string) {
	for _, l := range lines {
		fmt.Fprint(w, "    ", l)
	}
}
