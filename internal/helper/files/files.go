// Package files is the helper that opens and reads the host's files on a guest's behalf.
//
// The guest's process takes requests from the guest's queues and sends on where they are in the guest's memory, which the helper has mapped: it reads
// the request and writes the answer there itself, and says how long that is. A packet goes each way, and no bytes of files.
package files

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/hostfs"
)

// Kind is the helper's, for [helper.Run].
const Kind = "files"

// setup is what the helper is told first. With it come the guest's memory, and two sockets for each export: on the first, one thread takes requests one
// by one, and all answers go back; on the second, others take those that come while it is at work.
type setup struct {
	Exports []hostfs.Export
	User    int // what it becomes where it is root and all exports have the rule Nobody
}

// Start starts a helper that serves exports of a guest whose memory is the memfd ram. User is the user that it becomes where it is root and needs no
// right of root's. The shares, in the order of exports, can be used once the process is ready.
func Start(o helper.Options, ram, user int, exports []hostfs.Export) (*helper.Process, []*Share, error) {
	fds := []int{ram}
	var shares []*Share
	fail := func(err error) (*helper.Process, []*Share, error) {
		for _, s := range shares {
			s.Close()
		}
		return nil, nil, err
	}
	for range exports {
		var ours [2]int
		for i := range ours {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return fail(fmt.Errorf("helper files: %w", err))
			}
			defer unix.Close(pair[1])
			ours[i], fds = pair[0], append(fds, pair[1])
		}
		shares = append(shares, newShare(ours[0], ours[1]))
	}
	p, err := helper.Start(Kind, o, setup{exports, user}, fds...)
	if err != nil {
		return fail(err)
	}
	return p, shares, nil
}

var errSetup = errors.New("helper files: setup with a wrong number of descriptors")
