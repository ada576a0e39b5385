#include "other_device.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>

namespace graft::test {
namespace {

constexpr auto kOther = c10::DeviceType::PrivateUse1;

c10::DeviceIndex current = 0;
std::size_t pinned = 0;

/// Copies that are still to happen, and events between them.
struct Late {
  std::function<void()> copy;
  void* event = nullptr;
};
std::deque<Late> late;

void run_until(const void* event) {
  while (!late.empty()) {
    const Late next = std::move(late.front());
    late.pop_front();
    if (next.copy) next.copy();
    if (event && next.event == event) return;
  }
}
void finish_copies() { run_until(nullptr); }

struct Memory final : c10::Allocator {
  explicit Memory(bool for_host) : is_pinned(for_host) {}
  c10::DataPtr allocate(std::size_t bytes) override {
    pinned += is_pinned;
    void* data = std::malloc(bytes + 1);
    return {data, data, &std::free, is_pinned ? c10::Device(at::kCPU) : c10::Device(kOther, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    finish_copies();
    std::memcpy(to, from, bytes);
  }
  bool is_pinned;
};
Memory device_memory(false), pinned_memory(true);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kOther; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kOther, current}; }
  void setDevice(c10::Device device) const override { current = device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Stream getStream(c10::Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device.has_index() ? device : getDevice());
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return kOtherDevices; }
  void record(void** event, const c10::Stream&, c10::DeviceIndex,
              c10::EventFlag) const override {
    if (!*event) *event = new char;
    for (auto& one : late)  // an event is where it was recorded last
      if (one.event == *event) one.event = nullptr;
    late.push_back({{}, *event});
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return late.empty(); }
  void synchronizeEvent(void* event) const override {
    for (const auto& one : late)
      if (one.event == event) return run_until(event);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    finish_copies();
    delete static_cast<char*>(event);
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kOtherDevices; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
};

/// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                       at::TensorOptions(tensor.scalar_type()));
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(other_device(current)));
  return at::detail::empty_generic(size, &device_memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   dtype.value_or(at::kFloat), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(other_device(current)));
  return at::detail::empty_strided_generic(size, stride, &device_memory,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           dtype.value_or(at::kFloat));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  // As a GPU: only from memory that stays where it is.
  if (non_blocking && from.is_cpu() && to.is_contiguous() && from.is_contiguous() &&
      from.scalar_type() == to.scalar_type()) {
    late.push_back({[source = from.const_data_ptr(), target = to.data_ptr(), bytes = to.nbytes()] {
                      std::memcpy(target, source, bytes);
                    },
                    nullptr});
    return to;
  }
  finish_copies();
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

const at::Tensor& resize_memory(const at::Tensor& self, at::IntArrayRef size,
                         std::optional<at::MemoryFormat>) {
  finish_copies();
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  const auto bytes = static_cast<std::size_t>(self.storage_offset() + self.numel()) *
                     static_cast<std::size_t>(self.element_size());
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (storage->nbytes() >= bytes) return self;
  const c10::DeviceGuard guard(self.device());
  auto memory = device_memory.allocate(bytes);
  if (storage->nbytes() > 0) std::memcpy(memory.get(), storage->data(), storage->nbytes());
  storage->set_data_ptr_noswap(std::move(memory));
  storage->set_nbytes(bytes);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  resize_memory(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  finish_copies();
  return on_cpu(self).item();
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                      std::optional<std::int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage, std::int64_t offset,
                        at::IntArrayRef size, at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  finish_copies();
  std::optional<c10::Device> device;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size()))
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().dim() > 0) {
      const auto found = value.toTensor().device();
      TORCH_CHECK(!device || *device == found, op.schema().name(), ": tensors are on ",
                  device->str(), " and on ", found.str());
      device = found;
    }
  const c10::DeviceGuard guard(device && !device->is_cpu() ? *device : other_device(current));
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize_memory);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("as_strided", &as_strided);
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("set_.source_Storage_storage_offset", &set_storage);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

const bool registered = [] {
  c10::register_privateuse1_backend("other");
  c10::SetAllocator(kOther, &device_memory);
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

}  // namespace

c10::Device other_device(int index) { return {kOther, static_cast<c10::DeviceIndex>(index)}; }
std::size_t pinned_allocations() { return pinned; }

}  // namespace graft::test
