#pragma once

/// Marks what libgraft.so exports; everything else is hidden.
#define GRAFT_API __attribute__((visibility("default")))
