package vitrine

import "vitrine.dev/vitrine/internal/confine"

// VMRights are what the process of a machine keeps.
func VMRights(string) confine.Rights { return (&Machine{}).rights() }
