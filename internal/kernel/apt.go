package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// An aptRequest is what to fetch. Zero: the host's distribution's kernel for virtual machines, from the host's sources.
type aptRequest struct {
	suite   string // a Debian suite: bookworm, bookworm-backports
	pkg     string
	keyring string
}

func (r aptRequest) name() string {
	if r == (aptRequest{}) {
		return pinnedFirst
	}
	return r.suite + "_" + r.pkg
}

// SuiteOptions says which package of which Debian suite to fetch.
type SuiteOptions struct {
	Suite    string // bullseye, bookworm, trixie, bookworm-backports
	Package  string // empty: linux-image-cloud-amd64
	CacheDir string // empty: DefaultCacheDir
	Progress func(line string)
}

// FetchSuite gives a kernel of any Debian suite, from the cache or fetched from the mirror that the host's apt uses, verified by Debian's own keys.
func FetchSuite(ctx context.Context, s SuiteOptions) (*Kernel, error) {
	if s.Package == "" {
		s.Package = "linux-image-cloud-amd64"
	}
	for _, w := range []string{s.Suite, s.Package} {
		if !debianName.MatchString(w) {
			return nil, fmt.Errorf("%q is no name of a Debian suite or package", w)
		}
	}
	o := Options{CacheDir: s.CacheDir, Progress: s.Progress, Needs: []string{}}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	c, err := o.cache()
	if err != nil {
		return nil, err
	}
	return c.find(ctx, aptRequest{s.Suite, s.Package, debianKeyring}, o)
}

const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

var debianName = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]*$`)

// The metapackages that mean "the kernel for virtual machines", by ID of os-release(5).
var distributionPackage = map[string]string{
	"debian": "linux-image-cloud-amd64",
	"ubuntu": "linux-image-virtual",
}

// kernelPackage matches the packages that hold parts of a kernel, and the metapackages that lead to them. Most have all in the image;
// Ubuntu has linux-modules apart, Debian since 7.0 linux-binary (the kernel), linux-modules and linux-base (its lists) also.
var kernelPackage = regexp.MustCompile(`^linux-((image|modules|modules-extra|binary)-|base-[0-9])`)

// versionedPackage matches those of them that are no metapackages.
var versionedPackage = regexp.MustCompile(`^linux-[a-z-]+-[0-9]`)

// maxPackages bounds how many packages are looked at for one kernel.
const maxPackages = 16

const orKernel = "name a kernel with --kernel"

// fetchPackages fetches with the host's package manager into work and unpacks below files. It returns the package's name and version.
func fetchPackages(ctx context.Context, r aptRequest, o Options, work, files string) (string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		if r.suite == "" {
			if _, err := exec.LookPath("dnf"); err == nil {
				return fetchDNF(ctx, o, work, files)
			}
		}
		return "", errors.New("no package manager that can fetch a kernel (apt-get, dnf) is installed: " + orKernel)
	}
	a := &apt{dir: filepath.Join(work, "apt"), progress: o.Progress}
	if err := a.setup(ctx, r); err != nil {
		return "", err
	}
	pkg := r.pkg
	if pkg == "" {
		id := osRelease("ID", "ID_LIKE")
		for _, w := range strings.Fields(id) {
			if pkg == "" {
				pkg = distributionPackage[w]
			}
		}
		if pkg == "" {
			return "", fmt.Errorf("which package of %q holds a kernel is not known: %s", id, orKernel)
		}
	}
	where := r.suite
	if where == "" {
		where = "the host's apt sources"
	}
	o.Progress("fetching the package lists of " + where)
	complaint := a.update(ctx)
	all, err := a.resolve(ctx, pkg)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		if strings.Contains(complaint, "No space left") {
			return "", syscall.ENOSPC
		}
		if complaint != "" {
			return "", fmt.Errorf("package %s is not to be had from %s: apt-get update: %s: check the network, or %s", pkg, where, complaint, orKernel)
		}
		return "", fmt.Errorf("%s: %w: %s", where, err, orKernel)
	}
	root, err := os.OpenRoot(files)
	if err != nil {
		return "", err
	}
	defer root.Close()
	for _, p := range all {
		o.Progress(fmt.Sprintf("fetching %s %s", p.name, p.version))
		deb, err := a.download(ctx, p)
		if err != nil {
			return "", err
		}
		if err := unpackFile(deb, root); err != nil {
			return "", fmt.Errorf("package %s: %w", p.name, err)
		}
		os.Remove(deb)
	}
	return "package " + all[0].name + " " + all[0].version, nil
}

func unpackFile(deb string, root *os.Root) error {
	f, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer f.Close()
	return unpackDeb(f, root, keepKernel)
}

// keepKernel maps a package's path to the cache's: the image and the modules, which newer packages have below /usr.
func keepKernel(name string) string {
	name = strings.TrimPrefix(name, "usr/")
	if ok, _ := path.Match("boot/vmlinuz-*", name); ok {
		return name
	}
	if ok, _ := path.Match("lib/modules/*/vmlinuz", name); ok { // the image of a Fedora package
		return "boot/vmlinuz-" + path.Base(path.Dir(name))
	}
	if strings.HasPrefix(name, "lib/modules/") {
		return name
	}
	return ""
}

// apt is apt-get with all that it writes in a directory of ours, so that the host is not changed and no right is needed. Of the host's configuration
// it keeps how to reach the network (Acquire: proxies), its sources, keys and credentials; hooks do not run.
type apt struct {
	dir      string
	progress func(string)
}

type aptPackage struct{ name, version, depends string }

func (a *apt) conf() string { return filepath.Join(a.dir, "apt.conf") }

// setup writes the configuration, and for a suite the source: the mirror is the one the host uses for its own release.
func (a *apt) setup(ctx context.Context, r aptRequest) error {
	for _, d := range []string{"lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o700); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
	}
	dump, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return fmt.Errorf("apt-config dump: %s: %s", failure(err), orKernel)
	}
	var conf strings.Builder
	for line := range strings.Lines(string(dump)) {
		if strings.HasPrefix(line, "Acquire::") && !strings.HasPrefix(line, "Acquire::IndexTargets") && !strings.HasPrefix(line, "Acquire::Languages") {
			conf.WriteString(line)
		}
	}
	quote := func(key, value string) { fmt.Fprintf(&conf, "%s %q;\n", key, value) }
	quote("Dir::State::lists", filepath.Join(a.dir, "lists"))
	quote("Dir::State::status", "/dev/null") // what is installed does not matter
	quote("Dir::Cache", filepath.Join(a.dir, "cache"))
	quote("Dir::Etc::main", "/dev/null")
	quote("Dir::Etc::parts", "/dev/null")
	quote("APT::Sandbox::User", "")
	quote("APT::Architecture", "amd64")
	quote("APT::Install-Recommends", "false")
	quote("Acquire::Languages", "none")
	quote("Acquire::Retries", "2")
	quote("Acquire::http::Timeout", "20")
	quote("Acquire::https::Timeout", "20")
	if r.suite != "" {
		mirror, err := a.mirror(ctx)
		if err != nil {
			return err
		}
		list := filepath.Join(a.dir, "sources.list")
		line := fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s %s main\n", r.keyring, mirror, r.suite)
		if err := os.WriteFile(list, []byte(line), 0o600); err != nil {
			return err
		}
		quote("Dir::Etc::sourcelist", list)
		quote("Dir::Etc::sourceparts", "/dev/null")
		quote("Dir::Etc::preferences", "/dev/null")
		quote("Dir::Etc::preferencesparts", "/dev/null")
	}
	return os.WriteFile(a.conf(), []byte(conf.String()), 0o600)
}

// mirror is the archive that the host's sources name for its own release.
func (a *apt) mirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %s", failure(err))
	}
	codename := osRelease("VERSION_CODENAME")
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == codename {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("the host's apt sources name no archive for its own release %q", codename)
}

// run runs a command of apt under our configuration. A cancelled context ends it and what it started.
func (a *apt) run(ctx context.Context, dir string, args ...string) (stdout, stderr []byte, err error) {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Dir = dir
	c.Env = append(os.Environ(), "APT_CONFIG="+a.conf(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGTERM) }
	c.WaitDelay = 3 * time.Second
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	return out.Bytes(), errs.Bytes(), err
}

// update fetches the lists. It returns apt's last complaint, which matters only if the package is not found then: a host may
// have sources that do not answer.
func (a *apt) update(ctx context.Context) (complaint string) {
	_, stderr, err := a.run(ctx, "", "apt-get", "-q", "update")
	for line := range strings.Lines(string(stderr)) {
		text := strings.TrimSpace(line)
		if kind, rest, ok := strings.Cut(text, ": "); ok && (kind == "E" || kind == "W") && !strings.HasPrefix(rest, "Some index files") {
			if complaint == "" || kind == "E" {
				complaint = rest
			}
		}
	}
	if complaint == "" && err != nil {
		complaint = failure(err)
	}
	return complaint
}

// resolve follows the dependencies from a metapackage to the packages that hold the kernel. The first of them is the image.
func (a *apt) resolve(ctx context.Context, pkg string) ([]aptPackage, error) {
	var all []aptPackage
	seen := []string{pkg}
	for i := 0; i < len(seen) && i < maxPackages; i++ {
		p, err := a.show(ctx, seen[i])
		if err != nil {
			if i > 0 && !strings.HasPrefix(seen[i], "linux-image-") {
				continue
			}
			return nil, err
		}
		for _, d := range kernelDepends(p.depends) {
			if !slices.Contains(seen, d) {
				seen = append(seen, d)
			}
		}
		if versionedPackage.MatchString(p.name) {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("package %s leads to no kernel", pkg)
	}
	return all, nil
}

// kernelDepends picks the kernel's packages from a Depends field, of alternatives the first.
func kernelDepends(field string) []string {
	var out []string
	for d := range strings.SplitSeq(field, ",") {
		d, _, _ = strings.Cut(d, "|")
		d, _, _ = strings.Cut(strings.TrimSpace(d), " ")
		d, _, _ = strings.Cut(d, ":")
		if kernelPackage.MatchString(d) {
			out = append(out, d)
		}
	}
	return out
}

func (a *apt) show(ctx context.Context, pkg string) (aptPackage, error) {
	out, _, err := a.run(ctx, "", "apt-cache", "show", "--no-all-versions", pkg)
	p := aptPackage{name: pkg}
	if !debianName.MatchString(pkg) {
		return p, fmt.Errorf("there is no package %q", pkg)
	}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Version":
			p.version = value
		case "Depends", "Pre-Depends":
			p.depends += ", " + value
		}
	}
	if err != nil || p.version == "" {
		return p, fmt.Errorf("there is no package %s", pkg)
	}
	return p, nil
}

// download fetches a package, whose checksum apt has from a signed list.
func (a *apt) download(ctx context.Context, p aptPackage) (string, error) {
	debs := filepath.Join(a.dir, "debs")
	_, stderr, err := a.run(ctx, debs, "apt-get", "-q", "download", p.name+"="+p.version)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		if bytes.Contains(stderr, []byte("No space left")) {
			return "", syscall.ENOSPC
		}
		return "", fmt.Errorf("package %s: %s: check the network, or %s", p.name, lastLine(stderr, err), orKernel)
	}
	all, _ := filepath.Glob(filepath.Join(debs, "*.deb"))
	if len(all) != 1 {
		return "", fmt.Errorf("package %s: apt-get download left %d files", p.name, len(all))
	}
	return all[0], nil
}

// failure is a command's last word.
func failure(err error) string {
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		return lastLine(ee.Stderr, err)
	}
	return err.Error()
}

func lastLine(stderr []byte, err error) string {
	lines := strings.Split(strings.TrimSpace(string(stderr)), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		return strings.TrimPrefix(last, "E: ")
	}
	return err.Error()
}

// osRelease gives fields of os-release(5), with blanks between.
func osRelease(keys ...string) string {
	var out []string
	for _, file := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		p, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, key := range keys {
			for line := range strings.Lines(string(p)) {
				if k, v, _ := strings.Cut(strings.TrimSpace(line), "="); k == key {
					out = append(out, strings.Trim(v, `"'`))
				}
			}
		}
		break
	}
	return strings.Join(out, " ")
}
