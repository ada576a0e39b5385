# graft_add_plugin(<name>
#                  SOURCES file...             plugin.cpp, the quantizer, operators: they see torch
#                  [KERNELS file...]           torch-free sources, <name>_avx2.cpp and
#                                              <name>_avx512.cpp for these instruction sets,
#                                              <name>.cu for CUDA devices
#                  [REGISTRY registry.yaml]    the plugin's own rules
#                  [OUTPUT_DIRECTORY folder])  default: GRAFT_PLUGIN_OUTPUT_DIRECTORY when set, else
#                                              <build>/lib/graft/plugins, and installed
#
# makes
#   graft_<name>          libgraft_<name>.so, a module that graft finds in its plugin folder
#   graft_<name>_kernels  a static library of KERNELS, when there are any; unit tests link it
#                         without torch. AVX files are left out on other processors, so a
#                         dispatcher names their functions under #if defined(__x86_64__); CUDA
#                         files where graft is built without, so under #if defined(GRAFT_HAS_CUDA).
#   libgraft_<name>.yaml  the REGISTRY file, beside the library: the same name, another ending.
#
# This is the only place with plugin flags. A plugin exports one symbol, resolves all others when it
# is linked and again when it is loaded, and is never unmapped.
include_guard(GLOBAL)
include(GNUInstallDirs)
include(${CMAKE_CURRENT_LIST_DIR}/graft_add_kernels.cmake)

set(GRAFT_PLUGIN_MAP ${CMAKE_CURRENT_LIST_DIR}/plugin.map)

function(graft_add_plugin name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "REGISTRY;OUTPUT_DIRECTORY"
                        "SOURCES;KERNELS")
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_SOURCES)
    message(FATAL_ERROR "graft_add_plugin(${name}): SOURCES are needed, and these arguments are "
                        "unknown: '${arg_UNPARSED_ARGUMENTS}'")
  endif()
  set(target graft_${name})
  if(NOT arg_OUTPUT_DIRECTORY)
    set(arg_OUTPUT_DIRECTORY ${GRAFT_PLUGIN_OUTPUT_DIRECTORY})
  endif()
  set(folder ${PROJECT_BINARY_DIR}/lib/graft/plugins)
  if(arg_OUTPUT_DIRECTORY)
    set(folder ${arg_OUTPUT_DIRECTORY})
  endif()

  if(arg_KERNELS)
    graft_add_kernels(${target}_kernels ${arg_KERNELS})
  endif()
  if(GRAFT_CUDA_KERNELS_ONLY)
    return()
  endif()
  add_library(${target} MODULE ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE graft::plugin)
  if(arg_KERNELS)
    target_link_libraries(${target} PRIVATE ${target}_kernels)
  endif()
  if(TARGET graft_cuda_kernels)  # inside graft's own build with CUDA: gives GRAFT_HAS_CUDA=1
    target_link_libraries(${target} PRIVATE graft_cuda_kernels)
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
    target_precompile_headers(${target} REUSE_FROM graft)  # only inside graft's own build
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
