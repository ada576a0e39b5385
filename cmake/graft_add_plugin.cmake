# graft_add_plugin(<name>
#                  SOURCES file...             plugin.cpp, the quantizer, operators: they see torch
#                  [KERNELS file...]           torch-free sources, compiled at the baseline
#                  [AVX2 file...]              torch-free sources, one instruction set each
#                  [AVX512 file...]
#                  [REGISTRY registry.yaml]    the plugin's own rules
#                  [OUTPUT_DIRECTORY folder])  default: <build>/lib/graft/plugins, installed too
#
# makes
#   graft_<name>          libgraft_<name>.so, a module that graft finds in its plugin folder
#   graft_<name>_kernels  a static library of KERNELS, AVX2 and AVX512, when there are any; unit
#                         tests link it without torch. AVX files are left out on other processors,
#                         so a dispatcher names their functions under #if defined(__x86_64__).
#   libgraft_<name>.yaml  the REGISTRY file, beside the library: the same name, another ending.
#
# This is the only place with plugin flags. A plugin exports one symbol, resolves all others when it
# is linked and again when it is loaded, and is never unmapped.
include_guard(GLOBAL)

set(GRAFT_PLUGIN_MAP ${CMAKE_CURRENT_LIST_DIR}/plugin.map)
set(GRAFT_AVX2_FLAGS -mavx2 -mfma -mf16c)
set(GRAFT_AVX512_FLAGS -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mavx2
                       -mfma -mf16c)

function(graft_add_plugin name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "REGISTRY;OUTPUT_DIRECTORY"
                        "SOURCES;KERNELS;AVX2;AVX512")
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_SOURCES)
    message(FATAL_ERROR "graft_add_plugin(${name}): SOURCES are needed, and these arguments are "
                        "unknown: '${arg_UNPARSED_ARGUMENTS}'")
  endif()
  set(target graft_${name})
  set(folder ${PROJECT_BINARY_DIR}/lib/graft/plugins)
  if(arg_OUTPUT_DIRECTORY)
    set(folder ${arg_OUTPUT_DIRECTORY})
  endif()

  add_library(${target} MODULE ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE graft::graft OpenMP::OpenMP_CXX)
  if(arg_KERNELS OR arg_AVX2 OR arg_AVX512)
    _graft_add_kernels(${target}_kernels "${arg_KERNELS}" "${arg_AVX2}" "${arg_AVX512}")
    target_link_libraries(${target} PRIVATE ${target}_kernels)
  endif()

  set_target_properties(${target} PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY ${folder}
    CXX_VISIBILITY_PRESET hidden
    C_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    LINK_DEPENDS ${GRAFT_PLUGIN_MAP}
    BUILD_RPATH "$ORIGIN/../.."
    INSTALL_RPATH "$ORIGIN/../..;${GRAFT_TORCH_DIR}/lib")
  target_link_options(${target} PRIVATE
    -Wl,--version-script=${GRAFT_PLUGIN_MAP} -Wl,-z,nodelete -Wl,-z,now)
  # Clang leaves the sanitizer's run time to the executable, so its symbols stay undefined there.
  if(NOT (GRAFT_SANITIZE AND CMAKE_CXX_COMPILER_ID MATCHES "Clang"))
    target_link_options(${target} PRIVATE -Wl,-z,defs)
  endif()
  if(COMMAND graft_own)
    graft_own(${target})
  endif()

  if(arg_REGISTRY)
    configure_file(${arg_REGISTRY} ${folder}/lib${target}.yaml COPYONLY)
  endif()
  if(NOT arg_OUTPUT_DIRECTORY)
    install(TARGETS ${target} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/graft/plugins)
    if(arg_REGISTRY)
      install(FILES ${folder}/lib${target}.yaml DESTINATION ${CMAKE_INSTALL_LIBDIR}/graft/plugins)
    endif()
  endif()
endfunction()

# A static library of torch-free kernels. Each file of an instruction set gets its own flags: code
# compiled for AVX-512 may use it anywhere in the file.
function(_graft_add_kernels target baseline avx2 avx512)
  add_library(${target} STATIC ${baseline})
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_sources(${target} PRIVATE ${avx2} ${avx512})
    set_source_files_properties(${avx2} PROPERTIES COMPILE_OPTIONS "${GRAFT_AVX2_FLAGS}")
    set_source_files_properties(${avx512} PROPERTIES COMPILE_OPTIONS "${GRAFT_AVX512_FLAGS}")
  endif()
  set_target_properties(${target} PROPERTIES
    LINKER_LANGUAGE CXX
    POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(${target} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(${target} PUBLIC graft::headers)
  if(TARGET graft_kernels)
    target_link_libraries(${target} PUBLIC graft_kernels)
  endif()
  if(COMMAND graft_own)
    graft_own(${target})
  endif()
endfunction()
