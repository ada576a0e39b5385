#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <string>
#include <utility>
#include <vector>

#include "running/recorder.h"

// Include it in one file of a program: it registers a fallback for all operators.
namespace graft::tests {

/// Records LibTorch's operators on the CPU as a CUDA graph records kernels: a replay calls them
/// with the tensors and the host values that they had, and what they give goes where it went. So a
/// step that reads a number of the host which changes, or a tensor that was replaced, replays
/// wrongly.
class Tape : public Recorder {
 public:
  std::string record(const std::function<void()>& work) override {
    ++records;
    work();
    calls_.clear();
    refused_.clear();
    writing_ = this;
    {
      const c10::impl::IncludeDispatchKeyGuard guard(c10::DispatchKey::TESTING_ONLY_GenericMode);
      work();
    }
    writing_ = nullptr;
    return refused_;
  }

  void replay() override {
    ++replays;
    for (const auto& call : calls_) {
      auto stack = call.inputs;
      call.op.callBoxed(&stack);
      for (std::size_t i = 0; i < stack.size(); ++i) put(call.outputs[i], stack[i]);
    }
  }

  static void note(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::TESTING_ONLY_GenericMode);
    const auto count = op.schema().arguments().size();
    Call call{op, {stack->end() - static_cast<std::ptrdiff_t>(count), stack->end()}, {}};
    op.callBoxed(stack);
    call.outputs.assign(stack->end() - static_cast<std::ptrdiff_t>(op.schema().returns().size()),
                        stack->end());
    for (const char* reads : {"aten::item", "aten::_local_scalar_dense", "aten::nonzero"})
      if (op.schema().name() == reads) writing_->refused_ = std::string(reads) + " in a recording";
    writing_->calls_.push_back(std::move(call));
  }

  int records = 0, replays = 0;

 private:
  struct Call {
    c10::OperatorHandle op;
    torch::jit::Stack inputs, outputs;
  };

  static void put(const c10::IValue& there, const c10::IValue& given) {
    if (given.isTensor()) {
      if (given.toTensor().data_ptr() != there.toTensor().data_ptr())
        there.toTensor().copy_(given.toTensor());
    } else if (given.isTensorList()) {
      for (std::size_t i = 0; i < given.toTensorVector().size(); ++i)
        put(there.toTensorVector()[i], given.toTensorVector()[i]);
    }
  }

  inline static Tape* writing_ = nullptr;
  std::vector<Call> calls_;
  std::string refused_;
};

TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericMode, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&Tape::note>());
}

}  // namespace graft::tests
