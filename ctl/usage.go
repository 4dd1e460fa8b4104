package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// This file is what people are told who do not know the words yet.

// otherWords are what other tools call it.
var otherWords = map[string]string{
	"ban": "block", "deny": "block", "drop": "block", "add": "block", "reject": "block",
	"clear": "unblock", "unban": "unblock", "release": "unblock", "remove": "unblock", "delete": "unblock", "del": "unblock", "undo": "unblock", "flush": "unblock",
	"whitelist": "allow add", "allowlist": "allow add", "unallow": "allow remove", "disallow": "allow remove",
	"explain": "why", "show": "why", "info": "why", "check": "why", "search": "why", "find": "why", "history": "why",
	"ls": "list", "blocks": "list", "blocked": "list", "dump": "list", "export": "list",
	"members": "peers", "nodes": "peers", "suspend": "origin suspend", "resume": "origin resume", "key": "cluster key",
	"stop": "off", "disable": "off", "pause": "off", "start": "on", "enable": "on",
	"dnsbl": "lookup", "rbl": "lookup", "stats": "status", "ping": "status", "health": "status", "metrics": "status",
}

// noCommand is the error for a word that is none of the commands.
func noCommand(x *cli.Context, commands []*cli.Command) error {
	word := x.Args().First()
	e := &usageError{fmt.Sprintf("%.40q is no command", word), helpOf(x)}
	path := strings.Join(path(x), " ")
	if path != "" {
		e.text += " of " + path
	}
	if near := nearest(word, commands); near != "" {
		e.hint = fmt.Sprintf("do you mean mxshieldctl %s?", strings.TrimSpace(path+" "+near))
	} else if other := otherWords[strings.ToLower(word)]; other != "" && path == "" {
		e.hint = fmt.Sprintf("here it is called mxshieldctl %s", other)
	} else if path == "allow" {
		e.hint = fmt.Sprintf("mxshieldctl allow add %.64s", word)
	}
	return e
}

// path is the words of the command at hand.
func path(x *cli.Context) (words []string) {
	for _, up := range x.Lineage() {
		if c := up.Command; c != nil && c.Name != "" && c.Name != "mxshieldctl" {
			words = append([]string{c.Name}, words...)
		}
	}
	return words
}

func helpOf(x *cli.Context) string {
	if words := path(x); len(words) > 0 {
		return fmt.Sprintf("mxshieldctl %s --help", strings.Join(words, " "))
	}
	return "mxshieldctl help shows the commands"
}

// nearest is the command that a word is a misspelling of, empty if it is none.
func nearest(word string, commands []*cli.Command) (name string) {
	best := 3
	for _, c := range commands {
		if d := distance(strings.ToLower(word), c.Name); d < best && d < len(c.Name)-1 {
			best, name = d, c.Name
		}
	}
	return name
}

// distance is how many letters must be put in, taken out or changed to make a of b (Levenshtein).
func distance(a, b string) int {
	if len(a) > 40 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(d, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}

// completion asks the program itself what may follow.
const completion = `_mxshieldctl() {
	local words=("${COMP_WORDS[@]:0:COMP_CWORD}") cur=${COMP_WORDS[COMP_CWORD]}
	[[ $cur == -* ]] && words+=("${cur%-}") # -- would end the flags
	mapfile -t COMPREPLY < <(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
}
complete -F _mxshieldctl mxshieldctl
`

func (c *ctl) completionCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "completion", Usage: "print a script that completes commands and flags in bash", Description: "source <(mxshieldctl completion); `make install` puts it where bash finds it",
		Action: func(x *cli.Context) error {
			if err := args(x, 0, 0, "completion"); err != nil {
				return err
			}
			fmt.Fprint(c.out, completion)
			return nil
		},
	}}
}
