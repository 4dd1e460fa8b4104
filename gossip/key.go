package gossip

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	keySize    = 32 // of keys made here: AES-256
	maxKeyFile = 4096
	// settle is how long everybody must have used the new key before the old one may go: what was sealed with the old
	// one is on its way for no longer than a stream may take.
	settle = 2 * frameTimeout
)

// NewKey makes a key for the key file and AddKey: 32 random bytes in base64.
func NewKey() string {
	k := make([]byte, keySize)
	_, _ = rand.Read(k) // never fails
	return encodeKey(k)
}

func encodeKey(k []byte) string { return base64.StdEncoding.EncodeToString(k) }

func keyID(key []byte) (id KeyID) {
	h := sha256.Sum256(append([]byte("mxshield key id\x00"), key...))
	return KeyID(h[:len(id)])
}

// ParseKey checks a key: base64 of 16, 24 or 32 bytes. The error does not repeat it.
func ParseKey(s string) ([]byte, error) {
	s = strings.TrimSpace(s)
	k, err := base64.StdEncoding.DecodeString(s)
	if err != nil || memberlist.ValidateKey(k) != nil {
		return nil, hint(errors.New("no cluster key: it must be base64 of 32 bytes"), "`mxshieldctl cluster key new` makes one")
	}
	if bytes.Count(k, k[:1]) == len(k) {
		return nil, hint(errors.New("no cluster key: all its bytes are the same"), "`mxshieldctl cluster key new` makes one")
	}
	return k, nil
}

// CheckKeyFile says what is wrong with a key file.
func CheckKeyFile(path string) error {
	_, err := readKeys(path)
	return err
}

// readKeys reads a key file: one key per line, the one in use first, at most two.
func readKeys(path string) ([][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		text := "make it with `mxshieldctl cluster key new > " + path + "`, and copy it to every node"
		if errors.Is(err, fs.ErrPermission) {
			text = "it must belong to the user the agent runs as"
		}
		return nil, hint(fmt.Errorf("read the cluster key: %w", err), text)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the cluster key: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, hint(fmt.Errorf("%s is no regular file", path), "the cluster key is a file with a line of base64")
	}
	if m := st.Mode().Perm(); m&0o077 != 0 {
		return nil, hint(fmt.Errorf("%s can be read by others (mode %04o)", path, m), "chmod 600 "+path+"; if they may have read it, make a new key")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the cluster key: %w", err)
	}
	keys, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

func parseKeys(b []byte) (keys [][]byte, err error) {
	if len(b) > maxKeyFile {
		return nil, hint(errors.New("too long for a key file"), "one key per line, two at most")
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		k, err := ParseKey(line)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(keys, func(o []byte) bool { return keyID(o) == keyID(k) }) {
			return nil, hint(errors.New("the same key stands there twice"), "take one line out")
		}
		if keys = append(keys, k); len(keys) > maxKeys {
			return nil, hint(errors.New("more than two keys"), "keep the one in use, first, and the one that comes or goes")
		}
	}
	if len(keys) == 0 {
		return nil, hint(errors.New("no key in it"), "`mxshieldctl cluster key new` makes one")
	}
	return keys, nil
}

// writeKeys replaces the file: after a crash the old or the new one is there, whole.
func writeKeys(path string, keys [][]byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return hint(fmt.Errorf("write the cluster key: %w", err), "the agent must be able to write into "+filepath.Dir(path))
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write the cluster key: %w", err)
		}
	}()
	for _, k := range keys {
		if _, err = fmt.Fprintln(f, encodeKey(k)); err != nil {
			f.Close()
			return err
		}
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Key is a key on the ring, or one that some member has and we do not.
type Key struct {
	ID     KeyID    `json:"-"`
	Name   string   `json:"id"`
	Held   bool     `json:"held"` // on our ring
	Used   bool     `json:"used"` // what we seal with
	HeldBy []string `json:"held_by"`
	UsedBy []string `json:"used_by"`
	// Missing are the members (gone ones too, unless they left) and configured peers that are not known to hold it.
	Missing []string `json:"missing"`
}

// Keys lists the keys of the cluster, the one in use first.
func (c *Cluster) Keys() []Key {
	c.keyMu.Lock()
	ring := c.keyIDs()
	c.keyMu.Unlock()
	members := c.Members()
	ids := slices.Clone(ring)
	for _, m := range members {
		for _, k := range m.keys {
			if !slices.Contains(ids, k) {
				ids = append(ids, k)
			}
		}
	}
	var list []Key
	for _, id := range ids {
		k := Key{ID: id, Name: id.String(), Held: slices.Contains(ring, id), Used: len(ring) > 0 && ring[0] == id}
		for _, m := range members {
			switch i := slices.Index(m.keys, id); {
			case m.State == Left:
			case i < 0:
				k.Missing = append(k.Missing, m.Name)
			default:
				k.HeldBy = append(k.HeldBy, m.Name)
				if i == 0 {
					k.UsedBy = append(k.UsedBy, m.Name)
				}
			}
		}
		list = append(list, k)
	}
	return list
}

// keyIDs needs keyMu.
func (c *Cluster) keyIDs() (ids []KeyID) {
	for _, k := range c.keys {
		ids = append(ids, keyID(k))
	}
	return ids
}

var errNoKeys = hint(errors.New("this node's cluster has no key"), "name a key_file in the config's cluster section, on every node, and restart the agents")

// AddKey puts a key beside the one in use: messages sealed with it are understood from now on.
func (c *Cluster) AddKey(key string) (KeyID, error) {
	k, err := ParseKey(key)
	if err != nil {
		return KeyID{}, err
	}
	id := keyID(k)
	c.keyMu.Lock()
	defer c.keyMu.Unlock()
	switch {
	case c.seal.plain:
		return id, errNoKeys
	case slices.Contains(c.keyIDs(), id):
		return id, nil
	case len(c.keys) >= maxKeys:
		return id, hint(errors.New("two keys are on the ring already"), "finish the last change first: use one of them everywhere, then remove the other")
	}
	return id, c.installLocked(append(slices.Clone(c.keys), k))
}

// UseKey makes the key the one that this node seals with. It is refused while a member, or a configured peer, is not
// known to hold it, since that one could not understand us any more; force overrides.
func (c *Cluster) UseKey(id KeyID, force bool) error {
	c.keyMu.Lock()
	defer c.keyMu.Unlock()
	if c.seal.plain {
		return errNoKeys
	}
	i := slices.Index(c.keyIDs(), id)
	if i < 0 {
		return hint(fmt.Errorf("key %s is not on the ring", id), "add it first, on every node")
	}
	if !force {
		var not []string
		for _, m := range c.Members() {
			if m.State != Left && !slices.Contains(m.keys, id) {
				not = append(not, m.Name)
			}
		}
		if len(not) > 0 {
			return hint(fmt.Errorf("key %s is not known to be held by %s", id, few(not)), "add it there first (news of it take up to a minute), or --force if they are gone for good")
		}
	}
	if i == 0 {
		return nil
	}
	return c.installLocked([][]byte{c.keys[i], c.keys[1-i]})
}

// RemoveKey takes a key off the ring. It is refused for the key in use, and while a member uses it or has stopped using
// it only just now: what it sent may still be on its way. force overrides the latter.
func (c *Cluster) RemoveKey(id KeyID, force bool) error {
	c.keyMu.Lock()
	defer c.keyMu.Unlock()
	if c.seal.plain {
		return errNoKeys
	}
	switch i := slices.Index(c.keyIDs(), id); {
	case i < 0:
		return hint(fmt.Errorf("key %s is not on the ring", id), "`mxshieldctl cluster key list` shows what is")
	case i == 0:
		return hint(fmt.Errorf("key %s is in use here", id), "use the other one first, on every node")
	}
	if !force {
		var not []string
		var wait time.Duration
		now := time.Now()
		for _, m := range c.Members() {
			switch {
			case m.State == Left:
			case len(m.keys) == 0 || m.keys[0] == id || !slices.Contains(m.keys, keyID(c.keys[0])):
				not = append(not, m.Name)
			default:
				wait = max(wait, c.tune.settle-now.Sub(m.keySince))
			}
		}
		if len(not) > 0 {
			return hint(fmt.Errorf("key %s may still be used by %s", id, few(not)), "use the other one there first (news of it take up to a minute), or --force if they are gone for good")
		}
		if wait > 0 {
			return hint(fmt.Errorf("key %s was in use until a moment ago", id), fmt.Sprintf("messages sealed with it may be on their way: try again in %s", wait.Round(time.Second)+time.Second))
		}
	}
	return c.installLocked(c.keys[:1:1])
}

// installLocked writes the file, then changes the ring, then tells the members. There are never more than two keys: with
// three, memberlist's Keyring.RemoveKey moves them under its readers.
func (c *Cluster) installLocked(keys [][]byte) error {
	if c.opt.KeyFile != "" {
		if err := writeKeys(c.opt.KeyFile, keys); err != nil {
			return err
		}
	}
	var old [][]byte
	old, c.keys = c.keys, keys
	// Before the ring, and all of both: what the ring takes, the guard lets pass.
	if err := c.seal.setKeys(keys); err != nil {
		return err
	}
	for _, k := range keys {
		if err := c.ring.AddKey(k); err != nil {
			return err
		}
	}
	if err := c.ring.UseKey(keys[0]); err != nil {
		return err
	}
	for _, k := range old {
		if !slices.ContainsFunc(keys, func(o []byte) bool { return bytes.Equal(k, o) }) {
			if err := c.ring.RemoveKey(k); err != nil {
				return err
			}
		}
	}
	c.table.setSelf(c.selfMeta())
	c.announce()
	return nil
}

// few names the first of a list.
func few(names []string) string {
	if len(names) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:5], ", "), len(names)-5)
	}
	return strings.Join(names, ", ")
}
