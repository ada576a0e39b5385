#include "graft/ranks.h"

#include <ATen/ATen.h>
#include <sys/mman.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <new>

#include "processes.h"
#include "thrown_by.h"

using namespace graft;
using namespace graft::test;

namespace {

/// Bytes that only this rank would give.
std::string bytes_of(int rank, std::size_t size) {
  std::string out(size, '\0');
  for (std::size_t i = 0; i < size; ++i)
    out[i] = static_cast<char>(i * 31 + i / 251 + static_cast<std::size_t>(rank) * 7);
  return out;
}

/// What the next call throws because of another rank; it has five seconds.
std::string next_call(Ranks& ranks) {
  const auto start = std::chrono::steady_clock::now();
  try {
    ranks.gather("more");
  } catch (const RankLost& error) {
    const bool late = std::chrono::steady_clock::now() - start > std::chrono::seconds(5);
    return (late ? "late: " : "") + std::string(error.what());
  }
  return "nothing was thrown";
}

/// A mark that all processes see.
class SharedMark {
 public:
  SharedMark()
      : mark_(new(::mmap(nullptr, sizeof(std::atomic<bool>), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0)) std::atomic<bool>(false)) {}
  SharedMark(const SharedMark&) = delete;
  SharedMark& operator=(const SharedMark&) = delete;
  ~SharedMark() { ::munmap(mark_, sizeof(*mark_)); }

  void set() { *mark_ = true; }
  void await() const {
    while (!*mark_) ::sched_yield();
  }

 private:
  std::atomic<bool>* mark_;
};

/// Rows that the rank of `bounds` has filled with its numbers, the others not a number.
at::Tensor own_rows(const at::Tensor& whole, const std::vector<std::int64_t>& bounds, int rank) {
  auto out = at::full_like(whole, 77);
  const auto from = bounds[static_cast<std::size_t>(rank)];
  const auto rows = bounds[static_cast<std::size_t>(rank) + 1] - from;
  out.narrow(0, from, rows).copy_(whole.narrow(0, from, rows));
  return out;
}

const std::string kAllWell = "all well";

void check_all(const std::vector<Ended>& ended, const std::string& said) {
  for (std::size_t rank = 0; rank < ended.size(); ++rank) {
    CAPTURE(rank);
    CHECK(ended[rank].said == said);
    CHECK(ended[rank].signal == 0);
  }
}

}  // namespace

TEST_CASE("each rank gets what every rank gave, empty strings and those of any size") {
  const auto part = [](Ranks& ranks) -> std::string {
    const auto size_of = [](int rank, int call) {
      return static_cast<std::size_t>((rank + call) % 3 * 100'001);
    };
    for (int call = 0; call < 20; ++call) {
      const auto got = ranks.gather(bytes_of(ranks.rank(), size_of(ranks.rank(), call)));
      if (static_cast<int>(got.size()) != ranks.size()) return "not one string for each rank";
      for (int rank = 0; rank < ranks.size(); ++rank)
        if (got[static_cast<std::size_t>(rank)] != bytes_of(rank, size_of(rank, call)))
          return "wrong bytes of rank " + std::to_string(rank);
    }
    for (const std::string& text : ranks.gather(""))
      if (!text.empty()) return "not empty";
    return kAllWell;
  };
  check_all(as_ranks(2, part), kAllWell);
  check_all(as_ranks(3, part), kAllWell);
}

TEST_CASE("rows that each rank has filled are complete on all ranks, in any dtype") {
  const auto part = [](Ranks& ranks) -> std::string {
    at::manual_seed(1);
    const std::vector<std::vector<std::int64_t>> divisions =
        ranks.size() == 2 ? std::vector<std::vector<std::int64_t>>{{0, 1, 7}, {0, 7, 7}, {0, 0, 7}}
                          : std::vector<std::vector<std::int64_t>>{
                                {0, 1, 5, 7}, {0, 3, 3, 7}, {0, 0, 7, 7}, {0, 0, 0, 7}};
    for (const auto& bounds : divisions) {
      for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kByte,
                               at::kBool, at::kLong, at::kComplexFloat}) {
        for (const std::vector<std::int64_t>& shape :
             {std::vector<std::int64_t>{7}, {7, 5}, {7, 3, 2}, {7, 0}}) {
          const at::Tensor whole = at::randint(0, 2, shape, at::kFloat).to(dtype);
          const at::Tensor rows = own_rows(whole, bounds, ranks.rank());
          ranks.gather_rows(rows, bounds);
          if (!at::equal(rows, whole)) return std::string("wrong rows of ") + toString(dtype);
        }
      }
    }
    const std::vector<std::int64_t> none(static_cast<std::size_t>(ranks.size()) + 1, 0);
    ranks.gather_rows(at::empty({0, 4}), none);
    return kAllWell;
  };
  check_all(as_ranks(2, part), kAllWell);
  check_all(as_ranks(3, part), kAllWell);
}

TEST_CASE("tensors of 20 MB come whole, as rows and as bytes") {
  check_all(as_ranks(2,
                     [](Ranks& ranks) -> std::string {
                       at::manual_seed(2);
                       const auto whole = at::randn({1000, 5000});
                       at::Tensor rows;
                       for (const std::int64_t middle : {300, 500}) {  // equal parts go another way
                         const std::vector<std::int64_t> bounds{0, middle, 1000};
                         rows = own_rows(whole, bounds, ranks.rank());
                         ranks.gather_rows(rows, bounds);
                         if (!at::equal(rows, whole)) return "wrong rows";
                       }
                       const auto got = ranks.gather(
                           {static_cast<const char*>(rows.data_ptr()), rows.nbytes()});
                       return got[0] == got[1] && got[0].size() == rows.nbytes() ? kAllWell
                                                                                 : "wrong bytes";
                     }),
            kAllWell);
}

TEST_CASE("a rank that fails tells the others why, and they throw at once") {
  for (const int failing : {0, 1}) {
    CAPTURE(failing);
    const auto ended = as_ranks(3, [&](Ranks& ranks) -> std::string {
      ranks.gather("");
      if (ranks.rank() != failing) return next_call(ranks);
      ranks.fail("out/model.safetensors: No space left on device");
      ::_exit(0);
    });
    for (int rank = 0; rank < 3; ++rank)
      CHECK(ended[static_cast<std::size_t>(rank)].said ==
            (rank == failing ? ""
                             : "another process of this job failed: rank " +
                                   std::to_string(failing) +
                                   ": out/model.safetensors: No space left on device"));
  }
}

TEST_CASE("a rank that computes while another fails hears why when it calls next") {
  SharedMark gone;
  const auto ended = as_ranks(2, [&](Ranks& ranks) -> std::string {
    if (ranks.rank() == 0) {
      ranks.fail("no memory");
      gone.set();
      ::_exit(0);
    }
    gone.await();
    return next_call(ranks) + " / " + next_call(ranks);
  });
  const std::string failed = "another process of this job failed: rank 0: no memory";
  CHECK(ended[1].said == failed + " / " + failed);
}

TEST_CASE("a rank that is killed is lost to all others, whichever it is") {
  for (const int killed : {0, 1, 2}) {
    CAPTURE(killed);
    const auto ended = as_ranks(3, [&](Ranks& ranks) {
      ranks.gather("");
      if (ranks.rank() == killed) ::raise(SIGKILL);
      return next_call(ranks);
    });
    for (int rank = 0; rank < 3; ++rank) {
      CAPTURE(rank);
      const Ended& each = ended[static_cast<std::size_t>(rank)];
      if (rank == killed) {
        CHECK(each.signal == SIGKILL);
      } else {
        CHECK(each.said.rfind("another process of this job was lost: '", 0) == 0);
        CHECK(contains(each.said, "look for the messages of the others"));
      }
    }
  }
}

TEST_CASE("a rank that is killed in the middle of a long call is lost to the others") {
  const auto ended = as_ranks(3, [](Ranks& ranks) -> std::string {
    ranks.gather("");
    if (ranks.rank() == 1) ::ualarm(20'000, 0);  // ends the process
    const std::string bytes = bytes_of(ranks.rank(), 20'000'000);
    try {
      for (;;) ranks.gather(bytes);
    } catch (const RankLost& error) {
      return error.what();
    }
  });
  CHECK(ended[1].signal == SIGALRM);
  for (const std::size_t rank : {0, 2})
    CHECK(ended[rank].said.rfind("another process of this job was lost: '", 0) == 0);
}

TEST_CASE("a connection that breaks ends no process by a signal") {
  const auto part = [](Ranks& ranks) -> std::string {
    ranks.gather("");
    int threads = 0;
    for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
      const bool own = thread.path().filename() == std::to_string(::getpid());
      std::ifstream status(thread.path() / "status");
      for (std::string line; std::getline(status, line);) {
        if (line.rfind("SigBlk:", 0) != 0) continue;
        const bool blocked = std::stoull(line.substr(7), nullptr, 16) >> (SIGPIPE - 1) & 1;
        if (blocked == own) return own ? "blocked for the caller, too" : "not blocked";
        ++threads;
      }
    }
    return threads > 2 ? kAllWell : "no threads";
  };
  check_all(as_ranks(2, part), kAllWell);
}

TEST_CASE("a rank that lost another one says so at each call, and has nothing to tell") {
  const auto ended = as_ranks(3, [](Ranks& ranks) -> std::string {
    ranks.gather("");
    if (ranks.rank() == 0) ::raise(SIGKILL);
    const std::string first = next_call(ranks);
    ranks.fail("because of rank 0");
    const auto rows = at::zeros({3, 1});
    const auto second = message_of([&] { ranks.gather_rows(rows, {0, 1, 2, 3}); });
    return first == second ? kAllWell : first + " / " + second;
  });
  for (const std::size_t rank : {1, 2}) CHECK(ended[rank].said == kAllWell);
}

TEST_CASE("a rank that failed takes no more calls") {
  const auto ended = as_ranks(2, [](Ranks& ranks) -> std::string {
    if (ranks.rank() == 1) return next_call(ranks);
    ranks.fail("first");
    ranks.fail("second");
    return next_call(ranks);
  });
  CHECK(ended[0].said == "this process has left the job");
  CHECK(ended[1].said == "another process of this job failed: rank 0: first");
}

TEST_CASE("ranks that do different things are told so, all of them") {
  const auto ended = as_ranks(3, [](Ranks& ranks) {
    const auto rows = at::zeros({4, 2});
    std::string out = message_of([&] {
      if (ranks.rank() == 1)
        ranks.gather("");
      else
        ranks.gather_rows(rows, {0, 1, 2, 4});
    });
    out += "\n" + message_of([&] {
      if (ranks.rank() == 2)
        ranks.gather_rows(rows, {0, 1, 3, 4});
      else
        ranks.gather_rows(rows, {0, 1, 2, 4});
    });
    return out;
  });
  const auto message = [](int rank, const std::string& own, int other, const std::string& others) {
    return "rank " + std::to_string(rank) +
           ": the processes do not do the same job: expected to exchange " + own + ", found rank " +
           std::to_string(other) + " with " + others +
           "; start all of them with the same model, options and build of graft";
  };
  const std::string most = "rows of 8 bytes, bounds 0 1 2 4";
  const std::string one = "rows of 8 bytes, bounds 0 1 3 4";
  CHECK(ended[0].said == message(0, "rows", 1, "bytes") + "\n" + message(0, most, 2, one));
  CHECK(ended[1].said == message(1, "bytes", 0, "rows") + "\n" + message(1, most, 2, one));
  CHECK(ended[2].said == message(2, "rows", 1, "bytes") + "\n" + message(2, one, 0, most));
}

TEST_CASE("tensors and bounds that do not fit are refused before anything is sent") {
  check_all(
      as_ranks(2,
               [](Ranks& ranks) -> std::string {
                 const std::string tensor =
                     "gather_rows() takes a contiguous tensor with rows, on the CPU";
                 for (const auto& wrong : {at::Tensor(), at::zeros({}), at::zeros({2, 3}).t(),
                                           at::zeros({2, 3}, at::kMeta)})
                   if (message_of([&] { ranks.gather_rows(wrong, {0, 1, 2}); }) != tensor)
                     return "took a wrong tensor";
                 for (const std::vector<std::int64_t>& wrong :
                      {std::vector<std::int64_t>{}, {0, 4}, {0, 1, 2, 4}, {1, 2, 4}, {0, 2, 3},
                       {0, 2, 5}, {0, 5, 4}, {0, -1, 4}})
                   if (message_of([&] { ranks.gather_rows(at::zeros({4}), wrong); }) !=
                       "the bounds of gather_rows() do not divide its rows: expected 3 ascending "
                       "bounds from 0 to 4")
                     return "took wrong bounds";
                 ranks.gather("");
                 return kAllWell;
               }),
      kAllWell);
}

TEST_CASE("a job whose ranks do not all appear is given up in time") {
  const std::string port = free_port();
  set_environment(0, 2, port);
  const Error first = thrown_by([] { join_ranks(std::chrono::seconds(1)); });
  CHECK(first.kind() == ErrorKind::resource);
  CHECK(contains(first.what(),
                 "rank 0: the processes of this job did not find each other: expected 2 processes "
                 "at 127.0.0.1:" + port + " within 1 s, found '"));
  CHECK(contains(first.what(), "1/2 clients joined"));
  set_environment(1, 2, free_port());
  const Error second = thrown_by([] { join_ranks(std::chrono::seconds(1)); });
  CHECK(second.kind() == ErrorKind::resource);
  CHECK(contains(second.what(), "rank 1: the processes of this job did not find each other"));
}

TEST_CASE("a port that another program has is named") {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const std::string port = free_port();
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(port)));
  REQUIRE(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  REQUIRE(::listen(fd, 1) == 0);
  set_environment(0, 2, port);
  const std::string message = message_of([] { join_ranks(std::chrono::seconds(5)); });
  ::close(fd);
  CHECK(contains(message, "127.0.0.1:" + port));
  CHECK(contains(message, "address already in use"));
}

// tests/distributing/torchrun.sh
TEST_CASE("under torchrun ranks meet as often as they like" *
          doctest::skip(std::getenv("TORCHELASTIC_RUN_ID") == nullptr)) {
  for (int meeting = 0; meeting < 3; ++meeting) {
    const auto ranks = join_ranks();
    REQUIRE(ranks);
    CHECK(ranks->size() == 2);
    CHECK(std::to_string(ranks->rank()) == std::getenv("RANK"));
    const auto got = ranks->gather(std::to_string(ranks->rank()));
    CHECK(got[0] == "0");
    CHECK(got[1] == "1");
  }
}
