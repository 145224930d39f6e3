package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vitrine.dev/vitrine/internal/guest"
)

type symbolsFlags struct{ json, kallsyms bool }

// A symbolLine is a symbol as JSON.
type symbolLine struct {
	Address string `json:"address"` // hexadecimal: JSON's numbers lose the last bits
	Type    string `json:"type"`
	Name    string `json:"name"`
	Module  string `json:"module"`
	Offset  uint64 `json:"offset"` // of the address that was asked for
}

func symbolsVerb() *cobra.Command {
	var f symbolsFlags
	cmd := lookVerb("symbols [flags] GUEST [NAME or PATTERN or ADDRESS]", "looks kernel symbols up, from the guest's memory",
		"Prints the symbols of the guest's kernel and modules: all, those of a name or a shell pattern ('tcp_*'), or the one that\n"+
			"holds an address (0xffffffff81000000). Nothing in the guest hides them (kptr_restrict).", 1,
		func(_ context.Context, v *view, args []string, out io.Writer) error {
			if f.kallsyms {
				if len(args) > 0 {
					return errors.New("--kallsyms prints all: leave the name out")
				}
				return writeSymbols(out, v.Kallsyms())
			}
			found, err := findSymbols(v, args)
			if err != nil {
				return err
			}
			if !f.json {
				return writeFound(out, found)
			}
			lines := make([]symbolLine, 0, len(found))
			for _, s := range found {
				lines = append(lines, symbolLine{fmt.Sprintf("%#x", s.Addr), string(s.Type), s.Name, s.Module, s.offset})
			}
			return indented(out, lines)
		})
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	cmd.Flags().BoolVar(&f.kallsyms, "kallsyms", false, "print what /proc/kallsyms shows to root in the guest with kptr_restrict=0")
	return cmd
}

// A found is a symbol, and how far behind its start what was asked for is.
type found struct {
	guest.Symbol
	offset uint64
}

func findSymbols(v *view, args []string) ([]found, error) {
	var all []found
	if len(args) == 1 {
		if addr, err := strconv.ParseUint(strings.TrimPrefix(args[0], "0x"), 16, 64); err == nil && strings.HasPrefix(args[0], "0x") {
			s, ok := v.Symbols.At(addr)
			if !ok {
				return nil, fmt.Errorf("no symbol holds %#x", addr)
			}
			return []found{{s, addr - s.Addr}}, nil
		}
		if _, err := path.Match(args[0], ""); err != nil {
			return nil, fmt.Errorf("%q: %w", args[0], err)
		}
	}
	for s := range v.Symbols.All() {
		if len(args) == 1 && s.Name != args[0] {
			if ok, _ := path.Match(args[0], s.Name); !ok {
				continue
			}
		}
		all = append(all, found{s, 0})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no symbol %q", args[0])
	}
	return all, nil
}

func writeFound(out io.Writer, all []found) error {
	w := bufio.NewWriter(out)
	for _, f := range all {
		fmt.Fprintf(w, "%016x %c %s", f.Addr, f.Type, f.Name)
		if f.offset != 0 {
			fmt.Fprintf(w, "+%#x", f.offset)
		}
		if f.Module != "" {
			fmt.Fprintf(w, " [%s]", f.Module)
		}
		w.WriteByte('\n')
	}
	return w.Flush()
}

// writeSymbols prints symbols as kernel/kallsyms.c does.
func writeSymbols(out io.Writer, all []guest.Symbol) error {
	w := bufio.NewWriterSize(out, 64<<10)
	for _, s := range all {
		fmt.Fprintf(w, "%016x %c %s", s.Addr, s.Type, s.Name)
		if s.Module != "" {
			fmt.Fprintf(w, "\t[%s]", s.Module)
		}
		w.WriteByte('\n')
	}
	return w.Flush()
}
