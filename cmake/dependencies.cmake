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
list(APPEND CMAKE_PREFIX_PATH ${GRAFT_TORCH_DIR}/share/cmake)
find_package(Torch REQUIRED)

find_package(OpenMP REQUIRED COMPONENTS CXX)   # at::parallel_for is serial without it
find_package(Boost 1.74 REQUIRED COMPONENTS context filesystem)
find_package(yaml-cpp REQUIRED)
find_package(nlohmann_json 3.10 REQUIRED)
find_package(CLI11 REQUIRED)
find_package(ICU 70 REQUIRED COMPONENTS uc i18n)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
if(GRAFT_TESTS)
  find_package(doctest REQUIRED)
endif()
