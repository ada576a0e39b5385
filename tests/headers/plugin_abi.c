/* plugin_abi.h is C11: this file is compiled as such, pedantically. The sizes and places of what
 * crosses the border are those of version 1.0; a change here without a new version in the header
 * breaks every plugin that is out there. */
#include "graft/activations.h"
#include "graft/graft.h"
#include "graft/plugin_abi.h"
#include "graft/pool.h"

#include <stddef.h>

_Static_assert(GRAFT_ABI_MAJOR == 1 && GRAFT_ABI_MINOR == 0, "write the new sizes down here");
_Static_assert(sizeof(graft_stamp) == 152, "graft_stamp");
_Static_assert(offsetof(graft_stamp, torch) == 24, "graft_stamp.torch");
_Static_assert(offsetof(graft_stamp, id) == 56, "graft_stamp.id");
_Static_assert(offsetof(graft_stamp, version) == 120, "graft_stamp.version");
_Static_assert(sizeof(graft_stamp_note) == 172, "graft_stamp_note");
_Static_assert(sizeof(graft_error) == 1024, "graft_error");
_Static_assert(sizeof(graft_host) == 48, "graft_host");
_Static_assert(offsetof(graft_host, query) == 40, "graft_host.query");
_Static_assert(sizeof(graft_claim) == 32, "graft_claim");
_Static_assert(offsetof(graft_claim, priority) == 24, "graft_claim.priority");
_Static_assert(sizeof(graft_kernel) == 24, "graft_kernel");
_Static_assert(sizeof(graft_plugin) == 72, "graft_plugin");
_Static_assert(offsetof(graft_plugin, claim_count) == 40, "graft_plugin.claim_count");
_Static_assert(offsetof(graft_plugin, query) == 64, "graft_plugin.query");
_Static_assert(sizeof(graft_pool) == 56, "graft_pool");
_Static_assert(offsetof(graft_pool, drain) == 48, "graft_pool.drain");
_Static_assert(sizeof(graft_activations) == 16, "graft_activations");
_Static_assert(sizeof(graft_callbacks) == 24, "graft_callbacks");
_Static_assert(GRAFT_BAD_INPUT == 2 && GRAFT_INTERNAL == 5, "graft_status");

const graft_plugin* graft_plugin_entry(uint32_t host_abi_major, uint32_t host_abi_minor) {
  (void)host_abi_minor;
  static const graft_plugin plugin = {.size = sizeof(graft_plugin)};
  return host_abi_major == GRAFT_ABI_MAJOR ? &plugin : NULL;
}
