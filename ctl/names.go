package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// This file is what people write for addresses.

// maxNamed bounds the addresses of a name.
const maxNamed = 16

// address is what was meant with what was copied out of a log: Postfix writes [192.0.2.7].
func address(s string) string { return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]") }

// each shows something of every address among the arguments.
func (c *ctl) each(x *cli.Context, show func(a string) error) error {
	list, err := c.named(x.Context, x.Args().Slice())
	if err != nil {
		return err
	}
	for i, a := range list {
		if i > 0 && !c.json {
			fmt.Fprintln(c.out)
		}
		if err := show(a); err != nil {
			return err
		}
	}
	return nil
}

// named puts the addresses of hosts in the place of their names.
func (c *ctl) named(ctx context.Context, list []string) (out []string, err error) {
	for _, s := range list {
		s = address(s)
		if !isName(s) {
			out = append(out, s)
			continue
		}
		found, err := c.resolve(ctx, s)
		if err != nil {
			return nil, &usageError{fmt.Sprintf("%q is neither an address nor the name of a host: %v", s, err), "for a domain whose mail is missed, give the address or name of its mail server"}
		}
		fmt.Fprintf(c.err, "%s is %s\n", s, strings.Join(found, ", "))
		out = append(out, found...)
	}
	return out, nil
}

// addresses refuses names where something is changed: what a name means may be another thing in an hour.
func (c *ctl) addresses(ctx context.Context, form string, list []string) (out []string, err error) {
	for _, s := range list {
		s = address(s)
		if isName(s) {
			e := &usageError{fmt.Sprintf("%q is a name and no address", s), "give the address"}
			if found, err := c.resolve(ctx, s); err == nil {
				e.hint = fmt.Sprintf("now it stands for: mxshieldctl %s %s", form, strings.Join(found, " "))
			}
			return nil, e
		}
		out = append(out, s)
	}
	return out, nil
}

// isName says whether s may be a host's full name.
func isName(s string) bool {
	low := strings.ToLower(s)
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return len(s) < 254 && strings.Contains(s, ".") && strings.ContainsAny(low, letters) && strings.Trim(low, letters+"0123456789-_.") == ""
}

func lookUp(ctx context.Context, name string) (list []string, err error) {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		var d *net.DNSError
		if errors.As(err, &d) {
			return nil, errors.New(d.Err)
		}
		return nil, err
	}
	for _, a := range found {
		if t := a.Unmap().WithZone("").String(); !slices.Contains(list, t) && len(list) < maxNamed {
			list = append(list, t)
		}
	}
	return list, nil
}
