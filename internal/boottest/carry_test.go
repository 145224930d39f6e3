package boottest

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"vitrine.dev/vitrine/internal/machine"
	"vitrine.dev/vitrine/internal/mem"
)

// carriedVar makes this program the process that a guest goes on in: what it is and its memory come on standard input, its console goes to standard output,
// and how it ended to descriptor 3.
const carriedVar = "VITRINE_TEST_CARRIED"

// A parcel is a guest on its way; its pages follow.
type parcel struct {
	CPUs  int
	MiB   uint64
	State []byte
}

// A page of memory that is not zero; the last one has no bytes.
type page struct {
	Addr mem.Addr
	Data []byte
}

// goOnElsewhere has a guest go on in a new process.
func (g guest) goOnElsewhere(ctx context.Context, state []byte, ram *mem.Memory, console io.Writer) (machine.Exit, error) {
	var exit machine.Exit
	c := exec.CommandContext(ctx, os.Args[0])
	c.Env = append(os.Environ(), carriedVar+"="+g.backend.Name())
	in, err := c.StdinPipe()
	if err != nil {
		return exit, err
	}
	end, theirs, err := os.Pipe()
	if err != nil {
		return exit, err
	}
	defer end.Close()
	var complaint bytes.Buffer
	c.Stdout, c.Stderr, c.ExtraFiles = console, &complaint, []*os.File{theirs}
	err = c.Start()
	theirs.Close()
	if err != nil {
		return exit, err
	}
	sent := make(chan error, 1)
	go func() {
		sent <- send(in, parcel{g.cpus, g.mib, state}, ram)
		in.Close()
	}()
	decoded := gob.NewDecoder(end).Decode(&exit)
	if err := errors.Join(<-sent, c.Wait(), decoded); err != nil {
		return exit, fmt.Errorf("the new process: %w: %s", err, complaint.Bytes())
	}
	return exit, nil
}

func send(w io.Writer, p parcel, ram *mem.Memory) error {
	enc := gob.NewEncoder(w)
	if err := enc.Encode(p); err != nil {
		return err
	}
	zero := make([]byte, mem.PageSize)
	for _, r := range ram.Regions() {
		for a := r.Base; a < r.Base+mem.Addr(r.Size); a += mem.PageSize {
			data, err := ram.Slice(a, mem.PageSize)
			if err != nil {
				return err
			}
			if bytes.Equal(data, zero) {
				continue
			}
			if err := enc.Encode(page{a, data}); err != nil {
				return err
			}
		}
	}
	return enc.Encode(page{})
}

// carried is the new process.
func carried() int {
	if err := receive(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func receive() error {
	dec := gob.NewDecoder(os.Stdin)
	var p parcel
	if err := dec.Decode(&p); err != nil {
		return err
	}
	ram, err := mem.New(p.MiB << 20)
	if err != nil {
		return err
	}
	defer ram.Close()
	for {
		var pg page
		if err := dec.Decode(&pg); err != nil {
			return err
		}
		if pg.Data == nil {
			break
		}
		if err := ram.WriteAt(pg.Data, pg.Addr); err != nil {
			return err
		}
	}
	g := guest{cpus: p.CPUs, mib: p.MiB}
	for _, b := range backends() {
		if b.Name() == os.Getenv(carriedVar) {
			g.backend = b
		}
	}
	m, err := g.goOn(gob.NewDecoder(bytes.NewReader(p.State)), ram, os.Stdout)
	if err != nil {
		return err
	}
	defer m.Close()
	exit, err := m.Run(context.Background(), nil)
	if err != nil {
		return err
	}
	return gob.NewEncoder(os.NewFile(3, "exit")).Encode(exit)
}
