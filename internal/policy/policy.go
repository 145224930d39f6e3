// Package policy holds what the project promises of its own source: who imports whom, and that every export is documented.
// It is all tests.
package policy
