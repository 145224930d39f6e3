package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/guest"
	"vitrine.dev/vitrine/internal/guest/dump"
	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/host/foreign"
)

// A view is a guest's kernel, looked at from outside.
type view struct {
	*guest.Kernel
	name   string
	target guest.Target
	close  func()
}

// look opens the guest that a verb names, or the dump of one.
func look(ctx context.Context, name string) (*view, error) {
	e, err := host.Find(name)
	if isDump(name, err) {
		return lookAtDump(name)
	}
	if err != nil {
		return nil, err
	}
	return lookAt(ctx, e)
}

// lookAt opens a guest that runs, ours or another VMM's.
func lookAt(ctx context.Context, e *host.Entry) (*view, error) {
	if g := e.Foreign(); g != nil {
		t, err := foreign.Open(*g)
		if err != nil {
			return nil, err
		}
		v := &view{name: e.Name, target: t, close: func() { t.Close() }}
		v.Kernel, err = openKernel(ctx, t.Kernel)
		return v.orClosed(err)
	}
	c, err := control.Dial(e)
	if err != nil {
		return nil, err
	}
	target, err := c.Target()
	if err != nil {
		c.Close()
		return nil, err
	}
	v := &view{name: e.Name, target: target, close: func() { target.Close(); c.Close() }}
	v.Kernel, err = openKernel(ctx, func(context.Context) (*guest.Kernel, error) { return guest.DefaultCache().Open(target) })
	return v.orClosed(err)
}

// orClosed gives v, or closes it where there was an error.
func (v *view) orClosed(err error) (*view, error) {
	if err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

// isDump tells whether a name is a file's: err is why no guest has it.
func isDump(name string, err error) bool {
	if strings.Contains(name, "/") {
		return true
	}
	st, notThere := os.Stat(name)
	return err != nil && notThere == nil && st.Mode().IsRegular()
}

func lookAtDump(path string) (*view, error) {
	d, err := dump.Open(path)
	if err != nil {
		return nil, err
	}
	k, err := guest.DefaultCache().Open(d)
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &view{Kernel: k, name: filepath.Base(path), target: d, close: func() { d.Close() }}, nil
}

// lookVerb makes a verb that looks into one guest: fn prints what it sees. more says how many arguments may follow the guest.
func lookVerb(use, short, long string, more int, fn func(ctx context.Context, v *view, args []string, out io.Writer) error) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	return &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 1+more {
				return fmt.Errorf("%s: which guest? See vitrine ls", verb)
			}
			return nil
		},
		ValidArgsFunction: anyNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
			defer stop()
			v, err := look(ctx, args[0])
			if err == nil {
				defer v.close()
				err = fn(ctx, v, args[1:], cmd.OutOrStdout())
			}
			if err != nil {
				return fmt.Errorf("%s: %w", verb, err)
			}
			return nil
		},
	}
}

// indented prints v as JSON.
func indented(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// A column is a heading and a row's cell under it.
type column[T any] struct {
	name  string
	right bool // numbers
	cell  func(T) string
}

// writeColumns prints rows under their headings. On a terminal, lines end at its edge.
func writeColumns[T any](out io.Writer, columns []column[T], rows []T) error {
	cells := make([][]string, 0, len(rows)+1)
	head := make([]string, 0, len(columns))
	for _, c := range columns {
		head = append(head, c.name)
	}
	cells = append(cells, head)
	for _, r := range rows {
		line := make([]string, 0, len(columns))
		for _, c := range columns {
			line = append(line, c.cell(r))
		}
		cells = append(cells, line)
	}
	widths := make([]int, len(columns))
	for _, line := range cells {
		for i, c := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	edge := 0
	if f, ok := out.(*os.File); ok {
		_, edge = terminalSize(f)
	}
	var b bytes.Buffer
	for _, line := range cells {
		start := b.Len()
		for i, c := range line {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			switch {
			case columns[i].right:
				b.WriteString(pad + c)
			case i == len(line)-1:
				b.WriteString(c)
			default:
				b.WriteString(c + pad)
			}
			if i < len(line)-1 {
				b.WriteString("  ")
			}
		}
		if text := []rune(b.String()[start:]); edge > 0 && len(text) > edge {
			b.Truncate(start)
			b.WriteString(string(text[:edge]))
		}
		b.WriteByte('\n')
	}
	_, err := b.WriteTo(out)
	return err
}
