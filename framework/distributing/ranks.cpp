#include "graft/ranks.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/Logging.h>
#include <torch/version.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "distributing/launch_environment.h"
#include "distributing/mailbox.h"

#if TORCH_VERSION_MAJOR != 2 || TORCH_VERSION_MINOR < 11 || TORCH_VERSION_MINOR > 13
#error \
    "framework/distributing/gloo_headers has what LibTorch 2.11 to 2.13 needs of gloo; \
compare it with the ProcessGroupGloo.hpp of this LibTorch, as its README.md says"
#endif
#ifndef USE_C10D_GLOO
#error "This LibTorch was built without gloo, by which framework/distributing connects processes"
#endif
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace graft {
namespace {

/// Between two calls a rank may compute for long; that one has died is seen by its connections.
constexpr std::chrono::milliseconds kLongestCall = std::chrono::hours(1);
/// A letter and the end of a connection may take different ways.
constexpr auto kLetterBehindItsSender = std::chrono::milliseconds(300);

std::string words_of(const std::exception& error) {
  const auto* const c10_error = dynamic_cast<const c10::Error*>(&error);
  std::string words = c10_error ? c10_error->what_without_backtrace() : error.what();
  words = words.substr(0, words.find('\n'));
  // gloo begins with the place in its code and ends with advice.
  if (const auto end = words.find("] "); words.starts_with('[') && end != std::string::npos)
    words.erase(0, end + 2);
  return words.substr(0, words.find(". This is typically"));
}

/// LibTorch prints a stack for each failure that it throws as well, unless its level of logging was
/// set by hand.
class QuietLog {
 public:
  QuietLog() {
    if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  }
  QuietLog(const QuietLog&) = delete;
  QuietLog& operator=(const QuietLog&) = delete;
  ~QuietLog() { FLAGS_caffe2_log_level = before_; }

 private:
  int before_ = FLAGS_caffe2_log_level;
};

/// Keeps SIGPIPE from this thread, and for good from those it starts: gloo writes to connections
/// whose other end may be gone, without asking for an error alone.
class NoBrokenPipeSignal {
 public:
  NoBrokenPipeSignal() {
    sigset_t pending;
    ::sigpending(&pending);
    pending_before_ = ::sigismember(&pending, SIGPIPE) == 1;
    ::sigemptyset(&sigpipe_);
    ::sigaddset(&sigpipe_, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &sigpipe_, &before_);
  }
  NoBrokenPipeSignal(const NoBrokenPipeSignal&) = delete;
  NoBrokenPipeSignal& operator=(const NoBrokenPipeSignal&) = delete;
  ~NoBrokenPipeSignal() {
    const timespec at_once{};
    if (!pending_before_) ::sigtimedwait(&sigpipe_, nullptr, &at_once);
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  bool pending_before_;
  sigset_t sigpipe_, before_;
};

/// A letter is the number of its sender, this, and why.
constexpr const char* kAfterRank = ": ";

/// What a rank is about to do; all must be about to do the same.
enum class Call : std::int64_t { gather, gather_rows };

/// What each rank tells all others first. Most of what is exchanged fits into it: each message
/// costs far more than its bytes.
struct Head {
  Call call;
  std::int64_t size;  ///< of what is exchanged
  char bytes[2032];   ///< that, where it fits
};
constexpr std::size_t kInHead = sizeof(Head::bytes);
/// Parts up to here go in one message, through a copy of them all.
constexpr std::size_t kCopied = 16 << 20;

Error different_calls(int rank, const std::string& own, int other, const std::string& others) {
  Error error(ErrorKind::usage, "the processes do not do the same job");
  error.at("rank " + std::to_string(rank))
      .expected("to exchange " + own)
      .found("rank " + std::to_string(other) + " with " + others)
      .hint("start all of them with the same model, options and build of graft");
  return error;
}

class GlooRanks final : public Ranks {
 public:
  GlooRanks(const LaunchEnvironment& place, std::chrono::milliseconds patience)
      : rank_(place.rank), size_(place.size) {
    const NoBrokenPipeSignal guard;
    c10d::TCPStoreOptions at;
    at.port = place.master_port;
    at.isServer = place.rank == 0 && !place.agent_store;
    if (!place.agent_store) at.numWorkers = static_cast<std::size_t>(place.size);
    at.timeout = patience;
    using c10::make_intrusive;
    const auto store = make_intrusive<c10d::PrefixStore>(
        "graft/" + place.restart, make_intrusive<c10d::TCPStore>(place.master_addr, at));
    // Keys of their own for each time that the ranks of one launch meet.
    const auto meeting = std::to_string((store->add("joined", 1) - 1) / size_);

    mailbox_.emplace(place.master_addr, place.master_port);
    using Gloo = c10d::ProcessGroupGloo;
    const auto options = Gloo::Options::create(patience);
    // LibTorch's own choice is the address of the host's name, often a loopback one.
    const char* const interface = std::getenv("GLOO_SOCKET_IFNAME");
    options->devices.push_back(
        interface && *interface ? Gloo::createDeviceForInterface(interface)
                                : Gloo::createDeviceForHostname(mailbox_->own_host()));
    group_ = make_intrusive<Gloo>(make_intrusive<c10d::PrefixStore>(meeting, store), rank_, size_,
                                  options);
    mailboxes_ = gather(mailbox_->address());
  }

  ~GlooRanks() override { leave(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::vector<std::string> gather(std::string_view bytes) override {
    return gather(Call::gather, bytes);
  }

  void gather_rows(const at::Tensor& rows, const std::vector<std::int64_t>& bounds) override {
    if (!rows.defined() || !rows.is_cpu() || !rows.is_contiguous() || rows.dim() == 0)
      throw Error(ErrorKind::internal,
                  "gather_rows() takes a contiguous tensor with rows, on the CPU");
    if (static_cast<int>(bounds.size()) != size_ + 1 || bounds.front() != 0 ||
        bounds.back() != rows.size(0) || !std::is_sorted(bounds.begin(), bounds.end()))
      throw Error(ErrorKind::internal, "the bounds of gather_rows() do not divide its rows")
          .expected(std::to_string(size_ + 1) + " ascending bounds from 0 to " +
                    std::to_string(rows.size(0)));
    const std::int64_t row_bytes =
        rows.size(0) ? static_cast<std::int64_t>(rows.nbytes()) / rows.size(0) : 0;
    std::string shape = "rows of " + std::to_string(row_bytes) + " bytes, bounds";
    for (const std::int64_t bound : bounds) shape += " " + std::to_string(bound);
    auto* const data = static_cast<char*>(rows.data_ptr());
    const auto part = [&](int rank) {
      return std::string_view(
          data + bounds[rank] * row_bytes,
          static_cast<std::size_t>((bounds[rank + 1] - bounds[rank]) * row_bytes));
    };
    std::size_t largest = 0, least = rows.nbytes();
    for (int r = 0; r < size_; ++r) {
      largest = std::max(largest, part(r).size());
      least = std::min(least, part(r).size());
    }
    const bool at_once = shape.size() + 1 + largest <= kInHead;
    std::string own = shape + '\n';
    if (at_once) own += part(rank_);
    const auto told = gather(Call::gather_rows, own);
    for (int r = 0; r < size_; ++r)
      if (const auto its = told[r].substr(0, told[r].find('\n')); its != shape)
        throw different_calls(rank_, shape, r, its);
    if (!at_once && least == largest && largest <= kCopied) {
      std::vector<at::Tensor> parts;
      for (int r = 0; r < size_; ++r)
        parts.push_back(at::from_blob(data + bounds[r] * row_bytes,
                                      {static_cast<std::int64_t>(largest)}, at::kByte));
      return allgather(parts, parts[rank_]);
    }
    for (int r = 0; r < size_; ++r) {
      auto* const to = data + bounds[r] * row_bytes;
      if (!at_once)
        broadcast(to, static_cast<std::int64_t>(part(r).size()), r);
      else if (r != rank_)
        told[r].copy(to, part(r).size(), shape.size() + 1);
    }
  }

  bool fail(std::string_view why) noexcept override try {
    if (!group_) return speaks_;
    lost_.emplace("this process has left the job", /*told=*/false);
    speaks_ = !mailbox_->receive(std::chrono::milliseconds(0));
    const std::string letter = std::to_string(rank_) + kAfterRank + std::string(why);
    for (int r = 0; r < size_ && speaks_; ++r)
      if (r != rank_) mailbox_->send(mailboxes_[r], letter);
    leave();
    while (rank_ > 0 && speaks_) {
      const auto other = mailbox_->receive(kLetterBehindItsSender);
      if (!other) break;
      speaks_ = std::atoi(other->c_str()) > rank_;
    }
    return speaks_;
  } catch (const std::exception&) {
    return true;  // out of memory, and soon out of the job
  }

 private:
  void leave() noexcept {
    const NoBrokenPipeSignal guard;
    group_.reset();
  }

  std::vector<std::string> gather(Call call, std::string_view bytes) {
    Head own{call, static_cast<std::int64_t>(bytes.size()), {}};
    if (bytes.size() <= kInHead) bytes.copy(own.bytes, bytes.size());
    std::vector<Head> all(static_cast<std::size_t>(size_));
    const auto as_bytes = [](Head& head) {
      return at::from_blob(&head, {sizeof(Head)}, at::kByte);
    };
    std::vector<at::Tensor> heads;
    for (auto& head : all) heads.push_back(as_bytes(head));
    allgather(heads, as_bytes(own));
    const auto name = [](Call of) { return of == Call::gather ? "bytes" : "rows"; };
    for (int r = 0; r < size_; ++r)
      if (all[r].call != call) throw different_calls(rank_, name(call), r, name(all[r].call));

    std::vector<std::string> gathered(static_cast<std::size_t>(size_));
    for (int r = 0; r < size_; ++r) {
      const auto size = static_cast<std::size_t>(all[r].size);
      if (size <= kInHead) {
        gathered[r].assign(all[r].bytes, size);
        continue;
      }
      gathered[r].resize(size);
      if (r == rank_) gathered[r] = bytes;
      broadcast(gathered[r].data(), all[r].size, r);
    }
    return gathered;
  }

  /// Gloo copies what comes, so that large tensors go another way.
  void allgather(const std::vector<at::Tensor>& of_all, const at::Tensor& own) {
    std::vector<at::Tensor> in{own};
    std::vector<std::vector<at::Tensor>> out{of_all};
    wait_for([&] {
      c10d::AllgatherOptions options;
      options.timeout = kLongestCall;
      return group_->allgather(out, in, options);
    });
  }

  /// One after the other: in a second one under way at the same time, two ranks could wait for each
  /// other when a third is lost.
  void broadcast(char* data, std::int64_t bytes, int from) {
    if (bytes == 0) return;
    std::vector<at::Tensor> tensors{at::from_blob(data, {bytes}, at::kByte)};
    wait_for([&] {
      c10d::BroadcastOptions options;
      options.rootRank = from;
      options.timeout = kLongestCall;
      return group_->broadcast(tensors, options);
    });
  }

  template <class Start>
  void wait_for(Start&& start) {
    if (!group_) throw RankLost(*lost_);
    try {
      start()->wait();
    } catch (const std::exception& error) {
      // Those that wait for this rank see its connections end, and so on.
      leave();
      if (const auto letter = mailbox_->receive(kLetterBehindItsSender)) {
        lost_.emplace("another process of this job failed: rank " + *letter, /*told=*/true);
      } else {
        lost_.emplace("another process of this job was lost: " + quote(words_of(error)),
                      /*told=*/false);
        lost_->hint("look for the messages of the others, and start all of them again");
      }
      throw RankLost(*lost_);
    }
  }

  const int rank_, size_;
  std::optional<Mailbox> mailbox_;
  std::vector<std::string> mailboxes_;                ///< of all ranks
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;  ///< null when a rank has failed or was lost
  std::optional<RankLost> lost_;                      ///< then
  bool speaks_ = true;                                ///< of why this rank failed
};

}  // namespace

RankLost::RankLost(std::string what, bool told)
    : Error(ErrorKind::resource, std::move(what)), told_(told) {}
RankLost::~RankLost() = default;
Ranks::~Ranks() = default;

std::unique_ptr<Ranks> join_ranks(std::chrono::milliseconds patience) {
  const auto place = launch_environment();
  if (!place) return nullptr;
  const QuietLog quiet;
  try {
    return std::make_unique<GlooRanks>(*place, patience);
  } catch (const std::exception& error) {
    throw Error(ErrorKind::resource, "the processes of this job did not find each other")
        .at("rank " + std::to_string(place->rank))
        .expected(std::to_string(place->size) + " processes at " + place->master_addr + ":" +
                  std::to_string(place->master_port) + " within " +
                  std::to_string(std::chrono::ceil<std::chrono::seconds>(patience).count()) + " s")
        .found(quote(words_of(error)))
        .hint("start all of them, with the same MASTER_ADDR and MASTER_PORT");
  }
}

}  // namespace graft
