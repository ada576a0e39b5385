#pragma once

#include <chrono>
#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

#include "graft/context.h"

namespace graft::cli {

/// Messages and progress on stderr: a redrawn line with rate and ETA on a terminal, plain lines at
/// ten per cent steps otherwise (also with NO_COLOR, CI, TERM=dumb).
class Terminal {
 public:
  void configure(bool quiet, int verbose, const std::string& log_file);

  /// From now on neither messages nor progress; the log file gets its messages.
  void be_silent();
  void say(LogLevel level, std::string_view component, std::string_view message);
  void progress(std::string_view stage, std::uint64_t done, std::uint64_t total);
  /// Ends a progress line, so that other output starts on a line of its own.
  void finish_line();

 private:
  bool quiet_ = false, silent_ = false, live_ = false, open_line_ = false;
  LogLevel shown_ = LogLevel::warning;
  std::ofstream log_;
  std::string stage_;
  int last_step_ = -1;
  std::chrono::steady_clock::time_point stage_start_{}, last_draw_{};
};

/// A line of a message or report, which may carry text of a file or a plugin: nothing in it may act on
/// the terminal.
std::string printable(std::string_view text);

/// From now on Ctrl-C sets a flag, a second one ends the program.
void watch_interrupts();
bool interrupted();

/// While it lives, the first Ctrl-C ends the program: there is nothing to finish, only to wait for.
struct WhileNothingRuns {
  WhileNothingRuns();
  ~WhileNothingRuns();
  WhileNothingRuns(const WhileNothingRuns&) = delete;
  WhileNothingRuns& operator=(const WhileNothingRuns&) = delete;
};

}  // namespace graft::cli
