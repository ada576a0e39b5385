// A GGUF file: header, tokenizer and weights become a model folder, which must open.

#include <sys/stat.h>

#include <cstdlib>

#include "fuzz.h"
#include "graft/checkpoint.h"
#include "graft/gguf.h"
#include "graft/tokenizer.h"
#include "temporary_folder.h"

using namespace graft;
using namespace graft::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const MemoryFile file;
  static const test::TemporaryFolder folder(test::in_memory());
  const auto path = file.write(as_text(data, size));
  const auto output = folder.path() / "out";
  GgufImportOptions options;
  options.dtype = Dtype::F32;
  options.write.overwrite = true;
  GgufImport imported;
  if (!accepts([&] { imported = import_gguf(path, output, options); })) return 0;
  const Checkpoint checkpoint = Checkpoint::open(output);
  require(checkpoint.tensors().size() == imported.tensors &&
          checkpoint.total_bytes() == imported.bytes);
  accepts([&] { Tokenizer::open(output).encode("A b\xc3\xa9 12\n"); });
  return 0;
}
