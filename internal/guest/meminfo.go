package guest

import (
	"fmt"

	"vitrine.dev/vitrine/internal/mem"
)

// A MemValue is a line of /proc/meminfo.
type MemValue struct {
	Name  string
	Bytes uint64
}

// A MemInfo is /proc/meminfo, as far as it is sums of counters; as JSON an object of bytes by name.
type MemInfo []MemValue

// MarshalJSON implements json.Marshaler: an object, in the order of /proc/meminfo.
func (m MemInfo) MarshalJSON() ([]byte, error) {
	b := []byte("{")
	for i, v := range m {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, "%q:%d", v.Name, v.Bytes)
	}
	return append(b, '}'), nil
}

// memItems are the lines of /proc/meminfo that are sums of the kernel's counters (fs/proc/meminfo.c), whose numbers differ from build to build.
var memItems = []struct {
	name string
	of   []string // enumerators of node_stat_item or zone_stat_item
	unit uint64
}{
	{"MemFree", []string{"NR_FREE_PAGES"}, mem.PageSize},
	{"SwapCached", []string{"NR_SWAPCACHE"}, mem.PageSize},
	{"Active", []string{"NR_ACTIVE_ANON", "NR_ACTIVE_FILE"}, mem.PageSize},
	{"Inactive", []string{"NR_INACTIVE_ANON", "NR_INACTIVE_FILE"}, mem.PageSize},
	{"Active(anon)", []string{"NR_ACTIVE_ANON"}, mem.PageSize},
	{"Inactive(anon)", []string{"NR_INACTIVE_ANON"}, mem.PageSize},
	{"Active(file)", []string{"NR_ACTIVE_FILE"}, mem.PageSize},
	{"Inactive(file)", []string{"NR_INACTIVE_FILE"}, mem.PageSize},
	{"Unevictable", []string{"NR_UNEVICTABLE"}, mem.PageSize},
	{"Mlocked", []string{"NR_MLOCK"}, mem.PageSize},
	{"Dirty", []string{"NR_FILE_DIRTY"}, mem.PageSize},
	{"Writeback", []string{"NR_WRITEBACK"}, mem.PageSize},
	{"AnonPages", []string{"NR_ANON_MAPPED"}, mem.PageSize},
	{"Mapped", []string{"NR_FILE_MAPPED"}, mem.PageSize},
	{"Shmem", []string{"NR_SHMEM"}, mem.PageSize},
	{"KReclaimable", []string{"NR_SLAB_RECLAIMABLE_B", "NR_KERNEL_MISC_RECLAIMABLE"}, mem.PageSize},
	{"Slab", []string{"NR_SLAB_RECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE_B"}, mem.PageSize},
	{"SReclaimable", []string{"NR_SLAB_RECLAIMABLE_B"}, mem.PageSize},
	{"SUnreclaim", []string{"NR_SLAB_UNRECLAIMABLE_B"}, mem.PageSize},
	{"KernelStack", []string{"NR_KERNEL_STACK_KB"}, 1 << 10},
	{"PageTables", []string{"NR_PAGETABLE"}, mem.PageSize},
}

// counters are the kernel's counts of pages by name, of all nodes and zones together.
type counters map[string]uint64

// meminfo reads what /proc/meminfo does.
func (k *Kernel) meminfo() MemInfo {
	c := k.counters()
	total := max(k.variable("_totalram_pages"), k.variable("totalram_pages")) // ca79b0c211af, v5.0
	if c == nil || total == 0 {
		return nil
	}
	all := MemInfo{{"MemTotal", total * mem.PageSize}}
	add := func(name string, pages uint64) { all = append(all, MemValue{name, pages * mem.PageSize}) }
	for _, item := range memItems {
		sum, known := uint64(0), false
		for _, name := range item.of {
			v, ok := c[name]
			sum, known = sum+v, known || ok
		}
		if known {
			all = append(all, MemValue{item.name, sum * item.unit})
		}
		if item.name != "MemFree" {
			continue
		}
		if low, ok := k.lowWatermark(); ok {
			add("MemAvailable", c.available(low, k.variable("totalreserve_pages")))
		}
		buffers := k.blockPages()
		add("Buffers", buffers)
		add("Cached", c["NR_FILE_PAGES"]-min(c["NR_FILE_PAGES"], c["NR_SWAPCACHE"]+buffers))
	}
	if k.address("total_swap_pages") != 0 {
		add("SwapTotal", k.variable("total_swap_pages"))
		add("SwapFree", k.variable("nr_swap_pages"))
	}
	return all
}

// counters reads vm_zone_stat and vm_node_stat by the kernel's own enumerations.
func (k *Kernel) counters() counters {
	t := k.BTF()
	if t == nil {
		return nil
	}
	all := counters{}
	for _, of := range [][2]string{{"zone_stat_item", "vm_zone_stat"}, {"node_stat_item", "vm_node_stat"}} {
		at := k.address(of[1])
		for name, i := range t.Enum(of[0]) {
			if at == 0 || i < 0 || i > 1024 {
				continue
			}
			if v, err := k.space.Uint64(at + 8*uint64(i)); err == nil {
				all[name] = uint64(max(0, int64(v))) // a sum of differences: it may be just below 0
			}
		}
	}
	return all
}

// available is si_mem_available of mm/page_alloc.c, in pages; low is the sum of the zones' low watermarks.
func (c counters) available(low, reserve uint64) uint64 {
	cache := c["NR_ACTIVE_FILE"] + c["NR_INACTIVE_FILE"]
	reclaimable := c["NR_SLAB_RECLAIMABLE_B"] + c["NR_KERNEL_MISC_RECLAIMABLE"]
	n := c["NR_FREE_PAGES"] + cache - min(cache/2, low) + reclaimable - min(reclaimable/2, low)
	return n - min(n, reserve)
}

// lowWatermark is the sum of all zones' low watermarks, in pages.
func (k *Kernel) lowWatermark() (sum uint64, ok bool) {
	zones, ok := k.structure("pglist_data").field("node_zones")
	if !ok || zones.Elem == 0 {
		return 0, false
	}
	const maxNodes = 1024 // NODES_SHIFT is at most 10
	nodes := []uint64{k.address("contig_page_data")}
	if table := k.address("node_data"); table != 0 {
		n := uint32(1)
		if at := k.address("nr_node_ids"); at != 0 {
			n, _ = k.space.Uint32(at)
		}
		nodes = nil
		for i := range min(uint64(n), maxNodes) {
			at, _ := k.space.Uint64(table + 8*i)
			nodes = append(nodes, at)
		}
	}
	for _, node := range nodes {
		for i := range min(zones.Size/zones.Elem, 16) {
			z, err := k.load("zone", node+zones.Off+i*zones.Elem)
			if err != nil {
				continue
			}
			sum, ok = sum+z.uint("_watermark[1]")+z.uint("watermark_boost"), true
		}
	}
	return sum, ok
}

// blockPages are the pages of block devices' own files, which /proc/meminfo calls buffers.
func (k *Kernel) blockPages() (pages uint64) {
	const maxDevices = 1 << 14
	sb, err := k.load("super_block", k.variable("blockdev_superblock"))
	if err != nil {
		return 0
	}
	at, _ := k.entries(sb.at("s_inodes"), "inode", "i_sb_list", maxDevices)
	for _, a := range at {
		if in, err := k.load("inode", a); err == nil {
			if m, err := k.load("address_space", in.uint("i_mapping")); err == nil {
				pages += m.uint("nrpages")
			}
		}
	}
	return pages
}
