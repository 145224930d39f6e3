// Package guesttest boots guests and compares what is read from their memory with what they say themselves: it is all tests.
//
// By default one kernel is booted. VITRINE_TEST_FULL=1 boots those of all Debian suites.
package guesttest
