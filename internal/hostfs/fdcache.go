package hostfs

import (
	"container/list"
	"sync"

	"golang.org/x/sys/unix"
)

// A use is what a descriptor is for.
type use uint8

const (
	forNames   use = iota // looking up names in a directory
	forReading            // a file's bytes, a directory's names
	forWriting
)

// An fdKey names a descriptor: a node's, for a use.
type fdKey struct {
	n *node
	use
}

// An openFile is a descriptor in use.
type openFile struct {
	fd   int
	key  fdKey
	refs int
	gone bool // not in the cache any more: the last user closes it
	elem *list.Element
	all  *fdCache
	// dirMu lets one reader of a directory seek and read at a time.
	dirMu sync.Mutex
}

// fdCache keeps the descriptors that were used last, at most cachedFDs and those in use. Its zero value is empty.
type fdCache struct {
	mu    sync.Mutex
	files map[fdKey]*openFile
	order list.List // of *openFile, the last used in front
}

// get gives the descriptor of key, opening it if it is not there. The caller must release it.
func (c *fdCache) get(key fdKey, open func() (int, error)) (*openFile, error) {
	c.mu.Lock()
	if f := c.files[key]; f != nil {
		f.refs++
		c.order.MoveToFront(f.elem)
		c.mu.Unlock()
		return f, nil
	}
	c.mu.Unlock()
	fd, err := open()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[key]; f != nil { // somebody else was faster
		unix.Close(fd)
		f.refs++
		return f, nil
	}
	if c.files == nil {
		c.files = map[fdKey]*openFile{}
	}
	f := &openFile{fd: fd, key: key, refs: 1, all: c}
	f.elem = c.order.PushFront(f)
	c.files[key] = f
	for len(c.files) > cachedFDs {
		c.remove(c.order.Back().Value.(*openFile))
	}
	return f, nil
}

// remove takes f out of the cache. c.mu is held.
func (c *fdCache) remove(f *openFile) {
	delete(c.files, f.key)
	c.order.Remove(f.elem)
	f.gone = true
	if f.refs == 0 {
		unix.Close(f.fd)
	}
}

// release gives f back; it must not be used afterwards.
func (f *openFile) release() {
	if f.all == nil {
		return // the root's, which stays
	}
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	f.refs--
	if f.gone && f.refs == 0 {
		unix.Close(f.fd)
	}
}

// drop takes n's descriptors out.
func (c *fdCache) drop(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range []use{forNames, forReading, forWriting} {
		if f := c.files[fdKey{n, u}]; f != nil {
			c.remove(f)
		}
	}
}

func (c *fdCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		c.remove(f)
	}
}
