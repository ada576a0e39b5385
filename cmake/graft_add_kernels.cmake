# graft_add_kernels(<target> file...): a static library of torch-free kernels, position independent
# and hidden wherever it is linked. The instruction set goes by file name, <name>_avx2.cpp,
# <name>_avx512.cpp and <name>_avx512bf16.cpp; those files are left out on other processors. No file
# contracts to fused multiply-adds by itself, so that every level rounds alike. AVX files hold
# raw-pointer code only: an inline function of a library header compiled there would leak to CPUs
# without the instructions.
#
# CUDA files, <name>.cu, are left out where graft is built without CUDA and outside of graft's own
# build. Otherwise GRAFT_HAS_CUDA=1 is defined for the kernels of plugins and those that link them.
include_guard(GLOBAL)

set(GRAFT_AVX2_FLAGS -mavx2 -mfma -mf16c)
set(GRAFT_AVX512_FLAGS ${GRAFT_AVX2_FLAGS} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi
                       -mavx512vnni)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)  # 12 warns of its own _mm512_undefined_ps (bug 105593)
  list(APPEND GRAFT_AVX512_FLAGS -Wno-maybe-uninitialized -Wno-uninitialized)
endif()
set(GRAFT_AVX512BF16_FLAGS ${GRAFT_AVX512_FLAGS} -mavx512bf16)

function(graft_add_kernels target)
  set(sources)
  set(has_cuda FALSE)
  foreach(file IN LISTS ARGN)
    if(file MATCHES "\\.cu$")
      if(TARGET graft_cuda_kernels)
        list(APPEND sources ${file})
        set(has_cuda TRUE)
      endif()
      continue()
    endif()
    # Vectors as arguments stay inside their file.
    set(flags $<$<CONFIG:Release>:-O3> -ffp-contract=off -Wno-psabi)
    if(file MATCHES "_avx(2|512|512bf16)\\.cpp$")
      string(TOUPPER ${CMAKE_MATCH_1} level)
      if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
        continue()
      endif()
      list(APPEND flags ${GRAFT_AVX${level}_FLAGS})
    endif()
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${flags}")
    list(APPEND sources ${file})
  endforeach()
  add_library(${target} STATIC ${sources})
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(${target} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(${target} PUBLIC graft::headers)
  if(COMMAND graft_own)  # only inside graft's own build
    graft_own(${target})
    if(has_cuda)
      graft_own_cuda(${target})
    endif()
    if(NOT target STREQUAL graft_kernels)
      target_link_libraries(${target} PUBLIC graft_kernels
                                             $<TARGET_NAME_IF_EXISTS:graft_cuda_kernels>)
    endif()
  endif()
endfunction()
