package mem

// StartLog begins a log of written pages, as if every page had just been read by [Memory.TakeLog].
func (m *Memory) StartLog() {
	for i := range m.dirty {
		m.dirty[i].Store(0)
	}
	m.logging.Store(true)
	m.retrackAll()
}

// StopLog ends the log.
func (m *Memory) StopLog() { m.logging.Store(false) }

// TakeLog calls fn with each page written since StartLog or the last TakeLog, and begins anew for it.
func (m *Memory) TakeLog(fn func(a Addr)) {
	for i := range m.dirty {
		w := m.dirty[i].Swap(0)
		for b := uint64(0); w != 0; b, w = b+1, w>>1 {
			if w&1 == 0 {
				continue
			}
			a := m.pageAddr(uint64(i)*64 + b)
			m.eachWatcher(func(w Watcher) { w.Retrack(a) })
			fn(a)
		}
	}
}

func (m *Memory) retrackAll() {
	for pg := uint64(0); pg < m.Size()/PageSize; pg++ {
		a := m.pageAddr(pg)
		m.eachWatcher(func(w Watcher) { w.Retrack(a) })
	}
}

// pageAddr is the guest-physical address of the file's page pg.
func (m *Memory) pageAddr(pg uint64) Addr {
	o := pg * PageSize
	if o < m.low {
		return Addr(o)
	}
	return HoleEnd + Addr(o-m.low)
}
