#include "running/input_ids.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "graft/error.h"

namespace graft {

void require_in_vocabulary(const Model& model, std::span<const std::int64_t> ids) {
  const std::int64_t vocabulary = model.text_config().get_int("vocab_size", 0);
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (const auto id = ids[i]; id < 0 || id >= vocabulary)
      throw Error(ErrorKind::usage, "a token id is not in the model's vocabulary")
          .at("ids[" + std::to_string(i) + "]")
          .expected("0 to " + std::to_string(vocabulary - 1))
          .found(std::to_string(id))
          .hint("the tokenizer may belong to another model");
}

at::Tensor input_ids(const Model& model, std::span<const std::int64_t> ids) {
  require_in_vocabulary(model, ids);
  auto out = at::empty({1, static_cast<std::int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), out.mutable_data_ptr<std::int64_t>());
  return out;
}

}  // namespace graft
