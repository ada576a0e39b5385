#include "checkpoint/safetensors_header.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <limits>
#include <string>
#include <unordered_set>

#include "checkpoint/json_events.h"

namespace graft {
namespace {

// Tensors lie in files and in panels as little-endian machines keep them in memory.
static_assert(std::endian::native == std::endian::little, "graft runs on little-endian machines");

constexpr std::string_view kDownloadAgain = "the file is damaged or incomplete: download it again";

bool starts_with_ignoring_case(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() &&
         std::equal(lower.begin(), lower.end(), text.begin(), [](char l, char c) {
           return l == std::tolower(static_cast<unsigned char>(c));
         });
}

/// Refuses files that are commonly found under the name of a safetensors file. Called only for
/// files that cannot be one, so a match never hides a good file.
void refuse_other_kinds(std::string_view start) {
  if (start.starts_with("version https://git-lfs"))
    throw Error(ErrorKind::model, "this is a Git LFS pointer, not the weights")
        .hint("fetch the weights with `git lfs pull`");
  const auto text = start.substr(std::min(start.size(), start.find_first_not_of(" \t\r\n")));
  for (const std::string_view tag : {"<!doctype", "<html", "<head", "<?xml", "<error"})
    if (starts_with_ignoring_case(text, tag))
      throw Error(ErrorKind::model,
                  "this looks like HTML, not like weights: an error page saved "
                  "under the name of the file")
          .hint("download it again, logged in if the model asks for it");
  if (start.starts_with("PK\x03\x04") || start.starts_with("\x80\x02"))
    throw Error(ErrorKind::model, "this is a PyTorch pickle, which is never read")
        .hint("convert it to safetensors where it comes from");
  if (start.starts_with("GGUF"))
    throw Error(ErrorKind::model, "this is a GGUF file under the name of a safetensors file")
        .hint("import it with `graft import`");
}

std::string known_dtypes() {
  std::string out;
  for (int i = 0; i <= static_cast<int>(Dtype::U64); ++i)
    out += (i ? ", " : "one of ") + std::string(name_of(static_cast<Dtype>(i)));
  return out;
}

/// The only form of a header: {"__metadata__": {text: text}, name: {dtype, shape, data_offsets}}.
class HeaderReader : public JsonEvents {
 public:
  explicit HeaderReader(std::size_t max_tensors) : max_tensors_(max_tensors) {}

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::start:
        place_ = Place::file;
        return true;
      case Place::tensor:
        place_ = Place::field;
        return true;
      case Place::metadata:
        place_ = Place::metadata_key;
        return true;
      default:
        return refuse("an object");
    }
  }

  bool key(string_t& name) override {
    switch (place_) {
      case Place::file:
        if (name == "__metadata__") {
          if (has_metadata_) fail("'__metadata__' occurs twice");
          has_metadata_ = true;
          place_ = Place::metadata;
          return true;
        }
        if (tensors_.size() >= max_tensors_)
          throw Error(ErrorKind::model, "the header lists too many tensors")
              .expected("at most " + std::to_string(max_tensors_))
              .hint("store them in fewer, larger tensors or in more files");
        tensors_.emplace_back().name = std::move(name);
        has_dtype_ = has_shape_ = false;
        offsets_.clear();
        has_offsets_ = false;
        place_ = Place::tensor;
        return true;
      case Place::field:
        if (name == "dtype") return begin_field(has_dtype_, name, Place::dtype);
        if (name == "shape") return begin_field(has_shape_, name, Place::shape);
        if (name == "data_offsets") return begin_field(has_offsets_, name, Place::offsets);
        throw Error(ErrorKind::model, "unknown field " + quote(name))
            .at(tensor_place())
            .expected("dtype, shape and data_offsets")
            .hint(kDownloadAgain);
      default:
        if (!metadata_keys_.insert(name).second)
          throw Error(ErrorKind::model, "the key " + quote(name) + " occurs twice")
              .at("'__metadata__'")
              .hint(kDownloadAgain);
        place_ = Place::metadata_value;
        return true;
    }
  }

  bool string(string_t& text) override {
    if (place_ == Place::metadata_value) {
      place_ = Place::metadata_key;
      return true;
    }
    if (place_ != Place::dtype) return refuse("the string " + quote(text));
    const auto dtype = dtype_named(text);
    if (!dtype)
      throw Error(ErrorKind::model, "unsupported dtype")
          .at(tensor_place())
          .expected(known_dtypes())
          .found(quote(text))
          .hint("save the tensor in one of them");
    tensors_.back().dtype = *dtype;
    place_ = Place::field;
    return true;
  }

  bool start_array(std::size_t) override {
    switch (place_) {
      case Place::shape:
        place_ = Place::dimension;
        return true;
      case Place::offsets:
        place_ = Place::offset;
        return true;
      default:
        return refuse("a list");
    }
  }

  bool number_unsigned(number_unsigned_t number) override {
    if (place_ == Place::dimension) {
      auto& shape = tensors_.back().shape;
      if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        return refuse(std::to_string(number));
      if (shape.size() >= kMaxDimensions)
        throw Error(ErrorKind::model, "the shape has too many dimensions")
            .at(tensor_place())
            .expected("at most " + std::to_string(kMaxDimensions))
            .found("more")
            .hint("save the tensor in another shape");
      shape.push_back(static_cast<std::int64_t>(number));
      return true;
    }
    if (place_ != Place::offset) return refuse(std::to_string(number));
    if (offsets_.size() == 2)
      throw Error(ErrorKind::model, "data_offsets has more than two numbers")
          .at(tensor_place())
          .hint(kDownloadAgain);
    offsets_.push_back(number);
    return true;
  }

  bool end_array() override {
    if (place_ == Place::offset && offsets_.size() != 2)
      throw Error(ErrorKind::model, "data_offsets is incomplete")
          .at(tensor_place())
          .expected("[begin, end]")
          .found(std::to_string(offsets_.size()) + " numbers")
          .hint(kDownloadAgain);
    place_ = Place::field;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::field) finish_tensor();
    place_ = place_ == Place::file ? Place::end : Place::file;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception& exception) override {
    try {
      return JsonEvents::parse_error(position, token, exception);
    } catch (Error& error) {
      if (place_ >= Place::tensor && place_ < Place::end) error.at(tensor_place());
      throw error.hint(kDownloadAgain);
    }
  }

  std::vector<TensorInfo> take() { return std::move(tensors_); }

 private:
  enum class Place {
    start,
    file,
    metadata,
    metadata_key,
    metadata_value,
    tensor,
    field,
    dtype,
    shape,
    dimension,
    offsets,
    offset,
    end,
  };

  bool refuse(const std::string& found) override {
    static constexpr std::array<std::string_view, 13> kExpected{
        "an object",
        "a key",
        "an object of strings",
        "a key",
        "a string",
        "an object with dtype, shape and data_offsets",
        "a key",
        "the name of a dtype",
        "a list of dimensions",
        "a whole number from 0 to 2^63 - 1",
        "a list [begin, end]",
        "a whole number of bytes",
        "the end"};
    std::string what = "wrong value";
    if (place_ == Place::dtype) what = "wrong dtype";
    if (place_ == Place::shape || place_ == Place::dimension) what = "wrong shape";
    if (place_ == Place::offsets || place_ == Place::offset) what = "wrong data_offsets";
    Error error(ErrorKind::model, what);
    if (place_ == Place::metadata || place_ == Place::metadata_value)
      error.at("'__metadata__'");
    else if (place_ >= Place::tensor && place_ < Place::end)
      error.at(tensor_place());
    throw error.expected(kExpected[static_cast<std::size_t>(place_)])
        .found(found)
        .hint(kDownloadAgain);
  }

  [[noreturn]] static void fail(std::string what) {
    throw Error(ErrorKind::model, std::move(what)).hint(kDownloadAgain);
  }

  std::string tensor_place() const { return "tensor " + quote(tensors_.back().name); }

  bool begin_field(bool& seen, const std::string& name, Place place) {
    if (seen)
      throw Error(ErrorKind::model, name + " occurs twice").at(tensor_place()).hint(kDownloadAgain);
    seen = true;
    place_ = place;
    return true;
  }

  void finish_tensor() {
    TensorInfo& info = tensors_.back();
    const char* missing = !has_dtype_     ? "dtype"
                          : !has_shape_   ? "shape"
                          : !has_offsets_ ? "data_offsets"
                                          : nullptr;
    if (missing)
      throw Error(ErrorKind::model, std::string(missing) + " is missing")
          .at(tensor_place())
          .hint(kDownloadAgain);
    const auto [begin, end] = std::pair{offsets_[0], offsets_[1]};
    if (end < begin)
      throw Error(ErrorKind::model, "the data range ends before it begins")
          .at(tensor_place())
          .expected("[begin, end] with begin <= end")
          .found("[" + std::to_string(begin) + ", " + std::to_string(end) + "]")
          .hint(kDownloadAgain);
    try {
      info.bytes = tensor_bytes(info.dtype, info.shape);
    } catch (Error& error) {
      error.at(tensor_place());
      throw error.hint(kDownloadAgain);
    }
    if (info.bytes != end - begin)
      throw Error(ErrorKind::model, "the data range does not fit the shape")
          .at(tensor_place())
          .expected(std::to_string(info.bytes) + " bytes for " + std::string(name_of(info.dtype)) +
                    " " + shape_text(info.shape))
          .found(std::to_string(end - begin))
          .hint(kDownloadAgain);
    info.offset = begin;
  }

  std::size_t max_tensors_;
  Place place_ = Place::start;
  std::vector<TensorInfo> tensors_;
  std::vector<std::uint64_t> offsets_;
  std::unordered_set<std::string> metadata_keys_;
  bool has_metadata_ = false, has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
};

void check_names(const std::vector<TensorInfo>& tensors) {
  std::unordered_set<std::string_view> names(tensors.size());
  for (const auto& info : tensors)
    if (!names.insert(info.name).second)
      throw Error(ErrorKind::model, "the tensor occurs twice in the header")
          .at("tensor " + quote(info.name))
          .hint(kDownloadAgain);
}

/// The ranges, ordered by begin, must cover `data_bytes` exactly.
void check_ranges(const std::vector<TensorInfo>& tensors, std::uint64_t data_bytes) {
  std::uint64_t end = 0;
  for (const auto& info : tensors) end = std::max(end, info.offset + info.bytes);
  if (end > data_bytes)
    throw Error(ErrorKind::model, "the file is cut short")
        .expected(std::to_string(end) + " bytes of data")
        .found(std::to_string(data_bytes))
        .hint(kDownloadAgain);
  end = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& info = tensors[i];
    if (info.offset < end)
      throw Error(ErrorKind::model,
                  "the data overlaps that of tensor " + quote(tensors[i - 1].name))
          .at("tensor " + quote(info.name))
          .expected("a range from " + std::to_string(end))
          .found(std::to_string(info.offset))
          .hint(kDownloadAgain);
    if (info.offset > end)
      throw Error(ErrorKind::model, "there is a hole before the data")
          .at("tensor " + quote(info.name))
          .expected("a range from " + std::to_string(end))
          .found(std::to_string(info.offset))
          .hint(kDownloadAgain);
    end = info.offset + info.bytes;
  }
  if (end < data_bytes)
    throw Error(ErrorKind::model, "there are bytes after the last tensor")
        .expected(std::to_string(end) + " bytes of data")
        .found(std::to_string(data_bytes))
        .hint(kDownloadAgain);
}

}  // namespace

std::uint64_t safetensors_header_length(std::string_view start, std::uint64_t file_size) {
  if (file_size < kLengthBytes || start.size() < kLengthBytes)
    throw Error(ErrorKind::model, "the file is too short for a safetensors file")
        .expected("at least 8 bytes")
        .found(std::to_string(file_size))
        .hint(kDownloadAgain);
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length |= std::uint64_t{static_cast<std::uint8_t>(start[i])} << (8 * i);
  if (length > std::min(kMaxHeaderBytes, file_size - kLengthBytes)) refuse_other_kinds(start);
  if (length > file_size - kLengthBytes)
    throw Error(ErrorKind::model, "the header is longer than the file")
        .expected("at most " + std::to_string(file_size - kLengthBytes) + " bytes")
        .found(std::to_string(length))
        .hint(kDownloadAgain);
  if (length > kMaxHeaderBytes)
    throw Error(ErrorKind::model, "the header is too long")
        .expected("at most " + std::to_string(kMaxHeaderBytes) + " bytes")
        .found(std::to_string(length))
        .hint(kDownloadAgain);
  return length;
}

std::vector<TensorInfo> parse_safetensors_header(std::string_view header, std::uint64_t file_size,
                                                 std::size_t max_tensors) {
  if (!header.starts_with('{'))
    throw Error(ErrorKind::model, "the header does not start as JSON")
        .expected("'{'")
        .found(header.empty() ? "nothing" : quote(header.substr(0, 1)))
        .hint(kDownloadAgain);
  if (file_size < kLengthBytes || header.size() > file_size - kLengthBytes)
    throw Error(ErrorKind::model, "the header is longer than the file").hint(kDownloadAgain);
  // The JSON library takes a zero byte for the end of the text.
  if (const auto zero = header.find('\0'); zero != std::string_view::npos) {
    if (header.find_first_not_of('\0', zero) == std::string_view::npos)
      throw Error(ErrorKind::model, "the header is padded with 0x00")
          .expected("spaces")
          .hint("repair the file with `graft convert --repair`");
    throw Error(ErrorKind::model, "the header has a zero byte")
        .at("byte " + std::to_string(zero))
        .hint(kDownloadAgain);
  }
  HeaderReader reader(max_tensors);
  nlohmann::json::sax_parse(header, &reader);
  auto tensors = reader.take();
  check_names(tensors);
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  const std::uint64_t data_begin = kLengthBytes + header.size();
  check_ranges(tensors, file_size - data_begin);
  for (auto& info : tensors) info.offset += data_begin;
  return tensors;
}

std::uint64_t tensor_bytes(Dtype dtype, const std::vector<std::int64_t>& shape) {
  std::uint64_t bytes = size_of(dtype);
  bool too_large = false, empty = false;
  for (const std::int64_t dimension : shape) {
    if (dimension < 0)
      throw Error(ErrorKind::model, "the shape has a negative dimension").found(shape_text(shape));
    empty = empty || dimension == 0;
    // A zero may not hide factors that overflow: LibTorch computes strides from them.
    const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(dimension, 1));
    too_large = too_large || __builtin_mul_overflow(bytes, factor, &bytes);
  }
  if (too_large || bytes > std::uint64_t(std::numeric_limits<std::int64_t>::max()))
    throw Error(ErrorKind::model, "the tensor is too large")
        .expected("less than 2^63 bytes")
        .found(std::string(name_of(dtype)) + " " + shape_text(shape));
  return empty ? 0 : bytes;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

}  // namespace graft
