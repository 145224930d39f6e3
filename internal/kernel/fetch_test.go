package kernel

import (
	"context"
	"os"
	"strings"
	"testing"
)

// full skips what needs the network, unless the environment says that it is to run.
func full(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("VITRINE_TEST_FULL") != "1" {
		t.Skip("VITRINE_TEST_FULL=1 is not set: " + what)
	}
}

func TestSuitesOfDebianAreFetched(t *testing.T) {
	full(t, "it fetches kernels of some 30 MB")
	for _, suite := range []string{"bullseye", "bookworm", "trixie", "bookworm-backports", "trixie-backports"} {
		t.Run(suite, func(t *testing.T) {
			k, err := FetchSuite(context.Background(), SuiteOptions{Suite: suite, Progress: func(l string) { t.Log(l) }})
			if err != nil {
				t.Fatal(err)
			}
			load, missing, err := k.Modules.Closure(append(Required, "virtio_console", "virtio-rng", "virtio_blk"))
			if err != nil || len(missing) > 0 {
				t.Errorf("missing %v, %v", missing, err)
			}
			var names []string
			for _, m := range load {
				names = append(names, m.Name)
			}
			t.Logf("%s %s from %s: %s", k.Path, k.Release, k.Source, strings.Join(names, " "))
		})
	}
}

func TestAbsentSuiteIsNamed(t *testing.T) {
	full(t, "it asks a Debian mirror")
	_, err := FetchSuite(context.Background(), SuiteOptions{Suite: "hamm-and-eggs", CacheDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "hamm-and-eggs") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	t.Log(err)
}

func TestFindFetchesOnAFreshHost(t *testing.T) {
	full(t, "it fetches a kernel of some 30 MB")
	o := Options{CacheDir: t.TempDir(), Progress: func(l string) { t.Log(l) }}
	k, err := Find(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Find(context.Background(), o)
	if err != nil || again.Path != k.Path {
		t.Fatalf("the second time: %+v, %v", again, err)
	}
	t.Log(k.Source, "; then ", again.Source)
}
