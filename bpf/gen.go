package bpf

// The object is built with one clang, named here, and committed with its Go bindings, so that go build needs no clang.
// check-generated.sh shows that the committed object is what the source gives.
//
// -mcpu=v3 (kernels since 5.1): 32-bit instructions keep the bounds of header lengths visible to the verifier.
// -g is for BTF (map types, enum names); DWARF is stripped. The prefix maps keep the builder's directory out of it.

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3" -type seeds shield shield.c
//go:generate sh -c "clang-19 --version | sed -n 1p > clang-version.txt"
