#pragma once

#include "graft/plugin_abi.h"

#ifdef __cplusplus
#include <cstdint>
#include <string_view>

#include "graft/export.h"
extern "C" {
#endif

/* What kernels of quantized weights compute with, as the user asked: the host interface
 * "graft.host.activations/1". A kernel without the mode takes its own closest one. */
typedef enum graft_activation_mode {
  GRAFT_ACT_AUTO = 0, /* float32 rows in float32, 16-bit rows in a15 */
  GRAFT_ACT_A15 = 1,  /* 15 bits and a sign: exact sums, the same bits for any batch */
  GRAFT_ACT_A8 = 2,   /* 8 bits: fastest, 4 to 14 times the error of bfloat16 */
  GRAFT_ACT_BF16 = 3, /* bfloat16 rows and weights, sums in float32 */
  GRAFT_ACT_F32 = 4   /* float32 throughout */
} graft_activation_mode;

typedef struct graft_activations {
  uint32_t size; /* sizeof(graft_activations) of the side that filled it */
  /* [any-thread] The mode in force, a graft_activation_mode. */
  int32_t (*mode)(void) GRAFT_NOEXCEPT;
} graft_activations;
#define GRAFT_ACTIVATIONS_INTERFACE "graft.host.activations/1"

#ifdef __cplusplus
} /* extern "C" */

namespace graft {

/// The interface, for those who link libgraft.
GRAFT_API const graft_activations& activations();

/// Sets the mode of this process. Any thread, between calls of models.
GRAFT_API void set_activation_mode(graft_activation_mode mode);

/// The mode of "auto", "a15", "a8", "bf16", "f32". Throws Error(usage) for another word.
GRAFT_API graft_activation_mode parse_activation_mode(std::string_view word);

}  // namespace graft
#endif
