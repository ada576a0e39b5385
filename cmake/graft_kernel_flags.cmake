# graft_kernel_flags(files...): instruction sets by file name, <name>_avx2.cpp and <name>_avx512.cpp,
# and no contraction to fused multiply-adds in any of the files, so that every level rounds alike.
# Call it in the directory whose target compiles the files. Such files hold raw-pointer code only:
# an inline function of a library header compiled here would leak to CPUs without the instructions.
function(graft_kernel_flags)
  foreach(file IN LISTS ARGN)
    set(flags -ffp-contract=off)
    if(file MATCHES "_avx2\\.cpp$")
      list(APPEND flags -mavx2 -mfma -mf16c)
    elseif(file MATCHES "_avx512\\.cpp$")
      list(APPEND flags -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi
           -mavx512vnni)
    endif()
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${flags}")
  endforeach()
endfunction()
