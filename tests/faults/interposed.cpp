#include "interposed.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <unwind.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <string_view>
#include <vector>

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* pointer, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void __libc_free(void* pointer);
}

namespace graft::faults {
namespace {

// ---- Files

std::atomic<bool> files_armed{false};
std::atomic<long> file_calls{0};
Calls which_files = Calls::reading;
long file_at = -1;
How file_how = How::fail;
int file_code = 0;
std::atomic<const char*> file_denied{nullptr};

/// Whether this call is the one to deny.
bool due(Calls which, const char* function) {
  if (!files_armed.load(std::memory_order_relaxed) || which != which_files) return false;
  if (file_calls.fetch_add(1) != file_at) return false;
  file_denied = function;
  return true;
}

template <class Function>
Function* system_function(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

// ---- Memory

struct Range {
  std::uintptr_t begin, end;
};
/// Code of libgraft and its plugins, and of libraries that work for whoever called them.
std::vector<Range> ours, between;

std::atomic<bool> memory_armed{false};
std::atomic<long> allocations{0};
std::atomic<bool> memory_denied{false};
long memory_at = -1;

/// The allocations that count and are still there, in a table with open addressing.
struct Live {
  void* pointer;
  void* caller;
};
constexpr std::size_t kTable = std::size_t{1} << 20;
std::array<Live, kTable> live;
std::atomic<long> live_count{0};
std::mutex live_mutex;

std::size_t slot_of(const void* pointer) {
  return (reinterpret_cast<std::uintptr_t>(pointer) >> 4) * 0x9E3779B97F4A7C15u >> 44;
}

void remember(void* pointer, void* caller) {
  const std::lock_guard lock(live_mutex);
  std::size_t i = slot_of(pointer);
  while (live[i].pointer) i = (i + 1) % kTable;
  live[i] = {pointer, caller};
  ++live_count;
}

void forget(const void* pointer) {
  if (!pointer || live_count.load(std::memory_order_relaxed) == 0) return;
  const std::lock_guard lock(live_mutex);
  std::size_t i = slot_of(pointer);
  for (; live[i].pointer != pointer; i = (i + 1) % kTable)
    if (!live[i].pointer) return;
  // Those behind move up, so that no search ends at the hole.
  for (std::size_t hole = i;;) {
    live[hole].pointer = nullptr;
    std::size_t j = hole;
    do {
      j = (j + 1) % kTable;
      if (!live[j].pointer) {
        --live_count;
        return;
      }
    } while ((j - slot_of(live[j].pointer)) % kTable < (j - hole) % kTable);
    live[hole] = live[j];
    hole = j;
  }
}

bool in(const std::vector<Range>& ranges, std::uintptr_t address) {
  for (const auto& range : ranges)
    if (address >= range.begin && address < range.end) return true;
  return false;
}

int add_library(dl_phdr_info* info, std::size_t, void*) {
  const std::string_view path(info->dlpi_name);
  const auto name = path.substr(path.rfind('/') + 1);
  std::vector<Range>* list = nullptr;
  if (name.starts_with("libgraft")) list = &ours;
  for (const std::string_view library : {"libstdc++", "libpcre2", "libyaml-cpp", "libicu"})
    if (name.starts_with(library)) list = &between;
  if (!list) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type == PT_LOAD && segment.p_flags & PF_X)
      list->push_back({info->dlpi_addr + segment.p_vaddr,
                       info->dlpi_addr + segment.p_vaddr + segment.p_memsz});
  }
  return 0;
}

thread_local bool looking = false;  ///< unwinding may allocate

/// The code that an allocation is for, or nullptr when it does not count.
void* who_counts(void* caller) {
  const auto address = reinterpret_cast<std::uintptr_t>(caller);
  if (in(ours, address)) return caller;
  if (!in(between, address)) return nullptr;
  void* found = nullptr;
  looking = true;
  _Unwind_Backtrace(
      [](_Unwind_Context* context, void* out) {
        const std::uintptr_t at = _Unwind_GetIP(context);
        static Dl_info self;
        static const bool known = ::dladdr(reinterpret_cast<void*>(&arm_memory), &self) != 0;
        if (in(between, at)) return _URC_NO_REASON;
        if (in(ours, at)) {
          *static_cast<void**>(out) = reinterpret_cast<void*>(at);
          return _URC_END_OF_STACK;
        }
        Dl_info there;
        const bool interposed = known && ::dladdr(reinterpret_cast<void*>(at), &there) &&
                                there.dli_fbase == self.dli_fbase;
        return interposed ? _URC_NO_REASON : _URC_END_OF_STACK;
      },
      &found);
  looking = false;
  return found;
}

/// Allocates unless this allocation is the one to deny.
template <class Allocate>
void* allocate(void* caller, Allocate&& from_system) {
  if (!memory_armed.load(std::memory_order_relaxed) || looking) return from_system();
  void* const who = who_counts(caller);
  if (!who) return from_system();
  if (allocations.fetch_add(1) == memory_at) {
    memory_denied = true;
    return nullptr;
  }
  void* const out = from_system();
  if (out) remember(out, who);
  return out;
}

void* or_throw(void* pointer) {
  if (!pointer) throw std::bad_alloc();
  return pointer;
}

}  // namespace

void arm_files(Calls which, long at, How how, int code) {
  which_files = which;
  file_at = at;
  file_how = how;
  file_code = code;
  file_calls = 0;
  file_denied = nullptr;
  files_armed = true;
}

FileReport disarm_files() {
  files_armed = false;
  const char* denied = file_denied;
  return {file_calls, denied ? denied : ""};
}

void arm_memory(long at) {
  ours.clear();
  between.clear();
  ::dl_iterate_phdr(add_library, nullptr);
  memory_at = at;
  allocations = 0;
  memory_denied = false;
  memory_armed = true;
}

MemoryReport disarm_memory() {
  memory_armed = false;
  MemoryReport out;
  out.calls = allocations;
  out.denied = memory_denied;
  out.left = live_count.exchange(0);  // first: what is freed here does not count
  const std::lock_guard lock(live_mutex);
  if (out.left)
    for (auto& entry : live) {
      if (entry.pointer && out.first_left.empty()) {
        Dl_info info{};
        ::dladdr(entry.caller, &info);
        char place[64];
        std::snprintf(place, sizeof(place), "+0x%zx",
                      reinterpret_cast<std::size_t>(entry.caller) -
                          reinterpret_cast<std::size_t>(info.dli_fbase));
        out.first_left = std::string(info.dli_fname ? info.dli_fname : "?") + place;
      }
      entry = {};
    }
  return out;
}

}  // namespace graft::faults

using namespace graft::faults;

// ---- The functions themselves

extern "C" {

int open(const char* path, int flags, ...) {
  static auto* const real = system_function<int(const char*, int, ...)>("open");
  mode_t mode = 0;
  if (flags & O_CREAT) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
  }
  if (file_how == How::fail && due(flags & O_CREAT ? Calls::writing : Calls::reading, "open")) {
    errno = file_code;
    return -1;
  }
  return real(path, flags, mode);
}

ssize_t pwrite(int fd, const void* data, size_t size, off_t at) {
  static auto* const real = system_function<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  if (due(Calls::writing, "pwrite")) {
    if (file_how == How::once_more && size > 1) return real(fd, data, size / 2, at);
    errno = file_how == How::once_more ? EINTR : file_code;
    return file_code == 0 && file_how == How::fail ? 0 : -1;
  }
  return real(fd, data, size, at);
}

ssize_t pread(int fd, void* data, size_t size, off_t at) {
  static auto* const real = system_function<ssize_t(int, void*, size_t, off_t)>("pread");
  if (due(Calls::reading, "pread")) {
    if (file_how == How::once_more && size > 1) return real(fd, data, size / 2, at);
    errno = file_how == How::once_more ? EINTR : file_code;
    return -1;
  }
  return real(fd, data, size, at);
}

int fstat(int fd, struct stat* out) {
  static auto* const real = system_function<int(int, struct stat*)>("fstat");
  if (file_how == How::fail && due(Calls::reading, "fstat")) {
    errno = file_code;
    return -1;
  }
  return real(fd, out);
}

#define GRAFT_DENIED(function, parameters, ...)                              \
  int function parameters {                                                  \
    static auto* const real = system_function<int parameters>(#function);    \
    if (file_how == How::fail && due(Calls::writing, #function)) {           \
      errno = file_code;                                                     \
      return -1;                                                             \
    }                                                                        \
    return real(__VA_ARGS__);                                                \
  }

GRAFT_DENIED(mkdir, (const char* path, mode_t mode), path, mode)
GRAFT_DENIED(flock, (int fd, int operation), fd, operation)
GRAFT_DENIED(ftruncate, (int fd, off_t size), fd, size)
GRAFT_DENIED(fsync, (int fd), fd)
GRAFT_DENIED(rename, (const char* from, const char* to), from, to)

int close(int fd) {
  static auto* const real = system_function<int(int)>("close");
  const int result = real(fd);
  // Only files that were written tell of a failure here.
  if (file_how == How::fail && due(Calls::writing, "close")) {
    errno = file_code;
    return -1;
  }
  return result;
}

void* malloc(std::size_t size) {
  return allocate(__builtin_return_address(0), [&] { return __libc_malloc(size); });
}

void* calloc(std::size_t count, std::size_t size) {
  return allocate(__builtin_return_address(0), [&] { return __libc_calloc(count, size); });
}

void* realloc(void* pointer, std::size_t size) {
  return allocate(__builtin_return_address(0), [&] {
    forget(pointer);
    return __libc_realloc(pointer, size);
  });
}

void free(void* pointer) {
  forget(pointer);
  __libc_free(pointer);
}

}  // extern "C"

void* operator new(std::size_t size) {
  return or_throw(allocate(__builtin_return_address(0), [&] { return __libc_malloc(size); }));
}
void* operator new[](std::size_t size) {
  return or_throw(allocate(__builtin_return_address(0), [&] { return __libc_malloc(size); }));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(__builtin_return_address(0), [&] { return __libc_malloc(size); });
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return allocate(__builtin_return_address(0), [&] { return __libc_malloc(size); });
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return or_throw(allocate(__builtin_return_address(0), [&] {
    return __libc_memalign(static_cast<std::size_t>(alignment), size);
  }));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return or_throw(allocate(__builtin_return_address(0), [&] {
    return __libc_memalign(static_cast<std::size_t>(alignment), size);
  }));
}
void operator delete(void* pointer) noexcept { free(pointer); }
void operator delete[](void* pointer) noexcept { free(pointer); }
void operator delete(void* pointer, std::size_t) noexcept { free(pointer); }
void operator delete[](void* pointer, std::size_t) noexcept { free(pointer); }
void operator delete(void* pointer, std::align_val_t) noexcept { free(pointer); }
void operator delete[](void* pointer, std::align_val_t) noexcept { free(pointer); }
void operator delete(void* pointer, std::size_t, std::align_val_t) noexcept { free(pointer); }
void operator delete[](void* pointer, std::size_t, std::align_val_t) noexcept { free(pointer); }
