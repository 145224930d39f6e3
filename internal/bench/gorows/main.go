// Gorows is the Go programs of `./dev bench cpu`: each does one thing of the standard library and prints a value that says what it computed.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strings"
)

var rows = map[string]func() any{
	"json": jsonRow, "regexp": regexpRow, "maps": maps, "gc": gc, "channels": channels, "gzip": gzipRow, "http": httpRow,
}

func main() {
	if len(os.Args) != 2 || rows[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: gorows json|regexp|maps|gc|channels|gzip|http")
		os.Exit(2)
	}
	fmt.Println(os.Args[1], rows[os.Args[1]]())
}

// words is n words, the same everywhere.
func words(n int) []string {
	out, s := make([]string, n), uint64(88172645463325252)
	for i := range out {
		s ^= s << 13
		s ^= s >> 7
		s ^= s << 17
		out[i] = fmt.Sprintf("%s%d", "vitrineglass"[s%8:], s>>40%500)
	}
	return out
}

func jsonRow() any {
	type item struct {
		Name   string             `json:"name"`
		Values []float64          `json:"values"`
		Tags   map[string]int     `json:"tags"`
		Nested map[string][]int64 `json:"nested"`
	}
	var items []item
	for i, w := range words(300) {
		items = append(items, item{w, []float64{float64(i) / 3, 1e9 / float64(i+1)}, map[string]int{w: i, "n": 2}, map[string][]int64{"a": {1, int64(i)}}})
	}
	h := fnv.New64a()
	for range 4 {
		b, err := json.Marshal(items)
		if err != nil {
			return err
		}
		h.Write(b)
		if err := json.Unmarshal(b, &items); err != nil {
			return err
		}
	}
	return h.Sum64()
}

func regexpRow() any {
	text := strings.Join(words(6000), " ")
	n := len(regexp.MustCompile(`(vit|tri|gla)[a-z]*[0-9]{2}7\b`).FindAllStringIndex(text, -1))
	return n + len(regexp.MustCompile(`([a-z]+)(\d+)`).ReplaceAllString(text, "$2-$1"))
}

func maps() any {
	count, sum := map[string]int{}, 0
	for range 4 {
		for i, w := range words(8000) {
			count[w] += i
		}
	}
	for k, v := range count {
		sum += len(k) * v
	}
	return sum
}

type node struct{ left, right *node }

func tree(depth int) *node {
	if depth == 0 {
		return &node{}
	}
	return &node{tree(depth - 1), tree(depth - 1)}
}

func (n *node) count() int {
	if n.left == nil {
		return 1
	}
	return 1 + n.left.count() + n.right.count()
}

func gc() any {
	long, sum := tree(14), 0
	for range 20 {
		sum += tree(11).count()
	}
	runtime.GC()
	return sum + long.count()
}

func channels() any {
	const workers, jobs = 4, 10_000
	in, out := make(chan int), make(chan int, 16)
	for range workers {
		go func() {
			for v := range in {
				out <- v * v
			}
		}()
	}
	go func() {
		for i := range jobs {
			in <- i
		}
		close(in)
	}()
	sum := 0
	for range jobs {
		sum += <-out
	}
	return sum
}

func gzipRow() any {
	text := []byte(strings.Join(words(30000), " "))
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write(text)
	w.Close()
	r, err := gzip.NewReader(&packed)
	if err != nil {
		return err
	}
	h := sha256.New()
	if n, err := io.Copy(h, r); err != nil || n != int64(len(text)) {
		return fmt.Sprint(n, err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// httpRow is a server and its client, over a pipe of the process: the guest needs no network.
func httpRow() any {
	conns := make(chan net.Conn)
	l := listener(conns)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %d", r.URL.Path, len(b))
	}))
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		conns <- theirs
		return ours, nil
	}}}
	sum := 0
	for i := range 300 {
		r, err := client.Post(fmt.Sprintf("http://guest/%d", i), "text/plain", strings.NewReader(strings.Repeat("x", i)))
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			return err
		}
		sum += len(b) + int(b[1])
	}
	return sum
}

type listener chan net.Conn

func (l listener) Accept() (net.Conn, error) { return <-l, nil }
func (l listener) Close() error              { return nil }
func (l listener) Addr() net.Addr            { return &net.UnixAddr{Name: "pipe"} }
