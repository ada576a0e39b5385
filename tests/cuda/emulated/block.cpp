#include "block.h"

#include <link.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <boost/context/fiber.hpp>
#include <boost/context/pooled_fixedsize_stack.hpp>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <queue>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "device.h"

namespace graft::emulated {
namespace {

using boost::context::fiber;

constexpr char kPoison = '\xFF';
constexpr std::size_t kStackBytes = 64 << 10;
constexpr std::size_t kGuardBytes = 1 << 20, kRoom = 256 << 10;
// Addresses as instructions see them; 0 is none.
constexpr std::uint32_t kStaticAt = 1 << 16, kDynamicAt = 1 << 20;

Schedule schedule;

/// What the program declares thread_local, of the calling thread; kernels' __shared__ is among it,
/// and all else there is of no use to a thread that only runs kernels.
std::span<char> static_shared() {
  std::span<char> out;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* to) {
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data)
            *static_cast<std::span<char>*>(to) = {static_cast<char*>(info->dlpi_tls_data),
                                                  info->dlpi_phdr[i].p_memsz};
        return 1;  // the program comes first
      },
      &out);
  return out;
}

/// Dynamic shared memory: it ends where no memory is, but for what aligns its begin to 128 bytes.
class SharedMemory {
 public:
  SharedMemory()
      : all_(static_cast<char*>(mmap(nullptr, kGuardBytes + kRoom + kGuardBytes, PROT_NONE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (all_ == MAP_FAILED || mprotect(room(), kRoom, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
  }
  ~SharedMemory() { munmap(all_, kGuardBytes + kRoom + kGuardBytes); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void begin_block(std::size_t bytes) {
    bytes_ = bytes;
    memory = room() + kRoom - (bytes + 127) / 128 * 128;
    std::memset(room(), kPoison, kRoom);
    std::ranges::fill(statics, kPoison);
  }
  /// Whether nothing was written beside the block's memory.
  bool is_whole() const {
    const auto poison = [](char byte) { return byte == kPoison; };
    return std::all_of(static_cast<const char*>(room()), static_cast<const char*>(memory),
                       poison) &&
           std::all_of(static_cast<const char*>(memory) + bytes_,
                       static_cast<const char*>(room()) + kRoom, poison);
  }
  bool is_guard(const void* address) const {
    const auto* at = static_cast<const char*>(address);
    return at >= all_ && at < all_ + kGuardBytes + kRoom + kGuardBytes;
  }
  std::size_t bytes() const { return bytes_; }

  char* memory = nullptr;
  const std::span<char> statics = static_shared();  ///< of the thread that made this

 private:
  char* room() const { return all_ + kGuardBytes; }

  char* all_;
  std::size_t bytes_ = 0;
};

std::string hexadecimal(std::uint32_t number) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%x", number);
  return text;
}

struct Copy {
  char* to;
  const void* from;
  int bytes;
  int group;  // of this thread's groups
};

struct Thread {
  fiber own;
  uint3 index;
  std::size_t rank = 0;
  const char* waits_in = nullptr;  // null: it may run
  std::uint32_t mask = 0;          // of a warp's operation
  void* given = nullptr;
  std::function<bool()> ready;  // of wait_until()
  bool ended = false;
  std::vector<Copy> copies;
  int groups = 0;  // committed
};

void make(const Copy& copy) {
  std::memset(copy.to, 0, 16);
  std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
}

/// The block that runs.
class Block {
 public:
  Block(uint3 index, dim3 size, std::size_t shared_bytes, std::uint32_t number,
        const std::function<void()>& thread, SharedMemory& shared)
      : shared(shared),
        index_(index),
        threads_(size.x * size.y * size.z),
        by_rank_(threads_.size()) {
    static boost::context::pooled_fixedsize_stack stacks(kStackBytes);
    shared.begin_block(shared_bytes);
    std::iota(by_rank_.begin(), by_rank_.end(), std::size_t{0});
    if (schedule.order == Schedule::Order::descending)
      std::reverse(by_rank_.begin(), by_rank_.end());
    if (schedule.order == Schedule::Order::shuffled) {
      std::mt19937 random(schedule.seed + number);
      std::shuffle(by_rank_.begin(), by_rank_.end(), random);
    }
    for (std::size_t rank = 0; rank < threads_.size(); ++rank) {
      threads_[by_rank_[rank]].rank = rank;
      free_.push(rank);
    }
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      const auto at = static_cast<unsigned>(i);
      threads_[i].index = {at % size.x, at / size.x % size.y, at / size.x / size.y};
      threads_[i].own = fiber(std::allocator_arg, stacks,
                              [this, i, &thread](fiber&& from) {
                                scheduler_ = std::move(from);
                                try {
                                  thread();
                                } catch (const boost::context::detail::forced_unwind&) {
                                  throw;
                                } catch (...) {
                                  error_ = std::current_exception();
                                }
                                threads_[i].ended = true;
                                return std::move(scheduler_);
                              });
    }
  }

  void run() {
    ::blockIdx = index_;
    while (Thread* next = next_free()) {
      current_ = next;
      ::threadIdx = next->index;
      next->own = std::move(next->own).resume();
      if (error_) std::rethrow_exception(error_);
    }
    if (!std::all_of(threads_.begin(), threads_.end(), [](const auto& t) { return t.ended; }))
      throw Misuse(name() + " waits for ever: " + what_threads_do());
    if (!shared.is_whole()) throw Misuse(name() + " wrote beside its shared memory");
  }

  Thread& own() { return *current_; }
  std::size_t own_number() const { return static_cast<std::size_t>(current_ - threads_.data()); }
  std::size_t count() const { return threads_.size(); }
  Thread& thread(std::size_t number) { return threads_[number]; }

  /// Until another thread lets this one go on.
  void wait(const char* what) {
    current_->waits_in = what;
    scheduler_ = std::move(scheduler_).resume();
  }
  void let_go(Thread& thread) {
    if (&thread == current_) return;
    thread.waits_in = nullptr;
    thread.mask = 0;
    free_.push(thread.rank);
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw Misuse(name() + ", thread " + std::to_string(own_number()) + ": " + what);
  }

  SharedMemory& shared;
  std::size_t at_barrier = 0;

 private:
  Thread* next_free() {
    current_ = nullptr;
    if (free_.empty())
      for (auto& thread : threads_)
        if (thread.ready && thread.ready()) {
          thread.ready = nullptr;
          let_go(thread);
        }
    if (free_.empty()) return nullptr;
    const auto rank = free_.top();
    free_.pop();
    return &threads_[by_rank_[rank]];
  }

  std::string name() const {
    return "block (" + std::to_string(index_.x) + ", " + std::to_string(index_.y) + ", " +
           std::to_string(index_.z) + ")";
  }
  std::string what_threads_do() const {
    std::map<std::string, std::pair<std::size_t, std::size_t>> groups;  // count, first
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      const auto& thread = threads_[i];
      std::string does = thread.ended ? "have ended" : std::string("are in ") + thread.waits_in;
      if (thread.mask) does += " of lanes " + hexadecimal(thread.mask);
      const auto group = groups.try_emplace(does, 0, i).first;
      ++group->second.first;
    }
    std::string out;
    for (const auto& [does, group] : groups)
      out += (out.empty() ? "" : ", ") + std::to_string(group.first) + " threads from " +
             std::to_string(group.second) + " on " + does;
    return out;
  }

  uint3 index_;
  std::vector<Thread> threads_;
  std::vector<std::size_t> by_rank_;  // threads; the lowest rank goes first
  std::priority_queue<std::size_t, std::vector<std::size_t>, std::greater<>> free_;  // ranks
  Thread* current_ = nullptr;
  fiber scheduler_;
  std::exception_ptr error_;
};

Block* running = nullptr;

Block& block() {
  if (!running) throw std::logic_error("only a kernel may do this");
  return *running;
}

/// Where there is no shared memory becomes an exception of the thread that touched it.
void touched_nothing(int, siginfo_t* info, void*) {
  if (running && running->shared.is_guard(info->si_addr))
    running->fail("it reads or writes outside of the " + std::to_string(running->shared.bytes()) +
                  " bytes of shared memory that the launch asked for");
  signal(SIGSEGV, SIG_DFL);  // comes again at once
}

class GuardHandler {
 public:
  GuardHandler() {
    struct sigaction own{};
    own.sa_sigaction = touched_nothing;
    own.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &own, &before_);
  }
  ~GuardHandler() { sigaction(SIGSEGV, &before_, nullptr); }
  GuardHandler(const GuardHandler&) = delete;
  GuardHandler& operator=(const GuardHandler&) = delete;

 private:
  struct sigaction before_;
};

void run_blocks(dim3 blocks, dim3 threads, std::size_t shared_bytes,
                const std::function<void()>& thread) {
  SharedMemory shared;
  ::gridDim = blocks;
  ::blockDim = threads;
  std::uint32_t number = 0;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) {
        Block next({x, y, z}, threads, shared_bytes, number++, thread, shared);
        const struct Running {
          explicit Running(Block* block) { running = block; }
          ~Running() { running = nullptr; }
        } now(&next);
        next.run();
      }
}

}  // namespace

void set_schedule(const Schedule& wanted) { schedule = wanted; }

void run_grid(dim3 blocks, dim3 threads, std::size_t shared_bytes,
              const std::function<void()>& thread) {
  const GuardHandler handler;
  std::exception_ptr error;
  std::thread([&] {
    try {
      run_blocks(blocks, threads, shared_bytes, thread);
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
}

void meet_block() {
  auto& b = block();
  if (++b.at_barrier < b.count()) return b.wait("__syncthreads");
  b.at_barrier = 0;
  for (std::size_t i = 0; i < b.count(); ++i) b.let_go(b.thread(i));
}

int own_lane() { return static_cast<int>(block().own_number() % 32); }

void meet_warp(std::uint32_t mask, const char* name, void* given,
               const std::function<void(const Lanes&)>& together) {
  auto& b = block();
  const std::size_t first = b.own_number() / 32 * 32;
  if (!(mask >> own_lane() & 1)) b.fail(std::string(name) + " without its own lane in the mask");
  b.own().given = given;
  Lanes lanes{};
  for (std::size_t lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (first + lane >= b.count()) b.fail(std::string(name) + " of lanes that the block has not");
    const auto& thread = b.thread(first + lane);
    lanes[lane] = thread.given;
    if (&thread == &b.own() || (thread.mask == mask && std::strcmp(thread.waits_in, name) == 0))
      continue;
    b.own().mask = mask;
    return b.wait(name);
  }
  together(lanes);
  for (std::size_t lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) b.let_go(b.thread(first + lane));
}

void wait_until(const char* what, const std::function<bool()>& ready) {
  if (ready()) return;
  block().own().ready = ready;
  block().wait(what);
}

char* dynamic_shared() { return block().shared.memory; }

std::uint32_t shared_address(const void* pointer) {
  auto& b = block();
  const auto* at = static_cast<const char*>(pointer);
  if (at >= b.shared.memory && at <= b.shared.memory + b.shared.bytes())
    return kDynamicAt + static_cast<std::uint32_t>(at - b.shared.memory);
  if (at >= b.shared.statics.data() && at < b.shared.statics.data() + b.shared.statics.size())
    return kStaticAt + static_cast<std::uint32_t>(at - b.shared.statics.data());
  b.fail("it takes the address in shared memory of something else");
}

char* at_shared(const char* who, std::uint32_t address, std::size_t bytes, std::size_t alignment) {
  auto& b = block();
  if (address % alignment != 0)
    b.fail(std::string(who) + " at " + hexadecimal(address) + ", which is not a multiple of " +
           std::to_string(alignment));
  if (address >= kDynamicAt && address - kDynamicAt + bytes <= b.shared.bytes())
    return b.shared.memory + (address - kDynamicAt);
  if (address >= kStaticAt && address - kStaticAt + bytes <= b.shared.statics.size())
    return b.shared.statics.data() + (address - kStaticAt);
  b.fail(std::string(who) + " outside of shared memory");
}

void copy_later(std::uint32_t to, const void* from, int bytes) {
  auto& b = block();
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0)
    b.fail("cp.async from what is not aligned to 16 bytes");
  if (bytes < 0 || bytes > 16) b.fail("cp.async of " + std::to_string(bytes) + " bytes");
  auto& own = b.own();
  const Copy copy{at_shared("cp.async", to, 16, 16), from, bytes, own.groups};
  if (schedule.copies_at_once)
    make(copy);
  else
    own.copies.push_back(copy);
}

void commit_copies() { ++block().own().groups; }

void wait_for_copies(int pending) {
  auto& own = block().own();
  const auto late = std::find_if(own.copies.begin(), own.copies.end(), [&](const Copy& copy) {
    return copy.group >= own.groups - pending;
  });
  std::for_each(own.copies.begin(), late, make);
  own.copies.erase(own.copies.begin(), late);
}

}  // namespace graft::emulated
