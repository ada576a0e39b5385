#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "graft/ranks.h"

namespace graft::test {

/// How a process ended.
struct Ended {
  std::string said;
  int signal = 0;
};

/// A port of the loopback interface that nobody listens at.
inline std::string free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  const bool bound =
      ::bind(fd, generic, length) == 0 && ::getsockname(fd, generic, &length) == 0;
  ::close(fd);
  if (!bound) throw std::runtime_error("no port is free");
  return std::to_string(ntohs(address.sin_port));
}

inline void set_environment(int rank, int size, const std::string& port) {
  ::setenv("RANK", std::to_string(rank).c_str(), 1);
  ::setenv("WORLD_SIZE", std::to_string(size).c_str(), 1);
  ::setenv("MASTER_ADDR", "127.0.0.1", 1);
  ::setenv("MASTER_PORT", port.c_str(), 1);
  // What a torchrun says that leaves the store to rank 0.
  ::setenv("TORCHELASTIC_USE_AGENT_STORE", "False", 1);
}

/// Runs `part` as each rank of a job of `size` processes, copies of this one; what they gave back,
/// by rank. Whoever takes a minute is ended.
inline std::vector<Ended> as_ranks(int size, const std::function<std::string(Ranks&)>& part) {
  const std::string port = free_port();
  std::cout.flush();
  std::fflush(nullptr);
  std::vector<pid_t> processes;
  std::vector<int> pipes;
  for (int rank = 0; rank < size; ++rank) {
    int ends[2];
    if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
    const pid_t process = ::fork();
    if (process < 0) throw std::runtime_error("no process");
    if (process == 0) {
      std::string said;
      try {
        set_environment(rank, size, port);
        const auto ranks = join_ranks(std::chrono::seconds(40));
        said = part(*ranks);
      } catch (const std::exception& error) {
        said = std::string("thrown: ") + error.what();
      }
      const bool whole = ::write(ends[1], said.data(), said.size()) ==
                         static_cast<ssize_t>(said.size());
      std::exit(whole ? 0 : 1);
    }
    ::close(ends[1]);
    processes.push_back(process);
    pipes.push_back(ends[0]);
  }

  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::minutes(1);
  std::vector<Ended> out(static_cast<std::size_t>(size));
  for (std::size_t rank = 0; rank < out.size(); ++rank) {
    for (bool open = true; open;) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
      pollfd waiting{pipes[rank], POLLIN, 0};
      if (left <= 0 || ::poll(&waiting, 1, static_cast<int>(left)) == 0) {
        ::kill(processes[rank], SIGKILL);
        out[rank].said += "(not ended after a minute)";
        break;
      }
      char bytes[4096];
      const auto size_read = ::read(pipes[rank], bytes, sizeof(bytes));
      if (size_read > 0)
        out[rank].said.append(bytes, static_cast<std::size_t>(size_read));
      else
        open = false;
    }
    ::close(pipes[rank]);
    int status = 0;
    ::waitpid(processes[rank], &status, 0);
    if (WIFSIGNALED(status)) {
      out[rank].signal = WTERMSIG(status);
      out[rank].said += "(signal " + std::to_string(WTERMSIG(status)) + ")";
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
      out[rank].said += "(exit " + std::to_string(WEXITSTATUS(status)) + ")";
  }
  return out;
}

}  // namespace graft::test
