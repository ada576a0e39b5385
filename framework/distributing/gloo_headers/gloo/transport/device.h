#pragma once

// A stand-in: see ../context.h.

namespace gloo::transport {

class Device;
class UnboundBuffer;

}  // namespace gloo::transport
