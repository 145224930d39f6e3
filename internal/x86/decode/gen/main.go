// Command gen makes ops.go and tables.go of package decode from table.txt.
package main

import (
	"flag"
	"log"
	"os"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("gen: ")
	table := flag.String("table", "table.txt", "the instruction table")
	flag.Parse()
	src, err := os.ReadFile(*table)
	if err != nil {
		log.Fatal(err)
	}
	rows, err := parse(string(src))
	if err != nil {
		log.Fatal(err)
	}
	for name, make := range map[string]func([]row) ([]byte, error){"ops.go": ops, "tables.go": tables} {
		out, err := make(rows)
		if err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(name, out, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
