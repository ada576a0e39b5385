// What an interrupted job left on the disk. The first byte says what follows: a job file, or the
// record of a group, a safetensors file. Most damage ends at a checksum, so each is read once more
// with one that is right.

#include <cstring>
#include <map>

#include "applying/checkpoint_tensors.h"
#include "calibrating/job_file.h"
#include "calibrating/record_file.h"
#include "checkpoint/input_file.h"
#include "fuzz.h"
#include "graft/checkpoint.h"
#include "json_mutator.h"
#include "safetensors_mutator.h"
#include "temporary_folder.h"

using namespace graft;
using namespace graft::fuzz;

namespace {

const std::vector<std::string> kModules{"layers.0.q_proj", "layers.0.k_proj"};

const test::TemporaryFolder& folder() {
  static const test::TemporaryFolder made(test::in_memory());
  return made;
}

std::string sealed_job_file(std::string_view text) {
  std::string out;
  accepts([&] {
    Value all = parse_json(text);
    const Value* call = all.find("call");
    all.set("crc32", checksum(to_json(all.at("job")) + to_json(call ? *call : Value())));
    out = to_json(all);
  });
  return out;
}

/// A job goes on when it is the one of the file, and no other does.
void read_job(std::string_view text) {
  folder().write("job.json", text);
  const JobState state{folder().path(), {}};
  if (!accepts([&] { read_job_call(state.folder); })) return;
  Value job = parse_json(text).at("job");
  require(accepts([&] { begin_or_continue(state, job); }), text);
  job.set("graft", "another");
  require(!accepts([&] { begin_or_continue(state, job); }), text);
}

/// The file with the right checksum where it has one.
std::string sealed_record(std::string file, const std::filesystem::path& path) {
  accepts([&] {
    const Checkpoint checkpoint = Checkpoint::open_file(path);
    const auto* sum = checkpoint.find(kRecordSum);
    if (!sum || sum->bytes != sizeof(std::int64_t)) return;
    std::map<std::string, at::Tensor> others;
    for (const auto& info : checkpoint.tensors())
      if (&info != sum) others.emplace(info.name, read_tensor(checkpoint, info));
    const std::int64_t right = record_checksum(others);
    std::memcpy(file.data() + sum->offset, &right, sizeof(right));
  });
  return file;
}

/// What was read is written and read again as the same.
void read_group(const std::filesystem::path& path) {
  GroupRecord record, again;
  if (!accepts([&] { record = read_record(path, kModules); })) return;
  require(record.modules.size() == kModules.size() && record.row.modules == kModules);
  const auto file = folder().path() / "again", third = folder().path() / "third";
  write_record(file, record);
  require(accepts([&] { again = read_record(file, kModules); }));
  write_record(third, again);
  require(InputFile(file).read_all(1u << 30) == InputFile(third).read_all(1u << 30));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view input = as_text(data + 1, size - 1);
  if (data[0] == 'j') {
    read_job(input);
    read_job(sealed_job_file(input));
  } else {
    static const MemoryFile memory;
    const auto path = memory.write(input);
    read_group(path);
    read_group(memory.write(sealed_record(std::string(input), path)));
  }
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  if (size == 0 || most < 2) return size;
  std::mt19937 random(seed);
  std::string content(as_text(data + 1, size - 1));
  content = data[0] == 'j' ? mutate_json(std::move(content), most - 1, random)
                           : mutate_safetensors(std::move(content), most - 1, random);
  std::memcpy(data + 1, content.data(), content.size());
  return content.size() + 1;
}
