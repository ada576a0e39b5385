#include "distributing/shared_work.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "graft/ranks.h"

namespace graft {
namespace {

thread_local Ranks* sharers = nullptr;

}  // namespace

ShareAmong::ShareAmong(Ranks* ranks) : before_(sharers) { sharers = ranks; }
ShareAmong::~ShareAmong() { sharers = before_; }

SharedWork::SharedWork(std::int64_t items)
    : ranks_(sharers), items_(items), first_(0), last_(items) {
  if (!ranks_) return;
  first_ = items * ranks_->rank() / ranks_->size();
  last_ = items * (ranks_->rank() + 1) / ranks_->size();
}

void SharedWork::complete(const at::Tensor& rows, std::int64_t size) const {
  if (!ranks_) return;
  std::vector<std::int64_t> bounds;
  for (int r = 0; r <= ranks_->size(); ++r)
    bounds.push_back(std::min(rows.size(0), items_ * r / ranks_->size() * size));
  ranks_->gather_rows(rows, bounds);
}

void SharedWork::complete(const std::vector<at::Tensor>& tensors, std::int64_t size) const {
  if (!ranks_) return;
  std::vector<at::Tensor> columns;
  for (const auto& tensor : tensors)
    columns.push_back(tensor.view({tensor.size(0), -1}).view(at::kByte));
  const auto together = at::cat(columns, 1);
  complete(together, size);
  std::int64_t first = 0;
  for (const auto& column : columns) {
    column.copy_(together.narrow(1, first, column.size(1)));
    first += column.size(1);
  }
}

}  // namespace graft
