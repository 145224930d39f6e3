package guest

import "testing"

func TestSamplesAreOfWhoHasThePageTablesNow(t *testing.T) {
	f, tasks := fakeProcesses(2)
	const cr3 = 0x10000
	mm := f.new("mm_struct", map[string]uint64{"pgd": direct + cr3})
	owner := func(i int) { // gives the memory to one task, to none with -1
		for j, task := range tasks {
			f.set("task_struct", task, map[string]uint64{"mm": 0, "group_leader": task})
			if i == j {
				f.set("task_struct", task, map[string]uint64{"mm": mm})
			}
		}
	}
	for _, c := range []struct {
		what      string
		owner     int
		want      int // PID
		isolation uint64
	}{
		{"the first", 1, 2, 0}, {"it again", 1, 2, 0}, {"another, to which the page went", 2, 3, 0}, {"by the user's root", 2, 3, pageTableIsolation},
		{"the last, which has ended", -1, 3, 0},
	} {
		owner(c.owner)
		if o, ok := f.ProcessAt(0, cr3|c.isolation); !ok || o.PID != c.want {
			t.Errorf("%s: %+v (%v), want process %d", c.what, o, ok, c.want)
		}
	}
	if o, ok := f.ProcessAt(0, 0x20000); ok {
		t.Errorf("of page tables that nobody has: %+v", o)
	}
}
