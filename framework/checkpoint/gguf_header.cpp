#include "checkpoint/gguf_header.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "checkpoint/safetensors_header.h"
#include "graft/error.h"
#include "text/utf8.h"

namespace graft {
namespace {

constexpr std::uint64_t kMaxKeys = 1u << 16;
constexpr std::uint64_t kMaxNameBytes = 1024;
constexpr std::uint32_t kMaxGgufDimensions = 4;
constexpr int kMaxArrayDepth = 4;
constexpr std::string_view kDownloadAgain = "the file is damaged or incomplete: download it again";

/// Thrown and caught in this file: the bytes that are there end before the header does.
struct NeedMore {};

/// Walks over the start of a file; nothing is read before it is known to lie inside.
class Cursor {
 public:
  Cursor(std::string_view available, std::uint64_t file_size)
      : available_(available), file_size_(file_size) {}

  std::uint64_t position() const { return position_; }

  std::string_view take(std::uint64_t size, std::string_view what) {
    if (size > file_size_ - position_)
      throw Error(ErrorKind::model, "the file ends inside " + std::string(what))
          .at("byte " + std::to_string(position_))
          .expected(std::to_string(size) + " bytes")
          .found(std::to_string(file_size_ - position_))
          .hint(kDownloadAgain);
    if (size > available_.size() - position_) throw NeedMore{};
    const auto out = available_.substr(position_, size);
    position_ += size;
    return out;
  }
  std::string_view since(std::uint64_t begin) const {
    return available_.substr(begin, position_ - begin);
  }
  std::uint32_t u32(std::string_view what) {
    return static_cast<std::uint32_t>(little_endian(take(4, what)));
  }
  std::uint64_t u64(std::string_view what) { return little_endian(take(8, what)); }
  std::string_view string(std::string_view what) { return take(u64(what), what); }

  GgufType type(std::string_view what) {
    const std::uint32_t number = u32(what);
    if (number >= kGgufTypes)
      throw Error(ErrorKind::model, "unknown type of metadata")
          .expected("0 to " + std::to_string(kGgufTypes - 1))
          .found(std::to_string(number));
    return static_cast<GgufType>(number);
  }

  /// Steps over one value and checks it.
  void value(GgufType type, int depth) {
    if (type == GgufType::string) {
      string("a string");
    } else if (type == GgufType::array) {
      array(depth + 1);
    } else {
      check_bool(type, take(size_of(type), "a value"));
    }
  }

 private:
  void array(int depth) {
    if (depth > kMaxArrayDepth)
      throw Error(ErrorKind::model, "arrays are nested too deeply")
          .expected("at most " + std::to_string(kMaxArrayDepth) + " levels");
    const GgufType element = type("the element type of an array");
    const std::uint64_t count = u64("the length of an array");
    if (const std::uint64_t each = size_of(element)) {
      if (count > file_size_ / each)
        throw Error(ErrorKind::model, "an array does not fit the file")
            .expected("at most " + std::to_string(file_size_ / each) + " elements")
            .found(std::to_string(count))
            .hint(kDownloadAgain);
      const auto elements = take(count * each, "an array");
      if (element == GgufType::boolean)
        for (std::size_t i = 0; i < elements.size(); ++i)
          check_bool(element, elements.substr(i, 1));
      return;
    }
    // Each element takes bytes of the file, so its end also ends a length that is made up.
    for (std::uint64_t i = 0; i < count; ++i) value(element, depth);
  }

  static void check_bool(GgufType type, std::string_view bytes) {
    if (type == GgufType::boolean && static_cast<unsigned char>(bytes[0]) > 1)
      throw Error(ErrorKind::model, "a bool is neither 0 nor 1")
          .found(std::to_string(static_cast<unsigned char>(bytes[0])));
  }

  std::string_view available_;
  std::uint64_t file_size_, position_ = 0;
};

/// Steps over the magic and the version.
void read_version(Cursor& cursor) {
  const auto magic = cursor.take(4, "the first four bytes");
  if (magic != "GGUF")
    throw Error(ErrorKind::model, "this is not a GGUF file")
        .at("the first four bytes")
        .expected("'GGUF'")
        .found(quote(magic))
        .hint(magic == "vers" ? "it looks like a Git LFS pointer: fetch it with `git lfs pull`"
                              : "");
  const std::uint32_t version = cursor.u32("the version");
  if ((version & 0xFFFF) == 0)
    throw Error(ErrorKind::model, "this is a big-endian GGUF file")
        .expected("a little-endian one")
        .hint("download the little-endian version of it");
  if (version != 2 && version != 3)
    throw Error(ErrorKind::model, "unsupported version of GGUF")
        .expected("2 or 3")
        .found(std::to_string(version))
        .hint(version == 1 ? "convert the model again with a newer llama.cpp" : "");
}

std::string_view read_name(Cursor& cursor, std::string_view what) {
  const std::uint64_t size = cursor.u64(what);
  if (size == 0 || size > kMaxNameBytes)
    throw Error(ErrorKind::model, std::string(what) + " has an impossible length")
        .expected("1 to " + std::to_string(kMaxNameBytes) + " bytes")
        .found(std::to_string(size));
  const auto name = cursor.take(size, what);
  if (!is_valid_utf8(name))
    throw Error(ErrorKind::model, std::string(what) + " is not UTF-8").found(quote(name));
  return name;
}

/// Bytes of the tensor; throws when its numbers cannot be.
std::uint64_t read_shape(Cursor& cursor, GgufTensor& tensor) {
  const std::uint32_t dimensions = cursor.u32("a shape");
  if (dimensions == 0 || dimensions > kMaxGgufDimensions)
    throw Error(ErrorKind::model, "impossible number of dimensions")
        .expected("1 to " + std::to_string(kMaxGgufDimensions))
        .found(std::to_string(dimensions));
  constexpr std::uint64_t kMost = std::uint64_t{1} << 62;
  std::uint64_t elements = 1;
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const std::uint64_t size = cursor.u64("a shape");
    if (size == 0 || size > kMost / elements)
      throw Error(ErrorKind::model, size == 0 ? "a dimension is 0" : "the shape is too large");
    elements *= size;
    tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(size));
  }
  const std::uint32_t id = cursor.u32("the type of a tensor");
  tensor.format = block_format(id);
  if (!tensor.format || !tensor.format->dequantize)
    throw Error(ErrorKind::model, "unsupported type of tensor")
        .expected("one of " + readable_block_formats())
        .found(tensor.format ? std::string(tensor.format->name) : "number " + std::to_string(id))
        .hint("take another quantization of the model, such as Q4_K_M or Q8_0");
  const std::uint64_t in_block = tensor.format->elements;
  if (static_cast<std::uint64_t>(tensor.shape.back()) % in_block != 0)
    throw Error(ErrorKind::model, "rows are not whole blocks")
        .expected("a multiple of " + std::to_string(in_block) + " for " +
                  std::string(tensor.format->name))
        .found(std::to_string(tensor.shape.back()));
  const std::uint64_t blocks = elements / in_block;
  if (blocks > kMost / tensor.format->bytes)
    throw Error(ErrorKind::model, "the shape is too large");
  return blocks * tensor.format->bytes;
}

std::uint64_t alignment_of(const GgufHeader& header) {
  const GgufValue* value = header.find("general.alignment");
  if (!value) return 32;
  const std::uint64_t alignment = value->type() == GgufType::u32 ? value->as_unsigned() : 0;
  if (alignment < 8 || alignment > (1u << 20) || !std::has_single_bit(alignment))
    throw Error(ErrorKind::model, "impossible alignment")
        .at("'general.alignment'")
        .expected("a u32, a power of two from 8 to 1048576")
        .found(value->text());
  return alignment;
}

std::uint64_t aligned(std::uint64_t offset, std::uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

/// Offsets count from the end of the header; makes them count from the start of the file. Tensors
/// may come in any order, but their data covers the file without a hole.
void place_tensors(std::vector<GgufTensor>& tensors, std::uint64_t begin, std::uint64_t alignment,
                   std::uint64_t file_size) {
  std::vector<GgufTensor*> order;
  for (auto& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->offset < b->offset; });
  std::uint64_t end = begin;
  const GgufTensor* before = nullptr;
  for (GgufTensor* tensor : order) {
    const std::string place = "tensor " + quote(tensor->name);
    const std::uint64_t start = aligned(end, alignment);
    if (tensor->offset % alignment != 0)
      throw Error(ErrorKind::model, "the data is not aligned")
          .at(place)
          .expected("a multiple of " + std::to_string(alignment))
          .found(std::to_string(tensor->offset));
    if (begin > file_size || tensor->offset > file_size - begin ||
        tensor->bytes > file_size - begin - tensor->offset)
      throw Error(ErrorKind::model, "the data lies outside of the file")
          .at(place)
          .expected(std::to_string(tensor->bytes) + " bytes from " +
                    std::to_string(tensor->offset) + " of the data")
          .found(std::to_string(file_size - std::min(begin, file_size)) + " bytes of data")
          .hint(kDownloadAgain);
    if (begin + tensor->offset != start)
      throw Error(ErrorKind::model, begin + tensor->offset < start
                                        ? "the data overlaps that of " + quote(before->name)
                                        : "there is a hole before the data")
          .at(place)
          .expected("offset " + std::to_string(start - begin))
          .found(std::to_string(tensor->offset))
          .hint(kDownloadAgain);
    tensor->offset += begin;
    end = tensor->offset + tensor->bytes;
    before = tensor;
  }
  if (file_size > aligned(end, alignment))
    throw Error(ErrorKind::model, "there are bytes behind the last tensor")
        .expected(std::to_string(aligned(end, alignment)) + " bytes")
        .found(std::to_string(file_size))
        .hint(kDownloadAgain);
}

}  // namespace

const GgufValue* GgufHeader::find(std::string_view key) const {
  const auto found = std::lower_bound(metadata_.begin(), metadata_.end(), key,
                                      [](const auto& row, auto k) { return row.first < k; });
  return found != metadata_.end() && found->first == key ? &found->second : nullptr;
}

const GgufValue& GgufHeader::at(std::string_view key) const {
  if (const GgufValue* value = find(key)) return *value;
  throw Error(ErrorKind::model, "the metadata has no " + quote(key));
}

const GgufTensor* GgufHeader::find_tensor(std::string_view name) const {
  const auto found =
      std::lower_bound(by_name_.begin(), by_name_.end(), name,
                       [&](std::uint32_t i, auto wanted) { return tensors_[i].name < wanted; });
  return found != by_name_.end() && tensors_[*found].name == name ? &tensors_[*found] : nullptr;
}

std::optional<GgufHeader> parse_gguf_header(std::shared_ptr<const std::string> start,
                                            std::uint64_t file_size) try {
  GgufHeader header;
  header.start_ = std::move(start);
  Cursor cursor(*header.start_, file_size);
  read_version(cursor);
  const std::uint64_t tensors = cursor.u64("the number of tensors");
  const std::uint64_t keys = cursor.u64("the number of metadata keys");
  if (tensors > kMaxTensors || keys > kMaxKeys)
    throw Error(ErrorKind::model, tensors > kMaxTensors ? "too many tensors" : "too many keys")
        .expected("at most " + std::to_string(tensors > kMaxTensors ? kMaxTensors : kMaxKeys))
        .found(std::to_string(tensors > kMaxTensors ? tensors : keys));

  for (std::uint64_t i = 0; i < keys; ++i) {
    const auto key = read_name(cursor, "a key of the metadata");
    try {
      const GgufType type = cursor.type("a type of metadata");
      const std::uint64_t begin = cursor.position();
      cursor.value(type, 0);
      header.metadata_.emplace_back(key, GgufValue(type, cursor.since(begin)));
    } catch (Error& error) {
      throw error.at(quote(key));
    }
  }
  const auto by_key = [](const auto& a, const auto& b) { return a.first < b.first; };
  std::sort(header.metadata_.begin(), header.metadata_.end(), by_key);
  const auto twice =
      std::adjacent_find(header.metadata_.begin(), header.metadata_.end(),
                         [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twice != header.metadata_.end())
    throw Error(ErrorKind::model, "the key " + quote(twice->first) + " occurs twice");

  for (std::uint64_t i = 0; i < tensors; ++i) {
    GgufTensor tensor;
    tensor.name = read_name(cursor, "the name of a tensor");
    try {
      tensor.bytes = read_shape(cursor, tensor);
      tensor.offset = cursor.u64("the offset of a tensor");
    } catch (Error& error) {
      throw error.at("tensor " + quote(tensor.name));
    }
    header.tensors_.push_back(std::move(tensor));
  }
  header.by_name_.resize(header.tensors_.size());
  std::iota(header.by_name_.begin(), header.by_name_.end(), 0u);
  const auto name = [&](std::uint32_t i) { return header.tensors_[i].name; };
  std::sort(header.by_name_.begin(), header.by_name_.end(),
            [&](auto a, auto b) { return name(a) < name(b); });
  const auto again = std::adjacent_find(header.by_name_.begin(), header.by_name_.end(),
                                        [&](auto a, auto b) { return name(a) == name(b); });
  if (again != header.by_name_.end())
    throw Error(ErrorKind::model, "the tensor " + quote(name(*again)) + " occurs twice");

  const std::uint64_t alignment = alignment_of(header);
  place_tensors(header.tensors_, aligned(cursor.position(), alignment), alignment, file_size);
  return header;
} catch (const NeedMore&) {
  return std::nullopt;
}

}  // namespace graft
