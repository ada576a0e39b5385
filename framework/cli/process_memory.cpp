#include "cli/process_memory.h"

#include <cstdlib>
#include <fstream>
#include <string>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace graft::cli {

std::uint64_t memory_of_process(std::string_view field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(field) && line[field.size()] == ':')
      return std::strtoull(line.c_str() + field.size() + 1, nullptr, 10) * 1024;
  return 0;
}

bool return_large_memory([[maybe_unused]] std::uint64_t bytes) {
#ifdef __GLIBC__
  return bytes >= 1ULL << 30 && mallopt(M_MMAP_THRESHOLD, 4 << 20) == 1;
#else
  return false;
#endif
}

}  // namespace graft::cli
