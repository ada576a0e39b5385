// graft_cuda_loads LIBRARY BYTES: whether the file has fewer bytes and loads with all its symbols
// resolved, without bringing CUDA's driver in.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

bool driver_is_loaded() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);)
    if (line.find("/libcuda.so") != std::string::npos) return true;
  return false;
}

int fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return fail("graft_cuda_loads LIBRARY BYTES");
  const auto bytes = std::filesystem::file_size(argv[1]);
  std::printf("%s: %ju bytes\n", argv[1], static_cast<std::uintmax_t>(bytes));
  if (bytes >= std::strtoull(argv[2], nullptr, 10))
    return fail("expected fewer than " + std::string(argv[2]));
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail(dlerror());
  if (driver_is_loaded()) return fail("it loads libcuda.so, which not every machine has");
  if (void* count = dlsym(library, "graft_cuda_device_count"))
    std::printf("%d devices\n", reinterpret_cast<int (*)()>(count)());
}
