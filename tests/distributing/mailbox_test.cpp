#include "distributing/mailbox.h"
#include "thrown_by.h"

using namespace graft;
using namespace graft::test;
using std::chrono::milliseconds;

TEST_CASE("a letter waits in the mailbox when its sender is gone") {
  const Mailbox own("127.0.0.1", 1);
  CHECK(own.own_host() == "127.0.0.1");
  {
    const Mailbox other("127.0.0.1", 1);
    other.send(own.address(), "first");
    other.send(own.address(), "");
  }
  CHECK(own.receive(milliseconds(1000)) == "first");
  CHECK(own.receive(milliseconds(1000)) == "");
  CHECK(own.receive(milliseconds(0)) == std::nullopt);
}

TEST_CASE("a letter without the mailbox's secret is thrown away") {
  const Mailbox own("127.0.0.1", 1), other("127.0.0.1", 1);
  std::string guessed = own.address();
  guessed[0] = static_cast<char>(guessed[0] + 1);
  other.send(guessed, "forged");
  other.send(own.address(), "genuine");
  CHECK(own.receive(milliseconds(1000)) == "genuine");
}

TEST_CASE("a letter too long for a datagram is cut, and an address that is none is ignored") {
  const Mailbox own("127.0.0.1", 1), other("127.0.0.1", 1);
  for (const std::string& none : {std::string(), std::string(10, 'x'), std::string(1000, 'x')})
    other.send(none, "letter");
  other.send(own.address(), std::string(5000, 'x'));
  CHECK(own.receive(milliseconds(1000)) == std::string(Mailbox::kLongestLetter, 'x'));
}

TEST_CASE("a mailbox towards a host that nobody knows is refused") {
  CHECK_THROWS_WITH(Mailbox("no such host", 1), "the host is unknown");
}
