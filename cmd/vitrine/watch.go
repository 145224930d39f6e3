package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vitrine.dev/vitrine/internal/host"
	"vitrine.dev/vitrine/internal/host/foreign"
	"vitrine.dev/vitrine/internal/perf"
)

// A watchList is the guests that top looks at.
type watchList struct {
	guests []*watched
	passed []string // who is not looked at, and why
}

func (l *watchList) close() {
	for _, w := range l.guests {
		w.close()
	}
}

// patience is how long top waits, among others, for a guest that is only booting.
const patience = 300 * time.Millisecond

// update looks at guests that have come, and lets go of those that have gone.
func (l *watchList) update(ctx context.Context) error {
	all, err := host.List()
	if err != nil {
		return err
	}
	others, err := host.Others()
	if err != nil {
		return err
	}
	all = append(all, others...)
	l.passed = nil
	l.guests = slices.DeleteFunc(l.guests, func(w *watched) bool {
		gone := !slices.ContainsFunc(all, func(e host.Entry) bool { return same(&e, w.entry) })
		if gone {
			w.close()
		}
		return gone
	})
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	for i := range all {
		e := &all[i]
		if slices.ContainsFunc(l.guests, func(w *watched) bool { return same(e, w.entry) }) {
			continue
		}
		if e.Unseen != "" {
			l.passed = append(l.passed, e.Name+": "+e.Unseen)
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			w, err := watch(ctx, e)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				l.passed = append(l.passed, fmt.Sprintf("%s: %v", e.Name, err))
				return
			}
			l.guests = append(l.guests, w)
		})
	}
	wg.Wait()
	slices.Sort(l.passed)
	slices.SortFunc(l.guests, func(a, b *watched) int { return a.entry.PID - b.entry.PID })
	return nil
}

// same tells whether two entries are one guest's.
func same(a, b *host.Entry) bool {
	return a.PID == b.PID && a.Name == b.Name && a.Started.Equal(b.Started)
}

// sample samples all for one interval. With forgiving, who fails is passed over: it may just end.
func (l *watchList) sample(ctx context.Context, f topFlags, forgiving bool) error {
	errs := make([]error, len(l.guests))
	var wg sync.WaitGroup
	for i, w := range l.guests {
		wg.Go(func() { errs[i] = w.sample(ctx, f) })
	}
	if len(l.guests) == 0 {
		select {
		case <-ctx.Done():
		case <-time.After(f.interval):
		}
	}
	wg.Wait()
	var kept []*watched
	for i, w := range l.guests {
		switch {
		case errs[i] == nil:
			kept = append(kept, w)
		case !forgiving:
			return fmt.Errorf("%s: %w", w.name, errs[i])
		default:
			if errors.Is(errs[i], foreign.ErrGone) {
				errs[i] = foreign.ErrGone
			}
			l.passed = append(l.passed, fmt.Sprintf("%s: %v", w.name, errs[i]))
			w.close()
		}
	}
	l.guests = kept
	return nil
}

// reports gives each guest's; none is [], not null.
func (l *watchList) reports() []perf.Report {
	all := make([]perf.Report, 0, len(l.guests))
	for _, w := range l.guests {
		all = append(all, w.top.Report())
	}
	return all
}
