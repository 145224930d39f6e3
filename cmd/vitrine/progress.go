package main

import (
	"fmt"
	"os"
	"sync/atomic"
)

// progress prints Vitrine's own lines on standard error.
type progress struct {
	quiet bool
	raw   atomic.Bool // the terminal needs its carriage returns told
}

func (p *progress) line(s string) {
	if p.quiet {
		return
	}
	end := "\n"
	if p.raw.Load() {
		end = "\r\n"
	}
	fmt.Fprint(os.Stderr, "vitrine: ", s, end)
}
