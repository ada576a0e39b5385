#include <cstring>
#include <memory>

#include "checkpoint/gguf_file.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/gguf_rope.h"
#include "checkpoint/gguf_tokenizer.h"
#include "checkpoint/gguf_weights.h"
#include "graft/error.h"
#include "graft/gguf.h"

namespace graft {
namespace {

std::string_view config_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::BF16:
      return "bfloat16";
    case Dtype::F16:
      return "float16";
    case Dtype::F32:
      return "float32";
    default:
      throw Error(ErrorKind::usage, "weights cannot be imported as this dtype")
          .expected("BF16, F16 or F32")
          .found(name_of(dtype));
  }
}

std::shared_ptr<std::byte[]> read_blocks(const GgufFile& file, const GgufTensor& tensor) {
  auto blocks = std::make_shared_for_overwrite<std::byte[]>(tensor.bytes);
  file.read(tensor, blocks.get());
  return blocks;
}

void add_rope_scaling(const GgufFile& file, GgufModel& model) {
  if (!model.rope_factors) return;
  const auto blocks = read_blocks(file, *model.rope_factors);
  std::vector<float> factors(static_cast<std::size_t>(model.rope_factors->shape[0]));
  model.rope_factors->format->dequantize(blocks.get(), factors.size(), factors.data());
  Value scaling = llama3_rope_scaling(factors, model.config.at("rope_theta").as_double());
  if (!scaling.is_null()) model.config.set("rope_scaling", std::move(scaling));
}

}  // namespace

GgufImport import_gguf(const std::filesystem::path& path, const std::filesystem::path& folder,
                       const GgufImportOptions& options) {
  const std::string_view dtype_name = config_dtype(options.dtype);
  const auto file = std::make_shared<GgufFile>(path);
  GgufModel model;
  GgufTokenizer tokenizer;
  try {
    model = describe_gguf_model(file->header());
    tokenizer = describe_gguf_tokenizer(file->header(), options.splitting);
    add_rope_scaling(*file, model);
  } catch (Error& error) {
    throw error.at(path_text(path));
  }
  model.config.set("dtype", dtype_name);

  GgufImport result;
  result.architecture = model.architecture;
  std::vector<TensorToWrite> tensors;
  for (const auto& source : model.tensors) {
    std::uint64_t elements = 1;
    for (const auto size : source.tensor->shape) elements *= static_cast<std::uint64_t>(size);
    ++result.tensors;
    result.parameters += elements;
    result.bytes += elements * size_of(options.dtype);
    auto convert = [&options, &path, file, source, elements]() -> std::shared_ptr<const void> {
      const auto blocks = read_blocks(*file, *source.tensor);
      const auto out =
          std::make_shared_for_overwrite<std::byte[]>(elements * size_of(options.dtype));
      try {
        convert_gguf_weights(source, blocks.get(), options.dtype, out.get(), options.threads);
      } catch (Error& error) {
        throw error.at(path_text(path));
      }
      return {out, out.get()};
    };
    tensors.push_back({source.name, options.dtype, source.tensor->shape, std::move(convert)});
  }

  FolderWriter writer(folder, options.write, {path});
  writer.write_tensors(std::move(tensors));
  writer.write_text("config.json", to_json(model.config, 2) + "\n");
  writer.write_text("generation_config.json", to_json(model.generation_config, 2) + "\n");
  writer.write_text("tokenizer.json", to_json(tokenizer.tokenizer, 2) + "\n");
  writer.write_text("tokenizer_config.json", to_json(tokenizer.tokenizer_config, 2) + "\n");
  writer.commit();
  return result;
}

}  // namespace graft
