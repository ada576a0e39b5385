# LibTorch comes from a Python wheel: -DGRAFT_TORCH_DIR=<site-packages>/torch, else the project's .venv.
set(GRAFT_TORCH_DIR "$ENV{GRAFT_TORCH_DIR}" CACHE PATH "The torch directory that holds share/cmake/Torch")
if(NOT GRAFT_TORCH_DIR)
  file(GLOB venv_torch ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
  if(NOT venv_torch)
    message(FATAL_ERROR "LibTorch was not found. Run ./run once, which makes .venv with torch, "
                        "or give -DGRAFT_TORCH_DIR=<site-packages>/torch of an installed torch.")
  endif()
  list(GET venv_torch 0 GRAFT_TORCH_DIR)
endif()
if(GRAFT_CUDA_KERNELS_ONLY)  # the bench links LibTorch's files: its CMake package wants all of CUDA
  find_package(doctest QUIET)
  return()
endif()
# Its files are linked as they are, under the name that its own CMake package gives them: where it has
# CUDA that package wants every CUDA library to compile against, and changes nvcc's flags.
set(torch_libraries ${GRAFT_TORCH_DIR}/lib)
if(NOT EXISTS ${torch_libraries}/libtorch.so)
  message(FATAL_ERROR "GRAFT_TORCH_DIR is ${GRAFT_TORCH_DIR}, but there is no lib/libtorch.so in it. "
                      "Give the torch directory of an installed torch, <site-packages>/torch.")
endif()
include(${GRAFT_TORCH_DIR}/share/cmake/Torch/TorchConfigVersion.cmake)
set(Torch_VERSION ${PACKAGE_VERSION})
set(torch_kernels ${torch_libraries}/libtorch_cpu.so)
if(EXISTS ${torch_libraries}/libtorch_cuda.so)
  string(APPEND torch_kernels ",${torch_libraries}/libtorch_cuda.so")
endif()
if(NOT TARGET torch)  # of a project that graft is a part of
  add_library(torch SHARED IMPORTED)
  set_target_properties(torch PROPERTIES
    IMPORTED_LOCATION ${torch_libraries}/libtorch.so
    IMPORTED_SONAME libtorch.so
    INTERFACE_INCLUDE_DIRECTORIES
      "${GRAFT_TORCH_DIR}/include;${GRAFT_TORCH_DIR}/include/torch/csrc/api/include"
    INTERFACE_COMPILE_DEFINITIONS "USE_DISTRIBUTED;USE_C10D_GLOO;USE_RPC;USE_TENSORPIPE"
    # Kernels register themselves: nothing names them.
    INTERFACE_LINK_LIBRARIES
      "-Wl,--no-as-needed,${torch_kernels},--as-needed;${torch_libraries}/libc10.so")
endif()

find_package(OpenMP REQUIRED COMPONENTS CXX)   # at::parallel_for is serial without it
find_package(Boost 1.74 REQUIRED COMPONENTS context filesystem)
find_package(yaml-cpp REQUIRED)
find_package(nlohmann_json 3.10 REQUIRED)
find_package(CLI11 REQUIRED)
find_package(ICU 70 REQUIRED COMPONENTS uc i18n)
find_path(PCRE2_INCLUDE_DIR pcre2.h REQUIRED)
find_library(PCRE2_LIBRARY pcre2-8 REQUIRED)
add_library(PCRE2::8BIT UNKNOWN IMPORTED)
set_target_properties(PCRE2::8BIT PROPERTIES IMPORTED_LOCATION ${PCRE2_LIBRARY}
                                             INTERFACE_INCLUDE_DIRECTORIES ${PCRE2_INCLUDE_DIR})
if(GRAFT_TESTS)
  find_package(doctest REQUIRED)
endif()
