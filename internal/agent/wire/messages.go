package wire

// A message's field numbers are for ever: a field that goes leaves its number unused.

// Hello is the first message of either side.
type Hello struct {
	Version   uint64
	Abilities []string // names of what the sender can do beyond version 1
}

// Marshal encodes the message.
func (h Hello) Marshal() []byte {
	b := appendUint(nil, 1, h.Version)
	return appendStrings(b, 2, h.Abilities)
}

// Unmarshal decodes the message; h must be zero.
func (h *Hello) Unmarshal(p []byte) error {
	return eachField(p, func(field int, v uint64, s []byte) error {
		switch field {
		case 1:
			h.Version = v
		case 2:
			h.Abilities = append(h.Abilities, string(s))
		}
		return nil
	})
}

// Setup makes the guest's world: its name and its file tree.
type Setup struct {
	Hostname string
	RootTag  string   // the virtio file system that is the read-only lower half of /; empty: the initramfs stays the root
	Tmpfs    []string // directories that get a tmpfs of their own
	Shares   []Share
	Network  *Network // nil: there is none
}

// Network is how the guest's network card is set up.
type Network struct {
	MAC              string   // of the card, as Linux writes it
	Address, Gateway []byte   // IPv4
	Bits             uint64   // of the address that are the network's
	DNS              []string // name servers
	Hosts            []string // lines for /etc/hosts
}

func (m *Network) marshal() []byte {
	b := appendString(nil, 1, m.MAC)
	b = appendString(b, 2, m.Address)
	b = appendUint(b, 3, m.Bits)
	b = appendString(b, 4, m.Gateway)
	b = appendStrings(b, 5, m.DNS)
	return appendStrings(b, 6, m.Hosts)
}

func (m *Network) unmarshal(p []byte) error {
	return eachField(p, func(field int, v uint64, s []byte) error {
		switch field {
		case 1:
			m.MAC = string(s)
		case 2:
			m.Address = append([]byte(nil), s...)
		case 3:
			m.Bits = v
		case 4:
			m.Gateway = append([]byte(nil), s...)
		case 5:
			m.DNS = append(m.DNS, string(s))
		case 6:
			m.Hosts = append(m.Hosts, string(s))
		}
		return nil
	})
}

// A Share is a directory of a virtio file system, shown at its place over everything else.
type Share struct {
	Tag      string // empty: of the root's file system
	Source   string // path inside of it
	Target   string // absolute path in the guest
	Writable bool
}

// Marshal encodes the message.
func (m Setup) Marshal() []byte {
	b := appendString(nil, 1, m.Hostname)
	b = appendString(b, 2, m.RootTag)
	b = appendStrings(b, 3, m.Tmpfs)
	for _, s := range m.Shares {
		e := appendString(nil, 1, s.Tag)
		e = appendString(e, 2, s.Source)
		e = appendString(e, 3, s.Target)
		b = appendString(b, 4, appendBool(e, 4, s.Writable))
	}
	if m.Network != nil {
		b = appendString(b, 5, m.Network.marshal())
	}
	return b
}

// Unmarshal decodes the message; m must be zero.
func (m *Setup) Unmarshal(p []byte) error {
	return eachField(p, func(field int, _ uint64, s []byte) error {
		switch field {
		case 1:
			m.Hostname = string(s)
		case 2:
			m.RootTag = string(s)
		case 3:
			m.Tmpfs = append(m.Tmpfs, string(s))
		case 4:
			var share Share
			if err := share.unmarshal(s); err != nil {
				return err
			}
			m.Shares = append(m.Shares, share)
		case 5:
			m.Network = new(Network)
			return m.Network.unmarshal(s)
		}
		return nil
	})
}

func (m *Share) unmarshal(p []byte) error {
	return eachField(p, func(field int, v uint64, s []byte) error {
		switch field {
		case 1:
			m.Tag = string(s)
		case 2:
			m.Source = string(s)
		case 3:
			m.Target = string(s)
		case 4:
			m.Writable = v != 0
		}
		return nil
	})
}

// Start runs a command.
type Start struct {
	Args     []string // Args[0] is looked up in Env's PATH, unless it has a slash
	Env      []string
	Dir      string // working directory
	Terminal bool   // a pseudo-terminal is its standard input, output and error; all output is Stdout then
	Size     Size   // of the terminal
	NoStdin  bool   // its standard input is /dev/null
	User     string // NAME or number of the guest's user, with :GROUP or without; empty: root. Of agents that can "user"
}

// Size is a terminal's, in characters.
type Size struct{ Rows, Cols uint64 }

// Marshal encodes the message.
func (m Start) Marshal() []byte {
	b := appendStrings(nil, 1, m.Args)
	b = appendStrings(b, 2, m.Env)
	b = appendString(b, 3, m.Dir)
	b = appendBool(b, 4, m.Terminal)
	b = appendString(b, 5, m.Size.Marshal())
	b = appendBool(b, 6, m.NoStdin)
	return appendString(b, 7, m.User)
}

// Unmarshal decodes the message; m must be zero.
func (m *Start) Unmarshal(p []byte) error {
	return eachField(p, func(field int, v uint64, s []byte) error {
		switch field {
		case 1:
			m.Args = append(m.Args, string(s))
		case 2:
			m.Env = append(m.Env, string(s))
		case 3:
			m.Dir = string(s)
		case 4:
			m.Terminal = v != 0
		case 5:
			return m.Size.Unmarshal(s)
		case 6:
			m.NoStdin = v != 0
		case 7:
			m.User = string(s)
		}
		return nil
	})
}

// Marshal encodes the message.
func (m Size) Marshal() []byte { return appendUint(appendUint(nil, 1, m.Rows), 2, m.Cols) }

// Unmarshal decodes the message.
func (m *Size) Unmarshal(p []byte) error {
	return eachField(p, func(field int, v uint64, _ []byte) error {
		switch field {
		case 1:
			m.Rows = min(v, 1<<16-1)
		case 2:
			m.Cols = min(v, 1<<16-1)
		}
		return nil
	})
}

// Failed says why something could not be done.
type Failed struct {
	Status uint64 // as a shell has it: 127 not found, 126 not executable, 125 all else
	Text   string
}

// Marshal encodes the message.
func (m Failed) Marshal() []byte { return appendString(appendUint(nil, 1, m.Status), 2, m.Text) }

// Unmarshal decodes the message; m must be zero.
func (m *Failed) Unmarshal(p []byte) error {
	return eachField(p, func(field int, v uint64, s []byte) error {
		switch field {
		case 1:
			m.Status = v
		case 2:
			m.Text = string(s)
		}
		return nil
	})
}

// Credit lets the sender of a kind of data send N bytes more. Each begins with Window.
type Credit struct {
	Of Type // TypeStdin, TypeStdout or TypeStderr
	N  uint64
}

// Marshal encodes the message.
func (m Credit) Marshal() []byte { return appendUint(appendUint(nil, 1, uint64(m.Of)), 2, m.N) }

// Unmarshal decodes the message; m must be zero.
func (m *Credit) Unmarshal(p []byte) error {
	return eachField(p, func(field int, v uint64, _ []byte) error {
		switch field {
		case 1:
			m.Of = Type(min(v, 1<<16-1))
		case 2:
			m.N = min(v, Window)
		}
		return nil
	})
}

// Number is a signal's or a status.
type Number uint64

// Marshal encodes the message.
func (m Number) Marshal() []byte { return appendUint(nil, 1, uint64(m)) }

// Unmarshal decodes the message.
func (m *Number) Unmarshal(p []byte) error {
	return eachField(p, func(field int, v uint64, _ []byte) error {
		if field == 1 {
			*m = Number(v)
		}
		return nil
	})
}

func appendStrings(b []byte, field int, all []string) []byte {
	for _, s := range all {
		b = appendString(b, field, s)
	}
	return b
}
