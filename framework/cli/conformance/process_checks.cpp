#include <ATen/ATen.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "cli/conformance/conformance.h"
#include "graft/error.h"
#include "plugins/torch_threads.h"

namespace graft::cli {
namespace {

void number_of_threads(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto x = random_normal({9, spec.in_features}, 21);
    const auto with = [&](int number) {
      const TorchThreads threads(number);
      const auto module = filled_module(subject, spec, 22);
      return module
                 ? std::pair(forward(*module, x), subject.quantizer->save(*module, *subject.config))
                 : std::pair(at::Tensor(), Tensors());
    };
    const auto [y, saved] = with(1);
    if (!y.defined()) return;
    for (const int number : {2, 5}) {
      const auto [other, again] = with(number);
      if (!same_bits(y, other))
        broken("with " + std::to_string(number) +
               " threads forward gives other bits than with one");
      for (const auto& [name, tensor] : saved)
        if (!same_bits(tensor, again.at(name)))
          broken("with " + std::to_string(number) + " threads '" + name + "' gets other bits");
    }
  });
}

void concurrent_use(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 23);
    if (!module) return;
    const auto work = [&](std::uint64_t seed) {
      const auto own = filled_module(subject, spec, seed);
      const auto x = random_normal({3, spec.in_features}, seed);
      return std::pair(forward(*own, x), forward(*module, x));
    };
    std::vector<std::pair<at::Tensor, at::Tensor>> expected;
    for (std::uint64_t seed = 0; seed < 8; ++seed) expected.push_back(work(seed));
    std::mutex mutex;
    std::string failure;
    std::vector<std::thread> threads;
    for (std::uint64_t seed = 0; seed < 8; ++seed)
      threads.emplace_back([&, seed] {
        std::string found;
        try {
          for (int time = 0; time < 3 && found.empty(); ++time) {
            const auto [own, shared] = work(seed);
            if (!same_bits(own, expected[seed].first) || !same_bits(shared, expected[seed].second))
              found = "a thread beside others gets other bits than alone";
          }
        } catch (const std::exception& error) {
          found = error.what();
        }
        if (found.empty()) return;
        const std::lock_guard lock(mutex);
        failure = found;
      });
    for (auto& thread : threads) thread.join();
    if (!failure.empty()) broken(failure);
  });
}

void left_behind(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 24);
    if (!module) return;
    forward(*module, random_normal({3, spec.in_features}, 25));
    subject.quantizer->save(*module, *subject.config);
    subject.quantizer->dequantize(*module);
  });
  const auto changes = tried.before.changes(ProcessState::now());
  if (!changes.empty()) broken(changes.front());
}

}  // namespace

std::vector<Check> process_checks() {
  return {
      {"the number of threads changes no bit", number_of_threads},
      {"threads side by side get what one gets alone", concurrent_use},
      {"the process is left as it was: locale, rounding, random numbers, signals, threads",
       left_behind},
  };
}

}  // namespace graft::cli
