// What crosses between a plugin and its host as C++: check_border.py looks at its layout.
#include "graft/nn/experts.h"
#include "graft/nn/layers.h"
#include "graft/nn/row_linear.h"
#include "graft/quantizer.h"
#include "graft/restructuring.h"
