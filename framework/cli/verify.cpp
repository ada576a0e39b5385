#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "checkpoint/nonfinite.h"
#include "cli/program.h"
#include "graft/module_graph.h"
#include "graft/pool.h"
#include "graft/tensors.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string model, against;
};

/// Tensors of quantized modules in a float type that hold no floats, but packed codes.
std::set<std::string> packed_tensors(const Plan& plan) {
  std::set<std::string> names;
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize && plan.pre_quantized)
      for (const auto& tensor : entry.tensors)
        if (!tensor.finite) names.insert(tensor.source);
  return names;
}

/// Reads every byte of the checkpoint and finds tensors with NaN or infinity. A piece stays in the
/// cache of the core that looks at it, so that this costs little more than reading.
class Scan {
 public:
  Scan(const Checkpoint& checkpoint, const Plan& plan, const Context& context)
      : checkpoint_(checkpoint), packed_(packed_tensors(plan)), context_(context) {
    const auto& tensors = checkpoint.tensors();
    for (std::size_t t = 0; t < tensors.size(); ++t)
      for (std::uint64_t begin = 0; begin < tensors[t].bytes; begin += kPiece)
        pieces_.push_back({t, begin, std::min(kPiece, tensors[t].bytes - begin)});
  }

  /// "'name' at element 5", in the order of the tensors.
  std::vector<std::string> run() {
    const std::int64_t count = static_cast<std::int64_t>(pieces_.size());
    // A round at a time, so that Ctrl-C is noticed; progress is told by this thread.
    for (std::int64_t first = 0; first < count; first += kRound) {
      for_each_chunk(pool(), std::min(kRound, count - first), [&](std::int64_t i) noexcept {
        look_at(static_cast<std::size_t>(first + i));
      });
      if (failure_) std::rethrow_exception(failure_);
      context_.advance("verify", done_.load(), checkpoint_.total_bytes());
    }
    std::vector<std::string> out;
    for (const auto& [tensor, element] : found_)
      out.push_back(quote(checkpoint_.tensors()[tensor].name) + " at element " +
                    std::to_string(element));
    return out;
  }

 private:
  static constexpr std::uint64_t kPiece = 1024U << 10;
  static constexpr std::int64_t kRound = 256;

  struct Piece {
    std::size_t tensor;
    std::uint64_t begin, size;
  };

  void look_at(std::size_t index) noexcept {
    const Piece& piece = pieces_[index];
    const TensorInfo& info = checkpoint_.tensors()[piece.tensor];
    try {
      thread_local std::unique_ptr<unsigned char[]> buffer(new unsigned char[kPiece]);
      checkpoint_.read(info, piece.begin, piece.size, buffer.get());
      done_ += piece.size;
      if (packed_.contains(info.name)) return;
      const auto bad = first_nonfinite(info.dtype, buffer.get(), piece.size);
      if (!bad) return;
      const std::uint64_t element = piece.begin / size_of(info.dtype) + *bad;
      const std::lock_guard lock(mutex_);
      const auto known = found_.emplace(piece.tensor, element);
      known.first->second = std::min(known.first->second, element);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  const Checkpoint& checkpoint_;
  std::set<std::string> packed_;
  const Context& context_;
  std::vector<Piece> pieces_;
  std::atomic<std::uint64_t> done_{0};
  std::mutex mutex_;
  std::map<std::size_t, std::uint64_t> found_;
  std::exception_ptr failure_;
};

/// Where the base keeps the weight of each module: an expert's may be a part of a larger tensor.
std::map<std::string, PlannedTensor> weights_of(const Host& host, const Checkpoint& base,
                                                const LoadedModel& loaded) {
  LoadOptions options;
  options.quantization_config = loaded.quantization_config;
  std::map<std::string, PlannedTensor> weights;
  for (const auto& entry : host.plan(base, options).entries)
    for (const auto& tensor : entry.tensors)
      if (tensor.name == "weight") weights.emplace(entry.spec.path, tensor);
  return weights;
}

/// Relative error of every quantized module against the dense model it was made from.
Value::Array compare(Program& program, const Checkpoint& checkpoint, const LoadOptions& options,
                     const std::string& against) {
  const Checkpoint base = Checkpoint::open(find_model(against));
  LoadOptions with_structure = options;
  with_structure.structure = base;
  const auto loaded = program.host().load(checkpoint, with_structure);
  const auto dense_weights = weights_of(program.host(), base, loaded);
  Value::Array rows;
  for (const auto& entry : loaded.plan.entries) {
    if (entry.action != Action::quantize) continue;
    const auto [parent, name] = get_module_from_name(loaded.model, entry.spec.path);
    const auto* block = dynamic_cast<const nn::Block*>(parent->named_children().find(name)->get());
    const auto weight = entry.quantizer->dequantize(*block).to(at::kFloat);
    const auto found = dense_weights.find(entry.spec.path);
    if (found == dense_weights.end())
      throw Error(ErrorKind::model, "the base model has no weight for a quantized module")
          .at(entry.spec.path);
    const auto dense = read_planned(base, found->second).to(at::kFloat);
    if (dense.sizes() != weight.sizes())
      throw Error(ErrorKind::model, "the base model has another shape").at(entry.spec.path);
    Value row;
    row.set("path", entry.spec.path);
    row.set("relative_error", ((weight - dense).norm() / dense.norm()).item<double>());
    rows.push_back(std::move(row));
  }
  return rows;
}

void run(Program& program, const Arguments& given) {
  const c10::InferenceMode guard;
  const Checkpoint checkpoint = Checkpoint::open(find_model(given.model));
  LoadOptions options;
  options.context = program.context();
  const Plan plan = program.host().inspect(checkpoint, options);
  plan.check(program.globals.strict);
  const auto start = std::chrono::steady_clock::now();
  const auto bad = Scan(checkpoint, plan, options.context).run();
  const double read_s =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto rows =
      given.against.empty() ? Value::Array{} : compare(program, checkpoint, options, given.against);
  const auto list = [](const std::vector<std::string>& items) {
    return Value(Value::Array(items.begin(), items.end()));
  };
  if (program.globals.json) {
    Value result;
    result.set("tensors", static_cast<std::int64_t>(checkpoint.tensors().size()));
    result.set("bytes", static_cast<std::int64_t>(checkpoint.total_bytes()));
    result.set("read_s", read_s);
    result.set("quantized", static_cast<std::int64_t>(plan.count(Action::quantize)));
    result.set("detected", list(plan.detected));
    result.set("notes", list(plan.notes));
    result.set("doubts", list(plan.doubts));
    result.set("unexpected", list(plan.unexpected));
    result.set("not_finite", list(bad));
    if (!given.against.empty()) result.set("modules", rows);
    program.print_json(result);
  } else {
    double worst = 0;
    for (const auto& row : rows) {
      worst = std::max(worst, row.at("relative_error").as_double());
      std::printf("%-48s %.5f\n", row.at("path").as_string().c_str(),
                  row.at("relative_error").as_double());
    }
    for (const auto& line : plan.detected) std::printf("detected   %s\n", printable(line).c_str());
    for (const auto& line : plan.notes) std::printf("note       %s\n", printable(line).c_str());
    for (const auto& line : plan.doubts) std::printf("!          %s\n", printable(line).c_str());
    for (const auto& name : plan.unexpected) std::printf("unexpected %s\n", name.c_str());
    for (const auto& name : bad) std::printf("not finite %s\n", name.c_str());
    if (!rows.empty()) std::printf("worst relative error %.5f\n", worst);
    if (bad.empty())
      std::printf("%zu tensors, %s, %zu quantized modules: all well, read in %s\n",
                  checkpoint.tensors().size(), megabytes(checkpoint.total_bytes()).c_str(),
                  plan.count(Action::quantize), seconds(read_s).c_str());
  }
  if (!bad.empty() && !program.globals.allow_nonfinite)
    throw Error(ErrorKind::model, std::to_string(bad.size()) +
                                      " tensor(s) hold NaN or infinity, first " + bad.front())
        .at(quote(checkpoint.folder().string()));
}

}  // namespace

void add_verify(CLI::App& app, Program& program) {
  auto given = std::make_shared<Arguments>();
  auto* verb =
      app.add_subcommand("verify", "Check every tensor of a model, or measure it against its base");
  verb->add_option("MODEL", given->model, "Folder or cached org/name")->required();
  verb->add_option("--against", given->against,
                   "The dense model it was made from: relative error per module");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
