# CUDA on request: -DGRAFT_CUDA=ON, or a preset cuda*. It needs the CUDA Toolkit to build, but no
# device, and no driver to load; LibTorch may be a CPU build.
option(GRAFT_CUDA "Build the kernels for CUDA devices" OFF)
option(GRAFT_CUDA_KERNELS_ONLY "Build nothing else; needs LibTorch and the CUDA Toolkit alone" OFF)
# PTX of the last, for devices that come later.
set(GRAFT_CUDA_ARCHITECTURES "80-real;86-real;89-real;90-real;100-real;120" CACHE STRING
    "What the CUDA kernels are compiled for; one alone, such as 90-real, is fast to build")
if(NOT GRAFT_CUDA)
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda
               PATH_SUFFIXES bin)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "GRAFT_CUDA is ON, but nvcc was not found. Install the CUDA Toolkit, 12.8 "
                        "or later (nvcc, and cudart's headers and static library), and put "
                        "its bin folder on PATH or give -DCMAKE_CUDA_COMPILER=<toolkit>/bin/nvcc.")
  endif()
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)  # the first that knows sm_100 and sm_120
  message(FATAL_ERROR "GRAFT_CUDA needs the CUDA Toolkit 12.8 or later, but "
                      "${CMAKE_CUDA_COMPILER} is of ${CMAKE_CUDA_COMPILER_VERSION}.")
endif()
set(CMAKE_CUDA_ARCHITECTURES ${GRAFT_CUDA_ARCHITECTURES})
find_package(CUDAToolkit REQUIRED)
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()

# Two cores at most: nvcc works on two architectures at a time, or Ninja on two files of one.
list(LENGTH GRAFT_CUDA_ARCHITECTURES architectures)
if(architectures GREATER 1)
  add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:--threads=2>)
  set_property(GLOBAL APPEND PROPERTY JOB_POOLS cuda=1)
else()
  set_property(GLOBAL APPEND PROPERTY JOB_POOLS cuda=2)
endif()

# graft_own_cuda(target): flags of graft's own CUDA files, as graft_own() has them for C++. The code
# of all architectures is compressed to an eighth of its size.
function(graft_own_cuda target)
  set_target_properties(${target} PROPERTIES JOB_POOL_COMPILE cuda POSITION_INDEPENDENT_CODE ON)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-compress-mode=size;-Xcompiler=-Wall,-Wextra>"
    "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${GRAFT_WERROR}>>:-Werror=all-warnings>")
endfunction()
