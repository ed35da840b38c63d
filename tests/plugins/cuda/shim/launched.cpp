// Behind the kernels of one file, whose name the build gives: only here is the struct of their arguments known.
#include <cstddef>

#include BITSERVE_KERNELS

extern "C" {

void shim_call(void (*entry)(), const void* arguments) {
    reinterpret_cast<void (*)(const Arguments)>(entry)(*static_cast<const Arguments*>(arguments));
}

std::size_t shim_arguments_bytes() { return sizeof(Arguments); }
}
