package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"vitrine.dev/vitrine/internal/guest"

	"github.com/spf13/cobra"
)

type socketsFlags struct {
	json, listening bool
	tcp, udp, unix  bool
}

func socketsVerb() *cobra.Command {
	var f socketsFlags
	cmd := lookVerb("sockets [flags] GUEST [PID]", "lists the sockets of the guest's processes, from its memory",
		"Lists the sockets that the guest's processes have open, of every network namespace, as ss(8) in the guest would: the state, what waits to be\n"+
			"read and to be confirmed (of one that listens: connections that wait, and how many may), addresses, and whose they are.", 1,
		func(_ context.Context, v *view, args []string, out io.Writer) error {
			all, err := v.Sockets()
			if err != nil {
				return err
			}
			if len(args) > 0 {
				tasks, err := v.Processes(true)
				if err == nil {
					tasks, err = only(tasks, args[0])
				}
				if err != nil {
					return err
				}
				all = slices.DeleteFunc(all, func(s guest.Socket) bool {
					return !slices.ContainsFunc(s.Holders, func(h guest.Holder) bool { return h.PID == tasks[0].TGID })
				})
			}
			all = slices.DeleteFunc(all, func(s guest.Socket) bool { return !f.keep(s) })
			if f.json {
				return indented(out, append([]guest.Socket{}, all...))
			}
			return writeColumns(out, socketColumns, all)
		})
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&f.listening, "listening", "l", false, "only those that wait for connections, or for packets of anyone")
	cmd.Flags().BoolVarP(&f.tcp, "tcp", "t", false, "only TCP's")
	cmd.Flags().BoolVarP(&f.udp, "udp", "u", false, "only UDP's")
	cmd.Flags().BoolVarP(&f.unix, "unix", "x", false, "only those within the guest")
	return cmd
}

// keep tells whether a socket was asked for.
func (f *socketsFlags) keep(s guest.Socket) bool {
	if f.listening && s.State != "LISTEN" && (s.State != "UNCONN" || s.Local == "*") {
		return false
	}
	if !f.tcp && !f.udp && !f.unix {
		return true
	}
	switch strings.TrimSuffix(s.Protocol, "6") {
	case "tcp", "mptcp":
		return f.tcp
	case "udp", "udplite":
		return f.udp
	case "unix":
		return f.unix
	}
	return false
}

var socketColumns = []column[guest.Socket]{
	{"NETID", false, func(s guest.Socket) string { return s.Protocol }},
	{"STATE", false, func(s guest.Socket) string { return s.State }},
	{"RECV-Q", true, func(s guest.Socket) string { return strconv.FormatUint(s.Received, 10) }},
	{"SEND-Q", true, func(s guest.Socket) string { return strconv.FormatUint(s.Unsent, 10) }},
	{"LOCAL", false, func(s guest.Socket) string { return s.Local }},
	{"PEER", false, peerOf},
	{"NETNS", true, func(s guest.Socket) string { return inode(s.Namespace) }},
	{"INODE", true, func(s guest.Socket) string { return strconv.FormatUint(s.Inode, 10) }},
	{"PROCESSES", false, func(s guest.Socket) string {
		var all []string
		for _, h := range s.Holders {
			all = append(all, fmt.Sprintf("%s(%d,fd=%d)", h.Comm, h.PID, h.FD))
		}
		return strings.Join(all, " ")
	}},
}

// peerOf is the other end: of a socket without a name its inode.
func peerOf(s guest.Socket) string {
	if s.Remote == "*" && s.Peer != 0 {
		return fmt.Sprintf("[%d]", s.Peer)
	}
	return s.Remote
}

// socketName is how lsof shows a socket.
func socketName(s guest.Socket) string {
	name := s.Protocol + " " + s.Local
	if peer := peerOf(s); peer != "*" && !strings.HasSuffix(peer, ":*") {
		name += "->" + peer
	}
	return name + " (" + s.State + ")"
}
