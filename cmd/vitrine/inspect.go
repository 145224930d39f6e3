package main

import (
	"encoding/json"
	"io"

	"vitrine.dev/vitrine/internal/control"
	"vitrine.dev/vitrine/internal/host"
)

// inspect gives what a guest's process says of it, or what is kept of one that has ended.
func inspect(name string) (any, error) {
	e, err := host.FindAny(name)
	if err != nil {
		return nil, err
	}
	if e.State.State == host.Ended {
		return struct {
			host.State
			Directory string `json:"directory"`
		}{e.State, e.Dir()}, nil
	}
	c, err := control.Dial(e)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	text, err := c.Inspect()
	return json.RawMessage(text), err
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
