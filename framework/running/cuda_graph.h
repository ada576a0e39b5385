#pragma once

#include <c10/core/Device.h>

#include <memory>

#include "running/recorder.h"

namespace graft {

/// Records CUDA graphs on `device`; nullptr where graft was built with a LibTorch without CUDA.
std::unique_ptr<Recorder> cuda_graph(c10::Device device);

}  // namespace graft
