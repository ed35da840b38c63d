# What needs no OpenVINO: the kernels of this processor's instruction sets, what chooses one, and the interface of Python.
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O3")  # no -DNDEBUG: asserts cost nothing here
set(KERNEL_OPTIONS -Wall -Wextra -ffp-contract=off)  # multiply and add round apart, also where one instruction does both

set(SRC "${CMAKE_CURRENT_LIST_DIR}/src")
set(KERNELS ${SRC}/kernel_portable.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND KERNELS ${SRC}/kernel_avx2.cpp ${SRC}/kernel_avx512.cpp)
  set_source_files_properties(${SRC}/kernel_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mbmi2")
  set_source_files_properties(${SRC}/kernel_avx512.cpp PROPERTIES COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512vpopcntdq")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  list(APPEND KERNELS ${SRC}/kernel_neon.cpp)
  # gcc would load every pixel before it counts the first, and spill sums in the loop
  set_source_files_properties(${SRC}/kernel_neon.cpp PROPERTIES COMPILE_OPTIONS "-fno-schedule-insns")
endif()

add_library(bnn_kernels OBJECT ${SRC}/c_api.cpp ${SRC}/convolution.cpp ${SRC}/dispatch.cpp ${SRC}/epilogue.cpp
            ${SRC}/pack.cpp ${SRC}/pool.cpp ${SRC}/speed.cpp ${KERNELS})
target_compile_options(bnn_kernels PRIVATE ${KERNEL_OPTIONS})
set_target_properties(bnn_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON)
