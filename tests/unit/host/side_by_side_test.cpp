// What the thread sanitizer looks at: ctest --preset tsan.

#include <ATen/ATen.h>

#include <thread>

#include "graft/host.h"

#include "model_folder.h"
#include "model_logits.h"
#include "thrown_by.h"

using namespace graft;
using test::logits;
namespace fs = std::filesystem;

namespace {

/// Runs `body(i)` in `count` threads at once; what they throw fails the test.
template <class Body>
void in_threads(int count, const Body& body) {
  std::vector<std::string> failures(static_cast<std::size_t>(count));
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i)
    threads.emplace_back([&, i] {
      try {
        body(i);
      } catch (const std::exception& error) {
        failures[static_cast<std::size_t>(i)] = error.what();
      }
    });
  for (auto& thread : threads) thread.join();
  for (const auto& failure : failures) CHECK(failure == "");
}

const std::string kDense = "vectors/tiny_llama_dense_fp16";

LoadOptions nf4() {
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})");
  return options;
}

}  // namespace

TEST_CASE("side by side: hosts are made, load, convert and run in two threads") {
  const auto expected = logits(Host().load(test::golden(kDense), nf4()).model);
  std::vector<at::Tensor> results(2);
  in_threads(2, [&](int i) {
    Host host;
    host.add_patch("{class: '*', methods: '*', match: 'nowhere.*', keep: nothing}");
    results[static_cast<std::size_t>(i)] = logits(host.load(test::golden(kDense), nf4()).model);
    host.load(test::golden("vectors/tiny_llama_gptq4_v1"));
  });
  for (const auto& result : results) CHECK(at::equal(result, expected));
}

TEST_CASE("side by side: sixteen threads plan with one host") {
  HostOptions options;
  options.plugin_directories = {fs::path(GRAFT_TEST_PLUGINS) / "special"};
  const Host host(options);
  const auto dense = Checkpoint::open(test::golden(kDense));
  const auto experts = Checkpoint::open(test::golden("arch/mixtral"));
  const auto expected = to_json(host.plan(experts, nf4()).to_value());
  in_threads(16, [&](int i) {
    if (i % 2)
      host.plan(dense, nf4());
    else if (to_json(host.plan(experts, nf4()).to_value()) != expected)
      throw Error(ErrorKind::internal, "another plan");
    host.builds("SequentialCustomExperts");
  });
}
