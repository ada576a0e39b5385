#pragma once

#include <filesystem>

#include "checkpoint/gguf_header.h"
#include "checkpoint/input_file.h"

namespace graft {

/// A GGUF file that is read. Const functions are thread-safe.
class GgufFile {
 public:
  /// Reads and checks the header. Throws Error(model) naming the file.
  explicit GgufFile(const std::filesystem::path& path);

  const GgufHeader& header() const { return header_; }
  /// The tensor's bytes into `out`, which holds tensor.bytes.
  void read(const GgufTensor& tensor, void* out) const;

 private:
  InputFile file_;
  GgufHeader header_;
};

}  // namespace graft
