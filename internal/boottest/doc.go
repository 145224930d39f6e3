// Package boottest boots real kernels on every backend and sees what they say: it is all tests.
//
// The guest's first process is the program in checkinit, which looks at its world, computes what the host computes too, and
// ends the machine in the way it was asked to.
//
// By default two kernels are booted, each a few times. VITRINE_TEST_FULL=1, or -full behind -args, boots all kernels in all ways (./dev test-kernels).
// A test binary made by go test -c runs elsewhere: VITRINE_TEST_KERNELS gives the suites' bzImages as SUITE=PATH, parted by blanks, and
// VITRINE_TEST_INIT checkinit's executable, where there is no go command to build it. VITRINE_TEST_BACKEND (soft, kvm) names the one backend to run on,
// VITRINE_TEST_NOT the checks to leave out, as commas part them, on a processor that is itself not right, VITRINE_TEST_PATIENCE by how much
// longer guests may take, VITRINE_TEST_OWNCHIPS=1 keeps interrupt controllers out of the kernel.
package boottest
