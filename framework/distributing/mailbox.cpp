#include "distributing/mailbox.h"

#include <netdb.h>
#include <poll.h>

#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>

namespace graft {
namespace {

constexpr std::size_t kSecret = 16;

std::string random_bytes(std::size_t count) {
  std::random_device device;
  std::string out;
  for (std::size_t i = 0; i < count; ++i) out += static_cast<char>(device());
  return out;
}

}  // namespace

Mailbox::Mailbox(const std::string& host, std::uint16_t port) : secret_(random_bytes(kSecret)) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0)
    throw std::runtime_error("the host is unknown");
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  for (const addrinfo* each = found; each; each = each->ai_next) {
    // Connecting it sends nothing, but chooses the address.
    const FileDescriptor probe(::socket(each->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    own_length_ = sizeof(own_);
    auto* const own = reinterpret_cast<sockaddr*>(&own_);
    if (probe.get() < 0 || ::connect(probe.get(), each->ai_addr, each->ai_addrlen) != 0 ||
        ::getsockname(probe.get(), own, &own_length_) != 0)
      continue;
    char text[NI_MAXHOST];
    if (::getnameinfo(own, own_length_, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) != 0)
      continue;
    own_host_ = text;
    (own_.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(own)->sin6_port
                                : reinterpret_cast<sockaddr_in*>(own)->sin_port) = 0;
    socket_ = FileDescriptor(
        ::socket(own_.ss_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (socket_.get() >= 0 && ::bind(socket_.get(), own, own_length_) == 0 &&
        ::getsockname(socket_.get(), own, &own_length_) == 0)
      return;
  }
  throw std::runtime_error("no network of this machine leads to the host");
}

std::string Mailbox::address() const {
  return secret_ + std::string(reinterpret_cast<const char*>(&own_), own_length_);
}

void Mailbox::send(std::string_view address, std::string_view letter) const noexcept try {
  if (address.size() <= kSecret || address.size() > kSecret + sizeof(sockaddr_storage)) return;
  sockaddr_storage to{};
  std::memcpy(&to, address.data() + kSecret, address.size() - kSecret);
  const auto datagram =
      std::string(address.substr(0, kSecret)).append(letter.substr(0, kLongestLetter));
  ::sendto(socket_.get(), datagram.data(), datagram.size(), 0,
           reinterpret_cast<const sockaddr*>(&to),
           static_cast<socklen_t>(address.size() - kSecret));
} catch (const std::exception&) {
  // Out of memory: the others will see the connections end.
}

std::optional<std::string> Mailbox::receive(std::chrono::milliseconds patience) const {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + patience;
  for (;;) {
    char datagram[kSecret + kLongestLetter];
    const auto size = ::recv(socket_.get(), datagram, sizeof(datagram), 0);
    if (size >= 0) {
      const std::string_view text(datagram, static_cast<std::size_t>(size));
      if (text.substr(0, kSecret) == secret_) return std::string(text.substr(kSecret));
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
    if (left.count() <= 0) return std::nullopt;
    pollfd waiting{socket_.get(), POLLIN, 0};
    ::poll(&waiting, 1, static_cast<int>(left.count()));
  }
}

}  // namespace graft
