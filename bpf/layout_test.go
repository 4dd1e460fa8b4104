package bpf

import (
	"slices"
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
		{shieldMapExactV4, 4, unsafe.Sizeof(shieldLineV4{})},
		{shieldMapExactV6, 4, unsafe.Sizeof(shieldLineV6{})},
		{shieldMapBloomV4, 4, 8},
		{shieldMapBloomV6, 4, 8},
		{shieldMapCidrV4, unsafe.Sizeof(shieldCidrV4Key{}), unsafe.Sizeof(shieldCidrValue{})},
		{shieldMapCidrV6, unsafe.Sizeof(shieldCidrV6Key{}), unsafe.Sizeof(shieldCidrValue{})},
		{shieldMapCidrNear, 4, 8},
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
	if got, want := spec.Variables[shieldVarClock].Size(), uint32(unsafe.Sizeof(shieldClock{})); got != want {
		t.Errorf("clock: %d bytes, want %d", got, want)
	}
	if got := spec.Maps[shieldMapCidrNear].MaxEntries; got != nearV4Words+nearV6Words {
		t.Errorf("cidr_near: %d words, want %d", got, nearV4Words+nearV6Words)
	}
	for name := range spec.Maps {
		if !strings.HasPrefix(name, ".") && !slices.Contains(mapNames, name) {
			t.Errorf("map %s is in no generation", name)
		}
	}
}
