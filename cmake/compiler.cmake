# Flags for graft's own targets: graft_own(target) adds warnings and sanitizers. Third-party code
# and consumers of the installed targets never see them.

find_program(CCACHE ccache)
if(CCACHE)
  # Without this sloppiness ccache passes by every file that uses a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()

function(graft_own target)
  set(options
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
    # GCC 12 reports std::string's operator+ (bug 105651).
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
    # Clang reports std::stable_sort of GCC 12's library.
    $<$<CXX_COMPILER_ID:Clang>:-Wno-deprecated-declarations>
    $<$<BOOL:${GRAFT_WERROR}>:-Werror>)
  if(GRAFT_SANITIZE)
    list(APPEND options -fsanitize=${GRAFT_SANITIZE} -fno-omit-frame-pointer
                        -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${GRAFT_SANITIZE})
  endif()
  # nvcc takes none of them; cuda.cmake has what it takes.
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:C,CXX>:${options}>")
  if(GRAFT_FUZZ)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()
