package store

import (
	"errors"
	"io"
	"os"
	"syscall"

	bolterrors "go.etcd.io/bbolt/errors"
)

// errDamaged marks what only damage of the file explains: a page that leads nowhere, a fault behind its end.
var errDamaged = errors.New("damaged")

// isDamage says whether err proves that the file is no state file (any more). What may be the host's fault, or nobody's,
// is no proof: setting a good file aside forgets every block, score and position.
func isDamage(err error, path string) bool {
	for _, proof := range []error{errDamaged, bolterrors.ErrInvalid, bolterrors.ErrChecksum, bolterrors.ErrVersionMismatch} {
		if errors.Is(err, proof) {
			fi, serr := os.Stat(path)
			return serr == nil && fi.Mode().IsRegular()
		}
	}
	// bbolt has no error of its own for a file cut down to less than its two meta pages.
	var errno syscall.Errno
	if errors.As(err, &errno) || errors.Is(err, ErrLocked) || errors.Is(err, ErrVersion) {
		return false
	}
	fi, serr := os.Stat(path)
	return serr == nil && fi.Mode().IsRegular() && fi.Size() > 0 && fi.Size() < int64(2*os.Getpagesize())
}

// readable reads the file to its end, past the mapping.
func readable(path string) error {
	f, err := openFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

// A fileError is an error of the state file with what to do about it.
type fileError struct {
	err  error
	hint string
}

func (e *fileError) Error() string { return e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// HintText tells what to do about it.
func (e *fileError) HintText() string { return e.hint }

var hints = []struct {
	is   error
	hint string
}{
	{ErrLocked, "another mxshield-agent runs on this state file; stop it, or give this one a state file of its own"},
	{ErrVersion, "install the newer version again, or move the file away to start without blocks and scores"},
	{syscall.EMFILE, "raise LimitNOFILE of the service"},
	{syscall.ENFILE, "the host has no file descriptors left: raise fs.file-max, or end what leaks them"},
	{syscall.ENOMEM, "free some memory, or raise MemoryMax of the service"},
	{syscall.EIO, "the disk or the way to it fails: look into dmesg"},
	{syscall.ENOSPC, "make room on the file system of the state file"},
	{syscall.EDQUOT, "make room in the quota of the state file's owner"},
	{syscall.EROFS, "mount the file system of the state file writable, or set state to another path"},
	{syscall.EACCES, "the state file and its folder must belong to the user of the agent"},
	{syscall.EPERM, "the state file and its folder must belong to the user of the agent, and no attribute may protect them"},
}

// hinted adds what to do about it. The file has not been touched.
func hinted(err error) error {
	for _, h := range hints {
		if errors.Is(err, h.is) {
			return &fileError{err, h.hint + "; the file was left as it is"}
		}
	}
	return &fileError{err, "the file was left as it is; start again, or move it away to start without blocks and scores"}
}
