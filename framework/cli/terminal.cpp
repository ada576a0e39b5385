#include "cli/terminal.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "graft/error.h"

namespace graft::cli {
namespace {

std::atomic<int> interrupts{0};
std::atomic<bool> nothing_to_finish{false};

void on_interrupt(int) {
  if (interrupts.fetch_add(1) > 0 || nothing_to_finish.load()) _exit(130);
}

const char* word(LogLevel level) {
  switch (level) {
    case LogLevel::error:
      return "error";
    case LogLevel::warning:
      return "warning";
    case LogLevel::info:
      return "note";
    case LogLevel::debug:
      return "debug";
  }
  return "";
}

}  // namespace

std::string printable(std::string_view text) {
  constexpr std::size_t kLongest = 100'000;
  const std::string quoted = quote(text, kLongest);
  return quoted.substr(1, quoted.size() - 2);
}

void watch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool interrupted() { return interrupts.load() > 0; }

WhileNothingRuns::WhileNothingRuns() { nothing_to_finish = true; }
WhileNothingRuns::~WhileNothingRuns() { nothing_to_finish = false; }

void Terminal::configure(bool quiet, int verbose, const std::string& log_file) {
  quiet_ = quiet;
  shown_ = quiet         ? LogLevel::error
           : verbose > 1 ? LogLevel::debug
           : verbose > 0 ? LogLevel::info
                         : LogLevel::warning;
  const char* term = std::getenv("TERM");
  live_ = !quiet && isatty(STDERR_FILENO) && term && std::string_view(term) != "dumb" &&
          !std::getenv("NO_COLOR") && !std::getenv("CI");
  if (!log_file.empty()) {
    log_.open(log_file, std::ios::app);
    if (!log_)
      throw Error(ErrorKind::resource, "the log file cannot be written").at(quote(log_file));
  }
}

void Terminal::be_silent() {
  silent_ = quiet_ = true;
  live_ = false;
}

void Terminal::say(LogLevel level, std::string_view component, std::string_view message) {
  const std::string line = printable(component) + ": " + printable(message);
  if (log_) log_ << word(level) << ' ' << line << std::endl;
  if (silent_ || level > shown_) return;
  finish_line();
  std::fprintf(stderr, "%s: %s\n", word(level), line.c_str());
}

void Terminal::progress(std::string_view stage, std::uint64_t done, std::uint64_t total) {
  if (quiet_ || total == 0) return;
  const auto now = std::chrono::steady_clock::now();
  if (stage != stage_) {
    finish_line();
    stage_ = stage;
    stage_start_ = now;
    last_step_ = -1;
    last_draw_ = {};
  }
  const int percent =
      static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
  if (!live_) {
    if (percent / 25 <= last_step_) return;
    last_step_ = percent / 25;
    std::fprintf(stderr, "%s %3d %%\n", stage_.c_str(), percent);
    return;
  }
  if (done < total && now - last_draw_ < std::chrono::milliseconds(100)) return;
  last_draw_ = now;
  const double seconds = std::chrono::duration<double>(now - stage_start_).count();
  const double rest =
      done ? seconds * static_cast<double>(total - done) / static_cast<double>(done) : 0;
  const int filled = percent * 24 / 100;
  std::fprintf(stderr, "\r%-10s [%.*s%.*s] %3d %%  %.0f s left \x1b[K", stage_.c_str(), filled,
               "########################", 24 - filled, "........................", percent, rest);
  open_line_ = true;
  if (done >= total) finish_line();
}

void Terminal::finish_line() {
  if (open_line_) std::fputc('\n', stderr);
  open_line_ = false;
}

}  // namespace graft::cli
