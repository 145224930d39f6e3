package fpu

import "vitrine.dev/vitrine/internal/x86/model"

// host is what the host's processor can execute.
var host = model.Host().Decode()
