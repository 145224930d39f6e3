package transfer

import (
	"os"
)

// Program is how a guest's agent starts its own program for Main: the first process's, wherever its file is.
const Program = "/proc/1/exe"

// Verbs of Main.
const (
	VerbSend    = "transfer-send"    // PATH goes to standard output
	VerbReceive = "transfer-receive" // standard input goes to PATH
)

// Main does what a command line of Program asks for, and ends the process; it returns at once where the line is another.
func Main(args []string) {
	if len(args) != 3 || args[0] != Program {
		return
	}
	var err error
	switch args[1] {
	case VerbSend:
		err = Send(os.Stdout, args[2]) // its reason is in the stream
	case VerbReceive:
		if err = Receive(os.Stdin, args[2]); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
		}
	default:
		return
	}
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}
