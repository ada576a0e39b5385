#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// Tests for a machine that has nothing but LibTorch and the CUDA Toolkit: a sentence and what shows
// it. Output and exit codes: run_sentences().

namespace graft::test {

struct Sentence {
  const char* text;
  std::function<void()> shown_by;
};

inline std::vector<Sentence>& sentences() {
  static std::vector<Sentence> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline void expect(bool good, const std::string& what) {
  if (good) return;
  if (++failures() <= 40) std::printf("    not so: %s\n", what.c_str());
}

struct Registered {
  Registered(const char* text, std::function<void()> shown_by) {
    sentences().push_back({text, std::move(shown_by)});
  }
};

/// Runs those that contain `filter`; the exit code: 0, 1 when a sentence is false.
inline int run_sentences(const std::string& filter) {
  int wrong = 0, run = 0;
  for (const auto& sentence : sentences()) {
    if (std::string(sentence.text).find(filter) == std::string::npos) continue;
    const int before = failures();
    sentence.shown_by();
    const bool good = failures() == before;
    wrong += !good;
    ++run;
    std::printf("%s %s\n", good ? "ok    " : "FALSE ", sentence.text);
    std::fflush(stdout);
  }
  std::printf("%d of %d sentences are true\n", run - wrong, run);
  return wrong != 0;
}

}  // namespace graft::test

#define GRAFT_JOIN_(a, b) a##b
#define GRAFT_JOIN(a, b) GRAFT_JOIN_(a, b)
#define SENTENCE(text)                                                    \
  static void GRAFT_JOIN(sentence_, __LINE__)();                          \
  static const graft::test::Registered GRAFT_JOIN(registered_, __LINE__)( \
      text, &GRAFT_JOIN(sentence_, __LINE__));                            \
  static void GRAFT_JOIN(sentence_, __LINE__)()
