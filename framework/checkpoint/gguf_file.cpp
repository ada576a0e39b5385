#include "checkpoint/gguf_file.h"

#include <algorithm>

namespace graft {
namespace {

/// Vocabularies of 256,000 tokens with their merges stay below 20 MB.
constexpr std::uint64_t kFirstPiece = 16u << 20, kMaxHeader = 512u << 20;

GgufHeader read_header(const InputFile& file) {
  for (std::uint64_t size = kFirstPiece; size <= kMaxHeader; size *= 2) {
    const auto start = std::make_shared<std::string>(std::min(size, file.size()), '\0');
    file.read(0, start->size(), start->data());
    try {
      if (auto header = parse_gguf_header(start, file.size())) return std::move(*header);
    } catch (Error& error) {
      throw error.at(path_text(file.path()));
    }
  }
  throw Error(ErrorKind::model, "the metadata is too large")
      .at(path_text(file.path()))
      .expected("at most " + std::to_string(kMaxHeader) + " bytes");
}

}  // namespace

GgufFile::GgufFile(const std::filesystem::path& path) : file_(path), header_(read_header(file_)) {}

void GgufFile::read(const GgufTensor& tensor, void* out) const {
  file_.read(tensor.offset, tensor.bytes, out);
}

}  // namespace graft
