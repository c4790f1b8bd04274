package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Dir is the daemon's directory. Its layout is fixed: scripts and documents rely on it.
type Dir string

// The parts of the directory.
func (d Dir) config() string   { return filepath.Join(string(d), ConfigFile) }
func (d Dir) database() string { return filepath.Join(string(d), "countersign.db") }
func (d Dir) audit() string    { return filepath.Join(string(d), "audit") }
func (d Dir) kek() string      { return filepath.Join(string(d), "kek") }
func (d Dir) server() string   { return filepath.Join(string(d), "server") }

// Root is the file with the root certificate, for clients that want a file.
func (d Dir) Root() string { return filepath.Join(string(d), "root.pem") }

// Request is the file with the request of the intermediate, as long as the directory waits for what an offline root makes of it.
func (d Dir) Request() string { return filepath.Join(string(d), "intermediate.csr") }

// Waits tells whether the directory waits for its intermediate: [Init] with a root without a key leaves it so.
func (d Dir) Waits() bool {
	_, err := os.Lstat(d.Request())
	return err == nil
}

// WaitsError says that the authority in the directory can't serve yet.
type WaitsError struct{ Dir Dir }

// Error names the request.
func (e *WaitsError) Error() string {
	return "the intermediate is not signed yet: " + e.Dir.Request() + " waits for the root's certificate"
}

// Operator is the identity directory of the operator that init makes.
func (d Dir) Operator() string { return filepath.Join(string(d), "operators", FirstOperator) }

// FirstOperator is the name of the operator that init makes, an admin.
const FirstOperator = "admin"

// ours are the names by which a directory is known to be taken.
func (d Dir) ours() []string {
	return []string{d.config(), d.database(), d.audit(), d.kek(), d.kek() + ".next", d.server(), d.Root(), d.Request(), filepath.Join(string(d), "operators")}
}

// taken is the first thing of ours in the directory, "" if there is none.
func (d Dir) taken() (string, error) {
	for _, path := range d.ours() {
		if _, err := os.Lstat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

const socketName = "admin.sock"

// maxSocketPath leaves room below Linux's 107 bytes (unix(7), sun_path).
const maxSocketPath = 100

// Socket is the path of the admin socket: admin.sock in the directory, or, where that path is too long for the kernel,
// a name made of its hash in the user's runtime directory, which must be his alone: commands would else trust whoever
// listens there. It creates nothing.
func (d Dir) Socket() (string, error) {
	abs, err := filepath.Abs(string(d))
	if err != nil {
		return "", err
	}
	path := filepath.Join(abs, socketName)
	if len(path) <= maxSocketPath {
		return path, nil
	}
	sum := sha256.Sum256([]byte(abs))
	path = filepath.Join(runtimeDir(), hex.EncodeToString(sum[:8])+".sock")
	if len(path) > maxSocketPath {
		return "", &SocketPathError{Dir: abs, Fallback: path}
	}
	if err := checkOurs(filepath.Dir(path), os.Lstat); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return path, nil
}

// runtimeDir is where sockets go whose own directory is too deep.
func runtimeDir() string {
	for _, variable := range []string{"RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"} {
		if dir := os.Getenv(variable); filepath.IsAbs(dir) {
			return filepath.Join(dir, "countersign")
		}
	}
	return filepath.Join(os.TempDir(), "countersign-"+strconv.Itoa(os.Getuid()))
}

// prepareSocket makes the socket's directory where it is not the daemon's own, and refuses one that is not ours alone:
// whoever can rename the socket can answer in the daemon's place.
func prepareSocket(path string) error {
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	stat := os.Lstat
	if filepath.Base(path) == socketName {
		stat = os.Stat
	}
	if err := checkOurs(parent, stat); err != nil {
		return err
	}
	// A socket file that is left over from a daemon that was killed: the store's lock says that none is running.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// checkOurs refuses a directory that others may write to, be it the daemon's or its socket's. Our own may be reached by a link, as --dir says;
// one in a directory that all users share must not be, because its link would be theirs to change.
func checkOurs(dir string, stat func(string) (fs.FileInfo, error)) error {
	info, err := stat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || (int(owner.Uid) != os.Getuid() && owner.Uid != 0) || info.Mode().Perm()&0o022 != 0 {
		return &SharedDirError{dir}
	}
	return nil
}

// SharedDirError says that others could put their own files or their own socket in place of the daemon's.
type SharedDirError struct{ Dir string }

// Error names the directory.
func (e *SharedDirError) Error() string {
	return e.Dir + " must be a directory of this user or root that nobody else may write to"
}

// SocketPathError says that no name of the admin socket is short enough for the kernel.
type SocketPathError struct{ Dir, Fallback string }

// Error names both paths that were tried.
func (e *SocketPathError) Error() string {
	return e.Dir + " is too long for a socket path, and so is " + e.Fallback + ": set XDG_RUNTIME_DIR to a shorter one"
}
