package bpf

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// checkEnum compares the names of the C enum with the words of Go.
func checkEnum(t *testing.T, spec *ebpf.CollectionSpec) {
	t.Helper()
	var enum *btf.Enum
	if err := spec.Types.TypeByName("reason", &enum); err != nil {
		t.Fatal(err)
	}
	for _, v := range enum.Values {
		if v.Name == "REASONS" {
			continue
		}
		if got := Reason(v.Value).String(); got != strings.ToLower(v.Name) {
			t.Errorf("C says %s, Go says %s", v.Name, got)
		}
	}
	if n := len(enum.Values) - 1; n != reasonCount {
		t.Errorf("C has %d reasons, Go has %d", n, reasonCount)
	}
}

// What Go writes is what C reads: sizes of the shared structs.
func TestLayout(t *testing.T) {
	spec, err := loadShield()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		m          string
		key, value uintptr
	}{
		{shieldMapExactV4, 4, unsafe.Sizeof(shieldEntry{})},
		{shieldMapExactV6, 8, unsafe.Sizeof(shieldEntry{})},
		{shieldMapCidrV4, unsafe.Sizeof(shieldCidrV4Key{}), unsafe.Sizeof(shieldEntry{})},
		{shieldMapCidrV6, unsafe.Sizeof(shieldCidrV6Key{}), unsafe.Sizeof(shieldEntry{})},
		{shieldMapState, 4, unsafe.Sizeof(shieldStateValue{})},
		{shieldMapCounters, unsafe.Sizeof(shieldReason(0)), 8},
	} {
		m := spec.Maps[c.m]
		if uintptr(m.KeySize) != c.key || uintptr(m.ValueSize) != c.value {
			t.Errorf("%s: key %d value %d, want %d %d", c.m, m.KeySize, m.ValueSize, c.key, c.value)
		}
	}
	if got, want := spec.Variables[shieldVarPorts].Size(), uint32(unsafe.Sizeof([maxPorts]shieldPort{})); got != want {
		t.Errorf("ports: %d bytes, want %d", got, want)
	}
	for name := range spec.Maps {
		if !strings.HasPrefix(name, ".") && !isOurs(pinName(name)) {
			t.Errorf("map %s is not pinned", name)
		}
	}
}
