package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Marker is the file that keeps the shield detached: `off` leaves it, `on` removes it, and an agent that starts
// while it is there does not attach. It works without an agent, and across reboots.
type Marker struct {
	Off
	// Interfaces is what was detached, so that `on` can put it back without an agent.
	Interfaces []Interface `json:"interfaces,omitempty"`
}

// MarkerName is the marker's file name in the folder of the state file.
const MarkerName = "off"

// DefaultStateDir is the folder of the state file.
const DefaultStateDir = "/var/lib/mxshield"

// maxMarker bounds what is read of a marker.
const maxMarker = 64 << 10

// ReadMarker returns the marker in dir, or nil if there is none. A marker that cannot be read still means off: the
// person who left it wanted no drops.
func ReadMarker(dir string) (*Marker, error) {
	path := filepath.Join(dir, MarkerName)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the marker of `mxshieldctl off`: %w", err)
	}
	m := new(Marker)
	if len(b) > maxMarker || json.Unmarshal(b, m) != nil {
		fi, err := os.Stat(path)
		m = &Marker{Off: Off{By: "unknown", Reason: "the marker " + path + " is damaged"}}
		if err == nil {
			m.Since = fi.ModTime()
		}
	}
	return m, nil
}

// WriteMarker leaves the marker in dir and makes sure that it is on disk.
func WriteMarker(dir string, m *Marker) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("leave the off marker: %w", err)
	}
	m.Since = m.Since.UTC().Truncate(time.Second)
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, MarkerName+"-*")
	if err != nil {
		return fmt.Errorf("leave the off marker: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, MarkerName))
	}
	if d, oerr := os.Open(dir); err == nil && oerr == nil {
		err = errors.Join(d.Sync(), d.Close()) // the new name too
	}
	if err != nil {
		return fmt.Errorf("leave the off marker: %w", err)
	}
	return nil
}

// RemoveMarker takes the marker away; that there is none is no error.
func RemoveMarker(dir string) error {
	if err := os.Remove(filepath.Join(dir, MarkerName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the off marker: %w", err)
	}
	return nil
}
