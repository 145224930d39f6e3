package jit

import "golang.org/x/sys/cpu"

// hostFeatures is what this processor has of what translated code may use on its own account.
type hostFeatures struct{ bmi2, avx bool }

func host() hostFeatures { return hostFeatures{bmi2: cpu.X86.HasBMI2, avx: cpu.X86.HasAVX} }
