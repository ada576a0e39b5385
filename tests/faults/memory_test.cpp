// Every allocation that a small load or a small quantize makes is denied once, all in one process.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <functional>
#include <map>
#include <new>

#include "graft/host.h"
#include "interposed.h"

#include "model_folder.h"
#include "thrown_by.h"

using namespace graft;
using namespace graft::faults;
namespace fs = std::filesystem;

namespace {

/// LibTorch's allocator for the memory of tensors, which runs out at a given allocation.
class FailingTensors : public c10::Allocator {
 public:
  explicit FailingTensors(long at) : at_(at), system_(c10::GetCPUAllocator()) {
    c10::SetCPUAllocator(this, /*priority=*/1);
  }
  ~FailingTensors() override { c10::SetCPUAllocator(system_, 1); }

  c10::DataPtr allocate(std::size_t bytes) override {
    if (calls_++ == at_) C10_THROW_ERROR(OutOfMemoryError, "no memory for a tensor");
    return system_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return system_->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool denied() const { return calls_ > at_; }

 private:
  long at_;
  std::atomic<long> calls_{0};
  c10::Allocator* system_;
};

/// What a job made, to compare: a denied allocation may be survived, but never change the result.
using Job = std::function<std::string()>;

std::string bytes_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files[entry.path().filename()] = test::read_file(entry.path());
  std::string out;
  for (const auto& [name, content] : files) out += name + "\n" + content;
  return out;
}

std::string tensors_of(const LoadedModel& loaded) {
  std::string out;
  for (const auto& item : loaded.model->named_parameters()) {
    const at::Tensor tensor = item.value().contiguous();
    out += item.key();
    out.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  }
  for (const auto& note : loaded.plan.notes) out += note + "\n";
  return out;
}

Job load(const std::string& golden) {
  return [golden] {
    const Host host;
    return tensors_of(host.load(test::golden(golden)));
  };
}

Job quantize_and_save(const std::string& settings) {
  return [settings] {
    const test::TemporaryFolder folder(test::in_memory());
    {
      const Host host;
      LoadOptions options;
      options.quantization_config = parse_json(settings);
      const LoadedModel loaded =
          host.load(test::golden("vectors/tiny_llama_dense_fp16"), options);
      try {
        host.save(loaded, folder.path() / "m");
      } catch (...) {
        CHECK_FALSE(fs::exists(folder.path() / "m"));
        throw;
      }
    }
    return bytes_of(folder.path() / "m");
  };
}

/// How one attempt ended.
enum class End { good, refused, wrong };

End attempt(const Job& job, const std::string& good, std::string& what) {
  try {
    return job() == good ? End::good : (what = "another result", End::wrong);
  } catch (const Error& error) {
    what = error.what();
    return error.kind() == ErrorKind::resource ? End::refused : End::wrong;
  } catch (const std::bad_alloc&) {
    what = "std::bad_alloc";
    return End::refused;
  } catch (const c10::OutOfMemoryError&) {
    what = "c10::OutOfMemoryError";
    return End::refused;
  } catch (const std::exception& error) {
    what = error.what();
    return End::wrong;
  }
}

void deny_each_allocation(const std::string& name, const Job& job) {
  std::string good;
  // On one thread: the pool keeps one job more whenever a helper is late with the last one.
  at::set_num_threads(1);
  for (int i = 0; i < 3; ++i) good = job();  // what is made once and kept is made now
  long survived = 0, at = 0, leaks = 0, wrong = 0;
  for (;; ++at) {
    std::string what;
    arm_memory(at);
    const End end = attempt(job, good, what);
    what.shrink_to_fit();
    const MemoryReport report = disarm_memory();
    if (!report.denied) break;
    survived += end == End::good;
    if (end == End::wrong && ++wrong <= 10)
      FAIL_CHECK(name << ", allocation " << at << ": " << what.substr(0, 500));
    if (report.left && ++leaks <= 10)
      FAIL_CHECK(name << ", allocation " << at << " leaves " << report.left << ", one made at "
                      << report.first_left);
  }
  MESSAGE(name << ": " << at << " allocations denied, " << survived << " of them did no harm, "
               << leaks << " leaks");
  CHECK(leaks == 0);
  CHECK(wrong == 0);
  CHECK(at > 100);
}

void deny_each_tensor(const std::string& name, const Job& job) {
  const std::string good = job();
  long at = 0;
  for (;; ++at) {
    std::string what;
    const FailingTensors failing(at);
    const End end = attempt(job, good, what);
    if (!failing.denied()) break;
    CHECK_MESSAGE(end == End::refused, name << ", tensor " << at << ": " << what);
  }
  MESSAGE(name << ": " << at << " tensors denied");
  CHECK(at > 10);
}

const char* const kNf4 = R"({"quant_method":"bitsandbytes","load_in_4bit":true,
                             "bnb_4bit_use_double_quant":true})";
const char* const kInt8 = R"({"quant_method":"bitsandbytes","load_in_8bit":true})";

}  // namespace

TEST_CASE("a load that is denied any one allocation ends with an error and leaks nothing") {
  for (const char* golden : {"vectors/tiny_llama_gptq4_v1", "vectors/tiny_llama_awq4_gemm",
                             "vectors/tiny_llama_bnb_nf4_dq"})
    deny_each_allocation(golden, load(golden));
}

TEST_CASE("a quantize that is denied any one allocation leaves no output and leaks nothing") {
  deny_each_allocation("nf4", quantize_and_save(kNf4));
  deny_each_allocation("int8", quantize_and_save(kInt8));
}

TEST_CASE("a load or quantize that is denied the memory of any one tensor says so") {
  for (const char* golden : {"vectors/tiny_llama_gptq4_v1", "vectors/tiny_llama_awq4_gemm",
                             "vectors/tiny_llama_bnb_nf4_dq", "vectors/tiny_llama_bnb_int8"})
    deny_each_tensor(golden, load(golden));
  deny_each_tensor("nf4", quantize_and_save(kNf4));
  deny_each_tensor("int8", quantize_and_save(kInt8));
}
