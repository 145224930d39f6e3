package vitrine_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"vitrine.dev/vitrine"
	"vitrine.dev/vitrine/internal/confine/confinetest"
)

// A program that starts guests is their first process too: its main begins like this.
func TestMain(m *testing.M) {
	vitrine.GuestMain()
	confinetest.Child(map[string]confinetest.Rights{"vm": vitrine.VMRights})
	os.Exit(m.Run())
}

func ExampleStart() {
	m, err := vitrine.Start(context.Background(), vitrine.Config{
		Command: []string{"sh", "-c", "uname -s; exit 42"},
		Env:     []string{"PATH=/usr/bin:/bin"},
		Stdout:  os.Stdout,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	status, err := m.Wait()
	fmt.Println("status", status, err)
	// Output:
	// Linux
	// status 42 <nil>
}

func ExampleMachine_Exec() {
	ctx := context.Background()
	m, err := vitrine.Start(ctx, vitrine.Config{Name: "example-box", Idle: true, Env: []string{"PATH=/usr/bin:/bin"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, args := range [][]string{{"hostname"}, {"id", "-un"}} {
		p, err := m.Exec(ctx, vitrine.Command{Args: args, User: "nobody", Stdout: os.Stdout})
		if err != nil {
			fmt.Println(err)
			break
		}
		if status, err := p.Wait(); status != 0 {
			fmt.Println(status, err)
		}
	}
	m.Stop(ctx)
	fmt.Println(m.Wait())
	// Output:
	// example-box
	// nobody
	// 0 <nil>
}
