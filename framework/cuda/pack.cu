#include "cuda/launch.cuh"
#include "cuda/pack.h"

namespace graft::cuda {
namespace {

constexpr int kThreads = 256;

/// One 32-bit word of fragments a thread: eight codes of two outputs.
__global__ void pack_kernel(FragmentShape shape, const std::uint32_t* words, std::uint32_t* codes) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= shape.code_bytes / 4) return;
  const int step = static_cast<int>(at % 4), lane = static_cast<int>(at / 4 % 32);
  const std::int64_t tile = at / 128;
  const std::int64_t inputs = tile / 4 % shape.steps * kTileInputs + step * 16;
  const std::int64_t outputs = tile / 4 / shape.steps * kBandOutputs + tile % 4 * kTileOutputs;
  std::uint32_t out = 0;
  for (int reg = 0; reg < 4; ++reg)
    for (int odd = 0; odd < 2; ++odd) {
      const std::int64_t n = outputs + lane / 4 * 2 + reg % 2;
      const std::int64_t k = inputs + lane % 4 * 2 + reg / 2 * 8 + odd;
      if (n >= shape.n || k >= shape.k) continue;
      const std::uint32_t code = words[k / 8 * shape.n + n] >> (k % 8 * 4) & 15;
      out |= code << code_place(shape, n, k).shift;
    }
  codes[at] = out;
}

/// One word of the checkpoint's kind a thread.
__global__ void unpack_kernel(FragmentShape shape, const std::uint32_t* codes,
                              std::uint32_t* words) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= shape.k / 8 * shape.n) return;
  std::uint32_t out = 0;
  for (int i = 0; i < 8; ++i) {
    const CodePlace place = code_place(shape, at % shape.n, at / shape.n * 8 + i);
    out |= (codes[place.word] >> place.shift & 15) << (4 * i);
  }
  words[at] = out;
}

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

}  // namespace

cudaError_t pack_codes(const FragmentShape& shape, const std::uint32_t* words, void* codes,
                       cudaStream_t stream) {
  return launch_kernel(pack_kernel, blocks_for(shape.code_bytes / 4), kThreads, stream, shape,
                       words, static_cast<std::uint32_t*>(codes));
}

cudaError_t unpack_codes(const FragmentShape& shape, const void* codes, std::uint32_t* words,
                         cudaStream_t stream) {
  return launch_kernel(unpack_kernel, blocks_for(shape.k / 8 * shape.n), kThreads, stream, shape,
                       static_cast<const std::uint32_t*>(codes), words);
}

}  // namespace graft::cuda
