// How long reading takes as files grow: the time for one element must stay. Files lie in memory
// (/dev/shm), so that no disk is measured; the time is that of the processor, all on one thread.

#include <stdlib.h>

#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "graft/checkpoint.h"
#include "graft/error.h"
#include "registry/name_match.h"
#include "registry/registry.h"

using namespace graft;
namespace fs = std::filesystem;

namespace {

double best_of(int rounds, const std::function<void()>& run) {
  double best = 1e9;
  for (int i = 0; i < rounds; ++i) {
    const std::clock_t start = std::clock();
    run();
    best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  return best;
}

void report(const char* what, std::size_t count, double seconds) {
  std::printf("%-52s %9zu  %8.3f s  %7.2f us each\n", what, count, seconds,
              seconds / static_cast<double>(count) * 1e6);
  std::fflush(stdout);
}

std::string little_endian(std::uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

std::string tensor_name(std::size_t i) {
  return "layers." + std::to_string(i / 100) + ".experts." + std::to_string(i % 100) + ".weight";
}

/// Tensors [first, first + count) of 4 bytes each.
void write_shard(const fs::path& path, std::size_t first, std::size_t count) {
  std::string header = "{";
  for (std::size_t i = 0; i < count; ++i)
    header += (i ? ",\"" : "\"") + tensor_name(first + i) +
              "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[" + std::to_string(4 * i) +
              "," + std::to_string(4 * i + 4) + "]}";
  header += "}";
  std::ofstream(path, std::ios::binary)
      << little_endian(header.size()) << header << std::string(4 * count, '\0');
}

void sharded(const fs::path& folder, std::size_t shards, std::size_t tensors) {
  fs::create_directories(folder);
  std::ofstream(folder / "config.json") << "{}";
  std::string map;
  for (std::size_t s = 0; s < shards; ++s) {
    const std::string name = "model-" + std::to_string(s) + ".safetensors";
    write_shard(folder / name, s * (tensors / shards), tensors / shards);
    for (std::size_t i = 0; i < tensors / shards; ++i)
      map += (map.empty() ? "\"" : ",\"") + tensor_name(s * (tensors / shards) + i) + "\":\"" +
             name + "\"";
  }
  std::ofstream(folder / "model.safetensors.index.json") << "{\"weight_map\":{" << map << "}}";
  report((std::to_string(shards) + " shards: open and check").c_str(), tensors,
         best_of(5, [&] { Checkpoint::open(folder); }));
}

std::string rules(std::size_t count, const char* extra) {
  std::string text = "graft: 1\npatches:\n";
  for (std::size_t i = 0; i < count; ++i)
    text += "- {class: C" + std::to_string(i) + ", methods: m" + extra + "}\n";
  return text;
}

}  // namespace

int main() {
  std::string name = (fs::is_directory("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path()) /
                     "graft-bench-XXXXXX";
  if (!::mkdtemp(name.data())) return 1;
  const fs::path folder = name;
  sharded(folder / "few", 10, 100'000);
  sharded(folder / "many", 1'000, 100'000);
  for (const std::size_t count : {250'000u, 500'000u, 1'000'000u}) {
    write_shard(folder / "one.safetensors", 0, count);
    report("one file: open and check", count,
           best_of(3, [&] { Checkpoint::open_file(folder / "one.safetensors"); }));
  }
  for (const std::size_t count : {25'000u, 50'000u, 100'000u}) {
    constexpr std::size_t kInFile = 5'000;
    const std::string text = rules(kInFile, ", keep: x");
    Registry registry;
    report("registry rules: read and check", count, best_of(1, [&] {
             Registry::Builder builder;
             for (std::size_t i = 0; i < count / kInFile; ++i)
               builder.add_text(text, "f" + std::to_string(i) + ".yaml", Tier::user);
             registry = builder.build();
           }));
    report("registry rules: decide about one module", count, best_of(5, [&] {
             registry.decide({"m", "C7", "model.layers.0.mlp.down_proj", "cpu"});
           }));
  }
  for (const char* pattern : {"(a+)+$", "(a|a)*b", "(a*)*b", "(.*)*x", "(?:a?){60}a{60}"}) {
    std::string answer = "answered";
    const double seconds = best_of(1, [&] {
      try {
        NamePattern("re:" + std::string(pattern)).matches(std::string(4000, 'a') + "!");
      } catch (const Error&) {
        answer = "refused";
      }
    });
    std::printf("the pattern %-18s on 4,000 letters: %s after %.3f s\n", pattern, answer.c_str(),
                seconds);
  }
  fs::remove_all(folder);
}
