#pragma once

// A stand-in: see ../context.h. ProcessGroupGloo.hpp needs nothing of this header.
