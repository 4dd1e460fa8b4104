//go:build linux

package main

import (
	"fmt"
	"io"
)

// cpio writes an initramfs: the "newc" format of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
// The first error is kept.
type cpio struct {
	w     io.Writer
	inode int
	err   error
}

func newCPIO(w io.Writer) *cpio { return &cpio{w: w} }

const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

func (c *cpio) dir(name string)                         { c.entry(name, modeDir|0o755, nil) }
func (c *cpio) file(name string, mode int, body []byte) { c.entry(name, modeFile|mode, body) }
func (c *cpio) link(name, to string)                    { c.entry(name, modeLink|0o777, []byte(to)) }
func (c *cpio) end()                                    { c.entry("TRAILER!!!", 0, nil) }

func (c *cpio) entry(name string, mode int, body []byte) {
	c.inode++
	// magic, inode, mode, uid, gid, links, mtime, size, device (4), length of the name with its zero, checksum
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name)+1, 0) + name + "\x00"
	c.write([]byte(head))
	c.pad(len(head))
	c.write(body)
	c.pad(len(body))
}

// Head and body each end at a multiple of four.
func (c *cpio) pad(n int) { c.write(make([]byte, -n&3)) }

func (c *cpio) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}
