package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/agent/client"
	"vitrine.dev/vitrine/internal/agent/wire"
)

// pair runs a server in this process, as in a guest, and gives the host's end.
func pair(t *testing.T) *client.Client {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	guest, host := os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "host")
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD)
	ended := make(chan error, 1)
	go func() {
		conn := wire.NewConn(guest)
		if _, err := conn.Hello(wire.AbilityUser); err != nil {
			ended <- err
			return
		}
		s := newServer(conn)
		s.setup = func(m *wire.Setup) error {
			if m.Hostname == "bad" {
				return errors.New("no such world")
			}
			return nil
		}
		go s.reap(signals)
		ended <- s.serve()
	}()
	c, err := client.New(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.PowerOff()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		guest.Close()
		c.Close()
		signal.Stop(signals)
		close(signals)
	})
	return c
}

var env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}

func sh(script string) wire.Start {
	return wire.Start{Args: []string{"sh", "-c", script}, Env: env, Dir: "/"}
}

func TestCommandsEndAsInAShell(t *testing.T) {
	dir := t.TempDir()
	script := dir + "/noshebang"
	os.WriteFile(script, []byte("exit 5\n"), 0o755)
	plain := dir + "/plain"
	os.WriteFile(plain, []byte("x"), 0o644)
	orphan := dir + "/orphan"
	os.WriteFile(orphan, []byte("#!/no/such/interpreter\n"), 0o755)
	c := pair(t)
	for _, tt := range []struct {
		name   string
		start  wire.Start
		status int
		text   string // of the failure, where there is one
	}{
		{"true", sh("exit 0"), 0, ""},
		{"a status", sh("exit 42"), 42, ""},
		{"a signal", sh("kill -9 $$"), 137, ""},
		{"not found", wire.Start{Args: []string{"no-such-command"}, Env: env}, 127, "no-such-command: command not found"},
		{"no file", wire.Start{Args: []string{dir + "/none"}, Env: env}, 127, "no such file"},
		{"not executable", wire.Start{Args: []string{plain}, Env: env}, 126, "permission denied"},
		{"a directory", wire.Start{Args: []string{dir}, Env: env}, 126, "is a directory"},
		{"no shebang", wire.Start{Args: []string{script}, Env: env}, 5, ""},
		{"no interpreter", wire.Start{Args: []string{orphan}, Env: env}, 127, "interpreter"},
		{"no directory", wire.Start{Args: []string{"true"}, Env: env, Dir: "/no/such"}, 125, "working directory /no/such"},
		{"nothing", wire.Start{}, 125, "no command"},
	} {
		p, err := c.Start(client.Command{Start: tt.start})
		if err != nil {
			t.Fatal(err)
		}
		status, err := p.Wait()
		var f *client.Failure
		if errors.As(err, &f) {
			status = f.Status
		}
		if status != tt.status || (err != nil) != (tt.text != "") || err != nil && !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %d, %v; want %d, %q", tt.name, status, err, tt.status, tt.text)
		}
	}
}

func TestStreamsAreApartAndByteExact(t *testing.T) {
	in := bytes.Repeat([]byte("a\x00\xff\r\n\x04"), 1<<18) // 1.5 MiB, many windows
	var out, errs bytes.Buffer
	p, err := pair(t).Start(client.Command{Start: sh("tee /dev/stderr"), Stdin: bytes.NewReader(in), Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); status != 0 || err != nil {
		t.Fatal(status, err)
	}
	if !bytes.Equal(out.Bytes(), in) || !bytes.Equal(errs.Bytes(), in) {
		t.Errorf("%d and %d bytes came back of %d", out.Len(), errs.Len(), len(in))
	}
}

func TestWhatACommandLeavesBehindDoesNotHoldItUp(t *testing.T) {
	var out bytes.Buffer
	p, err := pair(t).Start(client.Command{Start: sh("sleep 60 & echo -n before; echo -n $!"), Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if status, err := p.Wait(); status != 0 || err != nil {
		t.Fatal(status, err)
	}
	pid, ok := strings.CutPrefix(out.String(), "before")
	if !ok || pid == "" {
		t.Errorf("output %q lacks what was written before the end", out.String())
	}
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("waited %v for a background process", d)
	}
	exec.Command("kill", pid).Run()
}

func TestACommandThatDoesNotReadHoldsNoSignalUp(t *testing.T) {
	p, err := pair(t).Start(client.Command{Start: sh("exec sleep 60"), Stdin: zeros{}})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	p.Signal(int(unix.SIGTERM))
	if status, err := p.Wait(); status != 143 || err != nil {
		t.Errorf("got %d, %v; want 143", status, err)
	}
}

func TestAReaderThatHasGoneEndsTheWriter(t *testing.T) {
	p, err := pair(t).Start(client.Command{Start: sh("exec cat /dev/zero"), Stdout: closedPipe{}})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); status != 141 || err != nil {
		t.Errorf("got %d, %v; want 141", status, err)
	}
}

func TestATerminalIsOne(t *testing.T) {
	start := sh("stty size; tty >/dev/null && echo yes; read x; echo got $x; exit 3")
	start.Terminal, start.Size = true, wire.Size{Rows: 33, Cols: 99}
	var out bytes.Buffer
	p, err := pair(t).Start(client.Command{Start: start, Stdin: strings.NewReader("word\r"), Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	status, err := p.Wait()
	if status != 3 || err != nil {
		t.Errorf("got %d, %v", status, err)
	}
	for _, want := range []string{"33 99\r\n", "yes\r\n", "got word\r\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %q", out.String(), want)
		}
	}
}

func TestCtrlCOnATerminalInterruptsTheForeground(t *testing.T) {
	start := sh("trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 1; done")
	start.Terminal = true
	r, w := io.Pipe()
	ready := make(chan struct{})
	p, err := pair(t).Start(client.Command{Start: start, Stdin: r, Stdout: writerFunc(func(p []byte) {
		if bytes.Contains(p, []byte("ready")) {
			close(ready)
		}
	})})
	if err != nil {
		t.Fatal(err)
	}
	<-ready
	w.Write([]byte{3})
	if status, err := p.Wait(); status != 9 || err != nil {
		t.Errorf("got %d, %v; want 9", status, err)
	}
	w.Close()
}

func TestSetupIsAnswered(t *testing.T) {
	c := pair(t)
	var f *client.Failure
	if err := c.Setup(context.Background(), wire.Setup{Hostname: "bad"}); !errors.As(err, &f) || f.Text != "no such world" {
		t.Errorf("got %v", err)
	}
	if err := c.Setup(context.Background(), wire.Setup{Hostname: "good"}); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestACommandRunsAsTheUserItIsGiven(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run a command as somebody else")
	}
	c := pair(t)
	for _, tt := range []struct{ user, want string }{
		{"", "0 0 /"},
		{"nobody", "65534 65534 /nonexistent"},
		{"65534:0", "65534 0 /nonexistent"},
		{"12345", "12345 12345 /"},
	} {
		var out bytes.Buffer
		start := sh("echo $(id -u) $(id -g) $HOME")
		start.User = tt.user
		if tt.user != "" && tt.want != "12345 12345 /" {
			start.Env = env[:1] // HOME is the user's where it is not given
		}
		p, err := c.Start(client.Command{Start: start, Stdout: &out})
		if err != nil {
			t.Fatal(err)
		}
		if status, err := p.Wait(); status != 0 || err != nil || strings.TrimSpace(out.String()) != tt.want {
			t.Errorf("%q: got %d, %v, %q; want %q", tt.user, status, err, out.String(), tt.want)
		}
	}
	start := sh("true")
	start.User = "no-such-user"
	p, err := c.Start(client.Command{Start: start})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err == nil || !strings.Contains(err.Error(), "no user no-such-user") {
		t.Errorf("an unknown user: %v", err)
	}
}

func TestAClientThatGoesHangsItsCommandsUp(t *testing.T) {
	c := pair(t)
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- c.Serve(far, nil) }()
	peer, err := client.New(near)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	p, err := peer.Start(client.Command{Start: sh("echo here; exit 6"), Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if status, err := p.Wait(); status != 6 || err != nil || out.String() != "here\n" {
		t.Errorf("got %d, %v, %q", status, err, out.String())
	}
	marker := t.TempDir() + "/hung-up"
	ready := make(chan struct{})
	if _, err = peer.Start(client.Command{
		// What it writes must not hold it up, although nobody reads it any more.
		Start: sh("trap 'head -c 3000000 /dev/zero; echo >" + marker + "; exit' HUP; echo ready; while :; do sleep 0.05; done"),
		Stdout: writerFunc(func([]byte) {
			select {
			case ready <- struct{}{}:
			default:
			}
		}),
	}); err != nil {
		t.Fatal(err)
	}
	<-ready
	peer.Close()
	<-served
	for range 1000 {
		if _, err := os.Stat(marker); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the command was not hung up")
}

func TestManyCommandsAtOnce(t *testing.T) {
	c := pair(t)
	var all []*client.Process
	for range 50 {
		p, err := c.Start(client.Command{Start: sh("exit 7")})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	for i, p := range all {
		if status, err := p.Wait(); status != 7 || err != nil {
			t.Errorf("command %d: %d, %v", i, status, err)
		}
	}
}

// The guest's init starts on a slow processor. What it imports, it initialises, and the reader of its code must know.
func TestImportsAreFew(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{else}}std {{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{
		"vitrine.dev/vitrine/internal/agent": true, "vitrine.dev/vitrine/internal/agent/wire": true, "golang.org/x/sys/unix": true,
	}
	for line := range strings.Lines(string(out)) {
		pkg, std := strings.CutPrefix(strings.TrimSpace(line), "std ")
		if !std && !allowed[pkg] {
			t.Errorf("imports %s", pkg)
		}
		for _, heavy := range []string{"fmt", "net", "net/http", "encoding/json", "regexp", "os/exec", "text/template", "crypto/tls", "log"} {
			if pkg == heavy {
				t.Errorf("imports %s", pkg)
			}
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) { return 0, unix.EPIPE }

type writerFunc func(p []byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }
