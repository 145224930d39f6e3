// Package guesttest boots guests and compares what is read from their memory with what they say themselves: it is all tests.
//
// By default two kernels are booted. VITRINE_TEST_FULL=1 (./dev corpus) boots those of all Debian suites, in eight ways, and prints a table.
package guesttest
