#include "quant_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "graft/error.h"
#include "graft/pool.h"
#include "graft/value.h"
#include "kernels/four_bit.h"
#include "kernels/panel_tensors.h"

namespace graft::bnb {
namespace {

/// Blocks that a thread quantizes at a time.
constexpr std::int64_t kBlocksAtOnce = 4096;

constexpr std::string_view kDownloadAgain = "download the file again";
constexpr const char* kTypeWords[] = {"nf4", "fp4"};

std::int64_t blocks_of(std::int64_t elements, std::int64_t blocksize) {
  return (elements + blocksize - 1) / blocksize;
}

/// The tensor as `count` elements of `type`.
at::Tensor checked(const Tensors& tensors, const std::string& name, at::ScalarType type,
                   std::int64_t count) {
  const at::Tensor& tensor = tensors.at(name);
  if (tensor.scalar_type() != type || tensor.numel() != count)
    throw Error(ErrorKind::model, "a tensor of a 4-bit weight cannot be used")
        .at("tensor " + quote(name))
        .expected(std::to_string(count) + " elements of " + std::string(dtype_word(type)))
        .found(std::to_string(tensor.numel()) + " of " +
               std::string(dtype_word(tensor.scalar_type())))
        .hint(kDownloadAgain);
  return tensor.reshape({-1}).contiguous();
}

Value read_blob(const Tensors& tensors, const std::string& name) {
  const at::Tensor& blob = tensors.at(name);
  if (blob.scalar_type() != at::kByte)
    throw Error(ErrorKind::model, "the quant_state is no text")
        .at("tensor " + quote(name))
        .expected("uint8")
        .found(std::string(dtype_word(blob.scalar_type())));
  const auto bytes = blob.contiguous();
  try {
    Value value = parse_json({reinterpret_cast<const char*>(bytes.const_data_ptr<std::uint8_t>()),
                              static_cast<std::size_t>(bytes.numel())});
    value.as_object();
    return value;
  } catch (Error& error) {
    error.at("tensor " + quote(name));
    throw;
  }
}

at::Tensor as_tensor(const std::string& text) {
  auto tensor = at::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
  std::copy(text.begin(), text.end(), tensor.mutable_data_ptr<std::uint8_t>());
  return tensor;
}

template <std::size_t n>
at::Tensor as_tensor(const std::array<float, n>& values) {
  auto tensor = at::empty({static_cast<std::int64_t>(n)}, at::kFloat);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<float>());
  return tensor;
}

/// bitsandbytes 0.50.2 on a CPU, saving after a forward pass.
void refuse_run_time_layout(const at::Tensor& absmax) {
  if (absmax.scalar_type() == at::kFloat || absmax.scalar_type() == at::kByte) return;
  std::string shape;
  for (const auto size : absmax.sizes())
    shape += (shape.empty() ? "[" : ", ") + std::to_string(size);
  throw Error(ErrorKind::model,
              "the absmax is in the layout that bitsandbytes uses while it runs on a CPU; the packed "
              "bytes are permuted too, and how is not in the file")
      .at("tensor 'weight.absmax'")
      .expected("float32, or uint8 when it is quantized")
      .found(std::string(dtype_word(absmax.scalar_type())) + " " + shape + "]")
      .hint("make the file again and save it before the model runs (bitsandbytes 0.50.2 writes this "
            "after a forward pass on a CPU)");
}

void refuse_other_table(const at::Tensor& table, QuantType type) {
  const QuantType other = type == QuantType::nf4 ? QuantType::fp4 : QuantType::nf4;
  if (!table.equal(as_tensor(code_table(other)))) return;
  throw Error(ErrorKind::model, "the code table is that of the other 4-bit type")
      .at("tensor 'weight.quant_map'")
      .expected(std::string("the table of ") + kTypeWords[type == QuantType::fp4])
      .found(std::string("that of ") + kTypeWords[other == QuantType::fp4])
      .hint(kDownloadAgain);
}

Error wrong(const std::string& blob, const std::string& field, const std::string& expected,
            const std::string& found) {
  Error error(ErrorKind::model, "the quant_state cannot be used");
  error.at("field " + quote(field)).at("tensor " + quote(blob)).expected(expected).found(found);
  error.hint(kDownloadAgain);
  return error;
}

}  // namespace

std::string blob_name(QuantType type) {
  return std::string("weight.quant_state.bitsandbytes__") + kTypeWords[type == QuantType::fp4];
}

QuantState read_quant_state(const Tensors& tensors, std::int64_t rows, std::int64_t columns) {
  QuantState state;
  const bool nf4 = tensors.find(blob_name(QuantType::nf4));
  if (nf4 == (tensors.find(blob_name(QuantType::fp4)) != nullptr))
    throw Error(ErrorKind::model,
                nf4 ? "the weight has two quant_states" : "the weight has no quant_state")
        .expected("one of " + quote(blob_name(QuantType::nf4)) + " and " +
                  quote(blob_name(QuantType::fp4)))
        .hint(
            "the folder is incomplete or was written by a program that does not know bitsandbytes; "
            "download it again");
  state.type = nf4 ? QuantType::nf4 : QuantType::fp4;
  const std::string blob = blob_name(state.type);
  const Value json = read_blob(tensors, blob);
  const std::string type = json.get_string("quant_type", kTypeWords[!nf4]);
  if (type != kTypeWords[!nf4]) throw wrong(blob, "quant_type", kTypeWords[!nf4], quote(type));
  state.blocksize = json.get_int("blocksize", kBlock);
  if (state.blocksize < 32 || state.blocksize > 4096 || (state.blocksize & (state.blocksize - 1)))
    throw wrong(blob, "blocksize", "a power of two from 32 to 4096",
                std::to_string(state.blocksize));
  std::string dtype = json.get_string("dtype", "float16");
  if (dtype.starts_with("torch.")) dtype.erase(0, 6);
  const auto known = dtype_from_word(dtype);
  if (!known || (*known != at::kFloat && *known != at::kHalf && *known != at::kBFloat16))
    throw wrong(blob, "dtype", "float32, float16 or bfloat16", quote(dtype));
  state.dtype = *known;
  const Value shape(Value::Array{rows, columns});
  if (const Value* found = json.find("shape"); found && !(*found == shape))
    throw wrong(blob, "shape", to_json(shape), to_json(*found));

  state.table = tensors.find("weight.quant_map")
                    ? checked(tensors, "weight.quant_map", at::kFloat, 16)
                    : as_tensor(code_table(state.type));
  refuse_other_table(state.table, state.type);
  const std::int64_t blocks = blocks_of(rows * columns, state.blocksize);
  refuse_run_time_layout(tensors.at("weight.absmax"));
  const bool nested = tensors.at("weight.absmax").scalar_type() == at::kByte;
  if (!nested) {
    state.absmax = checked(tensors, "weight.absmax", at::kFloat, blocks);
    return state;
  }
  const std::int64_t nested_blocksize = json.get_int("nested_blocksize", kNestedBlock);
  if (nested_blocksize < 1)
    throw wrong(blob, "nested_blocksize", "at least 1", std::to_string(nested_blocksize));
  if (!json.find("nested_offset"))
    throw wrong(blob, "nested_offset", "a number, because absmax is quantized", "nothing");
  const auto offset = static_cast<float>(json.get_double("nested_offset", 0));
  if (!std::isfinite(offset))
    throw wrong(blob, "nested_offset", "a finite number", to_json(json.at("nested_offset")));
  const auto codes = checked(tensors, "weight.absmax", at::kByte, blocks);
  const auto map = checked(tensors, "weight.nested_quant_map", at::kFloat, 256);
  const auto nested_absmax =
      checked(tensors, "weight.nested_absmax", at::kFloat, blocks_of(blocks, nested_blocksize));
  state.absmax = at::empty({blocks}, at::kFloat);
  dequantize_nested(codes.const_data_ptr<std::uint8_t>(), blocks, map.const_data_ptr<float>(),
                    nested_absmax.const_data_ptr<float>(), nested_blocksize, offset,
                    state.absmax.mutable_data_ptr<float>());
  return state;
}

at::Tensor stored_as(const at::Tensor& packed, at::ScalarType storage) {
  const auto bytes = packed.contiguous().view({-1}).view(at::kByte);
  const auto width = static_cast<std::int64_t>(c10::elementSize(storage));
  if (bytes.numel() % width != 0)
    throw Error(ErrorKind::usage,
                "the packed weight does not fill whole elements of bnb_4bit_quant_storage")
        .expected("a multiple of " + std::to_string(width) + " bytes")
        .found(std::to_string(bytes.numel()))
        .hint("use uint8");
  return bytes.view(storage).view({-1, 1});
}

Blocks empty_blocks(std::int64_t count, std::int64_t blocksize, const c10::Device& device) {
  const auto options = at::TensorOptions(device);
  return {at::empty({count / 2 + count % 2, 1}, options.dtype(at::kByte)),
          at::empty({blocks_of(count, blocksize)}, options.dtype(at::kFloat))};
}

Blocks quantize_blocks(const at::Tensor& x, QuantType type, std::int64_t blocksize) {
  const auto values = x.contiguous();
  const std::int64_t count = values.numel(), blocks = blocks_of(count, blocksize);
  Blocks out = empty_blocks(count, blocksize, at::kCPU);
  const std::int64_t chunks = blocks_of(blocks, kBlocksAtOnce);
  const void* from = values.const_data_ptr();
  const auto element = kernels::element_type(values.scalar_type());
  auto* bytes = out.packed.mutable_data_ptr<std::uint8_t>();
  auto* scales = out.absmax.mutable_data_ptr<float>();
  std::atomic<bool> finite{true};
  for_each_chunk(pool(), chunks, [&](std::int64_t chunk) {
    const std::int64_t first = chunk * kBlocksAtOnce,
                       last = std::min(first + kBlocksAtOnce, blocks);
    if (!quantize_elements(from, element, count, blocksize, type, first, last, bytes, scales))
      finite.store(false, std::memory_order_relaxed);
  });
  if (!finite.load())
    throw Error(ErrorKind::model, "the weight holds NaN or infinity, so it has no absmax")
        .hint("look for the broken tensor with `graft verify`");
  return out;
}

at::Tensor dequantized_blocks(const at::Tensor& bytes, const at::Tensor& table,
                              const at::Tensor& absmax, std::int64_t blocksize,
                              std::int64_t count) {
  auto out = at::empty({count}, at::kFloat);
  dequantize_blocks()(bytes.const_data_ptr<std::uint8_t>(), table.const_data_ptr<float>(),
                      absmax.const_data_ptr<float>(), blocksize, 0, count,
                      out.mutable_data_ptr<float>());
  return out;
}

QuantizedWeight quantize_weight(const at::Tensor& weight, QuantType type, bool double_quant,
                                at::ScalarType storage) {
  const auto [packed, absmax] = quantize_blocks(weight, type, kBlock);
  return with_quant_state(packed, absmax, weight, type,
                          double_quant ? std::optional(nest_absmax(absmax)) : std::nullopt,
                          storage);
}

NestedAbsmax nest_absmax(const at::Tensor& absmax) {
  const std::int64_t blocks = absmax.numel();
  NestedAbsmax out;
  const auto offset = at::mean(absmax);
  const auto centred = absmax - offset;
  out.offset = offset.item<float>();
  out.codes = at::empty({blocks}, at::kByte);
  out.nested = at::empty({blocks_of(blocks, kNestedBlock)}, at::kFloat);
  quantize_nested(centred.const_data_ptr<float>(), blocks,
                  out.codes.mutable_data_ptr<std::uint8_t>(), out.nested.mutable_data_ptr<float>());
  out.absmax = at::empty({blocks}, at::kFloat);
  dequantize_nested(out.codes.const_data_ptr<std::uint8_t>(), blocks, dynamic_map().data(),
                    out.nested.const_data_ptr<float>(), kNestedBlock, out.offset,
                    out.absmax.mutable_data_ptr<float>());
  return out;
}

QuantizedWeight with_quant_state(const at::Tensor& packed, const at::Tensor& absmax,
                                 const at::Tensor& weight, QuantType type,
                                 const std::optional<NestedAbsmax>& nested,
                                 at::ScalarType storage) {
  QuantizedWeight out;
  out.state = {type, kBlock, weight.scalar_type(), as_tensor(code_table(type)),
               nested ? nested->absmax : absmax};
  Value json;
  json.set("quant_type", kTypeWords[type == QuantType::fp4]);
  json.set("blocksize", kBlock);
  json.set("dtype", std::string(dtype_word(weight.scalar_type())));
  json.set("shape", Value::Array{weight.size(0), weight.size(1)});
  out.stored.set("weight", stored_as(packed, storage));
  if (!nested) {
    out.stored.set("weight.absmax", absmax);
  } else {
    json.set("nested_blocksize", kNestedBlock);
    json.set("nested_dtype", "float32");
    json.set("nested_offset", static_cast<double>(nested->offset));
    out.stored.set("weight.absmax", nested->codes);
    out.stored.set("weight.nested_absmax", nested->nested);
    out.stored.set("weight.nested_quant_map", as_tensor(dynamic_map()));
  }
  out.stored.set("weight.quant_map", out.state.table);
  out.stored.set(blob_name(type), as_tensor(to_json(json)));
  return out;
}

}  // namespace graft::bnb
