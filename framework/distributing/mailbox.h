#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/file_descriptor.h"
#include "graft/export.h"

namespace graft {

/// Where the other ranks leave their last words. The kernel takes a letter in while this process
/// computes and keeps it when the sender is gone, and to send one is not to wait: letters are
/// datagrams, which come at once or not at all. One that does not begin with the mailbox's own
/// secret is thrown away.
class GRAFT_API Mailbox {
 public:
  /// At the address of this machine that leads to `host`. Throws std::runtime_error.
  Mailbox(const std::string& host, std::uint16_t port);

  /// The numeric address of this machine that leads to `host`.
  const std::string& own_host() const { return own_host_; }
  /// What others need to send to it.
  std::string address() const;

  /// Sends what goes into a datagram that no network takes apart, the first kLongestLetter bytes.
  void send(std::string_view address, std::string_view letter) const noexcept;
  /// The oldest letter, if one comes within `patience`.
  std::optional<std::string> receive(std::chrono::milliseconds patience) const;

  static constexpr std::size_t kLongestLetter = 1200;

 private:
  sockaddr_storage own_{};
  socklen_t own_length_ = 0;
  std::string own_host_, secret_;
  FileDescriptor socket_;
};

}  // namespace graft
