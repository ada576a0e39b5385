#pragma once

#include <string>
#include <vector>

namespace graft {

struct PlotPoint {
  int x = 0;
  double y = 0;       ///< one that is not positive has no place on a logarithmic scale
  std::string title;  ///< shown where the pointer rests
};

struct PlotSeries {
  std::string name;
  std::vector<PlotPoint> points;  ///< by rising x
};

/// The series as inline SVG of `width` units, y on a logarithmic scale; "" when there is no point
/// to draw. Colours are the classes s0 .. s7 of the page, the rest s8. Labels of the axes have the
/// class "axis". Names and titles are escaped here.
std::string log_plot(const std::vector<PlotSeries>& series, int width, const std::string& x_label);

/// `text` for HTML: markup escaped, control characters and what is no UTF-8 replaced.
std::string escaped(const std::string& text);

}  // namespace graft
