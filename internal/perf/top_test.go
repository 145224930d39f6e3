package perf

import (
	"testing"

	"vitrine.dev/vitrine/internal/guest"
)

func TestIdleSamplesAreNotWork(t *testing.T) {
	top := NewTop("g", &guest.Kernel{Symbols: guest.NewSymbols([]guest.Symbol{
		{Addr: 0xffffffff81000000, Type: 'T', Name: "_text"},
		{Addr: 0xffffffff81000100, Type: 't', Name: "hot"},
		{Addr: 0xffffffff81000200, Type: 'd', Name: "data"},
		{Addr: 0xffffffffc0000000, Type: 't', Name: "driver_fn", Module: "driver"},
	})})
	for range 3 {
		top.Add(Sample{Running: true, RIP: 0xffffffff81000150})
	}
	top.Add(Sample{Running: true, RIP: 0xffffffffc0000010})
	for range 6 {
		top.Add(Sample{})
	}
	top.Lost(2)
	r := top.Report()
	if r.Samples != 4 || r.Idle != 6 || r.Lost != 2 {
		t.Errorf("%d samples, %d idle, %d lost", r.Samples, r.Idle, r.Lost)
	}
	want := []Function{{"hot", "kernel", KernelMode, 0.75}, {"driver_fn", "driver", KernelMode, 0.25}}
	if len(r.Functions) != 2 || r.Functions[0] != want[0] || r.Functions[1] != want[1] {
		t.Errorf("functions %v, want %v", r.Functions, want)
	}
	top.Reset()
	top.Add(Sample{Running: true, RIP: 0xffffffff81000250}) // data is no function
	top.Add(Sample{Running: true, RIP: 0x1000})
	if r := top.Report(); len(r.Functions) != 1 || r.Functions[0].Name != "[unknown]" || r.Functions[0].Share != 1 {
		t.Errorf("functions %v", r.Functions)
	}
}

func TestAnEmptyReportHasNoNulls(t *testing.T) {
	r := NewTop("g", &guest.Kernel{}).Report()
	if r.Functions == nil || r.Processes == nil {
		t.Error("a list is nil: JSON would say null")
	}
}
