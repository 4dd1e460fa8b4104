package tail

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of what is read of Postfix's domains.
const (
	maxDomains   = 1000
	maxTableSize = 1 << 20 // bytes
)

// MailDomains asks Postfix for the domains it takes mail for: mydestination, relay_domains, virtual_alias_domains and
// virtual_mailbox_domains. Tables are read from their source files; notes say which could not be (databases, directories).
// The error wraps exec.ErrNotFound if there is no Postfix.
func MailDomains(ctx context.Context, opts DiscoverOptions) (domains, notes []string, err error) {
	opts.defaults()
	value, err := run(ctx, opts.Postconf, "-x", "-h", "mydestination", "relay_domains", "virtual_alias_domains", "virtual_mailbox_domains")
	if err != nil {
		return nil, nil, err
	}
	domains, notes = parseDomains(value)
	return domains, notes, nil
}

func parseDomains(value string) (domains, notes []string) {
	known := map[string]bool{}
	add := func(name string) {
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		if len(domains) < maxDomains && isDomain(name) && !known[name] {
			domains, known[name] = append(domains, name), true
		}
	}
	for _, word := range strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" \t\r\n,", r) }) {
		kind, path, table := strings.Cut(word, ":")
		if strings.HasPrefix(word, "/") {
			path, table, kind = word, true, "texthash"
		}
		if !table {
			add(word) // !example.org and what else is no name is not added
			continue
		}
		list, err := domainsOf(kind, path)
		if err != nil {
			notes = append(notes, fmt.Sprintf("the domains in %.200q are not known (%v): name under own_domains those whose MXs must never be blocked", word, err))
			continue
		}
		for _, name := range list {
			add(name)
		}
	}
	return domains, notes
}

// domainsOf reads the source of a table (postmap(1)): the first word of each line that is no comment and does not go on with
// the line before. It is a list of domains too, if it has no second word.
func domainsOf(kind, path string) (list []string, err error) {
	if !slices.Contains([]string{"hash", "btree", "lmdb", "cdb", "dbm", "sdbm", "texthash"}, kind) || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("a table of type %.20q cannot be read", kind)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would be waited for
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%.200s is no file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTableSize))
	if err != nil {
		return nil, err
	}
	return firstWords(string(b)), nil
}

func firstWords(text string) (list []string) {
	for line := range strings.Lines(text) {
		if w := strings.Fields(line); len(w) > 0 && !strings.HasPrefix(w[0], "#") && !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t") {
			list = append(list, w[0])
		}
	}
	return list
}

// isDomain says whether a name can have an MX; it is lower case.
func isDomain(name string) bool {
	labels := strings.Split(name, ".")
	if len(labels) < 2 || len(name) > 253 || labels[len(labels)-1] == "localdomain" || labels[0] == "localhost" {
		return false
	}
	for _, l := range labels {
		if len(l) == 0 || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}
