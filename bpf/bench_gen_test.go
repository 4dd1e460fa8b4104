package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-suffix _test -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3" bench bench.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-suffix _test -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3" broken broken.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -output-suffix _test -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3" hash hash.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-suffix _test -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3" flood flood.c
