// What the gradient microscope found, drawn for a terminal: the cause, the evidence, the worst elements, the error's
// map.
#pragma once
#include <string>

#include "autograd/microscope.h"
#include "notebooks/kit/drawing.h"

namespace sinkhorn::drawing {

/// Lines for everything that is wrong; one line if nothing is.
std::string microscope_view(const Style& style, const Diagnosis& diagnosis);

}  // namespace sinkhorn::drawing
