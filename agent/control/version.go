package control

import "runtime/debug"

// built is set by the Makefile.
var built string

// Version is that of both programs, which are built together.
func Version() string {
	if built != "" {
		return built
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}
