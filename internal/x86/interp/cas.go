package interp

// cas128 replaces the 16 bytes at p, which is aligned, by new if they are old; else it puts what they are into old.
// The comparison and the write are one step for all other processors.
//
//go:noescape
func cas128(p *uint8, old, new *[2]uint64) bool
