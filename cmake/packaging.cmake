# What `cmake --install` gives those who build against graft, and `cpack` packages.
include(CMakePackageConfigHelpers)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/graft)
install(EXPORT graftTargets NAMESPACE graft:: DESTINATION ${package_folder})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/graftConfig.cmake.in graftConfig.cmake
                              INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(graftConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/graftConfig.cmake ${PROJECT_BINARY_DIR}/graftConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/graft_add_plugin.cmake
              ${CMAKE_CURRENT_LIST_DIR}/graft_add_kernels.cmake
              ${CMAKE_CURRENT_LIST_DIR}/plugin.map
        DESTINATION ${package_folder})

option(GRAFT_BUNDLE_TORCH "Install LibTorch's libraries beside libgraft" OFF)
if(GRAFT_BUNDLE_TORCH)
  file(GLOB torch_libraries ${GRAFT_TORCH_DIR}/lib/libtorch.so ${GRAFT_TORCH_DIR}/lib/libtorch_cpu.so
       ${GRAFT_TORCH_DIR}/lib/libc10.so ${GRAFT_TORCH_DIR}/lib/libgomp*.so*)
  install(PROGRAMS ${torch_libraries} DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

install(FILES ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/README.md
              ${PROJECT_SOURCE_DIR}/CHANGELOG.md
        DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR})
# What the documents say to copy.
install(DIRECTORY ${PROJECT_SOURCE_DIR}/plugins/template ${PROJECT_SOURCE_DIR}/examples
        DESTINATION ${CMAKE_INSTALL_DATADIR}/graft)

# The prefix is found from where graft.pc lies, so that the tree can be moved.
file(RELATIVE_PATH GRAFT_PC_TO_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(${CMAKE_CURRENT_LIST_DIR}/graft.pc.in graft.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/graft.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(NOT PROJECT_IS_TOP_LEVEL)
  return()
endif()
set(CPACK_GENERATOR TGZ DEB)
set(CPACK_PACKAGE_CONTACT "the graft authors <graft@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY ${PROJECT_DESCRIPTION})
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
# LibTorch is no Debian package: it stays where GRAFT_TORCH_DIR says.
set(CPACK_DEBIAN_PACKAGE_DEPENDS
    "libstdc++6 (>= 12), libgomp1, libboost-context1.74.0, libboost-filesystem1.74.0, libyaml-cpp0.7, libicu72, libpcre2-8-0")
include(CPack)
