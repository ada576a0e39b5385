#pragma once

#include <functional>
#include <memory>
#include <string>

#include "graft/checkpoint.h"
#include "graft/context.h"
#include "graft/model_quantizer.h"
#include "graft/plan.h"

namespace graft {

// The steps that change a model; nothing else does.

/// Swaps every entry that is to be quantized for its replacement, built on meta. All or nothing:
/// when anything throws, what was swapped is put back, and the Error names the module.
void convert_on_meta(const std::shared_ptr<nn::Block>& root, const Plan& plan,
                     const Observer& observer);

/// Where filled modules go.
enum class FillTo {
  cpu,
  planned,  ///< each to its device of the plan, before the next one is read
};

/// Fills the model from the checkpoint, one module at a time: kept tensors in the plan's dtype,
/// converted modules through their quantizer. When the checkpoint is dense, planned modules are
/// read, quantized and swapped as they come, so that no second copy of the model exists.
void fill_from(const std::shared_ptr<nn::Block>& root, const Plan& plan,
               const Checkpoint& checkpoint, const Context& context, const Observer& observer,
               FillTo to);

/// Fills only what the plan keeps.
void fill_kept(const std::shared_ptr<nn::Block>& root, const Plan& plan,
               const Checkpoint& checkpoint, const Context& context);

/// Fills the model from a dense checkpoint, and with it what is to be quantized, which stays dense.
void fill_dense(const std::shared_ptr<nn::Block>& root, const Plan& plan,
                const Checkpoint& checkpoint, const Context& context);

/// Converts a model whose dense weights are in memory, freeing each as it goes. When anything
/// throws, converted modules stay converted and the rest dense, and the Error names where it
/// stopped.
void quantize_in_place(const std::shared_ptr<nn::Block>& root, const Plan& plan,
                       const Context& context, const Observer& observer);

/// Moves the modules of a filled model on the CPU to their devices of the plan.
void move_to_devices(const std::shared_ptr<nn::Block>& root, const Plan& plan);

/// Makes a model run whose parts are on several devices of the plan; else changes nothing.
void dispatch_model(const std::shared_ptr<nn::Block>& root, const Plan& plan);

/// Makes tied tensors one again.
void tie(const std::shared_ptr<nn::Block>& root);

/// The first tensor that is still on meta, "model.norm.weight"; empty when there is none.
std::string tensor_on_meta(const std::shared_ptr<nn::Block>& root);

/// Throws Error(internal) naming the tensor when a tensor is still on meta.
void verify_filled(const std::shared_ptr<nn::Block>& root);

/// What was needed to read and repack goes back to the system, in place of piling up between what
/// stays: the C library does not do it by itself. Takes about a millisecond.
void return_freed_memory();

}  // namespace graft
