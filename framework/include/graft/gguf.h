#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "graft/checkpoint.h"
#include "graft/export.h"
#include "graft/pool.h"

namespace graft {

struct GgufImportOptions {
  Dtype dtype = Dtype::BF16;  ///< of every tensor in the folder: BF16, F16 or F32
  /// How the tokenizer splits text ("gpt-2", "llama-bpe", ...), for files that do not say it.
  std::string splitting;
  WriteOptions write;
  const graft_pool* threads = nullptr;  ///< nullptr: on the caller's thread; see graft::pool()
};

struct GgufImport {
  std::string architecture;                              ///< as the file names it
  std::uint64_t tensors = 0, parameters = 0, bytes = 0;  ///< written
};

/// Makes a Hugging Face model folder of a GGUF file (llama.cpp, version 2 or 3): config.json,
/// generation_config.json, tokenizer.json, tokenizer_config.json and safetensors. Weights are
/// dequantized in float32 and rounded once, to nearest even; tied heads stay tied. The folder is
/// complete or absent.
/// Throws Error(model) for a file that is wrong anywhere, for architectures, tokenizers and block
/// formats that are not known, for metadata that may change results and is not understood, for
/// weights that are not finite or too large for the dtype; otherwise as FolderWriter.
GRAFT_API GgufImport import_gguf(const std::filesystem::path& file,
                                 const std::filesystem::path& folder,
                                 const GgufImportOptions& options = {});

}  // namespace graft
