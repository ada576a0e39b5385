// A plugin that is wrong in one way, chosen by GRAFT_BAD_<CASE>. Written against the C border
// alone: what it returns is what a careless or hostile author could return. A static constructor
// tells that it ran by appending the case to the file that GRAFT_TEST_MARKER names, so that tests
// can show which files were refused without being run.

#include <cstdio>
#include <cstdlib>

#include "graft/stamp.h"

#define GRAFT_TEXT_(x) #x
#define GRAFT_TEXT(x) GRAFT_TEXT_(x)

namespace {

__attribute__((constructor)) void tell_that_it_ran() {
  const char* file = std::getenv("GRAFT_TEST_MARKER");
  std::FILE* out = file ? std::fopen(file, "a") : nullptr;
  if (!out) return;
  std::fputs(GRAFT_TEXT(GRAFT_CASE) "\n", out);
  std::fclose(out);
}

#if !defined(GRAFT_BAD_NO_STAMP)
GRAFT_STAMP_NOTE(note,
                 graft::stamp_of_this_build("org.graft.test." GRAFT_TEXT(GRAFT_CASE), "1.2.3"));

graft_status init(const graft_host*, graft_error* error) noexcept {
#if defined(GRAFT_BAD_REFUSED)
  std::snprintf(error->message, sizeof(error->message), "needs a coffee machine\nand a backtrace");
  return GRAFT_REFUSED;
#else
  (void)error;
  return GRAFT_OK;
#endif
}

void* query(const char*, const char*) noexcept { return nullptr; }

constexpr graft_claim kClaims[] = {
#if defined(GRAFT_BAD_DEVICE)
    {"mood", "Linear", "tpu", 0},
#elif defined(GRAFT_BAD_NAMELESS)
    {"mood", "", "cpu", 0},
#else
    {"mood", "Linear", "cpu", 0},
#endif
};

#if defined(GRAFT_BAD_OTHER_STAMP)
constexpr graft_stamp kOther = graft::stamp_of_this_build("org.graft.test.disguise", "1.2.3");
#endif

constexpr graft_plugin describe() {
  graft_plugin plugin{};
  plugin.size = sizeof(graft_plugin);
  plugin.stamp = &note.stamp;
  plugin.summary = "wrong on purpose";
  plugin.claims = kClaims;
  plugin.claim_count = 1;
  plugin.init = &init;
  plugin.query = &query;
#if defined(GRAFT_BAD_SMALL)
  plugin.size = offsetof(graft_plugin, init);
#elif defined(GRAFT_BAD_OTHER_STAMP)
  plugin.stamp = &kOther;
#elif defined(GRAFT_BAD_NO_INIT)
  plugin.init = nullptr;
#elif defined(GRAFT_BAD_NO_QUERY)
  plugin.query = nullptr;
#elif defined(GRAFT_BAD_NO_CLAIMS)
  plugin.claims = nullptr;
  plugin.claim_count = 0;
#elif defined(GRAFT_BAD_MANY_CLAIMS)
  plugin.claim_count = 4'000'000'000U;
#elif defined(GRAFT_BAD_LARGE)
  plugin.size = sizeof(graft_plugin) + 64;  // of a later minor version: what is behind is not read
#endif
  return plugin;
}

[[maybe_unused]] constexpr graft_plugin kDescriptor = describe();
#endif

}  // namespace

#if defined(GRAFT_BAD_UNRESOLVED)
extern "C" int graft_test_symbol_that_nobody_defines();
#endif

#if defined(GRAFT_BAD_NO_ENTRY)
// There, but not for others to see.
extern "C" __attribute__((visibility("hidden"), used)) const void* hidden_entry() asm(
    "graft_plugin_entry");
const void* hidden_entry() { return nullptr; }
#else
const graft_plugin* graft_plugin_entry(uint32_t, uint32_t) noexcept {
#if defined(GRAFT_BAD_UNRESOLVED)
  if (graft_test_symbol_that_nobody_defines() != 0) return nullptr;
#endif
#if defined(GRAFT_BAD_NULL_ENTRY) || defined(GRAFT_BAD_NO_STAMP)
  return nullptr;
#else
  return &kDescriptor;
#endif
}
#endif
