package clock

import (
	"sync/atomic"
	"testing"
	"time"
)

func TestFakeTimersRunInOrderAtTheirTime(t *testing.T) {
	c := NewFake()
	var got []int64
	note := func() { got = append(got, c.Now()) }
	a, b, stopped := c.NewTimer(note), c.NewTimer(note), c.NewTimer(note)
	a.Set(30)
	b.Set(10)
	stopped.Set(20)
	stopped.Stop()
	a.Set(40)
	c.Advance(35)
	if len(got) != 1 || got[0] != 10 || c.Now() != 35 {
		t.Fatalf("after 35 ns: ran at %v, now %d; want [10], 35", got, c.Now())
	}
	c.Advance(5)
	if len(got) != 2 || got[1] != 40 {
		t.Fatalf("after 40 ns: ran at %v, want [10 40]", got)
	}
}

func TestPausedClockStandsStillAndKeepsTimers(t *testing.T) {
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fired := make(chan int64, 1)
	tm := c.NewTimer(func() { fired <- c.Now() })
	c.Pause()
	at := c.Now()
	tm.Set(at + 1)
	time.Sleep(20 * time.Millisecond)
	if now := c.Now(); now != at {
		t.Errorf("paused clock went from %d to %d", at, now)
	}
	select {
	case <-fired:
		t.Error("a timer fired while paused")
	default:
	}
	c.Resume()
	if now := <-fired; now < at+1 {
		t.Errorf("fired at %d, before %d", now, at+1)
	}
}

func TestEarlierDeadlineOvertakesLater(t *testing.T) {
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	first := make(chan string, 2)
	late, early := c.NewTimer(func() { first <- "late" }), c.NewTimer(func() { first <- "early" })
	late.Set(c.Now() + int64(time.Hour))
	early.Set(c.Now() + int64(time.Millisecond))
	if got := <-first; got != "early" {
		t.Errorf("first was %s", got)
	}
	late.Set(0)
	if got := <-first; got != "late" {
		t.Errorf("second was %s", got)
	}
}

func TestTimerMaySetItself(t *testing.T) {
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int32
	done := make(chan struct{})
	var tm *Timer
	tm = c.NewTimer(func() {
		if n.Add(1) == 100 {
			close(done)
			return
		}
		tm.Set(c.Now() + 1000)
	})
	tm.Set(0)
	<-done
	c.Close()
	tm.Set(0)
	if n.Load() != 100 {
		t.Errorf("ran %d times, want 100", n.Load())
	}
}

func TestSettingATimerAllocatesNothing(t *testing.T) {
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tm := c.NewTimer(func() {})
	if n := testing.AllocsPerRun(100, func() { tm.Set(c.Now() + int64(time.Hour)); tm.Stop() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSet(b *testing.B) {
	c, _ := New()
	defer c.Close()
	tm := c.NewTimer(func() {})
	for i := 0; b.Loop(); i++ {
		tm.Set(int64(time.Hour) + int64(i%1000)*1000)
	}
}
