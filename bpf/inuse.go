package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrInUse says that an agent works with the pins.
var ErrInUse = errors.New("an agent is using these pins")

// InUse returns ErrInUse, with a hint, if an agent has the pins open; nil if none has or there are none.
func InUse(pins string) error {
	dir, err := os.Open(pins)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pin directory: %w", err)
	}
	defer dir.Close() // and with it the lock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return hint(fmt.Errorf("%s: %w", pins, ErrInUse), "stop the other mxshield-agent, or give this one its own pin directory")
	}
	return nil
}
