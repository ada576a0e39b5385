#include "layouts.h"

#include <ATen/ATen.h>

#include "graft/error.h"
#include "kernels/format.h"

namespace graft::awq {
namespace {

using Version = AwqConfig::Version;

constexpr std::int64_t kMiddle = 8;  ///< the zero point of symmetric codes

const std::uint32_t* words(const at::Tensor& tensor) {
  return reinterpret_cast<const std::uint32_t*>(tensor.const_data_ptr<std::int32_t>());
}
std::uint32_t* words_of(at::Tensor& tensor) {
  return reinterpret_cast<std::uint32_t*>(tensor.mutable_data_ptr<std::int32_t>());
}

at::Tensor new_codes(std::int64_t rows, std::int64_t columns) {
  return at::empty({rows, columns}, at::kByte);
}

/// Rows of codes from words in the GEMM layout, and back.
at::Tensor unpack_rows(const at::Tensor& packed) {
  auto codes = new_codes(packed.size(0), packed.size(1) * 8);
  unpack_gemm(words(packed), codes.numel(), codes.mutable_data_ptr<std::uint8_t>());
  return codes;
}
at::Tensor pack_rows(const at::Tensor& codes) {
  auto packed = at::empty({codes.size(0), codes.size(1) / 8}, at::kInt);
  const auto flat = codes.contiguous();
  pack_gemm(flat.const_data_ptr<std::uint8_t>(), flat.numel(), words_of(packed));
  return packed;
}

/// The zero points that GEMVFast's offsets stand for; undefined when they stand for none.
at::Tensor zeros_of_offsets(const at::Tensor& offsets, const at::Tensor& scales) {
  const auto wide_scales = scales.to(at::kFloat), wide = offsets.to(at::kFloat);
  const auto zeros = at::where(wide_scales.ne(0), (-wide / wide_scales).round(), 0.0);
  if (zeros.lt(0).any().item<bool>() || zeros.gt(15).any().item<bool>()) return {};
  const auto again = (-(zeros * wide_scales)).to(offsets.scalar_type());
  return again.eq(offsets).all().item<bool>() ? zeros.to(at::kByte) : at::Tensor();
}

Error refusal(const std::string& what) {
  Error error(ErrorKind::usage, "the module does not fit the other layout: " + what);
  error.hint("keep the layout it has");
  return error;
}

}  // namespace

std::string misfit(Version version, std::int64_t inputs, std::int64_t outputs,
                   std::int64_t group_size) {
  const auto not_multiple = [](const char* what, std::int64_t size, std::int64_t of) {
    return std::to_string(size) + " " + what + " are no multiple of " + std::to_string(of);
  };
  if (outputs % 8) return not_multiple("outputs", outputs, 8);
  if (version == Version::gemm) return "";
  const std::int64_t block = version == Version::gemv ? 8 : 64;
  if (inputs % block) return not_multiple("inputs", inputs, block);
  if (gemv_zero_words(1, group_size) == 0)
    return std::string(word(version)) + " has groups of 32, 64, or 128 and more, not of " +
           std::to_string(group_size);
  return "";
}

std::vector<TensorSpec> layout_tensors(const ModuleSpec& spec, const AwqConfig& config) {
  const std::int64_t k = spec.in_features, n = spec.out_features, groups = config.groups(k);
  const std::int64_t width = gemv_zero_words(groups, config.group_of(k));
  const std::vector<at::ScalarType> floats{at::kHalf, at::kBFloat16, at::kFloat};
  const auto make = &TensorSpec::of;
  std::vector<TensorSpec> out;
  switch (config.read_as) {
    case Version::gemm:
      out = {make("qweight", {at::kInt}, {k, n / 8}), make("qzeros", {at::kInt}, {groups, n / 8}),
             make("scales", floats, {groups, n})};
      break;
    case Version::gemv:
      out = {make("qweight", {at::kInt}, {n, k / 8}), make("qzeros", {at::kInt}, {n, width}),
             make("scales", floats, {n, width * 8})};
      break;
    case Version::gemv_fast:
      out = {make("qweight", {at::kShort}, {n / 4, k}), make("qzeros", floats, {width * 8, n}),
             make("scales", floats, {width * 8, n})};
      out[1].finite = true;
      break;
  }
  out[1].required = config.zero_point || config.read_as == Version::gemv_fast;
  out[1].examined = out[2].examined = out[2].finite = true;
  return out;
}

at::Tensor read_zeros(const Tensors& tensors, std::int64_t inputs, std::int64_t outputs,
                      const AwqConfig& config) {
  const std::int64_t groups = config.groups(inputs);
  if (!tensors.find("qzeros") && !config.zero_point)
    return at::full({groups, outputs}, kMiddle, at::kByte);
  const auto qzeros = tensors.at("qzeros").contiguous();
  switch (config.read_as) {
    case Version::gemm:
      return unpack_rows(qzeros);
    case Version::gemv: {
      auto codes = new_codes(qzeros.size(1) * 8, outputs);
      unpack_gemv(words(qzeros), codes.size(0), outputs, codes.mutable_data_ptr<std::uint8_t>());
      return codes.narrow(0, 0, groups);
    }
    case Version::gemv_fast:
      return zeros_of_offsets(qzeros.narrow(0, 0, groups),
                              tensors.at("scales").narrow(0, 0, groups));
  }
  return {};
}

Packed unpack(const Tensors& tensors, std::int64_t inputs, std::int64_t outputs,
              const AwqConfig& config) {
  const std::int64_t groups = config.groups(inputs);
  const auto qweight = tensors.at("qweight").contiguous();
  const auto scales = tensors.at("scales");
  Packed out;
  out.zeros = read_zeros(tensors, inputs, outputs, config);
  if (!config.zero_point && config.trust == Trust::label)
    out.zeros = at::full({groups, outputs}, kMiddle, at::kByte);
  auto codes = new_codes(inputs, outputs);
  auto* to = codes.mutable_data_ptr<std::uint8_t>();
  switch (config.read_as) {
    case Version::gemm:
      out.qweight = qweight;
      out.scales = scales.contiguous();
      return out;
    case Version::gemv:
      unpack_gemv(words(qweight), inputs, outputs, to);
      out.scales = scales.narrow(1, 0, groups).t().contiguous();
      break;
    case Version::gemv_fast:
      unpack_gemv_fast(
          reinterpret_cast<const std::uint16_t*>(qweight.const_data_ptr<std::int16_t>()), inputs,
          outputs, to);
      out.scales = scales.narrow(0, 0, groups).contiguous();
      if (!out.zeros.defined()) {
        out.offsets = tensors.at("qzeros").narrow(0, 0, groups).contiguous();
        out.zeros = at::zeros({groups, outputs}, at::kByte);
      }
      break;
  }
  out.qweight = pack_rows(codes);
  return out;
}

at::Tensor pack_codes(const at::Tensor& qweight, std::int64_t outputs, Version version) {
  if (version == Version::gemm) return qweight;
  const std::int64_t inputs = qweight.size(0);
  const auto codes = unpack_rows(qweight);
  const auto* from = codes.const_data_ptr<std::uint8_t>();
  if (version == Version::gemv) {
    auto packed = at::empty({outputs, inputs / 8}, at::kInt);
    pack_gemv(from, inputs, outputs, words_of(packed));
    return packed;
  }
  auto packed = at::empty({outputs / 4, inputs}, at::kShort);
  pack_gemv_fast(from, inputs, outputs,
                 reinterpret_cast<std::uint16_t*>(packed.mutable_data_ptr<std::int16_t>()));
  return packed;
}

Tensors pack_groups(const Packed& packed, std::int64_t outputs, std::int64_t group_size,
                    Version version) {
  if (packed.offsets.defined() && version != Version::gemv_fast)
    throw refusal("its offsets are no multiples of the scales, so they are no zero points");
  const std::int64_t groups = packed.scales.size(0);
  if (version == Version::gemm)
    return {{"qzeros", pack_rows(packed.zeros)}, {"scales", packed.scales}};
  const std::int64_t rows = gemv_zero_words(groups, group_size) * 8;
  auto scales = at::zeros({rows, outputs}, packed.scales.options());
  scales.narrow(0, 0, groups).copy_(packed.scales);
  if (version == Version::gemv) {
    auto zeros = at::zeros({rows, outputs}, at::kByte);
    zeros.narrow(0, 0, groups).copy_(packed.zeros);
    auto qzeros = at::empty({outputs, rows / 8}, at::kInt);
    pack_gemv(zeros.const_data_ptr<std::uint8_t>(), rows, outputs, words_of(qzeros));
    return {{"qzeros", qzeros}, {"scales", scales.t().contiguous()}};
  }
  const auto exact = -(packed.zeros.to(at::kFloat) * packed.scales.to(at::kFloat));
  auto offsets = at::zeros({rows, outputs}, packed.scales.options());
  offsets.narrow(0, 0, groups)
      .copy_(packed.offsets.defined() ? packed.offsets : exact.to(packed.scales.scalar_type()));
  if (!zeros_of_offsets(offsets.narrow(0, 0, groups), packed.scales).defined() &&
      !packed.offsets.defined())
    throw refusal("-(scale * zero) is too large or too small for the dtype of the scales");
  return {{"qzeros", offsets}, {"scales", scales}};
}

Tensors pack(const Packed& packed, std::int64_t outputs, std::int64_t group_size, Version version) {
  if (const auto why = misfit(version, packed.qweight.size(0), outputs, group_size); !why.empty())
    throw refusal(why);
  Tensors out{{"qweight", pack_codes(packed.qweight, outputs, version)}};
  for (const auto& [name, tensor] : pack_groups(packed, outputs, group_size, version))
    out.set(name, tensor);
  return out;
}

}  // namespace graft::awq
