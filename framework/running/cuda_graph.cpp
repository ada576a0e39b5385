#include "running/cuda_graph.h"

#ifdef GRAFT_CUDA_GRAPHS

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>

namespace graft {
namespace {

/// The first line of what `call` throws; empty: it does not.
std::string failure_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
  }
  return {};
}

class CudaGraph : public Recorder {
 public:
  explicit CudaGraph(c10::DeviceIndex device)
      : device_(device), stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)) {}

  std::string record(const std::function<void()>& work) override {
    graph_.reset();
    c10::cuda::getCurrentCUDAStream(device_).synchronize();  // which wrote what `work` reads
    const c10::cuda::CUDAStreamGuard guard(stream_);
    // Memory that is kept for a stream and what libraries choose at a first call come before.
    work();
    stream_.synchronize();

    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    const auto pool = at::cuda::graph_pool_handle();
    auto failure = failure_of([&] {
      // Other threads may use the device meanwhile.
      graph->capture_begin(pool, cudaStreamCaptureModeThreadLocal);
      work();
    });
    const auto at_end = failure_of([&] { graph->capture_end(); });
    if (failure.empty()) failure = at_end;
    if (failure.empty()) {
      graph_ = std::move(graph);
      return {};
    }
    if (!at_end.empty()) {
      // LibTorch leaves a failed capture half open: its allocator would go on asking the graph.
      static_cast<void>(failure_of([&] {
        c10::cuda::CUDACachingAllocator::endAllocateToPool(device_, pool);
        c10::cuda::CUDACachingAllocator::releasePool(device_, pool);
      }));
      static_cast<void>(graph.release());
    }
    return failure;
  }

  void replay() override { graph_->replay(); }

 private:
  c10::DeviceIndex device_;
  c10::cuda::CUDAStream stream_;
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
};

}  // namespace

std::unique_ptr<Recorder> cuda_graph(c10::Device device) {
  return std::make_unique<CudaGraph>(device.index());
}

}  // namespace graft

#else

namespace graft {

std::unique_ptr<Recorder> cuda_graph(c10::Device) { return nullptr; }

}  // namespace graft

#endif
